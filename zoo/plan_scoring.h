/* How much a product is scored on, for plans. */
#ifndef INGOT_ZOO_PLAN_SCORING_H
#define INGOT_ZOO_PLAN_SCORING_H

#include "zoo/manifest.h"

/* Tokens of a product's evaluation that are scored in windows of a length, by the tokenizer of its
 * model from the first MiB of the text; NaN where there is no evaluation, or it cannot be told.
 * cache: an object, kept from call to call. */
double ingot_zoo_scored_tokens(json_t *cache, const ingot_manifest *manifest,
                               const ingot_zoo_product *product, uint64_t length);

#endif
