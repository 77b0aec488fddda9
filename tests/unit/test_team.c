/* Ranks of a team (convert/team.h): sums that are the same for all and equal those of one device
 * within rounding, windows and linears each given out once, and leaving. */
#include "convert/team.h"

#include "common/worker.h"
#include "suite.h"

#include <math.h>
#include <string.h>

#define MOST_RANKS 5u

static ingot_backend backends[MOST_RANKS];

typedef struct part {
    ingot_rank rank;
    float *values;
    double host[3];
    uint64_t count;
    bool leaves;
    ingot_status status;
} part;

static ingot_status add_up(part *p) {
    ingot_arena *scratch;
    INGOT_TRY(ingot_backend_arena_create(&scratch, p->rank.backend));
    ingot_status status = ingot_team_sum(&p->rank, p->values, p->count, scratch);
    if (status == INGOT_OK && p->leaves) {
        ingot_team_leave(&p->rank);
    } else if (status == INGOT_OK) {
        status = ingot_team_sum_host(&p->rank, p->host, 3);
    }
    ingot_arena_destroy(scratch);
    return status;
}

static ingot_status run_part(void *context, ingot_error *error) {
    part *p = context;
    (void)error;
    p->status = add_up(p);
    return INGOT_OK;
}

/* Runs all parts, each in a thread of its own. */
static void run_parts(part *parts, unsigned size) {
    ingot_worker *workers[MOST_RANKS];
    ingot_error error = {0};
    for (unsigned r = 0; r < size; r++) {
        CU_ASSERT_FATAL(ingot_worker_create(&workers[r]) == INGOT_OK);
        ingot_worker_start(workers[r], run_part, &parts[r]);
    }
    for (unsigned r = 0; r < size; r++) {
        CU_ASSERT(ingot_worker_wait(workers[r], &error) == INGOT_OK);
        ingot_worker_destroy(workers[r]);
    }
}

static float random_value(void) {
    return (float)(rand() % 20001 - 10000) / 256.0f;
}

static void check_sums(unsigned size, uint64_t count, int leaver) {
    ingot_team *team;
    part parts[MOST_RANKS];
    double *expected = calloc(count + 1, sizeof *expected);
    double *largest = calloc(count + 1, sizeof *largest);
    CU_ASSERT_FATAL(ingot_team_create(&team, size) == INGOT_OK);
    for (unsigned r = 0; r < size; r++) {
        parts[r] = (part){
            .rank = {.team = team, .number = r, .size = size, .backend = &backends[r]},
            .values = malloc((count + 1) * sizeof(float)),
            .count = count,
            .leaves = (int)r == leaver,
            .host = {1, r, 1e15 + r},
        };
        for (uint64_t i = 0; i < count; i++) {
            parts[r].values[i] = random_value();
            expected[i] += (double)parts[r].values[i];
            largest[i] += fabs((double)parts[r].values[i]);
        }
        parts[r].values[count] = 12345.0f; /* not ours */
    }
    run_parts(parts, size);
    CU_ASSERT(ingot_team_left(team) == leaver);
    unsigned wrong = 0;
    for (unsigned r = 0; r < size; r++) {
        CU_ASSERT(parts[r].status ==
                  (leaver < 0 || (int)r == leaver ? INGOT_OK : INGOT_ERR_INTERRUPTED));
        CU_ASSERT(memcmp(parts[r].values, parts[0].values, count * sizeof(float)) == 0);
        for (uint64_t i = 0; i < count; i++) {
            wrong += !(fabs((double)parts[r].values[i] - expected[i]) <= 0x1p-22 * largest[i]);
        }
        CU_ASSERT(parts[r].values[count] == 12345.0f);
        if (leaver < 0) {
            CU_ASSERT(parts[r].host[0] == size && parts[r].host[1] == size * (size - 1) / 2);
            CU_ASSERT(parts[r].host[2] == 1e15 * size + size * (size - 1) / 2);
        }
    }
    CU_ASSERT(wrong == 0);
    for (unsigned r = 0; r < size; r++) {
        free(parts[r].values);
    }
    ingot_team_destroy(team);
    free(expected);
    free(largest);
}

static void test_sums(void) {
    static const uint64_t counts[] = {1, 2, 3, 7, 64, 1001, 70000};
    for (unsigned size = 2; size <= MOST_RANKS; size++) {
        for (unsigned i = 0; i < sizeof counts / sizeof *counts; i++) {
            check_sums(size, counts[i], -1);
        }
    }
}

/* Who waits for a rank that has left does not wait for ever. */
static void test_leaving(void) {
    for (unsigned size = 2; size <= MOST_RANKS; size++) {
        for (unsigned leaver = 0; leaver < size; leaver++) {
            check_sums(size, 100, (int)leaver);
        }
    }
}

static void test_windows(void) {
    uint32_t ids[40];
    for (uint32_t i = 0; i < 40; i++) {
        ids[i] = i;
    }
    for (unsigned size = 1; size <= MOST_RANKS; size++) {
        for (uint64_t judges = 0; judges < 6; judges++) {
            const ingot_windows all = {.ids = ids, .count = 20, .length = 2};
            unsigned seen[40] = {0};
            for (unsigned r = 0; r < size; r++) {
                const ingot_rank rank = {.number = r, .size = size};
                ingot_windows own;
                CU_ASSERT_FATAL(ingot_team_windows(&own, &rank, &all, judges) == INGOT_OK);
                CU_ASSERT(own.count >= judges + (20 - judges) / size && own.length == 2);
                for (uint64_t i = 0; i < own.count * 2; i++) {
                    seen[own.ids[i]]++;
                }
                CU_ASSERT(memcmp(own.ids + 2 * (own.count - judges), ids + 2 * (20 - judges),
                                 judges * 8) == 0);
                ingot_windows_free(&own);
            }
            for (uint64_t i = 0; i < 40; i++) {
                CU_ASSERT(seen[i] == (i / 2 < 20 - judges ? 1 : size));
            }
        }
    }
}

/* Every row has one rank, or every rank has all rows. */
static void test_rows(void) {
    static const uint64_t counts[] = {1, 15, 16, 17, 33, 64, 100, 4096, 14337};
    for (unsigned size = 2; size <= MOST_RANKS; size++) {
        ingot_team *team;
        CU_ASSERT_FATAL(ingot_team_create(&team, size) == INGOT_OK);
        for (unsigned i = 0; i < sizeof counts / sizeof *counts; i++) {
            uint64_t next = 0;
            for (unsigned r = 0; r < size; r++) {
                const ingot_rank rank = {.team = team, .number = r, .size = size};
                uint64_t first, count;
                if (!ingot_team_rows(&first, &count, &rank, counts[i])) {
                    CU_ASSERT(first == 0 && count == counts[i] && counts[i] <= 16 * (size - 1));
                    next = counts[i];
                    continue;
                }
                CU_ASSERT(first == next && count > 0 && first % 16 == 0);
                CU_ASSERT(count <= counts[i] / size + 32);
                next = first + count;
            }
            CU_ASSERT(next == counts[i]);
        }
        ingot_team_destroy(team);
    }
}

/* What every rank has packed of a matrix comes together. */
typedef struct gathered {
    ingot_rank rank;
    ingot_weight_view own, whole;
    uint64_t first;
    ingot_arena *arena;
} gathered;

static ingot_status run_gather(void *context, ingot_error *error) {
    gathered *g = context;
    (void)error;
    return ingot_team_gather(&g->whole, &g->rank, 100, g->first, &g->own, g->arena);
}

static void test_gather(void) {
    static uint8_t codes[100 * 12], zeros[100 * 3];
    static uint16_t scales[100 * 3];
    for (unsigned i = 0; i < sizeof codes; i++) {
        codes[i] = (uint8_t)rand();
        zeros[i % sizeof zeros] = (uint8_t)rand();
        scales[i % 300] = (uint16_t)rand();
    }
    for (unsigned size = 2; size <= MOST_RANKS; size++) {
        ingot_team *team;
        gathered parts[MOST_RANKS];
        ingot_worker *workers[MOST_RANKS];
        ingot_error error = {0};
        CU_ASSERT_FATAL(ingot_team_create(&team, size) == INGOT_OK);
        for (unsigned r = 0; r < size; r++) {
            gathered *g = &parts[r];
            const ingot_zero_mode mode = size % 2 ? INGOT_ZERO_STORED : INGOT_ZERO_SYMMETRIC;
            *g = (gathered){
                .rank = {.team = team, .number = r, .size = size, .backend = &backends[r]},
                .own = {.kind = INGOT_GROUPED,
                        .cols = 24,
                        .bits = 4,
                        .zero_mode = mode,
                        .scale_dtype = INGOT_F16,
                        .group = 8,
                        .groups_per_row = 3,
                        .row_stride_bytes = 12}};
            CU_ASSERT_FATAL(ingot_arena_create(&g->arena) == INGOT_OK);
            (void)ingot_team_rows(&g->first, &g->own.rows, &g->rank, 100);
            g->own.codes = codes + g->first * 12;
            g->own.scales = scales + g->first * 3;
            g->own.zeros = mode == INGOT_ZERO_STORED ? zeros + g->first * 3 : NULL;
            CU_ASSERT_FATAL(ingot_worker_create(&workers[r]) == INGOT_OK);
            ingot_worker_start(workers[r], run_gather, g);
        }
        for (unsigned r = 0; r < size; r++) {
            CU_ASSERT(ingot_worker_wait(workers[r], &error) == INGOT_OK);
            ingot_worker_destroy(workers[r]);
        }
        for (unsigned r = 0; r < size; r++) {
            const ingot_weight_view *v = &parts[r].whole;
            CU_ASSERT(v->rows == 100 && v->cols == 24 && v->codes == parts[0].whole.codes);
            CU_ASSERT(memcmp(v->codes, codes, sizeof codes) == 0);
            CU_ASSERT(memcmp(v->scales, scales, sizeof scales) == 0);
            CU_ASSERT((v->zeros != NULL) == (size % 2 == 1));
            CU_ASSERT(v->zeros == NULL || memcmp(v->zeros, zeros, sizeof zeros) == 0);
        }
        for (unsigned r = 0; r < size; r++) {
            ingot_arena_destroy(parts[r].arena);
        }
        ingot_team_destroy(team);
    }
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"sums over ranks", test_sums},      {"a rank that leaves", test_leaving},
        {"windows", test_windows},           {"rows", test_rows},
        {"rows come together", test_gather}, CU_TEST_INFO_NULL,
    };
    ingot_error error = {0};
    srand(7);
    for (unsigned i = 0; i < MOST_RANKS; i++) {
        if (ingot_backend_open(&backends[i], "cpu", 1, &error) != INGOT_OK) {
            return 2;
        }
    }
    const int result = suite_run("team", tests);
    for (unsigned i = 0; i < MOST_RANKS; i++) {
        ingot_backend_close(&backends[i]);
    }
    return result;
}
