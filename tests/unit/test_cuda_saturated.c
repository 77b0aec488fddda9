/* What the engine of the CUDA backend cuts off to the largest of binary16 is told
 * (ingot_engine_saturated), whichever kernel rounds it, and nothing else is. */
#include "packed_engine.h"

#define CAPACITY 1300

static const tiny_shape shapes[] = {
    {64, 96, 6, 2, 16, 203}, {64, 96, 20, 1, 128, 203}, /* more query heads than a tile holds */
};

static bool is_saturated(ingot_engine *engine) {
    bool is = false;
    CU_ASSERT_EQUAL(cuda.ops->engine->saturated(engine, &is), INGOT_OK);
    return is;
}

static float *bias_of(const packed_model *p, const char *role) {
    char name[INGOT_NAME_SIZE];
    snprintf(name, sizeof name, "model.layers.1.self_attn.%s.bias", role);
    tiny_tensor *bias = tiny_find(p->tiny, name);
    CU_ASSERT_FATAL(bias != NULL);
    return bias->data;
}

/* By prompts of `count` tokens for two sequences, and by the tokens behind them. */
static void check(const packed_model *p, uint64_t count, bool expected, const char *what) {
    const ingot_engine_ops *ops = cuda.ops->engine;
    uint32_t *prompt = malloc(count * sizeof *prompt), ids[2];
    for (uint64_t i = 0; i < count; i++) {
        prompt[i] = (uint32_t)(i % p->tiny->model.vocab);
    }
    ingot_engine *engine = open_engine(p, 2, CAPACITY);
    CU_ASSERT(!is_saturated(engine));
    bool got[3];
    for (uint64_t s = 0; s < 2; s++) {
        CU_ASSERT_EQUAL(ops->feed(engine, s, prompt, count, NULL), INGOT_OK);
        got[s] = is_saturated(engine);
    }
    CU_ASSERT_EQUAL(ops->next(engine, 0, ids), INGOT_OK); /* of the prompts' logits */
    CU_ASSERT(!is_saturated(engine));
    CU_ASSERT_EQUAL(ops->next(engine, 0, ids), INGOT_OK);
    got[2] = is_saturated(engine);
    for (int i = 0; i < 3; i++) {
        if (got[i] != expected) {
            printf("\n    %s, %llu tokens: %s of %s", what, (unsigned long long)count,
                   got[i] ? "told" : "not told", i < 2 ? "a prompt" : "a token");
        }
        CU_ASSERT_EQUAL(got[i], expected);
    }
    ops->destroy(engine);
    free(prompt);
}

/* One feature of one head, in the last of them. */
static void test_heads(void) {
    static const char *const roles[] = {"q_proj", "k_proj", "v_proj"};
    static const uint64_t counts[] = {1, 40, 100, 1200};
    for (unsigned i = 0; i < 2; i++) {
        packed_model p = pack_model(TINY_QKV_BIAS | TINY_PARTIAL_ROTARY, &shapes[i], DENSE);
        bind(&p);
        for (unsigned role = 0; role < 3; role++) {
            const uint64_t heads = role == 0 ? shapes[i].heads : shapes[i].kv_heads;
            float *bias = bias_of(&p, roles[role]) + heads * shapes[i].head_dim - 1;
            const float before = *bias;
            for (unsigned k = 0; k < 4; k++) {
                *bias = before + 60000; /* nearly */
                check(&p, counts[k], false, roles[role]);
                *bias = k % 2 == 0 ? 1e5f : -1e5f;
                check(&p, counts[k], true, roles[role]);
            }
            *bias = before;
        }
        packed_destroy(&p);
    }
}

/* Inputs of the products of a long prompt: behind norms, and gate times up. */
static void test_inputs(void) {
    const ingot_engine_ops *ops = cuda.ops->engine;
    static const char *const names[] = {"model.layers.0.input_layernorm.weight",
                                        "model.layers.1.post_attention_layernorm.weight"};
    uint32_t prompt[100];
    for (unsigned i = 0; i < 100; i++) {
        prompt[i] = i;
    }
    for (unsigned i = 0; i < 4; i++) {
        packed_model p = pack_model(0, &shapes[0], SHORT);
        bind(&p);
        tiny_tensor *weight = tiny_find(p.tiny, i < 2 ? names[i] : names[1]);
        for (unsigned k = 0; i == 2 && k < shapes[0].hidden; k++) { /* gate times up alone */
            weight->data[k] *= 3000;
        }
        if (i < 2) {
            weight->data[5] = 1e9f;
        }
        ingot_engine *engine = open_engine(&p, 1, 100);
        (void)ops->feed(engine, 0, prompt, 100, NULL);
        CU_ASSERT_EQUAL(is_saturated(engine), i < 3);
        ops->destroy(engine);
        packed_destroy(&p);
    }
}

int main(void) {
    const int missing = suite_open_both();
    if (missing != 0) {
        return missing;
    }
    seed = tiny_seed();
    const CU_TestInfo tests[] = {
        {"heads", test_heads},
        {"inputs of products", test_inputs},
        CU_TEST_INFO_NULL,
    };
    return suite_run_both("cuda saturated", tests);
}
