/* What a record keeps of the reports of the tools. */
#ifndef INGOT_ZOO_FIGURES_H
#define INGOT_ZOO_FIGURES_H

#include "common/json.h"

/* New references; NULL when out of memory. */
json_t *ingot_zoo_convert_figures(const json_t *report); /* of ingot-convert --json */
json_t *ingot_zoo_verify_figures(const json_t *report);  /* of ingot-verify --json */
/* Errors of every layer, root mean square over its linears: "output", "output_rtn", "weight",
 * "weight_rtn", each a list with null where a layer has none. */
json_t *ingot_zoo_layer_errors(const json_t *report);

#endif
