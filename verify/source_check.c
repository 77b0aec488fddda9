/* Recomputation of a container against its checkpoint: tensors one by one, then what ties them
 * together (folds), then what the checkpoint has and the container lacks, then the files.
 *
 * Invariants:
 *  1. A source tensor is read once, front to back, in tiles; its digest is taken on the way.
 *  2. Nothing the ledger says is believed: it is compared with what was computed here.
 *  3. Every auxiliary tensor is explained by a fold of the model, or it is a failure. */
#include "verify/source_check.h"

#include "common/json.h"
#include "common/sizes.h"
#include "format/digest.h"
#include "format/half.h"
#include "kernels/quantize.h"
#include "verify/source_folds.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

#define TILE_BYTES (UINT64_C(16) << 20) /* a multiple of the chunk of 1 MiB */
#define BOUND_ROWS 16u                  /* rows of one task of the bound */

static const char remedy[] = "name the checkpoint it was made from, or convert again";

typedef struct source_check {
    ingot_verification *verification;
    const ingot_checkpoint *checkpoint;
    ingot_pool *pool;
    ingot_progress *progress;
    ingot_arena *arena; /* of one tensor: reset between two */
    ingot_arena *tile;  /* of one tile */
    bool *is_matched;   /* [checkpoint tensors] */
    uint64_t done_bytes;
} source_check;

/* Records why a tensor failed; the check goes on with the next one. */
static void __attribute__((format(printf, 2, 3)))
fail(ingot_tensor_report *report, const char *format, ...) {
    if (report->source_verdict == INGOT_VERDICT_NO) {
        return; /* the first reason stays */
    }
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(report->source_reason, sizeof report->source_reason, format, arguments);
    va_end(arguments);
    report->source_verdict = INGOT_VERDICT_NO;
}

/* ---- shape and digest ---------------------------------------------------------------------- */

static bool has_shape(const ingot_tensor *tensor, const ingot_st_tensor *source) {
    if (source->rank == 0) { /* a scalar is stored with one dimension */
        return tensor->rank == 1 && tensor->dim[0] == 1;
    }
    return tensor->rank == source->rank &&
           memcmp(tensor->dim, source->dim, source->rank * sizeof *source->dim) == 0;
}

/* Another source tensor explains whatever else was found, so this reason replaces any other. */
static void compare_digest(ingot_tensor_report *report, const ingot_digest_stream *stream) {
    uint8_t digest[16];
    ingot_digest_stream_finish(stream, digest);
    if (memcmp(digest, report->ledger.source_digest, sizeof digest) != 0) {
        char found[33], expected[33];
        ingot_digest_hex(found, digest);
        ingot_digest_hex(expected, report->ledger.source_digest);
        report->source_verdict = INGOT_VERDICT_NONE;
        fail(report, "the source tensor has digest %s, the ledger says %s", found, expected);
    }
}

/* The next bytes of a source tensor, into the tile arena. */
static ingot_status read_source(source_check *check, uint64_t source_index, uint64_t offset,
                                uint64_t size, void **bytes, ingot_digest_stream *stream,
                                ingot_error *error) {
    INGOT_TRY(ingot_interrupt_check(error));
    INGOT_TRY(ingot_arena_alloc(check->tile, bytes, size));
    INGOT_TRY(ingot_checkpoint_read(check->checkpoint, source_index, offset, size, *bytes, error));
    ingot_digest_stream_update(stream, *bytes, size);
    check->done_bytes += size;
    ingot_progress_update(check->progress, (double)check->done_bytes / 1e6);
    return INGOT_OK;
}

/* ---- dense tensors ------------------------------------------------------------------------- */

static uint64_t first_difference(const uint8_t *a, const uint8_t *b, uint64_t size) {
    uint64_t i = 0;
    if (memcmp(a, b, size) == 0) {
        return size;
    }
    while (a[i] == b[i]) {
        i++;
    }
    return i;
}

/* Elements of one tile: stored F32 = source through the folds.  The producer of the file may have
 * multiplied by a rounded reciprocal: two roundings more than here, 2^-22 with room. */
static ingot_status compare_folded(source_check *check, ingot_tensor_report *report,
                                   const ingot_folds *folds, const void *source, ingot_dtype dtype,
                                   const float *stored, uint64_t first, uint64_t count) {
    void *memory;
    INGOT_TRY(ingot_arena_alloc(check->tile, &memory, count * sizeof(float)));
    float *values = memory;
    ingot_convert_to_f32(values, source, dtype, count);
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t row = (first + i) / report->tensor->cols;
        const uint64_t col = (first + i) % report->tensor->cols;
        double expected = (double)values[i];
        expected *= folds->row != NULL ? (double)folds->row[row] : 1;
        expected *= folds->column != NULL ? (double)folds->column[col] : 1;
        expected /= folds->divisor != NULL ? (double)folds->divisor[col] : 1;
        if (!(fabs((double)stored[i] - expected) <= fabs(expected) * 0x1p-22)) {
            fail(report, "element %llu is %.9g, the folded source has %.9g",
                 (unsigned long long)(first + i), (double)stored[i], expected);
            return INGOT_OK;
        }
    }
    return INGOT_OK;
}

static ingot_status check_dense(source_check *check, ingot_tensor_report *report, uint64_t index,
                                const ingot_st_tensor *source, uint64_t source_index,
                                const ingot_folds *folds, ingot_digest_stream *stream,
                                ingot_error *error) {
    const ingot_tensor *tensor = report->tensor;
    const bool is_folded = ingot_folds_any(folds);
    const ingot_dtype expected = is_folded ? INGOT_F32 : source->dtype;
    if (tensor->dtype != expected) {
        fail(report, "stored as %s, expected %s", ingot_dtype_name(tensor->dtype),
             ingot_dtype_name(expected));
    }
    const uint64_t stored_size = ingot_dtype_bytes(tensor->dtype);
    const uint64_t source_size = ingot_dtype_bytes(source->dtype);
    const uint64_t step = TILE_BYTES / stored_size;
    for (uint64_t first = 0; first < source->elements; first += step) {
        const uint64_t count = ingot_min_u64(step, source->elements - first);
        void *bytes, *stored;
        ingot_arena_reset(check->tile);
        INGOT_TRY(read_source(check, source_index, first * source_size, count * source_size, &bytes,
                              stream, error));
        if (report->source_verdict == INGOT_VERDICT_NO) {
            continue; /* only the digest is still of interest */
        }
        INGOT_TRY(ingot_arena_alloc(check->tile, &stored, count * stored_size));
        INGOT_TRY(ingot_part_read(check->verification->container, index, INGOT_PART_CODES,
                                  first * stored_size, count * stored_size,
                                  !check->verification->is_full, stored, error));
        if (is_folded) {
            INGOT_TRY(
                compare_folded(check, report, folds, bytes, source->dtype, stored, first, count));
            continue;
        }
        const uint64_t at = first_difference(bytes, stored, count * stored_size);
        if (at != count * stored_size) {
            fail(report, "differs from the source at element %llu",
                 (unsigned long long)(first + at / stored_size));
        }
    }
    return INGOT_OK;
}

/* ---- quantized tensors --------------------------------------------------------------------- */

/* Rows first .. first+rows-1 of a view.  Outliers keep their places in col and val, to which the
 * row pointers count from the start of the matrix. */
static ingot_weight_view slice(const ingot_weight_view *view, uint64_t first, uint64_t rows) {
    ingot_weight_view part = *view;
    part.rows = rows;
    part.codes += first * view->row_stride_bytes;
    part.scales = (const uint8_t *)view->scales +
                  first * view->groups_per_row * ingot_dtype_bytes(view->scale_dtype);
    part.zeros = view->zeros != NULL ? view->zeros + first * view->groups_per_row : NULL;
    part.outlier_row_ptr = view->outlier_count != 0 ? view->outlier_row_ptr + first : NULL;
    return part;
}

typedef struct bound_task {
    const ingot_tensor *tensor;
    const float *row_fold, *column_fold;
    float *w; /* [rows][cols]: source, folded in place */
    uint64_t rows;
    ingot_bound_sums *sums; /* [tasks] */
} bound_task;

static void bound_rows(void *context, size_t index, unsigned worker) {
    (void)worker;
    const bound_task *task = context;
    const uint64_t first = index * BOUND_ROWS, cols = task->tensor->cols;
    const uint64_t rows = ingot_min_u64(BOUND_ROWS, task->rows - first);
    for (uint64_t r = first; r < first + rows; r++) {
        const float row_fold = task->row_fold != NULL ? task->row_fold[r] : 1.0f;
        for (uint64_t c = 0; c < cols; c++) {
            const float column_fold = task->column_fold != NULL ? task->column_fold[c] : 1.0f;
            task->w[r * cols + c] *= row_fold * column_fold;
        }
    }
    task->sums[index] = (ingot_bound_sums){0};
    ingot_bound_add(&task->sums[index], task->tensor, task->w + first * cols, rows);
}

/* Sums of one tensor over its tiles. */
typedef struct error_sums {
    double stored[2], rtn[2];
    ingot_bound_sums bound;
} error_sums;

static ingot_status add_tile(source_check *check, error_sums *sums, const ingot_tensor *tensor,
                             const ingot_weight_view *source, const ingot_folds *folds,
                             const ingot_weight_view *stored, uint64_t first) {
    const float *row_fold = folds->row != NULL ? folds->row + first : NULL;
    /* The yardstick has 16-bit scales (spec/quality.md, "The ledger"). */
    const ingot_quant_format format = {tensor->bits, tensor->group, tensor->zero_mode,
                                       tensor->scale_dtype == INGOT_F32 ? INGOT_F16
                                                                        : tensor->scale_dtype};
    ingot_quantized rtn;
    void *memory;
    const uint64_t count = source->rows * source->cols;
    INGOT_TRY(
        ingot_weight_error_add(sums->stored, source, row_fold, folds->column, stored, check->pool));
    INGOT_TRY(ingot_arena_alloc(check->tile, &memory, count * sizeof(float)));
    float *w = memory;
    ingot_rows_to_f32(w, source->data, source->dtype, count);
    INGOT_TRY(ingot_quantized_create(&rtn, source->rows, source->cols, &format, check->tile));
    ingot_quantize_rtn(&rtn, w, check->pool);
    INGOT_TRY(ingot_quantized_weight_error_add(sums->rtn, source, NULL, NULL, &rtn, check->pool));

    const uint64_t tasks = ingot_ceil_div(source->rows, BOUND_ROWS);
    INGOT_TRY(ingot_arena_alloc(check->tile, &memory, tasks * sizeof(ingot_bound_sums)));
    bound_task task = {tensor, row_fold, folds->column, w, source->rows, memory};
    ingot_pool_run(check->pool, tasks, bound_rows, &task);
    for (uint64_t i = 0; i < tasks; i++) {
        sums->bound.step_squared += task.sums[i].step_squared;
        sums->bound.norm_squared += task.sums[i].norm_squared;
    }
    return INGOT_OK;
}

static void judge_error(ingot_tensor_report *report, const error_sums *sums) {
    const ingot_ledger *ledger = &report->ledger;
    report->recomputed_error = ingot_weight_error_ratio(sums->stored);
    report->recomputed_error_rtn = ingot_weight_error_ratio(sums->rtn);
    report->error_bound = ingot_bound_value(&sums->bound);
    /* Written so that a figure that is not a number fails. */
    if (!(fabs(report->recomputed_error - ledger->weight_error) <= INGOT_ERROR_TOLERANCE)) {
        fail(report, "weight error %.9g, the ledger says %.9g", report->recomputed_error,
             ledger->weight_error);
    } else if (!(fabs(report->recomputed_error_rtn - ledger->weight_error_rtn) <=
                 INGOT_ERROR_TOLERANCE)) {
        fail(report, "plain rounding has weight error %.9g, the ledger says %.9g",
             report->recomputed_error_rtn, ledger->weight_error_rtn);
    } else if (!(report->recomputed_error <= report->error_bound)) {
        fail(report, "weight error %.6g is over the bound of %.6g for %u bits",
             report->recomputed_error, report->error_bound, report->tensor->bits);
    }
}

static ingot_status check_grouped(source_check *check, ingot_tensor_report *report, uint64_t index,
                                  const ingot_st_tensor *source, uint64_t source_index,
                                  const ingot_folds *folds, ingot_digest_stream *stream,
                                  ingot_error *error) {
    const ingot_tensor *tensor = report->tensor;
    const ingot_container *container = check->verification->container;
    ingot_weight_view stored;
    void *buffer;
    INGOT_TRY(ingot_arena_alloc(check->arena, &buffer, ingot_tensor_load_bytes(container, index)));
    INGOT_TRY(
        ingot_tensor_load(container, index, !check->verification->is_full, buffer, &stored, error));
    error_sums sums = {0};
    const uint64_t row_bytes = tensor->cols * ingot_dtype_bytes(source->dtype);
    const uint64_t step = ingot_max_u64(1, TILE_BYTES / ingot_max_u64(1, row_bytes));
    for (uint64_t first = 0; first < tensor->rows; first += step) {
        const uint64_t rows = ingot_min_u64(step, tensor->rows - first);
        void *bytes;
        ingot_arena_reset(check->tile);
        INGOT_TRY(read_source(check, source_index, first * row_bytes, rows * row_bytes, &bytes,
                              stream, error));
        const ingot_weight_view tile = {.kind = INGOT_DENSE,
                                        .rows = rows,
                                        .cols = tensor->cols,
                                        .dtype = source->dtype,
                                        .data = bytes};
        const ingot_weight_view part = slice(&stored, first, rows);
        INGOT_TRY(add_tile(check, &sums, tensor, &tile, folds, &part, first));
    }
    judge_error(report, &sums);
    return INGOT_OK;
}

/* ---- one tensor ---------------------------------------------------------------------------- */

/* The source of a tensor: of its own name, or what stands for it. */
static const ingot_st_tensor *find_source(const source_check *check, const char *name,
                                          uint64_t *index) {
    const ingot_verification *verification = check->verification;
    const ingot_st_tensor *source = ingot_checkpoint_find(check->checkpoint, name, index);
    if (source == NULL && verification->has_model) {
        const char *stand_in = ingot_model_stand_in(&verification->model, name);
        source =
            stand_in != NULL ? ingot_checkpoint_find(check->checkpoint, stand_in, index) : NULL;
    }
    return source;
}

/* What the ledger says was done, beside what is stored. */
static void compare_record(ingot_tensor_report *report, const ingot_folds *folds) {
    const ingot_ledger *ledger = &report->ledger;
    const ingot_tensor *tensor = report->tensor;
    const bool is_grouped = tensor->kind == INGOT_GROUPED;
    const bool is_folded = ingot_folds_any(folds);
    if ((ledger->method != INGOT_METHOD_COPY) != is_grouped) {
        fail(report, "is %s, the ledger says method %s", is_grouped ? "quantized" : "dense",
             ingot_method_name(ledger->method));
    } else if (ledger->outliers != tensor->outlier_count) {
        fail(report, "has %llu outliers, the ledger says %llu",
             (unsigned long long)tensor->outlier_count, (unsigned long long)ledger->outliers);
    } else if (is_grouped && ledger->is_folded != is_folded) {
        fail(report, "is %s, the ledger says %s", is_folded ? "folded" : "not folded",
             ledger->is_folded ? "folded" : "not folded");
    }
}

static ingot_status check_stored(source_check *check, uint64_t index, ingot_error *error) {
    ingot_tensor_report *report = &check->verification->tensors[index];
    const ingot_tensor *tensor = report->tensor;
    uint64_t source_index;
    const ingot_st_tensor *source = find_source(check, tensor->name, &source_index);
    if (source == NULL) {
        fail(report, "the source has no such tensor");
        return INGOT_OK;
    }
    check->is_matched[source_index] = true;
    if (!source->is_supported || !has_shape(tensor, source)) {
        fail(report, "the source tensor has another shape or element type (%s)",
             source->dtype_name);
        return INGOT_OK;
    }
    ingot_folds folds;
    ingot_digest_stream *stream = NULL;
    ingot_status status = ingot_digest_stream_create(&stream);
    INGOT_GO(status);
    INGOT_GO(ingot_folds_load(&folds, check->verification, report, check->arena, error));
    if (tensor->kind == INGOT_GROUPED) {
        INGOT_GO(check_grouped(check, report, index, source, source_index, &folds, stream, error));
    } else {
        INGOT_GO(check_dense(check, report, index, source, source_index, &folds, stream, error));
    }
    compare_record(report, &folds);
    compare_digest(report, stream);
done:
    ingot_digest_stream_destroy(stream);
    return status;
}

/* Tied weights: where the checkpoint stores the tensor a second time, both copies are equal. */
static ingot_status check_alias(source_check *check, uint64_t index, ingot_error *error) {
    ingot_tensor_report *report = &check->verification->tensors[index];
    const ingot_tensor *target =
        ingot_tensor_at(check->verification->container, report->tensor->alias_of);
    uint64_t a_index, b_index;
    const ingot_st_tensor *a = find_source(check, report->tensor->name, &a_index);
    const ingot_st_tensor *b = find_source(check, target->name, &b_index);
    if (a == NULL || b == NULL) {
        fail(report, "the source has no such tensor, and its head is not tied");
        return INGOT_OK;
    }
    check->is_matched[a_index] = true;
    if (a_index == b_index) {
        return INGOT_OK;
    }
    if (!has_shape(target, a) || a->bytes != b->bytes ||
        strcmp(a->dtype_name, b->dtype_name) != 0) {
        fail(report, "is stored as a second name of %s, but has another shape", target->name);
        return INGOT_OK;
    }
    for (uint64_t offset = 0; offset < a->bytes; offset += TILE_BYTES) {
        const uint64_t size = ingot_min_u64(TILE_BYTES, a->bytes - offset);
        void *first, *second;
        INGOT_TRY(ingot_interrupt_check(error));
        ingot_arena_reset(check->tile);
        INGOT_TRY(ingot_arena_alloc(check->tile, &first, size));
        INGOT_TRY(ingot_arena_alloc(check->tile, &second, size));
        INGOT_TRY(ingot_checkpoint_read(check->checkpoint, a_index, offset, size, first, error));
        INGOT_TRY(ingot_checkpoint_read(check->checkpoint, b_index, offset, size, second, error));
        if (memcmp(first, second, size) != 0) {
            fail(report, "is stored as a second name of %s, but differs from it in the source",
                 target->name);
            return INGOT_OK;
        }
    }
    return INGOT_OK;
}

static ingot_status check_tensors(source_check *check, ingot_error *error) {
    ingot_verification *verification = check->verification;
    for (uint64_t i = 0; i < verification->tensor_count; i++) {
        ingot_tensor_report *report = &verification->tensors[i];
        ingot_arena_reset(check->arena);
        if (ingot_is_auxiliary(verification->container, report->tensor)) {
            continue; /* judged by the folds */
        }
        report->source_verdict = INGOT_VERDICT_YES;
        switch (report->tensor->kind) {
        case INGOT_DENSE:
        case INGOT_GROUPED:
            INGOT_TRY(check_stored(check, i, error));
            break;
        case INGOT_ALIAS:
            INGOT_TRY(check_alias(check, i, error));
            break;
        case INGOT_AUXILIARY:
            break;
        }
    }
    return INGOT_OK;
}

/* ---- what differs --------------------------------------------------------------------------- */

void ingot_source_differs(ingot_verification *verification, const char *tensor, const char *file,
                          const char *reason, ingot_error *error) {
    json_t *one = json_object();
    ingot_json_put(one, "tensor", ingot_json_any_text(tensor));
    ingot_json_put(one, "file", ingot_json_any_text(file));
    ingot_json_put(one, "reason", ingot_json_any_text(reason));
    (void)json_array_append_new(verification->source_differences, one);
    verification->source_failures++;
    if (error->status == INGOT_OK) { /* the first one is reported */
        (void)ingot_error_set(error, INGOT_FAIL_SOURCE, verification->options.path, tensor, remedy,
                              "%s", reason);
    }
}

const char *ingot_source_difference(const ingot_verification *verification, uint64_t i,
                                    const char **tensor) {
    const json_t *one = json_array_get(verification->source_differences, i);
    const char *reason = json_string_value(json_object_get(one, "reason"));
    *tensor = json_string_value(json_object_get(one, "tensor"));
    return reason != NULL ? reason : "";
}

/* ---- what the container lacks --------------------------------------------------------------- */

static void mismatch(const source_check *check, const char *tensor, const char *file,
                     const char *what, ingot_error *error) {
    char reason[400];
    (void)snprintf(reason, sizeof reason, "%s '%s'", what, file != NULL ? file : tensor);
    ingot_source_differs(check->verification, tensor, file, reason, error);
}

static void check_missing(const source_check *check, ingot_error *error) {
    for (uint64_t i = 0; i < ingot_checkpoint_count(check->checkpoint); i++) {
        const ingot_st_tensor *source = ingot_checkpoint_at(check->checkpoint, i);
        if (!check->is_matched[i]) {
            mismatch(check, source->name, NULL, "the container lacks a tensor of the source,",
                     error);
        }
    }
}

static void check_files(const source_check *check, ingot_error *error) {
    const ingot_container *container = check->verification->container;
    for (uint64_t i = 0; i < ingot_file_entry_count(container); i++) {
        const char *name = ingot_file_entry_name(container, i);
        uint64_t size, source_size = 0;
        const void *bytes = ingot_file_entry(container, name, &size);
        const char *source = ingot_checkpoint_file(check->checkpoint, name, &source_size);
        if (source == NULL) {
            mismatch(check, NULL, name, "the source has no file", error);
        } else if (size != source_size || memcmp(bytes, source, size) != 0) {
            mismatch(check, NULL, name, "differs from the source in the file", error);
        }
    }
    for (uint64_t i = 0; i < ingot_checkpoint_file_count(check->checkpoint); i++) {
        const char *name = ingot_checkpoint_file_name(check->checkpoint, i);
        uint64_t size;
        if (ingot_file_entry(container, name, &size) == NULL) {
            mismatch(check, NULL, name, "the container lacks the file", error);
        }
    }
}

/* Turns the verdicts of the tensors into the error of the first one that failed. */
static void collect(const source_check *check, ingot_error *error) {
    ingot_verification *verification = check->verification;
    for (uint64_t i = 0; i < verification->tensor_count; i++) {
        const ingot_tensor_report *report = &verification->tensors[i];
        verification->source_checked++;
        if (report->source_verdict != INGOT_VERDICT_NO) {
            continue;
        }
        ingot_source_differs(verification, report->tensor->name, NULL, report->source_reason,
                             error);
    }
}

ingot_status ingot_source_check(ingot_verification *verification,
                                const ingot_checkpoint *checkpoint, ingot_pool *pool,
                                ingot_progress *progress, ingot_error *error) {
    source_check check = {
        .verification = verification, .checkpoint = checkpoint, .pool = pool, .progress = progress};
    ingot_error found = {0};
    ingot_status status = ingot_arena_create(&check.arena);
    INGOT_GO(status);
    INGOT_GO(ingot_arena_create(&check.tile));
    INGOT_GO(ingot_alloc_zero((void **)&check.is_matched, ingot_checkpoint_count(checkpoint),
                              sizeof *check.is_matched));
    INGOT_GO(check_tensors(&check, error));
    INGOT_GO(ingot_folds_check(verification, error));
    collect(&check, &found);
    check_missing(&check, &found);
    check_files(&check, &found);
    verification->source_verdict = found.status == INGOT_OK ? INGOT_VERDICT_YES : INGOT_VERDICT_NO;
    if (found.status != INGOT_OK) {
        status = found.status;
        *error = found;
    }
done:
    ingot_free(check.is_matched);
    ingot_arena_destroy(check.tile);
    ingot_arena_destroy(check.arena);
    if (status == INGOT_ERR_NO_MEMORY && error->status == INGOT_OK) {
        status = ingot_error_set(error, INGOT_ERR_NO_MEMORY, verification->options.path, NULL, NULL,
                                 "out of memory while comparing with the source");
    }
    return status;
}
