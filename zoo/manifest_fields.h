/* Typed members of a manifest's objects; every error names the line of what is wrong.  Private to
 * zoo/manifest*.c.
 *
 * The getters leave *out as it is where the key is missing or null, so callers set defaults first
 * (what null takes back is no longer among them).
 * Texts live in the arena or the document of the manifest.  INGOT_ERR_INPUT, or
 * INGOT_ERR_NO_MEMORY. */
#ifndef INGOT_MANIFEST_FIELDS_H
#define INGOT_MANIFEST_FIELDS_H

#include "common/json_line.h"
#include "zoo/manifest.h"

typedef ingot_json_place place;

typedef struct reader {
    ingot_manifest *out;
    ingot_error *error;
    json_t *defaults;     /* of products, or NULL */
    json_t *model_index;  /* name -> position */
    json_t *text_index;   /* likewise */
    json_t *recipe_index; /* likewise */
    json_t *names, *outputs;
} reader;

/* Reports a reason, with the line of a place (NULL: of the root) in front of it. */
ingot_status ingot_field_refuse(const reader *r, const place *at, const char *format, ...)
    INGOT_PRINTF(3, 4);
ingot_status ingot_field_no_memory(const reader *r);

/* The member, or NULL when it is missing or null. */
json_t *ingot_field_member(const json_t *object, const char *key);

/* Refuses keys that are not in keys[count]. */
ingot_status ingot_field_check_keys(const reader *r, json_t *object, const place *at,
                                    const char *const *keys, size_t count);
#define CHECK_KEYS(r, object, at, keys)                                                            \
    ingot_field_check_keys(r, object, at, keys, sizeof keys / sizeof *keys)

ingot_status ingot_field_string(const reader *r, const json_t *object, const place *at,
                                const char *key, const char **out);
ingot_status ingot_field_bool(const reader *r, const json_t *object, const place *at,
                              const char *key, bool *out);
ingot_status ingot_field_u64(const reader *r, const json_t *object, const place *at,
                             const char *key, uint64_t minimum, uint64_t maximum, uint64_t *out);
ingot_status ingot_field_limit(const reader *r, const json_t *object, const place *at,
                               const char *key, double minimum, double *out);

/* A text of the manifest's own. */
ingot_status ingot_field_keep_text(const reader *r, const char **out, const char *format, ...)
    INGOT_PRINTF(3, 4);

/* A path of the manifest, seen from where the program runs. */
ingot_status ingot_field_keep_path(const reader *r, const char **out, const char *path);

/* Whether a path names a container below the shelf, in none of the shelf's own folders. */
bool ingot_field_is_output(const char *path);

/* *(T **)out = zeros[count], and one more. */
ingot_status ingot_field_array(const reader *r, void *out, uint64_t count, uint64_t size_bytes);

/* The object of the root that names models, texts or recipes (*out NULL: it is not there), with an
 * index of its names. */
ingot_status ingot_field_table(const reader *r, const char *key, bool is_required, json_t **out,
                               json_t *index);

#endif
