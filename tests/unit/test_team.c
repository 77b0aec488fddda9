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

/* The largest input alone, the rest to the other; one rank has all; what is not there is no work.
 */
static void test_shares(void) {
    static const ingot_model model = {
        .linear = {[INGOT_ROLE_Q] = {.rows = 4096, .cols = 4096, .input = INGOT_INPUT_ATTENTION},
                   [INGOT_ROLE_K] = {.rows = 1024, .cols = 4096, .input = INGOT_INPUT_ATTENTION},
                   [INGOT_ROLE_V] = {.rows = 1024, .cols = 4096, .input = INGOT_INPUT_ATTENTION},
                   [INGOT_ROLE_O] = {.rows = 4096, .cols = 4096, .input = INGOT_INPUT_OUTPUT},
                   [INGOT_ROLE_GATE] = {.rows = 14336, .cols = 4096, .input = INGOT_INPUT_MLP},
                   [INGOT_ROLE_UP] = {.rows = 14336, .cols = 4096, .input = INGOT_INPUT_MLP},
                   [INGOT_ROLE_DOWN] = {.rows = 4096, .cols = 14336, .input = INGOT_INPUT_DOWN}}};
    bool is_present[INGOT_ROLE_COUNT];
    unsigned owner[INGOT_ROLE_COUNT];
    memset(is_present, true, sizeof is_present);
    for (unsigned size = 1; size <= MOST_RANKS; size++) {
        const ingot_rank rank = {.size = size};
        ingot_team_share(owner, &rank, &model, is_present, false);
        for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
            CU_ASSERT(owner[role] < size);
            CU_ASSERT(size == 1 ||
                      (owner[role] == owner[INGOT_ROLE_DOWN]) == (role == INGOT_ROLE_DOWN));
        }
        CU_ASSERT(owner[INGOT_ROLE_Q] == owner[INGOT_ROLE_V]);
        CU_ASSERT(size < 4 || owner[INGOT_ROLE_O] != owner[INGOT_ROLE_Q]);
        ingot_team_share(owner, &rank, &model, is_present, true);
        CU_ASSERT(size == 1 || owner[INGOT_ROLE_GATE] != owner[INGOT_ROLE_UP]);
        CU_ASSERT(size == 1 || owner[INGOT_ROLE_Q] != owner[INGOT_ROLE_V]);
        CU_ASSERT(owner[INGOT_ROLE_DOWN] == 0 && owner[INGOT_ROLE_O] == 0);
    }
    const ingot_rank rank = {.size = 2};
    is_present[INGOT_ROLE_DOWN] = false;
    ingot_team_share(owner, &rank, &model, is_present, false);
    CU_ASSERT(owner[INGOT_ROLE_GATE] != owner[INGOT_ROLE_O]);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"sums over ranks", test_sums},
        {"a rank that leaves", test_leaving},
        {"windows", test_windows},
        {"shares", test_shares},
        CU_TEST_INFO_NULL,
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
