/* The figures of ingot-bench convert (spec/cli.md, section 9) as tables on stdout, each at once
 * when it is measured. */
#ifndef INGOT_BENCH_CONVERT_PRINT_H
#define INGOT_BENCH_CONVERT_PRINT_H

#include "common/json.h"

/* What the machine does at best. */
void ingot_bench_convert_print_limits(const json_t *figures);
/* One of the "runs": every phase beside its floor. */
void ingot_bench_convert_print_run(const json_t *run);
/* All runs so far, a line each, and what is not a conversion of the model itself. */
void ingot_bench_convert_print_summary(const json_t *figures);

#endif
