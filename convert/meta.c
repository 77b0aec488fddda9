/* Provenance of a converted container (convert/meta.h). */
#include "convert/meta.h"

#include "common/cli.h"
#include "common/files.h"
#include "format/digest.h"

#include <string.h>

/* Takes the reference to value; 0 when it was added. */
static int put(json_t *object, const char *key, json_t *value) {
    return json_object_set_new(object, key, value);
}

static json_t *hex(const uint8_t digest[16]) {
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
        failed |= put(object, "kind", json_string("statistics"));
        failed |= put(object, "statistics_root", hex(info.root));
        failed |= put(object, "text_digest", hex(info.text_digest));
        failed |= put(object, "samples", json_integer((json_int_t)info.samples));
        failed |= put(object, "seq_len", json_integer((json_int_t)info.seq_len));
        failed |= put(object, "tokens", json_integer((json_int_t)(info.samples * info.seq_len)));
    } else {
        failed |= put(object, "kind", json_string(job->is_self_text ? "self" : "text"));
        failed |= put(object, "text_digest", hex(job->text->digest));
        failed |= put(object, "text_bytes", json_integer((json_int_t)job->text->bytes));
        failed |= put(object, "samples", json_integer((json_int_t)job->windows->count));
        failed |= put(object, "seq_len", json_integer((json_int_t)job->windows->length));
        failed |= put(object, "tokens",
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
        failed |= put(shard, "file", json_string(base_name(path)));
        failed |= put(shard, "bytes",
                      json_integer((json_int_t)ingot_file_size(ingot_safetensors_file(file))));
        failed |= put(shard, "header_digest", hex(digest));
        if (job->with_sha256) {
            char sha256[65];
            status = ingot_sha256_file(sha256, path, error);
            failed |= status == INGOT_OK ? put(shard, "sha256", json_string(sha256)) : 0;
        }
        failed |= json_array_append_new(shards, shard);
        if (status != INGOT_OK) {
            break;
        }
    }
    failed |= put(object, "shards", shards);
    failed |= put(object, "architecture", json_string(job->model->family));
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
    int failed = put(root, "tool", json_string("ingot-convert"));
    failed |= put(root, "version", json_string(INGOT_VERSION));
    failed |= put(root, "backend", json_string(job->backend->path));
    failed |= put(root, "method", json_string(main_method(job->plan)));
    failed |= put(root, "seed", json_integer((json_int_t)job->recipe->seed));
    failed |= put(root, "recipe", ingot_recipe_json(job->recipe));
    failed |= put(root, "source", source);
    failed |= put(root, "calibration", has_data ? calibration_json(job) : json_null());
    *text = failed == 0 ? ingot_json_canonical(root) : NULL;
    json_decref(root);
    return *text != NULL ? INGOT_OK : INGOT_ERR_NO_MEMORY;
}
