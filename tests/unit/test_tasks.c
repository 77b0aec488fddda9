/* Task items: what is read, how choices are cut into tokens, and answers against FP64. */
#include "suite_cpu.h"

#include "calib/tasks.h"
#include "common/files.h"
#include "common/memory.h"
#include "signal_child.h"
#include "verify/verify.h"

#define CONTEXT 40u /* tokens that the model is given at most */
#define ITEMS   60u
#define CHOICES 4u

static ingot_tokenizer *tokenizer;
static char path[] = "/tmp/ingot-tasks-XXXXXX";

/* Letters, and merges that join what comes before a choice with its beginning. */
static const char tokenizer_json[] =
    "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"d\":3,\"e\":4,\"ab\":5,"
    "\"cd\":6,\"abc\":7,\"ee\":8},\"merges\":[\"a b\",\"c d\",\"e e\",\"ab c\"]}}";

static ingot_status read_items(ingot_tasks *out, const char *text, ingot_error *error) {
    CU_ASSERT_EQUAL_FATAL(ingot_file_write_all(path, text, strlen(text), true, error), INGOT_OK);
    return ingot_tasks_read(out, path, error);
}

static void test_reading(void) {
    ingot_tasks tasks;
    ingot_error error = {0};
    const char *good = "\n{\"context\":\"ab\",\"choices\":[\"c\",\"d\\u00e9\"],\"answer\":1,"
                       "\"id\":7}\r\n \t\n"
                       "{\"answer\":0,\"choices\":[\"a\",\"b\",\"c\"],\"context\":\"e\"}";
    CU_ASSERT_EQUAL_FATAL(read_items(&tasks, good, &error), INGOT_OK);
    CU_ASSERT_EQUAL(tasks.count, 2);
    CU_ASSERT_EQUAL(tasks.choices, 5);
    CU_ASSERT_EQUAL(tasks.items[0].line, 2);
    CU_ASSERT_EQUAL(tasks.items[0].answer, 1);
    CU_ASSERT_EQUAL(tasks.items[1].line, 4);
    CU_ASSERT_EQUAL(tasks.items[1].choice_count, 3);
    CU_ASSERT_STRING_EQUAL(tasks.items[1].context, "e");
    ingot_tasks_free(&tasks);
}

static void test_malformed(void) {
    static const struct {
        const char *line, *reason;
    } cases[] = {
        {"{\"context\":\"a\"", "line 2: not valid JSON"},
        {"[1]", "line 2: not an object"},
        {"{\"choices\":[\"a\",\"b\"],\"answer\":0}", "\"context\""},
        {"{\"context\":7,\"choices\":[\"a\",\"b\"],\"answer\":0}", "\"context\""},
        {"{\"context\":\"\",\"choices\":[\"a\",\"b\"],\"answer\":0}", "\"context\""},
        {"{\"context\":\"a\",\"choices\":\"ab\",\"answer\":0}", "no list"},
        {"{\"context\":\"a\",\"choices\":[\"a\"],\"answer\":0}", "2 to 64"},
        {"{\"context\":\"a\",\"choices\":[\"a\",2],\"answer\":0}", "a choice"},
        {"{\"context\":\"a\",\"choices\":[\"a\",\"\"],\"answer\":0}", "a choice"},
        {"{\"context\":\"a\",\"choices\":[\"a\",\"b\"]}", "\"answer\""},
        {"{\"context\":\"a\",\"choices\":[\"a\",\"b\"],\"answer\":2}", "\"answer\""},
        {"{\"context\":\"a\",\"choices\":[\"a\",\"b\"],\"answer\":-1}", "\"answer\""},
        {"{\"context\":\"a\",\"choices\":[\"a\",\"b\"],\"answer\":\"a\"}", "\"answer\""},
        {"{\"context\":\"a\\u0000\",\"choices\":[\"a\",\"b\"],\"answer\":0}", "not valid JSON"},
    };
    char text[512];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ingot_tasks tasks;
        ingot_error error = {0};
        (void)snprintf(text, sizeof text,
                       "{\"context\":\"a\",\"choices\":[\"a\",\"b\"],\"answer\":0}\n%s\n",
                       cases[i].line);
        CU_ASSERT_EQUAL(read_items(&tasks, text, &error), INGOT_ERR_INPUT);
        CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "line 2: "));
        CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, cases[i].reason));
        CU_ASSERT_PTR_NULL(tasks.items);
    }
    ingot_tasks tasks;
    ingot_error error = {0};
    CU_ASSERT_EQUAL(read_items(&tasks, "\n\n", &error), INGOT_ERR_INPUT);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "no item"));
    CU_ASSERT_EQUAL(ingot_tasks_read(&tasks, "/no/such/file", &error), INGOT_ERR_NOT_FOUND);
}

/* Too many choices, too many items. */
static void test_limits(void) {
    ingot_tasks tasks;
    ingot_error error = {0};
    const char *item = "{\"context\":\"a\",\"choices\":[\"a\",\"b\"],\"answer\":0}\n";
    const size_t length = strlen(item), count = INGOT_TASK_ITEMS_MAX + 1;
    char *text = malloc(length * count + 1);
    for (size_t i = 0; i < count; i++) {
        memcpy(text + i * length, item, length + 1);
    }
    CU_ASSERT_EQUAL(read_items(&tasks, text, &error), INGOT_ERR_INPUT);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "line 100001: more than 100000"));
    free(text);
    char wide[1024] = "{\"context\":\"a\",\"answer\":0,\"choices\":[\"a\"";
    for (unsigned i = 0; i < INGOT_TASK_CHOICES_MAX; i++) {
        (void)strcat(wide, ",\"a\"");
    }
    CU_ASSERT_EQUAL(read_items(&tasks, strcat(wide, "]}"), &error), INGOT_ERR_INPUT);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "2 to 64"));
}

/* ---- answers ------------------------------------------------------------------------------- */

static ingot_status run(ingot_task_score *out, const char *text, const tiny_model *candidate,
                        const tiny_model *source, uint64_t batch_bytes, ingot_error *error) {
    ingot_tasks tasks;
    CU_ASSERT_EQUAL_FATAL(read_items(&tasks, text, error), INGOT_OK);
    const ingot_status status = ingot_tasks_score(
        out, &tasks, path, tokenizer, CONTEXT, &candidate->model, &candidate->source,
        source == NULL ? NULL : &source->source, &backend, batch_bytes, NULL, error);
    ingot_tasks_free(&tasks);
    return status;
}

/* How long sequences are, by tokens of all items, by those of the first, and by bytes. */
static void test_measure(void) {
    ingot_tasks tasks;
    ingot_tasks_size size;
    ingot_error error = {0};
    /* e abc, e ab d: the choices begin where ab and c join; then a ab, a e, a ee */
    const char *text = "{\"context\":\"eab\",\"choices\":[\"c\",\"d\"],\"answer\":0}\n"
                       "{\"context\":\"a\",\"choices\":[\"ab\",\"e\",\"ee\"],\"answer\":0}\n";
    CU_ASSERT_EQUAL_FATAL(read_items(&tasks, text, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_tasks_measure(&size, &tasks, path, tokenizer, CONTEXT, 1 << 20, &error),
                    INGOT_OK);
    CU_ASSERT_DOUBLE_EQUAL(size.tokens, 11.0 / 5, 1e-12);
    CU_ASSERT_DOUBLE_EQUAL(size.scored, 6.0 / 5, 1e-12);
    CU_ASSERT_EQUAL(size.longest, 3);
    CU_ASSERT(size.items == 2 && size.choices == 5 && size.text_bytes == 11);
    CU_ASSERT_EQUAL(ingot_tasks_measure(&size, &tasks, path, tokenizer, CONTEXT, 8, &error),
                    INGOT_OK);
    CU_ASSERT_DOUBLE_EQUAL(size.tokens, (5 + 5.0 / 8 * 8) / 5, 1e-12);
    CU_ASSERT_DOUBLE_EQUAL(size.scored, (3 + 3.0 / 2 * 5) / 5, 1e-12);
    CU_ASSERT_EQUAL(size.longest, 3);
    CU_ASSERT_EQUAL(ingot_tasks_measure(&size, &tasks, path, NULL, CONTEXT, 8, &error), INGOT_OK);
    CU_ASSERT_DOUBLE_EQUAL(size.tokens, 16.0 / 5, 1e-12);
    CU_ASSERT_DOUBLE_EQUAL(size.scored, 7.0 / 5, 1e-12);
    CU_ASSERT_EQUAL(size.longest, 4);
    CU_ASSERT_EQUAL(ingot_tasks_measure(&size, &tasks, path, tokenizer, 2, 8, &error),
                    INGOT_ERR_INPUT);
    ingot_tasks_free(&tasks);
    /* those behind the first by their bytes, the longest among them */
    text = "{\"context\":\"a\",\"choices\":[\"e\",\"ee\"],\"answer\":0}\n"
           "{\"context\":\"a\",\"choices\":[\"e\",\"eeeee\"],\"answer\":0}\n";
    CU_ASSERT_EQUAL_FATAL(read_items(&tasks, text, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_tasks_measure(&size, &tasks, path, tokenizer, CONTEXT, 1, &error),
                    INGOT_OK);
    CU_ASSERT_DOUBLE_EQUAL(size.longest, 6 * 4.0 / 5, 1e-12);
    ingot_tasks_free(&tasks);
}

/* A random text of the five letters. */
static void random_text(tiny_model *t, char *out, uint64_t length) {
    for (uint64_t i = 0; i < length; i++) {
        out[i] = "abcde"[tiny_bits(t) % 5];
    }
    out[length] = '\0';
}

typedef struct item {
    char context[128], choice[CHOICES][16];
    unsigned answer;
} item;

typedef struct encoded {
    uint32_t *ids;
    uint64_t count;
} encoded;

static encoded encode(const char *a, const char *b) {
    char text[160];
    encoded result;
    ingot_error error;
    (void)snprintf(text, sizeof text, "%s%s", a, b);
    CU_ASSERT_EQUAL_FATAL(
        ingot_tokenizer_encode(tokenizer, text, strlen(text), &result.ids, &result.count, &error),
        INGOT_OK);
    return result;
}

/* The answer of one model by the rules of spec/quality.md, and by how much it leads. */
static unsigned reference(const tiny_model *t, const item *one, double *lead) {
    const uint64_t vocab = t->model.vocab;
    encoded context = encode(one->context, ""), full[CHOICES];
    uint64_t first = context.count, longest = 0;
    double *logits = malloc(CONTEXT * vocab * sizeof *logits), score[CHOICES];
    for (unsigned c = 0; c < CHOICES; c++) {
        full[c] = encode(one->context, one->choice[c]);
        longest = full[c].count > longest ? full[c].count : longest;
        while (memcmp(full[c].ids, context.ids, first * sizeof *context.ids) != 0) {
            first--;
        }
    }
    const uint64_t skip = longest > CONTEXT ? longest - CONTEXT : 0;
    unsigned best = 0;
    for (unsigned c = 0; c < CHOICES; c++) {
        const uint32_t *ids = full[c].ids + skip;
        const uint64_t length = full[c].count - skip;
        tiny_ref_logits(t, ids, length, logits);
        score[c] = 0;
        for (uint64_t i = first - skip; i < length; i++) {
            const double *row = logits + (i - 1) * vocab;
            double total = exp(row[0]);
            for (uint64_t k = 1; k < vocab; k++) {
                total += exp(row[k]);
            }
            score[c] += (row[ids[i]] - log(total)) / (double)strlen(one->choice[c]);
        }
        best = score[c] > score[best] ? c : best;
        ingot_free(full[c].ids);
    }
    *lead = INFINITY;
    for (unsigned c = 0; c < CHOICES; c++) {
        *lead = c != best ? fmin(*lead, score[best] - score[c]) : *lead;
    }
    ingot_free(context.ids);
    free(logits);
    return best;
}

/* Up to twice what the model is given, and mostly shorter. */
static void random_item(tiny_model *t, item *out, bool is_long) {
    random_text(t, out->context, 1 + tiny_bits(t) % (is_long ? 90 : 25));
    for (unsigned c = 0; c < CHOICES; c++) {
        random_text(t, out->choice[c], 3 + tiny_bits(t) % 9);
    }
    /* A context that a merge swallows whole would have no token of its own. */
    out->context[0] = 'd';
    out->answer = (unsigned)(tiny_bits(t) % CHOICES);
}

static void test_answers(void) {
    tiny_model *source = tiny_create(TINY_TIED, seed), *candidate = tiny_create(TINY_TIED, seed);
    for (unsigned i = 0; i < candidate->count; i++) {
        for (uint64_t k = 0; k < candidate->tensor[i].rows * candidate->tensor[i].cols; k++) {
            candidate->tensor[i].data[k] += 0.05f * tiny_value(candidate);
        }
    }
    static item items[ITEMS];
    char *text = calloc(ITEMS, 512);
    uint64_t correct = 0, source_correct = 0, lost = 0, gained = 0, changed = 0;
    unsigned answers[ITEMS][2];
    for (unsigned i = 0; i < ITEMS; i++) {
        double lead[2];
        do { /* until FP32 and FP64 must agree */
            random_item(source, &items[i], i % 4 == 0);
            answers[i][0] = reference(candidate, &items[i], &lead[0]);
            answers[i][1] = reference(source, &items[i], &lead[1]);
        } while (lead[0] < 1e-4 || lead[1] < 1e-4);
        (void)sprintf(text + strlen(text),
                      "{\"context\":\"%s\",\"choices\":[\"%s\",\"%s\",\"%s\",\"%s\"],"
                      "\"answer\":%u}\n",
                      items[i].context, items[i].choice[0], items[i].choice[1], items[i].choice[2],
                      items[i].choice[3], items[i].answer);
        const bool is_right = answers[i][0] == items[i].answer;
        const bool was_right = answers[i][1] == items[i].answer;
        correct += is_right;
        source_correct += was_right;
        lost += was_right && !is_right;
        gained += is_right && !was_right;
        changed += answers[i][0] != answers[i][1];
    }
    CU_ASSERT(changed > 0 && changed < ITEMS); /* there is something to tell apart */
    static const uint64_t batches[] = {0, 1, 60 * 24 * 2 * sizeof(float)};
    for (int b = 0; b < 3; b++) {
        ingot_task_score score;
        ingot_error error = {0};
        CU_ASSERT_EQUAL_FATAL(run(&score, text, candidate, source, batches[b], &error), INGOT_OK);
        for (unsigned i = 0; i < ITEMS; i++) {
            CU_ASSERT_EQUAL(score.answers[i].candidate, answers[i][0]);
            CU_ASSERT_EQUAL(score.answers[i].source, answers[i][1]);
        }
        CU_ASSERT_EQUAL(score.items, ITEMS);
        CU_ASSERT_EQUAL(score.correct, correct);
        CU_ASSERT_EQUAL(score.source_correct, source_correct);
        CU_ASSERT_EQUAL(score.lost, lost);
        CU_ASSERT_EQUAL(score.gained, gained);
        CU_ASSERT_EQUAL(score.changed, changed);
        CU_ASSERT_DOUBLE_EQUAL(score.drop, score.source_accuracy - score.accuracy, 1e-12);
        CU_ASSERT(score.drop_low < score.drop && score.drop < score.drop_high);
        ingot_task_score_free(&score);
    }
    ingot_task_score alone;
    ingot_error error = {0};
    CU_ASSERT_EQUAL_FATAL(run(&alone, text, candidate, NULL, 0, &error), INGOT_OK);
    CU_ASSERT_EQUAL(alone.correct, correct);
    CU_ASSERT(isnan(alone.source_accuracy) && isnan(alone.drop) && isnan(alone.drop_low));
    ingot_task_score_free(&alone);
    free(text);
    tiny_destroy(source);
    tiny_destroy(candidate);
}

static void test_untokenizable(void) {
    static const struct {
        const char *line, *reason;
    } cases[] = {
        /* "a" and "b" become one token */
        {"{\"context\":\"a\",\"choices\":[\"b\",\"e\"],\"answer\":0}", "no token of its own"},
        {"{\"context\":\"c\",\"choices\":[\"a\",\"\\u00e9\"],\"answer\":0}", "adds no token"},
        {"{\"context\":\"\\u00e9\",\"choices\":[\"d\",\"e\"],\"answer\":0}", "no token of its own"},
        {"{\"context\":\"d\",\"choices\":[\"e\",\"acacacacacacacacacacacacacacacacacacacac\"],"
         "\"answer\":0}",
         "a choice alone"},
    };
    tiny_model *t = tiny_create(0, seed);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ingot_task_score score;
        ingot_error error = {0};
        CU_ASSERT_EQUAL(run(&score, cases[i].line, t, NULL, 0, &error), INGOT_ERR_INPUT);
        CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "line 1: "));
        CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, cases[i].reason));
        CU_ASSERT(isnan(score.accuracy) && score.answers == NULL);
    }
    tiny_destroy(t);
}

/* Worked out by hand: n = 100, 9 lost, 3 gained: p = 10/102, q = 4/102. */
static void test_interval(void) {
    double low, high;
    ingot_paired_interval(&low, &high, 100, 9, 3);
    CU_ASSERT_DOUBLE_EQUAL(low, -0.0121616, 1e-6);
    CU_ASSERT_DOUBLE_EQUAL(high, 0.1298087, 1e-6);
    ingot_paired_interval(&low, &high, 50, 0, 0);
    CU_ASSERT(low < 0 && high > 0);
    CU_ASSERT_DOUBLE_EQUAL(low, -high, 1e-15);
}

/* --max-accuracy-drop needs items and a source; a figure that is not a number fails. */
static void test_gate(void) {
    ingot_verification v;
    ingot_error error = {0};
    ingot_verify_options options = {.source_path = "model",
                                    .device = "auto",
                                    .max_ppl_ratio = NAN,
                                    .max_kld = NAN,
                                    .max_accuracy_drop = 0.02};
    CU_ASSERT_EQUAL(ingot_verify_check_options(&options, &error), INGOT_ERR_USAGE);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.remedy, "--tasks"));
    options.tasks_path = "items.jsonl";
    CU_ASSERT_EQUAL(ingot_verify_check_options(&options, &error), INGOT_OK);
    ingot_verification_init(&v, &options);
    CU_ASSERT_EQUAL(ingot_verify_gates(&v), INGOT_FAIL_GATE);
    v.task_score.drop = 0.02;
    CU_ASSERT_EQUAL(ingot_verify_gates(&v), INGOT_OK);
    CU_ASSERT_EQUAL(v.gates_passed, INGOT_VERDICT_YES);
    v.task_score.drop = 0.021;
    CU_ASSERT_EQUAL(ingot_verify_gates(&v), INGOT_FAIL_GATE);
    CU_ASSERT_EQUAL(v.gates_passed, INGOT_VERDICT_NO);
    ingot_verification_close(&v);
    options.source_path = NULL;
    CU_ASSERT_EQUAL(ingot_verify_check_options(&options, &error), INGOT_ERR_USAGE);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.remedy, "--source"));
}

static ingot_status measure_after_signal(void *context, ingot_error *error) {
    ingot_tasks_size ignored;
    (void)raise(SIGINT);
    return ingot_tasks_measure(&ignored, context, path, tokenizer, CONTEXT, 100, error);
}

/* A signal ends tokenizing before the next item: 96,000 of them were half a minute. */
static void test_interrupt(void) {
    ingot_tasks tasks;
    ingot_error error;
    const char *text = "{\"context\":\"eab\",\"choices\":[\"c\",\"d\"],\"answer\":0}\n";
    CU_ASSERT_EQUAL_FATAL(read_items(&tasks, text, &error), INGOT_OK);
    signal_expect(measure_after_signal, &tasks);
    ingot_tasks_free(&tasks);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"items, blank lines, other keys", test_reading},
        {"malformed items are named by line", test_malformed},
        {"limits", test_limits},
        {"sizes of sequences", test_measure},
        {"answers against FP64, in batches of any size", test_answers},
        {"contexts and choices without tokens, choices too long", test_untokenizable},
        {"the interval of the difference", test_interval},
        {"the gate", test_gate},
        {"a signal between items", test_interrupt},
        CU_TEST_INFO_NULL,
    };
    ingot_error error;
    const int file = mkstemp(path);
    if (file < 0 || close(file) != 0 ||
        ingot_tokenizer_create(&tokenizer, tokenizer_json, sizeof tokenizer_json - 1, "tiny",
                               &error) != INGOT_OK) {
        fprintf(stderr, "test set-up failed\n");
        return 2;
    }
    const int result = suite_run_cpu("tasks", tests);
    ingot_tokenizer_destroy(tokenizer);
    (void)unlink(path);
    return result;
}
