/* Statistics files: what is written against sums taken in FP64 from the reference forward pass of
 * tiny_model.h, and what is refused when a file is read. */
#define TINY_MAX 800
#include "suite_cpu.h"

#include "calib/stats.h"
#include "common/files.h"

static char folder[] = "/tmp/ingot-test-stats-XXXXXX";
static char path[64], other_path[64];

static ingot_status collect(const tiny_model *t, const ingot_windows *windows, const char *output,
                            uint64_t batch_bytes, ingot_stats_result *result, ingot_error *error) {
    const ingot_text text = {.count = 1000, .bytes = 4000, .digest = {1, 2, 3}};
    const ingot_stats_options options = {
        .path = output, .force = true, .batch_bytes = batch_bytes, .threads = 1};
    return ingot_stats_collect(result, &t->model, &t->source, windows, &text, &backend, &options,
                               NULL, error);
}

/* sums[layer][input]: gram[width][width] and magnitude[width], in FP64. */
typedef struct sums {
    double gram[INGOT_INPUT_COUNT][TINY_MAX][TINY_MAX];
    double magnitude[INGOT_INPUT_COUNT][TINY_MAX];
} sums;

static void add_token(sums *s, const ingot_model *m, tiny_inputs inputs) {
    const uint64_t widths[INGOT_INPUT_COUNT] = {m->hidden, m->heads * m->head_dim, m->hidden,
                                                m->ffn};
    for (int input = 0; input < INGOT_INPUT_COUNT; input++) {
        const double *x = inputs[input];
        for (uint64_t i = 0; i < widths[input]; i++) {
            s->magnitude[input][i] += fabs(x[i]);
            for (uint64_t j = 0; j <= i; j++) {
                s->gram[input][i][j] += x[i] * x[j];
            }
        }
    }
}

static sums *reference(const tiny_model *t, const ingot_windows *windows) {
    const ingot_model *m = &t->model;
    const float *embed = tiny_find(t, m->embed_name)->data;
    const uint64_t length = windows->length;
    sums *all = calloc(m->layers, sizeof *all);
    double(*x)[TINY_MAX] = calloc(length, sizeof *x);
    for (uint64_t w = 0; w < windows->count; w++) {
        for (uint64_t i = 0; i < length * m->hidden; i++) {
            const uint32_t id = windows->ids[w * length + i / m->hidden];
            x[i / m->hidden][i % m->hidden] =
                (double)embed[id * m->hidden + i % m->hidden] * (double)m->embed_scale;
        }
        for (uint64_t layer = 0; layer < m->layers; layer++) {
            tiny_inputs *inputs = calloc(length, sizeof *inputs);
            tiny_ref_block(t, layer, x, length, inputs);
            for (uint64_t i = 0; i < length; i++) {
                add_token(&all[layer], m, inputs[i]);
            }
            free(inputs);
        }
    }
    free(x);
    return all;
}

static void check_input(const ingot_stats_input *got, const sums *expected, ingot_input input,
                        uint64_t tokens) {
    const uint64_t n = got->width;
    double largest = 0, worst = 0, worst_mean = 0;
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t j = 0; j < n; j++) {
            const double value = j <= i ? expected->gram[input][i][j] : 0;
            largest = fmax(largest, fabs(value));
            worst = fmax(worst, fabs((double)got->gram[i * n + j] - value));
        }
        const double mean = expected->magnitude[input][i] / (double)tokens;
        worst_mean = fmax(worst_mean, fabs((double)got->magnitude[i] - mean) / mean);
    }
    CU_ASSERT(worst < 2e-5 * largest);
    CU_ASSERT(worst_mean < 2e-5);
    CU_ASSERT_EQUAL(got->tokens, tokens);
    CU_ASSERT_EQUAL(got->dropped, 0);
}

static void test_sums(void) {
    /* The packed H of the wide one takes more than one chunk of the file. */
    static const unsigned flags[] = {TINY_TIED, TINY_UNGATED | TINY_LAYER_NORM,
                                     TINY_WINDOW | TINY_WIDE};
    for (int f = 0; f < 3; f++) {
        tiny_model *t = tiny_create(flags[f], seed + (uint64_t)f);
        ingot_windows windows = tiny_windows(t, 5, 13);
        ingot_stats_result result;
        ingot_error error;
        ingot_stats *stats;
        ingot_stats_info info;
        ingot_arena *arena;
        uint64_t bytes;
        CU_ASSERT_EQUAL_FATAL(collect(t, &windows, path, 0, &result, &error), INGOT_OK);
        CU_ASSERT_EQUAL(result.tokens, 65);
        CU_ASSERT_EQUAL(result.dropped, 0);
        CU_ASSERT_EQUAL(ingot_stats_bytes(&bytes, &t->model), INGOT_OK);
        CU_ASSERT(bytes > 0 && bytes < result.file_bytes);
        CU_ASSERT_EQUAL_FATAL(ingot_stats_open(&stats, path, &t->model, &t->source, &error),
                              INGOT_OK);
        ingot_stats_get_info(stats, &info);
        CU_ASSERT_EQUAL(info.samples, 5);
        CU_ASSERT_EQUAL(info.seq_len, 13);
        CU_ASSERT_EQUAL(info.text_digest[2], 3);
        CU_ASSERT_STRING_EQUAL(info.backend, backend.path);
        CU_ASSERT_EQUAL(memcmp(info.root, result.root, sizeof info.root), 0);
        sums *expected = reference(t, &windows);
        CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&arena), INGOT_OK);
        for (uint64_t layer = 0; layer < t->model.layers; layer++) {
            for (int input = 0; input < INGOT_INPUT_COUNT; input++) {
                ingot_stats_input got;
                CU_ASSERT_EQUAL_FATAL(
                    ingot_stats_load(stats, layer, (ingot_input)input, arena, &got, &error),
                    INGOT_OK);
                check_input(&got, &expected[layer], (ingot_input)input, 65);
            }
        }
        ingot_arena_destroy(arena);
        ingot_stats_close(stats);
        free(expected);
        free(windows.ids);
        tiny_destroy(t);
    }
}

static void read_file(const char *name, char **bytes, uint64_t *size) {
    ingot_error error;
    CU_ASSERT_EQUAL_FATAL(ingot_file_read_all(name, 1 << 24, bytes, size, &error), INGOT_OK);
}

/* The same bytes whatever the scratch of a call and the number of threads. */
static void test_same_bytes(void) {
    tiny_model *t = tiny_create(0, seed + 10);
    ingot_windows windows = tiny_windows(t, 7, 11);
    ingot_stats_result result;
    ingot_error error;
    char *first, *second;
    uint64_t first_size, second_size;
    CU_ASSERT_EQUAL_FATAL(collect(t, &windows, path, 0, &result, &error), INGOT_OK);
    const ingot_backend two = backend;
    CU_ASSERT_EQUAL_FATAL(ingot_backend_open(&backend, "cpu", 1, &error), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(collect(t, &windows, other_path, 0, &result, &error), INGOT_OK);
    ingot_backend_close(&backend);
    backend = two;
    read_file(path, &first, &first_size);
    read_file(other_path, &second, &second_size);
    CU_ASSERT_EQUAL(first_size, second_size);
    CU_ASSERT_EQUAL(first_size, result.file_bytes);
    CU_ASSERT_EQUAL(memcmp(first, second, first_size), 0);
    ingot_free(first);
    ingot_free(second);
    free(windows.ids);
    tiny_destroy(t);
}

static void test_other_checkpoint(void) {
    tiny_model *t = tiny_create(0, seed + 20);
    ingot_windows windows = tiny_windows(t, 2, 8);
    ingot_stats_result result;
    ingot_error error;
    ingot_stats *stats;
    CU_ASSERT_EQUAL_FATAL(collect(t, &windows, path, 0, &result, &error), INGOT_OK);
    /* one weight moved by the smallest step */
    float *weight = tiny_find(t, "model.layers.1.self_attn.v_proj.weight")->data;
    const float kept = weight[5];
    weight[5] = nextafterf(kept, 10.0f);
    CU_ASSERT_EQUAL(ingot_stats_open(&stats, path, &t->model, &t->source, &error),
                    INGOT_FAIL_SOURCE);
    CU_ASSERT_PTR_NULL(stats);
    weight[5] = kept;
    CU_ASSERT_EQUAL(ingot_stats_open(&stats, path, &t->model, &t->source, &error), INGOT_OK);
    ingot_stats_close(stats);
    /* another shape is named as such */
    t->model.layers = 4;
    CU_ASSERT_EQUAL(ingot_stats_open(&stats, path, &t->model, &t->source, &error), INGOT_ERR_INPUT);
    CU_ASSERT_STRING_EQUAL(error.tensor, "blocks.3.attention#gram");
    /* another checkpoint of another shape is another checkpoint */
    tiny_model *other = tiny_create(0, seed + 21);
    other->model.layers = 4;
    CU_ASSERT_EQUAL(ingot_stats_open(&stats, path, &other->model, &other->source, &error),
                    INGOT_FAIL_SOURCE);
    tiny_destroy(other);
    free(windows.ids);
    tiny_destroy(t);
}

static void test_damage(void) {
    tiny_model *t = tiny_create(0, seed + 30);
    ingot_windows windows = tiny_windows(t, 2, 8);
    ingot_stats_result result;
    ingot_error error;
    ingot_stats *stats;
    ingot_stats_input got;
    ingot_arena *arena;
    char *bytes;
    uint64_t size;
    CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&arena), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(collect(t, &windows, path, 0, &result, &error), INGOT_OK);
    read_file(path, &bytes, &size);
    /* Before the trailer of 32 bytes stand the counts of the last input, alone in 256 bytes or
     * less: DATA ends with its last part. */
    bytes[size - 32 - 8] = (char)(bytes[size - 32 - 8] ^ 1);
    CU_ASSERT_EQUAL_FATAL(ingot_file_write_all(other_path, bytes, size, true, &error), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_stats_open(&stats, other_path, &t->model, &t->source, &error),
                          INGOT_OK);
    const ingot_status status =
        ingot_stats_load(stats, t->model.layers - 1, INGOT_INPUT_DOWN, arena, &got, &error);
    CU_ASSERT(status > INGOT_BAD_FIRST && status < INGOT_BAD_LAST);
    ingot_stats_close(stats);
    CU_ASSERT_EQUAL_FATAL(ingot_file_write_all(other_path, bytes, size / 2, true, &error),
                          INGOT_OK);
    CU_ASSERT_NOT_EQUAL(ingot_stats_open(&stats, other_path, &t->model, &t->source, &error),
                        INGOT_OK);
    CU_ASSERT_EQUAL(ingot_stats_open(&stats, "tests/unit/suite.h", &t->model, &t->source, &error),
                    INGOT_BAD_MAGIC);
    CU_ASSERT_EQUAL(ingot_stats_open(&stats, "no such file", &t->model, &t->source, &error),
                    INGOT_ERR_NOT_FOUND);
    ingot_free(bytes);
    ingot_arena_destroy(arena);
    free(windows.ids);
    tiny_destroy(t);
}

/* Rows that are not finite are left out and counted; when nothing is left, that is an error. */
static void test_not_finite(void) {
    tiny_model *t = tiny_create(0, seed + 40);
    ingot_windows windows = tiny_windows(t, 3, 8);
    ingot_stats_result result;
    ingot_error error;
    /* One token's embedding is NaN, at the end of one window. */
    for (int i = 0; i < 24; i++) {
        windows.ids[i] = i == 15 ? 7 : (windows.ids[i] == 7 ? 8 : windows.ids[i]);
    }
    tiny_find(t, t->model.embed_name)->data[7 * t->model.hidden + 3] = NAN;
    CU_ASSERT_EQUAL(collect(t, &windows, path, 0, &result, &error), INGOT_OK);
    /* Attention may spread it over its window (zero weight times NaN), never beyond. */
    CU_ASSERT(result.dropped >= t->model.layers * INGOT_INPUT_COUNT);
    CU_ASSERT(result.dropped <= 8 * t->model.layers * INGOT_INPUT_COUNT);
    ingot_stats *stats;
    ingot_stats_input got;
    ingot_arena *arena;
    CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&arena), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_stats_open(&stats, path, &t->model, &t->source, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_stats_load(stats, 2, INGOT_INPUT_DOWN, arena, &got, &error), INGOT_OK);
    CU_ASSERT(got.tokens >= 16 && got.tokens + got.dropped == 24);
    CU_ASSERT_EQUAL(ingot_stats_load(stats, 0, INGOT_INPUT_ATTENTION, arena, &got, &error),
                    INGOT_OK);
    CU_ASSERT_EQUAL(got.tokens, 23);
    CU_ASSERT_EQUAL(got.dropped, 1);
    ingot_stats_close(stats);
    ingot_arena_destroy(arena);
    /* A NaN in the first norm's weight reaches every row. */
    tiny_find(t, "model.layers.0.input_layernorm.weight")->data[0] = NAN;
    CU_ASSERT_EQUAL(collect(t, &windows, other_path, 0, &result, &error), INGOT_ERR_NUMERIC);
    CU_ASSERT_STRING_EQUAL(error.tensor, "blocks.0.attention#gram");
    free(windows.ids);
    tiny_destroy(t);
}

/* No output is left behind by a failure, and none is replaced without force. */
static void test_output(void) {
    tiny_model *t = tiny_create(0, seed + 50);
    ingot_windows windows = tiny_windows(t, 2, 8);
    const ingot_text text = {.count = 16};
    char partial[80];
    ingot_stats_options options = {.path = other_path};
    ingot_stats_result result;
    ingot_error error;
    snprintf(partial, sizeof partial, "%s.partial", other_path);
    remove(other_path);
    tiny_tensor *last = tiny_find(t, "model.layers.2.mlp.up_proj.weight");
    snprintf(last->name, sizeof last->name, "gone");
    CU_ASSERT_EQUAL(ingot_stats_collect(&result, &t->model, &t->source, &windows, &text, &backend,
                                        &options, NULL, &error),
                    INGOT_ERR_NOT_FOUND);
    CU_ASSERT_FALSE(ingot_path_exists(other_path));
    CU_ASSERT_FALSE(ingot_path_exists(partial));
    snprintf(last->name, sizeof last->name, "model.layers.2.mlp.up_proj.weight");
    CU_ASSERT_EQUAL(ingot_stats_collect(&result, &t->model, &t->source, &windows, &text, &backend,
                                        &options, NULL, &error),
                    INGOT_OK);
    CU_ASSERT_EQUAL(ingot_stats_collect(&result, &t->model, &t->source, &windows, &text, &backend,
                                        &options, NULL, &error),
                    INGOT_ERR_EXISTS);
    free(windows.ids);
    tiny_destroy(t);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"sums against FP64", test_sums},
        {"the same bytes for any number of threads", test_same_bytes},
        {"statistics of another checkpoint", test_other_checkpoint},
        {"damaged files", test_damage},
        {"activations that are not finite", test_not_finite},
        {"outputs", test_output},
        CU_TEST_INFO_NULL,
    };
    if (mkdtemp(folder) == NULL) {
        fprintf(stderr, "no folder\n");
        return 2;
    }
    snprintf(path, sizeof path, "%s/a.calib", folder);
    snprintf(other_path, sizeof other_path, "%s/b.calib", folder);
    const int result = suite_run_cpu("stats", tests);
    remove(path);
    remove(other_path);
    rmdir(folder);
    return result;
}
