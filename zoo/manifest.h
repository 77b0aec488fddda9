/* A manifest: models, texts, recipes and the products to make of them (spec/zoo.md).
 *
 * Parsing looks at the text alone; ingot_manifest_check looks at what it names.  Every error names
 * the line. */
#ifndef INGOT_MANIFEST_H
#define INGOT_MANIFEST_H

#include "common/memory.h"
#include "convert/recipe.h"

#include <jansson.h>

#define INGOT_ZOO_NONE        UINT64_MAX
#define INGOT_ZOO_SELF        "@self" /* in place of a file: what the model itself writes */
#define INGOT_ZOO_MAX_DEVICES 64u
#define INGOT_ZOO_MAX_SLURM   32u

/* What a member of a list is called and where its files lie. */
typedef struct ingot_zoo_model {
    const char *name, *path; /* of the folder */
} ingot_zoo_model;

typedef struct ingot_zoo_text {
    const char *name;
    const char **paths; /* [path_count], concatenated */
    uint64_t path_count;
    uint8_t digest[16]; /* XXH3-128 of the concatenated bytes; ingot_manifest_check */
    uint64_t bytes;     /* their number; likewise */
} ingot_zoo_text;

typedef struct ingot_zoo_recipe {
    const char *name;
    const char *path; /* of its own file, or NULL: in the manifest */
    char *text;       /* canonical JSON, malloc; a file's after ingot_manifest_check */
    ingot_recipe recipe;
} ingot_zoo_recipe;

typedef struct ingot_zoo_product {
    const char *name;                 /* MODEL/RECIPE */
    const char *output;               /* relative to the shelf */
    uint64_t model, recipe;           /* indices */
    uint64_t calibration, evaluation; /* indices of texts, or INGOT_ZOO_NONE */
    bool uses_statistics;             /* calibrated through a shared .calib file */
    bool is_compressed, with_sha256;
    uint64_t shard_bytes;                             /* 0: one file */
    uint64_t seq_len, windows;                        /* of the evaluation; 0: the tool's default */
    const char *tasks;                                /* items, or NULL */
    double max_ppl_ratio, max_kld, max_accuracy_drop; /* gates; NaN: none */
    unsigned entry;                                   /* of "products", for errors */
} ingot_zoo_product;

typedef struct ingot_zoo_limits {
    uint64_t host_bytes, device_bytes, disk_bytes; /* 0: what the machine has */
    uint64_t threads, jobs;                        /* 0: all CPUs; one a device */
} ingot_zoo_limits;

typedef struct ingot_manifest {
    const char *path, *folder; /* relative paths in it start from its folder */
    const char *shelf;
    ingot_zoo_model *models;
    uint64_t model_count;
    ingot_zoo_text *texts;
    uint64_t text_count;
    ingot_zoo_recipe *recipes;
    uint64_t recipe_count;
    ingot_zoo_product *products;
    uint64_t product_count;
    const char **devices; /* [device_count], at least one */
    uint64_t device_count;
    ingot_zoo_limits limits;
    const char **slurm; /* [slurm_count], options for sbatch */
    uint64_t slurm_count;
    /* owned */
    ingot_arena *arena;
    char *text;
    uint64_t size;
    json_t *root;
} ingot_manifest;

/* Parses text[size], which is copied; path is for errors, and relative paths start from its folder.
 * INGOT_ERR_INPUT names the line.  *out is released with ingot_manifest_free, also on failure. */
ingot_status ingot_manifest_parse(ingot_manifest *out, const char *text, uint64_t size,
                                  const char *path, ingot_error *error) INGOT_MUST_CHECK;
/* Looks at what the manifest names: model folders exist, recipe files are recipes, texts can be
 * read (their digests are taken).  Reads no weights. */
ingot_status ingot_manifest_check(ingot_manifest *manifest, ingot_error *error) INGOT_MUST_CHECK;
/* Both, from a file. */
ingot_status ingot_manifest_read(ingot_manifest *out, const char *path,
                                 ingot_error *error) INGOT_MUST_CHECK;
void ingot_manifest_free(ingot_manifest *manifest);

/* Whether a product calibrates on a text. */
bool ingot_product_has_data(const ingot_zoo_product *product);
bool ingot_product_has_gates(const ingot_zoo_product *product);

#endif
