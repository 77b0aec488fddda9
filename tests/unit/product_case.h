/* A case of the products of the decoder on CUDA (kernels/cuda/product.h), for the tests of them:
 * its inputs, FP64 reference with a bound of the error, and a run between guards in poisoned
 * memory. */
#ifndef INGOT_PRODUCT_CASE_H
#define INGOT_PRODUCT_CASE_H

#include "backend_devices.h"
#include "backend_inputs.h"
#include "backend_reference.h"
#include "common/pool.h"
#include "common/sizes.h"
#include "kernels/cuda/product.h"
#include "suite.h"

static ingot_backend cuda;
static ingot_pool *pool; /* for the references */
static bool is_brief;    /* INGOT_TEST_SMALL: small sizes, for runs under compute-sanitizer */

#define REQUIRE_OK(call) CU_ASSERT_FATAL((call) == INGOT_OK)

typedef struct product_case {
    uint64_t rows, cols, m, group;
    unsigned bits; /* 0: dense, of scale_dtype */
    ingot_zero_mode zero_mode;
    ingot_dtype scale_dtype, dtype, x_dtype, y_dtype;
    bool has_outliers, has_up, has_bias, has_residual, has_activation, has_norm, is_chained;
    bool is_positive; /* x, as behind many activations: zero points weigh most */
    ingot_activation activation;
    ingot_norm_kind norm_kind;
    float x_scale;
    float w_scale;             /* of dense weights; 0: they are as drawn */
    float huge;                /* 0, or the size of one x of every row, whatever x_scale is */
    float large;               /* 0, or the size of some weights: outliers, scales of groups */
    int side;                  /* of the codes: -1: the lower half of them, 1: the upper, 0: all */
    bool is_handed, is_normed; /* x comes in a tile, without the factor of a norm */
    unsigned hands;            /* y goes to a tile of that many rows, in the order of codes of: */
    unsigned hands_bits;
    bool hands_norm, hands_wide; /* wide: y itself would be FP32 */
    unsigned times;              /* not 0: the last product is run so often */
} product_case;

static void describe(const product_case *c) {
    printf("\n    %llux%llu m %llu bits %u group %llu zeros %d scales %s, %s from %s to "
           "%s,%s%s%s%s%s%s "
           "norm %d activation %d",
           (unsigned long long)c->rows, (unsigned long long)c->cols, (unsigned long long)c->m,
           c->bits, (unsigned long long)c->group, (int)c->zero_mode,
           ingot_dtype_name(c->scale_dtype), ingot_dtype_name(c->dtype),
           ingot_dtype_name(c->x_dtype), ingot_dtype_name(c->y_dtype),
           c->has_outliers ? " outliers" : "", c->has_up ? " up" : "", c->has_bias ? " bias" : "",
           c->has_residual ? " residual" : "", c->has_activation ? " act" : "",
           c->has_norm ? " norm" : "", (int)c->norm_kind, (int)c->activation);
    if (c->is_handed || c->hands != 0) {
        printf(" handed %d %d, hands %u rows, %u bits %d", c->is_handed, c->is_normed, c->hands,
               c->hands_bits, c->hands_norm);
    }
}

/* ---- the reference -----------------------------------------------------------------------------
 */

/* Values as a dtype holds them, and the bytes. */
typedef struct encoded {
    float *value;
    void *bytes;
    uint64_t size;
} encoded;

static encoded encode(float *from, uint64_t count, ingot_dtype dtype) {
    encoded e = {from, NULL, count * ingot_dtype_bytes(dtype)};
    e.bytes = malloc(e.size + 1);
    ingot_convert_from_f32(e.bytes, dtype, from, count);
    ingot_convert_to_f32(e.value, e.bytes, dtype, count);
    return e;
}

static void encoded_free(encoded *e) {
    free(e->value);
    free(e->bytes);
}

static double roundoff(ingot_dtype dtype) {
    return dtype == INGOT_F16 ? 0x1p-11 : dtype == INGOT_BF16 ? 0x1p-8 : 0x1p-24;
}

/* Whether weights may be rounded to 16 bits as well (product.h). */
static bool is_by_copy(const product_case *c) {
    /* dense weights that cuBLAS reads as they are */
    const bool is_split = c->scale_dtype == INGOT_BF16 && c->dtype == INGOT_F16 && c->m <= 64;
    if (c->bits == 0 && c->cols % 8 == 0 && (c->scale_dtype == c->dtype || is_split)) {
        return false;
    }
    const bool is_power = c->group >= 32 && (c->group & (c->group - 1)) == 0;
    const bool is_packed = c->bits != 0 && c->cols % 32 == 0 && (c->group >= c->cols || is_power);
    const bool is_small = c->group < 128 && c->group < c->cols && c->bits != 4 && c->bits != 8;
    return c->m > 64 || (c->m > 8 && (!is_packed || is_small));
}

typedef struct inputs {
    input_weights w[2];
    encoded x, residual;
    float *bias[2], *norm_weight, *norm_bias;
    /* c->is_normed: of x, c->hands_norm: of rows of about the size of y */
    float *squares; /* [m][square_parts + 1], powers of two in the last */
    unsigned square_parts;
    float *next_weight; /* [rows] */
} inputs;

/* Sums of squares of row i. */
static double square_of(const inputs *in, uint64_t i) {
    double sum = 0;
    for (unsigned part = 0; part < in->square_parts; part++) {
        sum += in->squares[i * (in->square_parts + 1) + part];
    }
    return sum;
}

/* What sums of row i of x are multiplied by. */
static double factor_of(const product_case *c, const inputs *in, uint64_t i) {
    return 1 / sqrt(square_of(in, i) / (double)c->cols + 1e-5) /
           in->squares[i * (in->square_parts + 1) + in->square_parts];
}

/* norm(x) rounded to dtype as floats, and what the rounding of a norm may differ by, relative. */
static float *rounded_input(const product_case *c, const inputs *in, double *lost) {
    const uint64_t count = c->m * c->cols;
    float *x = malloc(count * sizeof *x);
    double *value = malloc(count * sizeof *value), *size = malloc(count * sizeof *size);
    *lost = c->has_norm ? 2 * roundoff(c->dtype) : 0.0;
    memcpy(x, in->x.value, count * sizeof *x);
    if (c->has_norm) {
        ref_norm(value, size, x, in->norm_weight, in->norm_bias, c->norm_kind, 1e-5f, c->m,
                 c->cols);
        for (uint64_t i = 0; i < count; i++) {
            x[i] = (float)value[i];
        }
    }
    for (uint64_t i = 0; i < count; i++) {
        x[i] = ingot_round_to_dtype(x[i], c->dtype);
        x[i] = c->is_normed ? (float)(x[i] * factor_of(c, in, i / c->cols)) : x[i];
    }
    free(value);
    free(size);
    return x;
}

static float largest_of(const ingot_weight_view *v) {
    float *row = malloc(v->cols * sizeof *row), largest = 0;
    for (uint64_t i = 0; i < v->rows; i++) {
        ingot_weight_row(row, v, i, v->cols);
        for (uint64_t j = 0; j < v->cols; j++) {
            largest = fmaxf(largest, fabsf(row[j]));
        }
    }
    free(row);
    return largest;
}

/* What copies of small weights may lose beside large ones, for row i of x (product.h). */
static double small_error(const product_case *c, const inputs *in, int side, const float *x,
                          uint64_t i) {
    double sum = 0;
    for (uint64_t j = 0; j < c->cols; j++) {
        sum += fabs((double)x[i * c->cols + j]);
    }
    return sum * 0x1p-39 * (double)largest_of(&in->w[side].view);
}

#define ROWS_AT_ONCE 16u

static void reference_rows(void *context, size_t index, unsigned worker) {
    const ref_product *p = context;
    const uint64_t first = index * ROWS_AT_ONCE;
    (void)worker;
    ref_product_rows(p, first, ingot_min_u64(first + ROWS_AT_ONCE, p->w->rows));
}

/* value[i], and bound[i] of the error. */
static void reference(const product_case *c, const inputs *in, double *value, double *bound) {
    double lost;
    float *x = rounded_input(c, in, &lost);
    const uint64_t count = c->m * c->rows;
    double *sum[2] = {NULL}, *error[2] = {NULL};
    const bool has_offset = c->m <= 2 && c->dtype == INGOT_F16; /* x may be split into digits */
    const bool is_cublas = c->bits == 0 && c->m > 8; /* adds up all columns on tensor cores */
    const bool is_level = c->huge == 0 && !(is_cublas && c->large != 0);
    const double relative = (is_level     ? 0x1p-20
                             : is_cublas  ? 0x1p-16
                             : has_offset ? 0x1p-17
                                          : 0x1p-18) +
                            lost + (is_by_copy(c) ? 1.01 * roundoff(c->dtype) : 0.0);
    for (int side = 0; side < (c->has_up ? 2 : 1); side++) {
        sum[side] = calloc(count, sizeof(double));
        error[side] = calloc(count, sizeof(double));
        ref_product p = {.value = sum[side],
                         .size = error[side],
                         .w = &in->w[side].view,
                         .bias = in->bias[side],
                         .x = x,
                         .m = c->m,
                         .has_offset = has_offset,
                         .least_zero = c->bits != 0 ? 1 << (c->bits - 1) : 0};
        ref_product_start(&p);
        ingot_pool_run(pool, ingot_ceil_div(c->rows, ROWS_AT_ONCE), reference_rows, &p);
        ref_product_end(&p);
        for (uint64_t i = 0; i < count; i++) {
            error[side][i] *= relative;
        }
        for (uint64_t i = 0; i < count && is_by_copy(c) && c->large != 0; i += c->rows) {
            const double more = small_error(c, in, side, x, i / c->rows);
            for (uint64_t j = i; j < i + c->rows; j++) {
                error[side][j] += more;
            }
        }
    }
    for (uint64_t i = 0; i < count; i++) {
        double condition, v = sum[0][i], e = error[0][i];
        if (c->has_activation) {
            v = ref_activation(sum[0][i], c->activation, &condition);
            e = 1.2 * e + 0x1p-20 * fabs(v) * (1 + condition);
        }
        if (c->has_up) {
            e = e * (fabs(sum[1][i]) + error[1][i]) + fabs(v) * error[1][i];
            v *= sum[1][i];
        }
        v += c->has_residual ? (double)in->residual.value[i] : 0.0;
        value[i] = v;
        bound[i] = e + (fabs(v) + e) * 1.01 * roundoff(c->y_dtype) + 0x1p-23 * fabs(v) +
                   (c->y_dtype == INGOT_F16 ? 0x1p-25 : 1e-37);
        if (c->y_dtype == INGOT_F16 && fabs(v) + bound[i] > 65504) {
            bound[i] = INFINITY; /* beyond binary16: an infinity, or the largest */
        }
    }
    for (int side = 0; side < (c->has_up ? 2 : 1); side++) {
        free(sum[side]);
        free(error[side]);
    }
    free(x);
}

/* ---- a case ------------------------------------------------------------------------------------
 */

/* All codes to the lower or the upper half of those there are: what products lose has one sign. */
static void move_codes(input_weights *w, int side) {
    const ingot_weight_view *v = &w->view;
    uint8_t *codes = (uint8_t *)(uintptr_t)v->codes;
    for (uint64_t i = 0; i < v->rows * v->cols; i++) {
        const unsigned half = 1u << (v->bits - 1);
        input_set_code(codes + i / v->cols * v->row_stride_bytes, i % v->cols, v->bits,
                       input_below(half) + (side > 0 ? half : 0));
    }
}

/* Of every fourth row, one value: an outlier, where there are some, else a scale, or a weight. */
static void put_large(input_weights *w, float large) {
    const ingot_weight_view *v = &w->view;
    for (uint64_t row = 0; row < v->rows; row += 4) {
        const void *values = v->data;
        uint64_t at = row * v->cols + input_below(v->cols);
        ingot_dtype dtype = v->dtype;
        if (v->kind == INGOT_GROUPED && v->outlier_count != 0) {
            at = v->outlier_row_ptr[row];
            values = at < v->outlier_row_ptr[row + 1] ? v->outlier_val : NULL;
        } else if (v->kind == INGOT_GROUPED) {
            at = row * v->groups_per_row + input_below(v->groups_per_row);
            values = v->scales;
            dtype = v->scale_dtype;
        }
        if (values != NULL) {
            char *to = (char *)(uintptr_t)values + at * ingot_dtype_bytes(dtype);
            ingot_convert_from_f32(to, dtype, &large, 1);
        }
    }
}

/* Dense weights times `scale`, rounded. */
static void scale_weights(input_weights *w, float scale) {
    const uint64_t count = w->view.rows * w->view.cols;
    void *data = (void *)(uintptr_t)w->view.data;
    float *value = malloc(count * sizeof *value);
    ingot_convert_to_f32(value, data, w->view.dtype, count);
    for (uint64_t i = 0; i < count; i++) {
        value[i] *= scale;
    }
    ingot_convert_from_f32(data, w->view.dtype, value, count);
    free(value);
}

static inputs make_inputs(const product_case *c) {
    inputs in = {0};
    for (int side = 0; side < (c->has_up ? 2 : 1); side++) {
        in.w[side] = c->bits == 0 ? input_dense(c->rows, c->cols, c->scale_dtype)
                                  : input_grouped(c->rows, c->cols, c->bits, c->group, c->zero_mode,
                                                  c->scale_dtype, c->has_outliers);
        in.bias[side] = c->has_bias ? input_floats(c->rows, 0.3) : NULL;
        if (c->side != 0) {
            move_codes(&in.w[side], c->side);
        }
        if (c->large != 0) {
            put_large(&in.w[side], c->large);
        }
        if (c->w_scale != 0) {
            scale_weights(&in.w[side], c->w_scale);
        }
    }
    float *x = input_floats(c->m * c->cols, (double)c->x_scale);
    for (uint64_t i = 0; i < c->m * c->cols; i++) {
        x[i] = c->is_positive ? fabsf(x[i]) : x[i];
    }
    for (uint64_t i = 0; i < c->m && c->huge != 0; i++) {
        const uint64_t column = input_below(2) == 0 ? 0 : input_below((uint32_t)c->cols);
        x[i * c->cols + column] = input_below(2) == 0 ? c->huge : -c->huge;
    }
    in.x = encode(x, c->m * c->cols, c->x_dtype);
    if (c->has_residual) {
        in.residual = encode(input_floats(c->m * c->rows, 1.0), c->m * c->rows, c->y_dtype);
    }
    in.square_parts = 1 + (unsigned)input_below(70);
    in.squares = malloc(c->m * (in.square_parts + 1) * sizeof(float));
    for (unsigned i = 0; i < c->m * (in.square_parts + 1); i++) {
        const bool is_power = i % (in.square_parts + 1) == in.square_parts;
        in.squares[i] = is_power ? exp2f(-(float)input_below(12))
                                 : (float)(input_uniform() * exp2((double)(i % 7)));
    }
    in.next_weight = input_floats(c->rows, 1.0);
    if (c->has_norm) {
        in.norm_weight = input_floats(c->cols, 1.0);
        in.norm_bias = c->norm_kind == INGOT_NORM_LAYER ? input_floats(c->cols, 0.5) : NULL;
    }
    return in;
}

static void free_inputs(inputs *in) {
    for (int side = 0; side < 2; side++) {
        input_weights_free(&in->w[side]);
        free(in->bias[side]);
    }
    encoded_free(&in->x);
    encoded_free(&in->residual);
    free(in->norm_weight);
    free(in->norm_bias);
    free(in->squares);
    free(in->next_weight);
}

/* ---- tiles -------------------------------------------------------------------------------------
 */

/* Where column `column` of row `row` lies in a tile of `rows` rows, in elements (product_unpack.h),
 * in other words than there: 32 columns are words of 32 bits, whose codes come out in pairs, from
 * both halves of a word, the low ones first; what is left, two codes, behind all others.  Four
 * neighbours of these are a product's, the first and the last two in a half of it each. */
static uint64_t tile_place(unsigned bits, unsigned rows, uint64_t row, uint64_t column) {
    unsigned order[32], count = 0;
    for (unsigned word = 0; count + 2 * (16 / bits) <= 32; word++) {
        const unsigned half = 16 / bits;
        for (unsigned i = 0; i < half; i++) {
            order[count++] = word * 2 * half + i;
            order[count++] = word * 2 * half + half + i;
        }
    }
    for (; count < 32; count++) {
        order[count] = count;
    }
    unsigned place = 0;
    while (order[place] != column % 32) {
        place++;
    }
    const uint64_t step = column / 128, chunk = column / 32 % 4;
    const uint64_t product = place / 4, half = place / 2 % 2;
    return (((step * 8 + product) * 2 + half) * rows + row) * 8 + chunk * 2 + place % 2;
}

/* Rows of 16 bits to a tile, the rest of which is NaN. */
static uint16_t *tile_of(const uint16_t *from, ingot_product_form form, uint64_t m, uint64_t cols) {
    uint16_t *tile = malloc(form.rows * cols * sizeof *tile);
    memset(tile, POISON, form.rows * cols * sizeof *tile);
    for (uint64_t i = 0; i < m * cols; i++) {
        tile[tile_place(form.bits, form.rows, i / cols, i % cols)] = from[i];
    }
    return tile;
}

static void tile_rows(uint16_t *to, const uint16_t *tile, ingot_product_form form, uint64_t m,
                      uint64_t cols) {
    for (uint64_t i = 0; i < m * cols; i++) {
        to[i] = tile[tile_place(form.bits, form.rows, i / cols, i % cols)];
    }
}

/* The power of two times which rows are handed on (product.h). */
static float power_of(const product_case *c, const inputs *in, uint64_t i) {
    const double root = sqrt(square_of(in, i) / (double)c->rows + 1e-5);
    return ldexpf(1, -5 - (int)floor(log2(root)));
}

/* What is handed on beside y: y times weights and power, rounded once, and squares. */
static void check_handed(const product_case *c, const inputs *in, const float *y,
                         const uint16_t *half, const float *squares, unsigned parts) {
    const float more = c->norm_kind == INGOT_NORM_RMS_PLUS_ONE ? 1 : 0;
    float *got = malloc(c->m * c->rows * sizeof *got);
    unsigned wrong = 0;
    ingot_convert_to_f32(got, half, INGOT_F16, c->m * c->rows);
    for (uint64_t i = 0; i < c->m; i++) {
        const float power = power_of(c, in, i);
        double square = 0;
        for (uint64_t j = 0; j < c->rows; j++) {
            const double v = y[i * c->rows + j];
            const double whole = v * ((double)in->next_weight[j] + more) * power;
            square += v * v;
            wrong += !(fabs(got[i * c->rows + j] - fmax(fmin(whole, 65504), -65504)) <=
                       0x1.01p-11 * fabs(whole) + 0x1p-24);
        }
        double sum = 0;
        for (unsigned part = 0; part < parts; part++) {
            sum += squares[i * (parts + 1) + part];
        }
        wrong += !(fabs(sum - square) <= 0x1p-18 * square);
        wrong += squares[i * (parts + 1) + parts] != power;
    }
    if (wrong != 0) {
        describe(c);
        printf(": %u values handed on are wrong", wrong);
    }
    CU_ASSERT(wrong == 0);
    free(got);
}

static unsigned squares_seen;

/* Sums of squares of x, where a kernel in front of the product left them. */
static void check_squares(const product_case *c, const inputs *in, void *memory, uint64_t bytes) {
    float *got = malloc(bytes);
    device_take(&cuda, got, memory, bytes);
    for (uint64_t i = 0; i < c->m && !isnan(got[0]) && c->norm_kind != INGOT_NORM_LAYER; i++) {
        double sum = 0;
        for (uint64_t j = 0; j < c->cols; j++) {
            const double v = in->x.value[i * c->cols + j];
            sum += v * v;
        }
        CU_ASSERT(isfinite(sum) ? fabs(got[2 * i] - sum) <= 0x1p-18 * sum : !isfinite(got[2 * i]));
        squares_seen++;
    }
    free(got);
}

/* ---- a run -------------------------------------------------------------------------------------
 */

/* y in poisoned memory, or over the residual, of the product run `times` times over (without a
 * residual they are all the same). */
static float *run(const product_case *c, const inputs *in, ingot_product *job,
                  uint64_t workspace_bytes, unsigned times) {
    const uint64_t count = c->m * c->rows, y_bytes = count * ingot_dtype_bytes(c->y_dtype);
    void *bytes = malloc(y_bytes + 1);
    float *got = malloc(count * sizeof *got);
    const ingot_product_form form = {c->hands_bits, c->hands};
    const unsigned parts =
        c->hands != 0 ? cuda.ops->product_hands(cuda.context, job, c->hands_norm) : 0;
    const uint64_t tile_bytes = c->hands * c->rows * 2;
    const uint64_t square_bytes = c->m * (parts + 1) * sizeof(float);
    if (c->hands != 0) {
        CU_ASSERT_FATAL(parts != 0);
        job->next.x = device_put(&cuda, NULL, tile_bytes);
        job->next.form = form;
    }
    if (c->hands_norm) {
        job->next.norm_weight = device_put_floats(&cuda, in->next_weight, c->rows);
        job->next.squares = (ingot_product_squares){device_put(&cuda, NULL, square_bytes), parts};
    }
    job->y = device_put(&cuda, in->residual.bytes, y_bytes);
    job->residual = c->has_residual ? job->y : NULL;
    job->workspace = device_put(&cuda, NULL, workspace_bytes);
    void *y = job->y;
    job->y = c->hands != 0 && !c->hands_norm ? NULL : y;
    for (unsigned i = 0; i < times; i++) {
        REQUIRE_OK(cuda.ops->product(cuda.context, job));
    }
    device_take(&cuda, bytes, y, y_bytes);
    device_take(&cuda, NULL, job->workspace, workspace_bytes);
    ingot_convert_to_f32(got, bytes, c->y_dtype, count);
    if (c->hands != 0) {
        uint16_t *tile = malloc(tile_bytes), *half = malloc(count * sizeof *half);
        device_take(&cuda, tile, job->next.x, tile_bytes);
        tile_rows(half, tile, form, c->m, c->rows);
        if (c->hands_norm) {
            float *squares = malloc(square_bytes);
            device_take(&cuda, squares, job->next.squares.sums, square_bytes);
            device_release(&cuda, job->next.norm_weight);
            check_handed(c, in, got, half, squares, parts);
            free(squares);
        } else {
            ingot_convert_to_f32(got, half, INGOT_F16, count);
        }
        free(tile);
        free(half);
        job->next = (ingot_product_next){0};
    }
    free(bytes);
    return got;
}

/* got[0] by one run, got[1] by one or several more. */
static void run_twice(const product_case *c, const inputs *in, float *got[2]) {
    ingot_weight_view view[2];
    float *bias[2] = {NULL};
    for (int side = 0; side < (c->has_up ? 2 : 1); side++) {
        REQUIRE_OK(cuda.ops->upload_view(cuda.context, &view[side], &in->w[side].view));
        bias[side] = device_put_floats(&cuda, in->bias[side], c->rows);
    }
    void *x = c->is_handed ? NULL : device_put(&cuda, in->x.bytes, in->x.size);
    float *norm_weight = device_put_floats(&cuda, in->norm_weight, c->cols);
    float *norm_bias = device_put_floats(&cuda, in->norm_bias, c->cols);
    ingot_product job = {
        .is_chained = c->is_chained,
        .m = c->m,
        .w = &view[0],
        .largest = c->large != 0 ? largest_of(&in->w[0].view) : 0,
        .bias = bias[0],
        .up = c->has_up ? &view[1] : NULL,
        .up_largest = c->large != 0 && c->has_up ? largest_of(&in->w[1].view) : 0,
        .up_bias = c->has_up ? bias[1] : NULL,
        .has_activation = c->has_activation,
        .activation = c->activation,
        .x = x,
        .x_dtype = c->x_dtype,
        .dtype = c->dtype,
        .norm_weight = norm_weight,
        .norm_bias = norm_bias,
        .norm_kind = c->norm_kind,
        .norm_eps = 1e-5f,
        .y_dtype = c->hands_wide ? INGOT_F32 : c->y_dtype,
    };
    if (c->is_handed) {
        job.x_form = cuda.ops->product_takes(cuda.context, &job);
        CU_ASSERT_FATAL(job.x_form.rows >= c->m && job.x_form.rows <= 64);
        CU_ASSERT_FATAL(job.x_form.bits == c->bits);
        uint16_t *tile = tile_of(in->x.bytes, job.x_form, c->m, c->cols);
        job.x = x = device_put(&cuda, tile, job.x_form.rows * c->cols * 2);
        free(tile);
    }
    float *squares = device_put_floats(&cuda, in->squares, c->m * (in->square_parts + 1));
    if (c->is_normed || c->hands_norm) {
        job.squares = (ingot_product_squares){squares, in->square_parts};
    }
    const uint64_t square_bytes = 2 * c->m * sizeof(float);
    if (c->has_norm) {
        job.x_squares = device_put(&cuda, NULL, square_bytes);
    }
    job.residual = c->has_residual ? x : NULL; /* that there is one counts, not where */
    const uint64_t workspace_bytes = cuda.ops->product_workspace_bytes(cuda.context, &job);
    got[0] = run(c, in, &job, workspace_bytes, 1);
    got[1] = run(c, in, &job, workspace_bytes,
                 c->times != 0                 ? c->times
                 : c->has_residual || is_brief ? 1
                                               : 3);
    if (c->has_norm) {
        check_squares(c, in, job.x_squares, square_bytes);
    }
    device_release(&cuda, x);
    device_release(&cuda, squares);
    device_release(&cuda, norm_weight);
    device_release(&cuda, norm_bias);
    for (int side = 0; side < (c->has_up ? 2 : 1); side++) {
        cuda.ops->release_view(cuda.context, &view[side]);
        device_release(&cuda, bias[side]);
    }
}

static void check(const product_case *c) {
    inputs in = make_inputs(c);
    const uint64_t count = c->m * c->rows;
    double *value = malloc(count * sizeof *value), *bound = malloc(count * sizeof *bound);
    reference(c, &in, value, bound);
    float *both[2];
    run_twice(c, &in, both);
    const float *got = both[0];
    unsigned wrong = 0;
    for (uint64_t i = 0; i < count; i++) {
        const double error = fabs((double)got[i] - value[i]);
        if (!(error <= bound[i]) && wrong++ == 0) {
            describe(c);
            printf(": element %llu is %.9g, not %.9g (bound %.3g)", (unsigned long long)i,
                   (double)got[i], value[i], bound[i]);
        }
    }
    if (wrong != 0) {
        printf(": %u of %llu are wrong", wrong, (unsigned long long)count);
    }
    CU_ASSERT(wrong == 0);
    CU_ASSERT(memcmp(both[0], both[1], count * sizeof *got) == 0);
    free(value);
    free(bound);
    free(both[0]);
    free(both[1]);
    free_inputs(&in);
}

#endif
