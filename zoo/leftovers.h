/* Shared files of a shelf that no product of its manifest uses any more: statistics and sensitivity
 * tables of a model, a text or a recipe that the manifest had before, and what an interrupted tool
 * left of them (spec/zoo.md, section 2). */
#ifndef INGOT_ZOO_LEFTOVERS_H
#define INGOT_ZOO_LEFTOVERS_H

#include "zoo/product.h"

/* *out = a list of objects with "file" (below the shelf) and "bytes" (of the disk), the caller's to
 * release in any case.  Only files that are named by a key are looked at.  Empty where the folder
 * of a model cannot be read: what its products use is not known then; and where another run is at
 * work on the shelf: its manifest may be another. */
ingot_status ingot_leftovers_find(json_t **out, const ingot_manifest *manifest,
                                  const ingot_shelf *shelf, ingot_error *error) INGOT_MUST_CHECK;
/* Removes them, with a line on stderr for each.  *out as above, of those that were removed. */
ingot_status ingot_leftovers_remove(json_t **out, const ingot_manifest *manifest,
                                    const ingot_shelf *shelf, ingot_error *error) INGOT_MUST_CHECK;

#endif
