/* Decoding with a cache against full forward passes, the sampler, and text as it comes. */
#include "suite_cpu.h"

#include "calib/decode.h"
#include "calib/text_model.h"
#include "kernels/engine.h"
#include "signal_backend.h"

static uint32_t greedy_reference(const tiny_model *t, const uint32_t *ids, uint64_t count,
                                 double *margin) {
    const uint64_t vocab = t->model.vocab;
    double *logits = malloc(count * vocab * sizeof *logits);
    tiny_ref_logits(t, ids, count, logits);
    const double *row = logits + (count - 1) * vocab;
    uint32_t best = 0;
    double second = -1e300;
    for (uint32_t i = 1; i < vocab; i++) {
        best = row[i] > row[best] ? i : best;
    }
    for (uint32_t i = 0; i < vocab; i++) {
        second = i != best ? fmax(second, row[i]) : second;
    }
    *margin = row[best] - second;
    free(logits);
    return best;
}

/* Greedy ids with the cache equal those of a full pass over everything so far, in FP64. */
static void test_greedy(void) {
    static const unsigned flags[] = {0, TINY_WINDOW | TINY_HEAD_NORMS | TINY_TIED,
                                     TINY_LAYER_NORM | TINY_UNGATED};
    for (int f = 0; f < 3; f++) {
        tiny_model *t = tiny_create(flags[f], seed + (uint64_t)f);
        ingot_decoder *decoder;
        ingot_generation generation;
        ingot_error error;
        ingot_sampler sampler = {0};
        uint32_t ids[40] = {3, 1, 4, 1, 5, 9, 2, 6};
        uint64_t count = 8;
        CU_ASSERT_EQUAL_FATAL(
            ingot_decoder_create(&decoder, &t->model, &t->source, &backend, 31, NULL, &error),
            INGOT_OK);
        CU_ASSERT_EQUAL_FATAL(
            ingot_generate(&generation, decoder, &sampler, ids, count, 24, NULL, NULL, &error),
            INGOT_OK);
        CU_ASSERT_EQUAL_FATAL(generation.count, 24);
        CU_ASSERT_EQUAL(generation.prompt_count, 8);
        CU_ASSERT_EQUAL(generation.decode_steps, 23);
        CU_ASSERT_EQUAL(ingot_decoder_length(decoder), 31);
        CU_ASSERT_FALSE(generation.is_ended);
        for (uint64_t i = 0; i < generation.count; i++) {
            double margin;
            const uint32_t expected = greedy_reference(t, ids, count, &margin);
            CU_ASSERT(generation.ids[i] == expected || margin < 1e-4);
            ids[count++] = generation.ids[i];
        }
        ingot_generation_free(&generation);
        ingot_decoder_destroy(decoder);
        tiny_destroy(t);
    }
}

/* Feeding a prompt longer than one chunk gives the same logits as feeding it token by token. */
static void test_long_prompt(void) {
    enum { count = 1100 };
    tiny_model *t = tiny_create(TINY_WINDOW, seed + 10);
    ingot_decoder *decoder;
    ingot_error error;
    uint32_t ids[count];
    float at_once[50], one_by_one[50];
    tiny_ids(t, ids, count);
    CU_ASSERT_EQUAL_FATAL(
        ingot_decoder_create(&decoder, &t->model, &t->source, &backend, count, NULL, &error),
        INGOT_OK);
    CU_ASSERT_EQUAL(ingot_decoder_feed(decoder, ids, count, at_once, &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_decoder_feed(decoder, ids, 1, NULL, &error), INGOT_ERR_USAGE);
    ingot_decoder_rewind(decoder);
    for (int i = 0; i < count; i++) {
        CU_ASSERT_EQUAL(ingot_decoder_feed(decoder, ids + i, 1, one_by_one, &error), INGOT_OK);
    }
    double worst = 0;
    for (int i = 0; i < 50; i++) {
        worst = fmax(worst, fabs((double)at_once[i] - (double)one_by_one[i]));
    }
    CU_ASSERT(worst < 1e-4);
    ingot_decoder_rewind(decoder);
    ids[0] = 50;
    CU_ASSERT_EQUAL(ingot_decoder_feed(decoder, ids, 1, NULL, &error), INGOT_ERR_INPUT);
    ingot_decoder_destroy(decoder);
    tiny_destroy(t);
}

/* Stops before an end-of-text token, which is not part of the output; and when the cache is full.
 */
static void test_stops(void) {
    tiny_model *t = tiny_create(0, seed + 20);
    ingot_decoder *decoder;
    ingot_generation all, some;
    ingot_error error;
    ingot_sampler sampler = {0};
    const uint32_t prompt[] = {1, 2, 3};
    CU_ASSERT_EQUAL_FATAL(
        ingot_decoder_create(&decoder, &t->model, &t->source, &backend, 20, NULL, &error),
        INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(
        ingot_generate(&all, decoder, &sampler, prompt, 3, 100, NULL, NULL, &error), INGOT_OK);
    CU_ASSERT_EQUAL(all.count, 18); /* 20 fed, and the one that was chosen after them */
    /* The first id that did not occur before it. */
    uint64_t at = 0, i = 1;
    for (uint64_t k = 0; k < all.count && at == 0; k++) {
        for (i = 0; i < k && all.ids[i] != all.ids[k]; i++) {
        }
        at = i == k ? k : 0;
    }
    /* And one that never occurs. */
    uint32_t absent = 0;
    for (uint64_t k = 0; k < all.count; k++) {
        if (all.ids[k] == absent) {
            absent++;
            k = (uint64_t)-1; /* look again from the start */
        }
    }
    t->model.eos_ids[0] = absent;
    t->model.eos_ids[1] = all.ids[at];
    t->model.eos_count = 2;
    ingot_decoder_rewind(decoder);
    CU_ASSERT_EQUAL_FATAL(
        ingot_generate(&some, decoder, &sampler, prompt, 3, 100, NULL, NULL, &error), INGOT_OK);
    CU_ASSERT(some.is_ended);
    CU_ASSERT_EQUAL(some.count, at);
    CU_ASSERT_EQUAL(memcmp(some.ids, all.ids, at * sizeof *all.ids), 0);
    ingot_generation_free(&all);
    ingot_generation_free(&some);
    ingot_decoder_destroy(decoder);
    tiny_destroy(t);
}

static void test_sampler(void) {
    const float logits[5] = {0.0f, 1.0f, 2.0f, 2.0f, -1.0f};
    ingot_sampler greedy = {0};
    CU_ASSERT_EQUAL(ingot_sampler_next(&greedy, logits, 5), 2); /* the lowest index on ties */
    /* SplitMix64 of seed 0: its first three outputs are published. */
    static const uint64_t outputs[3] = {0xE220A8397B1DCDAFull, 0x6E789E6AA1B965F4ull,
                                        0x06C45D188009454Full};
    ingot_sampler sampler = {.temperature = 1, .state = 0};
    const float flat[4] = {0, 0, 0, 0};
    for (int i = 0; i < 3; i++) {
        CU_ASSERT_EQUAL(ingot_sampler_next(&sampler, flat, 4), outputs[i] >> 62);
    }
    /* Frequencies follow the softmax; standard deviations of a binomial as the yardstick. */
    enum { draws = 200000 };
    static const double temperatures[] = {0.5, 1, 3};
    for (int k = 0; k < 3; k++) {
        double weight[5], total = 0;
        uint64_t counts[5] = {0};
        for (int i = 0; i < 5; i++) {
            weight[i] = exp((double)logits[i] / temperatures[k]);
            total += weight[i];
        }
        sampler = (ingot_sampler){.temperature = temperatures[k], .state = seed};
        for (int i = 0; i < draws; i++) {
            const uint32_t id = ingot_sampler_next(&sampler, logits, 5);
            CU_ASSERT_FATAL(id < 5);
            counts[id]++;
        }
        for (int i = 0; i < 5; i++) {
            const double p = weight[i] / total;
            const double deviation = sqrt(draws * p * (1 - p));
            CU_ASSERT(fabs((double)counts[i] - draws * p) < 6 * deviation);
        }
    }
    ingot_sampler again = {.temperature = 1, .state = seed};
    sampler = again;
    for (int i = 0; i < 100; i++) {
        CU_ASSERT_EQUAL(ingot_sampler_next(&again, logits, 5),
                        ingot_sampler_next(&sampler, logits, 5));
    }
    /* Far below and far above: nothing overflows. */
    const float steep[3] = {-1e30f, 1e30f, 0};
    sampler.temperature = 1e-3;
    CU_ASSERT_EQUAL(ingot_sampler_next(&sampler, steep, 3), 1);
}

typedef struct collected {
    char text[4096];
    uint64_t size;
    bool has_partial; /* a piece that is not whole characters */
} collected;

static ingot_status collect(void *context, const char *text, uint64_t size) {
    collected *c = context;
    for (uint64_t i = 0; i < size;) {
        const unsigned char lead = (unsigned char)text[i];
        const uint64_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
        c->has_partial = c->has_partial || (lead & 0xC0) == 0x80 || length > size - i;
        i += length;
    }
    CU_ASSERT_FATAL(c->size + size < sizeof c->text);
    memcpy(c->text + c->size, text, size);
    c->size += size;
    return INGOT_OK;
}

/* Streams the tokens of `text` after those of `prompt`; returns what came out. */
static collected stream_text(const ingot_tokenizer *tokenizer, const char *prompt,
                             const char *text) {
    collected c;
    ingot_text_stream *stream;
    ingot_error error;
    uint32_t *before, *ids;
    uint64_t before_count, count;
    memset(&c, 0, sizeof c);
    CU_ASSERT_EQUAL_FATAL(
        ingot_tokenizer_encode(tokenizer, prompt, strlen(prompt), &before, &before_count, &error),
        INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(
        ingot_tokenizer_encode(tokenizer, text, strlen(text), &ids, &count, &error), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(
        ingot_text_stream_create(&stream, tokenizer, before, before_count, collect, &c, &error),
        INGOT_OK);
    for (uint64_t i = 0; i < count; i++) {
        CU_ASSERT_EQUAL(ingot_text_stream_put(stream, ids[i], &error), INGOT_OK);
    }
    CU_ASSERT_EQUAL(ingot_text_stream_flush(stream, &error), INGOT_OK);
    ingot_text_stream_destroy(stream);
    ingot_free(before);
    ingot_free(ids);
    return c;
}

static const char hard_text[] =
    " naïve café, 日本語 テスト 🙂👩‍👩‍👧 it's 1234!\n\n\tx = y  # "
    "done — “quoted” e\xCC\x81"
    " and so on, for as long as it takes to settle a few tokens.";

static void test_stream_byte_level(void) {
    ingot_text_model from;
    ingot_error error;
    CU_ASSERT_EQUAL_FATAL(ingot_text_model_open(&from, "examples/demo-4m", true, &error), INGOT_OK);
    static const char *const prompts[] = {"The old captain", "x", "日本"};
    for (int i = 0; i < 3; i++) {
        const collected c = stream_text(from.tokenizer, prompts[i], hard_text);
        CU_ASSERT_EQUAL(c.size, strlen(hard_text));
        CU_ASSERT_EQUAL(memcmp(c.text, hard_text, c.size), 0);
        CU_ASSERT_FALSE(c.has_partial);
    }
    /* Many tokens: settled ones are dropped on the way. */
    char long_text[3200] = "";
    while (strlen(long_text) < 3000) {
        strcat(long_text, " é word 語");
    }
    const collected c = stream_text(from.tokenizer, "a", long_text);
    CU_ASSERT_EQUAL(c.size, strlen(long_text));
    CU_ASSERT_EQUAL(memcmp(c.text, long_text, c.size), 0);
    ingot_text_model_close(&from);
}

/* Tokens that are bytes: a run of them that is no UTF-8 in the end gives whole characters too. */
static void test_stream_byte_fallback(void) {
    static const char file[] =
        "{\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"merges\": [],"
        " \"vocab\": {\"z\": 0, \"<0x0A>\": 1, \"<0xC3>\": 2, \"<0xA9>\": 3, \"<0x20>\": 4}},"
        " \"added_tokens\": [{\"content\": \"<end>\", \"special\": true}],"
        " \"decoder\": {\"type\": \"Sequence\","
        " \"decoders\": [{\"type\": \"ByteFallback\"}, {\"type\": \"Fuse\"},"
        " {\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}]}}";
    enum { z, newline, lead, tail, space, end, none };
#define LOST "\xEF\xBF\xBD"
    static const struct {
        uint32_t prompt[18], ids[6];
        const char *text;
    } cases[] = {
        {{z, none}, {newline, lead, tail, z, none}, "\n\xC3\xA9z"},
        {{z, none}, {newline, lead, z, none}, "\n" LOST "z"},
        {{z, none}, {newline, lead, none}, "\n" LOST},
        {{z, none}, {newline, lead, newline, tail, z, none}, "\n" LOST LOST LOST "z"},
        {{z, newline, none}, {lead, z, none}, LOST "z"},
        {{z, newline, none}, {lead, tail, z, none}, "\xC3\xA9z"},
        {{z, none}, {lead, newline, z, none}, LOST LOST "z"},
        /* a space gives no text where it comes first, and stays what it was all the same */
        {{z, none}, {space, z, none}, " z"},
        {{z, none}, {space, lead, tail, z, none}, " \xC3\xA9z"},
        {{z, none}, {space, lead, z, none}, " " LOST "z"},
        {{z, none}, {space, space, space, lead, z, none}, "   " LOST "z"},
        {{z, none}, {newline, space, lead, newline, z, none}, "\n " LOST LOST "z"},
        {{z, space, none}, {lead, z, none}, LOST "z"},
        /* more bytes than are kept as context, which would begin with the second of a character */
        {{lead, tail, lead, tail, lead, tail, lead, tail, lead, tail, lead, tail, lead, tail, lead,
          tail, newline, none},
         {lead, tail, z, none},
         "\xC3\xA9z"},
        /* a row of the model that is no token of the tokenizer */
        {{z, 1000, none}, {1000, z, 1000, lead, tail, none}, "z\xC3\xA9"},
        /* more special tokens than are kept as context: a space behind them is not the first */
        {{z, end, end, end, end, end, end, end, end, end, end, end, end, end, end, end, end, none},
         {space, z, none},
         " z"},
    };
    ingot_tokenizer *tokenizer;
    ingot_error error;
    CU_ASSERT_EQUAL_FATAL(ingot_tokenizer_create(&tokenizer, file, strlen(file), "test", &error),
                          INGOT_OK);
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        ingot_text_stream *stream;
        collected c;
        uint64_t count = 0;
        memset(&c, 0, sizeof c);
        while (cases[i].prompt[count] != none) {
            count++;
        }
        CU_ASSERT_EQUAL_FATAL(ingot_text_stream_create(&stream, tokenizer, cases[i].prompt, count,
                                                       collect, &c, &error),
                              INGOT_OK);
        for (uint64_t k = 0; cases[i].ids[k] != none; k++) {
            CU_ASSERT_EQUAL(ingot_text_stream_put(stream, cases[i].ids[k], &error), INGOT_OK);
        }
        CU_ASSERT_EQUAL(ingot_text_stream_flush(stream, &error), INGOT_OK);
        CU_ASSERT_FALSE(c.has_partial);
        CU_ASSERT_STRING_EQUAL(c.text, cases[i].text);
        ingot_text_stream_destroy(stream);
    }
    ingot_tokenizer_destroy(tokenizer);
}

/* A tokenizer that strips the first space of a text: the space after the prompt is kept. */
static void test_stream_sentencepiece(void) {
    const char *shared = suite_shared();
    char path[512];
    if (shared == NULL) {
        printf("\nSKIP: no ../shared, SentencePiece streaming is not tested\n");
        return;
    }
    ingot_text_model from;
    ingot_error error;
    snprintf(path, sizeof path, "%s/models/stories-260k", shared);
    CU_ASSERT_EQUAL_FATAL(ingot_text_model_open(&from, path, true, &error), INGOT_OK);
    ingot_text_stream *stream;
    collected c;
    uint32_t *ids;
    uint64_t count;
    static const char text[] = "Once upon a time, naïve 日本 girl named Lily was there.";
    memset(&c, 0, sizeof c);
    CU_ASSERT_EQUAL_FATAL(
        ingot_tokenizer_encode(from.tokenizer, text, strlen(text), &ids, &count, &error), INGOT_OK);
    /* The prompt ends before some token: what streams is the rest of the text. */
    for (uint64_t cut = 1; cut < count; cut++) {
        char *prefix;
        uint64_t size;
        CU_ASSERT_EQUAL(
            ingot_tokenizer_decode(from.tokenizer, ids, cut, true, &prefix, &size, &error),
            INGOT_OK);
        const bool is_whole = size < 3 || memcmp(prefix + size - 3, "\xEF\xBF\xBD", 3) != 0;
        memset(&c, 0, sizeof c);
        CU_ASSERT_EQUAL_FATAL(
            ingot_text_stream_create(&stream, from.tokenizer, ids, cut, collect, &c, &error),
            INGOT_OK);
        for (uint64_t i = cut; i < count; i++) {
            CU_ASSERT_EQUAL(ingot_text_stream_put(stream, ids[i], &error), INGOT_OK);
        }
        CU_ASSERT_EQUAL(ingot_text_stream_flush(stream, &error), INGOT_OK);
        if (is_whole) {
            CU_ASSERT_EQUAL(c.size, strlen(text) - size);
            CU_ASSERT_EQUAL(memcmp(c.text, text + size, c.size), 0);
            CU_ASSERT_FALSE(c.has_partial);
        }
        ingot_text_stream_destroy(stream);
        ingot_free(prefix);
    }
    ingot_free(ids);
    ingot_text_model_close(&from);
}

/* Loading counts the bytes of all matrices, those of both ends first; a tied head is none of them.
 */
static void test_loading(void) {
    for (int is_tied = 0; is_tied < 2; is_tied++) {
        tiny_model *t = tiny_create(is_tied ? TINY_TIED : 0, seed);
        const ingot_model *m = &t->model;
        const double ends = (double)(m->vocab * m->hidden) * (is_tied ? 1 : 2) * sizeof(float);
        double blocks = 0;
        for (int role = 0; role < INGOT_ROLE_COUNT; role++) {
            const ingot_linear_desc *linear = &m->linear[role];
            blocks += (double)(m->layers * linear->rows * linear->cols) * sizeof(float);
        }
        ingot_decoder *decoder;
        ingot_error error;
        ingot_progress progress;
        ingot_progress_begin(&progress, "loading", "MB", 0, false);
        progress.is_terminal = false;
        progress.last_line_seconds -= 61; /* a log gets a line of the first update */
        CU_ASSERT_EQUAL_FATAL(
            ingot_decoder_create(&decoder, m, &t->source, &backend, 20, &progress, &error),
            INGOT_OK);
        CU_ASSERT_DOUBLE_EQUAL(progress.last_line_done, ends / 1e6, 1e-12);
        CU_ASSERT_DOUBLE_EQUAL(progress.total, (ends + blocks) / 1e6, 1e-12);
        ingot_decoder_destroy(decoder);
        tiny_destroy(t);
    }
}

static unsigned loads, engines;

static ingot_status count_load(void *self, const char *name, ingot_arena *arena,
                               ingot_weight_view *view, ingot_error *error) {
    loads++;
    return tiny_load(self, name, arena, view, error);
}

static ingot_status count_engine(void *context, ingot_engine **out, const ingot_engine_model *model,
                                 const ingot_engine_options *options, ingot_engine_load *load,
                                 ingot_error *error) {
    (void)context, (void)out, (void)options, (void)load;
    CU_ASSERT_PTR_NOT_NULL(model->layer);
    engines++;
    return ingot_error_set(error, INGOT_ERR_DEVICE, NULL, NULL, NULL, "an engine of the tests");
}

/* What the engine does not cover is known before weights are read: they were read twice. */
static void test_engine_cover(void) {
    static const struct {
        tiny_shape shape;
        unsigned flags;
        bool is_covered;
    } cases[] = {
        {{24, 40, 6, 2, 8, 50}, 0, true},
        {{24, 40, 6, 2, 4, 50}, 0, false}, /* heads of 4 features */
        {{24, 40, 1, 1, 136, 50}, TINY_PARTIAL_ROTARY, false},
        {{22, 40, 6, 2, 8, 50}, 0, false}, /* a width of 22 */
        {{24, 40, 6, 2, 8, 50}, TINY_UNGATED, false},
    };
    static const ingot_engine_ops engine = {.create = count_engine};
    ingot_backend_ops ops = *backend.ops;
    ingot_backend device = backend;
    ops.engine = &engine;
    device.ops = &ops;
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        tiny_model *t = tiny_create_shaped(cases[i].flags, seed, &cases[i].shape);
        ingot_decoder *decoder;
        ingot_error error;
        t->source.load = count_load;
        loads = engines = 0;
        const ingot_status status =
            ingot_decoder_create(&decoder, &t->model, &t->source, &device, 20, NULL, &error);
        CU_ASSERT_EQUAL(status, cases[i].is_covered ? INGOT_ERR_DEVICE : INGOT_OK);
        CU_ASSERT_EQUAL(engines, cases[i].is_covered);
        CU_ASSERT_EQUAL(loads, t->count);
        ingot_decoder_destroy(decoder);
        tiny_destroy(t);
    }
}

/* A prompt counts its tokens, block by block; a short one is none to wait for. */
static void test_prompt(void) {
    enum { count = 700 };
    tiny_model *t = tiny_create(0, seed);
    ingot_decoder *decoder;
    ingot_generation generation;
    ingot_error error;
    ingot_progress progress;
    ingot_sampler sampler = {0};
    uint32_t ids[count];
    tiny_ids(t, ids, count);
    CU_ASSERT_EQUAL_FATAL(
        ingot_decoder_create(&decoder, &t->model, &t->source, &backend, count, NULL, &error),
        INGOT_OK);
    const double first = 512.0 / (double)t->model.layers;
    for (int is_late = 0; is_late < 2; is_late++) {
        ingot_progress_begin(&progress, "prompt", "tokens", count, false);
        progress.is_terminal = false;
        progress.last_line_seconds -= is_late ? 61 : 0;
        ingot_decoder_rewind(decoder);
        CU_ASSERT_EQUAL_FATAL(
            ingot_generate(&generation, decoder, &sampler, ids, count, 1, NULL, &progress, &error),
            INGOT_OK);
        CU_ASSERT_DOUBLE_EQUAL(progress.last_line_done, is_late ? first : 0, 1e-9);
        ingot_generation_free(&generation);
    }
    ingot_decoder_destroy(decoder);
    tiny_destroy(t);
}

static ingot_status feed_prompt(ingot_backend *device, void *context, ingot_error *error) {
    enum { count = 40 };
    tiny_model *t = context;
    ingot_decoder *decoder;
    uint32_t ids[count];
    tiny_ids(t, ids, count);
    INGOT_TRY(ingot_decoder_create(&decoder, &t->model, &t->source, device, count, NULL, error));
    const ingot_status status = ingot_decoder_feed(decoder, ids, count, NULL, error);
    const bool is_empty = ingot_decoder_length(decoder) == 0;
    ingot_decoder_destroy(decoder);
    return is_empty ? status : INGOT_ERR_INTERNAL;
}

/* A signal ends a prompt before the next block, not behind the chunk of 512 tokens. */
static void test_interrupt(void) {
    tiny_model *t = tiny_create(0, seed);
    signal_expect_on_backend(feed_prompt, t);
    tiny_destroy(t);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"greedy with the cache against full passes", test_greedy},
        {"a prompt of several chunks", test_long_prompt},
        {"end of text, and a full cache", test_stops},
        {"the sampler", test_sampler},
        {"how far loading is", test_loading},
        {"what the engine does not cover is read once", test_engine_cover},
        {"how far a prompt is", test_prompt},
        {"a signal in a prompt", test_interrupt},
        {"text as it comes, byte-level", test_stream_byte_level},
        {"text of tokens that are bytes", test_stream_byte_fallback},
        {"text as it comes, SentencePiece", test_stream_sentencepiece},
        CU_TEST_INFO_NULL,
    };
    return suite_run_cpu("decode", tests);
}
