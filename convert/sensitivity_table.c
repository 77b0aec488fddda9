/* The kept table of sensitivities (convert/sensitivity_table.h). */
#include "convert/sensitivity_table.h"

#include "common/files.h"
#include "common/json.h"
#include "common/memory.h"
#include "convert/meta.h"
#include "format/digest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT            "ingot-sensitivity"
#define TABLE_LIMIT_BYTES (64u << 20)

/* ---- the key -------------------------------------------------------------------------------- */

static void digest_u64(ingot_digest_stream *stream, uint64_t value) {
    uint8_t bytes[8];
    for (unsigned i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)(value >> (8 * i));
    }
    ingot_digest_stream_update(stream, bytes, sizeof bytes);
}

ingot_status ingot_sensitivity_setting(uint8_t setting[16], const ingot_sensitivity_job *job) {
    ingot_digest_stream *stream = NULL;
    INGOT_TRY(ingot_digest_stream_create(&stream));
    digest_u64(stream, INGOT_MEASURED_LEAST);
    digest_u64(stream, INGOT_MEASURED_MOST);
    digest_u64(stream, job->windows->count);
    digest_u64(stream, job->windows->length);
    for (uint64_t i = 0; i < job->windows->count * job->windows->length; i++) {
        digest_u64(stream, job->windows->ids[i]);
    }
    for (uint64_t i = 0; i < job->count; i++) {
        const ingot_tensor_spec *spec = &job->plan->specs[job->tensors[i]];
        digest_u64(stream, strlen(spec->name));
        ingot_digest_stream_update(stream, spec->name, strlen(spec->name));
        digest_u64(stream, spec->dim[0]);
        digest_u64(stream, spec->dim[1]);
        digest_u64(stream, spec->group);
        digest_u64(stream, (uint64_t)spec->zero_mode);
        digest_u64(stream, (uint64_t)spec->scale_dtype);
        digest_u64(stream, spec->outlier_count);
    }
    ingot_digest_stream_finish(stream, setting);
    ingot_digest_stream_destroy(stream);
    return INGOT_OK;
}

/* ---- the file ------------------------------------------------------------------------------- */

/* XXH3-128 of the canonical text of root, which has no member "digest". */
static ingot_status digest_table(char text[33], const json_t *root) {
    uint8_t digest[16];
    char *canonical = ingot_json_canonical(root);
    if (canonical == NULL) {
        return INGOT_ERR_NO_MEMORY;
    }
    ingot_digest128(digest, canonical, strlen(canonical));
    free(canonical);
    ingot_digest_hex(text, digest);
    return INGOT_OK;
}

static json_t *tensors_json(const ingot_sensitivity *measured, const ingot_sensitivity_job *job) {
    json_t *tensors = json_array();
    int failed = tensors == NULL;
    for (uint64_t i = 0; i < job->count && failed == 0; i++) {
        json_t *tensor = json_object(), *kl = json_array();
        failed |=
            !ingot_json_put(tensor, "name", json_string(job->plan->tensors[job->tensors[i]].name));
        for (unsigned w = 0; w < INGOT_MEASURED_COUNT; w++) {
            char text[40];
            snprintf(text, sizeof text, "%.17g", measured[i].kl[w]);
            failed |= json_array_append_new(kl, json_string(text));
        }
        failed |= !ingot_json_put(tensor, "kl", kl);
        failed |= json_array_append_new(tensors, tensor);
    }
    if (failed != 0) {
        json_decref(tensors);
        return NULL;
    }
    return tensors;
}

static ingot_status fill_table(json_t *root, const ingot_sensitivity *measured,
                               const ingot_sensitivity_job *job, const ingot_sensitivity_key *key) {
    json_t *widths = json_array();
    int failed = widths == NULL;
    for (unsigned bits = INGOT_MEASURED_LEAST; bits <= INGOT_MEASURED_MOST; bits++) {
        failed |= json_array_append_new(widths, json_integer(bits));
    }
    failed |= !ingot_json_put(root, "widths", widths);
    failed |= !ingot_json_put(root, "format", json_string(FORMAT));
    failed |= !ingot_json_put(root, "version", json_integer(1));
    failed |= !ingot_json_put(root, "source", ingot_meta_hex(key->source));
    failed |= !ingot_json_put(root, "text", ingot_meta_hex(key->text));
    failed |= !ingot_json_put(root, "setting", ingot_meta_hex(key->setting));
    failed |= !ingot_json_put(root, "backend", json_string(job->backend->path));
    failed |= !ingot_json_put(root, "windows", json_integer((json_int_t)job->windows->count));
    failed |= !ingot_json_put(root, "seq_len", json_integer((json_int_t)job->windows->length));
    failed |= !ingot_json_put(root, "tensors", tensors_json(measured, job));
    char digest[33];
    INGOT_TRY(failed != 0 ? INGOT_ERR_NO_MEMORY : digest_table(digest, root));
    return ingot_json_put(root, "digest", json_string(digest)) ? INGOT_OK : INGOT_ERR_NO_MEMORY;
}

ingot_status ingot_sensitivity_write(const ingot_sensitivity *measured, const char *path,
                                     const ingot_sensitivity_job *job,
                                     const ingot_sensitivity_key *key, ingot_error *error) {
    json_t *root = json_object();
    char *text = NULL;
    ingot_status status = root != NULL ? INGOT_OK : INGOT_ERR_NO_MEMORY;
    INGOT_GO(status);
    INGOT_GO(fill_table(root, measured, job, key));
    text = ingot_json_canonical(root);
    INGOT_GO(text != NULL ? INGOT_OK : INGOT_ERR_NO_MEMORY);
    INGOT_GO(ingot_file_write_all(path, text, strlen(text), true, error));
done:
    free(text);
    json_decref(root);
    return status;
}

/* ---- reading -------------------------------------------------------------------------------- */

static ingot_status refuse(const char *path, const char *why, ingot_error *error) {
    return ingot_error_set(error, INGOT_ERR_INPUT, path, NULL,
                           "remove it, or name another with --sensitivity",
                           "this is no whole sensitivity table: %s", why);
}

/* The file is a table of ours, as it was written. */
static ingot_status check_table(json_t *root, const char *path, ingot_error *error) {
    const json_t *format = json_object_get(root, "format");
    char digest[33], kept[33];
    if (!json_is_string(format) || strcmp(json_string_value(format), FORMAT) != 0 ||
        json_integer_value(json_object_get(root, "version")) != 1) {
        return refuse(path, "its format is not " FORMAT " version 1", error);
    }
    const char *stated = json_string_value(json_object_get(root, "digest"));
    snprintf(kept, sizeof kept, "%s", stated != NULL ? stated : "");
    (void)json_object_del(root, "digest");
    INGOT_TRY(digest_table(digest, root));
    return strcmp(kept, digest) == 0 ? INGOT_OK : refuse(path, "it was damaged or edited", error);
}

static bool is_digest(const json_t *root, const char *name, const uint8_t digest[16]) {
    const char *stated = json_string_value(json_object_get(root, name));
    char text[33];
    ingot_digest_hex(text, digest);
    return stated != NULL && strcmp(stated, text) == 0;
}

/* One number of the table; NaN when it is none. */
static double read_number(const json_t *value) {
    const char *text = json_string_value(value);
    char *end = NULL;
    const double number = text != NULL ? strtod(text, &end) : (double)NAN;
    return end != NULL && end != text && *end == 0 && isfinite(number) && number >= 0 ? number
                                                                                      : (double)NAN;
}

/* The digest of the setting has fixed the number of tensors and their order. */
static ingot_status read_tensors(ingot_sensitivity *out, const json_t *root, uint64_t count,
                                 const char *path, ingot_error *error) {
    const json_t *tensors = json_object_get(root, "tensors");
    for (uint64_t i = 0; i < count; i++) {
        const json_t *kl = json_object_get(json_array_get(tensors, i), "kl");
        for (unsigned w = 0; w < INGOT_MEASURED_COUNT; w++) {
            out[i].kl[w] = read_number(json_array_get(kl, w));
            if (isnan(out[i].kl[w])) {
                return refuse(path, "a number is missing", error);
            }
        }
    }
    return INGOT_OK;
}

ingot_status ingot_sensitivity_read(ingot_sensitivity *out, ingot_table_state *state,
                                    const char *path, const ingot_sensitivity_job *job,
                                    const ingot_sensitivity_key *key, ingot_error *error) {
    json_t *root = NULL;
    *state = INGOT_TABLE_ABSENT;
    if (!ingot_output_exists(path)) {
        return INGOT_OK;
    }
    ingot_error unread;
    memset(&unread, 0, sizeof unread);
    const ingot_status opened = ingot_json_read(&root, path, TABLE_LIMIT_BYTES, &unread);
    if (opened == INGOT_ERR_INPUT) {
        return refuse(path, "it is no JSON", error);
    }
    if (opened != INGOT_OK) {
        if (error != NULL) {
            *error = unread;
        }
        return opened;
    }
    ingot_status status = check_table(root, path, error);
    INGOT_GO(status);
    if (!is_digest(root, "source", key->source)) {
        *state = INGOT_TABLE_OTHER_SOURCE;
    } else if (!is_digest(root, "text", key->text)) {
        *state = INGOT_TABLE_OTHER_TEXT;
    } else if (!is_digest(root, "setting", key->setting)) {
        *state = INGOT_TABLE_OTHER_SETTING;
    } else {
        INGOT_GO(read_tensors(out, root, job->count, path, error));
        *state = INGOT_TABLE_READ;
    }
done:
    json_decref(root);
    return status;
}
