/* Sensitivities against the FP64 reference of tiny_model.h, one whole model per candidate; waves
 * and the order of candidates change nothing; what is kept is read again. */
#include "convert/sensitivity_table.h"
#include "suite.h"
#include "tiny_model.h"

#include <string.h>

#define WINDOWS  3u
#define LENGTH   9u
#define TENSORS  5u
#define OUTLIERS 7u

/* A tiny model with some of its linears planned: layers rising, not every layer, odd shapes. */
typedef struct fixture {
    tiny_model *tiny;
    ingot_backend backend;
    ingot_plan_tensor tensors[TENSORS];
    ingot_tensor_spec specs[TENSORS];
    char names[TENSORS][INGOT_NAME_SIZE];
    uint64_t order[TENSORS];
    ingot_plan plan;
    uint32_t ids[WINDOWS * LENGTH];
    ingot_windows windows;
    ingot_sensitivity_job job;
} fixture;

static void open_fixture(fixture *f, uint64_t seed) {
    static const struct {
        uint64_t layer;
        ingot_role role;
    } chosen[TENSORS] = {{0, INGOT_ROLE_V},
                         {0, INGOT_ROLE_DOWN},
                         {1, INGOT_ROLE_Q},
                         {2, INGOT_ROLE_O},
                         {2, INGOT_ROLE_GATE}};
    memset(f, 0, sizeof *f);
    f->tiny = tiny_create(TINY_QKV_BIAS, seed);
    CU_ASSERT_FATAL(ingot_backend_open(&f->backend, "cpu", 2, NULL) == INGOT_OK);
    for (unsigned i = 0; i < TENSORS; i++) {
        const ingot_linear_desc *d = &f->tiny->model.linear[chosen[i].role];
        ingot_model_linear_name(&f->tiny->model, chosen[i].layer, chosen[i].role, f->names[i]);
        f->tensors[i] = (ingot_plan_tensor){.name = f->names[i],
                                            .origin = INGOT_ORIGIN_QUANTIZE,
                                            .layer = chosen[i].layer,
                                            .role = chosen[i].role};
        f->specs[i] =
            (ingot_tensor_spec){.name = f->names[i],
                                .kind = INGOT_GROUPED,
                                .rank = 2,
                                .dim = {d->rows, d->cols},
                                .dtype = INGOT_F16,
                                .bits = 4,
                                .scale_dtype = INGOT_F16,
                                .zero_mode = i % 2 == 0 ? INGOT_ZERO_SYMMETRIC : INGOT_ZERO_STORED,
                                .group = i == 1 ? 16 : d->cols,
                                .outlier_count = i == 3 ? OUTLIERS : 0};
        f->order[i] = i;
    }
    f->plan = (ingot_plan){.tensors = f->tensors, .specs = f->specs, .count = TENSORS};
    tiny_ids(f->tiny, f->ids, WINDOWS * LENGTH);
    f->windows = (ingot_windows){.ids = f->ids, .count = WINDOWS, .length = LENGTH};
    f->job = (ingot_sensitivity_job){.source = &f->tiny->source,
                                     .model = &f->tiny->model,
                                     .backend = &f->backend,
                                     .plan = &f->plan,
                                     .tensors = f->order,
                                     .count = TENSORS,
                                     .windows = &f->windows};
}

static void close_fixture(fixture *f) {
    ingot_backend_close(&f->backend);
    tiny_destroy(f->tiny);
}

/* ---- the reference -------------------------------------------------------------------------- */

static void all_logits(const fixture *f, double *logits) {
    for (unsigned w = 0; w < WINDOWS; w++) {
        tiny_ref_logits(f->tiny, f->ids + w * LENGTH, LENGTH,
                        logits + w * LENGTH * f->tiny->model.vocab);
    }
}

static double log_sum(const double *x, uint64_t n) {
    double sum = exp(x[0]);
    for (uint64_t i = 1; i < n; i++) {
        sum += exp(x[i]);
    }
    return log(sum);
}

static double mean_kl(const double *p, const double *q, uint64_t vocab) {
    double total = 0;
    for (uint64_t t = 0; t < WINDOWS * LENGTH; t++, p += vocab, q += vocab) {
        const double log_p = log_sum(p, vocab), log_q = log_sum(q, vocab);
        for (uint64_t i = 0; i < vocab; i++) {
            total += exp(p[i] - log_p) * (p[i] - log_p - q[i] + log_q);
        }
    }
    return total / (WINDOWS * LENGTH);
}

/* values[] = a matrix as a loader sees it, rounded to `bits` with searched scales. */
static void round_values(float *values, const fixture *f, unsigned index, unsigned bits,
                         const float *w) {
    const ingot_tensor_spec *s = &f->specs[index];
    const ingot_quant_format format = {bits, s->group, s->zero_mode, s->scale_dtype};
    ingot_arena *arena;
    ingot_quantized q;
    CU_ASSERT_FATAL(ingot_arena_create(&arena) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_quantized_create(&q, s->dim[0], s->dim[1], &format, arena) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_quantize_search(&q, w, NULL, arena, f->backend.pool) == INGOT_OK);
    if (s->outlier_count != 0) {
        CU_ASSERT_FATAL(f->backend.ops->outliers_choose(f->backend.context, &q, w, NULL,
                                                        s->outlier_count, s->dtype, arena,
                                                        arena) == INGOT_OK);
        CU_ASSERT_FATAL(ingot_quantize_search(&q, w, NULL, arena, f->backend.pool) == INGOT_OK);
    }
    ingot_quantized_values(values, &q, f->backend.pool);
    ingot_arena_destroy(arena);
}

static void test_reference(void) {
    fixture f;
    ingot_sensitivity got[TENSORS];
    open_fixture(&f, tiny_seed());
    const uint64_t vocab = f.tiny->model.vocab;
    double *exact = calloc(WINDOWS * LENGTH * vocab, sizeof *exact),
           *rounded = calloc(WINDOWS * LENGTH * vocab, sizeof *rounded);
    CU_ASSERT_FATAL(ingot_sensitivity_measure(got, &f.job, NULL) == INGOT_OK);
    all_logits(&f, exact);
    for (unsigned i = 0; i < TENSORS; i++) {
        tiny_tensor *tensor = tiny_find(f.tiny, f.names[i]);
        float *const w = tensor->data;
        tensor->data = calloc(tensor->rows * tensor->cols, sizeof *w);
        for (unsigned k = 0; k < INGOT_MEASURED_COUNT; k++) {
            round_values(tensor->data, &f, i, INGOT_MEASURED_LEAST + k, w);
            all_logits(&f, rounded);
            const double expected = mean_kl(exact, rounded, vocab);
            CU_ASSERT(expected > 0 && fabs(got[i].kl[k] - expected) <= 1e-4 * expected + 1e-7);
        }
        free(tensor->data);
        tensor->data = w;
    }
    free(exact);
    free(rounded);
    close_fixture(&f);
}

static void test_waves(void) {
    fixture f;
    ingot_sensitivity whole[TENSORS], waves[TENSORS];
    open_fixture(&f, tiny_seed() + 1);
    const uint64_t slot = WINDOWS * LENGTH * f.tiny->model.hidden * sizeof(float);
    CU_ASSERT_FATAL(ingot_sensitivity_measure(whole, &f.job, NULL) == INGOT_OK);
    for (uint64_t slots = 1; slots < 8; slots += 3) { /* 1: still two, the exact model and one */
        f.job.state_bytes = slots * slot;
        CU_ASSERT_FATAL(ingot_sensitivity_measure(waves, &f.job, NULL) == INGOT_OK);
        for (unsigned i = 0; i < TENSORS; i++) {
            for (unsigned k = 0; k < INGOT_MEASURED_COUNT; k++) {
                CU_ASSERT(fabs(waves[i].kl[k] - whole[i].kl[k]) <= 1e-5 * whole[i].kl[k] + 1e-8);
            }
        }
    }
    close_fixture(&f);
}

static void test_costs(void) {
    const ingot_sensitivity usual = {{1, 0.25, 0.0625}}, odd = {{0.5, 0.75, 0.6}};
    double cost[INGOT_WIDTH_COUNT];
    ingot_sensitivity_costs(cost, &usual);
    for (unsigned w = 0; w < INGOT_WIDTH_COUNT; w++) {
        CU_ASSERT(cost[w] == ldexp(1, -2 * (int)w));
    }
    ingot_sensitivity_costs(cost, &odd);
    CU_ASSERT(cost[0] == 0.5 && cost[1] == 0.5 && cost[2] == 0.5 && cost[3] == 0.125);
}

static void test_windows(void) {
    uint32_t ids[20 * 300];
    for (unsigned i = 0; i < 20 * 300; i++) {
        ids[i] = i;
    }
    const ingot_windows many = {.ids = ids, .count = 20, .length = 300},
                        one = {.ids = ids, .count = 1, .length = 5};
    ingot_windows w;
    CU_ASSERT_FATAL(ingot_sensitivity_windows(&w, &many) == INGOT_OK);
    CU_ASSERT(w.count == 8 && w.length == 256 && w.ids[0] == 0 && w.ids[255] == 255);
    CU_ASSERT(w.ids[7 * 256] == 19 * 300 && w.ids[256] == 2 * 300);
    ingot_windows_free(&w);
    CU_ASSERT_FATAL(ingot_sensitivity_windows(&w, &one) == INGOT_OK);
    CU_ASSERT(w.count == 1 && w.length == 5 && w.ids[4] == 4);
    ingot_windows_free(&w);
}

static void test_table(void) {
    fixture f;
    char path[] = "/tmp/ingot-sensitivity-XXXXXX";
    ingot_sensitivity kept[TENSORS], got[TENSORS];
    ingot_sensitivity_key key, other;
    ingot_table_state state;
    ingot_error error;
    open_fixture(&f, tiny_seed() + 2);
    const int file = mkstemp(path);
    CU_ASSERT_FATAL(file >= 0 && close(file) == 0 && unlink(path) == 0);
    for (unsigned i = 0; i < TENSORS * INGOT_MEASURED_COUNT; i++) {
        kept[i / INGOT_MEASURED_COUNT].kl[i % INGOT_MEASURED_COUNT] = 1.0 / (3 + i);
    }
    memset(&key, 17, sizeof key);
    CU_ASSERT_FATAL(ingot_sensitivity_setting(key.setting, &f.job) == INGOT_OK);
    CU_ASSERT(ingot_sensitivity_read(got, &state, path, &f.job, &key, &error) == INGOT_OK &&
              state == INGOT_TABLE_ABSENT);
    CU_ASSERT_FATAL(ingot_sensitivity_write(kept, path, &f.job, &key, &error) == INGOT_OK);
    CU_ASSERT(ingot_sensitivity_read(got, &state, path, &f.job, &key, &error) == INGOT_OK &&
              state == INGOT_TABLE_READ && memcmp(got, kept, sizeof got) == 0);
    for (unsigned i = 0; i < 3; i++) {
        other = key;
        (i == 0 ? other.source : i == 1 ? other.text : other.setting)[5]++;
        CU_ASSERT(ingot_sensitivity_read(got, &state, path, &f.job, &other, &error) == INGOT_OK &&
                  state == (ingot_table_state)(INGOT_TABLE_OTHER_SOURCE + i));
    }
    f.specs[4].group = 8; /* every part of the geometry is in the key */
    CU_ASSERT(ingot_sensitivity_setting(other.setting, &f.job) == INGOT_OK &&
              memcmp(other.setting, key.setting, sizeof key.setting) != 0);
    CU_ASSERT(unlink(path) == 0);
    close_fixture(&f);
}

int main(void) {
    const CU_TestInfo tests[] = {{"against FP64, model by model", test_reference},
                                 {"waves", test_waves},
                                 {"costs of all widths", test_costs},
                                 {"windows", test_windows},
                                 {"the kept table", test_table},
                                 CU_TEST_INFO_NULL};
    return suite_run("sensitivity", tests);
}
