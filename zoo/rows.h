/* What is known of every product of a manifest, as one JSON document: what status shows and a
 * report is drawn from (spec/zoo.md, section 5). */
#ifndef INGOT_ZOO_ROWS_H
#define INGOT_ZOO_ROWS_H

#include "zoo/product.h"
#include "zoo/zoo.h"

/* *out = a list with one object for each chosen product: "product", "model", "recipe", "output",
 * "state" (also "running": somebody has its lock), "reason", "gates", and with_figures "front" (no
 * other product of the model is both smaller and better) and what the record keeps of the reports
 * ("file", "convert", "verify", "layers", "steps"), null where there is none.  Reads records and
 * the attributes of files, nothing else.  New reference. */
ingot_status ingot_zoo_rows(json_t **out, const ingot_manifest *manifest, const ingot_shelf *shelf,
                            const ingot_zoo_options *options, bool with_figures,
                            ingot_error *error) INGOT_MUST_CHECK;

#endif
