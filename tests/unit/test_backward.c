/* The gradient operations of kernels/backend.h against plain FP64 on every device, odd sizes among
 * them, with equal bits for every number of threads; and the backward pass of a whole block against
 * finite differences of the FP64 forward pass of tiny_model.h, for every kind of block the
 * description can express and for the fixtures of every family. */
#define TINY_MAX 128

#include "backend_devices.h"
#include "backend_inputs.h"
#include "backward_reference.h"
#include "calib/backward.h"
#include "common/sizes.h"
#include "kernels/cuda/card.h"
#include "tiny_model.h"

/* ---- norms ------------------------------------------------------------------------------------
 */

typedef struct norm_case {
    const float *dy, *x, *weight;
    ingot_norm_kind kind;
    uint64_t m, n;
} norm_case;

static void run_norm(const ingot_backend *b, const void *argument, float *out) {
    const norm_case *c = argument;
    float *d = device_put_floats(b, c->dy, c->m * c->n);
    float *x = device_put_floats(b, c->x, c->m * c->n);
    float *weight = device_put_floats(b, c->weight, c->n);
    CU_ASSERT(b->ops->norm_backward(b->context, d, d, x, weight, c->kind, 1e-5f, c->m, c->n) == 0);
    device_take(b, out, d, c->m * c->n * sizeof(float));
    device_release(b, x);
    device_release(b, weight);
}

static void test_norms(void) {
    for (unsigned i = 0; i < input_rounds(30); i++) {
        norm_case c = {.kind = (ingot_norm_kind)(i % 3), .m = input_size(40), .n = input_size(300)};
        float *dy = input_floats(c.m * c.n, 1e-3), *x = input_floats(c.m * c.n, 3.0);
        float *weight = input_floats(c.n, 1.0);
        double *value = doubles(c.m * c.n), *size = doubles(c.m * c.n);
        c.dy = dy, c.x = x, c.weight = weight;
        ref_norm_backward(value, size, dy, x, weight, c.kind, 1e-5f, c.m, c.n);
        device_check(run_norm, &c,
                     &(expected){.what = "norm_backward",
                                 .value = value,
                                 .size = size,
                                 .count = c.m * c.n,
                                 .tolerance = 16 + sqrt((double)c.n)});
        free(dy);
        free(x);
        free(weight);
        free(value);
        free(size);
    }
    report_share();
}

/* ---- linears ----------------------------------------------------------------------------------
 */

typedef struct linear_case {
    const ingot_weight_view *w;
    const float *dy, *x, *before;
    bool adds;
    uint64_t m, rows, cols;
} linear_case;

static void run_linear(const ingot_backend *b, const void *argument, float *out) {
    const linear_case *c = argument;
    ingot_weight_view view;
    float *dx = device_put_floats(b, c->adds ? c->before : NULL, c->m * c->cols);
    if (dx == NULL) {
        dx = device_put(b, NULL, c->m * c->cols * sizeof *dx);
    }
    float *dy = device_put_floats(b, c->dy, c->m * c->rows);
    CU_ASSERT_FATAL(b->ops->upload_view(b->context, &view, c->w) == INGOT_OK);
    CU_ASSERT(b->ops->linear_backward(b->context, dx, &view, dy, c->adds, c->m) == INGOT_OK);
    device_take(b, out, dx, c->m * c->cols * sizeof *dx);
    b->ops->release_view(b->context, &view);
    device_release(b, dy);
}

static void run_weights(const ingot_backend *b, const void *argument, float *out) {
    const linear_case *c = argument;
    float *dw = device_put_floats(b, c->before, c->rows * c->cols);
    float *dy = device_put_floats(b, c->dy, c->m * c->rows);
    float *x = device_put_floats(b, c->x, c->m * c->cols);
    CU_ASSERT(b->ops->weight_backward(b->context, dw, dy, x, c->m, c->rows, c->cols) == INGOT_OK);
    device_take(b, out, dw, c->rows * c->cols * sizeof *dw);
    device_release(b, dy);
    device_release(b, x);
}

static void check_linear(unsigned kind, linear_case c, double slope) {
    input_weights w = input_kind(kind, c.rows, c.cols);
    const uint64_t most = ingot_max_u64(c.rows, c.m) * c.cols;
    float *dy = input_floats(c.m * c.rows, slope), *x = input_floats(c.m * c.cols, 1.0);
    float *before = input_floats(most, slope), *none = calloc(most + 1, sizeof *none);
    double *value = doubles(most), *size = doubles(most);
    c.w = &w.view, c.dy = dy, c.x = x, c.before = before;
    ref_linear_backward(value, size, c.w, dy, c.adds ? before : none, c.m);
    device_check(run_linear, &c,
                 &(expected){.what = "linear_backward",
                             .value = value,
                             .size = size,
                             .count = c.m * c.cols,
                             .tolerance = 4 + sqrt((double)c.rows),
                             .is_product = true});
    ref_weight_backward(value, size, dy, x, before, c.m, c.rows, c.cols);
    device_check(run_weights, &c,
                 &(expected){.what = "weight_backward",
                             .value = value,
                             .size = size,
                             .count = c.rows * c.cols,
                             .tolerance = 4 + sqrt((double)c.m),
                             .is_product = true});
    input_weights_free(&w);
    free(dy);
    free(x);
    free(before);
    free(none);
    free(value);
    free(size);
}

static void test_linears(void) {
    for (unsigned i = 0; i < input_rounds(28); i++) {
        const linear_case c = {.m = input_size(129),
                               .rows = input_size(129),
                               .cols = input_size(300),
                               .adds = i % 2 != 0};
        check_linear(i % INPUT_KINDS, c, 1.0);
    }
    /* more than one tile of everything */
    if (!input_is_small()) {
        check_linear(0, (linear_case){.m = 530, .rows = 270, .cols = 1100, .adds = true}, 1.0);
    }
    check_linear(INPUT_KINDS - 1, (linear_case){.m = 33, .rows = 600, .cols = 1040}, 1.0);
    report_share();
}

/* ---- activations ------------------------------------------------------------------------------
 */

typedef struct elements_case {
    const float *gate, *up, *d;
    ingot_activation kind;
    uint64_t n;
} elements_case;

static void run_activate(const ingot_backend *b, const void *argument, float *out) {
    const elements_case *c = argument;
    float *gate = device_put_floats(b, c->gate, c->n), *up = device_put_floats(b, c->up, c->n);
    float *d = device_put_floats(b, c->d, c->n);
    CU_ASSERT(b->ops->activate_backward(b->context, gate, up, d, c->kind, c->n) == INGOT_OK);
    device_take(b, out, gate, c->n * sizeof(float));
    if (up != NULL) {
        device_take(b, out + c->n, up, c->n * sizeof(float));
    }
    device_release(b, d);
}

static void check_activate(ingot_activation kind, uint64_t n, bool has_up) {
    float *gate = input_floats(n, 4.0), *up = input_floats(n, 1.0), *d = input_floats(n, 1e-2);
    double *value = doubles(2 * n), *size = doubles(2 * n);
    for (uint64_t i = 0; i < n; i += 5) {
        gate[i] = i % 2 == 0 ? 0.0f : i % 3 == 0 ? 90.0f : -90.0f;
    }
    const elements_case c = {gate, has_up ? up : NULL, d, kind, n};
    ref_activate_backward(value, size, gate, c.up, d, kind, n);
    device_check(run_activate, &c,
                 &(expected){.what = "activate_backward",
                             .value = value,
                             .size = size,
                             .count = has_up ? 2 * n : n,
                             .tolerance = 16,
                             .floor = 1e-34});
    free(gate);
    free(up);
    free(d);
    free(value);
    free(size);
}

static void test_activations(void) {
    for (unsigned kind = INGOT_ACT_SILU; kind <= INGOT_ACT_RELU; kind++) {
        for (unsigned i = 0; i < input_rounds(6); i++) {
            check_activate((ingot_activation)kind, input_size(300), i % 3 != 0);
        }
        check_activate((ingot_activation)kind, 40000 + input_below(50), true);
    }
    report_share();
}

/* The derivatives the bounds above trust, by differences. */
static void test_slopes(void) {
    for (unsigned kind = INGOT_ACT_SILU; kind < INGOT_ACT_RELU; kind++) {
        for (double x = -8; x < 8; x += 0.37) {
            double ignored;
            const double up = ref_activation(x + 1e-5, (ingot_activation)kind, &ignored);
            const double down = ref_activation(x - 1e-5, (ingot_activation)kind, &ignored);
            CU_ASSERT(fabs((up - down) / 2e-5 - ref_activation_slope(x, (ingot_activation)kind)) <
                      1e-9);
        }
    }
}

/* ---- attention --------------------------------------------------------------------------------
 */

typedef struct attention_case {
    ref_attention_inputs in;
    ingot_attention shape;
    uint64_t q_count, kv_count;
} attention_case;

static void run_attention(const ingot_backend *b, const void *argument, float *out) {
    const attention_case *c = argument;
    float *q = device_put_floats(b, c->in.q, c->q_count);
    float *k = device_put_floats(b, c->in.k, c->kv_count);
    float *v = device_put_floats(b, c->in.v, c->kv_count);
    float *y = device_put_floats(b, c->in.out, c->q_count);
    float *dout = device_put_floats(b, c->in.dout, c->q_count);
    float *dq = device_put(b, NULL, c->q_count * sizeof *dq);
    float *dk = device_put(b, NULL, c->kv_count * sizeof *dk);
    float *dv = device_put(b, NULL, c->kv_count * sizeof *dv);
    CU_ASSERT(b->ops->attention_backward(b->context, dq, dk, dv, dout, q, k, v, y, &c->shape) ==
              INGOT_OK);
    device_take(b, out, dq, c->q_count * sizeof *dq);
    device_take(b, out + c->q_count, dk, c->kv_count * sizeof *dk);
    device_take(b, out + c->q_count + c->kv_count, dv, c->kv_count * sizeof *dv);
    device_release(b, q);
    device_release(b, k);
    device_release(b, v);
    device_release(b, y);
    device_release(b, dout);
}

/* sum dout . attention(q, k, v) in FP64 */
static double attention_loss(const attention_case *c, double *value, double *size) {
    double sum = 0;
    ref_attention(value, size, c->in.q, c->in.k, c->in.v, &c->shape);
    for (uint64_t i = 0; i < c->q_count; i++) {
        sum += (double)c->in.dout[i] * value[i];
    }
    return sum;
}

/* The reference itself against differences, at a few places of one input x[count]. */
static void check_reference(const attention_case *c, float *x, uint64_t count, const double *value,
                            const double *size) {
    double *out = doubles(c->q_count), *unused = doubles(c->q_count);
    for (unsigned k = 0; k < 12; k++) {
        const uint64_t i = input_below(count);
        const float kept = x[i];
        x[i] = kept + 0x1p-12f;
        const double up = (double)x[i], above = attention_loss(c, out, unused);
        x[i] = kept - 0x1p-12f;
        const double difference = (above - attention_loss(c, out, unused)) / (up - (double)x[i]);
        x[i] = kept;
        CU_ASSERT(fabs(difference - value[i]) <= 1e-5 * (size[i] + 1e-3));
    }
    free(out);
    free(unused);
}

static void check_attention(ingot_attention s, bool is_checked) {
    s.kv_len = s.kv_stride = s.q_len;
    attention_case c = {.shape = s,
                        .q_count = s.sequences * s.q_len * s.heads * s.head_dim,
                        .kv_count = s.sequences * s.q_len * s.kv_heads * s.head_dim};
    float *q = input_floats(c.q_count, 1.0), *dout = input_floats(c.q_count, 0.5);
    float *k = input_floats(c.kv_count, 1.0), *v = input_floats(c.kv_count, 1.0);
    float *out = calloc(c.q_count, sizeof *out);
    const uint64_t count = c.q_count + 2 * c.kv_count;
    double *value = doubles(count), *size = doubles(count);
    ref_attention(value, size, q, k, v, &s);
    for (uint64_t i = 0; i < c.q_count; i++) {
        out[i] = (float)value[i];
    }
    memset(value, 0, count * sizeof *value);
    memset(size, 0, count * sizeof *size);
    c.in = (ref_attention_inputs){q, k, v, out, dout};
    double *values[3] = {value, value + c.q_count, value + c.q_count + c.kv_count};
    double *sizes[3] = {size, size + c.q_count, size + c.q_count + c.kv_count};
    ref_attention_backward(values, sizes, &c.in, &s);
    if (is_checked) {
        check_reference(&c, q, c.q_count, values[0], sizes[0]);
        check_reference(&c, k, c.kv_count, values[1], sizes[1]);
        check_reference(&c, v, c.kv_count, values[2], sizes[2]);
    }
    char what[160];
    (void)snprintf(what, sizeof what,
                   "attention_backward: %llu x %llu, %llu/%llu heads of %llu, "
                   "window %llu, softcap %g",
                   (unsigned long long)s.sequences, (unsigned long long)s.q_len,
                   (unsigned long long)s.heads, (unsigned long long)s.kv_heads,
                   (unsigned long long)s.head_dim, (unsigned long long)s.window, (double)s.softcap);
    device_check(run_attention, &c,
                 &(expected){.what = what,
                             .value = value,
                             .size = size,
                             .count = count,
                             .tolerance = 16 + 2 * sqrt((double)(s.head_dim + s.q_len)),
                             .is_product = true});
    free(q);
    free(k);
    free(v);
    free(out);
    free(dout);
    free(value);
    free(size);
}

static void test_attention(void) {
    static const uint64_t lengths[] = {1, 2, 3, 17, 33, 70, 129};
    for (unsigned i = 0; i < input_rounds(24); i++) {
        ingot_attention s = {.sequences = 1 + input_below(3),
                             .q_len = lengths[input_below(i < 8 ? 4 : 7)],
                             .kv_heads = 1 + input_below(2),
                             .head_dim = i % 6 == 5 ? 128 : input_size(65),
                             .softcap = i % 4 == 0 ? 5.0f : 0.0f};
        s.heads = s.kv_heads * (1 + input_below(3));
        s.window = i % 5 < 2 ? 1 + input_below(s.q_len + 2) : 0;
        s.scale = (float)(1.0 / sqrt((double)s.head_dim));
        check_attention(s, i < 8);
    }
    /* more than one block of queries and of keys; a window that leaves whole blocks out */
    if (!input_is_small()) {
        check_attention((ingot_attention){1, 600, 0, 0, 2, 1, 16, 0, 0.25f, 0.0f}, false);
        check_attention((ingot_attention){1, 700, 0, 0, 1, 1, 40, 150, 0.2f, 0.0f}, false);
    }
    check_attention((ingot_attention){1, 40, 0, 0, 2, 1, 250, 0, 0.06f, 0.0f}, false);
    report_share();
    for (unsigned d = 0; d < DEVICES; d++) {
        const ingot_backend *b = &devices[d].backend[0];
        const ingot_attention cached = {1, 4, 6, 6, 1, 1, 8, 0, 1.0f, 0.0f};
        CU_ASSERT(!devices[d].is_open ||
                  b->ops->attention_backward(b->context, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                                             NULL, &cached) == INGOT_ERR_USAGE);
    }
}

/* As on cards whose blocks have the least shared memory: wide heads take fewer tiles at once. */
static void test_attention_on_lesser_cards(void) {
    int own[DEVICE_THREADS];
    device *d = &devices[DEVICES - 1];
    CU_ASSERT_FATAL(strcmp(d->name, "cuda") == 0);
    for (unsigned i = 0; i < DEVICE_THREADS && d->is_open; i++) {
        ingot_cuda_card *card = d->backend[i].context;
        own[i] = card->shared_bytes;
        card->shared_bytes = CUDA_LEAST_SHARED_BYTES;
    }
    if (d->is_open) {
        check_attention((ingot_attention){1, 40, 0, 0, 2, 1, 250, 0, 0.06f, 0.0f}, false);
        check_attention((ingot_attention){2, 130, 0, 0, 2, 2, 256, 70, 0.06f, 5.0f}, false);
        check_attention((ingot_attention){1, 65, 0, 0, 3, 1, 136, 0, 0.09f, 0.0f}, false);
        report_share();
    }
    for (unsigned i = 0; i < DEVICE_THREADS && d->is_open; i++) {
        ((ingot_cuda_card *)d->backend[i].context)->shared_bytes = own[i];
    }
}

/* ---- a whole block ----------------------------------------------------------------------------
 */

#define SEQUENCES 2u
#define LENGTH    9u
#define TOKENS    (SEQUENCES * LENGTH)

typedef double rows_of[TOKENS][TINY_MAX];

typedef struct block_case {
    tiny_model *t;
    uint64_t layer;
    rows_of x, slope; /* input; derivative of the loss by the output: the loss is linear */
} block_case;

static double block_loss(const block_case *c) {
    rows_of *y = malloc(sizeof *y);
    double loss = 0;
    memcpy(y, c->x, sizeof *y);
    for (uint64_t s = 0; s < SEQUENCES; s++) {
        tiny_ref_block(c->t, c->layer, *y + s * LENGTH, LENGTH, NULL);
    }
    for (uint64_t i = 0; i < TOKENS; i++) {
        for (uint64_t k = 0; k < c->t->model.hidden; k++) {
            loss += (*y)[i][k] * c->slope[i][k];
        }
    }
    free(y);
    return loss;
}

/* One role's gradient at `places` weights; errors are relative to the largest one. */
static void check_role(const device *d, block_case *c, ingot_role role, const float *got,
                       unsigned places) {
    char name[INGOT_NAME_SIZE];
    const ingot_linear_desc *desc = &c->t->model.linear[role];
    ingot_model_linear_name(&c->t->model, c->layer, role, name);
    float *w = tiny_find(c->t, name)->data;
    double largest = 0, worst = 0;
    for (uint64_t i = 0; i < desc->rows * desc->cols; i++) {
        largest = fmax(largest, fabs((double)got[i] + 0x1p-10));
    }
    for (unsigned k = 0; k < places; k++) {
        const uint64_t i = input_below(desc->rows * desc->cols);
        const float kept = w[i];
        w[i] = kept + 0x1p-16f;
        const double up = (double)w[i], above = block_loss(c);
        w[i] = kept - 0x1p-16f;
        const double slope = (above - block_loss(c)) / (up - (double)w[i]);
        w[i] = kept;
        worst = fmax(worst, fabs(slope - 0x1p-10 - (double)got[i]) / largest);
    }
    const double bound = d->product_epsilon != 0 ? 2e-2 : 2e-4;
    if (!(worst <= bound && largest > 0)) {
        printf("\n    %s %s on %s: error %g of %g\n", c->t->model.family, name, d->backend[0].path,
               worst, largest);
    }
    CU_ASSERT(worst <= bound && largest > 0);
    largest_share = fmax(largest_share, worst / bound);
}

/* The same for the gradient by the block's input. */
static void check_input(const device *d, block_case *c, const float *got, unsigned places) {
    const uint64_t hidden = c->t->model.hidden;
    double largest = 0, worst = 0;
    for (uint64_t i = 0; i < TOKENS * hidden; i++) {
        largest = fmax(largest, fabs((double)got[i]));
    }
    for (unsigned k = 0; k < places; k++) {
        const uint64_t i = input_below(TOKENS * hidden);
        double *x = &c->x[i / hidden][i % hidden];
        const double kept = *x;
        *x = kept + 0x1p-16;
        const double above = block_loss(c);
        *x = kept - 0x1p-16;
        const double slope = (above - block_loss(c)) / 0x1p-15;
        *x = kept;
        worst = fmax(worst, fabs(slope - (double)got[i]) / largest);
    }
    const double bound = d->product_epsilon != 0 ? 2e-2 : 2e-4;
    if (!(worst <= bound && largest > 0)) {
        printf("\n    %s input on %s: error %g of %g\n", c->t->model.family, d->backend[0].path,
               worst, largest);
    }
    CU_ASSERT(worst <= bound && largest > 0);
    largest_share = fmax(largest_share, worst / bound);
}

/* Gradients of a block on one backend, added to -2^-10: gradient[role] is host memory; dx: that by
 * its input; recalls: the output is left out. */
static void run_block(const ingot_backend *b, const block_case *c,
                      float *gradient[INGOT_ROLE_COUNT], float *dx, bool recalls) {
    const ingot_model *m = &c->t->model;
    const uint64_t floats = TOKENS * m->hidden;
    float *there[INGOT_ROLE_COUNT] = {NULL}, *host = malloc(floats * sizeof *host);
    ingot_arena *arena = NULL;
    ingot_tape *tape = NULL;
    ingot_block block;
    CU_ASSERT_FATAL(ingot_arena_create(&arena) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_block_load(&block, m, c->layer, &c->t->source, b, arena, NULL) == 0);
    CU_ASSERT_FATAL(ingot_tape_create(&tape, m, b, TOKENS + 3, NULL) == INGOT_OK);
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const uint64_t count = m->linear[role].rows * m->linear[role].cols;
        for (uint64_t i = 0; m->linear[role].is_present && i < count; i++) {
            gradient[role][i] = -0x1p-10f;
        }
        there[role] =
            m->linear[role].is_present ? device_put_floats(b, gradient[role], count) : NULL;
    }
    for (uint64_t i = 0; i < floats; i++) {
        host[i] = (float)c->x[i / m->hidden][i % m->hidden];
    }
    float *x = device_put_floats(b, host, floats), *input = device_put_floats(b, host, floats);
    for (uint64_t i = 0; i < floats; i++) {
        host[i] = (float)c->slope[i / m->hidden][i % m->hidden];
    }
    float *dy = device_put_floats(b, host, floats);
    CU_ASSERT((recalls ? ingot_tape_recall : ingot_tape_forward)(tape, &block, x, SEQUENCES,
                                                                 LENGTH) == INGOT_OK);
    CU_ASSERT(ingot_tape_backward(tape, &block, dy, input, there) == INGOT_OK);
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        if (there[role] != NULL) {
            device_take(b, gradient[role], there[role],
                        m->linear[role].rows * m->linear[role].cols * sizeof(float));
        }
    }
    device_take(b, NULL, x, floats * sizeof *x);
    device_take(b, NULL, input, floats * sizeof *x);
    device_take(b, dx, dy, floats * sizeof *dy);
    ingot_tape_destroy(tape);
    ingot_block_release(&block, b);
    ingot_arena_destroy(arena);
    free(host);
}

static void check_block(tiny_model *t, uint64_t layer, unsigned places) {
    block_case *c = calloc(1, sizeof *c);
    float *first[INGOT_ROLE_COUNT], *again[INGOT_ROLE_COUNT];
    static float dx[2][TOKENS * TINY_MAX];
    c->t = t;
    c->layer = layer;
    for (uint64_t i = 0; i < TOKENS * t->model.hidden; i++) {
        c->x[i / t->model.hidden][i % t->model.hidden] = (double)(float)input_normal();
        c->slope[i / t->model.hidden][i % t->model.hidden] = (double)(float)input_normal();
    }
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const uint64_t count = t->model.linear[role].rows * t->model.linear[role].cols;
        first[role] = calloc(count + 1, sizeof(float));
        again[role] = calloc(count + 1, sizeof(float));
    }
    for (unsigned d = 0; d < DEVICES; d++) {
        if (!devices[d].is_open) {
            continue;
        }
        run_block(&devices[d].backend[0], c, first, dx[0], false);
        run_block(&devices[d].backend[1], c, again, dx[1], true);
        check_input(&devices[d], c, dx[0], places);
        device_check_bits("input gradient", "with two threads, recalled", dx[0], dx[1],
                          TOKENS * t->model.hidden);
        for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
            if (t->model.linear[role].is_present) {
                check_role(&devices[d], c, (ingot_role)role, first[role], places);
                device_check_bits("block gradient", "with two threads, recalled", first[role],
                                  again[role],
                                  t->model.linear[role].rows * t->model.linear[role].cols);
            }
        }
    }
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        free(first[role]);
        free(again[role]);
    }
    free(c);
}

static void test_blocks(void) {
    static const unsigned variants[] = {
        0,
        TINY_QKV_BIAS | TINY_HEAD_NORMS,
        TINY_WINDOW,
        TINY_LAYER_NORM | TINY_UNGATED | TINY_PARTIAL_ROTARY,
        TINY_POST_NORMS | TINY_NO_PRE_NORMS | TINY_HEAD_NORMS,
        TINY_POST_NORMS | TINY_SCALES | TINY_WINDOW | TINY_QKV_BIAS,
    };
    for (size_t v = 0; v < sizeof variants / sizeof variants[0]; v++) {
        tiny_model *t = tiny_create(variants[v], input_bits());
        check_block(t, v % 2, input_rounds(20));
        tiny_destroy(t);
    }
    report_share();
}

/* ---- the fixtures of every family -------------------------------------------------------------
 */

static void add_tensor(tiny_model *t, const ingot_weight_source *from, const char *name,
                       ingot_arena *arena) {
    ingot_weight_view view;
    CU_ASSERT_FATAL(from->load(from->self, name, arena, &view, NULL) == INGOT_OK);
    tiny_add(t, name, view.rows == 1 ? 1 : 2, view.rows, view.cols, 0, 0);
    for (uint64_t i = 0; i < view.rows * view.cols; i++) {
        tiny_find(t, name)->data[i] = (float)ref_element(view.data, view.dtype, i);
    }
}

static void check_fixture(const char *family) {
    char path[128], name[INGOT_NAME_SIZE];
    ingot_weight_source from;
    ingot_arena *arena = NULL;
    tiny_model *t = tiny_create(0, 1);
    (void)snprintf(path, sizeof path, "tests/fixtures/%s", family);
    CU_ASSERT_FATAL(ingot_arena_create(&arena) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_weight_source_open(&from, path, true, NULL) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_model_open(&t->model, &from, NULL) == INGOT_OK);
    while (t->count > 0) {
        free(t->tensor[--t->count].data);
    }
    CU_ASSERT_FATAL(t->model.ffn <= TINY_MAX && t->model.hidden <= TINY_MAX &&
                    t->model.heads * t->model.head_dim <= TINY_MAX);
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        if (t->model.linear[role].is_present) {
            ingot_model_linear_name(&t->model, 0, (ingot_role)role, name);
            add_tensor(t, &from, name, arena);
        }
        if (t->model.linear[role].has_bias) {
            ingot_model_bias_name(&t->model, 0, (ingot_role)role, name);
            add_tensor(t, &from, name, arena);
        }
    }
    for (unsigned slot = 0; slot < INGOT_SLOT_COUNT; slot++) {
        if (ingot_model_norm_name(&t->model, 0, (ingot_norm_slot)slot, name)) {
            add_tensor(t, &from, name, arena);
        }
    }
    check_block(t, 0, 8);
    ingot_model_close(&t->model);
    ingot_weight_source_close(&from);
    ingot_arena_destroy(arena);
    tiny_destroy(t);
}

static void test_fixtures(void) {
    check_fixture("tiny-llama");
    check_fixture("tiny-llama-bias");
    check_fixture("tiny-mistral");
    check_fixture("tiny-qwen2");
    check_fixture("tiny-qwen3");
    report_share();
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"devices", devices_open},
        {"norms", test_norms},
        {"linears and their weights", test_linears},
        {"derivatives of activations", test_slopes},
        {"activations", test_activations},
        {"attention", test_attention},
        {"attention on lesser cards", test_attention_on_lesser_cards},
        {"blocks of every kind against finite differences", test_blocks},
        {"blocks of the fixtures", test_fixtures},
        {"closing", devices_close},
        CU_TEST_INFO_NULL,
    };
    input_start("backward");
    return suite_run("backward", tests);
}
