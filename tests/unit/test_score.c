/* Perplexity and divergence against figures worked out in FP64 from the reference logits of
 * tiny_model.h. */
#include "suite_cpu.h"

#include "calib/score.h"
#include "signal_backend.h"

typedef struct expected_score {
    double perplexity, source_perplexity, kld_mean, kld_p99, top1;
} expected_score;

/* Log-probabilities of one row, in place. */
static void log_softmax(double *row, uint64_t n) {
    double total = 0;
    for (uint64_t i = 0; i < n; i++) {
        total += exp(row[i]);
    }
    for (uint64_t i = 0; i < n; i++) {
        row[i] -= log(total);
    }
}

static uint64_t argmax(const double *row, uint64_t n) {
    uint64_t best = 0;
    for (uint64_t i = 1; i < n; i++) {
        best = row[i] > row[best] ? i : best;
    }
    return best;
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static expected_score reference(const tiny_model *candidate, const tiny_model *source,
                                const ingot_windows *windows) {
    const uint64_t vocab = candidate->model.vocab, length = windows->length;
    const uint64_t n = windows->count * (length - 1);
    double *p = malloc(length * vocab * sizeof *p), *q = malloc(length * vocab * sizeof *q);
    double *kld = calloc(n, sizeof *kld);
    double nll = 0, source_nll = 0, sum = 0;
    uint64_t agreed = 0, k = 0;
    for (uint64_t w = 0; w < windows->count; w++) {
        const uint32_t *ids = windows->ids + w * length;
        tiny_ref_logits(source, ids, length, p);
        tiny_ref_logits(candidate, ids, length, q);
        for (uint64_t i = 0; i + 1 < length; i++, k++) {
            double *p_row = p + i * vocab, *q_row = q + i * vocab;
            log_softmax(p_row, vocab);
            log_softmax(q_row, vocab);
            source_nll -= p_row[ids[i + 1]];
            nll -= q_row[ids[i + 1]];
            agreed += argmax(p_row, vocab) == argmax(q_row, vocab);
            for (uint64_t c = 0; c < vocab; c++) {
                kld[k] += exp(p_row[c]) * (p_row[c] - q_row[c]);
            }
            sum += kld[k];
        }
    }
    qsort(kld, n, sizeof *kld, compare);
    const double rank = ceil((double)n * 99 / 100);
    const expected_score result = {exp(nll / (double)n), exp(source_nll / (double)n),
                                   sum / (double)n, kld[(uint64_t)rank - 1],
                                   (double)agreed / (double)n};
    free(p);
    free(q);
    free(kld);
    return result;
}

static bool near(double a, double b, double tolerance) {
    const bool is_near = fabs(a - b) <= tolerance * fabs(b);
    if (!is_near) {
        printf("%.17g is not near %.17g\n", a, b);
    }
    return is_near;
}

static ingot_score score(const tiny_model *candidate, const tiny_model *source,
                         const ingot_windows *windows, uint64_t batch_bytes) {
    ingot_score result;
    ingot_error error;
    const ingot_status status = ingot_score_run(&result, &candidate->model, &candidate->source,
                                                source == NULL ? NULL : &source->source, windows,
                                                &backend, batch_bytes, NULL, &error);
    CU_ASSERT_EQUAL_FATAL(status, INGOT_OK);
    return result;
}

static void disturb(tiny_model *t) {
    for (unsigned i = 0; i < t->count; i++) {
        for (uint64_t k = 0; k < t->tensor[i].rows * t->tensor[i].cols; k++) {
            t->tensor[i].data[k] += 0.05f * tiny_value(t);
        }
    }
}

static void test_figures(void) {
    static const unsigned flags[] = {TINY_TIED, TINY_HEAD_NORMS | TINY_WINDOW};
    for (int f = 0; f < 2; f++) {
        tiny_model *source = tiny_create(flags[f], seed), *candidate = tiny_create(flags[f], seed);
        disturb(candidate);
        ingot_windows windows = tiny_windows(candidate, 21, 12);
        const expected_score expected = reference(candidate, source, &windows);
        const ingot_score got = score(candidate, source, &windows, 0);
        CU_ASSERT_EQUAL(got.positions, 21 * 11);
        CU_ASSERT(near(got.perplexity, expected.perplexity, 1e-5));
        CU_ASSERT(near(got.source_perplexity, expected.source_perplexity, 1e-5));
        CU_ASSERT(near(got.ppl_ratio, expected.perplexity / expected.source_perplexity, 1e-5));
        CU_ASSERT(near(got.kld_mean, expected.kld_mean, 1e-4));
        CU_ASSERT(near(got.kld_p99, expected.kld_p99, 1e-3));
        /* A tie that FP32 breaks differently may move one position. */
        CU_ASSERT(fabs(got.top1 - expected.top1) <= 1.01 / (21 * 11));
        CU_ASSERT(got.kld_mean > 0 && got.kld_p99 > got.kld_mean && got.top1 < 1);
        free(windows.ids);
        tiny_destroy(source);
        tiny_destroy(candidate);
    }
}

static void test_same_model(void) {
    tiny_model *t = tiny_create(TINY_QKV_BIAS, seed + 1);
    ingot_windows windows = tiny_windows(t, 5, 9);
    const ingot_score both = score(t, t, &windows, 0);
    CU_ASSERT_EQUAL(both.kld_mean, 0);
    CU_ASSERT_EQUAL(both.kld_p99, 0);
    CU_ASSERT_EQUAL(both.top1, 1);
    CU_ASSERT_EQUAL(both.ppl_ratio, 1);
    const ingot_score alone = score(t, NULL, &windows, 0);
    CU_ASSERT_EQUAL(alone.perplexity, both.perplexity);
    CU_ASSERT(isnan(alone.kld_mean) && isnan(alone.source_perplexity) && isnan(alone.top1) &&
              isnan(alone.ppl_ratio) && isnan(alone.kld_p99));
    free(windows.ids);
    tiny_destroy(t);
}

/* The same bits whatever the number of threads, the same figures whatever the batch. */
static void test_batches(void) {
    tiny_model *source = tiny_create(0, seed + 2), *candidate = tiny_create(0, seed + 2);
    disturb(candidate);
    ingot_windows windows = tiny_windows(candidate, 17, 10);
    const ingot_score whole = score(candidate, source, &windows, 0);
    const uint64_t window_bytes = 2 * 10 * source->model.hidden * sizeof(float);
    const uint64_t sizes[] = {1, 2 * window_bytes, 5 * window_bytes};
    for (int i = 0; i < 3; i++) {
        const ingot_score part = score(candidate, source, &windows, sizes[i]);
        /* BLAS chooses its inner loops by the shape of the whole product, so rounding may differ.
         */
        CU_ASSERT(near(part.perplexity, whole.perplexity, 1e-5));
        CU_ASSERT(near(part.source_perplexity, whole.source_perplexity, 1e-5));
        CU_ASSERT(near(part.kld_mean, whole.kld_mean, 1e-4));
        CU_ASSERT_EQUAL(part.positions, whole.positions);
    }
    const ingot_backend two = backend;
    ingot_error error;
    CU_ASSERT_EQUAL_FATAL(ingot_backend_open(&backend, "cpu", 1, &error), INGOT_OK);
    const ingot_score one = score(candidate, source, &windows, 0);
    CU_ASSERT_EQUAL(memcmp(&one, &whole, sizeof whole), 0);
    ingot_backend_close(&backend);
    backend = two;
    free(windows.ids);
    tiny_destroy(source);
    tiny_destroy(candidate);
}

/* A vocabulary so large that the positions of a window are scored in several chunks. */
static void test_large_vocabulary(void) {
    tiny_model *t = tiny_create(TINY_TIED | TINY_LARGE_VOCAB, seed + 4);
    const uint64_t length = 60, vocab = t->model.vocab;
    ingot_windows windows = tiny_windows(t, 1, length);
    double *logits = malloc(length * vocab * sizeof *logits);
    double nll = 0;
    tiny_ref_logits(t, windows.ids, length, logits);
    for (uint64_t i = 0; i + 1 < length; i++) {
        log_softmax(logits + i * vocab, vocab);
        nll -= logits[i * vocab + windows.ids[i + 1]];
    }
    const ingot_score got = score(t, NULL, &windows, 0);
    CU_ASSERT(near(log(got.perplexity), nll / (double)(length - 1), 1e-6));
    free(logits);
    free(windows.ids);
    tiny_destroy(t);
}

/* Sequences of many lengths, scored from somewhere on, token by token. */
static void test_sequences(void) {
    tiny_model *source = tiny_create(TINY_TIED, seed + 5);
    tiny_model *candidate = tiny_create(TINY_TIED, seed + 5);
    disturb(candidate);
    static const ingot_sequence items[] = {{31, 30}, {31, 1}, {31, 7}, {12, 11},
                                           {40, 3},  {2, 1},  {2, 1},  {9, 4}};
    const uint64_t count = sizeof items / sizeof *items, vocab = source->model.vocab;
    ingot_windows windows = tiny_windows(source, 1, 200);
    const ingot_sequences sequences = {windows.ids, items, count};
    double nll[2][200], *logits = malloc(40 * vocab * sizeof *logits);
    static const uint64_t batches[] = {0, 1, 45 * 24 * 2 * sizeof(float)};
    for (int b = 0; b < 3; b++) {
        ingot_error error;
        CU_ASSERT_EQUAL_FATAL(ingot_score_sequences(nll[0], nll[1], &source->model,
                                                    &candidate->source, &source->source, &sequences,
                                                    &backend, batches[b], NULL, &error),
                              INGOT_OK);
        for (int side = 0; side < 2; side++) {
            const uint32_t *ids = windows.ids;
            const double *got = nll[side];
            for (uint64_t i = 0; i < count; i++) {
                tiny_ref_logits(side == 0 ? candidate : source, ids, items[i].length, logits);
                for (uint64_t k = items[i].first; k < items[i].length; k++, got++) {
                    log_softmax(logits + (k - 1) * vocab, vocab);
                    CU_ASSERT_DOUBLE_EQUAL(*got, -logits[(k - 1) * vocab + ids[k]], 1e-4);
                }
                ids += items[i].length;
            }
        }
    }
    static const ingot_sequence bad[] = {{5, 0}, {5, 5}};
    for (int i = 0; i < 2; i++) {
        const ingot_sequences wrong = {windows.ids, &bad[i], 1};
        ingot_error error;
        CU_ASSERT_EQUAL(ingot_score_sequences(nll[0], NULL, &source->model, &candidate->source,
                                              NULL, &wrong, &backend, 0, NULL, &error),
                        INGOT_ERR_USAGE);
    }
    free(logits);
    free(windows.ids);
    tiny_destroy(source);
    tiny_destroy(candidate);
}

static void test_refusals(void) {
    tiny_model *t = tiny_create(0, seed + 3);
    ingot_windows windows = tiny_windows(t, 2, 8);
    ingot_score result;
    ingot_error error;
    windows.length = 1;
    CU_ASSERT_EQUAL(
        ingot_score_run(&result, &t->model, &t->source, NULL, &windows, &backend, 0, NULL, &error),
        INGOT_ERR_USAGE);
    windows.length = 8;
    tiny_find(t, "model.layers.2.mlp.down_proj.weight")->data[7] = NAN;
    CU_ASSERT_EQUAL(
        ingot_score_run(&result, &t->model, &t->source, NULL, &windows, &backend, 0, NULL, &error),
        INGOT_ERR_NUMERIC);
    CU_ASSERT_EQUAL(error.status, INGOT_ERR_NUMERIC);
    CU_ASSERT(strlen(error.reason) > 0);
    CU_ASSERT(isnan(result.perplexity));
    windows.ids[3] = (uint32_t)t->model.vocab;
    CU_ASSERT_EQUAL(
        ingot_score_run(&result, &t->model, &t->source, NULL, &windows, &backend, 0, NULL, &error),
        INGOT_ERR_INPUT);
    snprintf(tiny_find(t, "model.norm.weight")->name, INGOT_NAME_SIZE, "gone");
    windows.ids[3] = 0;
    CU_ASSERT_EQUAL(
        ingot_score_run(&result, &t->model, &t->source, NULL, &windows, &backend, 0, NULL, &error),
        INGOT_ERR_NOT_FOUND);
    free(windows.ids);
    tiny_destroy(t);
}

static ingot_status score_windows(ingot_backend *device, void *context, ingot_error *error) {
    tiny_model *t = context;
    ingot_score ignored;
    const ingot_windows windows = tiny_windows(t, 12, 20);
    device->batch_tokens = 3 * windows.length;
    const ingot_status status =
        ingot_score_run(&ignored, &t->model, &t->source, NULL, &windows, device, 0, NULL, error);
    free(windows.ids);
    return status;
}

/* A signal ends it behind the windows at work, not behind a block of all of them. */
static void test_interrupt(void) {
    tiny_model *t = tiny_create(0, seed);
    signal_expect_on_backend(score_windows, t);
    tiny_destroy(t);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"figures against FP64", test_figures},
        {"a model against itself, and alone", test_same_model},
        {"the same bits for any thread count, the same figures for any batch", test_batches},
        {"a vocabulary of 400000", test_large_vocabulary},
        {"sequences of many lengths against FP64", test_sequences},
        {"short windows, NaN weights, bad ids, missing tensors", test_refusals},
        {"a signal", test_interrupt},
        CU_TEST_INFO_NULL,
    };
    return suite_run_cpu("score", tests);
}
