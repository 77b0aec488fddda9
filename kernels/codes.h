/* Products over a quantized matrix that is being learned: its codes change from step to step and
 * lie in memory a byte each, not yet packed. */
#ifndef INGOT_CODES_H
#define INGOT_CODES_H

#include "kernels/backend.h"

/* Whether products read the codes of q where they are: a device turns weights of any kind into
 * binary16 anyway, and a byte is less to read than a float.  It wants rows and groups that start at
 * multiples of 8.  The cpu multiplies values as they are. */
bool ingot_backend_reads_codes(const ingot_backend *backend, const ingot_quantized *q);

/* The codes, scales and outliers of q as a view of its values; q owns them all. */
ingot_weight_view ingot_codes_view(const ingot_quantized *q);
/* values[q->rows][q->cols] as a view of theirs. */
ingot_weight_view ingot_values_view(const ingot_quantized *q, const float *values);

#endif
