/* Does a container still come from that folder?  Tensor by tensor, by the digests it carries. */
#ifndef INGOT_ZOO_SOURCE_H
#define INGOT_ZOO_SOURCE_H

#include "ingot_status.h"

#include <stdbool.h>
#include <stdint.h>

/* Digests of a checkpoint's tensors and small files, taken once and compared with many containers.
 */
typedef struct ingot_zoo_source ingot_zoo_source;

/* Reads the whole checkpoint once. */
ingot_status ingot_zoo_source_open(ingot_zoo_source **out, const char *folder,
                                   ingot_error *error) INGOT_MUST_CHECK;
void ingot_zoo_source_close(ingot_zoo_source *source); /* NULL is fine */
/* *is_same: every tensor of the container that has a source is in the folder with the same bytes,
 * and the files it carries are the folder's; else reason[160] names the first that differs. */
ingot_status ingot_zoo_source_compare(bool *is_same, const ingot_zoo_source *source,
                                      const char *container, char reason[160],
                                      ingot_error *error) INGOT_MUST_CHECK;
/* Both, for one container. */
ingot_status ingot_zoo_compare_source(bool *is_same, const char *container, const char *folder,
                                      char reason[160], ingot_error *error) INGOT_MUST_CHECK;

#endif
