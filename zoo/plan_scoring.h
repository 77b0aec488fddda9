/* How much a product is scored on, and how long that takes, for plans. */
#ifndef INGOT_ZOO_PLAN_SCORING_H
#define INGOT_ZOO_PLAN_SCORING_H

#include "convert/plan_forecast.h"
#include "zoo/manifest.h"

/* The text of a product's evaluation and its tasks.  A byte of the text is a token at the most;
 * tasks are read, and what their texts are in tokens is told by the tokenizer of the product's
 * model from the first MiB of them (without one a byte is taken for a token).
 * cache: an object, kept from call to call.  Errors as ingot_tasks_read and ingot_tasks_measure. */
ingot_status ingot_zoo_scoring(ingot_scoring_job *out, json_t *cache,
                               const ingot_manifest *manifest, const ingot_zoo_product *product,
                               ingot_error *error) INGOT_MUST_CHECK;

/* INGOT_ERR_INPUT where the text of a product's evaluation is known to be shorter than a window of
 * `length` tokens; same cache. */
ingot_status ingot_zoo_check_text(json_t *cache, const ingot_manifest *manifest,
                                  const ingot_zoo_product *product, uint64_t length,
                                  ingot_error *error) INGOT_MUST_CHECK;

/* Seconds of both, by the same cache, and of the start of a GPU; NaN where there is neither, the
 * model has no tokenizer or the forecast has no times. */
double ingot_zoo_scoring_seconds(json_t *cache, const ingot_manifest *manifest,
                                 const ingot_zoo_product *product, const ingot_forecast *forecast);

#endif
