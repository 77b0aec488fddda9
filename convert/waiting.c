/* Matrices that wait for distillation, on disk (convert/waiting.h). */
#include "convert/waiting.h"

#include "common/files.h"
#include "common/memory.h"
#include "common/sizes.h"

#include <string.h>
#include <unistd.h>

#define SUFFIX ".waiting"

struct ingot_waiting {
    const ingot_plan *plan;
    char path[4096]; /* with the suffix of partial files */
    ingot_tensor_spec *specs;
    uint64_t *number; /* [plan->count]: of the tensor in the file */
    ingot_writer_plan writer_plan;
    ingot_writer *writer;
};

ingot_status ingot_waiting_path(char path[4096], const char *output, ingot_error *error) {
    char target[INGOT_PATH_BYTES];
    INGOT_TRY(ingot_output_target(target, output, error));
    return snprintf(path, 4096, "%s" SUFFIX INGOT_PARTIAL_SUFFIX, target) < 4096
               ? INGOT_OK
               : ingot_error_set(error, INGOT_ERR_USAGE, output, NULL, "use a shorter path",
                                 "the path is too long");
}

bool ingot_waiting_is_of(const ingot_plan *plan, uint64_t index) {
    const ingot_plan_tensor *t = &plan->tensors[index];
    return t->layer != INGOT_PLAN_NONE && t->origin == INGOT_ORIGIN_QUANTIZE;
}

/* ---- the image of a matrix ------------------------------------------------------------------ */

/* Parts of an image, wider elements first, so that each is aligned as the first one is. */
enum { ROW_PTR, SCALES, OUTLIER_COL, OUTLIER_VAL, CODES, ZEROS, PART_COUNT };

/* Bytes of each part of an image; their sum. */
static uint64_t measure_parts(uint64_t bytes[PART_COUNT], const ingot_tensor_spec *spec) {
    const uint64_t rows = spec->dim[0], cols = spec->dim[1], outliers = spec->outlier_count;
    const uint64_t groups = rows * ingot_ceil_div(cols, spec->group);
    uint64_t sum = 0;
    bytes[ROW_PTR] = outliers != 0 ? (rows + 1) * sizeof(uint64_t) : 0;
    bytes[SCALES] = groups * sizeof(float);
    bytes[OUTLIER_COL] = outliers * sizeof(uint32_t);
    bytes[OUTLIER_VAL] = outliers * sizeof(float);
    bytes[CODES] = rows * cols;
    bytes[ZEROS] = groups;
    for (unsigned i = 0; i < PART_COUNT; i++) {
        sum += bytes[i];
    }
    return sum;
}

uint64_t ingot_waiting_bytes(const ingot_plan *plan) {
    uint64_t sum = 0, bytes[PART_COUNT];
    for (uint64_t i = 0; i < plan->count; i++) {
        sum += ingot_waiting_is_of(plan, i) ? measure_parts(bytes, &plan->specs[i]) : 0;
    }
    return sum;
}

/* ---- the file ------------------------------------------------------------------------------- */

static ingot_status plan_file(ingot_waiting *w) {
    uint64_t count = 0, bytes[PART_COUNT];
    INGOT_TRY(ingot_alloc_zero((void **)&w->specs, w->plan->count + 1, sizeof *w->specs));
    INGOT_TRY(ingot_alloc_zero((void **)&w->number, w->plan->count + 1, sizeof *w->number));
    for (uint64_t i = 0; i < w->plan->count; i++) {
        if (ingot_waiting_is_of(w->plan, i)) {
            w->number[i] = count;
            w->specs[count++] =
                (ingot_tensor_spec){.name = w->plan->tensors[i].name,
                                    .kind = INGOT_DENSE,
                                    .rank = 1,
                                    .dim = {measure_parts(bytes, &w->plan->specs[i])},
                                    .dtype = INGOT_U8};
        }
    }
    w->writer_plan = (ingot_writer_plan){.profile = INGOT_PROFILE_STATE,
                                         .tensors = w->specs,
                                         .tensor_count = count,
                                         .meta = "{}",
                                         .meta_size = 2};
    return INGOT_OK;
}

ingot_status ingot_waiting_create(ingot_waiting **out, const char *output, const ingot_plan *plan,
                                  bool goes_on, ingot_error *error) {
    void *memory;
    *out = NULL;
    INGOT_TRY(ingot_alloc_zero(&memory, 1, sizeof(ingot_waiting)));
    ingot_waiting *w = memory;
    ingot_status status = INGOT_OK;
    char name[4096];
    w->plan = plan;
    INGOT_GO(ingot_waiting_path(w->path, output, error));
    (void)snprintf(name, sizeof name, "%.*s", (int)(strlen(w->path) - strlen(INGOT_PARTIAL_SUFFIX)),
                   w->path);
    INGOT_GO(plan_file(w));
    INGOT_GO(goes_on ? ingot_writer_reopen(&w->writer, name, true, &w->writer_plan, error)
                     : ingot_writer_create(&w->writer, name, true, &w->writer_plan, error));
    *out = w;
    return INGOT_OK;
done:
    ingot_waiting_destroy(w);
    return status;
}

void ingot_waiting_destroy(ingot_waiting *w) {
    if (w != NULL) {
        ingot_writer_abort(w->writer);
        ingot_free(w->specs);
        ingot_free(w->number);
        ingot_free(w);
    }
}

void ingot_waiting_remove(ingot_waiting *w) {
    if (w != NULL) {
        (void)unlink(w->path);
        ingot_waiting_destroy(w);
    }
}

ingot_writer *ingot_waiting_writer(ingot_waiting *w) {
    return w->writer;
}

uint64_t ingot_waiting_number(const ingot_waiting *w, uint64_t index) {
    return w->number[index];
}

ingot_status ingot_waiting_put(ingot_waiting *w, uint64_t index, const ingot_quantized *q,
                               const ingot_ledger *ledger, ingot_error *error) {
    uint64_t bytes[PART_COUNT];
    const uint64_t size = measure_parts(bytes, &w->plan->specs[index]);
    const void *const parts[PART_COUNT] = {
        [ROW_PTR] = q->outliers.row_ptr, [SCALES] = q->scales, [OUTLIER_COL] = q->outliers.col,
        [OUTLIER_VAL] = q->outliers.val, [CODES] = q->codes,   [ZEROS] = q->zeros};
    void *image;
    uint64_t at = 0;
    INGOT_TRY(ingot_alloc(&image, size));
    for (unsigned i = 0; i < PART_COUNT; i++) {
        if (bytes[i] != 0) {
            memcpy((uint8_t *)image + at, parts[i], bytes[i]);
            at += bytes[i];
        }
    }
    const ingot_weight_view view = {
        .kind = INGOT_DENSE, .rows = 1, .cols = size, .dtype = INGOT_U8, .data = image};
    const ingot_status status = ingot_writer_put(w->writer, w->number[index], &view, ledger, error);
    ingot_free(image);
    return status;
}

ingot_status ingot_waiting_load(ingot_quantized *q, const ingot_waiting *w, uint64_t index,
                                ingot_arena *arena, ingot_error *error) {
    const ingot_tensor_spec *spec = &w->plan->specs[index];
    uint64_t bytes[PART_COUNT];
    uint8_t *part[PART_COUNT], *at;
    void *buffer;
    ingot_weight_view view;
    (void)measure_parts(bytes, spec);
    INGOT_TRY(
        ingot_arena_alloc(arena, &buffer, ingot_writer_load_bytes(w->writer, w->number[index])));
    INGOT_TRY(ingot_writer_load(w->writer, w->number[index], buffer, &view, error));
    at = (uint8_t *)buffer + ((const uint8_t *)view.data - (const uint8_t *)buffer);
    for (unsigned i = 0; i < PART_COUNT; i++) {
        part[i] = at;
        at += bytes[i];
    }
    *q = (ingot_quantized){.format = {.bits = spec->bits,
                                      .group = spec->group,
                                      .zero_mode = spec->zero_mode,
                                      .scale_dtype = spec->scale_dtype},
                           .rows = spec->dim[0],
                           .cols = spec->dim[1],
                           .groups = ingot_ceil_div(spec->dim[1], spec->group),
                           .codes = part[CODES],
                           .scales = (float *)(void *)part[SCALES],
                           .zeros = part[ZEROS]};
    if (spec->outlier_count != 0) {
        q->outliers = (ingot_outliers){.count = spec->outlier_count,
                                       .row_ptr = (uint64_t *)(void *)part[ROW_PTR],
                                       .col = (uint32_t *)(void *)part[OUTLIER_COL],
                                       .val = (float *)(void *)part[OUTLIER_VAL],
                                       .dtype = spec->dtype};
    }
    return INGOT_OK;
}
