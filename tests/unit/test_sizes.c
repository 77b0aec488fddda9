/* Checked sizes, against 128-bit arithmetic. */
#include "common/sizes.h"

#include "suite.h"

static uint64_t random_state = 88172645463325252u;

static uint64_t random_u64(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state >> (random_state % 64); /* all magnitudes */
}

static void test_random(void) {
    printf("seed %llu ", (unsigned long long)random_state);
    unsigned refused = 0;
    for (int i = 0; i < 200000; i++) {
        const uint64_t a = random_u64();
        const uint64_t b = random_u64();
        const unsigned __int128 sum = (unsigned __int128)a + b;
        const unsigned __int128 product = (unsigned __int128)a * b;
        uint64_t out = 7;
        bool is_ok = ingot_size_add(&out, a, b);
        CU_ASSERT_EQUAL(is_ok, sum <= UINT64_MAX);
        CU_ASSERT_EQUAL(out, is_ok ? (uint64_t)sum : 7);
        out = 7;
        is_ok = ingot_size_mul(&out, a, b);
        CU_ASSERT_EQUAL(is_ok, product <= UINT64_MAX);
        CU_ASSERT_EQUAL(out, is_ok ? (uint64_t)product : 7);
        refused += !is_ok;
        const uint64_t alignment = UINT64_C(1) << (a % 20);
        const unsigned __int128 aligned =
            ((unsigned __int128)b + alignment - 1) / alignment * alignment;
        out = 7;
        is_ok = ingot_size_align(&out, b, alignment);
        CU_ASSERT_EQUAL(is_ok, (unsigned __int128)b + alignment - 1 <= UINT64_MAX);
        CU_ASSERT_EQUAL(out, is_ok ? (uint64_t)aligned : 7);
        if (b != 0) {
            const unsigned __int128 ceiling = ((unsigned __int128)a + b - 1) / b;
            CU_ASSERT_EQUAL(ingot_ceil_div(a, b), (uint64_t)ceiling);
        }
    }
    CU_ASSERT(refused > 1000); /* the draw covers both outcomes */
}

static void test_limits(void) {
    uint64_t out = 7;
    CU_ASSERT_FALSE(ingot_size_add(&out, UINT64_MAX, 1));
    CU_ASSERT_FALSE(ingot_size_mul(&out, UINT64_C(1) << 32, UINT64_C(1) << 32));
    CU_ASSERT_FALSE(ingot_size_align(&out, UINT64_MAX, 64));
    CU_ASSERT_EQUAL(out, 7);
    CU_ASSERT_TRUE(ingot_size_align(&out, 0, 64));
    CU_ASSERT_EQUAL(out, 0);
    CU_ASSERT_EQUAL(ingot_ceil_div(UINT64_MAX, 1), UINT64_MAX);
    CU_ASSERT_EQUAL(ingot_min_u64(3, 4), 3);
    CU_ASSERT_EQUAL(ingot_max_u64(3, 4), 4);
}

int main(void) {
    const CU_TestInfo tests[] = {
        {"random against 128 bits", test_random}, {"limits", test_limits}, CU_TEST_INFO_NULL};
    return suite_run("sizes", tests);
}
