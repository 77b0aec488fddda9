/* The thread pool: every tile exactly once, workers in range, results independent of the number of
 * threads, and many short runs (the hand-over between runs is where such a pool goes wrong). */
#include "common/pool.h"

#include "common/memory.h"
#include "suite.h"

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define TILES_MAX 5000

typedef struct tally {
    atomic_uint hits[TILES_MAX];
    atomic_uint bad_workers;
    unsigned threads;
    double results[TILES_MAX];
    uint64_t round;
} tally;

static tally shared;

static void count_tile(void *context, size_t index, unsigned worker) {
    tally *work = context;
    atomic_fetch_add(&work->hits[index], 1);
    if (worker >= work->threads) {
        atomic_fetch_add(&work->bad_workers, 1);
    }
    double sum = 0.0;
    for (unsigned i = 1; i < 50 + index % 100; i++) {
        sum += 1.0 / ((double)(index + i) + (double)work->round);
    }
    work->results[index] = sum;
}

static void run_and_check(ingot_pool *pool, size_t count) {
    for (size_t i = 0; i < TILES_MAX; i++) {
        atomic_store(&shared.hits[i], 0);
    }
    shared.threads = ingot_pool_threads(pool);
    ingot_pool_run(pool, count, count_tile, &shared);
    size_t wrong = 0;
    for (size_t i = 0; i < TILES_MAX; i++) {
        wrong += atomic_load(&shared.hits[i]) != (i < count);
    }
    CU_ASSERT_EQUAL(wrong, 0);
    CU_ASSERT_EQUAL(atomic_load(&shared.bad_workers), 0);
}

static void test_each_tile_once(void) {
    static double reference[TILES_MAX];
    static const size_t counts[] = {0, 1, 2, 3, 7, 64, 1000, TILES_MAX};
    for (unsigned threads = 1; threads <= 9; threads += 2) {
        ingot_pool *pool = NULL;
        CU_ASSERT_EQUAL_FATAL(ingot_pool_create(&pool, threads), INGOT_OK);
        CU_ASSERT_EQUAL(ingot_pool_threads(pool), threads);
        for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
            run_and_check(pool, counts[i]);
        }
        if (threads == 1) {
            memcpy(reference, shared.results, sizeof reference);
        }
        CU_ASSERT_EQUAL(memcmp(reference, shared.results, sizeof reference), 0);
        ingot_pool_destroy(pool);
    }
}

static void add_tile(void *context, size_t index, unsigned worker) {
    (void)worker;
    uint64_t *cells = context;
    cells[index] += index + 1; /* plain: a tile that runs twice at once or late is a wrong sum */
}

static void test_many_runs(void) {
    enum { runs = 10000, tiles = 5 };
    ingot_pool *pool = NULL;
    CU_ASSERT_EQUAL_FATAL(ingot_pool_create(&pool, 4), INGOT_OK);
    uint64_t cells[tiles] = {0};
    for (int run = 0; run < runs; run++) {
        ingot_pool_run(pool, tiles, add_tile, cells);
        for (uint64_t i = 0; i < tiles; i++) {
            if (cells[i] != (i + 1) * (uint64_t)(run + 1)) {
                CU_FAIL("a tile is missing or was run twice");
                run = runs;
                break;
            }
        }
    }
    CU_PASS("all runs were complete");
    ingot_pool_destroy(pool);
}

static void slow_tile(void *context, size_t index, unsigned worker) {
    /* Workers are later than the caller, so that a run that does not wait for them is seen. */
    const struct timespec pause = {0, worker == 0 ? 50000 : 400000};
    (void)nanosleep(&pause, NULL);
    add_tile(context, index, worker);
}

static void test_slow_workers(void) {
    enum { runs = 60, tiles = 9 };
    ingot_pool *pool = NULL;
    CU_ASSERT_EQUAL_FATAL(ingot_pool_create(&pool, 3), INGOT_OK);
    uint64_t cells[tiles] = {0};
    for (uint64_t run = 1; run <= runs; run++) {
        ingot_pool_run(pool, tiles, slow_tile, cells);
        for (uint64_t i = 0; i < tiles; i++) {
            CU_ASSERT_EQUAL(cells[i], (i + 1) * run);
        }
    }
    ingot_pool_destroy(pool);
}

static void test_no_pool(void) {
    run_and_check(NULL, 100);
    CU_ASSERT_EQUAL(ingot_pool_threads(NULL), 1);
    ingot_pool_destroy(NULL);
}

/* Tiles that fail: those in fails[]. */
typedef struct trial {
    size_t fails[2];
    atomic_uint begun[64];
} trial;

static ingot_status attempt_tile(void *context, size_t index, unsigned worker, ingot_error *error) {
    trial *t = context;
    atomic_fetch_add(&t->begun[index], 1);
    if (index != t->fails[0] && index != t->fails[1]) {
        return INGOT_OK;
    }
    /* The one with the lesser index is later. */
    const struct timespec pause = {0, index == t->fails[0] ? 2000000 : 0};
    (void)nanosleep(&pause, NULL);
    (void)worker;
    return ingot_error_set(error, index == t->fails[0] ? INGOT_ERR_IO : INGOT_ERR_NUMERIC, "tile",
                           NULL, NULL, "%zu", index);
}

static void test_failures(void) {
    enum { tiles = 64, none = 1000 };
    for (unsigned threads = 1; threads <= 4; threads++) {
        ingot_pool *pool = NULL;
        ingot_error error = {.status = INGOT_OK};
        trial good = {.fails = {none, none}}, bad = {.fails = {3, 4}};
        CU_ASSERT_EQUAL_FATAL(ingot_pool_create(&pool, threads), INGOT_OK);
        CU_ASSERT_EQUAL(ingot_pool_try(pool, tiles, attempt_tile, &good, &error), INGOT_OK);
        CU_ASSERT_EQUAL(error.status, INGOT_OK);
        for (unsigned i = 0; i < tiles; i++) {
            CU_ASSERT_EQUAL(good.begun[i], 1);
        }
        CU_ASSERT_EQUAL(ingot_pool_try(pool, tiles, attempt_tile, &bad, &error), INGOT_ERR_IO);
        CU_ASSERT_EQUAL(error.status, INGOT_ERR_IO);
        CU_ASSERT_STRING_EQUAL(error.reason, "3");
        unsigned begun = 0;
        for (unsigned i = 0; i < tiles; i++) {
            CU_ASSERT(bad.begun[i] == 1 || i > 3);
            begun += bad.begun[i];
        }
        CU_ASSERT(threads > 1 || begun == 4);
        bad.fails[0] = none;
        CU_ASSERT_EQUAL(ingot_pool_try(pool, tiles, attempt_tile, &bad, NULL), INGOT_ERR_NUMERIC);
        ingot_pool_destroy(pool);
    }
    trial bad = {.fails = {none, 5}};
    CU_ASSERT_EQUAL(ingot_pool_try(NULL, tiles, attempt_tile, &bad, NULL), INGOT_ERR_NUMERIC);
}

static void test_limits(void) {
    ingot_pool *pool = NULL;
    CU_ASSERT_EQUAL_FATAL(ingot_pool_create(&pool, 0), INGOT_OK);
    CU_ASSERT(ingot_pool_threads(pool) >= 1);
    ingot_pool_destroy(pool);
    CU_ASSERT_EQUAL_FATAL(ingot_pool_create(&pool, 100000), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_pool_threads(pool), 256);
    run_and_check(pool, 1000);
    ingot_pool_destroy(pool);
    for (uint64_t n = 1; n <= 2; n++) {
        ingot_memory_fail_after(n);
        CU_ASSERT_EQUAL(ingot_pool_create(&pool, 4), INGOT_ERR_NO_MEMORY);
        CU_ASSERT_PTR_NULL(pool);
    }
    ingot_memory_fail_after(0);
}

int main(void) {
    const CU_TestInfo tests[] = {{"each tile once", test_each_tile_once},
                                 {"many runs", test_many_runs},
                                 {"slow workers", test_slow_workers},
                                 {"no pool", test_no_pool},
                                 {"the first failure", test_failures},
                                 {"limits", test_limits},
                                 CU_TEST_INFO_NULL};
    return suite_run("pool", tests);
}
