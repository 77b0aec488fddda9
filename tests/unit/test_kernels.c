/* Every operation of kernels/backend.h on every device against the FP64 references of
 * backend_reference.h: fresh random inputs, odd sizes, poisoned outputs, the same bits with 1, 2
 * and 3 threads.  The cpu device runs once per instruction set; cuda is skipped, loudly, where it
 * is not there. */
#include "backend_devices.h"
#include "backend_inputs.h"
#include "backend_reference.h"

/* ---- embedding ------------------------------------------------------------------------------- */

typedef struct embed_case {
    const ingot_weight_view *table;
    const uint32_t *ids;
    uint64_t m;
    float scale;
} embed_case;

static void run_embed(const ingot_backend *b, const void *argument, float *out) {
    const embed_case *c = argument;
    const uint64_t bytes = c->m * c->table->cols * sizeof(float);
    ingot_weight_view view;
    CU_ASSERT_FATAL(b->ops->upload_view(b->context, &view, c->table) == INGOT_OK);
    float *y = device_put(b, NULL, bytes);
    CU_ASSERT(b->ops->embed(b->context, y, &view, c->ids, c->m, c->scale) == INGOT_OK);
    device_take(b, out, y, bytes);
    b->ops->release_view(b->context, &view);
}

static void test_embed(void) {
    for (unsigned i = 0; i < 3 * INPUT_KINDS; i++) {
        const uint64_t rows = input_size(300), cols = input_size(300), m = input_size(129);
        input_weights w = input_kind(i % INPUT_KINDS, rows, cols);
        uint32_t *ids = malloc(m * sizeof *ids);
        for (uint64_t k = 0; k < m; k++) {
            ids[k] = (uint32_t)input_below(rows);
        }
        const embed_case c = {&w.view, ids, m, i % 2 == 0 ? 1.0f : 7.3f};
        double *value = doubles(m * cols);
        char what[120] = "embed ";
        input_describe(what + 6, sizeof what - 6, &w.view);
        ref_embed(value, &w.view, ids, m, c.scale);
        device_check(run_embed, &c, &(expected){.what = what, .value = value, .count = m * cols});
        free(value);
        free(ids);
        input_weights_free(&w);
    }
}

/* ---- norms -------------------------------------------------------------------------------------
 */

typedef struct norm_case {
    const float *x, *weight, *bias;
    ingot_norm_kind kind;
    float eps;
    uint64_t m, n;
    bool is_in_place;
} norm_case;

static void run_norm(const ingot_backend *b, const void *argument, float *out) {
    const norm_case *c = argument;
    const uint64_t count = c->m * c->n;
    float *x = device_put_floats(b, c->x, count);
    float *y = c->is_in_place ? x : device_put(b, NULL, count * sizeof(float));
    float *weight = device_put_floats(b, c->weight, c->n);
    float *bias = device_put_floats(b, c->bias, c->n);
    CU_ASSERT(b->ops->norm(b->context, y, x, weight, bias, c->kind, c->eps, c->m, c->n) ==
              INGOT_OK);
    device_take(b, out, y, count * sizeof(float));
    device_release(b, c->is_in_place ? NULL : x);
    device_release(b, weight);
    device_release(b, bias);
}

static void check_norm(ingot_norm_kind kind, uint64_t m, uint64_t n, double offset, bool has_bias) {
    float *x = input_floats(m * n, 1.5), *weight = input_floats(n, 0.7);
    float *bias = input_floats(n, 0.3);
    for (uint64_t i = 0; i < m * n; i++) {
        x[i] = i < n && m > 1 ? 0.0f : x[i] + (float)offset; /* one row of zeros */
    }
    double *value = doubles(m * n), *size = doubles(m * n);
    norm_case c = {x, weight, has_bias ? bias : NULL, kind, 1e-5f, m, n, false};
    ref_norm(value, size, x, weight, c.bias, kind, c.eps, m, n);
    char what[80];
    (void)snprintf(what, sizeof what, "norm %d of %llux%llu, mean %.0f", (int)kind,
                   (unsigned long long)m, (unsigned long long)n, offset);
    const expected e = {
        .what = what, .value = value, .size = size, .count = m * n, .tolerance = sum_tolerance(n)};
    device_check(run_norm, &c, &e);
    c.is_in_place = true;
    device_check(run_norm, &c, &e);
    free(x);
    free(weight);
    free(bias);
    free(value);
    free(size);
}

static void test_norm(void) {
    for (unsigned i = 0; i < input_rounds(60); i++) {
        const ingot_norm_kind kind = (ingot_norm_kind)(i % 3);
        check_norm(kind, input_size(129), input_size(300), i % 4 == 3 ? 100.0 : 0.0, i % 2 == 0);
    }
    check_norm(INGOT_NORM_RMS, 33, 4097, 0, false);
    check_norm(INGOT_NORM_LAYER, 17, 4099, 30, true);
    report_share();
}

/* ---- rotary embedding
 * -------------------------------------------------------------------------------- */

typedef struct rotary_case {
    const float *x;
    uint64_t first, period;
    const double *frequency;
    float scale;
    uint64_t m, heads, head_dim, rotary_dim;
} rotary_case;

static void run_rotary(const ingot_backend *b, const void *argument, float *out) {
    const rotary_case *c = argument;
    const uint64_t count = c->m * c->heads * c->head_dim;
    float *x = device_put_floats(b, c->x, count);
    CU_ASSERT(b->ops->rotary(b->context, x, c->first, c->period, c->frequency, c->scale, c->m,
                             c->heads, c->head_dim, c->rotary_dim) == INGOT_OK);
    device_take(b, out, x, count * sizeof(float));
}

static void test_rotary(void) {
    for (unsigned i = 0; i < input_rounds(40); i++) {
        const uint64_t head_dim = input_size(129), m = input_size(129), heads = 1 + input_below(5);
        const uint64_t rotary_dim =
            i % 2 == 0 ? head_dim / 2 * 2 : 2 * input_below(head_dim / 2 + 1);
        const uint64_t count = m * heads * head_dim;
        float *x = input_floats(count, 1.0);
        double *value = doubles(count), *size = doubles(count),
               *frequency = doubles(rotary_dim / 2);
        for (uint64_t k = 0; k < rotary_dim / 2; k++) {
            frequency[k] = pow(10000.0, -2.0 * (double)k / (double)rotary_dim);
        }
        const rotary_case c = {.x = x,
                               .first = input_below(i % 3 == 0 ? 1000000 : 300),
                               .period = 1 + input_below(m + 3),
                               .frequency = frequency,
                               .scale = i % 3 == 0 ? 1.0f : 1.19f,
                               .m = m,
                               .heads = heads,
                               .head_dim = head_dim,
                               .rotary_dim = rotary_dim};
        ref_rotary(value, size, x, c.first, c.period, frequency, c.scale, m, heads, head_dim,
                   rotary_dim);
        device_check(
            run_rotary, &c,
            &(expected){
                .what = "rotary", .value = value, .size = size, .count = count, .tolerance = 4});
        free(x);
        free(value);
        free(size);
        free(frequency);
    }
    report_share();
}

/* ---- attention
 * ---------------------------------------------------------------------------------------- */

typedef struct attention_case {
    const float *q, *k, *v;
    ingot_attention shape;
} attention_case;

static void run_attention(const ingot_backend *b, const void *argument, float *out) {
    const attention_case *c = argument;
    const ingot_attention *s = &c->shape;
    const uint64_t count = s->sequences * s->q_len * s->heads * s->head_dim;
    const uint64_t kv_count = s->sequences * s->kv_stride * s->kv_heads * s->head_dim;
    float *q = device_put_floats(b, c->q, count);
    float *k = device_put_floats(b, c->k, kv_count), *v = device_put_floats(b, c->v, kv_count);
    float *y = device_put(b, NULL, count * sizeof(float));
    CU_ASSERT(b->ops->attention(b->context, y, q, k, v, s) == INGOT_OK);
    device_take(b, out, y, count * sizeof(float));
    device_release(b, q);
    device_release(b, k);
    device_release(b, v);
}

/* Rows of a cache that are not valid yet may hold anything. */
static float *random_cache(const ingot_attention *s) {
    const uint64_t width = s->kv_heads * s->head_dim;
    float *x = input_floats(s->sequences * s->kv_stride * width, 1.0);
    for (uint64_t i = 0; i < s->sequences * s->kv_stride; i++) {
        for (uint64_t j = 0; i % s->kv_stride >= s->kv_len && j < width; j++) {
            x[i * width + j] = NAN;
        }
    }
    return x;
}

static void check_attention(ingot_attention s) {
    const uint64_t count = s.sequences * s.q_len * s.heads * s.head_dim;
    double *value = doubles(count), *size = doubles(count);
    float *q = input_floats(count, 1.0), *k = random_cache(&s), *v = random_cache(&s);
    const attention_case c = {q, k, v, s};
    char what[160];
    (void)snprintf(what, sizeof what,
                   "attention: %llu sequences, %llu of %llu (stride %llu), %llu/%llu heads of "
                   "%llu, window %llu, cap %g",
                   (unsigned long long)s.sequences, (unsigned long long)s.q_len,
                   (unsigned long long)s.kv_len, (unsigned long long)s.kv_stride,
                   (unsigned long long)s.heads, (unsigned long long)s.kv_heads,
                   (unsigned long long)s.head_dim, (unsigned long long)s.window, (double)s.softcap);
    ref_attention(value, size, q, k, v, &s);
    device_check(run_attention, &c,
                 &(expected){.what = what,
                             .value = value,
                             .size = size,
                             .count = count,
                             .tolerance = sum_tolerance(s.head_dim),
                             .is_product = true});
    free(q);
    free(k);
    free(v);
    free(value);
    free(size);
}

/* What is not finite reaches those who see it, nobody else. */
static void check_attention_special(ingot_attention s) {
    const uint64_t width = s.heads * s.head_dim, count = s.sequences * s.q_len * width;
    const uint64_t kv_width = s.kv_heads * s.head_dim;
    float *q = input_floats(count, 1.0), *k = random_cache(&s), *v = random_cache(&s);
    float *before = malloc(count * sizeof(float)), *after = malloc(count * sizeof(float));
    const attention_case c = {q, k, v, s};
    const uint64_t key = input_below(s.kv_len), sequence = input_below(s.sequences);
    const uint64_t kv_head = input_below(s.kv_heads), place = input_below(s.head_dim);
    const uint64_t at = (sequence * s.kv_stride + key) * kv_width + kv_head * s.head_dim + place;
    const float old_k = k[at], old_v = v[at];
    for (unsigned d = 0; d < DEVICES; d++) {
        for (unsigned which = 0; devices[d].is_open && which < 3; which++) {
            k[at] = old_k;
            v[at] = old_v;
            run_attention(&devices[d].backend[0], &c, before);
            k[at] = which == 0 ? NAN : old_k;
            v[at] = which == 1 ? NAN : which == 2 ? INFINITY : old_v;
            run_attention(&devices[d].backend[0], &c, after);
            unsigned wrong = 0;
            for (uint64_t i = 0; i < count; i += s.head_dim) {
                const uint64_t position = s.kv_len - s.q_len + i / width % s.q_len;
                const uint64_t head = i % width / s.head_dim / (s.heads / s.kv_heads);
                const bool sees = i / width / s.q_len == sequence && head == kv_head &&
                                  key <= position && (s.window == 0 || key + s.window > position);
                bool is_whole = true, is_same = true;
                for (uint64_t j = 0; j < s.head_dim; j++) {
                    is_whole = is_whole && isfinite(after[i + j]);
                    is_same = is_same && fabsf(after[i + j] - before[i + j]) <= 1e-4f;
                }
                wrong += sees ? is_whole : !is_same;
            }
            CU_ASSERT(wrong == 0);
        }
    }
    free(q);
    free(k);
    free(v);
    free(before);
    free(after);
}

static void test_attention(void) {
    static const uint64_t lengths[] = {1, 2, 3, 17, 33, 129};
    for (unsigned i = 0; i < input_rounds(48); i++) {
        ingot_attention s = {.sequences = 1 + input_below(3),
                             .q_len = lengths[input_below(6)],
                             .kv_heads = 1 + input_below(3),
                             .head_dim = input_size(65),
                             .softcap = i % 4 == 0 ? 5.0f : 0.0f};
        s.heads = s.kv_heads * (1 + input_below(3));
        s.kv_len = s.q_len + (i % 3 == 0 ? 0 : input_below(140));
        s.kv_stride = s.kv_len + (i % 2 == 0 ? 0 : 1 + input_below(7));
        s.window = i % 5 < 2 ? 1 + input_below(s.kv_len + 2) : 0;
        s.scale = (float)(1.0 / sqrt((double)s.head_dim));
        check_attention(s);
    }
    /* more than one block of queries and of keys; a window that leaves whole blocks out */
    if (!input_is_small()) {
        check_attention((ingot_attention){1, 300, 700, 701, 2, 1, 17, 0, 0.25f, 0.0f});
        check_attention((ingot_attention){2, 270, 1200, 1200, 1, 1, 8, 600, 0.4f, 0.0f});
    }
    check_attention((ingot_attention){1, 1, 1537, 1600, 3, 3, 33, 513, 0.2f, 0.0f});
    check_attention((ingot_attention){1, 5, 1300, 1300, 4, 2, 129, 1, 3.0f, 50.0f});
    for (unsigned i = 0; i < input_rounds(12); i++) {
        const uint64_t length = 1 + input_below(300);
        check_attention_special((ingot_attention){2, length, length + input_below(2) * 70,
                                                  length + 75, 4, 2, 8 + input_below(100),
                                                  input_below(3) * 40, 0.2f, 0.0f});
    }
    report_share();
}

/* ---- elements
 * ------------------------------------------------------------------------------------------- */

typedef struct elements_case {
    const float *y, *x; /* gate and up, or the arguments of add */
    ingot_activation kind;
    float scale;
    uint64_t n;
} elements_case;

static void run_activate(const ingot_backend *b, const void *argument, float *out) {
    const elements_case *c = argument;
    float *gate = device_put_floats(b, c->y, c->n), *up = device_put_floats(b, c->x, c->n);
    CU_ASSERT(b->ops->activate(b->context, gate, up, c->kind, c->n) == INGOT_OK);
    device_take(b, out, gate, c->n * sizeof(float));
    device_release(b, up);
}

static void run_add(const ingot_backend *b, const void *argument, float *out) {
    const elements_case *c = argument;
    float *y = device_put_floats(b, c->y, c->n), *x = device_put_floats(b, c->x, c->n);
    CU_ASSERT(b->ops->add(b->context, y, x, c->scale, c->n) == INGOT_OK);
    device_take(b, out, y, c->n * sizeof(float));
    device_release(b, x);
}

static void check_elements(ingot_activation kind, uint64_t n, bool has_up) {
    static const float special[] = {0.0f, -0.0f, 100.0f, -100.0f, -87.4f, 88.4f, 1e-30f, -1e-8f};
    float *y = input_floats(n, 4.0), *x = input_floats(n, 1.0);
    double *value = doubles(n), *size = doubles(n);
    for (uint64_t i = 0; i < n; i++) {
        y[i] = input_below(9) == 0 ? special[input_below(8)] : y[i];
    }
    const elements_case c = {y, has_up ? x : NULL, kind, 0.37f, n};
    expected e = {.what = "activate", .value = value, .size = size, .count = n, .tolerance = 12};
    /* 88.376 is where exp ends: x / (1 + exp(-x)) below it is 1e-36 at most, not 1e-42 */
    e.floor = 4e-36;
    ref_activate(value, size, y, c.x, kind, n);
    device_check(run_activate, &c, &e);
    if (has_up) {
        e = (expected){.what = "add", .value = value, .size = size, .count = n, .tolerance = 2};
        ref_add(value, size, y, x, c.scale, n);
        device_check(run_add, &c, &e);
    }
    free(y);
    free(x);
    free(value);
    free(size);
}

/* Not a number in, not a number out, and the neighbours unharmed. */
static void check_activate_nan(ingot_activation kind) {
    for (unsigned d = 0; d < DEVICES; d++) {
        float gate[19], out[19];
        for (unsigned i = 0; i < input_rounds(19); i++) {
            gate[i] = i == 4 || i == 17 ? NAN : 2.0f;
        }
        const elements_case c = {gate, NULL, kind, 0, 19};
        if (!devices[d].is_open) {
            continue;
        }
        run_activate(&devices[d].backend[0], &c, out);
        for (unsigned i = 0; i < input_rounds(19); i++) {
            CU_ASSERT(isnan(out[i]) == isnan(gate[i]));
        }
    }
}

static void test_elements(void) {
    for (unsigned kind = INGOT_ACT_SILU; kind <= INGOT_ACT_RELU; kind++) {
        for (unsigned i = 0; i < input_rounds(12); i++) {
            check_elements((ingot_activation)kind, input_size(300), i % 2 == 0);
        }
        check_elements((ingot_activation)kind, 50003, kind % 2 == 0); /* several tasks */
        check_activate_nan((ingot_activation)kind);
    }
    report_share();
}

/* ---- statistics
 * ------------------------------------------------------------------------------------------ */

typedef struct gram_case {
    const float *x, *gram; /* before */
    const double *magnitude;
    uint64_t m, n, dropped; /* to come out */
    double *magnitude_out;
    bool wants_gram, wants_magnitude;
} gram_case;

static void run_gram(const ingot_backend *b, const void *argument, float *out) {
    const gram_case *c = argument;
    const uint64_t count = c->n * c->n;
    float *x = device_put_floats(b, c->x, c->m * c->n);
    float *gram = c->wants_gram ? device_put_floats(b, c->gram, count) : NULL;
    double *magnitude =
        c->wants_magnitude ? device_put(b, c->magnitude, c->n * sizeof(double)) : NULL;
    uint64_t dropped = 1000;
    uint64_t *counter = device_put(b, &dropped, sizeof dropped);
    CU_ASSERT(b->ops->gram(b->context, gram, magnitude, counter, x, c->m, c->n) == INGOT_OK);
    device_take(b, &dropped, counter, sizeof dropped);
    CU_ASSERT(dropped == 1000 + c->dropped);
    if (gram != NULL) {
        device_take(b, out, gram, count * sizeof(float));
    }
    if (magnitude != NULL) {
        device_take(b, c->magnitude_out, magnitude, c->n * sizeof(double));
    }
    device_release(b, x);
}

/* The upper triangle is not read (it is NaN in some cases) and, where the device promises it, not
 * written (it is a number in others); what comes out there is put to zero, as is what is expected
 * of it. */
static void run_gram_lower(const ingot_backend *b, const void *argument, float *out) {
    const gram_case *c = argument;
    uint64_t touched = 0;
    run_gram(b, argument, out);
    for (uint64_t i = 0; i < c->n; i++) {
        for (uint64_t j = i + 1; j < c->n; j++) {
            touched += memcmp(&out[i * c->n + j], &c->gram[i * c->n + j], sizeof *out) != 0;
            out[i * c->n + j] = 0.0f;
        }
    }
    CU_ASSERT(touched == 0 || !device_now->keeps_upper);
}

static void check_magnitude(const double *got, const double *wanted, uint64_t n) {
    for (uint64_t j = 0; j < n; j++) {
        CU_ASSERT(fabs(got[j] - wanted[j]) <= 1e-12 * wanted[j]);
    }
}

static void spoil_rows(float *x, uint64_t m, uint64_t n) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (uint64_t r = 0; r < m; r++) {
        if (input_below(6) == 0) {
            x[r * n + input_below(n)] = bad[input_below(3)];
        } else if (input_below(20) == 0) {
            x[r * n + input_below(n)] = 1e17f; /* large, but finite */
        }
    }
}

static void check_gram(uint64_t m, uint64_t n, bool is_spoiled) {
    float *x = input_floats(m * n, 1.0), *gram = input_floats(n * n, 3.0);
    double *magnitude = doubles(n), *out = doubles(n);
    double *value = doubles(n * n), *size = doubles(n * n), *sums = doubles(n);
    if (is_spoiled) {
        spoil_rows(x, m, n);
    }
    for (uint64_t i = 0; i < n; i++) {
        sums[i] = magnitude[i] = 5 * input_uniform();
        for (uint64_t j = 0; j < n; j++) {
            gram[i * n + j] = j > i && is_spoiled ? NAN : gram[i * n + j];
            value[i * n + j] = j > i ? 0 : (double)gram[i * n + j];
            size[i * n + j] = fabs(value[i * n + j]);
        }
    }
    gram_case c = {x, gram, magnitude, m, n, 0, out, true, true};
    c.dropped = ref_gram(value, size, sums, x, m, n);
    char what[80];
    (void)snprintf(what, sizeof what, "gram of %llux%llu, %llu rows dropped", (unsigned long long)m,
                   (unsigned long long)n, (unsigned long long)c.dropped);
    expected e = {.what = what,
                  .value = value,
                  .size = size,
                  .count = n * n,
                  .tolerance = sum_tolerance(m),
                  .is_product = true};
    device_check(run_gram_lower, &c, &e);
    check_magnitude(out, sums, n);
    c.wants_magnitude = false;
    device_check(run_gram_lower, &c, &e);
    c.wants_magnitude = true;
    c.wants_gram = false;
    memset(out, POISON, n * sizeof *out);
    e.count = 0;
    device_check(run_gram, &c, &e);
    check_magnitude(out, sums, n);
    free(x);
    free(gram);
    free(magnitude);
    free(out);
    free(value);
    free(size);
    free(sums);
}

static void test_gram(void) {
    for (unsigned i = 0; i < input_rounds(24); i++) {
        check_gram(input_size(300), input_size(i % 4 == 0 ? 300 : 129), i % 2 == 0);
    }
    check_gram(65, 530, true);   /* several tiles of the triangle */
    check_gram(4099, 33, false); /* more rows than are examined at once */
    check_gram(8200, 3, true);
    report_share();
}

/* ---- likelihood and divergence
 * ------------------------------------------------------------------------------ */

/* Ties for the largest, a wide range, and logits that exclude a token altogether. */
static float *random_logits(uint64_t m, uint64_t vocab) {
    float *x = input_floats(m * vocab, 3.0);
    for (uint64_t r = 0; r < m; r++) {
        float *row = x + r * vocab;
        const uint64_t kind = input_below(4);
        for (uint64_t i = 0; i < vocab; i++) {
            row[i] = kind == 0 ? rintf(row[i]) : kind == 1 ? 3000.0f * row[i] : row[i];
        }
        if (kind == 2) {
            row[input_below(vocab)] = 40.0f;
        }
    }
    return x;
}

static void check_score(uint64_t m, uint64_t vocab, bool has_targets) {
    float *logits = random_logits(m, vocab);
    uint32_t *targets = malloc(m * sizeof *targets), *best = malloc(m * sizeof *best);
    double *nll = doubles(m), *first = doubles(m);
    for (uint64_t i = 0; i < m; i++) {
        targets[i] = (uint32_t)input_below(vocab);
        if (vocab > 1) { /* a token that cannot follow */
            logits[i * vocab + (targets[i] + 1) % vocab] = -INFINITY;
        }
    }
    for (unsigned k = 0; k < DEVICES * DEVICE_THREADS; k++) {
        const ingot_backend *b = &devices[k / DEVICE_THREADS].backend[k % DEVICE_THREADS];
        if (!devices[k / DEVICE_THREADS].is_open) {
            continue;
        }
        memset(nll, POISON, m * sizeof *nll);
        memset(best, POISON, m * sizeof *best);
        float *x = device_put_floats(b, logits, m * vocab);
        CU_ASSERT(b->ops->score(b->context, nll, best, x, has_targets ? targets : NULL, m, vocab) ==
                  INGOT_OK);
        device_release(b, x);
        for (uint64_t i = 0; i < m; i++) {
            uint32_t top;
            const double wanted = ref_nll(logits + i * vocab, vocab, targets[i], &top);
            CU_ASSERT(best[i] == top);
            CU_ASSERT(has_targets ? fabs(nll[i] - wanted) <= 1e-13 * (1 + wanted) : isnan(nll[i]));
        }
        if (k % DEVICE_THREADS == 0) {
            memcpy(first, nll, m * sizeof *nll);
        }
        CU_ASSERT(memcmp(first, nll, m * sizeof *nll) == 0);
    }
    free(logits);
    free(targets);
    free(best);
    free(nll);
    free(first);
}

/* q is p disturbed by `noise`; 0: the same logits, shifted by a constant. */
static void check_divergence(uint64_t m, uint64_t vocab, double noise) {
    float *p = random_logits(m, vocab), *q = malloc(m * vocab * sizeof *q);
    double *kl = doubles(m), *first = doubles(m);
    for (uint64_t i = 0; i < m * vocab; i++) {
        q[i] = noise == 0 ? p[i] : p[i] + (float)(noise * input_normal());
    }
    for (unsigned k = 0; k < DEVICES * DEVICE_THREADS; k++) {
        const ingot_backend *b = &devices[k / DEVICE_THREADS].backend[k % DEVICE_THREADS];
        if (!devices[k / DEVICE_THREADS].is_open) {
            continue;
        }
        memset(kl, POISON, m * sizeof *kl);
        float *on_p = device_put_floats(b, p, m * vocab),
              *on_q = device_put_floats(b, q, m * vocab);
        CU_ASSERT(b->ops->divergence(b->context, kl, on_p, on_q, m, vocab) == INGOT_OK);
        device_release(b, on_p);
        device_release(b, on_q);
        for (uint64_t i = 0; i < m; i++) {
            double size;
            const double wanted = ref_divergence(p + i * vocab, q + i * vocab, vocab, &size);
            /* two logarithms near 1 or below are what is subtracted at the end */
            const double bound = (1e-14 + 0x1p-52 * sqrt((double)vocab)) * (1 + 2 * size);
            largest_share = fmax(largest_share, fabs(kl[i] - wanted) / bound);
            CU_ASSERT(kl[i] >= 0 && fabs(kl[i] - wanted) <= bound);
        }
        if (k % DEVICE_THREADS == 0) {
            memcpy(first, kl, m * sizeof *kl);
        }
        CU_ASSERT(memcmp(first, kl, m * sizeof *kl) == 0);
    }
    free(p);
    free(q);
    free(kl);
    free(first);
}

typedef struct slope_case {
    const float *p, *q;
    float share;
    uint64_t m, vocab;
} slope_case;

static void run_slope(const ingot_backend *b, const void *argument, float *out) {
    const slope_case *c = argument;
    float *p = device_put_floats(b, c->p, c->m * c->vocab);
    float *q = device_put_floats(b, c->q, c->m * c->vocab);
    CU_ASSERT(b->ops->divergence_backward(b->context, q, p, c->share, c->m, c->vocab) == INGOT_OK);
    device_release(b, p);
    device_take(b, out, q, c->m * c->vocab * sizeof *q);
}

static void softmax_of(double *y, const float *x, uint64_t n) {
    double top = -INFINITY, sum = 0;
    for (uint64_t i = 0; i < n; i++) {
        top = fmax(top, (double)x[i]);
    }
    for (uint64_t i = 0; i < n; i++) {
        sum += y[i] = exp((double)x[i] - top);
    }
    for (uint64_t i = 0; i < n; i++) {
        y[i] /= sum;
    }
}

static void check_slope(uint64_t m, uint64_t vocab) {
    float *p = random_logits(m, vocab), *q = random_logits(m, vocab);
    double *value = doubles(m * vocab), *size = doubles(m * vocab), *other = doubles(vocab);
    const slope_case c = {p, q, 0.37f, m, vocab};
    for (uint64_t row = 0; row < m; row++) {
        double *v = value + row * vocab, *s = size + row * vocab;
        softmax_of(v, q + row * vocab, vocab);
        softmax_of(other, p + row * vocab, vocab);
        for (uint64_t i = 0; i < vocab; i++) {
            /* logits are rounded to their distance from the largest */
            s[i] =
                v[i] * (4 + fabs(log(v[i] + 1e-30))) + other[i] * (4 + fabs(log(other[i] + 1e-30)));
            v[i] = (double)c.share * (v[i] - other[i]);
        }
    }
    device_check(run_slope, &c,
                 &(expected){.what = "divergence_backward",
                             .value = value,
                             .size = size,
                             .count = m * vocab,
                             .tolerance = 4,
                             .floor = 1e-30});
    free(p);
    free(q);
    free(value);
    free(size);
    free(other);
}

static void test_slope(void) {
    for (unsigned i = 0; i < input_rounds(24); i++) {
        check_slope(input_size(129), input_size(600));
    }
    check_slope(3, 32003);
    report_share();
}

static void test_score(void) {
    for (unsigned i = 0; i < input_rounds(24); i++) {
        check_score(input_size(129), input_size(300), i % 3 != 0);
    }
    check_score(5, 32003, true);
}

static void check_distance(uint64_t n) {
    float *a = random_logits(1, n), *b = random_logits(1, n);
    double wanted = 0, first = 0;
    for (uint64_t i = 0; i < n; i++) {
        wanted += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    }
    for (unsigned k = 0; k < DEVICES * DEVICE_THREADS; k++) {
        const ingot_backend *d = &devices[k / DEVICE_THREADS].backend[k % DEVICE_THREADS];
        if (!devices[k / DEVICE_THREADS].is_open) {
            continue;
        }
        double got = NAN;
        float *on_a = device_put_floats(d, a, n), *on_b = device_put_floats(d, b, n);
        CU_ASSERT(d->ops->distance(d->context, &got, on_a, on_b, n) == INGOT_OK);
        device_release(d, on_a);
        device_release(d, on_b);
        CU_ASSERT(fabs(got - wanted) <= 1e-12 * wanted);
        first = k % DEVICE_THREADS == 0 ? got : first;
        CU_ASSERT(got == first);
    }
    free(a);
    free(b);
}

static void test_distance(void) {
    for (unsigned i = 0; i < input_rounds(12); i++) {
        check_distance(input_size(3000));
    }
    check_distance(3 * 65536 + 17);
}

static void test_divergence(void) {
    for (unsigned i = 0; i < input_rounds(24); i++) {
        check_divergence(input_size(129), input_size(300),
                         i % 3 == 0   ? 0
                         : i % 3 == 1 ? 1e-3
                                      : 1.0);
    }
    check_divergence(5, 32003, 0.1);
    report_share();
}

int main(void) {
    input_start("kernels");
    const CU_TestInfo tests[] = {
        {"devices", devices_open}, /* first: the others use them */
        {"embed", test_embed},
        {"norm", test_norm},
        {"rotary", test_rotary},
        {"attention", test_attention},
        {"activate and add", test_elements},
        {"gram", test_gram},
        {"score", test_score},
        {"distance", test_distance},
        {"divergence", test_divergence},
        {"gradient of the divergence", test_slope},
        CU_TEST_INFO_NULL,
    };
    const int result = suite_run("kernels", tests);
    devices_close();
    return result;
}
