/* ingot-bench convert: ingot-convert run as a child over a checkpoint, by several methods, from the
 * page cache and from the disk. */
#ifndef INGOT_BENCH_CONVERT_H
#define INGOT_BENCH_CONVERT_H

#include "verify/bench.h"

/* *out: "backend", the limits of the machine and "runs" (spec/cli.md, section 9).  The output of a
 * conversion lies in options->folder and is removed.  What is measured is printed at once, as
 * tables on stdout unless options->as_json, and is in *out also where a later measurement fails. */
ingot_status ingot_bench_convert(json_t **out, const ingot_bench_options *options,
                                 ingot_error *error) INGOT_MUST_CHECK;

#endif
