/* Products on the devices of a run: the least busy one that has room takes the next. */
#include "zoo/seats.h"

#include "kernels/plugin.h"
#include "suite.h"

/* Of a second process on a card. */
#define MORE (INGOT_PLUGIN_CONTEXT_BYTES + INGOT_PLUGIN_KERNEL_BYTES)

static const char *const two_cards[] = {"cuda:0", "cuda:1"};

static void test_fewest_jobs(void) {
    const char *const devices[] = {"cpu", "auto", "cuda:3"};
    const uint64_t free_bytes[] = {0, 0, 0};
    ingot_seats s;
    ingot_seats_make(&s, devices, free_bytes, 0, 3);
    for (uint64_t i = 0; i < 6; i++) {
        const uint64_t seat = ingot_seats_choose(&s, 1000);
        CU_ASSERT_EQUAL_FATAL(seat, i % 3);
        ingot_seats_take(&s, seat, 1000);
    }
    ingot_seats_leave(&s, 1, 1000);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 1000), 1);
}

/* One by itself always fits; beside another only what is left. */
static void test_room(void) {
    const uint64_t free_bytes[] = {100 + MORE, 80 + MORE};
    ingot_seats s;
    ingot_seats_make(&s, two_cards, free_bytes, 0, 2);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 300 + MORE), 0);
    ingot_seats_take(&s, 0, 300 + MORE);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 60), 1);
    ingot_seats_take(&s, 1, 60);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 21), INGOT_ZOO_NONE);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 20), 1);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, UINT64_MAX), INGOT_ZOO_NONE);
    ingot_seats_leave(&s, 0, 300 + MORE);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 21), 0);
}

/* What was free was so beside the context of one process; each further one takes its own. */
static void test_contexts(void) {
    const uint64_t free_bytes[] = {1000 + 2 * MORE};
    ingot_seats s;
    ingot_seats_make(&s, two_cards, free_bytes, 0, 1);
    ingot_seats_take(&s, 0, 400);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 601 + MORE), INGOT_ZOO_NONE);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 600 + MORE), 0);
    ingot_seats_take(&s, 0, 0);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 601), INGOT_ZOO_NONE);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 600), 0);
    ingot_seats_take(&s, 0, 600);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 0), INGOT_ZOO_NONE);
    ingot_seats_leave(&s, 0, 400);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 401), INGOT_ZOO_NONE);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 400), 0);
    ingot_seats_leave(&s, 0, 600);
    ingot_seats_leave(&s, 0, 0);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, UINT64_MAX), 0);
}

/* The device with the fewest jobs may be the one without room. */
static void test_room_before_jobs(void) {
    const uint64_t free_bytes[] = {100 + MORE, 1000 + 2 * MORE};
    ingot_seats s;
    ingot_seats_make(&s, two_cards, free_bytes, 0, 2);
    ingot_seats_take(&s, 0, 90);
    ingot_seats_take(&s, 1, 10);
    ingot_seats_take(&s, 1, 10);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 50), 1);
}

static void test_limit(void) {
    const uint64_t free_bytes[] = {100 + MORE, 0}; /* of the second it is not known */
    ingot_seats s;
    ingot_seats_make(&s, two_cards, free_bytes, 50 + MORE, 2);
    ingot_seats_take(&s, 0, 30);
    ingot_seats_take(&s, 1, 40);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 21), INGOT_ZOO_NONE);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 20), 0);
    ingot_seats_make(&s, two_cards, free_bytes, 500 + MORE, 2);
    ingot_seats_take(&s, 0, 30);
    ingot_seats_take(&s, 1, 40);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 71), 1);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 461), INGOT_ZOO_NONE);
}

/* "cuda" is the first card, and one that is named twice is one card. */
static void test_one_card(void) {
    const char *const devices[] = {"cpu", "cuda", "cuda:0", "cuda:1"};
    const uint64_t free_bytes[] = {0, 100 + MORE, 100 + MORE, 100 + MORE};
    ingot_seats s;
    ingot_seats_make(&s, devices, free_bytes, 0, 4);
    for (uint64_t i = 0; i < 4; i++) {
        CU_ASSERT_EQUAL(s.seats[i].card, i == 2 ? 1 : i);
    }
    ingot_seats_take(&s, 0, 60);
    ingot_seats_take(&s, 1, 60);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 60), 3);
    ingot_seats_take(&s, 3, 60);
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 60), 0); /* the host's memory is another matter */
    CU_ASSERT_EQUAL(ingot_seats_choose(&s, 40), 2);
}

int main(void) {
    const CU_TestInfo tests[] = {{"the fewest jobs", test_fewest_jobs},
                                 {"room on a card", test_room},
                                 {"room before jobs", test_room_before_jobs},
                                 {"a limit", test_limit},
                                 {"a card of two names", test_one_card},
                                 {"contexts", test_contexts},
                                 CU_TEST_INFO_NULL};
    return suite_run("seats", tests);
}
