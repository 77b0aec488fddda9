/* The report of a shelf: a page, a table, and the document both are drawn from. */
#ifndef INGOT_ZOO_REPORT_H
#define INGOT_ZOO_REPORT_H

#include "common/svg.h"

#include <jansson.h>

/* One self-contained page over the rows of zoo/rows.h. */
void ingot_zoo_page(ingot_markup *markup, const json_t *rows);
/* The same as comma-separated values (RFC 4180), one line a product under a line of names. */
void ingot_zoo_csv(ingot_markup *out, const json_t *rows);

/* Charts, as inline SVG.  rows: of one model. */
void ingot_zoo_chart_quality(ingot_markup *markup, const json_t *rows);
void ingot_zoo_chart_layers(ingot_markup *markup, const json_t *rows);
/* Stacked times of every product, the slowest first, at most `most` of them. */
void ingot_zoo_chart_times(ingot_markup *markup, const json_t *rows, size_t most);

#define INGOT_ZOO_SERIES 8u /* colours for products; later ones share a quiet one */
#define INGOT_ZOO_PHASES 6u /* groups of phases that have a colour */
extern const char *const ingot_zoo_phase_labels[INGOT_ZOO_PHASES];

/* The measure of quality of a row: its mean KL divergence, NaN where it was not evaluated. */
double ingot_zoo_quality(const json_t *row);
double ingot_zoo_bytes(const json_t *row);
/* The most memory of the host that a step of it took; NaN where none is known. */
double ingot_zoo_peak_bytes(const json_t *row);

#endif
