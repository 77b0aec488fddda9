/* A container writer that goes on where an interrupted one was (format/container_write.h).
 *
 * What is put is in the partial files already; what is not are the sections of the front that grow
 * with it, which the caller saves and gives back.  Nothing of that is believed: every chunk of
 * every tensor that counts as put is read and digested first. */
#include "format/container_write_internal.h"

#include "common/memory.h"
#include "format/container_write_set.h"

#include <stdio.h>

void writer_take_back(const char *path, const uint8_t set_id[16]) {
    ingot_file *file = NULL;
    uint8_t bytes[SUPERBLOCK_BYTES];
    superblock super;
    char partial[4096];
    memset(&super, 0, sizeof super);
    if (snprintf(partial, sizeof partial, "%s" INGOT_PARTIAL_SUFFIX, path) >= (int)sizeof partial ||
        ingot_path_exists(partial) || ingot_file_open(&file, path, NULL) != INGOT_OK) {
        return;
    }
    if (ingot_file_read_at(file, bytes, sizeof bytes, 0, NULL) == INGOT_OK &&
        memcmp(bytes, ingot_container_magic, sizeof ingot_container_magic) == 0) {
        superblock_decode(&super, bytes);
    }
    ingot_file_close(file);
    if (super.shard_count > 1 && memcmp(super.set_id, set_id, 16) == 0) {
        (void)rename(path, partial); /* where that fails the shard is missing, and said to be */
    }
}

/* ---- what is finished ----------------------------------------------------------------------- */

static bool has_beside(const char *path, const char *suffix) {
    char name[4096];
    return snprintf(name, sizeof name, "%s%s", path, suffix) >= (int)sizeof name ||
           ingot_path_exists(name);
}

/* Whether all that a front has from the plan is the same; the rest is from the data. */
static bool is_same_front(const writer_shard *planned, const shard *found) {
    const superblock *a = &planned->super, *b = &found->super;
    if (a->profile != b->profile || a->incompat != b->incompat ||
        a->section_count != b->section_count || memcmp(a->set_id, b->set_id, 16) != 0) {
        return false;
    }
    for (uint32_t i = 0; i < a->section_count; i++) {
        const section *x = &planned->sections[i], *y = &found->sections[i];
        const uint32_t kind = x->fourcc;
        const bool is_of_data = kind == FOURCC_CHNK || kind == FOURCC_LEDG || kind == FOURCC_ZMAP ||
                                kind == FOURCC_SHRD || kind == FOURCC_DATA;
        if (kind != y->fourcc ||
            (!is_of_data &&
             (x->size != y->size ||
              memcmp(planned->front + x->offset, found->front + y->offset, x->size) != 0))) {
            return false;
        }
    }
    return true;
}

ingot_status ingot_writer_find(ingot_container **out, const char *path, bool may_be_begun,
                               const ingot_writer_plan *plan, ingot_error *error) {
    ingot_writer *writer;
    bool is_under_way = false;
    ingot_status status = INGOT_OK;
    *out = NULL;
    INGOT_TRY(writer_lay_out(&writer, plan, error));
    for (uint32_t s = 0; s < writer->shard_count; s++) {
        INGOT_GO(writer_name_shard(writer, s, path, error));
        INGOT_GO(writer_build_front(writer, &writer->shards[s], error));
        const char *name = writer->shards[s].path;
        is_under_way = is_under_way || has_beside(name, INGOT_REPLACED_SUFFIX) ||
                       (!(may_be_begun && s == 0) && has_beside(name, INGOT_PARTIAL_SUFFIX));
    }
    if (is_under_way) {
        status = ingot_error_set(error, INGOT_ERR_NOT_FOUND, path, NULL, NULL,
                                 "a run that replaces it was interrupted");
        goto done;
    }
    INGOT_GO(ingot_open(out, writer->name, error));
    bool is_same = (*out)->shard_count == writer->shard_count;
    for (uint32_t s = 0; is_same && s < writer->shard_count; s++) {
        is_same = is_same_front(&writer->shards[s], &(*out)->shards[s]);
    }
    if (!is_same) {
        ingot_close(*out);
        *out = NULL;
        status = ingot_error_set(error, INGOT_ERR_NOT_FOUND, path, NULL, NULL,
                                 "its plan, META or files are others");
    }
done:
    writer_destroy(writer);
    return status;
}

/* ---- going on ------------------------------------------------------------------------------- */

void ingot_writer_keep(ingot_writer *writer) {
    for (uint32_t s = 0; s < writer->shard_count; s++) {
        if (writer->shards[s].output != NULL) {
            ingot_output_keep(writer->shards[s].output);
        }
    }
}

uint32_t ingot_writer_shard_count(const ingot_writer *writer) {
    return writer->shard_count;
}

void ingot_writer_get_image(uint8_t **bytes, uint64_t *size, ingot_writer *writer, uint32_t number,
                            ingot_writer_image which) {
    const writer_shard *part = &writer->shards[number];
    switch (which) {
    case INGOT_IMAGE_CHUNKS:
        *bytes = part->chunks;
        *size = part->chunk_count * 8;
        return;
    case INGOT_IMAGE_LEDGER:
        *bytes = part->ledger;
        *size = part->tensor_count * LEDGER_BYTES;
        return;
    case INGOT_IMAGE_ZMAP:
    case INGOT_IMAGE_COUNT:
        break;
    }
    *bytes = part->zmap;
    *size = part->zmap != NULL ? part->chunk_count * ZMAP_BYTES : 0;
}

bool ingot_writer_is_put(const ingot_writer *writer, uint64_t index) {
    return writer->places[index].is_put;
}

void ingot_writer_get_ledger(ingot_ledger *out, const ingot_writer *writer, uint64_t index) {
    const place *where = &writer->places[index];
    ledger_decode(out, writer->shards[where->shard].ledger + where->local * LEDGER_BYTES);
}

/* A partial file as the reader sees a shard, as far as reading tensors goes. */
static shard readable(const writer_shard *part) {
    return (shard){.path = ingot_output_partial_path(part->output),
                   .fd = ingot_output_descriptor(part->output),
                   .tensors = part->tensors,
                   .tensor_count = part->tensor_count,
                   .chunks = part->chunks,
                   .zmap = part->zmap,
                   .data_offset = part->data_offset,
                   .data_size = part->data_size};
}

uint64_t ingot_writer_load_bytes(const ingot_writer *writer, uint64_t index) {
    const place *where = &writer->places[index];
    return tensor_load_bytes(&writer->shards[where->shard].tensors[where->local]);
}

ingot_status ingot_writer_load(const ingot_writer *writer, uint64_t index, void *buffer,
                               ingot_weight_view *view, ingot_error *error) {
    const place *where = &writer->places[index];
    const writer_shard *part = &writer->shards[where->shard];
    const shard file = readable(part);
    return tensor_load(&file, &part->tensors[where->local], true, buffer, view, error);
}

/* Marks a tensor as put; of a compressed file the next chunk goes behind its last one. */
static ingot_status take_tensor(ingot_writer *writer, uint64_t index, ingot_error *error) {
    place *where = &writer->places[index];
    writer_shard *part = &writer->shards[where->shard];
    const ingot_tensor *tensor = &part->tensors[where->local];
    const uint64_t first = tensor->first_chunk, end = first + tensor_chunk_count(tensor);
    for (uint64_t chunk = first; part->zmap != NULL && chunk < end; chunk++) {
        const uint8_t *entry = part->zmap + chunk * ZMAP_BYTES;
        const uint64_t offset = load_le(entry, 8), length = load_le(entry + 8, 4);
        if (offset > part->data_size || length > CHUNK_BYTES) {
            return ingot_error_set(error, INGOT_ERR_STATE, part->path, tensor->name, NULL,
                                   "a chunk is said to be where none can be");
        }
        part->stored_size = ingot_max_u64(part->stored_size, offset + length);
    }
    where->is_put = where->has_ledger = true;
    return INGOT_OK;
}

void ingot_writer_forget(ingot_writer *writer, uint64_t index) {
    place *where = &writer->places[index];
    writer_shard *part = &writer->shards[where->shard];
    where->is_put = where->has_ledger = false;
    where->streamed_bytes = 0;
    if (part->zmap == NULL) {
        return;
    }
    part->stored_size = 0;
    for (uint64_t i = 0; i < writer->plan->tensor_count; i++) {
        const place *other = &writer->places[i];
        if (other->is_put && other->shard == where->shard) {
            const ingot_tensor *tensor = &part->tensors[other->local];
            const uint64_t end = tensor->first_chunk + tensor_chunk_count(tensor);
            for (uint64_t chunk = tensor->first_chunk; chunk < end; chunk++) {
                const uint8_t *entry = part->zmap + chunk * ZMAP_BYTES;
                part->stored_size =
                    ingot_max_u64(part->stored_size, load_le(entry, 8) + load_le(entry + 8, 4));
            }
        }
    }
}

ingot_status ingot_writer_restore(ingot_writer *writer, const bool *is_put, ingot_error *error) {
    const uint64_t count = writer->plan->tensor_count;
    ingot_status status = INGOT_OK;
    ingot_error found;
    void *buffer = NULL;
    uint64_t room = 0;
    memset(&found, 0, sizeof found);
    for (uint64_t i = 0; i < count; i++) {
        ingot_weight_view view;
        const place *where = &writer->places[i];
        if (!is_put[i] || writer->plan->tensors[i].kind == INGOT_ALIAS) {
            continue;
        }
        const uint64_t bytes = ingot_writer_load_bytes(writer, i);
        if (bytes > room) {
            ingot_free(buffer);
            buffer = NULL;
            room = bytes;
            INGOT_GO(ingot_alloc(&buffer, bytes));
        }
        INGOT_GO(ingot_interrupt_check(error));
        INGOT_GO(take_tensor(writer, i, error));
        status = ingot_writer_load(writer, i, buffer, &view, &found);
        if (status != INGOT_OK) {
            status = ingot_error_set(
                error, INGOT_ERR_STATE, writer->shards[where->shard].path,
                writer->plan->tensors[i].name, "run without --resume to start over",
                "the partial output does not hold what was written: %s", found.reason);
            goto done;
        }
    }
done:
    ingot_free(buffer);
    return status;
}
