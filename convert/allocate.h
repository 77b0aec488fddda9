/* Bit allocation: the width of each matrix, so that the sum of what they cost is least and their
 * size lies in a given range (spec/recipe.md, "Widths by sensitivity").
 *
 * A knapsack of one choice per item, solved by dynamic programming over sizes (Sinha and Zoltners,
 * "The multiple-choice knapsack problem", 1979): exact where the sizes have a common divisor that
 * is coarse enough, which the shapes of models have. */
#ifndef INGOT_ALLOCATE_H
#define INGOT_ALLOCATE_H

#include "ingot_status.h"

#include <stdint.h>

#define INGOT_WIDTH_LEAST 2u
#define INGOT_WIDTH_MOST  8u
#define INGOT_WIDTH_COUNT (INGOT_WIDTH_MOST - INGOT_WIDTH_LEAST + 1u)

/* A matrix; index w is INGOT_WIDTH_LEAST + w bits. */
typedef struct ingot_width_item {
    uint64_t bytes[INGOT_WIDTH_COUNT]; /* increasing */
    double cost[INGOT_WIDTH_COUNT];    /* finite, not increasing */
} ingot_width_item;

/* bits[count] = the widths of least total cost among those whose bytes sum to a value in
 * [least_bytes, most_bytes]; equal costs: the smaller sum.  *nearest (always set) = the sum of what
 * was chosen, or, when nothing lies in the range (INGOT_ERR_USAGE), the largest sum under it, and
 * where there is none the smallest of all.  Takes up to 64 KiB * count of memory.
 *
 * Sums that would take more than 2^16 steps are counted in coarser steps, rounded up: the result
 * is then feasible, and optimal but for the rounding. */
ingot_status ingot_allocate_widths(unsigned *bits, uint64_t *nearest, const ingot_width_item *items,
                                   uint64_t count, uint64_t least_bytes,
                                   uint64_t most_bytes) INGOT_MUST_CHECK;

#endif
