/* The two streams of hidden states of a conversion against the FP64 reference of tiny_model.h: what
 * the pair hook sees of each, what advances and what stays. */
#include "convert/batch.h"
#include "suite.h"
#include "tiny_model.h"

#define WINDOWS 5u
#define LENGTH  7u
#define TOKENS  (WINDOWS * LENGTH)
#define CHUNK   2u /* windows of a call: neither a divisor nor all */

typedef double states_of[TOKENS][TINY_MAX];
typedef tiny_inputs inputs_of[TOKENS];

static double worst; /* relative difference seen, since it was last reset */

static void check(const float *got, const double *expected, uint64_t count) {
    double largest = 0, difference = 0;
    for (uint64_t i = 0; i < count; i++) {
        const double gap = fabs((double)got[i] - expected[i]);
        largest = fmax(largest, fabs(expected[i]));
        difference = gap > difference || isnan(gap) ? gap : difference;
    }
    CU_ASSERT(difference <= 2e-5 * largest);
    worst = fmax(worst, difference / largest);
}

static void advance(const tiny_model *t, uint64_t layer, states_of x, inputs_of inputs) {
    for (uint64_t w = 0; w < WINDOWS; w++) {
        tiny_ref_block(t, layer, x + w * LENGTH, LENGTH, inputs + w * LENGTH);
    }
}

/* What the hook compares with. */
typedef struct expectation {
    const ingot_backend *backend;
    inputs_of exact, prefix;
    states_of *exact_states, *prefix_states; /* before the block */
    uint64_t hidden;
    uint64_t seen[INGOT_INPUT_COUNT];
} expectation;

static ingot_status compare_pair(void *context, ingot_input input, const ingot_pair_inputs *in,
                                 uint64_t m, uint64_t width) {
    expectation *e = context;
    const float *exact = in->exact, *x = in->prefix;
    const ingot_backend_ops *ops = e->backend->ops;
    float *row = calloc(width, sizeof *row);
    CU_ASSERT_FATAL(m <= CHUNK * LENGTH && e->seen[input] + m <= TOKENS);
    for (uint64_t i = 0; i < m; i++) {
        const uint64_t token = e->seen[input]++;
        CU_ASSERT(ops->download(e->backend->context, row, exact + i * width, width * 4) == 0);
        check(row, e->exact[token][input], width);
        CU_ASSERT(ops->download(e->backend->context, row, x + i * width, width * 4) == 0);
        check(row, e->prefix[token][input], width);
        if (input == INGOT_INPUT_OUTPUT) { /* the residual stream is still the block's input */
            const uint64_t n = e->hidden;
            CU_ASSERT_FATAL(n <= width);
            CU_ASSERT(ops->download(e->backend->context, row, in->exact_residual + i * n, n * 4) ==
                      0);
            check(row, (*e->exact_states)[token], n);
            CU_ASSERT(ops->download(e->backend->context, row, in->prefix_residual + i * n, n * 4) ==
                      0);
            check(row, (*e->prefix_states)[token], n);
        }
    }
    CU_ASSERT((in->exact_residual != NULL) ==
              (input == INGOT_INPUT_OUTPUT || input == INGOT_INPUT_DOWN));
    free(row);
    return INGOT_OK;
}

static void check_states(const ingot_backend *b, const float *states, states_of expected,
                         uint64_t first, uint64_t end, uint64_t hidden) {
    float *host = calloc((end - first) * LENGTH * hidden, sizeof *host);
    CU_ASSERT_FATAL(b->ops->download(b->context, host, states,
                                     (end - first) * LENGTH * hidden * sizeof *host) == INGOT_OK);
    for (uint64_t i = 0; i < (end - first) * LENGTH; i++) {
        check(host + i * hidden, expected[first * LENGTH + i], hidden);
    }
    free(host);
}

/* A model and the blocks it was loaded into. */
typedef struct loaded {
    tiny_model *tiny;
    ingot_block block[2];
} loaded;

static void load(loaded *l, uint64_t seed, const ingot_backend *b, ingot_arena *arena) {
    l->tiny = tiny_create(TINY_QKV_BIAS, seed);
    for (uint64_t i = 0; i < 2; i++) {
        CU_ASSERT_FATAL(ingot_block_load(&l->block[i], &l->tiny->model, i, &l->tiny->source, b,
                                         arena, NULL) == INGOT_OK);
    }
}

static void unload(loaded *l, const ingot_backend *b) {
    ingot_block_release(&l->block[0], b);
    ingot_block_release(&l->block[1], b);
    tiny_destroy(l->tiny);
}

/* The judge alone: its output is taken, its states stay, the exact ones advance. */
static void check_judge(ingot_batch *batch, const ingot_loop_job *job, const ingot_block *block,
                        states_of kept, states_of exact, ingot_arena *device) {
    const ingot_backend *b = job->backend;
    const uint64_t hidden = job->model->hidden;
    float *judged = NULL, *target = NULL;
    CU_ASSERT_FATAL(ingot_arena_array(device, (void **)&judged, LENGTH, hidden * 4) == 0);
    const ingot_batch_use take = {.output = judged};
    CU_ASSERT(ingot_batch_run(batch, job, block, WINDOWS - 1, WINDOWS, &take, NULL) == 0);
    check_states(b, judged, kept, WINDOWS - 1, WINDOWS, hidden);
    const ingot_batch_use go_on = {.is_exact = true};
    CU_ASSERT(ingot_batch_run(batch, job, block, WINDOWS - 1, WINDOWS, &go_on, NULL) == 0);
    CU_ASSERT(ingot_batch_exact(&target, batch, job, 1, WINDOWS, device) == INGOT_OK);
    check_states(b, target, exact, 1, WINDOWS, hidden);
}

/* A batch that has rested runs as before; backends without memory of their own let none rest. */
static void check_rest(ingot_batch *batch, const ingot_loop_job *job) {
    ingot_backend backend = *job->backend;
    backend.has_own_memory = true;
    ingot_batch_rest(batch, &backend);
    CU_ASSERT(batch->workspace == NULL && batch->scratch == NULL);
    CU_ASSERT(ingot_batch_wake(batch, job) == INGOT_OK && batch->chunk == CHUNK);
    CU_ASSERT(ingot_batch_wake(batch, job) == INGOT_OK); /* is awake */
}

/* Exact states that went to the host are what they were, and are found there; backends without
 * memory of their own leave them. */
static void check_spared(ingot_batch *batch, const ingot_loop_job *job, states_of exact,
                         ingot_arena *device) {
    ingot_backend backend = *job->backend;
    ingot_loop_job spare = *job;
    const float *before = batch->exact.values;
    float *target = NULL;
    CU_ASSERT(ingot_batch_spare_exact(batch, job) == INGOT_OK);
    CU_ASSERT(batch->exact.is_on_device && batch->exact.values == before);
    backend.has_own_memory = true;
    spare.backend = &backend;
    CU_ASSERT(ingot_batch_spare_exact(batch, &spare) == INGOT_OK);
    CU_ASSERT(!batch->exact.is_on_device && batch->exact.values != NULL);
    CU_ASSERT(ingot_batch_spare_exact(batch, &spare) == INGOT_OK); /* is there */
    CU_ASSERT(ingot_batch_exact(&target, batch, job, 1, WINDOWS, device) == INGOT_OK);
    check_states(job->backend, target, exact, 1, WINDOWS, job->model->hidden);
}

/* Two blocks of a model whose prefix is another model's first block. */
static void streams_on(const ingot_backend *b, ingot_streams streams) {
    ingot_arena *arena, *device;
    loaded model, other;
    uint32_t ids[TOKENS];
    ingot_progress progress;
    ingot_batch batch;
    states_of *exact = calloc(1, sizeof *exact), *prefix = calloc(1, sizeof *prefix);
    expectation *e = calloc(1, sizeof *e);
    const uint64_t seed = tiny_seed();
    CU_ASSERT_FATAL(ingot_arena_create(&arena) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_backend_arena_create(&device, b) == INGOT_OK);
    load(&model, seed, b, arena);
    load(&other, seed + 1, b, arena);
    const uint64_t hidden = model.tiny->model.hidden;
    const float *embed = tiny_find(model.tiny, model.tiny->model.embed_name)->data;
    for (uint64_t i = 0; i < TOKENS; i++) {
        ids[i] = (uint32_t)(tiny_bits(model.tiny) % model.tiny->model.vocab);
        for (uint64_t c = 0; c < hidden; c++) {
            (*exact)[i][c] = (*prefix)[i][c] = (double)embed[ids[i] * hidden + c];
        }
    }
    const ingot_windows windows = {.ids = ids, .count = WINDOWS, .length = LENGTH};
    ingot_progress_begin(&progress, "testing", "blocks", 2, true);
    const ingot_loop_job job = {.source = &model.tiny->source,
                                .model = &model.tiny->model,
                                .backend = b,
                                .windows = &windows,
                                .progress = &progress};
    CU_ASSERT_FATAL(ingot_batch_create(&batch, &job, 1, streams, NULL, arena, NULL) == INGOT_OK);
    CU_ASSERT(batch.chunk == CHUNK);
    *e = (expectation){.backend = b};
    for (uint64_t layer = 0; layer < 2; layer++) {
        const ingot_block *block = &model.block[layer];
        states_of *kept = calloc(1, sizeof *kept), *before = calloc(1, sizeof *before);
        memcpy(kept, prefix, sizeof *kept);
        memcpy(before, exact, sizeof *before);
        advance(model.tiny, layer, *exact, e->exact);
        advance(model.tiny, layer, *kept, e->prefix); /* whose outputs are dropped */
        e->exact_states = before;
        e->prefix_states = prefix;
        e->hidden = hidden;
        /* as far as the attention's output: nothing advances */
        memset(e->seen, 0, sizeof e->seen);
        ingot_pair_use use = {.wanted = 1u << INGOT_INPUT_OUTPUT,
                              .last = INGOT_INPUT_OUTPUT,
                              .hook = compare_pair,
                              .hook_context = e};
        CU_ASSERT(ingot_batch_run_pair(&batch, &job, block, block, 0, WINDOWS, &use, NULL) == 0);
        for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
            CU_ASSERT(e->seen[i] == (i == INGOT_INPUT_OUTPUT ? TOKENS : 0));
        }
        memset(e->seen, 0, sizeof e->seen);
        use.last = INGOT_INPUT_DOWN;
        use.advances = true;
        use.wanted = 1u << INGOT_INPUT_DOWN;
        if (streams == INGOT_BOTH) {
            use.wanted = (1u << INGOT_INPUT_COUNT) - 1;
        }
        CU_ASSERT(ingot_batch_run_pair(&batch, &job, block, block, 0, WINDOWS - 1, &use, NULL) ==
                  INGOT_OK);
        for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
            CU_ASSERT(e->seen[i] == ((use.wanted & 1u << i) != 0 ? TOKENS - LENGTH : 0));
        }
        check_judge(&batch, &job, block, *kept, *exact, device);
        check_rest(&batch, &job);
        advance(other.tiny, layer, *prefix, e->prefix);
        CU_ASSERT(ingot_batch_run(&batch, &job, &other.block[layer], 0, WINDOWS,
                                  &(ingot_batch_use){0}, NULL) == INGOT_OK);
        check_states(b, batch.prefix.values, *prefix, 0, WINDOWS, hidden);
        free(kept);
        free(before);
    }
    check_spared(&batch, &job, *exact, device);
    ingot_batch_destroy(&batch, b);
    unload(&model, b);
    unload(&other, b);
    ingot_arena_destroy(arena);
    ingot_arena_destroy(device);
    free(exact);
    free(prefix);
    free(e);
}

/* A block in two halves, both streams, is the block. */
static void halves_on(const ingot_backend *b) {
    ingot_arena *arena;
    loaded model, other;
    uint32_t ids[TOKENS];
    ingot_progress progress;
    ingot_batch batch[2];
    const uint64_t seed = tiny_seed();
    CU_ASSERT_FATAL(ingot_arena_create(&arena) == INGOT_OK);
    load(&model, seed, b, arena);
    load(&other, seed + 1, b, arena);
    tiny_ids(model.tiny, ids, TOKENS);
    const ingot_windows windows = {.ids = ids, .count = WINDOWS, .length = LENGTH};
    ingot_progress_begin(&progress, "testing", "blocks", 2, true);
    const ingot_loop_job job = {.source = &model.tiny->source,
                                .model = &model.tiny->model,
                                .backend = b,
                                .windows = &windows,
                                .progress = &progress};
    for (unsigned k = 0; k < 2; k++) {
        ingot_batch *at = &batch[k];
        const ingot_block *exact = &model.block[0], *prefix = &other.block[0];
        CU_ASSERT_FATAL(ingot_batch_create(at, &job, 1, INGOT_BOTH, NULL, arena, NULL) == INGOT_OK);
        CU_ASSERT(k == 0 || ingot_batch_halfway(at, &job, exact, prefix, NULL) == INGOT_OK);
        CU_ASSERT(k == 0 || ingot_batch_halfway(at, &job, exact, prefix, NULL) == INGOT_OK);
        CU_ASSERT(ingot_batch_run(at, &job, exact, 0, WINDOWS, &(ingot_batch_use){.is_exact = true},
                                  NULL) == INGOT_OK);
        CU_ASSERT(ingot_batch_run(at, &job, prefix, 0, WINDOWS, &(ingot_batch_use){0}, NULL) ==
                  INGOT_OK);
        ingot_batch_end(at);
        CU_ASSERT(!at->is_halfway);
    }
    const uint64_t bytes = TOKENS * model.tiny->model.hidden * sizeof(float);
    CU_ASSERT(memcmp(batch[0].exact.values, batch[1].exact.values, bytes) == 0);
    CU_ASSERT(memcmp(batch[0].prefix.values, batch[1].prefix.values, bytes) == 0);
    CU_ASSERT(memcmp(batch[0].prefix.values, batch[0].exact.values, bytes) != 0);
    ingot_batch_destroy(&batch[0], b);
    ingot_batch_destroy(&batch[1], b);
    unload(&model, b);
    unload(&other, b);
    ingot_arena_destroy(arena);
}

static void streams(void) {
    ingot_backend backend;
    CU_ASSERT_FATAL(ingot_backend_open(&backend, "cpu", 2, NULL) == INGOT_OK);
    backend.batch_tokens = CHUNK * LENGTH + 3;
    worst = 0;
    streams_on(&backend, INGOT_BOTH);
    streams_on(&backend, INGOT_BOTH_IN_TURN);
    halves_on(&backend);
    ingot_backend_close(&backend);
    printf("largest relative difference %.1e ", worst);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"two streams of hidden states", streams},
        CU_TEST_INFO_NULL,
    };
    return suite_run("batch", tests);
}
