/* One product: what names its making, what a record says about it, whether its gates hold. */
#ifndef INGOT_ZOO_PRODUCT_H
#define INGOT_ZOO_PRODUCT_H

#include "zoo/manifest.h"
#include "zoo/shelf.h"

typedef enum ingot_product_state {
    INGOT_STATE_NEW,        /* nothing is known of it */
    INGOT_STATE_CONVERTING, /* begun; goes on where it stopped */
    INGOT_STATE_CONVERTED,  /* the file is there, not evaluated as the manifest asks */
    INGOT_STATE_DONE,
    INGOT_STATE_FAILED,
    INGOT_STATE_STALE,      /* the file was made by another recipe or text, or of other weights */
    INGOT_STATE_MISSING,    /* the file is not there, or is not the one that was made */
    INGOT_STATE_UNREADABLE, /* it is there and may not be read: nothing more is known of it */
    INGOT_STATE_COUNT
} ingot_product_state;
const char *ingot_product_state_name(ingot_product_state state);

typedef enum ingot_gate_verdict {
    INGOT_GATES_NONE, /* there are none */
    INGOT_GATES_PASSED,
    INGOT_GATES_FAILED,
    INGOT_GATES_OPEN /* not evaluated */
} ingot_gate_verdict;
const char *ingot_gate_verdict_name(ingot_gate_verdict verdict);

/* What names a product's making, as hexadecimal digests. */
typedef struct ingot_product_keys {
    char convert[33];     /* recipe, calibration, form of the file */
    char evaluate[33];    /* what it is scored on; gates are no part */
    char statistics[33];  /* of the shared statistics file: model, text, windows */
    char sensitivity[33]; /* of the shared table of a recipe with target_bpw */
    char fingerprint[33]; /* of the model's folder: names, sizes and times of its files */
} ingot_product_keys;

/* XXH3-128 over name, size and time of change of every file of a folder, in order of names.  Equal:
 * nobody wrote there.  Different: look closer (zoo/source.h). */
ingot_status ingot_zoo_fingerprint(char hex[33], const char *folder,
                                   ingot_error *error) INGOT_MUST_CHECK;
/* fingerprint: of the model's folder, or "" where it cannot be read. */
ingot_status ingot_product_make_keys(ingot_product_keys *out, const ingot_manifest *manifest,
                                     const ingot_zoo_product *product, const char *fingerprint,
                                     ingot_error *error) INGOT_MUST_CHECK;

/* key = that of the shared statistics which a product waits for; empty: it wants none, or they are
 * there.  shelf NULL: there is none yet. */
ingot_status ingot_product_statistics(char key[33], const ingot_manifest *manifest,
                                      const ingot_shelf *shelf, const ingot_zoo_product *product,
                                      ingot_error *error) INGOT_MUST_CHECK;

/* The path below the shelf of what "file" of a record names: the file, or of a set the shard
 * `index`; false behind the last. */
bool ingot_product_file(char out[INGOT_SHELF_PATH_SIZE], const json_t *file, unsigned index);

/* INGOT_ERR_EXISTS: at the product's place lies a file that its record (NULL: none) does not claim,
 * which is somebody else's; of a product that is a set, any of its shards. */
ingot_status ingot_product_check_place(const ingot_shelf *shelf, const json_t *record,
                                       const ingot_zoo_product *product,
                                       ingot_error *error) INGOT_MUST_CHECK;

/* INGOT_ERR_IO: a file that "file" of a record names may not be read; the error's path is that
 * file's.  One that is not there is no error, nor is it where nothing is on record. */
ingot_status ingot_product_check_readable(const ingot_shelf *shelf, const json_t *file,
                                          ingot_error *error) INGOT_MUST_CHECK;

/* What to say where there is no file at the path of a product. */
const char *ingot_product_gone(const char *path);

/* What a record (NULL: none) says about a product with these keys; reason[160] says why, in a few
 * words (of a failure the record has them).  Looks at the file's size and time, never into it. */
ingot_product_state ingot_product_judge(const ingot_shelf *shelf, const json_t *record,
                                        const ingot_product_keys *keys, char reason[160]);
/* The gates of the manifest against the figures of the record (NULL: none).  reason[160] names the
 * first that does not hold. */
ingot_gate_verdict ingot_product_gates(const ingot_zoo_product *product, const json_t *record,
                                       char reason[160]);

/* Size and time of change of a file; false when there is none. */
bool ingot_zoo_file_mark(json_int_t *bytes, json_int_t *mtime_ns, const char *path);

#endif
