/* The shelf: a folder of products and, under .ingot-zoo/, what is known of them (spec/zoo.md).
 *
 * The index of a shelf is one record for each product, a digested JSON file that is replaced
 * atomically by whoever made the product.  There is no file that two workers share, so none can be
 * torn, on one machine or on a cluster. */
#ifndef INGOT_SHELF_H
#define INGOT_SHELF_H

#include "common/json.h"

#include <stdbool.h>
#include <stdint.h>

#define INGOT_SHELF_FOLDER    ".ingot-zoo"
#define INGOT_SHELF_PATH_SIZE 4096u

typedef struct ingot_shelf {
    char root[INGOT_SHELF_PATH_SIZE - 1024];
} ingot_shelf;

/* Files the shelf keeps of a product, or under another key. */
typedef enum ingot_shelf_kind {
    INGOT_SHELF_RECORD,
    INGOT_SHELF_LOG,
    INGOT_SHELF_LOCK,
    INGOT_SHELF_RECIPE,
    INGOT_SHELF_CONVERT, /* what ingot-convert --json printed last */
    INGOT_SHELF_VERIFY,  /* likewise of ingot-verify, and of ingot-calib: */
    INGOT_SHELF_CALIB,
    INGOT_SHELF_STATISTICS,  /* by key: shared calibration statistics */
    INGOT_SHELF_SENSITIVITY, /* by key: shared sensitivity tables */
    INGOT_SHELF_CLUSTER,
    INGOT_SHELF_KIND_COUNT
} ingot_shelf_kind;

/* Opens the folder; with create, makes it and its own folders.  INGOT_ERR_NOT_FOUND where it is not
 * there, INGOT_ERR_IO or INGOT_ERR_NO_SPACE where it cannot be made. */
ingot_status ingot_shelf_open(ingot_shelf *out, const char *path, bool create,
                              ingot_error *error) INGOT_MUST_CHECK;
/* The path of a file of the shelf; name is a product's (its slash becomes an @) or a key. */
void ingot_shelf_path(char out[INGOT_SHELF_PATH_SIZE], const ingot_shelf *shelf,
                      ingot_shelf_kind kind, const char *name);
/* The path of a product's file, relative to the shelf's root. */
void ingot_shelf_output(char out[INGOT_SHELF_PATH_SIZE], const ingot_shelf *shelf,
                        const char *output);
/* Makes the folders in which an output is to lie. */
ingot_status ingot_shelf_make_folders(const ingot_shelf *shelf, const char *output,
                                      ingot_error *error) INGOT_MUST_CHECK;

/* Whether the shelf's own folders are there, or can be made, and may be written to; root: of the
 * shelf, which need not be there.  INGOT_ERR_IO. */
ingot_status ingot_shelf_check(const char *root, ingot_error *error) INGOT_MUST_CHECK;
/* Whether an output could be begun on it: the same of its folder, unless is_closed (the shelf may
 * not be written to, which is told), and its name has room for `added_bytes` more. */
ingot_status ingot_shelf_check_output(const char *root, const char *output, uint64_t added_bytes,
                                      bool is_closed, ingot_error *error) INGOT_MUST_CHECK;

/* Takes the lock of a product or key: INGOT_ERR_LOCKED when another process, or another job of this
 * one, has it.  *descriptor is closed on exec; a child that is to hold the lock beyond the death of
 * this process keeps it open. */
ingot_status ingot_shelf_lock(int *descriptor, const ingot_shelf *shelf, const char *name,
                              ingot_error *error) INGOT_MUST_CHECK;
void ingot_shelf_unlock(int descriptor); /* negative is fine */
/* Whether somebody has it right now. */
bool ingot_shelf_is_locked(const ingot_shelf *shelf, const char *name);

/* *out = the record of a product, a new reference.  INGOT_ERR_NOT_FOUND when there is none;
 * INGOT_ERR_INPUT when it is damaged: its digest or its form is not that of a record. */
ingot_status ingot_shelf_read_record(json_t **out, const ingot_shelf *shelf, const char *product,
                                     ingot_error *error) INGOT_MUST_CHECK;
/* Replaces the record atomically; sets "format", "version", "product" and "digest" in it. */
ingot_status ingot_shelf_write_record(const ingot_shelf *shelf, const char *product, json_t *record,
                                      ingot_error *error) INGOT_MUST_CHECK;

/* hex[33] = XXH3-128 of the canonical text of a value; false when out of memory. */
bool ingot_zoo_json_digest(char hex[33], const json_t *value);
/* A text of an object, NULL when it has none. */
const char *ingot_zoo_text_of(const json_t *object, const char *key);

#endif
