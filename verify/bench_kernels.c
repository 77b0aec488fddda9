/* ingot-bench kernels: products of packed and of dense weights, each beside its limit.  The limit
 * of a product is the time in which the memory of the same device, measured in the same run,
 * delivers its weights. */
#include "verify/bench.h"

#include "common/files.h"
#include "common/memory.h"
#include "common/random.h"
#include "format/pack.h"
#include "kernels/backend.h"
#include "kernels/measure.h"

#include <math.h>
#include <string.h>
#include <time.h>

#define MOST_ERROR 1e-3 /* of a product, relative to FP64 */

typedef struct layer_shape {
    uint64_t rows, cols;
} layer_shape;

/* Of Llama-3.1-8B and 70B: attention, gate and up, down, head. */
static const layer_shape all_shapes[] = {
    {4096, 4096},   {6144, 4096},  {4096, 14336}, {28672, 4096},
    {128256, 4096}, {10240, 8192}, {57344, 8192}, {8192, 28672},
};
#define ALL_SHAPES (sizeof all_shapes / sizeof all_shapes[0])

/* What is measured of which shapes. */
typedef struct series {
    unsigned bits;
    uint64_t group, m;
    bool has_zeros, is_handed;
    ingot_dtype dtype;
    unsigned first, count; /* of all_shapes */
} series;

static const series all_series[] = {
    {4, 128, 1, false, false, INGOT_F16, 0, ALL_SHAPES},
    {4, 128, 16, false, false, INGOT_F16, 0, ALL_SHAPES},
    {4, 128, 64, false, false, INGOT_F16, 0, ALL_SHAPES},
    {4, 128, 16, false, true, INGOT_F16, 0, ALL_SHAPES},
    {4, 128, 64, false, true, INGOT_F16, 0, ALL_SHAPES},
    {8, 128, 1, false, false, INGOT_F16, 0, ALL_SHAPES},
    {3, 128, 1, false, false, INGOT_F16, 0, ALL_SHAPES},
    {4, 128, 1, false, false, INGOT_BF16, 0, 4},
    {4, 128, 1, true, false, INGOT_F16, 3, 1},
    {4, 32, 1, false, false, INGOT_F16, 3, 1},
    {4, 64, 1, true, false, INGOT_F16, 3, 1},
    {2, 64, 1, true, false, INGOT_F16, 3, 1},
    {5, 128, 1, false, false, INGOT_F16, 3, 1},
    {6, 128, 1, false, false, INGOT_F16, 3, 1},
    {4, 128, 2, false, false, INGOT_F16, 3, 1},
    {4, 128, 4, false, false, INGOT_F16, 3, 1},
    {4, 128, 8, false, false, INGOT_F16, 3, 1},
    {4, 128, 32, false, false, INGOT_F16, 0, ALL_SHAPES},
    {4, 128, 128, false, false, INGOT_F16, 3, 1},
    {4, 128, 512, false, false, INGOT_F16, 3, 1},
    {4, 128, 2048, false, false, INGOT_F16, 3, 1},
    {16, 0, 1, false, false, INGOT_F16, 4, 1}, /* dense: a head as it is by default */
    {16, 0, 8, false, false, INGOT_F16, 4, 1},
    {16, 0, 16, false, false, INGOT_F16, 4, 1},
    {16, 0, 64, false, false, INGOT_F16, 4, 1},
};
#define ALL_SERIES (sizeof all_series / sizeof all_series[0])

#define MOST_SIDE (UINT64_C(1) << 20) /* rows or columns of a product that is asked for */
#define MOST_M    4096u

/* One product of --products. */
static ingot_status parse_product(ingot_measure_shape *out, const char *text,
                                  const ingot_bench_options *options, ingot_error *error) {
    const uint64_t group = ingot_bench_group(options);
    char part[4][24] = {"", "", "4", "1"}; /* rows, columns, bits, rows of x */
    char handed[16] = "";
    uint64_t value[4] = {0};
    static const uint64_t least[] = {1, 32, 2, 1}, most[] = {MOST_SIDE, MOST_SIDE, 8, MOST_M};
    int at = 0;
    const int parts = sscanf(text, "%23[0-9]x%23[0-9]%n:%23[0-9]%n:%23[0-9]%n:%15[a-z]%n", part[0],
                             part[1], &at, part[2], &at, part[3], &at, handed, &at);
    if (parts < 2 || text[at] != '\0' || (parts == 5 && strcmp(handed, "handed") != 0)) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL,
                               "use NxK, NxK:BITS, NxK:BITS:M or NxK:BITS:M:handed",
                               "--products: \"%s\" is no product", text);
    }
    for (int i = 0; i < 4; i++) {
        INGOT_TRY(ingot_cli_parse_u64(&value[i], "products", part[i], least[i], most[i], error));
    }
    if (value[1] % group != 0 || value[1] % 32 != 0 || (group % 8 != 0 && group != value[1])) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL,
                               "use a multiple of 32 and of the group, which is one of 8",
                               "--products: %llu columns are not whole groups of %llu",
                               (unsigned long long)value[1], (unsigned long long)group);
    }
    *out = (ingot_measure_shape){.rows = value[0],
                                 .cols = value[1],
                                 .bits = (unsigned)value[2],
                                 .m = value[3],
                                 .group = group,
                                 .has_zeros = options->has_zeros,
                                 .is_handed = parts == 5,
                                 .dtype = INGOT_F16};
    return INGOT_OK;
}

typedef ingot_status (*measure_shape)(void *context, const ingot_measure_shape *shape,
                                      ingot_error *error);

/* Measures every product of a list that has no mistake. */
static ingot_status measure_list(const ingot_bench_options *options, measure_shape measure,
                                 void *context, ingot_error *error) {
    for (int turn = 0; turn < 2; turn++) {
        for (const char *at = options->products;; at++) {
            char text[128]; /* more than any product */
            ingot_measure_shape shape;
            const int size = (int)strcspn(at, ",");
            (void)snprintf(text, sizeof text, "%.*s", size, at);
            INGOT_TRY(parse_product(&shape, text, options, error));
            if (turn == 1) {
                INGOT_TRY(ingot_interrupt_check(error));
                INGOT_TRY(measure(context, &shape, error));
            }
            at += size;
            if (*at == '\0') {
                break;
            }
        }
    }
    return INGOT_OK;
}

static json_t *product_figures(const ingot_measure_shape *shape, const ingot_measured *measured,
                               double read) {
    json_t *object = json_object();
    const double limit_us = (double)measured->bytes / read * 1e6;
    (void)json_object_set_new(object, "rows", json_integer((json_int_t)shape->rows));
    (void)json_object_set_new(object, "cols", json_integer((json_int_t)shape->cols));
    (void)json_object_set_new(object, "m", json_integer((json_int_t)shape->m));
    (void)json_object_set_new(object, "bits", json_integer((json_int_t)shape->bits));
    (void)json_object_set_new(object, "group", json_integer((json_int_t)shape->group));
    (void)json_object_set_new(object, "stored_zeros", json_boolean(shape->has_zeros));
    (void)json_object_set_new(object, "activations", json_string(ingot_dtype_name(shape->dtype)));
    (void)json_object_set_new(object, "handed_on", json_boolean(shape->is_handed));
    (void)json_object_set_new(object, "us", ingot_json_number(measured->median_us));
    (void)json_object_set_new(object, "us_p10", ingot_json_number(measured->low_us));
    (void)json_object_set_new(object, "us_p90", ingot_json_number(measured->high_us));
    (void)json_object_set_new(object, "limit_us", ingot_json_number(limit_us));
    (void)json_object_set_new(object, "of_read", ingot_json_number(limit_us / measured->median_us));
    (void)json_object_set_new(object, "cublas_bf16_us",
                              measured->cublas_us > 0 ? ingot_json_number(measured->cublas_us)
                                                      : json_null());
    (void)json_object_set_new(object, "error", ingot_json_number(measured->error));
    return object;
}

/* INGOT_ERR_INTERNAL when a product was wrong. */
static ingot_status add_product(json_t *products, const ingot_measure_shape *shape,
                                const ingot_measured *measured, double read, ingot_error *error) {
    (void)json_array_append_new(products, product_figures(shape, measured, read));
    if (measured->error <= MOST_ERROR) {
        return INGOT_OK;
    }
    return ingot_error_set(error, INGOT_ERR_INTERNAL, NULL, NULL, NULL,
                           "the product of %llu x %llu, %u bits, m %llu is wrong by %.3g",
                           (unsigned long long)shape->rows, (unsigned long long)shape->cols,
                           shape->bits, (unsigned long long)shape->m, measured->error);
}

/* ---- a device of its own -----------------------------------------------------------------------
 */

static ingot_status device_failed(ingot_status status, ingot_error *error) {
    return ingot_error_set(error, status, NULL, NULL, NULL, "the device failed: %s",
                           ingot_status_text(status));
}

typedef struct device_run {
    const ingot_backend *backend;
    json_t *products;
    double read;
    uint64_t seed;
    bool is_asked; /* for each of them */
} device_run;

static ingot_status measure_on_device(void *context, const ingot_measure_shape *shape,
                                      ingot_error *error) {
    device_run *run = context;
    ingot_measured measured;
    const ingot_status status =
        run->backend->ops->measure_product(run->backend->context, &measured, shape, run->seed++);
    if (status != INGOT_OK) {
        return device_failed(status, error);
    }
    if (measured.is_measured) {
        return add_product(run->products, shape, &measured, run->read, error);
    }
    return run->is_asked
               ? ingot_error_set(error, INGOT_ERR_UNSUPPORTED, NULL, NULL, "leave out \"handed\"",
                                 "nothing is handed on to %llu x %llu with %u bits and %llu rows",
                                 (unsigned long long)shape->rows, (unsigned long long)shape->cols,
                                 shape->bits, (unsigned long long)shape->m)
               : INGOT_OK;
}

static ingot_status measure_device(const ingot_backend *backend, json_t *figures, json_t *products,
                                   const ingot_bench_options *options, ingot_error *error) {
    device_run run = {.backend = backend,
                      .products = products,
                      .seed = (uint64_t)time(NULL) << 20,
                      .is_asked = options->products != NULL};
    const ingot_status status = backend->ops->measure_read(backend->context, &run.read);
    if (status != INGOT_OK) {
        return device_failed(status, error);
    }
    (void)json_object_set_new(figures, "read_gbps", ingot_json_number(run.read * 1e-9));
    if (options->products != NULL) {
        return measure_list(options, measure_on_device, &run, error);
    }
    for (unsigned s = 0; s < ALL_SERIES; s++) {
        const series *one = &all_series[s];
        for (unsigned i = one->first; i < one->first + one->count; i++) {
            const ingot_measure_shape shape = {.rows = all_shapes[i].rows,
                                               .cols = all_shapes[i].cols,
                                               .m = one->m,
                                               .group = one->group,
                                               .bits = one->bits,
                                               .has_zeros = one->has_zeros,
                                               .is_handed = one->is_handed,
                                               .dtype = one->dtype};
            INGOT_TRY(ingot_interrupt_check(error));
            INGOT_TRY(measure_on_device(&run, &shape, error));
        }
    }
    return INGOT_OK;
}

/* ---- the cpu -----------------------------------------------------------------------------------
 */

#define MOST_RUNS  1000u /* of --runs */
#define CPU_SHAPES 2u    /* of all_shapes: without packed kernels the larger ones take seconds */
#define READ_BYTES (UINT64_C(256) << 20) /* several times any cache */
#define SPAN_BYTES (UINT64_C(16) << 20)  /* timed at once: other programs interrupt longer ones */
#define PIECE      (UINT64_C(1) << 20)

static double now_us(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

typedef struct reading {
    const uint64_t *memory;
    uint64_t sum[SPAN_BYTES / PIECE];
} reading;

static void read_piece(void *context, size_t index, unsigned worker) {
    reading *r = context;
    const uint64_t *at = r->memory + index * (PIECE / 8);
    uint64_t sum = 0;
    (void)worker;
    for (uint64_t i = 0; i < PIECE / 8; i++) {
        sum += at[i];
    }
    r->sum[index] = sum;
}

static void fill_random(void *memory, uint64_t bytes, uint64_t seed) {
    uint64_t *words = memory;
    for (uint64_t i = 0; i < bytes / 8; i++) {
        words[i] = ingot_random_bits(&seed);
    }
}

/* The sum of squares of the error and of the size of y[rows] in FP64, relative. */
static double error_of(const ingot_weight_view *w, const float *x, const float *y, float *row) {
    double off = 0, size = 0;
    for (uint64_t r = 0; r < w->rows; r++) {
        double sum = 0;
        ingot_weight_row(row, w, r, w->cols);
        for (uint64_t k = 0; k < w->cols; k++) {
            sum += (double)row[k] * (double)x[k];
        }
        off += ((double)y[r] - sum) * ((double)y[r] - sum);
        size += sum * sum;
    }
    return sqrt(off / size);
}

/* A row of x with weights that lie `copies` times in memory, each run with the next. */
static ingot_status measure_cpu_product(const ingot_backend *backend, ingot_measured *out,
                                        const ingot_measure_shape *shape, uint8_t *memory,
                                        unsigned runs) {
    ingot_weight_view w = {.kind = INGOT_GROUPED,
                           .rows = shape->rows,
                           .cols = shape->cols,
                           .dtype = INGOT_F16,
                           .bits = shape->bits,
                           .scale_dtype = INGOT_F16,
                           .zero_mode = shape->has_zeros ? INGOT_ZERO_STORED : INGOT_ZERO_SYMMETRIC,
                           .group = shape->group,
                           .groups_per_row = shape->cols / shape->group,
                           .row_stride_bytes = ingot_pack_row_bytes(shape->cols, shape->bits)};
    const uint64_t code_bytes = w.rows * w.row_stride_bytes;
    const uint64_t copies = READ_BYTES / code_bytes;
    ingot_status status = INGOT_OK;
    uint16_t *scales = NULL;
    uint8_t *zeros = NULL;
    float *x = NULL, *y = NULL, *row = NULL;
    double times[MOST_RUNS];
    INGOT_GO(ingot_alloc((void **)&scales, w.rows * w.groups_per_row * 2));
    INGOT_GO(ingot_alloc((void **)&x, w.cols * sizeof *x));
    INGOT_GO(ingot_alloc((void **)&y, w.rows * sizeof *y));
    INGOT_GO(ingot_alloc((void **)&row, w.cols * sizeof *row));
    for (uint64_t i = 0; i < w.rows * w.groups_per_row; i++) {
        scales[i] = (uint16_t)(0x2000 + i * 77 % 1024);
    }
    for (uint64_t i = 0; i < w.cols; i++) {
        x[i] = (float)(i * 7919 % 2001) * 1e-3f - 1.0f;
    }
    w.scales = scales;
    if (shape->has_zeros) {
        INGOT_GO(ingot_alloc((void **)&zeros, w.rows * w.groups_per_row));
        for (uint64_t i = 0; i < w.rows * w.groups_per_row; i++) {
            zeros[i] = (uint8_t)(i * 37 % (UINT64_C(1) << shape->bits));
        }
        w.zeros = zeros;
    }
    for (unsigned run = 0; run < runs; run++) {
        w.codes = memory + run % copies * code_bytes;
        memset(y, 0xff, w.rows * sizeof *y);
        const double begin = now_us();
        INGOT_GO(backend->ops->linear(backend->context, y, &w, NULL, x, 1));
        double took = now_us() - begin;
        for (unsigned i = 0; i < run; i++) { /* kept in order */
            if (times[i] > took) {
                const double other = times[i];
                times[i] = took;
                took = other;
            }
        }
        times[run] = took;
    }
    *out = (ingot_measured){.median_us = times[runs / 2],
                            .low_us = times[0],
                            .high_us = times[runs - 1],
                            .bytes =
                                code_bytes + w.rows * w.groups_per_row * (shape->has_zeros ? 3 : 2),
                            .error = error_of(&w, x, y, row)};
done:
    ingot_free(scales);
    ingot_free(zeros);
    ingot_free(x);
    ingot_free(y);
    ingot_free(row);
    return status;
}

typedef struct cpu_run {
    const ingot_backend *backend;
    json_t *products;
    double read;
    uint8_t *memory;
    unsigned runs;
} cpu_run;

static ingot_status measure_on_cpu(void *context, const ingot_measure_shape *shape,
                                   ingot_error *error) {
    cpu_run *run = context;
    ingot_measured measured;
    if (shape->m != 1 || shape->is_handed ||
        shape->rows * ingot_pack_row_bytes(shape->cols, shape->bits) > READ_BYTES) {
        return ingot_error_set(error, INGOT_ERR_UNSUPPORTED, NULL, NULL, "use a GPU",
                               "the cpu measures products with one row, not handed on, and up to "
                               "%llu MiB of codes",
                               (unsigned long long)(READ_BYTES >> 20));
    }
    INGOT_TRY(measure_cpu_product(run->backend, &measured, shape, run->memory, run->runs));
    return add_product(run->products, shape, &measured, run->read, error);
}

static ingot_status measure_cpu(const ingot_backend *backend, json_t *figures, json_t *products,
                                const ingot_bench_options *options, ingot_error *error) {
    static const unsigned widths[] = {4, 8, 3};
    static reading r;
    cpu_run run = {.backend = backend, .products = products, .runs = options->runs};
    ingot_status status =
        ingot_large_pages.alloc(NULL, (void **)&run.memory, READ_BYTES); /* as decoders */
    if (status != INGOT_OK) {
        return ingot_error_set(error, status, NULL, NULL, NULL, "out of memory");
    }
    fill_random(run.memory, READ_BYTES, (uint64_t)time(NULL));
    for (unsigned i = 0; i < run.runs * (READ_BYTES / SPAN_BYTES); i++) {
        const uint64_t at = i % (READ_BYTES / SPAN_BYTES) * SPAN_BYTES;
        r.memory = (const uint64_t *)(const void *)(run.memory + at);
        const double begin = now_us();
        ingot_pool_run(backend->pool, SPAN_BYTES / PIECE, read_piece, &r);
        run.read = fmax(run.read, (double)SPAN_BYTES / (now_us() - begin) * 1e6);
    }
    (void)json_object_set_new(figures, "read_gbps", ingot_json_number(run.read * 1e-9));
    if (options->products != NULL) {
        status = measure_list(options, measure_on_cpu, &run, error);
        goto done;
    }
    for (unsigned b = 0; b < 3; b++) {
        for (unsigned i = 0; i < CPU_SHAPES; i++) {
            const ingot_measure_shape shape = {.rows = all_shapes[i].rows,
                                               .cols = all_shapes[i].cols,
                                               .m = 1,
                                               .group = ingot_bench_group(options),
                                               .bits = widths[b],
                                               .dtype = INGOT_F32};
            INGOT_GO(ingot_interrupt_check(error));
            INGOT_GO(measure_on_cpu(&run, &shape, error));
        }
    }
done:
    ingot_free(run.memory);
    return status;
}

/* ---- the measurement ---------------------------------------------------------------------------
 */

ingot_status ingot_bench_kernels(json_t **out, const ingot_bench_options *options,
                                 ingot_error *error) {
    ingot_backend backend;
    if (options->products == NULL && (options->group != 0 || options->has_zeros)) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "add --products LIST",
                               "--%s describes the weights of --products",
                               options->group != 0 ? "group" : "asym");
    }
    const char *device = options->device != NULL ? options->device : "auto";
    INGOT_TRY(ingot_backend_open(&backend, device, options->threads, error));
    json_t *figures = json_object(), *products = json_array();
    (void)json_object_set_new(figures, "device", json_string(backend.path));
    (void)json_object_set_new(figures, "threads",
                              json_integer((json_int_t)ingot_pool_threads(backend.pool)));
    (void)json_object_set_new(figures, "products", products);
    const ingot_status status = backend.ops->measure_product != NULL
                                    ? measure_device(&backend, figures, products, options, error)
                                    : measure_cpu(&backend, figures, products, options, error);
    ingot_backend_close(&backend);
    *out = figures;
    return status;
}

void ingot_bench_kernels_print(const json_t *figures) {
    size_t index;
    json_t *p;
    printf("%s: reads %.1f GB/s\n", json_string_value(json_object_get(figures, "device")),
           ingot_json_number_at(figures, "read_gbps"));
    printf("%14s %5s %5s %4s %5s %5s %10s %10s %8s %10s %9s\n", "N x K", "M", "bits", "g", "zeros",
           "x", "us", "limit us", "of read", "cuBLAS us", "error");
    json_array_foreach(json_object_get(figures, "products"), index, p) {
        char shape[48], cublas[24] = "-";
        (void)snprintf(shape, sizeof shape, "%.0f x %.0f", ingot_json_number_at(p, "rows"),
                       ingot_json_number_at(p, "cols"));
        if (json_is_number(json_object_get(p, "cublas_bf16_us"))) {
            (void)snprintf(cublas, sizeof cublas, "%.2f",
                           ingot_json_number_at(p, "cublas_bf16_us"));
        }
        printf("%14s %5.0f %5.0f %4.0f %5s %5s %10.2f %10.2f %7.1f%% %10s %9.1e\n", shape,
               ingot_json_number_at(p, "m"), ingot_json_number_at(p, "bits"),
               ingot_json_number_at(p, "group"),
               json_is_true(json_object_get(p, "stored_zeros")) ? "yes" : "no",
               json_is_true(json_object_get(p, "handed_on"))
                   ? "tile"
                   : json_string_value(json_object_get(p, "activations")),
               ingot_json_number_at(p, "us"), ingot_json_number_at(p, "limit_us"),
               100 * ingot_json_number_at(p, "of_read"), cublas, ingot_json_number_at(p, "error"));
    }
}
