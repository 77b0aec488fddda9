/* The engine of the CUDA backend (kernels/engine.h) against decoding operation by operation on the
 * CPU backend: random models of every kind it covers, dense and quantized, prompts around the sizes
 * at which the way of computing changes, batches, windows, sampling, containers; and the text of
 * real models.  Skipped, loudly, without a device.  INGOT_TEST_SMALL: every kind, but fewer and
 * shorter prompts, and attention of the kinds that have a kernel of their own, for
 * compute-sanitizer. */
#include "packed_engine.h"

#include "calib/decode.h"
#include "calib/text_model.h"

#include <unistd.h>

static ingot_backend capped; /* cpu, whose attention caps scores at softcap */
static bool is_small;

/* Keys, values and inputs of products are rounded to binary16, the CPU rounds nothing: of the norm
 * of the logits, for models of three blocks. */
#define TOLERANCE 1e-2

#define MOST 520 /* tokens of a prompt */

/* ---- a reference ----------------------------------------------------------------
 */

/* Models of calib/ cap no scores. */
static ingot_status capped_attention(void *context, float *out, const float *q, const float *k,
                                     const float *v, const ingot_attention *shape) {
    ingot_attention own = *shape;
    own.softcap = softcap;
    return cpu.ops->attention(context, out, q, k, v, &own);
}

static ingot_decoder *open_reference(const packed_model *p, uint64_t capacity) {
    ingot_decoder *decoder;
    ingot_error error;
    CU_ASSERT_EQUAL_FATAL(ingot_decoder_create(&decoder, &p->tiny->model, &p->source, &capped,
                                               capacity, NULL, &error),
                          INGOT_OK);
    return decoder;
}

static double distance(const float *a, const float *b, uint64_t n) {
    double error = 0, norm = 0;
    for (uint64_t i = 0; i < n; i++) {
        error += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return sqrt(error / norm); /* NaN where anything is */
}

static uint32_t *random_ids(tiny_model *t, uint64_t count) {
    uint32_t *ids = malloc(count * sizeof *ids);
    tiny_ids(t, ids, count);
    return ids;
}

static double worst_seen;

static void check_near(const float *a, const float *b, uint64_t n, const char *what,
                       uint64_t number) {
    const double error = distance(a, b, n);
    worst_seen = fmax(worst_seen, error);
    if (!(error < TOLERANCE)) {
        printf("\n    %s %llu: %g", what, (unsigned long long)number, error);
    }
    CU_ASSERT(error < TOLERANCE);
}

/* Prompts of several lengths from `least` to `most`, and a few tokens one by one behind each. */
static void check_prompts_from(const packed_model *p, const char *what, uint64_t least,
                               uint64_t most) {
    static const uint64_t lengths[] = {1, 7, 33, 64, 65, 100, 300, MOST};
    tiny_model *t = p->tiny;
    const uint64_t vocab = t->model.vocab, capacity = MOST + 10;
    ingot_engine *engine = open_engine(p, 2, capacity);
    ingot_decoder *reference = open_reference(p, capacity);
    float *got = malloc(vocab * sizeof *got), *expected = malloc(vocab * sizeof *expected);
    uint32_t *ids = random_ids(t, capacity);
    ingot_error error;
    for (unsigned i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        const uint64_t n = lengths[i], s = i % 2;
        if (n < least || n > most || (is_small && n != 7 && n != 65)) {
            continue;
        }
        CU_ASSERT_EQUAL(cuda.ops->engine->rewind(engine, s), INGOT_OK);
        ingot_decoder_rewind(reference);
        memset(got, 0xff, vocab * sizeof *got);
        CU_ASSERT_EQUAL(cuda.ops->engine->feed(engine, s, ids, n, got), INGOT_OK);
        CU_ASSERT_EQUAL(ingot_decoder_feed(reference, ids, n, expected, &error), INGOT_OK);
        check_near(got, expected, vocab, what, n);
        for (uint64_t k = n; k < n + (is_small ? 1 : 3); k++) {
            CU_ASSERT_EQUAL(cuda.ops->engine->feed(engine, s, ids + k, 1, got), INGOT_OK);
            CU_ASSERT_EQUAL(ingot_decoder_feed(reference, ids + k, 1, expected, &error), INGOT_OK);
            check_near(got, expected, vocab, what, k + 1);
        }
    }
    cuda.ops->engine->destroy(engine);
    ingot_decoder_destroy(reference);
    free(ids);
    free(got);
    free(expected);
}

static void check_prompts(const packed_model *p, const char *what, uint64_t most) {
    check_prompts_from(p, what, 1, most);
}

static const tiny_shape usual = {64, 96, 6, 2, 16, 203};
/* Several groups of 128 in a row, of which the last is not whole. */
static const tiny_shape wide = {256, 416, 6, 2, 64, 203}, small_wide = {128, 160, 4, 1, 32, 203};

static packed_model pack_wide(unsigned flags, int storage) {
    return pack_model(flags, is_small ? &small_wide : &wide, storage);
}

/* Beside the flags of tiny_model.h.  Examples stand for the others where a run is small: each
 * kernel of attention has one. */
enum { CAPPED = 1 << 20, PLUS_ONE = 1 << 21, EXAMPLE = 1 << 22 };

static const struct {
    const char *name;
    unsigned flags;
    tiny_shape shape;
} kinds[] = {
    {"plain", EXAMPLE, {64, 96, 6, 2, 16, 203}},
    {"qwen2: heads of 128, biases of q, k, v", EXAMPLE | TINY_QKV_BIAS, {64, 96, 7, 1, 128, 203}},
    {"no groups, biases of q, k, v", TINY_QKV_BIAS, {64, 96, 4, 4, 16, 203}},
    {"qwen3: norms of heads, tied", TINY_HEAD_NORMS | TINY_TIED, {64, 96, 8, 2, 32, 203}},
    {"mistral: windows", TINY_WINDOW, {64, 96, 6, 2, 16, 203}},
    {"windows, norms, factors",
     TINY_WINDOW | TINY_HEAD_NORMS | TINY_SCALES,
     {64, 96, 4, 1, 64, 203}},
    {"part of the head turns", TINY_PARTIAL_ROTARY, {64, 96, 8, 1, 128, 203}},
    {"no norms in front", TINY_NO_PRE_NORMS, {64, 96, 16, 2, 8, 1000}},
    {"wide groups", EXAMPLE, {72, 88, 20, 1, 40, 203}},
    {"odd sizes", TINY_HEAD_NORMS, {44, 52, 6, 2, 8, 51}},
    {"llama: many key heads of 128", 0, {64, 96, 16, 8, 128, 203}},
    {"groups of 16, norms of heads of 128", TINY_HEAD_NORMS, {64, 96, 16, 1, 128, 203}},
    {"wide groups of heads of 128", EXAMPLE | TINY_QKV_BIAS, {64, 96, 20, 1, 128, 203}},
    {"gemma: windows, capped scores", TINY_WINDOW | CAPPED | PLUS_ONE, {64, 96, 8, 4, 96, 203}},
    {"capped scores, no groups",
     TINY_HEAD_NORMS | TINY_PARTIAL_ROTARY | CAPPED,
     {64, 96, 3, 3, 64, 203}},
};
#define KINDS (sizeof kinds / sizeof *kinds)

static bool is_example(unsigned kind) {
    return (kinds[kind].flags & EXAMPLE) != 0;
}

static packed_model pack_kind(unsigned kind, int storage) {
    const unsigned flags = kinds[kind].flags;
    packed_model p = pack_model(flags, &kinds[kind].shape, storage);
    p.tiny->model.norm = (flags & PLUS_ONE) != 0 ? INGOT_NORM_RMS_PLUS_ONE : INGOT_NORM_RMS;
    softcap = (flags & CAPPED) != 0 ? 5 : 0;
    return p;
}

static void unpack_model(packed_model *p) {
    packed_destroy(p);
    softcap = 0;
}

static void test_kinds(void) {
    for (unsigned i = 0; i < KINDS; i++) {
        packed_model p = pack_kind(i, DENSE);
        bind(&p);
        check_prompts_from(&p, kinds[i].name, is_small && i > 1 ? 65 : 1, MOST);
        unpack_model(&p);
    }
    printf("worst %.2g ", worst_seen);
}

static void test_storages(void) {
    static const int small[] = {HALVES, W4, W4_STORED, W3_LONG, W6, MIXED, OUTLIERS, SHORT};
    const int count = is_small ? (int)(sizeof small / sizeof *small) : STORAGES - HALVES;
    for (int i = 0; i < count; i++) {
        const int storage = is_small ? small[i] : HALVES + i;
        const bool is_long = storage == W4 || storage == MIXED || storage == SHORT;
        packed_model p = pack_wide(TINY_QKV_BIAS, storage);
        bind(&p);
        if (is_small) { /* by packed weights, or by cuBLAS */
            check_prompts_from(&p, storages[storage].name, i % 2 != 0 ? 1 : 65,
                               i % 2 != 0 ? 7 : 65);
        } else {
            check_prompts(&p, storages[storage].name, is_long ? MOST : 100);
        }
        packed_destroy(&p);
    }
    printf("worst %.2g ", worst_seen);
}

/* Matrices so large that prompts of more rows than a tile of x has read them packed. */
static void test_large_matrices(void) {
    static const tiny_shape large = {2048, 8192, 4, 1, 64, 203};
    if (is_small) {
        return;
    }
    packed_model p = pack_model(TINY_QKV_BIAS, &large, W4_LONG);
    bind(&p);
    check_prompts(&p, "large matrices", 100);
    packed_destroy(&p);
    printf("worst %.2g ", worst_seen);
}

/* ---- many sequences ---------------------------------------------------------------------------
 */

#define STEPS 40

/* Sequences of different lengths, `least` tokens and a few, each against a decoder of its own that
 * is given the same ids. */
static void check_batch(const packed_model *p, uint64_t sequences, uint64_t least, int steps,
                        const char *what) {
    tiny_model *t = p->tiny;
    const ingot_engine_ops *ops = cuda.ops->engine;
    const uint64_t vocab = t->model.vocab, capacity = least + 80 + STEPS;
    ingot_engine *engine = open_engine(p, sequences, capacity);
    ingot_decoder **reference = malloc(sequences * sizeof *reference);
    float *got = malloc(sequences * vocab * sizeof *got);
    float *expected = malloc(sequences * vocab * sizeof *expected);
    uint32_t *ids = malloc(sequences * sizeof *ids);
    uint64_t states[64] = {0};
    ingot_error error;
    for (uint64_t s = 0; s < sequences; s++) {
        const uint64_t n = least + 1 + s * 37 % (is_small ? 20 : 80);
        const uint64_t last = n > 3 ? 3 : 0; /* by themselves, behind many keys */
        uint32_t *prompt = random_ids(t, n);
        reference[s] = open_reference(p, capacity);
        CU_ASSERT_EQUAL(ops->feed(engine, s, prompt, n - last, NULL), INGOT_OK);
        if (last != 0) {
            CU_ASSERT_EQUAL(ops->feed(engine, s, prompt + n - last, last, NULL), INGOT_OK);
        }
        CU_ASSERT_EQUAL(ingot_decoder_feed(reference[s], prompt, n, expected + s * vocab, &error),
                        INGOT_OK);
        free(prompt);
    }
    CU_ASSERT_EQUAL(ops->sampler(engine, 0, states), INGOT_OK);
    for (int step = 0; step < (is_small ? 3 : steps); step++) {
        CU_ASSERT_EQUAL_FATAL(ops->next(engine, 0, ids), INGOT_OK);
        CU_ASSERT_EQUAL_FATAL(ops->logits(engine, got), INGOT_OK);
        for (uint64_t s = 0; s < sequences; s++) {
            ingot_sampler greedy = {0};
            check_near(got + s * vocab, expected + s * vocab, vocab, what, s);
            CU_ASSERT_EQUAL(ids[s], ingot_sampler_next(&greedy, got + s * vocab, vocab));
            CU_ASSERT_EQUAL(
                ingot_decoder_feed(reference[s], &ids[s], 1, expected + s * vocab, &error),
                INGOT_OK);
        }
    }
    for (uint64_t s = 0; s < sequences; s++) {
        ingot_decoder_destroy(reference[s]);
    }
    ops->destroy(engine);
    free(reference);
    free(got);
    free(expected);
    free(ids);
}

static void test_batches(void) {
    static const struct {
        uint64_t sequences;
        int storage;
        unsigned flags;
        int steps;
    } cases[] = {{3, MIXED, TINY_QKV_BIAS, 8},
                 {5, OUTLIERS, 0, 4},
                 {1, W4, TINY_WINDOW, STEPS},
                 {2, W4_STORED, TINY_QKV_BIAS, 4},
                 {2, W6, TINY_HEAD_NORMS, 4},
                 {3, W4_ROWS, 0, 4},
                 {4, W8_STORED, TINY_TIED, 4},
                 {5, W2, 0, 4},
                 {6, W5, TINY_HEAD_NORMS, 4},
                 {7, W7, TINY_NO_PRE_NORMS, 4},
                 {8, W3_LONG, TINY_WINDOW, 4},
                 {8, SHORT_OUTLIERS, 0, 4},
                 {2, W8, 0, 4},
                 {16, SHORT, TINY_QKV_BIAS, 8},
                 {33, W4_STORED, 0, 4},
                 {64, MIXED, 0, 8}};
    for (unsigned i = 0; i < (is_small ? 1 : sizeof cases / sizeof *cases); i++) {
        packed_model p = cases[i].sequences > 8
                             ? pack_model(cases[i].flags, &usual, cases[i].storage)
                             : pack_wide(cases[i].flags, cases[i].storage);
        bind(&p);
        check_batch(&p, cases[i].sequences, 0, cases[i].steps, storages[cases[i].storage].name);
        packed_destroy(&p);
    }
    printf("worst %.2g ", worst_seen);
}

/* Rows of gate and up that do not end with eight values, where the two are stored in different
 * ways. */
static void test_odd_widths(void) {
    static const tiny_shape shapes[] = {{64, 172, 8, 4, 8, 203}, {44, 51, 6, 2, 8, 51}};
    for (int i = 0; i < (is_small ? 1 : 2); i++) {
        packed_model p = pack_model(TINY_QKV_BIAS, &shapes[i], i == 0 ? MIXED : SHORT);
        bind(&p);
        check_prompts(&p, "odd widths", is_small ? 7 : 100);
        for (uint64_t sequences = 1; sequences <= 33 && !is_small; sequences += 16) {
            check_batch(&p, sequences, 0, 3, "odd widths, sequence");
        }
        packed_destroy(&p);
    }
}

static void test_large_weights(void) {
    static const int cases[] = {DENSE, HALVES, SHORT, SHORT_OUTLIERS};
    for (unsigned i = 0; i < (is_small ? 0 : 4); i++) {
        const float large = i == 3 ? 5000 : 1000;
        packed_model p = pack_model(0, &usual, cases[i]);
        enlarge(&p, "model.layers.0.post_attention_layernorm.weight",
                "model.layers.0.mlp.up_proj.weight", large);
        enlarge(&p, "model.layers.1.input_layernorm.weight",
                "model.layers.1.self_attn.v_proj.weight", large);
        enlarge(&p, "model.norm.weight", "lm_head.weight", large);
        bind(&p);
        check_prompts_from(&p, "large weights", 33, 100);
        check_batch(&p, 12, 0, 3, "large weights, sequence");
        packed_destroy(&p);
    }
}

/* Sequences of which products hand each other what they read (kernels/cuda/product.h). */
static void test_handed(void) {
    static const tiny_shape shape = {256, 512, 8, 2, 64, 204};
    static const struct {
        uint64_t sequences;
        int storage;
        unsigned flags;
    } cases[] = {{9, W4_LONG, 0},
                 {16, W4_LONG, TINY_QKV_BIAS | PLUS_ONE},
                 {20, W3_LONG, TINY_TIED},
                 {64, W4_LONG, TINY_WINDOW},
                 {12, W8_LONG, TINY_HEAD_NORMS},
                 {33, MIXED_LONG, 0},
                 {10, OUTLIERS, 0}};
    for (unsigned i = 0; i < (is_small ? 1 : sizeof cases / sizeof *cases); i++) {
        packed_model p = pack_model(cases[i].flags, &shape, cases[i].storage);
        p.tiny->model.norm =
            (cases[i].flags & PLUS_ONE) != 0 ? INGOT_NORM_RMS_PLUS_ONE : INGOT_NORM_RMS;
        bind(&p);
        check_batch(&p, cases[i].sequences, 0, 8, "sequence");
        if (!is_small) {
            check_prompts(&p, "prompt", 65);
        }
        packed_destroy(&p);
    }
    printf("worst %.2g ", worst_seen);
}

/* Sequences, and their tokens before the first that is compared: by both it is decided which
 * blocks share the keys of a tile.  Lengths differ and grow, from one way to the next. */
typedef struct batch {
    uint64_t sequences, least;
} batch;
static const batch batches[] = {
    {3, 110},  /* one block, then a cluster of two */
    {2, 1005}, /* a cluster, then two that meet in device memory; one where key heads are many */
    {18, 245}, /* no clusters: one block, then two that meet in device memory */
    {1, 2010}, /* two clusters, then three */
    {3, 470},  /* clusters of five, of which four have keys at first */
    {2, 0},
};
/* Where a run is small, under racecheck above all, for which every launch is long. */
static const batch small_batches[] = {
    {2, 110},  /* one block; a cluster of two */
    {1, 1022}, /* a cluster, then two that meet in device memory: of the second kind alone */
};

/* Scores spread so far that a few keys have most of the weight: one key among a thousand, or a part
 * of the sums a few percent too large, is seen in the logits then.  Two blocks, since each
 * multiplies what rounding moved in the one before. */
static void spread_scores(ingot_model *m) {
    m->layers = 2;
    m->attention_scale = 2.5f / sqrtf((float)m->head_dim);
}

/* Attention of a token, in every kind of model. */
static void test_attention(void) {
    for (unsigned i = 0; i < KINDS; i++) {
        const batch *from = is_small ? small_batches : batches;
        const unsigned count = !is_small        ? sizeof batches / sizeof *batches
                               : !is_example(i) ? 0
                               : i == 1         ? 2
                                                : 1;
        for (unsigned j = 0; j < count; j++) {
            packed_model p = pack_kind(i, W4);
            bind(&p);
            spread_scores(&p.tiny->model);
            for (uint64_t n = 0; n < p.tiny->model.layers; n++) {
                p.tiny->window[n] *= 1 + from[j].least / 6;
            }
            check_batch(&p, from[j].sequences, from[j].least, STEPS, kinds[i].name);
            unpack_model(&p);
        }
    }
    printf("worst %.2g ", worst_seen);
}

/* ids[count][sequences] after the prompt, `ahead` calls ahead. */
static void run_tokens(ingot_engine *engine, uint64_t sequences, double temperature,
                       const uint32_t *prompt, uint64_t length, uint64_t ahead, uint32_t *ids,
                       uint64_t count) {
    const ingot_engine_ops *ops = cuda.ops->engine;
    uint64_t states[64];
    for (uint64_t s = 0; s < sequences; s++) {
        states[s] = seed + s;
        CU_ASSERT_EQUAL_FATAL(ops->rewind(engine, s), INGOT_OK);
        CU_ASSERT_EQUAL_FATAL(ops->feed(engine, s, prompt + s, length, NULL), INGOT_OK);
    }
    CU_ASSERT_EQUAL_FATAL(ops->sampler(engine, temperature, states), INGOT_OK);
    for (uint64_t i = 0; i < count; i++) {
        CU_ASSERT_EQUAL_FATAL(ops->next(engine, ahead, ids + i * sequences), INGOT_OK);
    }
}

/* Working ahead changes nothing, a full sequence is said to be full, drawing is that of the
 * sampler. */
static void test_tokens(void) {
    enum { sequences = 3, prompt = 20, most = 60 };
    const uint64_t count = is_small ? 4 : most;
    const ingot_engine_ops *ops = cuda.ops->engine;
    packed_model p = pack_model(0, &usual, W4);
    bind(&p);
    const uint64_t vocab = p.tiny->model.vocab;
    ingot_engine *engine = open_engine(&p, sequences, prompt + count - 1);
    uint32_t *ids = random_ids(p.tiny, prompt + sequences);
    uint32_t first[most * sequences], second[most * sequences];
    float *logits = malloc(sequences * vocab * sizeof *logits);
    CU_ASSERT_EQUAL(ops->next(engine, 0, first), INGOT_ERR_USAGE); /* nothing was fed */
    for (int drawn = is_small ? 1 : 0; drawn < 2; drawn++) { /* batches have the greedy ones */
        run_tokens(engine, sequences, drawn ? 0.8 : 0, ids, prompt, 0, first, count);
        CU_ASSERT_EQUAL(ops->next(engine, 0, second), INGOT_ERR_USAGE);
        run_tokens(engine, sequences, drawn ? 0.8 : 0, ids, prompt, 1000, second, count);
        CU_ASSERT_EQUAL(memcmp(first, second, count * sequences * sizeof *first), 0);
    }
    ingot_sampler host[sequences];
    run_tokens(engine, sequences, 1.3, ids, prompt, 0, first, 0);
    for (int s = 0; s < sequences; s++) {
        host[s] = (ingot_sampler){.temperature = 1.3, .state = seed + (uint64_t)s};
    }
    for (uint64_t i = 0; i < (is_small ? 3 : 40); i++) {
        CU_ASSERT_EQUAL_FATAL(ops->next(engine, 0, first), INGOT_OK);
        CU_ASSERT_EQUAL_FATAL(ops->logits(engine, logits), INGOT_OK);
        for (uint64_t s = 0; s < sequences; s++) {
            CU_ASSERT_EQUAL(first[s], ingot_sampler_next(&host[s], logits + s * vocab, vocab));
        }
    }
    uint32_t wrong = (uint32_t)vocab;
    CU_ASSERT_EQUAL(ops->feed(engine, 0, &wrong, 1, NULL), INGOT_ERR_INPUT);
    CU_ASSERT_EQUAL(ops->feed(engine, 0, ids, 1000, NULL), INGOT_ERR_USAGE);
    ops->destroy(engine);
    free(logits);
    free(ids);
    packed_destroy(&p);
}

/* A vocabulary of many blocks: drawing still is that of the sampler, and logits that are no
 * numbers are said to be none. */
static void test_large_vocabulary(void) {
    const ingot_engine_ops *ops = cuda.ops->engine;
    const tiny_shape shape = {64, 96, 6, 2, 16, is_small ? 5001 : 150001};
    packed_model p = pack_model(0, &shape, DENSE);
    bind(&p);
    const uint64_t vocab = shape.vocab;
    ingot_engine *engine = open_engine(&p, 2, 64);
    float *logits = malloc(2 * vocab * sizeof *logits);
    const uint32_t prompt[] = {5, 4999, 77};
    const uint64_t states[2] = {seed, seed + 1};
    ingot_sampler host[2] = {{.temperature = 3, .state = states[0]},
                             {.temperature = 3, .state = states[1]}};
    uint32_t ids[2];
    for (uint64_t s = 0; s < 2; s++) {
        CU_ASSERT_EQUAL_FATAL(ops->feed(engine, s, prompt + s, 2, NULL), INGOT_OK);
    }
    CU_ASSERT_EQUAL_FATAL(ops->sampler(engine, 3, states), INGOT_OK);
    for (int i = 0; i < (is_small ? 3 : 20); i++) {
        CU_ASSERT_EQUAL_FATAL(ops->next(engine, 0, ids), INGOT_OK);
        CU_ASSERT_EQUAL_FATAL(ops->logits(engine, logits), INGOT_OK);
        for (uint64_t s = 0; s < 2; s++) {
            CU_ASSERT_EQUAL(ids[s], ingot_sampler_next(&host[s], logits + s * vocab, vocab));
        }
    }
    ops->destroy(engine);
    tiny_find(p.tiny, "model.norm.weight")->data[3] = NAN;
    engine = open_engine(&p, 1, 64);
    CU_ASSERT_EQUAL(ops->feed(engine, 0, prompt, 2, logits), INGOT_ERR_NUMERIC);
    CU_ASSERT_EQUAL(ops->sampler(engine, 0, states), INGOT_OK);
    CU_ASSERT_EQUAL(ops->next(engine, 4, ids), INGOT_ERR_NUMERIC);
    ops->destroy(engine);
    free(logits);
    packed_destroy(&p);
}

/* Draws go on where they were, however many were made ahead of what was asked for. */
static void test_draws_go_on(void) {
    enum { sequences = 2, prompt = 5, texts = 3, most = 6 };
    static const uint64_t ahead[2] = {0, 9};
    const uint64_t states[sequences] = {seed, seed + 1};
    const ingot_engine_ops *ops = cuda.ops->engine;
    packed_model p = pack_model(0, &usual, W4);
    bind(&p);
    uint32_t *ids = random_ids(p.tiny, prompt + sequences);
    uint32_t out[2][texts][most][sequences];
    for (int i = 0; i < 2; i++) {
        ingot_engine *engine = open_engine(&p, sequences, 64);
        CU_ASSERT_EQUAL_FATAL(ops->sampler(engine, 3, states), INGOT_OK);
        for (int text = 0; text < texts; text++) {
            for (uint64_t s = 0; s < sequences; s++) {
                CU_ASSERT_EQUAL_FATAL(ops->rewind(engine, s), INGOT_OK);
                CU_ASSERT_EQUAL_FATAL(ops->feed(engine, s, ids + s, prompt, NULL), INGOT_OK);
            }
            for (int at = 0; at < most; at++) {
                CU_ASSERT_EQUAL_FATAL(ops->next(engine, ahead[i], out[i][text][at]), INGOT_OK);
            }
        }
        ops->destroy(engine);
    }
    CU_ASSERT_EQUAL(memcmp(out[0], out[1], sizeof out[0]), 0);
    CU_ASSERT(memcmp(out[0][0], out[0][1], sizeof out[0][0]) != 0);
    free(ids);
    packed_destroy(&p);
}

/* What a call may not ask for is refused, and changes nothing. */
static void test_refused(void) {
    const ingot_engine_ops *ops = cuda.ops->engine;
    const uint64_t states[2] = {1, 2};
    const double temperatures[] = {-1, NAN, INFINITY, -INFINITY};
    const uint32_t prompt[] = {5, 49, 77};
    packed_model p = pack_model(0, &usual, W4);
    bind(&p);
    ingot_engine *engine = open_engine(&p, 2, 3);
    uint32_t ids[2];
    CU_ASSERT_EQUAL(ops->feed(engine, 0, prompt, 3, NULL), INGOT_OK);
    CU_ASSERT_EQUAL(ops->feed(engine, 1, prompt, 2, NULL), INGOT_OK);
    CU_ASSERT_EQUAL(ops->rewind(engine, 2), INGOT_ERR_USAGE);
    CU_ASSERT_EQUAL(ops->rewind(engine, UINT64_MAX), INGOT_ERR_USAGE);
    CU_ASSERT_EQUAL(ops->feed(engine, 2, prompt, 1, NULL), INGOT_ERR_USAGE);
    CU_ASSERT_EQUAL(ops->feed(engine, UINT64_MAX, prompt, 1, NULL), INGOT_ERR_USAGE);
    CU_ASSERT_EQUAL(ops->feed(engine, 0, prompt, 1, NULL), INGOT_ERR_USAGE);
    CU_ASSERT_EQUAL(ops->feed(engine, 1, prompt, UINT64_MAX, NULL), INGOT_ERR_USAGE);
    for (unsigned i = 0; i < sizeof temperatures / sizeof *temperatures; i++) {
        CU_ASSERT_EQUAL(ops->sampler(engine, temperatures[i], states), INGOT_ERR_USAGE);
    }
    CU_ASSERT_EQUAL(ops->next(engine, 0, ids), INGOT_OK); /* both are still fed */
    ops->destroy(engine);
    packed_destroy(&p);
}

/* Matrices of other shapes than the model's numbers say are refused before anything is loaded. */
static void test_shapes(void) {
    packed_model p = pack_model(0, &usual, W4);
    bind(&p);
    ingot_arena *arena;
    ingot_engine_model model;
    ingot_engine *engine = NULL;
    ingot_error error = {0};
    const ingot_engine_options options = {.sequences = 1, .capacity = 10};
    CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&arena), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(
        ingot_engine_model_create(&model, &p.tiny->model, &p.source, arena, NULL, &error),
        INGOT_OK);
    model.ffn += 8;
    CU_ASSERT_EQUAL(cuda.ops->engine->create(cuda.context, &engine, &model, &options, NULL, &error),
                    INGOT_ERR_INPUT);
    CU_ASSERT_PTR_NULL(engine);
    CU_ASSERT_STRING_EQUAL(error.tensor, "layer 0, GATE");
    ingot_arena_destroy(arena);
    packed_destroy(&p);
}

/* A token whose embedding is no number leaves nothing behind that outlives it. */
static void test_rewind_forgets(void) {
    enum { count = 20 };
    const ingot_engine_ops *ops = cuda.ops->engine;
    packed_model p = pack_model(0, &usual, DENSE);
    bind(&p);
    tiny_find(p.tiny, p.tiny->model.embed_name)->data[7 * usual.hidden] = NAN;
    uint32_t bad[count];
    const uint32_t good[] = {5, 49, 77};
    float expected[203], got[203];
    for (int i = 0; i < count; i++) {
        bad[i] = 7;
    }
    ingot_engine *engine = open_engine(&p, 2, 64);
    for (uint64_t s = 0; s < 2; s++) {
        CU_ASSERT_EQUAL(ops->feed(engine, s, good, 3, expected), INGOT_OK);
        CU_ASSERT_EQUAL(ops->feed(engine, s, bad, count, got), INGOT_ERR_NUMERIC);
        CU_ASSERT_EQUAL(ops->rewind(engine, s), INGOT_OK);
        CU_ASSERT_EQUAL(ops->feed(engine, s, good, 3, got), INGOT_OK);
        CU_ASSERT_EQUAL(memcmp(got, expected, sizeof got), 0);
    }
    ops->destroy(engine);
    packed_destroy(&p);
}

/* ---- containers -------------------------------------------------------------------------------
 */

static ingot_status load_logits(const packed_model *p, const char *path, bool verify,
                                const uint32_t *ids, uint64_t count, float *logits) {
    ingot_container *container;
    ingot_error error;
    ingot_weight_source source;
    ingot_decoder *decoder;
    CU_ASSERT_EQUAL_FATAL(ingot_open(&container, path, &error), INGOT_OK);
    ingot_weight_source_from_container(&source, container, verify);
    ingot_status status =
        ingot_decoder_create(&decoder, &p->tiny->model, &source, &cuda, 64, NULL, &error);
    if (status == INGOT_OK) {
        status = ingot_decoder_feed(decoder, ids, count, logits, &error);
        ingot_decoder_destroy(decoder);
    }
    ingot_close(container);
    return status;
}

/* A container gives the bits that the same tensors in host memory give; digests are checked. */
static void test_containers(void) {
    static const int kept[] = {W4, W4_STORED, OUTLIERS, MIXED};
    char path[64];
    snprintf(path, sizeof path, "/tmp/ingot-engine-%d.ingot", (int)getpid());
    for (int i = 0; i < (is_small ? 2 : 4); i++) {
        packed_model p = pack_model(TINY_QKV_BIAS, &usual, kept[i]);
        bind(&p);
        uint32_t *ids = random_ids(p.tiny, 30);
        float host[203], stored[203];
        ingot_decoder *decoder;
        ingot_error error;
        CU_ASSERT_EQUAL_FATAL(
            ingot_decoder_create(&decoder, &p.tiny->model, &p.source, &cuda, 64, NULL, &error),
            INGOT_OK);
        CU_ASSERT_EQUAL(ingot_decoder_feed(decoder, ids, 30, host, &error), INGOT_OK);
        ingot_decoder_destroy(decoder);
        write_container(&p, path, i % 2 == 1);
        CU_ASSERT_EQUAL(load_logits(&p, path, true, ids, 30, stored), INGOT_OK);
        CU_ASSERT_EQUAL(memcmp(host, stored, sizeof host), 0);
        CU_ASSERT_EQUAL(load_logits(&p, path, false, ids, 30, stored), INGOT_OK);
        CU_ASSERT_EQUAL(memcmp(host, stored, sizeof host), 0);
        if (i == 0) {
            damage(path, "model.layers.1.mlp.up_proj.weight");
            CU_ASSERT_EQUAL(load_logits(&p, path, true, ids, 30, stored), INGOT_BAD_CHUNK_DIGEST);
            CU_ASSERT_EQUAL(load_logits(&p, path, false, ids, 30, stored), INGOT_OK);
            CU_ASSERT(memcmp(host, stored, sizeof host) != 0);
        }
        CU_ASSERT_EQUAL(unlink(path), 0);
        free(ids);
        packed_destroy(&p);
    }
}

/* ---- text of real models ----------------------------------------------------------------------
 */

#define TEXT_TOKENS 256

static uint64_t text_tokens(const ingot_text_model *from, const ingot_backend *backend,
                            const char *prompt, uint32_t *out, ingot_decoder **decoder,
                            uint32_t **ids, uint64_t *count) {
    ingot_error error;
    ingot_generation g;
    ingot_sampler greedy = {0};
    CU_ASSERT_EQUAL_FATAL(
        ingot_tokenizer_encode(from->tokenizer, prompt, strlen(prompt), ids, count, &error),
        INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_decoder_create(decoder, &from->model, &from->source, backend,
                                               *count + TEXT_TOKENS, NULL, &error),
                          INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(
        ingot_generate(&g, *decoder, &greedy, *ids, *count, TEXT_TOKENS, NULL, NULL, &error),
        INGOT_OK);
    memcpy(out, g.ids, g.count * sizeof *out);
    const uint64_t made = g.count;
    ingot_generation_free(&g);
    return made;
}

/* The greedy text is the CPU's until its two best logits are closer than what rounding moves. */
static void check_text(const char *path, const char *prompt) {
    ingot_text_model from;
    ingot_error error;
    ingot_decoder *on_cpu, *on_cuda;
    uint32_t expected[TEXT_TOKENS], got[TEXT_TOKENS], *ids, *again;
    uint64_t count, at = 0;
    CU_ASSERT_EQUAL_FATAL(ingot_text_model_open(&from, path, true, &error), INGOT_OK);
    const uint64_t n = text_tokens(&from, &cpu, prompt, expected, &on_cpu, &ids, &count);
    const uint64_t m = text_tokens(&from, &cuda, prompt, got, &on_cuda, &again, &count);
    while (at < n && at < m && expected[at] == got[at]) {
        at++;
    }
    printf("\n    %s: %llu of %llu tokens are the CPU's", path, (unsigned long long)at,
           (unsigned long long)n);
    if (at < n || at < m) {
        const uint64_t vocab = from.model.vocab;
        float *logits = malloc(vocab * sizeof *logits);
        double peak = -INFINITY, second = -INFINITY;
        ingot_decoder_rewind(on_cpu);
        CU_ASSERT_EQUAL(ingot_decoder_feed(on_cpu, ids, count, logits, &error), INGOT_OK);
        for (uint64_t i = 0; i < at; i++) {
            CU_ASSERT_EQUAL(ingot_decoder_feed(on_cpu, &expected[i], 1, logits, &error), INGOT_OK);
        }
        for (uint64_t i = 0; i < vocab; i++) {
            const double own = (double)logits[i];
            second = own > peak ? peak : fmax(second, own);
            peak = fmax(peak, own);
        }
        printf(", then its best logit is ahead by %.4f", peak - second);
        CU_ASSERT(peak - second < 0.02);
        free(logits);
    }
    ingot_decoder_destroy(on_cpu);
    ingot_decoder_destroy(on_cuda);
    ingot_free(ids);
    ingot_free(again);
    ingot_text_model_close(&from);
}

static void test_text(void) {
    static const char *const models[] = {"demo-4m", "stories-260k", "books-28m"};
    const char *shared = suite_shared();
    if (is_small) {
        printf("\nSKIP: texts, in a small run\n");
        return;
    }
    const char *more = getenv("INGOT_ENGINE_MODELS"); /* paths, separated by colons */
    char path[4096];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/models/%s", shared != NULL ? shared : ".", models[i]);
        if (access(path, R_OK) != 0) {
            printf("\nSKIP: %s is not there\n", path);
            continue;
        }
        check_text(path, i == 1 ? "Once upon a time" : "The old man looked at the sea and");
    }
    for (const char *at = more; at != NULL && *at != '\0';) {
        const size_t length = strcspn(at, ":");
        snprintf(path, sizeof path, "%.*s", (int)length, at);
        check_text(path, "The old man looked at the sea and");
        at += length + (at[length] == ':');
    }
}

int main(void) {
    const int missing = suite_open_both();
    if (missing != 0) {
        return missing;
    }
    ingot_backend_ops capped_ops = *cpu.ops;
    capped_ops.attention = capped_attention;
    capped = cpu;
    capped.ops = &capped_ops;
    seed = tiny_seed();
    is_small = getenv("INGOT_TEST_SMALL") != NULL;
    const CU_TestInfo tests[] = {
        {"logits of every kind of model", test_kinds},
        {"logits of every kind of storage", test_storages},
        {"large matrices", test_large_matrices},
        {"batches of sequences", test_batches},
        {"odd widths", test_odd_widths},
        {"large weights", test_large_weights},
        {"what products hand on", test_handed},
        {"attention of a token", test_attention},
        {"tokens, ahead and drawn", test_tokens},
        {"a large vocabulary", test_large_vocabulary},
        {"draws go on", test_draws_go_on},
        {"what is refused", test_refused},
        {"shapes that are refused", test_shapes},
        {"rewinding forgets", test_rewind_forgets},
        {"containers", test_containers},
        {"text of real models", test_text},
        CU_TEST_INFO_NULL,
    };
    return suite_run_both("cuda engine", tests);
}
