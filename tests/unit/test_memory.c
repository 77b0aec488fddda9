/* Allocations, arenas and allocation failure. */
#include "common/memory.h"

#include "suite.h"

#include <stdbool.h>
#include <string.h>

static void test_alloc(void) {
    static const uint64_t sizes_bytes[] = {0, 1, 63, 64, 65, 4096, 1000003};
    for (size_t i = 0; i < sizeof sizes_bytes / sizeof sizes_bytes[0]; i++) {
        void *memory = NULL;
        CU_ASSERT_EQUAL(ingot_alloc(&memory, sizes_bytes[i]), INGOT_OK);
        CU_ASSERT_PTR_NOT_NULL_FATAL(memory);
        CU_ASSERT_EQUAL((uintptr_t)memory % INGOT_ALIGNMENT, 0);
        memset(memory, 0xa5, (size_t)sizes_bytes[i]);
        ingot_free(memory);
        CU_ASSERT_EQUAL(ingot_alloc_zero(&memory, sizes_bytes[i], 3), INGOT_OK);
        const unsigned char *bytes = memory;
        unsigned sum = 0;
        for (uint64_t j = 0; j < 3 * sizes_bytes[i]; j++) {
            sum |= bytes[j];
        }
        CU_ASSERT_EQUAL(sum, 0);
        ingot_free(memory);
    }
    ingot_free(NULL);
}

static void test_overflow(void) {
    static const uint64_t huge_bytes[] = {UINT64_MAX, UINT64_MAX - 62, (uint64_t)INT64_MAX + 1,
                                          UINT64_C(1) << 62};
    for (size_t i = 0; i < sizeof huge_bytes / sizeof huge_bytes[0]; i++) {
        void *memory = &memory;
        CU_ASSERT_EQUAL(ingot_alloc(&memory, huge_bytes[i]), INGOT_ERR_NO_MEMORY);
        CU_ASSERT_PTR_NULL(memory);
    }
    void *memory = &memory;
    CU_ASSERT_EQUAL(ingot_alloc_zero(&memory, UINT64_C(1) << 33, UINT64_C(1) << 33),
                    INGOT_ERR_NO_MEMORY);
    CU_ASSERT_PTR_NULL(memory);
}

static void test_failure(void) {
    for (uint64_t n = 1; n <= 5; n++) {
        ingot_memory_fail_after(n);
        for (uint64_t i = 1; i <= 8; i++) {
            void *memory;
            const ingot_status status = ingot_alloc(&memory, 16);
            CU_ASSERT_EQUAL(status, i < n ? INGOT_OK : INGOT_ERR_NO_MEMORY);
            ingot_free(memory);
        }
    }
    ingot_memory_fail_after(0);
    void *memory;
    CU_ASSERT_EQUAL(ingot_alloc(&memory, 16), INGOT_OK);
    ingot_free(memory);
}

#define BLOCKS 400

/* Fills every block with its own pattern and checks that no two overlap. */
static void arena_round(ingot_arena *arena, unsigned seed) {
    unsigned char *blocks[BLOCKS];
    size_t sizes_bytes[BLOCKS];
    unsigned state = seed;
    for (unsigned i = 0; i < BLOCKS; i++) {
        state = state * 1664525u + 1013904223u;
        sizes_bytes[i] = (state >> 8) % ((state >> 4) % 50 == 0 ? 3000000 : 3000);
        void *memory;
        CU_ASSERT_EQUAL_FATAL(ingot_arena_alloc(arena, &memory, sizes_bytes[i]), INGOT_OK);
        CU_ASSERT_EQUAL((uintptr_t)memory % INGOT_ALIGNMENT, 0);
        blocks[i] = memory;
        memset(memory, (int)(i & 255), sizes_bytes[i]);
    }
    bool is_intact = true;
    for (unsigned i = 0; i < BLOCKS; i++) {
        for (size_t j = 0; j < sizes_bytes[i]; j++) {
            is_intact = is_intact && blocks[i][j] == (i & 255);
        }
    }
    CU_ASSERT_TRUE(is_intact);
}

static void test_arena(void) {
    ingot_arena *arena = NULL;
    CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&arena), INGOT_OK);
    for (unsigned round = 0; round < 6; round++) {
        arena_round(arena, 1 + round);
        ingot_arena_reset(arena);
    }
    /* A second equal round finds its memory in place: no allocation happens. */
    arena_round(arena, 77);
    ingot_arena_reset(arena);
    arena_round(arena, 77);
    ingot_arena_reset(arena);
    void *first;
    void *again;
    CU_ASSERT_EQUAL(ingot_arena_alloc(arena, &first, 100), INGOT_OK);
    ingot_arena_reset(arena);
    ingot_memory_fail_after(1);
    CU_ASSERT_EQUAL(ingot_arena_alloc(arena, &again, 100), INGOT_OK);
    CU_ASSERT_PTR_EQUAL(first, again);
    void *memory = &memory;
    CU_ASSERT_EQUAL(ingot_arena_alloc(arena, &memory, 64000000), INGOT_ERR_NO_MEMORY);
    CU_ASSERT_PTR_NULL(memory);
    ingot_memory_fail_after(0);
    CU_ASSERT_EQUAL(ingot_arena_alloc(arena, &memory, UINT64_MAX), INGOT_ERR_NO_MEMORY);
    CU_ASSERT_EQUAL(ingot_arena_alloc(arena, &memory, UINT64_MAX - 200), INGOT_ERR_NO_MEMORY);
    ingot_arena_destroy(arena);
    ingot_arena_destroy(NULL);
}

static void test_arena_gives_back(void) {
    ingot_arena *arena = NULL;
    CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&arena), INGOT_OK);
    void *memory;
    CU_ASSERT_EQUAL(ingot_arena_alloc(arena, &memory, 50000000), INGOT_OK);
    ingot_arena_reset(arena);
    CU_ASSERT_EQUAL(ingot_arena_alloc(arena, &memory, 100), INGOT_OK); /* in the large chunk */
    ingot_arena_reset(arena); /* which was larger than needed and goes */
    ingot_memory_fail_after(1);
    CU_ASSERT_EQUAL(ingot_arena_alloc(arena, &memory, 100), INGOT_ERR_NO_MEMORY);
    ingot_memory_fail_after(0);
    ingot_arena_destroy(arena);
}

/* Chunks that are there now. */
static ingot_status counted_alloc(void *context, void **out, uint64_t size_bytes) {
    ++*(unsigned *)context;
    return ingot_alloc(out, size_bytes);
}

static void counted_release(void *context, void *memory) {
    --*(unsigned *)context;
    ingot_free(memory);
}

/* Full chunks stay over a reset, unless getting them back costs nothing; nothing stays when an
 * arena is cleared. */
static void test_arena_chunks(void) {
    for (unsigned is_quick = 0; is_quick < 2; is_quick++) {
        unsigned chunks = 0;
        const ingot_allocator from = {.alloc = counted_alloc,
                                      .release = counted_release,
                                      .context = &chunks,
                                      .is_quick = is_quick != 0};
        ingot_arena *arena = NULL;
        void *memory;
        CU_ASSERT_EQUAL_FATAL(ingot_arena_create_from(&arena, &from), INGOT_OK);
        for (unsigned round = 0; round < 2; round++) {
            CU_ASSERT_EQUAL(ingot_arena_alloc(arena, &memory, 100), INGOT_OK);
            CU_ASSERT_EQUAL(ingot_arena_alloc(arena, &memory, 5000000), INGOT_OK);
            CU_ASSERT_EQUAL(ingot_arena_alloc(arena, &memory, 7000000), INGOT_OK);
            CU_ASSERT_EQUAL(chunks, 3);
            ingot_arena_reset(arena);
            CU_ASSERT_EQUAL(chunks, is_quick != 0 ? 1 : 3);
        }
        ingot_arena_clear(arena);
        CU_ASSERT_EQUAL(chunks, 0);
        CU_ASSERT_EQUAL(ingot_arena_alloc(arena, &memory, 5000000), INGOT_OK);
        memset(memory, 1, 5000000);
        ingot_arena_destroy(arena);
        CU_ASSERT_EQUAL(chunks, 0);
    }
}

/* The first chunk alone is the allocator's; what it does not give is plain memory, if that will do,
 * and goes where it came from. */
static ingot_status one_alloc(void *context, void **out, uint64_t size_bytes) {
    const bool is_first = *(unsigned *)context == 0;
    *out = NULL;
    return is_first ? counted_alloc(context, out, size_bytes) : INGOT_ERR_NO_MEMORY;
}

static void test_arena_plain(void) {
    for (unsigned may_be_plain = 0; may_be_plain < 2; may_be_plain++) {
        unsigned chunks = 0;
        const ingot_allocator from = {.alloc = one_alloc,
                                      .release = counted_release,
                                      .context = &chunks,
                                      .is_slow = true,
                                      .may_be_plain = may_be_plain != 0};
        const ingot_status wanted = may_be_plain != 0 ? INGOT_OK : INGOT_ERR_NO_MEMORY;
        ingot_arena *arena = NULL;
        void *first, *second;
        CU_ASSERT_EQUAL_FATAL(ingot_arena_create_from(&arena, &from), INGOT_OK);
        for (unsigned round = 0; round < 2; round++) {
            CU_ASSERT_EQUAL(ingot_arena_alloc(arena, &first, 5000000), INGOT_OK);
            CU_ASSERT_EQUAL(ingot_arena_alloc(arena, &second, 7000000), wanted);
            if (second != NULL) {
                memset(second, 1, 7000000);
            }
            CU_ASSERT_EQUAL(chunks, 1);
            ingot_arena_reset(arena);
        }
        ingot_memory_fail_after(1);
        CU_ASSERT_EQUAL(ingot_arena_alloc(arena, &first, 9000000), INGOT_ERR_NO_MEMORY);
        ingot_memory_fail_after(0);
        ingot_arena_destroy(arena);
        CU_ASSERT_EQUAL(chunks, 0);
    }
}

static void test_peak(void) {
    const uint64_t before_bytes = ingot_memory_peak_bytes();
    CU_ASSERT(before_bytes > 100000);
    const uint64_t size_bytes = before_bytes + 64000000;
    void *memory;
    CU_ASSERT_EQUAL_FATAL(ingot_alloc(&memory, size_bytes), INGOT_OK);
    memset(memory, 1, (size_t)size_bytes);
    ingot_free(memory);
    CU_ASSERT(ingot_memory_peak_bytes() >= size_bytes);
}

int main(void) {
    const CU_TestInfo tests[] = {{"alloc", test_alloc},
                                 {"overflow", test_overflow},
                                 {"failure", test_failure},
                                 {"arena", test_arena},
                                 {"arena gives back", test_arena_gives_back},
                                 {"arena chunks", test_arena_chunks},
                                 {"arena of what is there", test_arena_plain},
                                 {"peak", test_peak},
                                 CU_TEST_INFO_NULL};
    return suite_run("memory", tests);
}
