/* JSON through jansson: reading with duplicate keys refused and errors that name file and line;
 * writing with sorted keys.  Never used by the container reader. */
#ifndef INGOT_JSON_H
#define INGOT_JSON_H

#include "ingot_status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* Parses bytes[size] (file is for the error text).  *out is a new reference. Depth and duplicate
 * keys are checked; INGOT_ERR_INPUT names the line. */
ingot_status ingot_json_parse(json_t **out, const char *bytes, uint64_t size, const char *file,
                              ingot_error *error) INGOT_MUST_CHECK;
/* Reads and parses a file of at most limit_bytes. */
ingot_status ingot_json_read(json_t **out, const char *path, uint64_t limit_bytes,
                             ingot_error *error) INGOT_MUST_CHECK;

/* Typed members.  A missing or null key leaves *out as it is (so callers set defaults first);
 * a key of another type is INGOT_ERR_INPUT naming file and key. */
ingot_status ingot_json_get_u64(const json_t *object, const char *key, uint64_t *out,
                                const char *file, ingot_error *error) INGOT_MUST_CHECK;
ingot_status ingot_json_get_double(const json_t *object, const char *key, double *out,
                                   const char *file, ingot_error *error) INGOT_MUST_CHECK;
ingot_status ingot_json_get_bool(const json_t *object, const char *key, bool *out, const char *file,
                                 ingot_error *error) INGOT_MUST_CHECK;
/* *out is borrowed from the object. */
ingot_status ingot_json_get_string(const json_t *object, const char *key, const char **out,
                                   const char *file, ingot_error *error) INGOT_MUST_CHECK;
/* INGOT_ERR_INPUT naming the first key of object that is not in keys[count]. */
ingot_status ingot_json_check_keys(const json_t *object, const char *const *keys, size_t count,
                                   const char *file, ingot_error *error) INGOT_MUST_CHECK;

/* Sets a member of an object; null where there is no value or no memory: then false.  Takes the
 * value. */
bool ingot_json_put(json_t *object, const char *key, json_t *value);
/* "error": the code of a status, null of INGOT_OK. */
bool ingot_json_put_code(json_t *object, ingot_status status);
/* That, and "message": what ingot_error_format says, null where there is no error. */
bool ingot_json_put_error(json_t *object, const ingot_error *error);

/* Text by the flags of jansson, all of it or NULL when out of memory (json_dumps may leave out what
 * it could not allocate); NUL-terminated, released with free(). */
char *ingot_json_text(const json_t *value, size_t flags);
/* Canonical: keys sorted, no white space. */
char *ingot_json_canonical(const json_t *value);
/* Sorted, indented by 1, newline at the end: what --json prints.  False when nothing was printed,
 * out of memory, or not all of it. */
bool ingot_json_print(const json_t *value, FILE *out) INGOT_MUST_CHECK;
/* A name, path or message, whatever bytes it has: those that are no UTF-8 become question marks.
 * Null for NULL; NULL when out of memory. */
json_t *ingot_json_any_text(const char *text);
/* Integers of jansson are signed: a larger count, which a file may claim, is a real.  New
 * reference. */
json_t *ingot_json_count(uint64_t value);
/* A real if finite, else null (JSON has no NaN). New reference. */
json_t *ingot_json_number(double value);
/* The number at a key; NAN where there is none. */
double ingot_json_number_at(const json_t *object, const char *key);

#endif
