/* The charts of the HTML report, as inline SVG.  Internal to verify/. */
#ifndef INGOT_REPORT_CHARTS_H
#define INGOT_REPORT_CHARTS_H

#include "common/svg.h"
#include "verify/verify.h"

/* One panel per kind of layer: error against layer number, the result beside plain rounding. */
void ingot_chart_errors(ingot_markup *markup, const ingot_verification *verification);
/* Stored bits per weight of every tensor that is stored, in load order. */
void ingot_chart_bits(ingot_markup *markup, const ingot_verification *verification);
/* Bytes of the container by what they are, beside the source. */
void ingot_chart_sizes(ingot_markup *markup, const ingot_verification *verification);
/* Perplexity of container and source, and the divergence between them, with their gates; nothing
 * without a score. */
void ingot_chart_score(ingot_markup *markup, const ingot_verification *verification);
/* Accuracy of container and source on the items, with the gate. */
void ingot_chart_tasks(ingot_markup *markup, const ingot_verification *verification);

#endif
