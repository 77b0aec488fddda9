/* Reading and writing JSON through jansson.
 *
 * Duplicate keys are refused by jansson.  Depth is checked here before parsing, because jansson's
 * own limit (2048 levels of recursion) is a constant of its build. */
#include "common/json.h"

#include "common/files.h"
#include "common/memory.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 64
#define REMEDY    "correct or restore the file"

/* INGOT_OK if no array or object is nested deeper than DEPTH_MAX, and there is no NUL byte: behind
 * a number jansson passes over one. */
static ingot_status check_text(const char *bytes, uint64_t size, const char *file,
                               ingot_error *error) {
    unsigned depth = 0;
    unsigned line = 1;
    bool is_string = false;
    for (uint64_t i = 0; i < size; i++) {
        const char c = bytes[i];
        if (c == '\n') {
            line++;
        }
        if (c == '\0') {
            return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, REMEDY,
                                   "line %u: a NUL byte is not part of JSON", line);
        }
        if (is_string) {
            if (c == '\\') {
                i++;
            } else if (c == '"') {
                is_string = false;
            }
        } else if (c == '"') {
            is_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > DEPTH_MAX) {
                return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, REMEDY,
                                       "line %u: nested deeper than %d levels", line, DEPTH_MAX);
            }
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
    }
    return INGOT_OK;
}

/* While jansson reads or writes a text, a failed allocation does not return to it: its scanner goes
 * on without the byte that it could not keep, and later writes past the end of the string; its
 * writer leaves keys out.  What it had allocated by then is lost, in a process that ran out of
 * memory. */
static _Thread_local jmp_buf *out_of_memory;

static void *json_allocate(size_t size) {
    void *memory = malloc(size);
    if (memory == NULL && out_of_memory != NULL) {
        longjmp(*out_of_memory, 1);
    }
    return memory;
}

static void set_allocator(void) {
    json_set_alloc_funcs(json_allocate, free);
}

static void watch_allocations(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, set_allocator);
}

/* *out = the value, NULL where the text is none; false when memory ran out. */
static bool load(json_t **out, const char *bytes, uint64_t size, json_error_t *detail) {
    jmp_buf failure;
    out_of_memory = &failure;
    const bool is_loaded = setjmp(failure) == 0;
    if (is_loaded) {
        *out = json_loadb(bytes, (size_t)size, JSON_REJECT_DUPLICATES, detail);
    }
    out_of_memory = NULL;
    return is_loaded;
}

ingot_status ingot_json_parse(json_t **out, const char *bytes, uint64_t size, const char *file,
                              ingot_error *error) {
    *out = NULL;
    INGOT_TRY(ingot_file_refuse_pointer(bytes, size, file, error));
    INGOT_TRY(check_text(bytes, size, file, error));
    watch_allocations();
    json_error_t detail;
    if (!load(out, bytes, size, &detail)) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, file, NULL, NULL,
                               "out of memory while parsing JSON");
    }
    if (*out != NULL) {
        return INGOT_OK;
    }
    /* jansson quotes the text near the mistake: bytes of the file, so made printable. */
    for (char *c = detail.text; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) {
            *c = '?';
        }
    }
    return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, REMEDY,
                           "not valid JSON: line %d column %d: %s", detail.line, detail.column,
                           detail.text);
}

ingot_status ingot_json_read(json_t **out, const char *path, uint64_t limit_bytes,
                             ingot_error *error) {
    *out = NULL;
    char *bytes;
    uint64_t size;
    INGOT_TRY(ingot_file_read_all(path, limit_bytes, &bytes, &size, error));
    const ingot_status status = ingot_json_parse(out, bytes, size, path, error);
    ingot_free(bytes);
    return status;
}

static ingot_status wrong_type(const char *file, const char *key, const char *wanted,
                               ingot_error *error) {
    return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, REMEDY, "key \"%s\" is not %s", key,
                           wanted);
}

/* The member, or NULL when it is missing or null. */
static const json_t *member(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return value == NULL || json_is_null(value) ? NULL : value;
}

ingot_status ingot_json_get_u64(const json_t *object, const char *key, uint64_t *out,
                                const char *file, ingot_error *error) {
    const json_t *value = member(object, key);
    if (value == NULL) {
        return INGOT_OK;
    }
    if (!json_is_integer(value) || json_integer_value(value) < 0) {
        return wrong_type(file, key, "a non-negative integer", error);
    }
    *out = (uint64_t)json_integer_value(value);
    return INGOT_OK;
}

ingot_status ingot_json_get_double(const json_t *object, const char *key, double *out,
                                   const char *file, ingot_error *error) {
    const json_t *value = member(object, key);
    if (value == NULL) {
        return INGOT_OK;
    }
    if (!json_is_number(value)) {
        return wrong_type(file, key, "a number", error);
    }
    *out = json_number_value(value);
    return INGOT_OK;
}

ingot_status ingot_json_get_bool(const json_t *object, const char *key, bool *out, const char *file,
                                 ingot_error *error) {
    const json_t *value = member(object, key);
    if (value == NULL) {
        return INGOT_OK;
    }
    if (!json_is_boolean(value)) {
        return wrong_type(file, key, "true or false", error);
    }
    *out = json_is_true(value);
    return INGOT_OK;
}

ingot_status ingot_json_get_string(const json_t *object, const char *key, const char **out,
                                   const char *file, ingot_error *error) {
    const json_t *value = member(object, key);
    if (value == NULL) {
        return INGOT_OK;
    }
    if (!json_is_string(value)) {
        return wrong_type(file, key, "a string", error);
    }
    *out = json_string_value(value);
    return INGOT_OK;
}

static bool is_known(const char *key, const char *const *keys, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (strcmp(key, keys[i]) == 0) {
            return true;
        }
    }
    return false;
}

ingot_status ingot_json_check_keys(const json_t *object, const char *const *keys, size_t count,
                                   const char *file, ingot_error *error) {
    if (!json_is_object(object)) {
        return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, REMEDY, "not a JSON object");
    }
    /* The iterator of jansson takes a mutable object but changes nothing. */
    union {
        const json_t *constant;
        json_t *mutable;
    } view = {.constant = object};
    const char *key;
    json_t *value;
    json_object_foreach(view.mutable, key, value) {
        if (!is_known(key, keys, count)) {
            return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, REMEDY, "unknown key \"%s\"",
                                   key);
        }
    }
    return INGOT_OK;
}

/* *out = the text; untouched when memory ran out. */
static void dump(char **out, const json_t *value, size_t flags) {
    jmp_buf failure;
    out_of_memory = &failure;
    if (setjmp(failure) == 0) {
        *out = json_dumps(value, flags);
    }
    out_of_memory = NULL;
}

char *ingot_json_text(const json_t *value, size_t flags) {
    char *text = NULL;
    watch_allocations();
    dump(&text, value, flags);
    return text;
}

char *ingot_json_canonical(const json_t *value) {
    return ingot_json_text(value, JSON_SORT_KEYS | JSON_COMPACT | JSON_ENCODE_ANY);
}

bool ingot_json_print(const json_t *value, FILE *out) {
    char *text = ingot_json_text(value, JSON_SORT_KEYS | JSON_INDENT(1) | JSON_ENCODE_ANY);
    const bool is_printed = text != NULL && fputs(text, out) >= 0 && fputc('\n', out) != EOF;
    free(text);
    return is_printed;
}

/* Bytes of the UTF-8 sequence that text begins with; 0: of none. */
static size_t sequence_length(const char *text, size_t size) {
    for (size_t length = 1; length <= 4 && length <= size; length++) {
        json_t *value = json_stringn(text, length);
        if (value != NULL) {
            json_decref(value);
            return length;
        }
    }
    return 0;
}

json_t *ingot_json_any_text(const char *text) {
    if (text == NULL) {
        return json_null();
    }
    json_t *value = json_string(text);
    const size_t size = strlen(text);
    void *memory;
    if (value != NULL || ingot_alloc(&memory, (uint64_t)size + 1) != INGOT_OK) {
        return value;
    }
    char *copy = memory;
    for (size_t i = 0; i < size;) {
        const size_t length = sequence_length(text + i, size - i);
        memcpy(copy + i, length == 0 ? "?" : text + i, length == 0 ? 1 : length);
        i += length == 0 ? 1 : length;
    }
    value = json_stringn(copy, size);
    ingot_free(memory);
    return value;
}

json_t *ingot_json_count(uint64_t value) {
    return value <= INT64_MAX ? json_integer((json_int_t)value) : json_real((double)value);
}

json_t *ingot_json_number(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

double ingot_json_number_at(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : (double)NAN;
}

bool ingot_json_put(json_t *object, const char *key, json_t *value) {
    if (json_object_set_new(object, key, value) == 0) {
        return true;
    }
    (void)json_object_set_new(object, key, json_null());
    return false;
}

bool ingot_json_put_code(json_t *object, ingot_status status) {
    return ingot_json_put(
        object, "error", status == INGOT_OK ? json_null() : json_string(ingot_status_code(status)));
}

bool ingot_json_put_error(json_t *object, const ingot_error *error) {
    char text[INGOT_ERROR_TEXT_SIZE];
    ingot_error_format(error, text, sizeof text);
    const bool is_put = ingot_json_put_code(object, error->status);
    return ingot_json_put(object, "message",
                          ingot_json_any_text(error->status == INGOT_OK ? NULL : text)) &&
           is_put;
}
