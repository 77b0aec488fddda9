/* Bit allocation (convert/allocate.h). */
#include "convert/allocate.h"

#include "common/memory.h"
#include "common/sizes.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#define STEPS_MOST (1u << 16)

/* Sizes are counted in steps above the size with every matrix at its narrowest. */
typedef struct table {
    const ingot_width_item *items;
    uint64_t count;
    uint64_t step;     /* bytes */
    uint64_t steps;    /* the most that fit */
    bool is_exact;     /* every size is a whole number of steps */
    double *cost;      /* [steps + 1] least cost of exactly so many steps, INFINITY: none */
    double *next;      /* [steps + 1] */
    uint8_t *selected; /* [count][steps + 1] width index of the item that got there */
} table;

static uint64_t gcd(uint64_t a, uint64_t b) {
    while (b != 0) {
        const uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static uint64_t steps_of(const table *t, uint64_t item, unsigned width) {
    const uint64_t *bytes = t->items[item].bytes;
    return ingot_ceil_div(bytes[width] - bytes[0], t->step);
}

static void choose_step(table *t, uint64_t room) {
    uint64_t step = 0;
    for (uint64_t i = 0; i < t->count; i++) {
        for (unsigned w = 1; w < INGOT_WIDTH_COUNT; w++) {
            step = gcd(t->items[i].bytes[w] - t->items[i].bytes[0], step);
        }
    }
    step = ingot_max_u64(step, 1);
    t->is_exact = room / step <= STEPS_MOST;
    t->step = t->is_exact ? step : ingot_ceil_div(room, STEPS_MOST);
    t->steps = room / t->step;
}

static void add_item(table *t, uint64_t item) {
    uint8_t *selected = t->selected + item * (t->steps + 1);
    for (uint64_t u = 0; u <= t->steps; u++) {
        t->next[u] = INFINITY;
    }
    for (unsigned w = 0; w < INGOT_WIDTH_COUNT; w++) {
        const uint64_t taken = steps_of(t, item, w);
        const double cost = t->items[item].cost[w];
        for (uint64_t u = taken; u <= t->steps; u++) {
            if (t->cost[u - taken] + cost < t->next[u]) {
                t->next[u] = t->cost[u - taken] + cost;
                selected[u] = (uint8_t)w;
            }
        }
    }
    double *const old = t->cost;
    t->cost = t->next;
    t->next = old;
}

static uint64_t sum_bytes(const ingot_width_item *items, uint64_t count, const unsigned *bits) {
    uint64_t total = 0;
    for (uint64_t i = 0; i < count; i++) {
        total += items[i].bytes[bits[i] - INGOT_WIDTH_LEAST];
    }
    return total;
}

/* Widens what gains most per byte for as long as something fits: what rounding up had left. */
static void fill(unsigned *bits, const table *t, uint64_t most_bytes) {
    uint64_t room = most_bytes - sum_bytes(t->items, t->count, bits);
    for (;;) {
        uint64_t best = t->count, best_bytes = 0;
        double best_gain = -1;
        for (uint64_t i = 0; i < t->count; i++) {
            const unsigned w = bits[i] - INGOT_WIDTH_LEAST;
            if (bits[i] == INGOT_WIDTH_MOST) {
                continue;
            }
            const uint64_t bytes = t->items[i].bytes[w + 1] - t->items[i].bytes[w];
            const double gain = (t->items[i].cost[w] - t->items[i].cost[w + 1]) / (double)bytes;
            if (bytes <= room && gain > best_gain) {
                best = i;
                best_bytes = bytes;
                best_gain = gain;
            }
        }
        if (best == t->count) {
            return;
        }
        bits[best]++;
        room -= best_bytes;
    }
}

/* The cheapest entry that is large enough, or else the largest there is. */
static uint64_t find_end(const table *t, uint64_t least_steps) {
    uint64_t end = 0, reached = 0;
    bool is_found = false;
    for (uint64_t u = 0; u <= t->steps; u++) {
        if (isinf(t->cost[u])) {
            continue;
        }
        reached = u;
        if (u >= least_steps && (!is_found || t->cost[u] < t->cost[end])) {
            end = u;
            is_found = true;
        }
    }
    return is_found ? end : reached;
}

static void choose(unsigned *bits, table *t, uint64_t base, uint64_t least_bytes,
                   uint64_t most_bytes) {
    t->cost[0] = 0;
    for (uint64_t u = 1; u <= t->steps; u++) {
        t->cost[u] = INFINITY;
    }
    for (uint64_t i = 0; i < t->count; i++) {
        add_item(t, i);
    }
    const uint64_t room = least_bytes > base ? least_bytes - base : 0;
    uint64_t u = find_end(t, ingot_ceil_div(room, t->step));
    for (uint64_t i = t->count; i-- > 0;) {
        const unsigned w = t->selected[i * (t->steps + 1) + u];
        bits[i] = INGOT_WIDTH_LEAST + w;
        u -= steps_of(t, i, w);
    }
    if (!t->is_exact) {
        fill(bits, t, most_bytes);
    }
}

ingot_status ingot_allocate_widths(unsigned *bits, uint64_t *nearest, const ingot_width_item *items,
                                   uint64_t count, uint64_t least_bytes, uint64_t most_bytes) {
    table t = {.items = items, .count = count};
    ingot_status status = INGOT_OK;
    for (uint64_t i = 0; i < count; i++) {
        bits[i] = INGOT_WIDTH_LEAST;
    }
    const uint64_t base = sum_bytes(items, count, bits);
    *nearest = base;
    if (base > most_bytes) {
        return INGOT_ERR_USAGE;
    }
    choose_step(&t, most_bytes - base);
    uint64_t cells;
    if (!ingot_size_mul(&cells, count, t.steps + 1)) {
        return INGOT_ERR_NO_MEMORY;
    }
    INGOT_GO(ingot_alloc_zero((void **)&t.cost, t.steps + 1, sizeof *t.cost));
    INGOT_GO(ingot_alloc_zero((void **)&t.next, t.steps + 1, sizeof *t.next));
    INGOT_GO(ingot_alloc_zero((void **)&t.selected, cells, 1));
    choose(bits, &t, base, least_bytes, most_bytes);
    *nearest = sum_bytes(items, count, bits);
    status = *nearest < least_bytes ? INGOT_ERR_USAGE : INGOT_OK;
done:
    ingot_free(t.cost);
    ingot_free(t.next);
    ingot_free(t.selected);
    return status;
}
