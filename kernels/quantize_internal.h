/* Shared by the files of kernels/ that implement quantize.h; not for other folders. */
#ifndef INGOT_QUANTIZE_INTERNAL_H
#define INGOT_QUANTIZE_INTERNAL_H

#include "kernels/quantize.h"
#include "kernels/quantize_isa.h"

/* The widest variant this processor runs. */
const ingot_quantize_ops *ingot_quantize_ops_get(void);

uint64_t ingot_row_tiles(uint64_t rows);
uint64_t ingot_tile_end(uint64_t tile, uint64_t rows); /* one past the last row */

static inline uint64_t ingot_pad_lanes(uint64_t count) {
    return (count + INGOT_QUANTIZE_LANES - 1) / INGOT_QUANTIZE_LANES * INGOT_QUANTIZE_LANES;
}

/* Workers a pool may use (a NULL pool: the caller). */
static inline unsigned ingot_pool_width(const ingot_pool *pool) {
    return pool != NULL ? ingot_pool_threads(pool) : 1;
}

#endif
