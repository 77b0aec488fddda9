/* The container writer: frozen geometry, parts at their planned place in any order, digests and
 * superblock last, re-read by the public reader, renamed (spec/container.md, "Writing").
 *
 * Invariants: the front's size never changes after creation; every chunk is digested exactly when
 * its bytes are written; a file appears under its final name only after the full check passed; of a
 * sharded set the first shard, which names the others, is renamed last. */
#include "format/container_write.h"

#include "common/memory.h"
#include "common/progress.h"
#include "common/sizes.h"
#include "format/container_write_internal.h"
#include "format/container_write_set.h"
#include "format/digest.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <zstd.h>

/* Archive copies are written once and read often. */
#define ZSTD_LEVEL 9

/* ---- the front ------------------------------------------------------------------------------ */

static int compare_records(const void *a, const void *b, void *context) {
    const writer_shard *part = context;
    return strcmp(part->tensors[*(const uint32_t *)a].name,
                  part->tensors[*(const uint32_t *)b].name);
}

static ingot_status write_sorted(writer_shard *part, ingot_error *error) {
    uint32_t *index = calloc(part->tensor_count + 1, sizeof *index);
    if (index == NULL) {
        return writer_no_memory(error);
    }
    for (uint32_t i = 0; i < part->tensor_count; i++) {
        index[i] = i;
    }
    qsort_r(index, (size_t)part->tensor_count, sizeof *index, compare_records, part);
    ingot_status status = INGOT_OK;
    for (uint64_t i = 0; i < part->tensor_count; i++) {
        store_le(part->tsrt + 4 * i, index[i], 4);
        if (i > 0 && compare_records(&index[i - 1], &index[i], part) == 0) {
            status = ingot_error_set(error, INGOT_ERR_USAGE, NULL, part->tensors[index[i]].name,
                                     NULL, "two tensors have the same name");
        }
    }
    free(index);
    return status;
}

ingot_status writer_build_front(ingot_writer *writer, writer_shard *part, ingot_error *error) {
    const ingot_writer_plan *plan = writer->plan;
    const ingot_file_spec *files[MAX_SECTIONS];
    part->front = calloc(1, (size_t)part->data_offset + 1);
    if (part->front == NULL) {
        return writer_no_memory(error);
    }
    INGOT_TRY(writer_sort_files(files, plan, error));
    uint64_t file = 0;
    uint8_t *names = NULL;
    for (uint32_t i = 0; i < part->super.section_count; i++) {
        uint8_t *bytes = part->front + part->sections[i].offset;
        switch (part->sections[i].fourcc) {
        case FOURCC_TIDX:
            part->tidx = bytes;
            break;
        case FOURCC_TSRT:
            part->tsrt = bytes;
            break;
        case FOURCC_NAME:
            part->names = names = bytes;
            break;
        case FOURCC_CHNK:
            part->chunks = bytes;
            break;
        case FOURCC_LEDG:
            part->ledger = bytes;
            break;
        case FOURCC_META:
            memcpy(bytes, plan->meta, (size_t)plan->meta_size);
            break;
        case FOURCC_FILE:
            if (files[file]->size > 0) {
                memcpy(bytes, files[file]->bytes, (size_t)files[file]->size);
            }
            memcpy(part->names + (part->sections[i].aux & UINT32_MAX), files[file]->name,
                   strlen(files[file]->name));
            file++;
            break;
        case FOURCC_SHRD:
            part->roots = bytes;
            break;
        case FOURCC_ZMAP:
            part->zmap = bytes;
            break;
        default:
            break;
        }
    }
    for (uint64_t i = 0; i < part->tensor_count; i++) {
        const size_t length = strlen(part->tensors[i].name);
        record_encode(part->tidx + i * RECORD_BYTES, &part->tensors[i],
                      (uint64_t)(names - part->names));
        memcpy(names, part->tensors[i].name, length);
        names += length;
        /* Records nobody speaks of (aliases, fold scales) have an empty ledger. */
        const ingot_ledger empty = {.weight_error = NAN,
                                    .weight_error_rtn = NAN,
                                    .output_error = NAN,
                                    .output_error_rtn = NAN,
                                    .damping = NAN};
        ledger_encode(part->ledger + i * LEDGER_BYTES, &empty);
    }
    return write_sorted(part, error);
}

/* A reader finds the shards of a set by the name of one, wherever links lead. */
static ingot_status check_place(const ingot_writer *writer, uint32_t index, const char *name,
                                const char *target, ingot_error *error) {
    const char *first = index == 0 ? target : writer->shards[0].path;
    char expected[INGOT_PATH_BYTES];
    bool is_beside = shard_path_place(first, writer->shard_count) == 0;
    if (is_beside) {
        shard_path_sibling(expected, first, index);
        is_beside = strcmp(expected, target) == 0;
    }
    return is_beside ? INGOT_OK
                     : ingot_error_set(error, INGOT_ERR_USAGE, name, NULL,
                                       "let the folder be a link, or remove those of the shards",
                                       "shards of a set are symbolic links that do not lead into "
                                       "one folder, to files of the same names");
}

ingot_status writer_name_shard(ingot_writer *writer, uint32_t index, const char *path,
                               ingot_error *error) {
    const uint32_t count = writer->shard_count;
    char target[INGOT_PATH_BYTES];
    char *name = count == 1 ? strdup(path) : shard_path_make(path, index, count);
    ingot_status status = name != NULL ? INGOT_OK : writer_no_memory(error);
    INGOT_GO(status);
    INGOT_GO(ingot_output_target(target, name, error));
    INGOT_GO(count == 1 ? INGOT_OK : check_place(writer, index, name, target, error));
    writer->shards[index].path = strdup(target);
    status = writer->shards[index].path != NULL ? INGOT_OK : writer_no_memory(error);
done:
    if (index == 0) {
        writer->name = name;
    } else {
        free(name);
    }
    return status;
}

static ingot_status open_writer(ingot_writer **out, const char *path, bool force, bool reopens,
                                const ingot_writer_plan *plan, ingot_error *error) {
    ingot_status status;
    ingot_writer *writer;
    *out = NULL;
    INGOT_TRY(writer_lay_out(&writer, plan, error));
    writer->is_forced = force;
    assert(plan->output == NULL || (writer->shard_count == 1 && !plan->is_compressed && !reopens));
    /* Every shard is open twice when the set is read back, beside the shards of the source: better
     * to know that before hours of work. */
    if (writer->shard_count > 1 && !ingot_files_allow(2 * (uint64_t)writer->shard_count + 64)) {
        status = ingot_error_set(error, INGOT_ERR_USAGE, path, NULL,
                                 "raise --shard-size or the limit of open files (ulimit -n)",
                                 "a set of %u shards needs more open files than are allowed",
                                 writer->shard_count);
        goto done;
    }
    if (plan->is_compressed) {
        writer->compressed = malloc(ZSTD_compressBound(CHUNK_BYTES));
        writer->zstd = ZSTD_createCCtx();
        if (writer->compressed == NULL || writer->zstd == NULL) {
            status = writer_no_memory(error);
            goto done;
        }
    }
    for (uint32_t s = 0; s < writer->shard_count; s++) {
        writer_shard *part = &writer->shards[s];
        INGOT_GO(writer_name_shard(writer, s, path, error));
        INGOT_GO(writer_build_front(writer, part, error));
        if (reopens && writer->shard_count > 1) {
            writer_take_back(part->path, plan->set_id);
        }
        if (plan->output != NULL) {
            part->output = plan->output;
        } else {
            INGOT_GO(reopens ? ingot_output_reopen(&part->output, part->path, force, error)
                             : ingot_output_create(&part->output, part->path, force, error));
        }
        if (!plan->is_compressed && ingot_output_reserved(part->output) < part->super.file_size) {
            INGOT_GO(ingot_output_reserve(part->output, part->super.file_size, error));
        }
    }
    *out = writer;
    return INGOT_OK;
done:
    if (plan->output != NULL) {
        writer->shards[0].output = NULL; /* the caller's, as before */
    }
    writer_destroy(writer);
    return status;
}

ingot_status ingot_writer_create(ingot_writer **out, const char *path, bool force,
                                 const ingot_writer_plan *plan, ingot_error *error) {
    return open_writer(out, path, force, false, plan, error);
}

ingot_status ingot_writer_reopen(ingot_writer **out, const char *path, bool force,
                                 const ingot_writer_plan *plan, ingot_error *error) {
    return open_writer(out, path, force, true, plan, error);
}

ingot_status ingot_writer_use_threads(ingot_writer *writer, unsigned threads) {
    ingot_pool_destroy(writer->pool);
    writer->pool = NULL;
    unsigned most = 1;
    for (uint32_t s = 0; !writer->plan->is_compressed && s < writer->shard_count; s++) {
        const unsigned useful = ingot_output_share(writer->shards[s].output, threads);
        most = useful > most ? useful : most;
    }
    return most > 1 ? ingot_pool_create(&writer->pool, most) : INGOT_OK;
}

/* ---- parts ---------------------------------------------------------------------------------- */

static ingot_status write_chunk(ingot_writer *writer, writer_shard *part, uint64_t chunk,
                                uint64_t part_offset, const uint8_t *bytes, uint64_t length,
                                ingot_error *error) {
    store_le(part->chunks + chunk * 8, ingot_digest64(bytes, length), 8);
    if (part->zmap == NULL) {
        return ingot_output_write_at(part->output, bytes, length, part->data_offset + part_offset,
                                     error);
    }
    size_t stored =
        ZSTD_compressCCtx(writer->zstd, writer->compressed, ZSTD_compressBound(CHUNK_BYTES), bytes,
                          (size_t)length, ZSTD_LEVEL);
    if (ZSTD_isError(stored) != 0) { /* there is room for every result: only memory can be short */
        return writer_no_memory(error);
    }
    const bool is_smaller = stored < length;
    if (!is_smaller) {
        stored = (size_t)length;
    }
    const uint8_t *image = is_smaller ? writer->compressed : bytes;
    uint8_t *entry = part->zmap + chunk * ZMAP_BYTES;
    store_le(entry, part->stored_size, 8);
    store_le(entry + 8, stored, 4);
    store_le(entry + 12, is_smaller ? 1 : 0, 4);
    store_le(entry + 16, ingot_digest64(image, stored), 8);
    INGOT_TRY(ingot_output_write_at(part->output, image, stored,
                                    part->data_offset + part->stored_size, error));
    part->stored_size += stored;
    return INGOT_OK;
}

/* Bytes of a part that go to the file, in whole chunks but for the last. */
typedef struct part_bytes {
    uint64_t first_chunk, offset, size; /* in DATA, of the bytes */
    const uint8_t *bytes;
} part_bytes;

/* What is on its way into a shard. */
typedef struct part_write {
    ingot_writer *writer;
    writer_shard *part;
    const part_bytes *list; /* as many as the chunks written at once need */
} part_write;

static ingot_status write_one(void *context, size_t index, unsigned worker, ingot_error *error) {
    (void)worker;
    const part_write *w = context;
    const part_bytes *p = w->list;
    uint64_t number = index;
    for (; number >= ingot_ceil_div(p->size, CHUNK_BYTES); p++) {
        number -= ingot_ceil_div(p->size, CHUNK_BYTES);
    }
    const uint64_t at = number * CHUNK_BYTES;
    return write_chunk(w->writer, w->part, p->first_chunk + number, p->offset + at, p->bytes + at,
                       ingot_min_u64(CHUNK_BYTES, p->size - at), error);
}

static ingot_status write_parts(ingot_writer *writer, writer_shard *part, const part_bytes *list,
                                unsigned count, ingot_error *error) {
    part_write w = {.writer = writer, .part = part, .list = list};
    uint64_t chunks = 0;
    for (unsigned i = 0; i < count; i++) {
        chunks += ingot_ceil_div(list[i].size, CHUNK_BYTES);
    }
    /* compressed chunks follow each other in the file */
    return ingot_pool_try(part->zmap == NULL ? writer->pool : NULL, chunks, write_one, &w, error);
}

static ingot_status misuse(ingot_error *error, const char *tensor, const char *reason) {
    return ingot_error_set(error, INGOT_ERR_INTERNAL, NULL, tensor, "please report this", "%s",
                           reason);
}

static bool view_matches(const ingot_tensor *tensor, const ingot_weight_view *view) {
    if (view->rows != tensor->rows || view->cols != tensor->cols) {
        return false;
    }
    if (tensor->kind != INGOT_GROUPED) {
        return view->kind == INGOT_DENSE && view->dtype == tensor->dtype;
    }
    return view->kind == INGOT_GROUPED && view->bits == tensor->bits &&
           view->group == tensor->group && view->scale_dtype == tensor->scale_dtype &&
           view->zero_mode == tensor->zero_mode &&
           view->row_stride_bytes == tensor->row_stride_bytes &&
           view->outlier_count == tensor->outlier_count &&
           (view->outlier_count == 0 || view->dtype == tensor->dtype);
}

/* *image = the part of a tensor's outliers; NULL: it has none. */
static ingot_status outliers_image(uint8_t **image, const ingot_tensor *tensor,
                                   const ingot_weight_view *view, ingot_error *error) {
    *image = NULL;
    if (tensor->kind != INGOT_GROUPED || tensor->outlier_count == 0) {
        return INGOT_OK;
    }
    *image = calloc(1, (size_t)tensor->part_bytes[INGOT_PART_OUTLIERS]);
    if (*image == NULL) {
        return writer_no_memory(error);
    }
    memcpy(*image, view->outlier_row_ptr, (size_t)(8 * (tensor->rows + 1)));
    memcpy(*image + outlier_col_offset(tensor), view->outlier_col,
           (size_t)(4 * tensor->outlier_count));
    memcpy(*image + outlier_val_offset(tensor), view->outlier_val,
           (size_t)(tensor->outlier_count * ingot_dtype_bytes(tensor->dtype)));
    return INGOT_OK;
}

ingot_status ingot_writer_put(ingot_writer *writer, uint64_t index, const ingot_weight_view *view,
                              const ingot_ledger *ledger, ingot_error *error) {
    place *where = &writer->places[index];
    writer_shard *part = &writer->shards[where->shard];
    const ingot_tensor *tensor = &part->tensors[where->local];
    if (tensor->kind == INGOT_ALIAS || where->is_put || !view_matches(tensor, view)) {
        return misuse(error, tensor->name, "a tensor was written that is not as planned");
    }
    uint8_t *image;
    INGOT_TRY(outliers_image(&image, tensor, view, error));
    const bool is_grouped = tensor->kind == INGOT_GROUPED;
    const void *bytes[INGOT_PART_COUNT] = {[INGOT_PART_CODES] =
                                               is_grouped ? (const void *)view->codes : view->data,
                                           [INGOT_PART_SCALES] = view->scales,
                                           [INGOT_PART_ZEROS] = view->zeros,
                                           [INGOT_PART_OUTLIERS] = image};
    part_bytes list[INGOT_PART_COUNT];
    unsigned count = 0;
    uint64_t chunk = tensor->first_chunk;
    for (unsigned p = 0; p < (is_grouped ? INGOT_PART_COUNT : 1u); p++) {
        const uint64_t size = tensor->part_bytes[p];
        list[count++] = (part_bytes){.first_chunk = chunk,
                                     .offset = tensor->part_offset[p],
                                     .size = size,
                                     .bytes = bytes[p]};
        chunk += ingot_ceil_div(size, CHUNK_BYTES);
    }
    const ingot_status status = write_parts(writer, part, list, count, error);
    free(image);
    INGOT_TRY(status);
    where->is_put = true;
    if (ledger != NULL) {
        ingot_writer_put_ledger(writer, index, ledger);
    }
    return INGOT_OK;
}

ingot_status ingot_writer_put_bytes(ingot_writer *writer, uint64_t index, const void *bytes,
                                    uint64_t size, uint64_t offset, ingot_error *error) {
    place *where = &writer->places[index];
    writer_shard *part = &writer->shards[where->shard];
    const ingot_tensor *tensor = &part->tensors[where->local];
    const uint64_t total = tensor->part_bytes[INGOT_PART_CODES];
    const bool is_last = offset + size == total;
    if ((tensor->kind != INGOT_DENSE && tensor->kind != INGOT_AUXILIARY) || where->is_put ||
        offset != where->streamed_bytes || offset + size > total ||
        (!is_last && size % CHUNK_BYTES != 0)) {
        return misuse(error, tensor->name, "a tensor was streamed out of order");
    }
    const part_bytes piece = {.first_chunk = tensor->first_chunk + offset / CHUNK_BYTES,
                              .offset = tensor->part_offset[INGOT_PART_CODES] + offset,
                              .size = size,
                              .bytes = bytes};
    INGOT_TRY(write_parts(writer, part, &piece, 1, error));
    where->streamed_bytes += size;
    where->is_put = is_last;
    return INGOT_OK;
}

void ingot_writer_put_ledger(ingot_writer *writer, uint64_t index, const ingot_ledger *ledger) {
    place *where = &writer->places[index];
    ledger_encode(writer->shards[where->shard].ledger + where->local * LEDGER_BYTES, ledger);
    where->has_ledger = true;
}

ingot_status ingot_writer_sync(ingot_writer *writer, ingot_error *error) {
    for (uint32_t s = 0; s < writer->shard_count; s++) {
        INGOT_TRY(ingot_output_sync(writer->shards[s].output, error));
    }
    return INGOT_OK;
}

/* ---- finishing ------------------------------------------------------------------------------ */

static ingot_status seal_shard(writer_shard *part, ingot_error *error) {
    const uint32_t count = part->super.section_count;
    if (part->zmap != NULL) {
        section *data = &part->sections[count - 1];
        data->size = part->stored_size;
        part->super.file_size = (part->data_offset + part->stored_size + 7) / 8 * 8 + TRAILER_BYTES;
    }
    for (uint32_t i = 0; i < count; i++) {
        section *record = &part->sections[i];
        if (record->fourcc != FOURCC_DATA) {
            ingot_digest128(record->digest, part->front + record->offset, record->size);
        }
        section_encode(part->front + SUPERBLOCK_BYTES + i * SECTION_BYTES, record);
    }
    ingot_digest128(part->super.root, part->front + SUPERBLOCK_BYTES,
                    (uint64_t)count * SECTION_BYTES);
    superblock_encode(part->front, &part->super);
    uint8_t trailer[TRAILER_BYTES];
    memcpy(trailer, part->super.root, 16);
    store_le(trailer + 16, part->super.file_size, 8);
    memcpy(trailer + 24, ingot_container_end, 8);
    INGOT_TRY(ingot_output_truncate(part->output, part->super.file_size, error));
    INGOT_TRY(ingot_output_write_at(part->output, trailer, TRAILER_BYTES,
                                    part->super.file_size - TRAILER_BYTES, error));
    INGOT_TRY(ingot_output_write_at(part->output, part->front + SUPERBLOCK_BYTES,
                                    part->data_offset - SUPERBLOCK_BYTES, SUPERBLOCK_BYTES, error));
    INGOT_TRY(ingot_output_sync(part->output, error));
    return ingot_output_write_at(part->output, part->front, SUPERBLOCK_BYTES, 0, error);
}

static ingot_status verify_written(const ingot_writer *writer, unsigned threads, uint8_t *root,
                                   uint8_t *content_id, ingot_error *error) {
    ingot_container *container;
    ingot_info info;
    INGOT_TRY(ingot_open(&container, ingot_output_partial_path(writer->shards[0].output), error));
    const ingot_status status =
        ingot_check_full(container, threads, ingot_progress_bytes, NULL, error);
    ingot_get_info(container, &info);
    ingot_close(container);
    if (root != NULL) {
        memcpy(root, info.root, 16);
    }
    if (content_id != NULL) {
        memcpy(content_id, info.content_id, 16);
    }
    return status;
}

/* Gives all shards their names, the first one last. */
static ingot_status rename_all(ingot_writer *writer, ingot_error *error) {
    for (uint32_t s = writer->shard_count; s > 0; s--) {
        writer_shard *part = &writer->shards[s - 1];
        ingot_output *output = part->output;
        part->output = NULL;
        const ingot_status status = ingot_output_commit(output, error);
        if (status != INGOT_OK) {
            for (uint32_t done = s; done < writer->shard_count; done++) {
                (void)unlink(writer->shards[done].path);
            }
            return status;
        }
    }
    return INGOT_OK;
}

static ingot_status commit_all(ingot_writer *writer, ingot_error *error) {
    const uint32_t count = writer->shard_count;
    if (count == 1 || !writer->is_forced) {
        return rename_all(writer, error);
    }
    char **replaced = NULL;
    const char **paths = calloc(count, sizeof *paths);
    ingot_status status = INGOT_OK;
    for (uint32_t s = 0; paths != NULL && s < count; s++) {
        paths[s] = writer->shards[s].path;
    }
    if (paths == NULL || ingot_set_names(&replaced, paths, count) != INGOT_OK) {
        status = writer_no_memory(error);
        goto done;
    }
    INGOT_GO(ingot_set_aside(paths, replaced, count, error));
    status = rename_all(writer, error);
    if (status == INGOT_OK) {
        ingot_set_discard(replaced, count);
    } else {
        ingot_set_restore(paths, replaced, count);
    }
done:
    ingot_set_names_free(replaced);
    free(paths);
    return status;
}

ingot_status ingot_writer_finish(ingot_writer *writer, unsigned threads, uint8_t *root,
                                 uint8_t *content_id, ingot_error *error) {
    ingot_status status = INGOT_OK;
    for (uint64_t i = 0; i < writer->plan->tensor_count; i++) {
        const ingot_tensor_spec *spec = &writer->plan->tensors[i];
        const place *where = &writer->places[i];
        const ingot_tensor *tensor = &writer->shards[where->shard].tensors[where->local];
        if (spec->kind != INGOT_ALIAS && !where->is_put && tensor_chunk_count(tensor) > 0) {
            INGOT_GO(misuse(error, spec->name, "a planned tensor was never written"));
        }
    }
    for (uint32_t s = writer->shard_count; s > 0; s--) {
        writer_shard *part = &writer->shards[s - 1];
        INGOT_GO(seal_shard(part, error));
        if (s > 1) {
            memcpy(writer->shards[0].roots + (s - 2) * 16, part->super.root, 16);
        }
    }
    INGOT_GO(ingot_writer_sync(writer, error));
    INGOT_GO(verify_written(writer, threads, root, content_id, error));
    INGOT_GO(commit_all(writer, error));
done:
    writer_destroy(writer);
    return status;
}

const char *ingot_writer_path(const ingot_writer *writer) {
    return writer->name;
}

const char *ingot_writer_shard_path(const ingot_writer *writer, uint32_t index) {
    return writer->shards[index].path;
}

void ingot_writer_abort(ingot_writer *writer) {
    if (writer != NULL) {
        writer_destroy(writer);
    }
}
