/* What reading (stats.c) and collecting (stats_collect.c) know of a statistics file.  Private to
 * them. */
#ifndef INGOT_STATS_PARTS_H
#define INGOT_STATS_PARTS_H

#include "calib/stats.h"

#define PIECE_BYTES (1ull << 20) /* of reading and writing; a chunk of the container */

/* The tensors of one input, in file order. */
enum { TENSOR_GRAM, TENSOR_MAGNITUDE, TENSOR_COUNTS, TENSORS_PER_INPUT };

void ingot_stats_tensor_name(char name[INGOT_NAME_SIZE], uint64_t layer, ingot_input input,
                             int which);

/* Width of an input, 0 when no linear of the model reads it. */
uint64_t ingot_stats_width(const ingot_model *model, ingot_input input);

/* n (n + 1) / 2; false on overflow. */
bool ingot_stats_triangle(uint64_t *out, uint64_t n);

#endif
