/* The forward pass against the FP64 reference of tiny_model.h, for every kind of block the
 * description can express; with and without a cache; what the input hook sees. */
#include "suite_cpu.h"

static const unsigned variants[] = {
    0,
    TINY_TIED | TINY_QKV_BIAS,
    TINY_HEAD_NORMS,
    TINY_WINDOW,
    TINY_LAYER_NORM | TINY_UNGATED | TINY_PARTIAL_ROTARY,
    TINY_POST_NORMS | TINY_NO_PRE_NORMS | TINY_HEAD_NORMS,
    TINY_POST_NORMS | TINY_SCALES | TINY_WINDOW | TINY_QKV_BIAS,
};
#define VARIANTS (sizeof variants / sizeof variants[0])

#define TOLERANCE 2e-5 /* of the largest value: FP32 sums of at most 64 terms, three blocks */

/* Largest difference over the largest expected value. */
static double error_of(const float *got, const double *expected, uint64_t count) {
    double largest = 0, difference = 0;
    for (uint64_t i = 0; i < count; i++) {
        const double gap = fabs((double)got[i] - expected[i]);
        largest = fmax(largest, fabs(expected[i]));
        difference = gap > difference || isnan(gap) ? gap : difference;
    }
    return difference / largest;
}

typedef struct device_model {
    ingot_arena *arena;
    ingot_block block[8];
    ingot_ends ends;
    ingot_workspace *work;
} device_model;

static void load(device_model *d, const tiny_model *t, uint64_t max_tokens) {
    ingot_error error;
    memset(d, 0, sizeof *d);
    CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&d->arena), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(
        ingot_ends_load(&d->ends, &t->model, &t->source, &backend, d->arena, &error), INGOT_OK);
    for (uint64_t i = 0; i < t->model.layers; i++) {
        CU_ASSERT_EQUAL_FATAL(
            ingot_block_load(&d->block[i], &t->model, i, &t->source, &backend, d->arena, &error),
            INGOT_OK);
    }
    CU_ASSERT_EQUAL_FATAL(ingot_workspace_create(&d->work, &t->model, &backend, max_tokens, &error),
                          INGOT_OK);
}

static void unload(device_model *d, const tiny_model *t) {
    for (uint64_t i = 0; i < t->model.layers; i++) {
        ingot_block_release(&d->block[i], &backend);
    }
    ingot_ends_release(&d->ends, &backend);
    ingot_workspace_destroy(d->work);
    ingot_arena_destroy(d->arena);
}

static float *floats(uint64_t count) {
    void *memory = NULL;
    CU_ASSERT_EQUAL_FATAL(backend.ops->alloc(backend.context, &memory, count * sizeof(float)),
                          INGOT_OK);
    return memory;
}

static void drop(float *memory) {
    backend.ops->release(backend.context, memory);
}

static void logits_of(const device_model *d, const tiny_model *t, float *out, const float *x,
                      uint64_t m) {
    float *scratch = floats(m * t->model.hidden);
    float *logits = floats(m * t->model.vocab);
    CU_ASSERT_EQUAL(ingot_ends_logits(&d->ends, &t->model, &backend, logits, x, scratch, m),
                    INGOT_OK);
    CU_ASSERT_EQUAL(
        backend.ops->download(backend.context, out, logits, m * t->model.vocab * sizeof(float)),
        INGOT_OK);
    drop(scratch);
    drop(logits);
}

static void test_logits(void) {
    enum { sequences = 3, length = 11, m = sequences * length };
    for (size_t v = 0; v < VARIANTS; v++) {
        tiny_model *t = tiny_create(variants[v], seed + v);
        device_model d;
        uint32_t ids[m];
        tiny_ids(t, ids, m);
        load(&d, t, 2 * length); /* one call cannot hold all three sequences */
        float *x = floats(m * t->model.hidden);
        CU_ASSERT_EQUAL(ingot_ends_embed(&d.ends, &t->model, &backend, x, ids, m), INGOT_OK);
        for (uint64_t i = 0; i < t->model.layers; i++) {
            CU_ASSERT_EQUAL(ingot_block_forward_batch(&t->model, &backend, &d.block[i], x,
                                                      sequences, length, d.work, NULL, NULL, NULL),
                            INGOT_OK);
        }
        float *got = malloc(m * t->model.vocab * sizeof *got);
        double *expected = malloc(m * t->model.vocab * sizeof *expected);
        logits_of(&d, t, got, x, m);
        for (int s = 0; s < sequences; s++) {
            tiny_ref_logits(t, ids + s * length, length, expected + s * length * t->model.vocab);
        }
        const double error = error_of(got, expected, m * t->model.vocab);
        if (!(error < TOLERANCE)) {
            printf("variant %zu: error %g\n", v, error);
        }
        CU_ASSERT(error < TOLERANCE);
        drop(x);
        free(got);
        free(expected);
        unload(&d, t);
        tiny_destroy(t);
    }
}

/* Two sequences fed in chunks of uneven length through a cache, against the whole at once. */
static void test_cache(void) {
    enum { sequences = 2, length = 13 };
    static const uint64_t chunks[] = {5, 1, 4, 1, 1, 1};
    for (size_t v = 0; v < VARIANTS; v++) {
        tiny_model *t = tiny_create(variants[v], seed + 100 + v);
        const uint64_t hidden = t->model.hidden, vocab = t->model.vocab;
        device_model d;
        ingot_kv_cache cache;
        ingot_error error;
        uint32_t ids[sequences * length];
        tiny_ids(t, ids, sequences * length);
        load(&d, t, sequences * 5);
        CU_ASSERT_EQUAL_FATAL(
            ingot_kv_cache_create(&cache, &t->model, &backend, sequences, length + 2, &error),
            INGOT_OK);
        double *expected = malloc(sequences * length * vocab * sizeof *expected);
        for (int s = 0; s < sequences; s++) {
            tiny_ref_logits(t, ids + s * length, length, expected + s * length * vocab);
        }
        float *x = floats(sequences * 5 * hidden);
        float *got = malloc(sequences * 5 * vocab * sizeof *got);
        double worst = 0;
        for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
            const uint64_t q = chunks[c];
            for (uint64_t s = 0; s < sequences; s++) {
                CU_ASSERT_EQUAL(ingot_ends_embed(&d.ends, &t->model, &backend, x + s * q * hidden,
                                                 ids + s * length + cache.length, q),
                                INGOT_OK);
            }
            for (uint64_t i = 0; i < t->model.layers; i++) {
                CU_ASSERT_EQUAL(ingot_block_forward(&t->model, &backend, &d.block[i], x, sequences,
                                                    q, &cache, d.work, NULL, NULL),
                                INGOT_OK);
            }
            logits_of(&d, t, got, x, sequences * q);
            for (uint64_t s = 0; s < sequences; s++) {
                worst = fmax(worst,
                             error_of(got + s * q * vocab,
                                      expected + (s * length + cache.length) * vocab, q * vocab));
            }
            cache.length += q;
        }
        CU_ASSERT_EQUAL(cache.length, length);
        if (!(worst < TOLERANCE)) {
            printf("variant %zu: error %g\n", v, worst);
        }
        CU_ASSERT(worst < TOLERANCE);
        drop(x);
        free(got);
        free(expected);
        ingot_kv_cache_destroy(&cache, &t->model, &backend);
        unload(&d, t);
        tiny_destroy(t);
    }
}

/* What the hook of one call received. */
typedef struct seen {
    float *x[INGOT_INPUT_COUNT];
    uint64_t m[INGOT_INPUT_COUNT], width[INGOT_INPUT_COUNT];
    int calls;
} seen;

static ingot_status keep_input(void *context, ingot_input input, const float *x, uint64_t m,
                               uint64_t width) {
    seen *s = context;
    s->calls++;
    s->m[input] = m;
    s->width[input] = width;
    s->x[input] = malloc(m * width * sizeof(float));
    return backend.ops->download(backend.context, s->x[input], x, m * width * sizeof(float));
}

static void test_hook(void) {
    enum { length = 9 };
    for (size_t v = 0; v < VARIANTS; v++) {
        tiny_model *t = tiny_create(variants[v], seed + 200 + v);
        const uint64_t hidden = t->model.hidden;
        device_model d;
        load(&d, t, length);
        double(*x)[TINY_MAX] = calloc(length, sizeof *x);
        tiny_inputs *expected = calloc(length, sizeof *expected);
        float host[length * TINY_MAX];
        for (uint64_t i = 0; i < length * hidden; i++) {
            host[i] = tiny_value(t);
            x[i / hidden][i % hidden] = host[i];
        }
        float *device = floats(length * hidden);
        CU_ASSERT_EQUAL(
            backend.ops->upload(backend.context, device, host, length * hidden * sizeof(float)),
            INGOT_OK);
        seen s;
        memset(&s, 0, sizeof s);
        CU_ASSERT_EQUAL(ingot_block_forward(&t->model, &backend, &d.block[1], device, 1, length,
                                            NULL, d.work, keep_input, &s),
                        INGOT_OK);
        tiny_ref_block(t, 1, x, length, expected);
        CU_ASSERT_EQUAL(s.calls, INGOT_INPUT_COUNT);
        const uint64_t widths[] = {hidden, t->model.heads * t->model.head_dim, hidden,
                                   t->model.ffn};
        for (int input = 0; input < INGOT_INPUT_COUNT; input++) {
            CU_ASSERT_EQUAL(s.m[input], length);
            CU_ASSERT_EQUAL_FATAL(s.width[input], widths[input]);
            double largest = 0;
            for (uint64_t i = 0; i < length; i++) {
                largest = fmax(largest, error_of(s.x[input] + i * widths[input], expected[i][input],
                                                 widths[input]));
            }
            CU_ASSERT(largest < TOLERANCE);
            free(s.x[input]);
        }
        drop(device);
        free(x);
        free(expected);
        unload(&d, t);
        tiny_destroy(t);
    }
}

static ingot_status refuse(void *context, ingot_input input, const float *x, uint64_t m,
                           uint64_t width) {
    (void)context, (void)x, (void)m, (void)width;
    return input == INGOT_INPUT_MLP ? INGOT_ERR_INTERRUPTED : INGOT_OK;
}

static void test_refusals(void) {
    tiny_model *t = tiny_create(0, seed);
    device_model d;
    ingot_kv_cache cache;
    ingot_error error;
    load(&d, t, 4);
    float *x = floats(5 * t->model.hidden);
    uint32_t ids[5] = {0, 1, 2, 3, 4};
    CU_ASSERT_EQUAL(ingot_ends_embed(&d.ends, &t->model, &backend, x, ids, 5), INGOT_OK);
    ids[2] = (uint32_t)t->model.vocab;
    CU_ASSERT_EQUAL(ingot_ends_embed(&d.ends, &t->model, &backend, x, ids, 5), INGOT_ERR_INPUT);
    CU_ASSERT_EQUAL(
        ingot_block_forward(&t->model, &backend, &d.block[0], x, 1, 5, NULL, d.work, NULL, NULL),
        INGOT_ERR_USAGE);
    CU_ASSERT_EQUAL(ingot_block_forward_batch(&t->model, &backend, &d.block[0], x, 1, 5, d.work,
                                              NULL, NULL, NULL),
                    INGOT_ERR_USAGE);
    CU_ASSERT_EQUAL_FATAL(ingot_kv_cache_create(&cache, &t->model, &backend, 1, 3, &error),
                          INGOT_OK);
    CU_ASSERT_EQUAL(
        ingot_block_forward(&t->model, &backend, &d.block[0], x, 1, 4, &cache, d.work, NULL, NULL),
        INGOT_ERR_USAGE);
    CU_ASSERT_EQUAL(
        ingot_block_forward(&t->model, &backend, &d.block[0], x, 1, 4, NULL, d.work, refuse, NULL),
        INGOT_ERR_INTERRUPTED);
    ingot_kv_cache_destroy(&cache, &t->model, &backend);
    drop(x);
    unload(&d, t);
    tiny_destroy(t);
}

static void test_bad_weights(void) {
    ingot_block block;
    ingot_ends ends;
    ingot_arena *arena;
    ingot_error error;
    CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&arena), INGOT_OK);
    tiny_model *t = tiny_create(TINY_LAYER_NORM, seed);
    tiny_tensor *up = tiny_find(t, "model.layers.1.mlp.up_proj.weight");
    CU_ASSERT_PTR_NOT_NULL_FATAL(up);
    up->rows--;
    CU_ASSERT_EQUAL(ingot_block_load(&block, &t->model, 1, &t->source, &backend, arena, &error),
                    INGOT_ERR_INPUT);
    CU_ASSERT_STRING_EQUAL(error.tensor, "model.layers.1.mlp.up_proj.weight");
    CU_ASSERT_EQUAL(block.owned_vector_count, 0); /* nothing is left on the device */
    up->rows++;
    snprintf(up->name, sizeof up->name, "gone");
    CU_ASSERT_EQUAL(ingot_block_load(&block, &t->model, 1, &t->source, &backend, arena, &error),
                    INGOT_ERR_NOT_FOUND);
    tiny_tensor *norm = tiny_find(t, "model.norm.weight");
    CU_ASSERT_PTR_NOT_NULL_FATAL(norm);
    norm->cols--;
    CU_ASSERT_EQUAL(ingot_ends_load(&ends, &t->model, &t->source, &backend, arena, &error),
                    INGOT_ERR_INPUT);
    CU_ASSERT_STRING_EQUAL(error.tensor, "model.norm.weight");
    norm->cols++;
    tiny_destroy(t);
    ingot_arena_destroy(arena);
}

/* A tied model whose source stores a head of its own uses it. */
static void test_own_head(void) {
    tiny_model *t = tiny_create(TINY_TIED, seed);
    ingot_ends ends;
    ingot_arena *arena;
    ingot_error error;
    CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&arena), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_ends_load(&ends, &t->model, &t->source, &backend, arena, &error),
                          INGOT_OK);
    CU_ASSERT_PTR_EQUAL(ends.head.data, ends.embed.data);
    ingot_ends_release(&ends, &backend);
    tiny_add(t, t->model.head_name, 2, t->model.vocab, t->model.hidden, 0, 1);
    CU_ASSERT_EQUAL_FATAL(ingot_ends_load(&ends, &t->model, &t->source, &backend, arena, &error),
                          INGOT_OK);
    CU_ASSERT_PTR_NOT_EQUAL(ends.head.data, ends.embed.data);
    ingot_ends_release(&ends, &backend);
    CU_ASSERT_EQUAL_FATAL(ingot_ends_load_part(&ends, INGOT_ENDS_HEAD, &t->model, &t->source,
                                               &backend, arena, &error),
                          INGOT_OK);
    CU_ASSERT_PTR_NULL(ends.embed.data);
    CU_ASSERT_PTR_NOT_NULL(ends.head.data);
    ingot_ends_release(&ends, &backend);
    ingot_arena_destroy(arena);
    tiny_destroy(t);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"logits against FP64, every kind of block", test_logits},
        {"the same through a cache, in chunks", test_cache},
        {"what the input hook sees", test_hook},
        {"too many tokens, ids beyond the table, a hook that stops", test_refusals},
        {"missing and misshapen tensors", test_bad_weights},
        {"a tied model with a head of its own", test_own_head},
        CU_TEST_INFO_NULL,
    };
    return suite_run_cpu("forward", tests);
}
