/* Provenance of a converted container (convert/meta.h). */
#include "convert/meta.h"

#include "common/cli.h"
#include "common/files.h"
#include "format/digest.h"

#include <string.h>

/* Raised when the same options come to give other bytes (2: decision 0033, 3: 0040, 4 and 5: 0035,
 * 6: 0037, 7: outliers that F16 cannot hold), so that no file is half of one recipe and half of
 * another, and none passes for what this build would make. */
#define ARITHMETIC 7

json_t *ingot_meta_hex(const uint8_t digest[16]) {
    char text[33];
    ingot_digest_hex(text, digest);
    return json_string(text);
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

static json_t *calibration_json(const ingot_meta_job *job) {
    json_t *object = json_object();
    int failed = object == NULL;
    if (job->stats != NULL) {
        ingot_stats_info info;
        ingot_stats_get_info(job->stats, &info);
        failed |= !ingot_json_put(object, "kind", json_string("statistics"));
        failed |= !ingot_json_put(object, "statistics_root", ingot_meta_hex(info.root));
        failed |= !ingot_json_put(object, "text_digest", ingot_meta_hex(info.text_digest));
        failed |= !ingot_json_put(object, "samples", json_integer((json_int_t)info.samples));
        failed |= !ingot_json_put(object, "seq_len", json_integer((json_int_t)info.seq_len));
        failed |= !ingot_json_put(object, "tokens",
                                  json_integer((json_int_t)(info.samples * info.seq_len)));
    } else {
        failed |= !ingot_json_put(object, "kind", json_string(job->is_self_text ? "self" : "text"));
        failed |= !ingot_json_put(object, "text_digest", ingot_meta_hex(job->text->digest));
        failed |= !ingot_json_put(object, "text_bytes", json_integer((json_int_t)job->text->bytes));
        failed |= !ingot_json_put(object, "samples", json_integer((json_int_t)job->windows->count));
        failed |=
            !ingot_json_put(object, "seq_len", json_integer((json_int_t)job->windows->length));
        failed |=
            !ingot_json_put(object, "tokens",
                            json_integer((json_int_t)(job->windows->count * job->windows->length)));
    }
    if (failed != 0) {
        json_decref(object);
        return NULL;
    }
    return object;
}

static ingot_status source_json(json_t **out, const ingot_meta_job *job, ingot_error *error) {
    json_t *object = json_object(), *shards = json_array();
    ingot_status status = INGOT_OK;
    int failed = object == NULL || shards == NULL;
    for (uint64_t i = 0; failed == 0 && i < ingot_checkpoint_shard_count(job->checkpoint); i++) {
        const ingot_safetensors *file = ingot_checkpoint_shard(job->checkpoint, i);
        const char *path = ingot_file_path(ingot_safetensors_file(file));
        json_t *shard = json_object();
        uint8_t digest[16];
        ingot_safetensors_header_digest(file, digest);
        failed |= !ingot_json_put(shard, "file", json_string(base_name(path)));
        failed |= !ingot_json_put(
            shard, "bytes",
            json_integer((json_int_t)ingot_file_size(ingot_safetensors_file(file))));
        failed |= !ingot_json_put(shard, "header_digest", ingot_meta_hex(digest));
        if (job->with_sha256) {
            char sha256[65];
            (void)snprintf(sha256, sizeof sha256, "%064d", 0);
            status = job->is_forecast ? INGOT_OK : ingot_sha256_file(sha256, path, error);
            failed |= status == INGOT_OK && !ingot_json_put(shard, "sha256", json_string(sha256));
        }
        failed |= json_array_append_new(shards, shard);
        if (status != INGOT_OK) {
            break;
        }
    }
    failed |= !ingot_json_put(object, "shards", shards);
    failed |= !ingot_json_put(object, "architecture", json_string(job->model->family));
    if (failed != 0 || status != INGOT_OK) {
        json_decref(object);
        return status != INGOT_OK ? status : INGOT_ERR_NO_MEMORY;
    }
    *out = object;
    return INGOT_OK;
}

/* The method that most tensors were planned with; names what the conversion is. */
static const char *main_method(const ingot_plan *plan) {
    uint64_t count[8] = {0};
    ingot_method best = INGOT_METHOD_COPY;
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_plan_tensor *t = &plan->tensors[i];
        if (t->origin == INGOT_ORIGIN_QUANTIZE && (unsigned)t->method < 8) {
            count[t->method]++;
            best = count[t->method] > count[best] || best == INGOT_METHOD_COPY ? t->method : best;
        }
    }
    return ingot_method_name(best);
}

ingot_status ingot_meta_create(char **text, const ingot_meta_job *job, ingot_error *error) {
    json_t *source = NULL, *root = json_object();
    *text = NULL;
    const ingot_status status = source_json(&source, job, error);
    if (status != INGOT_OK) {
        json_decref(root);
        return status;
    }
    const bool has_data = job->stats != NULL || job->text != NULL;
    int failed = !ingot_json_put(root, "tool", json_string("ingot-convert"));
    failed |= !ingot_json_put(root, "version", json_string(INGOT_VERSION));
    failed |= !ingot_json_put(root, "arithmetic", json_integer(ARITHMETIC));
    failed |= !ingot_json_put(root, "backend", json_string(job->backend->path));
    failed |= !ingot_json_put(root, "method", json_string(main_method(job->plan)));
    failed |= !ingot_json_put(root, "seed", json_integer((json_int_t)job->recipe->seed));
    failed |= !ingot_json_put(root, "recipe", ingot_recipe_json(job->recipe));
    failed |= !ingot_json_put(root, "source", source);
    failed |= !ingot_json_put(root, "calibration", has_data ? calibration_json(job) : json_null());
    *text = failed == 0 ? ingot_json_canonical(root) : NULL;
    json_decref(root);
    return *text != NULL ? INGOT_OK : INGOT_ERR_NO_MEMORY;
}
