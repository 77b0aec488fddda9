/* Outliers of a tensor by themselves, for a loader that takes its other parts piece by piece
 * (ingot_part_read) and never holds the whole of it. */
#ifndef INGOT_FORMAT_OUTLIERS_H
#define INGOT_FORMAT_OUTLIERS_H

#include "ingot.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of a grouped tensor (an alias gives its target) that has outliers, else INGOT_ERR_USAGE: reads
 * them into buffer[part_bytes[INGOT_PART_OUTLIERS]] (64-byte aligned, caller's), where
 * outlier_row_ptr, outlier_col and outlier_val of *view then point, its other pointers are NULL.
 * Their rules are checked whatever verify says, against codes and zero points, which are read for
 * it a chunk at a time; verify: digests of the outliers.  Errors: those of ingot_tensor_load. */
ingot_status ingot_outliers_load(const ingot_container *container, uint64_t index, bool verify,
                                 void *buffer, ingot_weight_view *view,
                                 ingot_error *error) INGOT_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
