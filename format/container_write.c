/* The container writer: frozen geometry, parts at their planned place in any order, digests and
 * superblock last, re-read by the public reader, renamed (spec/container.md, "Writing").
 *
 * Invariants: the front's size never changes after creation; every chunk is digested exactly when
 * its bytes are written; a file appears under its final name only after the full check passed; of a
 * sharded set the first shard, which names the others, is renamed last. */
#include "format/container_write.h"

#include "common/files.h"
#include "common/memory.h"
#include "format/container_write_internal.h"
#include "format/container_write_set.h"
#include "format/digest.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <zstd.h>

/* Archive copies are written once and read often. */
#define ZSTD_LEVEL 9

static ingot_status out_of_memory(ingot_error *error) {
    return ingot_error_set(error, INGOT_ERR_NO_MEMORY, NULL, NULL, NULL, "out of memory");
}

/* ---- layout --------------------------------------------------------------------------------- */

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
        return out_of_memory(error);
    }
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        writer->shards[writer->places[i].shard].tensor_count++;
    }
    for (s = 0; s < writer->shard_count; s++) {
        writer_shard *part = &writer->shards[s];
        part->tensors = calloc(part->tensor_count + 1, sizeof *part->tensors);
        part->plan_index = calloc(part->tensor_count + 1, sizeof *part->plan_index);
        if (part->tensors == NULL || part->plan_index == NULL) {
            return out_of_memory(error);
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

/* files[count] sorted by name, checked. */
static ingot_status sort_files(const ingot_file_spec **files, const ingot_writer_plan *plan,
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
    INGOT_TRY(sort_files(files, plan, error));
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

static void destroy(ingot_writer *writer) {
    for (uint32_t s = 0; writer->shards != NULL && s < writer->shard_count; s++) {
        writer_shard *part = &writer->shards[s];
        ingot_output_abort(part->output);
        free(part->path);
        free(part->tensors);
        free(part->plan_index);
        free(part->front);
    }
    free(writer->shards);
    free(writer->places);
    free(writer->compressed);
    (void)ZSTD_freeCCtx(writer->zstd);
    free(writer);
}

static ingot_status lay_out(ingot_writer **out, const ingot_writer_plan *plan, ingot_error *error) {
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
        status = out_of_memory(error);
        goto done;
    }
    writer->plan = plan;
    writer->places = calloc(plan->tensor_count + 1, sizeof *writer->places);
    if (writer->places == NULL) {
        status = out_of_memory(error);
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
        destroy(writer);
    }
    return status;
}

ingot_status ingot_layout_compute(ingot_layout_info *out, const ingot_writer_plan *plan,
                                  ingot_error *error) {
    ingot_writer *writer;
    memset(out, 0, sizeof *out);
    INGOT_TRY(lay_out(&writer, plan, error));
    out->shard_count = writer->shard_count;
    for (uint32_t s = 0; s < writer->shard_count; s++) {
        out->file_bytes += writer->shards[s].super.file_size;
        out->data_bytes += writer->shards[s].data_size;
    }
    destroy(writer);
    return INGOT_OK;
}

/* ---- the front ------------------------------------------------------------------------------ */

static int compare_records(const void *a, const void *b, void *context) {
    const writer_shard *part = context;
    return strcmp(part->tensors[*(const uint32_t *)a].name,
                  part->tensors[*(const uint32_t *)b].name);
}

static ingot_status write_sorted(writer_shard *part, ingot_error *error) {
    uint32_t *index = calloc(part->tensor_count + 1, sizeof *index);
    if (index == NULL) {
        return out_of_memory(error);
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

static ingot_status build_front(ingot_writer *writer, writer_shard *part, ingot_error *error) {
    const ingot_writer_plan *plan = writer->plan;
    const ingot_file_spec *files[MAX_SECTIONS];
    part->front = calloc(1, (size_t)part->data_offset + 1);
    if (part->front == NULL) {
        return out_of_memory(error);
    }
    INGOT_TRY(sort_files(files, plan, error));
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

static ingot_status open_writer(ingot_writer **out, const char *path, bool force, bool reopens,
                                const ingot_writer_plan *plan, ingot_error *error) {
    ingot_status status;
    ingot_writer *writer;
    *out = NULL;
    INGOT_TRY(lay_out(&writer, plan, error));
    writer->is_forced = force;
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
            status = out_of_memory(error);
            goto done;
        }
    }
    for (uint32_t s = 0; s < writer->shard_count; s++) {
        writer_shard *part = &writer->shards[s];
        part->path =
            writer->shard_count == 1 ? strdup(path) : shard_path_make(path, s, writer->shard_count);
        if (part->path == NULL) {
            status = out_of_memory(error);
            goto done;
        }
        INGOT_GO(build_front(writer, part, error));
        if (reopens && writer->shard_count > 1) {
            writer_take_back(part->path, plan->set_id);
        }
        INGOT_GO(reopens ? ingot_output_reopen(&part->output, part->path, force, error)
                         : ingot_output_create(&part->output, part->path, force, error));
        if (!plan->is_compressed) {
            INGOT_GO(ingot_output_reserve(part->output, part->super.file_size, error));
        }
    }
    *out = writer;
    return INGOT_OK;
done:
    destroy(writer);
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
        return out_of_memory(error);
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

static ingot_status write_part(ingot_writer *writer, writer_shard *part, uint64_t *chunk,
                               uint64_t part_offset, const void *bytes, uint64_t size,
                               ingot_error *error) {
    for (uint64_t at = 0; at < size; at += CHUNK_BYTES) {
        INGOT_TRY(write_chunk(writer, part, (*chunk)++, part_offset + at,
                              (const uint8_t *)bytes + at, ingot_min_u64(CHUNK_BYTES, size - at),
                              error));
    }
    return INGOT_OK;
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

static ingot_status write_outliers(ingot_writer *writer, writer_shard *part,
                                   const ingot_tensor *tensor, const ingot_weight_view *view,
                                   uint64_t *chunk, ingot_error *error) {
    const uint64_t bytes = tensor->part_bytes[INGOT_PART_OUTLIERS];
    uint8_t *image = calloc(1, (size_t)bytes);
    if (image == NULL) {
        return out_of_memory(error);
    }
    memcpy(image, view->outlier_row_ptr, (size_t)(8 * (tensor->rows + 1)));
    memcpy(image + outlier_col_offset(tensor), view->outlier_col,
           (size_t)(4 * tensor->outlier_count));
    memcpy(image + outlier_val_offset(tensor), view->outlier_val,
           (size_t)(tensor->outlier_count * ingot_dtype_bytes(tensor->dtype)));
    const ingot_status status = write_part(
        writer, part, chunk, tensor->part_offset[INGOT_PART_OUTLIERS], image, bytes, error);
    free(image);
    return status;
}

ingot_status ingot_writer_put(ingot_writer *writer, uint64_t index, const ingot_weight_view *view,
                              const ingot_ledger *ledger, ingot_error *error) {
    place *where = &writer->places[index];
    writer_shard *part = &writer->shards[where->shard];
    const ingot_tensor *tensor = &part->tensors[where->local];
    if (tensor->kind == INGOT_ALIAS || where->is_put || !view_matches(tensor, view)) {
        return misuse(error, tensor->name, "a tensor was written that is not as planned");
    }
    uint64_t chunk = tensor->first_chunk;
    const void *codes = tensor->kind == INGOT_GROUPED ? (const void *)view->codes : view->data;
    INGOT_TRY(write_part(writer, part, &chunk, tensor->part_offset[INGOT_PART_CODES], codes,
                         tensor->part_bytes[INGOT_PART_CODES], error));
    if (tensor->kind == INGOT_GROUPED) {
        INGOT_TRY(write_part(writer, part, &chunk, tensor->part_offset[INGOT_PART_SCALES],
                             view->scales, tensor->part_bytes[INGOT_PART_SCALES], error));
        INGOT_TRY(write_part(writer, part, &chunk, tensor->part_offset[INGOT_PART_ZEROS],
                             view->zeros, tensor->part_bytes[INGOT_PART_ZEROS], error));
        if (tensor->outlier_count > 0) {
            INGOT_TRY(write_outliers(writer, part, tensor, view, &chunk, error));
        }
    }
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
    uint64_t chunk = tensor->first_chunk + offset / CHUNK_BYTES;
    INGOT_TRY(write_part(writer, part, &chunk, tensor->part_offset[INGOT_PART_CODES] + offset,
                         bytes, size, error));
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

static bool keep_checking(void *context, uint64_t done_bytes, uint64_t total_bytes) {
    (void)context;
    (void)done_bytes;
    (void)total_bytes;
    return !ingot_interrupted();
}

static ingot_status verify_written(const ingot_writer *writer, unsigned threads, uint8_t *root,
                                   uint8_t *content_id, ingot_error *error) {
    ingot_container *container;
    ingot_info info;
    INGOT_TRY(ingot_open(&container, ingot_output_partial_path(writer->shards[0].output), error));
    const ingot_status status = ingot_check_full(container, threads, keep_checking, NULL, error);
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
        status = out_of_memory(error);
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
    destroy(writer);
    return status;
}

const char *ingot_writer_path(const ingot_writer *writer) {
    return writer->shards[0].path;
}

void ingot_writer_abort(ingot_writer *writer) {
    if (writer != NULL) {
        destroy(writer);
    }
}
