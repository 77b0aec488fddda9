/* How much a product is scored on, and how long that takes, for plans. */
#ifndef INGOT_ZOO_PLAN_SCORING_H
#define INGOT_ZOO_PLAN_SCORING_H

#include "convert/plan_forecast.h"
#include "zoo/manifest.h"

/* Sequences of tokens that both models run, by the tokenizer of the product's model. */
typedef struct ingot_scored {
    double tokens; /* of all sequences; NaN: it cannot be told */
    double length; /* of one, on average */
    double scored; /* tokens whose likelihood is asked for */
} ingot_scored;

/* The windows of a product's evaluation, of `length` tokens, from the first MiB of the text.
 * cache: an object, kept from call to call. */
ingot_scored ingot_zoo_scored_text(json_t *cache, const ingot_manifest *manifest,
                                   const ingot_zoo_product *product, uint64_t length);
/* The choices of its tasks, each behind its context, from the first items; likewise. */
ingot_scored ingot_zoo_scored_items(json_t *cache, const ingot_manifest *manifest,
                                    const ingot_zoo_product *product);

/* Seconds of both, and of the start of a GPU; NaN where there is neither, one cannot be told or the
 * forecast has no times. */
double ingot_zoo_scoring_seconds(json_t *cache, const ingot_manifest *manifest,
                                 const ingot_zoo_product *product, const ingot_forecast *forecast);

#endif
