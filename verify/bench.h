/* ingot-bench: what this machine does, each figure beside its limit.  One entry per measurement. */
#ifndef INGOT_BENCH_H
#define INGOT_BENCH_H

#include "common/cli.h"
#include "common/json.h"

typedef struct ingot_bench_options {
    const char *file;   /* NULL: a container is generated */
    const char *folder; /* for generated files */
    uint64_t size_bytes;
    unsigned threads; /* 0: as the measurement likes */
    unsigned runs;
    bool as_json; /* nothing but one object at the end goes to stdout */

    const char *shape;  /* of a generated model to decode with */
    unsigned head_bits; /* of its head: 4, or 16, dense in BF16; 0: 4 */

    const char *products; /* a list of products to measure; NULL: those of 8B and 70B models */
    uint64_t group;       /* columns of a group of the weights of both; 0: 128 */
    bool has_zeros;       /* of them: stored zero points */

    const char *device; /* NULL: auto */
    /* of conversions: */
    const char *model, *text, *methods;
    uint64_t samples, seq_len; /* of the text; seq_len 0: the default of ingot-convert */
    const char *devices;       /* a list as for ingot-convert --devices, measured too; NULL: none */
    const char *slice;         /* a checkpoint with a few blocks of a larger model; NULL: none */
    uint64_t slice_blocks;     /* of that model */
} ingot_bench_options;

/* Columns of a group of what is generated. */
static inline uint64_t ingot_bench_group(const ingot_bench_options *options) {
    return options->group != 0 ? options->group : 128;
}

/* Runs one measurement and fills *out with a new object of figures. */
typedef ingot_status (*ingot_bench_run)(json_t **out, const ingot_bench_options *options,
                                        ingot_error *error);
/* Prints such figures as text. */
typedef void (*ingot_bench_print)(const json_t *figures);

/* path[size] = a file of options->folder that is to be generated and removed again: what has that
 * name already is somebody's, INGOT_ERR_EXISTS. */
ingot_status ingot_bench_place(char *path, size_t size, const ingot_bench_options *options,
                               const char *name, ingot_error *error) INGOT_MUST_CHECK;

/* The speed of the full check beside the disk, the memory and other tools; the time to open a
 * container of many tensors. */
ingot_status ingot_bench_verify(json_t **out, const ingot_bench_options *options,
                                ingot_error *error) INGOT_MUST_CHECK;

/* Tokens a second of a device's engine, for a container or a generated model, beside the speed of
 * its memory; how fast a container is loaded. */
ingot_status ingot_bench_decode(json_t **out, const ingot_bench_options *options,
                                ingot_error *error) INGOT_MUST_CHECK;

/* Products of packed weights beside what the memory delivers and beside cuBLAS, each compared with
 * FP64 in the same run; INGOT_ERR_INTERNAL when one is wrong. */
ingot_status ingot_bench_kernels(json_t **out, const ingot_bench_options *options,
                                 ingot_error *error) INGOT_MUST_CHECK;
void ingot_bench_kernels_print(const json_t *figures);
void ingot_bench_decode_print(const json_t *figures);

int ingot_bench_tool(int argc, char **argv);

#endif
