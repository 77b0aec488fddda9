/* Where everything of a container comes to lie, before a byte of it is written: the order of
 * records, shards, sections and offsets (spec/container.md). */
#include "format/container_write_internal.h"

#include <stdlib.h>
#include <zstd.h>

ingot_status writer_no_memory(ingot_error *error) {
    return ingot_error_set(error, INGOT_ERR_NO_MEMORY, NULL, NULL, NULL, "out of memory");
}

/* Record order: the plan's, but aliases stand right behind their target, so that sharding never
 * separates them and the content id does not depend on it.  order[count]; next[count] is scratch:
 * behind each target the chain of its aliases. */
static ingot_status order_records(uint64_t *order, uint64_t *next, const ingot_writer_plan *plan,
                                  ingot_error *error) {
    const ingot_tensor_spec *specs = plan->tensors;
    const uint64_t count = plan->tensor_count;
    for (uint64_t i = 0; i < count; i++) {
        next[i] = UINT64_MAX;
    }
    for (uint64_t i = count; i-- > 0;) {
        const uint64_t target = specs[i].alias_of;
        if (specs[i].kind != INGOT_ALIAS) {
            continue;
        }
        if (target >= count || specs[target].kind == INGOT_ALIAS) {
            return ingot_error_set(error, INGOT_ERR_USAGE, NULL, specs[i].name, NULL,
                                   "an alias needs a target that is no alias");
        }
        next[i] = next[target];
        next[target] = i;
    }
    uint64_t at = 0;
    for (uint64_t i = 0; i < count; i++) {
        for (uint64_t j = i; specs[i].kind != INGOT_ALIAS && j != UINT64_MAX; j = next[j]) {
            order[at++] = j;
        }
    }
    return INGOT_OK;
}

/* Geometry of a planned tensor; an alias has its target's shape, whatever its own spec says. */
static ingot_status planned_geometry(ingot_tensor *out, const ingot_writer_plan *plan,
                                     uint64_t index, ingot_error *error) {
    ingot_tensor_spec spec = plan->tensors[index];
    if (spec.kind == INGOT_ALIAS) {
        const ingot_tensor_spec *target = &plan->tensors[spec.alias_of];
        spec.rank = target->rank;
        memcpy(spec.dim, target->dim, sizeof spec.dim);
    }
    return ingot_tensor_geometry(out, &spec, error);
}

/* Cuts the ordered records into shards of at most shard_size_bytes of parts (a larger tensor gets
 * a shard of its own) and places every tensor. */
static ingot_status cut_shards(ingot_writer *writer, const uint64_t *order, ingot_error *error) {
    const ingot_writer_plan *plan = writer->plan;
    uint64_t shard_bytes = 0;
    uint32_t s = 0;
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        ingot_tensor tensor;
        INGOT_TRY(planned_geometry(&tensor, plan, order[i], error));
        uint64_t bytes = 0;
        for (unsigned p = 0; p < INGOT_PART_COUNT; p++) {
            bytes += tensor.part_bytes[p];
        }
        if (plan->shard_size_bytes > 0 && shard_bytes > 0 && bytes > 0 &&
            shard_bytes + bytes > plan->shard_size_bytes) {
            shard_bytes = 0;
            if (++s >= MAX_SHARDS) {
                return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "raise --shard-size",
                                       "the set would have more than %u shards", MAX_SHARDS);
            }
        }
        shard_bytes += bytes;
        writer->places[order[i]].shard = s;
    }
    writer->shard_count = s + 1;
    writer->shards = calloc(writer->shard_count, sizeof *writer->shards);
    if (writer->shards == NULL) {
        return writer_no_memory(error);
    }
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        writer->shards[writer->places[i].shard].tensor_count++;
    }
    for (s = 0; s < writer->shard_count; s++) {
        writer_shard *part = &writer->shards[s];
        part->tensors = calloc(part->tensor_count + 1, sizeof *part->tensors);
        part->plan_index = calloc(part->tensor_count + 1, sizeof *part->plan_index);
        if (part->tensors == NULL || part->plan_index == NULL) {
            return writer_no_memory(error);
        }
        part->tensor_count = 0;
    }
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        place *where = &writer->places[order[i]];
        writer_shard *part = &writer->shards[where->shard];
        where->local = part->tensor_count++;
        part->plan_index[where->local] = order[i];
        INGOT_TRY(planned_geometry(&part->tensors[where->local], plan, order[i], error));
    }
    return INGOT_OK;
}

static void place_tensors(ingot_writer *writer, writer_shard *part) {
    for (uint64_t i = 0; i < part->tensor_count; i++) {
        ingot_tensor *tensor = &part->tensors[i];
        tensor_place(tensor, &part->data_size, &part->chunk_count);
        part->names_size += strlen(tensor->name);
        if (tensor->kind == INGOT_ALIAS) { /* an alias repeats the geometry of its target */
            const ingot_tensor *target = &part->tensors[writer->places[tensor->alias_of].local];
            tensor->rank = target->rank;
            memcpy(tensor->dim, target->dim, sizeof tensor->dim);
            tensor->dtype = target->dtype;
            tensor->bits = target->bits;
            tensor->scale_dtype = target->scale_dtype;
            tensor->zero_mode = target->zero_mode;
            tensor->group = target->group;
            tensor->alias_of = writer->places[tensor->alias_of].local;
        }
    }
}

static void add_section(writer_shard *part, uint32_t fourcc, uint64_t size, uint64_t aux) {
    section *record = &part->sections[part->super.section_count++];
    *record = (section){.fourcc = fourcc, .flags = SECTION_CRITICAL, .size = size, .aux = aux};
}

static int compare_files(const void *a, const void *b) {
    return strcmp((*(const ingot_file_spec *const *)a)->name,
                  (*(const ingot_file_spec *const *)b)->name);
}

ingot_status writer_sort_files(const ingot_file_spec **files, const ingot_writer_plan *plan,
                               ingot_error *error) {
    if (plan->file_count > MAX_SECTIONS - 9 || plan->meta_size > MAX_META_BYTES) {
        return ingot_error_set(error, INGOT_ERR_UNSUPPORTED, NULL, NULL, "leave files out",
                               "the container cannot hold %llu files and %llu bytes of META",
                               (unsigned long long)plan->file_count,
                               (unsigned long long)plan->meta_size);
    }
    for (uint64_t i = 0; i < plan->file_count; i++) {
        files[i] = &plan->files[i];
        if (!file_name_is_legal(files[i]->name, strlen(files[i]->name)) ||
            files[i]->size > MAX_FILE_ENTRY_BYTES) {
            return ingot_error_set(error, INGOT_ERR_UNSUPPORTED, files[i]->name, NULL,
                                   "rename or remove it",
                                   "the container cannot hold a file of this name or size");
        }
    }
    qsort(files, (size_t)plan->file_count, sizeof *files, compare_files);
    return INGOT_OK;
}

static ingot_status lay_out_shard(ingot_writer *writer, uint32_t index, ingot_error *error) {
    const ingot_writer_plan *plan = writer->plan;
    writer_shard *part = &writer->shards[index];
    const ingot_file_spec *files[MAX_SECTIONS];
    const uint64_t file_count = index == 0 ? plan->file_count : 0;
    INGOT_TRY(writer_sort_files(files, plan, error));
    place_tensors(writer, part);
    uint64_t name_at = part->names_size;
    for (uint64_t i = 0; i < file_count; i++) {
        part->names_size += strlen(files[i]->name);
    }
    add_section(part, FOURCC_TIDX, part->tensor_count * RECORD_BYTES, 0);
    add_section(part, FOURCC_TSRT, part->tensor_count * 4, 0);
    add_section(part, FOURCC_NAME, part->names_size, 0);
    add_section(part, FOURCC_CHNK, part->chunk_count * 8, 0);
    add_section(part, FOURCC_LEDG, part->tensor_count * LEDGER_BYTES, 0);
    add_section(part, FOURCC_META, plan->meta_size, 0);
    for (uint64_t i = 0; i < file_count; i++) {
        const uint64_t length = strlen(files[i]->name);
        add_section(part, FOURCC_FILE, files[i]->size, name_at | length << 32);
        name_at += length;
    }
    if (index == 0 && writer->shard_count > 1) {
        add_section(part, FOURCC_SHRD, (writer->shard_count - 1) * 16u, 0);
    }
    if (plan->is_compressed) {
        add_section(part, FOURCC_ZMAP, part->chunk_count * ZMAP_BYTES, 0);
    }
    add_section(part, FOURCC_DATA, part->data_size, part->data_size);
    uint64_t at = SUPERBLOCK_BYTES + (uint64_t)part->super.section_count * SECTION_BYTES;
    for (uint32_t i = 0; i < part->super.section_count; i++) {
        section *record = &part->sections[i];
        const uint64_t alignment = record->fourcc == FOURCC_DATA ? DATA_ALIGNMENT : 8;
        record->offset = (at + alignment - 1) / alignment * alignment;
        at = record->offset + record->size;
    }
    part->data_offset = part->sections[part->super.section_count - 1].offset;
    part->super.file_size = (at + 7) / 8 * 8 + TRAILER_BYTES;
    part->super.major = 1;
    part->super.table_offset = SUPERBLOCK_BYTES;
    part->super.incompat = plan->is_compressed ? INCOMPAT_ZSTD : 0;
    part->super.profile = plan->profile;
    part->super.shard_index = index;
    part->super.shard_count = writer->shard_count;
    memcpy(part->super.set_id, plan->set_id, 16);
    return INGOT_OK;
}

void writer_destroy(ingot_writer *writer) {
    for (uint32_t s = 0; writer->shards != NULL && s < writer->shard_count; s++) {
        writer_shard *part = &writer->shards[s];
        ingot_output_abort(part->output);
        free(part->path);
        free(part->tensors);
        free(part->plan_index);
        free(part->front);
    }
    free(writer->shards);
    free(writer->name);
    free(writer->places);
    free(writer->compressed);
    (void)ZSTD_freeCCtx(writer->zstd);
    ingot_pool_destroy(writer->pool);
    free(writer);
}

ingot_status writer_lay_out(ingot_writer **out, const ingot_writer_plan *plan, ingot_error *error) {
    ingot_status status;
    uint64_t *order = NULL;
    ingot_writer *writer = calloc(1, sizeof *writer);
    *out = NULL;
    if (plan->tensor_count > MAX_TENSORS) {
        status = ingot_error_set(error, INGOT_ERR_UNSUPPORTED, NULL, NULL, NULL,
                                 "the container cannot hold %llu tensors",
                                 (unsigned long long)plan->tensor_count);
        goto done;
    }
    order = calloc(2 * plan->tensor_count + 1, sizeof *order);
    if (writer == NULL || order == NULL) {
        status = writer_no_memory(error);
        goto done;
    }
    writer->plan = plan;
    writer->places = calloc(plan->tensor_count + 1, sizeof *writer->places);
    if (writer->places == NULL) {
        status = writer_no_memory(error);
        goto done;
    }
    INGOT_GO(order_records(order, order + plan->tensor_count, plan, error));
    INGOT_GO(cut_shards(writer, order, error));
    for (uint32_t s = 0; s < writer->shard_count; s++) {
        INGOT_GO(lay_out_shard(writer, s, error));
    }
    *out = writer;
    writer = NULL;
    status = INGOT_OK;
done:
    free(order);
    if (writer != NULL) {
        writer_destroy(writer);
    }
    return status;
}

ingot_status ingot_layout_compute(ingot_layout_info *out, const ingot_writer_plan *plan,
                                  ingot_error *error) {
    ingot_writer *writer;
    memset(out, 0, sizeof *out);
    INGOT_TRY(writer_lay_out(&writer, plan, error));
    out->shard_count = writer->shard_count;
    for (uint32_t s = 0; s < writer->shard_count; s++) {
        out->file_bytes += writer->shards[s].super.file_size;
        out->data_bytes += writer->shards[s].data_size;
    }
    writer_destroy(writer);
    return INGOT_OK;
}
