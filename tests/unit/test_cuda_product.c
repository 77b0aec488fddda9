/* Products of the decoder on CUDA (kernels/cuda/product.h) against FP64: every width, group, zero
 * mode and dtype, odd shapes, one to many rows, outliers, norms, and everything behind the sums.
 * Results lie between guards in poisoned memory.  Skipped, loudly, where there is no device. */
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
    unsigned bits; /* 0: dense, BF16 */
    ingot_zero_mode zero_mode;
    ingot_dtype scale_dtype, dtype, x_dtype, y_dtype;
    bool has_outliers, has_up, has_bias, has_residual, has_activation, has_norm, is_chained;
    bool is_positive; /* x, as behind many activations: zero points weigh most */
    ingot_activation activation;
    ingot_norm_kind norm_kind;
    float x_scale;
    float huge;                /* 0, or the size of one x of every row, whatever x_scale is */
    int side;                  /* of the codes: -1: the lower half of them, 1: the upper, 0: all */
    bool is_handed, is_normed; /* x comes in a tile, without the factor of a norm */
    unsigned hands;            /* y goes to a tile of that many rows, in the order of codes of: */
    unsigned hands_bits;
    bool hands_norm, hands_wide; /* wide: y itself would be FP32 */
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
    const double relative = (c->huge == 0 ? 0x1p-20
                             : has_offset ? 0x1p-17
                                          : 0x1p-18) +
                            lost + (is_by_copy(c) ? 1.01 * roundoff(c->dtype) : 0.0);
    for (int side = 0; side < (c->has_up ? 2 : 1); side++) {
        sum[side] = calloc(count, sizeof(double));
        error[side] = calloc(count, sizeof(double));
        ref_product p = {sum[side],      error[side], &in->w[side].view,
                         in->bias[side], x,           c->m,
                         has_offset,     NULL,        NULL};
        ref_product_start(&p);
        ingot_pool_run(pool, ingot_ceil_div(c->rows, ROWS_AT_ONCE), reference_rows, &p);
        ref_product_end(&p);
        for (uint64_t i = 0; i < count; i++) {
            error[side][i] *= relative;
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

static inputs make_inputs(const product_case *c) {
    inputs in = {0};
    for (int side = 0; side < (c->has_up ? 2 : 1); side++) {
        in.w[side] = c->bits == 0 ? input_dense(c->rows, c->cols, INGOT_BF16)
                                  : input_grouped(c->rows, c->cols, c->bits, c->group, c->zero_mode,
                                                  c->scale_dtype, c->has_outliers);
        in.bias[side] = c->has_bias ? input_floats(c->rows, 0.3) : NULL;
        if (c->side != 0) {
            move_codes(&in.w[side], c->side);
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
        CU_ASSERT(fabs(got[2 * i] - sum) <= 0x1p-18 * sum);
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
        .bias = bias[0],
        .up = c->has_up ? &view[1] : NULL,
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
    got[1] = run(c, in, &job, workspace_bytes, c->has_residual || is_brief ? 1 : 3);
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

/* ---- cases -------------------------------------------------------------------------------------
 */

static const uint64_t row_counts[] = {1, 2, 3, 8, 9, 16, 17, 31, 33, 64};
#define ROW_COUNTS (sizeof row_counts / sizeof row_counts[0])

static uint64_t pick(const uint64_t *from, unsigned count) {
    return from[input_below(count)];
}

/* Symmetric weights and x of binary16, y of FP32, and nothing else. */
static product_case plain_case(uint64_t rows, uint64_t cols, unsigned bits, uint64_t m) {
    return (product_case){.rows = rows,
                          .cols = cols,
                          .m = m,
                          .bits = bits,
                          .group = 128,
                          .zero_mode = INGOT_ZERO_SYMMETRIC,
                          .scale_dtype = INGOT_F16,
                          .dtype = INGOT_F16,
                          .x_dtype = INGOT_F16,
                          .y_dtype = INGOT_F32,
                          .x_scale = 1.0f};
}

/* Everything that is not given is drawn. */
static product_case draw(unsigned bits, uint64_t group, uint64_t m) {
    static const uint64_t rows[] = {1, 7, 16, 17, 40, 64, 100, 130};
    static const uint64_t cols[] = {1, 8, 31, 40, 96, 128, 160, 200, 264, 512, 1000, 1032};
    static const ingot_dtype dtypes[] = {INGOT_F16, INGOT_BF16, INGOT_F32};
    product_case c = {.rows = pick(rows, is_brief ? 5 : 8),
                      .cols = pick(cols, is_brief ? 9 : 12),
                      .m = m,
                      .bits = bits,
                      .zero_mode = input_below(2) ? INGOT_ZERO_STORED : INGOT_ZERO_SYMMETRIC,
                      .scale_dtype = dtypes[input_below(3)],
                      .dtype = dtypes[input_below(2)],
                      .x_dtype = dtypes[input_below(3)],
                      .y_dtype = dtypes[input_below(3)],
                      .has_outliers = bits != 0 && input_below(4) == 0,
                      .has_up = input_below(4) == 0,
                      .has_bias = input_below(3) == 0,
                      .has_residual = input_below(3) == 0,
                      .has_norm = input_below(3) == 0,
                      .is_chained = input_below(2) == 0,
                      .is_positive = input_below(4) == 0,
                      .activation = (ingot_activation)input_below(4),
                      .norm_kind = (ingot_norm_kind)input_below(3),
                      .x_scale = 1.0f};
    c.has_activation = c.has_up || input_below(5) == 0;
    c.group = group == 0 || group > c.cols ? c.cols : group;
    return c;
}

static void test_widths(void) {
    static const uint64_t groups[] = {32, 64, 128, 256, 0};
    for (unsigned bits = 2; bits <= 8; bits++) {
        for (unsigned g = 0; g < 5; g += is_brief ? 2 : 1) {
            for (unsigned i = 0; i < ROW_COUNTS;
                 i += (is_brief ? 3u : 1u) + (unsigned)input_below(2)) {
                const product_case c = draw(bits, groups[g], row_counts[i]);
                check(&c);
            }
        }
    }
}

/* Groups without a kernel, dense weights, and more rows than kernels take. */
static void test_other_weights(void) {
    static const uint64_t groups[] = {8, 24, 40, 96, 136};
    static const uint64_t more[] = {1, 2, 5, 8, 9, 40};
    for (unsigned i = 0; i < 12; i++) {
        const product_case c = draw(2 + (unsigned)input_below(7), groups[i % 5], pick(more, 6));
        check(&c);
        const product_case dense = draw(0, 0, pick(more, 6));
        check(&dense);
    }
    for (unsigned bits = 0; bits <= 8; bits += bits == 0 ? 2 : 1) {
        const product_case c = draw(bits, 128, 65 + input_below(30));
        check(&c);
    }
}

/* Long rows: more steps than are fetched ahead, clusters.  Many rows: more tiles than blocks. */
static void test_large(void) {
    static const uint64_t m[] = {1, 2, 16, 64};
    for (unsigned i = 0; i < 4; i++) {
        for (unsigned bits = 3; bits <= 8; bits += bits == 4 ? 4 : 1) {
            product_case c = draw(bits, 0, m[i]);
            c.rows = is_brief ? 40 : i < 2 && bits == 4 ? 4300 : 100 + input_below(100);
            c.cols = i < 2 && bits == 4 ? 512 : (is_brief ? 1024 : 4096) + 32 * input_below(10);
            c.group = i % 2 == 0 ? 128 : 64;
            check(&c);
        }
    }
}

/* Symmetric weights with F16 scales, which kernels of their own take: up to 16 rows of x, fewer
 * tiles of W than multiprocessors and more, columns that end inside a step of 128, fewer steps than
 * warps and more than are fetched ahead, x longer than a block holds, with and without a norm. */
static void test_usual_weights(void) {
    static const uint64_t rows[] = {16, 48, 144, 2144, 4240}, groups[] = {128, 256, 1024, 2048, 0};
    static const uint64_t cols[] = {32, 96, 256, 288, 1536, 2080, 4096, 14336, 28672};
    static const uint64_t m[] = {1, 2, 9, 16, 1, 2, 3, 8};
    static const unsigned widths[] = {3, 4, 8};
    for (unsigned i = 0; i < (is_brief ? 18u : 144u); i++) {
        product_case c = draw(widths[i % 3], 0, m[i / 3 % 8]);
        const uint64_t group = pick(groups, 5);
        c.rows = pick(rows, is_brief ? 2 : c.has_up ? 4 : 5);
        c.cols = pick(cols, is_brief ? 5 : c.rows > 144 ? 6 : 9);
        c.group = group == 0 || group > c.cols ? c.cols : group;
        c.zero_mode = INGOT_ZERO_SYMMETRIC;
        c.scale_dtype = INGOT_F16;
        c.dtype = input_below(4) == 0 ? INGOT_BF16 : INGOT_F16;
        check(&c);
    }
}

/* One or two rows of x and so many tiles of W that the warps of a block meet again and again, also
 * with sums of two matrices between two meetings; in brief, several units of a tile for a warp. */
static void test_many_tiles(void) {
    static const unsigned widths[] = {3, 4, 8};
    for (unsigned i = 0; i < 4; i++) {
        product_case c = draw(widths[i % 3], 0, 1 + i % 2);
        c.has_up = i % 2 != 0;
        c.has_activation = c.has_activation || c.has_up;
        c.rows = is_brief ? 32 : i == 3 ? 8480 : 40000;
        c.cols = is_brief ? 4096 : i == 3 ? 8448 : 288;
        c.group = 128;
        c.zero_mode = INGOT_ZERO_SYMMETRIC;
        c.scale_dtype = c.dtype = INGOT_F16;
        check(&c);
    }
}

/* 3 to 64 rows, odd ones too, with groups that products of warpgroups take: tiles that end early,
 * more steps than stages, tiles that blocks share, both matrices of a block. */
static void test_warpgroups(void) {
    static const unsigned widths[] = {3, 4, 8};
    static const uint64_t groups[] = {128, 256, 0};
    static const uint64_t cols[] = {32, 96, 128, 1024, 2208, 4096};
    static const uint64_t brief_cols[] = {96, 2208, 16384}; /* the last: more steps than stages */
    for (unsigned i = 0; i < (is_brief ? 9u : 36u); i++) {
        product_case c = draw(widths[i % 3], 0, 17 + input_below(48));
        c.rows = is_brief ? 20 + input_below(30) : 1 + input_below(700);
        c.cols = is_brief ? brief_cols[i / 3] : cols[i / 3 % 6];
        c.group = groups[input_below(3)];
        c.group = c.group == 0 || c.group > c.cols ? c.cols : c.group;
        if (i % 4 == 0) { /* as most files are */
            c.zero_mode = INGOT_ZERO_SYMMETRIC;
            c.scale_dtype = INGOT_F16;
            c.group = c.cols < 128 ? c.cols : 128;
        }
        check(&c);
    }
    for (unsigned i = 0; i < 4 && !is_brief; i++) { /* up to 16 rows: large matrices */
        product_case c = draw(3 + i % 2, 128, 9 + input_below(8));
        c.rows = 7000 + input_below(100);
        c.cols = 4096;
        c.group = i < 2 ? c.cols : 128; /* draw knew of other columns */
        if (i >= 2) {
            c.zero_mode = INGOT_ZERO_SYMMETRIC;
            c.scale_dtype = c.dtype = INGOT_F16;
        }
        check(&c);
    }
    for (unsigned i = 0; i < 2; i++) { /* blocks that take the scales of several boxes in turn */
        product_case c = draw(8, 128, i == 0 ? 17 : 33);
        c.rows = 20 + input_below(8);
        c.cols = 2048 * (145 + input_below(8));
        c.group = 128;
        c.has_up = c.has_outliers = false;
        c.zero_mode = i == 0 ? INGOT_ZERO_SYMMETRIC : INGOT_ZERO_STORED;
        c.scale_dtype = INGOT_F16;
        check(&c);
    }
    for (unsigned i = 0; i < (is_brief ? 1u : 4u); i++) { /* more tiles than blocks */
        product_case c = draw(i == 1 ? 4 : 8, 128, 17 + input_below(20));
        c.rows = (is_brief ? 1000 : 34000) + input_below(5000);
        c.cols = 128 * (1 + i);
        c.group = 128;
        c.has_up = i == 3;
        c.has_activation = c.has_up || c.has_activation;
        if (i < 2) {
            c.zero_mode = INGOT_ZERO_SYMMETRIC;
            c.scale_dtype = INGOT_F16;
        }
        check(&c);
    }
    for (unsigned i = 0; i < 3 && !is_brief; i++) { /* the same, and blocks share the first
                                                             tiles, too few for all */
        product_case c = draw(i == 0 ? 8 : i + 2, 128, i == 2 ? 3 + input_below(14) : 17);
        c.rows = 33800 + input_below(2000);
        c.cols = i == 0 ? 4128 : 4096;
        c.group = 128;
        c.has_up = c.has_outliers = false;
        c.zero_mode = INGOT_ZERO_SYMMETRIC;
        c.scale_dtype = INGOT_F16;
        check(&c);
    }
}

/* Those that go to blocks of 256 rows; a small run leaves them out. */
static void test_large_warpgroups(void) {
    /* many tiles and few, and one that is large for 3 bits and more than 32 rows */
    for (unsigned i = 0; i < 3 && !is_brief; i++) {
        product_case c = draw(i == 0 ? 4 : 3, 128, i == 0 ? 9 : i == 1 ? 3 : 33);
        c.rows = i == 0 ? 17200 : i == 1 ? 4300 : 3650;
        c.cols = i == 0 ? 4096 : i == 1 ? 16384 : 14336;
        c.has_up = false;
        c.group = i == 2 ? 128 : 256;
        check(&c);
    }
    /* 4 bits, the last step half empty: many tiles, both matrices, few tiles with many steps,
     * groups of whole rows */
    for (unsigned i = 0; i < 4 && !is_brief; i++) {
        static const uint64_t large_rows[] = {17000, 16600, 2200, 17000};
        static const uint64_t large_cols[] = {4128, 4224, 32800, 4192};
        product_case c = draw(4, 128, 3 + input_below(62));
        c.rows = large_rows[i];
        c.cols = large_cols[i];
        c.group = i == 3 ? c.cols : i == 1 ? 256 : 128;
        c.zero_mode = i % 2 == 0 ? INGOT_ZERO_STORED : INGOT_ZERO_SYMMETRIC;
        c.has_up = i == 1;
        c.has_activation = c.has_up || c.has_activation;
        check(&c);
    }
}

/* More rows than a tile of x has, and matrices so large that weights stay packed: whole tiles and a
 * last one of every height, each multiplied by itself. */
static void test_tiles_of_x(void) {
    static const unsigned widths[] = {4, 8, 3}, others[] = {2, 5, 6, 7};
    static const uint64_t m[] = {65, 96, 127, 128};
    for (unsigned i = 0; i < (is_brief ? 2u : 12u); i++) {
        product_case c = draw(widths[i % 3], 0, m[i % 4]);
        c.cols = 4096 + 32 * input_below(2);
        c.has_up = i % 5 == 4;
        c.has_activation = c.has_up || c.has_activation;
        c.rows = (c.has_up ? 2060 : 4120) + input_below(100);
        c.group = i % 4 == 2 ? c.cols : 128;
        c.has_outliers = false;
        c.has_residual = i % 2 == 0;
        if (i % 3 != i / 3 % 3) { /* as most files are */
            c.zero_mode = INGOT_ZERO_SYMMETRIC;
            c.scale_dtype = c.dtype = INGOT_F16;
        }
        check(&c);
    }
    /* four tiles; blocks of 256 rows of W; other widths; outliers, which do not stay packed */
    for (unsigned i = 0; i < 5 && !is_brief; i++) {
        static const uint64_t large_rows[] = {13300, 3900, 8400, 17000, 4200};
        static const uint64_t large_cols[] = {4096, 14336, 4224, 4128, 4096};
        static const uint64_t large_m[] = {200, 200, 129, 96, 128};
        const unsigned bits = i == 1 ? 3 : i == 3 ? others[input_below(4)] : 4;
        product_case c = draw(bits, 0, large_m[i]);
        c.rows = large_rows[i];
        c.cols = large_cols[i];
        c.group = 128;
        c.has_outliers = i == 4;
        c.has_up = i == 2;
        c.has_activation = c.has_up || c.has_activation;
        c.has_residual = i % 2 == 0;
        check(&c);
    }
}

/* One x of each row is far larger than the others, as in models: tensor cores cut what they add to
 * a unit of the largest.  Others down to what is cut off whole, in every kernel. */
static product_case draw_huge(unsigned bits, uint64_t m) {
    static const uint64_t groups[] = {32, 64, 128, 256, 0};
    product_case c = draw(bits, 0, m);
    c.rows = is_brief ? 32 : 64 + 16 * input_below(4);
    c.cols = is_brief ? 256 : 128 * (1 + input_below(24));
    c.group = pick(groups, 5);
    if (m > 16 || input_below(2) == 0) { /* as most files are */
        c.zero_mode = INGOT_ZERO_SYMMETRIC;
        c.scale_dtype = c.dtype = INGOT_F16;
        c.group = 128;
    }
    c.group = c.group == 0 || c.group > c.cols ? c.cols : c.group;
    c.has_outliers = c.has_up = c.has_activation = c.has_residual = false;
    c.y_dtype = INGOT_F32;
    c.side = (int)input_below(3) - 1;
    c.huge = 30000.0f;
    c.x_scale = c.huge * ldexpf(1.0f, -(int)(4 + input_below(23)));
    return c;
}

static void test_huge_x(void) {
    static const uint64_t m[] = {1, 2, 1, 2, 3, 8, 12, 16, 24, 64, 70};
    static const uint64_t large_m[] = {8, 12}, large_rows[] = {8464, 5296};
    for (unsigned bits = 2; bits <= 8; bits++) {
        for (unsigned i = 0; i < 11 * (is_brief ? 1 : 4); i++) {
            const product_case c = draw_huge(bits, m[i % 11]);
            check(&c);
        }
    }
    for (unsigned i = 0; i < 2 && !is_brief; i++) { /* kernels that take large ones alone */
        product_case c = draw_huge(4, large_m[i]);
        c.rows = large_rows[i];
        c.cols = 4096;
        c.group = 128;
        check(&c);
    }
}

/* One or two rows of x that kernels split into digits, short enough for the lowest of them to show:
 * what is lost grows with the root of the columns, the bound with their number. */
static void test_digits(void) {
    static const unsigned widths[] = {3, 4, 8};
    for (unsigned i = 0; i < 12; i++) {
        const product_case c = plain_case(48, i < 6 ? 128 : 256, widths[i / 2 % 3], 1 + i % 2);
        check(&c);
    }
}

/* One or two rows of x as kernels take them that split x into integers: what is not finite must not
 * become a number. */
static void test_infinite_x(void) {
    static const unsigned widths[] = {3, 4, 8};
    for (unsigned i = 0; i < 12; i++) {
        product_case c = draw_huge(widths[i % 3], 1 + i / 3 % 2);
        c.zero_mode = INGOT_ZERO_SYMMETRIC;
        c.scale_dtype = c.dtype = INGOT_F16;
        c.group = c.cols < 128 ? c.cols : 128;
        c.huge = i < 6 ? INFINITY : NAN;
        c.x_scale = 1.0f;
        inputs in = make_inputs(&c);
        float *got[2];
        run_twice(&c, &in, got);
        unsigned wrong = 0;
        for (uint64_t k = 0; k < c.m * c.rows; k++) {
            wrong += isfinite(got[0][k]) ? 1 : 0;
        }
        if (wrong != 0) {
            describe(&c);
            printf(": %u of %llu are numbers", wrong, (unsigned long long)(c.m * c.rows));
        }
        CU_ASSERT(wrong == 0);
        free(got[0]);
        free(got[1]);
        free_inputs(&in);
    }
}

/* x in tiles and y handed on, as products of a layer do. */
static void test_handed(void) {
    static const uint64_t m[] = {9, 12, 16, 17, 31, 32, 33, 50, 64};
    static const uint64_t rows[] = {256, 512, 768, 1024, 1280};
    static const unsigned bits[] = {3, 4, 8};
    for (unsigned i = 0; i < (is_brief ? 4 : 90); i++) {
        /* rows of 8 bits so short that no blocks share them, which would need counters */
        const uint64_t steps = 1 + input_below(is_brief ? 2 : bits[i % 3] == 8 ? 3 : 5);
        product_case c = plain_case(pick(rows, 5), 256 * steps, bits[i % 3], m[input_below(9)]);
        c.is_handed = i % 4 != 3 || c.m <= 16;
        c.is_normed = c.is_handed && i / 3 % 2 == 0;
        c.is_chained = input_below(2) == 0;
        c.has_bias = input_below(2) == 0;
        c.has_outliers = input_below(4) == 0;
        c.zero_mode = input_below(4) == 0 ? INGOT_ZERO_STORED : INGOT_ZERO_SYMMETRIC;
        c.group = input_below(3) == 0 ? c.cols : UINT64_C(128) << input_below(2);
        c.hands_bits = bits[input_below(3)];
        const unsigned tile = c.m <= 16 ? 16 : c.m <= 32 ? 32 : 64;
        if (i / 6 % 2 == 0 && !c.is_normed && c.bits != 8) { /* as the output projection */
            c.has_residual = true;
            c.hands_norm = true;
            c.norm_kind = i % 2 == 0 ? INGOT_NORM_RMS : INGOT_NORM_RMS_PLUS_ONE;
            c.hands = tile;
        } else if (i % 3 != 0) { /* as gate and up */
            c.has_up = c.has_activation = input_below(4) != 0;
            c.activation = (ingot_activation)input_below(4);
            c.y_dtype = INGOT_F16;
            c.hands_wide = input_below(2) == 0;
            c.hands = tile;
        }
        check(&c);
    }
    if (is_brief) {
        return;
    }
    product_case c = plain_case(103000, 1024, 4, 16);
    c.is_handed = c.is_normed = true; /* blocks have many tiles of W */
    check(&c);
    c = plain_case(17408, 2048, 4, 5); /* of few rows large matrices alone take tiles */
    c.is_handed = c.is_normed = true;
    check(&c);
    c = plain_case(25600, 4096, 4, 24);
    c.is_handed = c.is_normed = c.has_up = c.has_activation = true;
    c.y_dtype = INGOT_F16;
    c.hands = 32, c.hands_bits = 4;
    check(&c);
}

/* Each part behind and before the sums by itself, where a mistake cannot hide behind another. */
static void test_parts(void) {
    static const uint64_t m[] = {1, 2, 5, 20, 70};
    for (unsigned i = 0; i < 5; i += is_brief ? 3 : 1) { /* few rows, many rows */
        const product_case plain = plain_case(50, 264, 4, m[i]);
        check(&plain);
        product_case c = plain;
        c.has_bias = true;
        check(&c);
        c = plain, c.has_residual = true;
        check(&c);
        c = plain, c.has_outliers = true;
        check(&c);
        for (int kind = 0; kind < 4; kind++) {
            c = plain, c.has_activation = true, c.activation = (ingot_activation)kind;
            check(&c);
            c.has_up = true;
            check(&c);
        }
        for (int kind = 0; kind < 3; kind++) {
            c = plain, c.has_norm = true, c.norm_kind = (ingot_norm_kind)kind;
            c.x_dtype = INGOT_F32;
            check(&c);
        }
        c = plain, c.dtype = INGOT_BF16, c.x_dtype = INGOT_F32;
        c.x_scale = 1e6f; /* beyond binary16 */
        check(&c);
    }
    CU_ASSERT(squares_seen != 0);
}

int main(void) {
    ingot_error error;
    input_start("cuda product");
    if (ingot_backend_open(&cuda, "cuda", 0, &error) != INGOT_OK) {
        printf("SKIP: no CUDA device: %s\n", error.reason);
        return 77;
    }
    is_brief = getenv("INGOT_TEST_SMALL") != NULL;
    if (ingot_pool_create(&pool, 0) != INGOT_OK) {
        return 2;
    }
    const CU_TestInfo tests[] = {
        {"parts by themselves", test_parts},
        {"widths and groups", test_widths},
        {"other weights", test_other_weights},
        {"large", test_large},
        {"usual weights", test_usual_weights},
        {"many tiles", test_many_tiles},
        {"warpgroups", test_warpgroups},
        {"warpgroups, large", test_large_warpgroups},
        {"tiles of x", test_tiles_of_x},
        {"handed on", test_handed},
        {"digits of x", test_digits},
        {"one huge x", test_huge_x},
        {"x that is not finite", test_infinite_x},
        CU_TEST_INFO_NULL,
    };
    const int result = suite_run("cuda product", tests);
    ingot_pool_destroy(pool);
    ingot_backend_close(&cuda);
    return result;
}
