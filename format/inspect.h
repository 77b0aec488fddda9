/* ingot-inspect: what is in a container, a checkpoint folder or a statistics file.  Not part of
 * libingot: it prints JSON.  It reads headers and metadata only; ingot-verify is the check. */
#ifndef INGOT_INSPECT_H
#define INGOT_INSPECT_H

#include "common/json.h"
#include "format/checkpoint.h"
#include "format/ingot.h"

/* The whole tool; returns the process exit code. */
int ingot_inspect_tool(int argc, char **argv);

/* One tensor, from either kind of file. */
typedef struct inspect_tensor {
    const char *name;
    const char *kind;  /* "dense", "grouped", "alias", "auxiliary" */
    const char *dtype; /* as the file names it */
    unsigned rank;
    uint64_t dim[INGOT_MAX_RANK];
    uint64_t elements, bytes;
    const ingot_tensor *record; /* containers only, like what follows */
    ingot_ledger ledger;
    const char *alias_of;    /* name of the target */
    uint8_t data_digest[16]; /* over the digests of the chunks; zeros when nothing is stored */
    uint64_t role;           /* index into roles */
} inspect_tensor;

/* All tensors whose names differ in numbers only. */
typedef struct inspect_role {
    char name[INGOT_MAX_NAME + 1]; /* the numbers as '*' */
    uint64_t tensors, elements, bytes;
    const inspect_tensor *first;
    bool is_uniform; /* same kind, width, group and dtype throughout */
    double weight_error, weight_error_rtn, output_error, output_error_rtn; /* RMS, NaN: none */
} inspect_role;

typedef struct inspection {
    const char *path;
    ingot_container *container; /* one of the two is open */
    ingot_checkpoint *checkpoint;
    ingot_info info;
    json_t *meta; /* NULL for checkpoints */
    inspect_tensor *tensors;
    inspect_role *roles;
    uint64_t tensor_count, role_count;
    uint64_t file_bytes;
    uint64_t quantized_tensors, quantized_weights, quantized_bytes;
    uint64_t weights; /* of model tensors: dense and grouped, not auxiliary, aliases not again */
    uint64_t methods[INGOT_METHOD_SEARCHED + 1]; /* model tensors per method */
    char **sha256;                               /* [data_file_count], NULL unless asked for */
} inspection;

ingot_status inspection_open(inspection *out, const char *path, bool with_sha256,
                             ingot_error *error) INGOT_MUST_CHECK;
void inspection_close(inspection *all);

/* Files that hold tensors: the shards. */
uint64_t inspection_data_file_count(const inspection *all);
const char *inspection_data_file(const inspection *all, uint64_t index);
const char *inspection_profile_name(const inspection *all);
double inspection_bits_per_weight(const inspection *all);      /* NaN: nothing quantized */
double inspection_file_bits_per_weight(const inspection *all); /* NaN: no weights */
const char *path_base(const char *path);

/* How two containers differ, in the order of the first, then what only the second has. */
typedef struct inspect_difference {
    const inspect_tensor *a, *b; /* NULL: only in the other */
    bool differs_in_shape, differs_in_storage, differs_in_data, differs_in_ledger;
} inspect_difference;
typedef struct inspect_comparison {
    inspect_difference *entries; /* every tensor of either */
    uint64_t count;
    uint64_t only_a, only_b, different, equal;
    bool is_same_content, are_files_equal, is_meta_equal;
} inspect_comparison;
ingot_status inspection_compare(inspect_comparison *out, const inspection *a, const inspection *b,
                                ingot_error *error) INGOT_MUST_CHECK;

/* format/inspect_text.c */
void inspection_print(const inspection *all, bool with_tensors);
void inspection_print_comparison(const inspection *a, const inspection *b,
                                 const inspect_comparison *comparison);

/* format/inspect_json.c: one object; NULL inspection after a failure, every key is there.  NULL
 * when out of memory. */
json_t *inspection_json(const inspection *all, bool with_tensors, const inspection *other,
                        const inspect_comparison *comparison, const ingot_error *error);

#endif
