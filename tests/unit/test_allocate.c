/* Bit allocation against trying everything, on small random problems. */
#include "convert/allocate.h"
#include "suite.h"

#include <math.h>
#include <string.h>

static uint64_t state;

static uint64_t draw(uint64_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % below;
}

/* Sizes of a matrix of `unit` bytes a bit, with overhead; costs fall, here and there not at all. */
static ingot_width_item random_item(uint64_t unit) {
    ingot_width_item item;
    double cost = (double)(1 + draw(1000));
    const uint64_t overhead = draw(50);
    for (unsigned w = 0; w < INGOT_WIDTH_COUNT; w++) {
        item.bytes[w] = overhead + (w + INGOT_WIDTH_LEAST) * unit;
        item.cost[w] = cost;
        cost *= draw(8) == 0 ? 1.0 : 0.15 + 0.01 * (double)draw(40);
    }
    return item;
}

/* Least cost with a size in the range, INFINITY: none; *under = the largest size <= most. */
static double try_all(const ingot_width_item *items, uint64_t count, uint64_t least, uint64_t most,
                      uint64_t bytes, double cost, uint64_t *under) {
    if (count == 0) {
        *under = bytes <= most && bytes > *under ? bytes : *under;
        return bytes >= least && bytes <= most ? cost : (double)INFINITY;
    }
    double best = INFINITY;
    for (unsigned w = 0; w < INGOT_WIDTH_COUNT; w++) {
        best = fmin(best, try_all(items + 1, count - 1, least, most, bytes + items[0].bytes[w],
                                  cost + items[0].cost[w], under));
    }
    return best;
}

static uint64_t total(const ingot_width_item *items, uint64_t count, const unsigned *bits,
                      double *cost) {
    uint64_t bytes = 0;
    *cost = 0;
    for (uint64_t i = 0; i < count; i++) {
        bytes += items[i].bytes[bits[i] - INGOT_WIDTH_LEAST];
        *cost += items[i].cost[bits[i] - INGOT_WIDTH_LEAST];
    }
    return bytes;
}

static void test_brute_force(void) {
    unsigned found = 0, refused = 0;
    for (unsigned round = 0; round < 200; round++) {
        state = round;
        ingot_width_item items[5];
        unsigned bits[5];
        uint64_t nearest, under = 0, narrow = 0;
        const uint64_t count = 1 + draw(5);
        for (uint64_t i = 0; i < count; i++) {
            items[i] = random_item(16 * (1 + draw(40)));
            narrow += items[i].bytes[0];
        }
        const uint64_t most = narrow / 2 + draw(1 + narrow * 3),
                       least = most - most / (1 + draw(60));
        const double best = try_all(items, count, least, most, 0, 0, &under);
        const ingot_status status =
            ingot_allocate_widths(bits, &nearest, items, count, least, most);
        double cost;
        CU_ASSERT(status == (isinf(best) ? INGOT_ERR_USAGE : INGOT_OK));
        if (status == INGOT_OK) {
            const uint64_t bytes = total(items, count, bits, &cost);
            CU_ASSERT(bytes == nearest && bytes >= least && bytes <= most);
            CU_ASSERT(fabs(cost - best) <= 1e-9 * best);
            found++;
        } else {
            CU_ASSERT(nearest == (under != 0 ? under : narrow));
            refused++;
        }
    }
    CU_ASSERT(found > 50 && refused > 20);
}

/* Sizes without a common divisor, so large that steps are coarse: within the range, the same every
 * time, and never dearer with more room. */
static void test_many(void) {
    enum { COUNT = 60 };
    static ingot_width_item items[COUNT];
    static unsigned bits[COUNT], again[COUNT];
    state = 7;
    uint64_t narrow = 0, weights = 0;
    for (unsigned i = 0; i < COUNT; i++) {
        items[i] = random_item(100003 + draw(900000));
        narrow += items[i].bytes[0];
        weights += items[i].bytes[1] - items[i].bytes[0];
    }
    double last = INFINITY;
    for (unsigned tenths = 1; tenths < 60; tenths++) {
        const uint64_t most = narrow + weights * tenths / 10, least = most - most / 200;
        uint64_t nearest;
        double cost, cost_again;
        CU_ASSERT_FATAL(ingot_allocate_widths(bits, &nearest, items, COUNT, least, most) ==
                        INGOT_OK);
        const uint64_t bytes = total(items, COUNT, bits, &cost);
        CU_ASSERT(bytes >= least && bytes <= most && cost <= last);
        last = cost;
        CU_ASSERT(ingot_allocate_widths(again, &nearest, items, COUNT, least, most) == INGOT_OK);
        (void)total(items, COUNT, again, &cost_again);
        CU_ASSERT(memcmp(bits, again, sizeof bits) == 0);
    }
}

static void test_bounds(void) {
    state = 3;
    const ingot_width_item items[2] = {random_item(64), random_item(32)};
    unsigned bits[2];
    uint64_t nearest;
    const uint64_t narrow = items[0].bytes[0] + items[1].bytes[0],
                   wide = items[0].bytes[6] + items[1].bytes[6];
    CU_ASSERT(ingot_allocate_widths(bits, &nearest, items, 2, 0, narrow - 1) == INGOT_ERR_USAGE &&
              nearest == narrow);
    CU_ASSERT(ingot_allocate_widths(bits, &nearest, items, 2, narrow, narrow) == INGOT_OK &&
              bits[0] == 2 && bits[1] == 2);
    CU_ASSERT(ingot_allocate_widths(bits, &nearest, items, 2, wide, wide * 9) == INGOT_OK &&
              bits[0] == 8 && bits[1] == 8);
    CU_ASSERT(ingot_allocate_widths(bits, &nearest, items, 2, wide + 1, wide * 2) ==
                  INGOT_ERR_USAGE &&
              nearest == wide);
    CU_ASSERT(ingot_allocate_widths(bits, &nearest, items, 0, 0, 0) == INGOT_OK && nearest == 0);
}

int main(void) {
    const CU_TestInfo tests[] = {{"against trying everything", test_brute_force},
                                 {"many matrices", test_many},
                                 {"the ends of the range", test_bounds},
                                 CU_TEST_INFO_NULL};
    return suite_run("allocate", tests);
}
