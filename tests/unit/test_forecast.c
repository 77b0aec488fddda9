/* What is said before any work: memory of statistics (convert/plan_forecast.h), and how long
 * learning takes, by a short measurement (convert/plan_learning.h). */
#include "convert/plan_learning.h"

#include "calib/score.h"
#include "calib/self_text.h"
#include "calib/stats.h"
#include "common/progress.h"
#include "convert/plan_measure.h"
#include "suite.h"

#include <math.h>
#include <time.h>

#define TINY "tests/fixtures/tiny-llama"
/* What a process has on a device from the start. */
#define BASE (32u << 20)

/* Calls that take as long as it says, and what they took. */
typedef struct script {
    double seconds[8], taken[8];
    unsigned calls;
} script;

static ingot_status play(void *context) {
    script *s = context;
    const double start = ingot_clock_seconds();
    const struct timespec nap = {.tv_nsec = (long)(1e9 * s->seconds[s->calls])};
    (void)nanosleep(&nap, NULL);
    s->taken[s->calls++] = ingot_clock_seconds() - start;
    return INGOT_OK;
}

static ingot_status wait_for_nothing(void *context) {
    (void)context;
    return INGOT_OK;
}

/* Other processes have the processor for all calls but one. */
static void test_least(void) {
    const ingot_backend_ops ops = {.wait = wait_for_nothing};
    const ingot_backend backend = {.ops = &ops};
    script slow = {.seconds = {0.06, 0.05, 0.001, 0.05}};
    double seconds, longer = 1;
    CU_ASSERT_EQUAL(ingot_time_work(&seconds, &longer, &backend, play, &slow), INGOT_OK);
    CU_ASSERT_EQUAL(slow.calls, 4);
    CU_ASSERT(seconds >= slow.taken[2] && seconds < 0.03);
    CU_ASSERT(longer > 1 + 0.03 && longer < 1 + slow.taken[0]);
    script quick = {.seconds = {0.001, 0.006, 0.006, 0.006, 0.006, 0.006, 0.006, 0.006}};
    CU_ASSERT_EQUAL(ingot_time_work(&seconds, &longer, &backend, play, &quick), INGOT_OK);
    CU_ASSERT(quick.calls > 4 && seconds >= 0.006);
}

/* Of a block of the model's shape, there and back, or of none where it is large. */
static void test_pace(void) {
    ingot_error error;
    ingot_backend backend;
    ingot_checkpoint *checkpoint;
    ingot_weight_source source;
    ingot_model model;
    ingot_recipe recipe = {.defaults = {.bits = 4, .group = 32, .is_symmetric = true}};
    ingot_learning_pace pace, longer;
    bool has_pace = false;
    CU_ASSERT_EQUAL_FATAL(ingot_backend_open(&backend, "cpu", 1, &error), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_checkpoint_open(&checkpoint, TINY, &error), INGOT_OK);
    ingot_weight_source_from_checkpoint(&source, checkpoint);
    CU_ASSERT_EQUAL_FATAL(ingot_model_open(&model, &source, &error), INGOT_OK);
    ingot_forecast_job job = {
        .checkpoint = checkpoint, .model = &model, .recipe = &recipe, .windows = 4, .length = 32};
    CU_ASSERT_EQUAL(ingot_learning_measure(&pace, &has_pace, &job, &backend, 1e9, &error),
                    INGOT_OK);
    CU_ASSERT(has_pace);
    CU_ASSERT(pace.pass > 0 && pace.step > 0 && pace.head > 0);
    CU_ASSERT(pace.learn > pace.pass);
    /* what is longer than the window that is measured counts by its products */
    job.length = 1 << 20;
    CU_ASSERT_EQUAL(ingot_learning_measure(&longer, &has_pace, &job, &backend, 1e3, &error),
                    INGOT_OK);
    CU_ASSERT(longer.pass > 100 * pace.pass);
    model.linear[INGOT_ROLE_Q].rows = 1 << 20;
    CU_ASSERT_EQUAL(ingot_learning_measure(&pace, &has_pace, &job, &backend, 1e9, &error),
                    INGOT_OK);
    CU_ASSERT(!has_pace && pace.pass == 0);
    ingot_model_close(&model);
    ingot_checkpoint_close(checkpoint);
    ingot_backend_close(&backend);
}

/* Statistics: calls of as many windows as ingot-calib runs at once, and the model whole where it
 * writes the text. */
static void test_statistics(void) {
    ingot_error error;
    ingot_checkpoint *checkpoint;
    ingot_weight_source source;
    ingot_model model;
    CU_ASSERT_EQUAL_FATAL(ingot_checkpoint_open(&checkpoint, TINY, &error), INGOT_OK);
    ingot_weight_source_from_checkpoint(&source, checkpoint);
    CU_ASSERT_EQUAL_FATAL(ingot_model_open(&model, &source, &error), INGOT_OK);
    const uint64_t length = 32, batch = 8192;
    const ingot_plan plan = {.block_bytes = 1 << 10, .source_bytes = UINT64_C(1) << 40};
    ingot_forecast_job job = {
        .checkpoint = checkpoint, .model = &model, .plan = &plan, .windows = 64, .length = length};
    ingot_statistics_need all, few, written;
    CU_ASSERT_EQUAL(ingot_stats_call_tokens(&model, 64, length, batch, 0), 64 * length);
    CU_ASSERT_EQUAL(ingot_stats_call_tokens(&model, 1024, length, batch, 0), batch);
    model.ffn = 1 << 20; /* 8 MiB a token */
    CU_ASSERT_EQUAL(ingot_stats_call_tokens(&model, 64, length, batch, 0), length);
    CU_ASSERT_EQUAL(ingot_stats_call_tokens(&model, 64, length, batch, UINT64_C(1) << 40), 2048);
    CU_ASSERT_EQUAL(ingot_forecast_statistics_make(&all, &job), INGOT_OK);
    job.windows = 1;
    CU_ASSERT_EQUAL(ingot_forecast_statistics_make(&few, &job), INGOT_OK);
    const uint64_t states = 63 * length * model.hidden * sizeof(float);
    CU_ASSERT_EQUAL(all.cuda.device_bytes - few.cuda.device_bytes, states);
    CU_ASSERT_EQUAL(all.cpu.host_bytes - few.cpu.host_bytes, states);
    CU_ASSERT_EQUAL(all.cuda_least_bytes, all.cuda.device_bytes);
    model.ffn = 1 << 10;
    CU_ASSERT_EQUAL(ingot_forecast_statistics_make(&few, &job), INGOT_OK);
    job.windows = 64;
    CU_ASSERT_EQUAL(ingot_forecast_statistics_make(&all, &job), INGOT_OK);
    CU_ASSERT_EQUAL(all.cuda_least_bytes, few.cuda_least_bytes + states);
    CU_ASSERT(all.cuda.device_bytes > all.cuda_least_bytes);
    job.text_bytes = 1 << 20; /* once as it is, once as ids */
    ingot_statistics_need read;
    CU_ASSERT_EQUAL(ingot_forecast_statistics_make(&read, &job), INGOT_OK);
    CU_ASSERT_EQUAL(read.cpu.host_bytes, all.cpu.host_bytes + (2 << 20));
    CU_ASSERT_EQUAL(read.cuda.host_bytes, all.cuda.host_bytes + (2 << 20));
    job.text_bytes = 0;
    job.writes_text = true;
    uint64_t host_least, device_least;
    const uint64_t host = ingot_self_text_bytes(&host_least, &model, 64, length, false);
    const uint64_t device = ingot_self_text_bytes(&device_least, &model, 64, length, true);
    CU_ASSERT_EQUAL(ingot_forecast_statistics_make(&written, &job), INGOT_OK);
    CU_ASSERT(written.cpu.host_bytes > plan.source_bytes + host);
    CU_ASSERT_EQUAL(written.cuda.device_bytes, BASE + plan.source_bytes + device);
    CU_ASSERT_EQUAL(written.cuda_least_bytes, BASE + plan.source_bytes + device_least);
    CU_ASSERT(device_least < device);
    ingot_model_close(&model);
    ingot_checkpoint_close(checkpoint);
}

/* Scoring: a text by its windows, items by their choices, each behind its context; one after the
 * other, items being read before. */
static void test_scoring_memory(void) {
    ingot_error error;
    ingot_checkpoint *checkpoint;
    ingot_weight_source source;
    ingot_model model;
    ingot_forecast none, text, items, both, cut;
    CU_ASSERT_EQUAL_FATAL(ingot_checkpoint_open(&checkpoint, TINY, &error), INGOT_OK);
    ingot_weight_source_from_checkpoint(&source, checkpoint);
    CU_ASSERT_EQUAL_FATAL(ingot_model_open(&model, &source, &error), INGOT_OK);
    const uint64_t length = 32, batch = 8192, context = model.context;
    const ingot_plan plan = {.block_bytes = 1 << 20};
    const ingot_recipe recipe = {.defaults = {.bits = 4, .group = 32}};
    ingot_forecast_job job = {
        .checkpoint = checkpoint, .model = &model, .plan = &plan, .recipe = &recipe};
    CU_ASSERT_FATAL(context > length);
    ingot_forecast_make(&none, &job);
    CU_ASSERT_EQUAL(none.scoring_cpu.host_bytes + none.scoring_cuda.device_bytes, 0);
    job.scoring = (ingot_scoring_job){.text_bytes = 500, .windows = 2, .length = length};
    ingot_forecast_make(&text, &job);
    CU_ASSERT_EQUAL(text.scoring_cuda.device_bytes,
                    BASE + 2 * plan.block_bytes +
                        ingot_score_bytes(&model, 2 * length, length, batch));
    /* 4 items of 20 choices */
    const ingot_tasks_size size = {4, 80, 5000, 50.5, 3, 60};
    uint64_t read;
    const uint64_t kept = ingot_tasks_bytes(&read, &size);
    CU_ASSERT(read > size.text_bytes && kept - read > 80 * 50 * sizeof(uint32_t));
    job.scoring = (ingot_scoring_job){.items = size};
    ingot_forecast_make(&items, &job);
    CU_ASSERT_EQUAL(items.scoring_cuda.device_bytes,
                    BASE + 2 * plan.block_bytes +
                        ingot_score_bytes(&model, 80 * 50 + 40, 60, batch));
    CU_ASSERT_EQUAL(items.scoring_least_bytes,
                    BASE + 2 * plan.block_bytes + ingot_score_bytes(&model, 60, 60, batch));
    CU_ASSERT_EQUAL(items.scoring_cuda.host_bytes - kept,
                    text.scoring_cuda.host_bytes - 2 * 32 * 28);
    job.scoring =
        (ingot_scoring_job){.text_bytes = 500, .windows = 2, .length = length, .items = size};
    ingot_forecast_make(&both, &job);
    CU_ASSERT_EQUAL(both.scoring_cuda.device_bytes, items.scoring_cuda.device_bytes);
    CU_ASSERT_EQUAL(both.scoring_cpu.host_bytes, items.scoring_cpu.host_bytes);
    job.scoring.text_bytes = UINT64_C(1) << 20; /* more than the items */
    job.scoring.windows = 0;
    ingot_forecast_make(&both, &job);
    job.scoring.items = (ingot_tasks_size){0};
    ingot_forecast_make(&text, &job);
    CU_ASSERT_EQUAL(both.scoring_cpu.host_bytes, text.scoring_cpu.host_bytes + read);
    CU_ASSERT_EQUAL(both.scoring_cuda.device_bytes, text.scoring_cuda.device_bytes);
    /* all of a text is read, whatever is scored of it */
    job.scoring.windows = 2;
    ingot_forecast_make(&both, &job);
    job.scoring.text_bytes *= 2;
    ingot_forecast_make(&text, &job);
    CU_ASSERT_EQUAL(text.scoring_cpu.host_bytes, both.scoring_cpu.host_bytes + (2 << 20));
    CU_ASSERT_EQUAL(text.scoring_cuda.device_bytes, both.scoring_cuda.device_bytes);
    /* what is longer than the context is cut */
    job.scoring = (ingot_scoring_job){.items = {4, 80, 5000, 1e9, 3, 2e9}};
    ingot_forecast_make(&cut, &job);
    CU_ASSERT_EQUAL(cut.scoring_cuda.device_bytes,
                    BASE + 2 * plan.block_bytes +
                        ingot_score_bytes(&model, 80 * context, context, batch));
    ingot_model_close(&model);
    ingot_checkpoint_close(checkpoint);
}

/* Scoring: a device whose memory is its own is started by every process. */
static void test_scoring(void) {
    ingot_error error;
    ingot_backend backend;
    ingot_checkpoint *checkpoint;
    ingot_weight_source source;
    ingot_model model;
    ingot_speeds *speeds;
    ingot_scoring_pace pace, wide, started;
    CU_ASSERT_EQUAL_FATAL(ingot_backend_open(&backend, "cpu", 1, &error), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_checkpoint_open(&checkpoint, TINY, &error), INGOT_OK);
    ingot_weight_source_from_checkpoint(&source, checkpoint);
    CU_ASSERT_EQUAL_FATAL(ingot_model_open(&model, &source, &error), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_speeds_create(&speeds, &backend, 30), INGOT_OK);
    const ingot_forecast_job job = {.checkpoint = checkpoint, .model = &model};
    CU_ASSERT_EQUAL(ingot_forecast_scoring(&pace, &job, speeds, &error), INGOT_OK);
    CU_ASSERT_EQUAL(pace.start, 0);
    CU_ASSERT(pace.token > 0 && pace.scored > 0);
    const double unit = pace.scored / (double)(model.vocab * model.hidden);
    CU_ASSERT_DOUBLE_EQUAL(pace.length / unit,
                           (double)(model.layers * model.heads * model.head_dim), 1e-3);
    model.vocab *= 2;
    CU_ASSERT_EQUAL(ingot_forecast_scoring(&wide, &job, speeds, &error), INGOT_OK);
    CU_ASSERT_DOUBLE_EQUAL(wide.scored / pace.scored, 2, 1e-9);
    CU_ASSERT_EQUAL(wide.token, pace.token);
    backend.has_own_memory = true; /* what was measured stays */
    CU_ASSERT_EQUAL(ingot_forecast_scoring(&started, &job, speeds, &error), INGOT_OK);
    CU_ASSERT(started.start >= 30);
    backend.has_own_memory = false;
    ingot_speeds_destroy(speeds);
    ingot_model_close(&model);
    ingot_checkpoint_close(checkpoint);
    ingot_backend_close(&backend);
}

int main(void) {
    const CU_TestInfo tests[] = {
        {"the least of several calls", test_least}, {"steps of learning", test_pace},
        {"memory of statistics", test_statistics},  {"memory of scoring", test_scoring_memory},
        {"the time of scoring", test_scoring},      CU_TEST_INFO_NULL};
    return suite_run("forecast", tests);
}
