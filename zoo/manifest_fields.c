/* Typed members, names and paths of a manifest (manifest_fields.h). */
#include "zoo/manifest_fields.h"

#include <ctype.h>
#include <stdarg.h>
#include <string.h>

#define NAME_MAX_BYTES 100u
#define REMEDY         "correct the manifest; spec/zoo.md has its keys"

ingot_status ingot_field_refuse(const reader *r, const place *at, const char *format, ...) {
    char reason[400];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    return ingot_error_set(r->error, INGOT_ERR_INPUT, r->out->path, NULL, REMEDY, "line %u: %s",
                           ingot_json_line(r->out->text, r->out->size, at), reason);
}

ingot_status ingot_field_no_memory(const reader *r) {
    return ingot_error_set(r->error, INGOT_ERR_NO_MEMORY, r->out->path, NULL, NULL,
                           "out of memory while reading the manifest");
}

/* ---- typed members -------------------------------------------------------------------------- */

json_t *ingot_field_member(const json_t *object, const char *key) {
    json_t *value = json_object_get(object, key);
    return value == NULL || json_is_null(value) ? NULL : value;
}

ingot_status ingot_field_check_keys(const reader *r, json_t *object, const place *at,
                                    const char *const *keys, size_t count) {
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        size_t i = 0;
        while (i < count && strcmp(keys[i], key) != 0) {
            i++;
        }
        if (i == count) {
            const place unknown = {.parent = at, .key = key};
            return ingot_field_refuse(r, &unknown, "unknown key \"%.100s\"", key);
        }
    }
    return INGOT_OK;
}

ingot_status ingot_field_string(const reader *r, const json_t *object, const place *at,
                                const char *key, const char **out) {
    const json_t *value = ingot_field_member(object, key);
    const place here = {.parent = at, .key = key};
    if (value == NULL) {
        return INGOT_OK;
    }
    if (!json_is_string(value) || json_string_length(value) == 0) {
        return ingot_field_refuse(r, &here, "\"%s\" must be a text that is not empty", key);
    }
    *out = json_string_value(value);
    return INGOT_OK;
}

ingot_status ingot_field_bool(const reader *r, const json_t *object, const place *at,
                              const char *key, bool *out) {
    const json_t *value = ingot_field_member(object, key);
    const place here = {.parent = at, .key = key};
    if (value != NULL && !json_is_boolean(value)) {
        return ingot_field_refuse(r, &here, "\"%s\" must be true or false", key);
    }
    *out = value != NULL ? json_is_true(value) : *out;
    return INGOT_OK;
}

ingot_status ingot_field_u64(const reader *r, const json_t *object, const place *at,
                             const char *key, uint64_t minimum, uint64_t maximum, uint64_t *out) {
    const json_t *value = ingot_field_member(object, key);
    const place here = {.parent = at, .key = key};
    if (value == NULL) {
        return INGOT_OK;
    }
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        (uint64_t)json_integer_value(value) < minimum ||
        (uint64_t)json_integer_value(value) > maximum) {
        return ingot_field_refuse(r, &here, "\"%s\" must be a whole number from %llu to %llu", key,
                                  (unsigned long long)minimum, (unsigned long long)maximum);
    }
    *out = (uint64_t)json_integer_value(value);
    return INGOT_OK;
}

ingot_status ingot_field_limit(const reader *r, const json_t *object, const place *at,
                               const char *key, double minimum, double *out) {
    const json_t *value = ingot_field_member(object, key);
    const place here = {.parent = at, .key = key};
    if (value == NULL) {
        return INGOT_OK;
    }
    if (!json_is_number(value) || !(json_number_value(value) >= minimum)) {
        return ingot_field_refuse(r, &here, "\"%s\" must be a number of at least %g", key, minimum);
    }
    *out = json_number_value(value);
    return INGOT_OK;
}

/* ---- names and paths ------------------------------------------------------------------------ */

/* Names become parts of file names. */
static bool is_name(const char *text) {
    const size_t length = strlen(text);
    bool is_good = length > 0 && length <= NAME_MAX_BYTES && text[0] != '.' && text[0] != '-';
    for (size_t i = 0; i < length; i++) {
        is_good = is_good && (isalnum((unsigned char)text[i]) || strchr("._+-", text[i]) != NULL);
    }
    return is_good;
}

ingot_status ingot_field_keep_text(const reader *r, const char **out, const char *format, ...) {
    va_list arguments;
    void *memory;
    va_start(arguments, format);
    const int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0 || ingot_arena_alloc(r->out->arena, &memory, (uint64_t)length + 1) != INGOT_OK) {
        return ingot_field_no_memory(r);
    }
    va_start(arguments, format);
    (void)vsnprintf(memory, (size_t)length + 1, format, arguments);
    va_end(arguments);
    *out = memory;
    return INGOT_OK;
}

ingot_status ingot_field_keep_path(const reader *r, const char **out, const char *path) {
    return path[0] == '/' || strcmp(r->out->folder, ".") == 0 || strcmp(path, INGOT_ZOO_SELF) == 0
               ? ingot_field_keep_text(r, out, "%s", path)
               : ingot_field_keep_text(r, out, "%s/%s", r->out->folder, path);
}

bool ingot_field_is_output(const char *path) {
    const size_t length = strlen(path), ending = strlen(".ingot");
    if (length <= ending || length > 1000 || strcmp(path + length - ending, ".ingot") != 0) {
        return false;
    }
    for (const char *part = path; part != NULL;) {
        const char *slash = strchr(part, '/');
        const size_t size = slash != NULL ? (size_t)(slash - part) : strlen(part);
        if (size == 0 || size > 255 || part[0] == '.') {
            return false;
        }
        for (size_t i = 0; i < size; i++) {
            if ((unsigned char)part[i] < 0x20 || part[i] == 0x7f) {
                return false;
            }
        }
        part = slash != NULL ? slash + 1 : NULL;
    }
    return true;
}

ingot_status ingot_field_array(const reader *r, void *out, uint64_t count, uint64_t size_bytes) {
    void *memory;
    if (ingot_arena_array(r->out->arena, &memory, count + 1, size_bytes) != INGOT_OK) {
        return ingot_field_no_memory(r);
    }
    memset(memory, 0, (size_t)((count + 1) * size_bytes));
    *(void **)out = memory;
    return INGOT_OK;
}

ingot_status ingot_field_table(const reader *r, const char *key, bool is_required, json_t **out,
                               json_t *index) {
    const place here = {.key = key};
    const char *name;
    json_t *value;
    *out = ingot_field_member(r->out->root, key);
    if (*out == NULL) {
        return is_required ? ingot_field_refuse(r, NULL, "\"%s\" is missing", key) : INGOT_OK;
    }
    if (!json_is_object(*out)) {
        return ingot_field_refuse(r, &here, "\"%s\" must be an object of names", key);
    }
    json_object_foreach(*out, name, value) {
        const place named = {.parent = &here, .key = name};
        if (!is_name(name)) {
            return ingot_field_refuse(
                r, &named,
                "\"%.100s\" is no name: letters, digits and . _ + - only, 100 at most, "
                "no dot or dash in front",
                name);
        }
        if (json_object_set_new(index, name, json_integer((json_int_t)json_object_size(index))) !=
            0) {
            return ingot_field_no_memory(r);
        }
    }
    return INGOT_OK;
}
