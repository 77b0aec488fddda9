/* Text that the model writes, many sequences at once, against decoding them one by one. */
#include "suite_cpu.h"

#include "calib/decode.h"
#include "calib/self_text.h"

enum { samples = 5, length = 23 };

static void write_text(ingot_text *out, const tiny_model *t, uint64_t text_seed) {
    CU_ASSERT_EQUAL_FATAL(ingot_self_text_write(out, &t->model, &t->source, &backend, samples,
                                                length, text_seed, NULL, NULL, NULL),
                          INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(out->count, samples * length);
    CU_ASSERT_EQUAL(out->bytes, 4 * samples * length);
}

/* Sequence `index` of the text, token by token with a cache of its own. */
static void check_sequence(const tiny_model *t, const uint32_t *ids, ingot_sampler sampler) {
    ingot_decoder *decoder;
    float logits[64];
    CU_ASSERT_EQUAL_FATAL(
        ingot_decoder_create(&decoder, &t->model, &t->source, &backend, length, NULL, NULL),
        INGOT_OK);
    for (uint64_t at = 1; at < length; at++) {
        CU_ASSERT_EQUAL(ingot_decoder_feed(decoder, ids + at - 1, 1, logits, NULL), INGOT_OK);
        CU_ASSERT_EQUAL(ids[at], ingot_sampler_next(&sampler, logits, t->model.vocab));
    }
    ingot_decoder_destroy(decoder);
}

static void test_sequences(void) {
    static const unsigned flags[] = {0, TINY_WINDOW | TINY_HEAD_NORMS | TINY_TIED,
                                     TINY_LAYER_NORM | TINY_UNGATED | TINY_QKV_BIAS};
    const float even[64] = {0};
    for (unsigned f = 0; f < 3; f++) {
        tiny_model *t = tiny_create(flags[f], seed + f);
        ingot_text text;
        t->model.has_bos = f == 1;
        t->model.bos_id = 7;
        write_text(&text, t, 3);
        for (uint64_t i = 0; i < samples; i++) {
            const uint32_t *ids = text.ids + i * length;
            ingot_sampler sampler = {.temperature = 1,
                                     .state = 3 ^ (i + 1) * UINT64_C(0xD1B54A32D192ED03)};
            const uint32_t first = f == 1 ? 7 : ingot_sampler_next(&sampler, even, t->model.vocab);
            CU_ASSERT_EQUAL(ids[0], first);
            check_sequence(t, ids, sampler);
        }
        ingot_text_free(&text);
        tiny_destroy(t);
    }
}

static void test_seeds(void) {
    tiny_model *t = tiny_create(0, seed + 3);
    ingot_text text, same, other;
    write_text(&text, t, 1);
    write_text(&same, t, 1);
    write_text(&other, t, 2);
    CU_ASSERT(memcmp(text.digest, same.digest, sizeof text.digest) == 0);
    CU_ASSERT(memcmp(text.ids, same.ids, text.bytes) == 0);
    CU_ASSERT(memcmp(text.digest, other.digest, sizeof text.digest) != 0);
    ingot_text_free(&text);
    ingot_text_free(&same);
    ingot_text_free(&other);
    tiny_destroy(t);
}

static void test_wanted(void) {
    static const char *const texts[] = {"a.txt", "@self"};
    bool is_wanted;
    CU_ASSERT(ingot_self_text_wanted(&is_wanted, texts, 1, NULL) == INGOT_OK && !is_wanted);
    CU_ASSERT(ingot_self_text_wanted(&is_wanted, texts + 1, 1, NULL) == INGOT_OK && is_wanted);
    CU_ASSERT(ingot_self_text_wanted(&is_wanted, texts, 2, NULL) == INGOT_ERR_USAGE);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"sequences against decoding one by one", test_sequences},
        {"the seed", test_seeds},
        {"beside files it is refused", test_wanted},
        CU_TEST_INFO_NULL,
    };
    return suite_run_cpu("self text", tests);
}
