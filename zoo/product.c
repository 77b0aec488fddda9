/* Keys, state and gates of a product (zoo/product.h; spec/zoo.md, sections 3 and 4). */
#include "zoo/product.h"

#include "common/cli.h"
#include "common/files.h"
#include "format/digest.h"
#include "zoo/remains.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const state_names[INGOT_STATE_COUNT] = {
    "new", "converting", "converted", "done", "failed", "stale", "missing", "unreadable"};
static const char *const verdict_names[] = {"none", "passed", "failed", "open"};

const char *ingot_product_state_name(ingot_product_state state) {
    return state_names[state];
}

const char *ingot_gate_verdict_name(ingot_gate_verdict verdict) {
    return verdict_names[verdict];
}

/* ---- what names it -------------------------------------------------------------------------- */

bool ingot_zoo_file_mark(json_int_t *bytes, json_int_t *mtime_ns, const char *path) {
    struct stat info;
    if (stat(path, &info) != 0 || !S_ISREG(info.st_mode)) {
        return false;
    }
    *bytes = (json_int_t)info.st_size;
    *mtime_ns = (json_int_t)info.st_mtim.tv_sec * 1000000000 + info.st_mtim.tv_nsec;
    return true;
}

static int is_visible(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

ingot_status ingot_zoo_fingerprint(char hex[33], const char *folder, ingot_error *error) {
    struct dirent **entries = NULL;
    json_t *list = json_array();
    const int count = scandir(folder, &entries, is_visible, alphasort);
    if (count < 0) {
        json_decref(list);
        return ingot_error_set(error, errno == ENOENT ? INGOT_ERR_NOT_FOUND : INGOT_ERR_IO, folder,
                               NULL, "check the path", "the folder cannot be read: %s",
                               strerror(errno));
    }
    for (int i = 0; i < count; i++) {
        char path[INGOT_SHELF_PATH_SIZE];
        json_int_t bytes, mtime_ns;
        (void)snprintf(path, sizeof path, "%.3000s/%s", folder, entries[i]->d_name);
        if (ingot_zoo_file_mark(&bytes, &mtime_ns, path)) {
            (void)json_array_append_new(
                list, json_pack("[s, I, I]", entries[i]->d_name, bytes, mtime_ns));
        }
        free(entries[i]);
    }
    free(entries);
    const bool is_made = ingot_zoo_json_digest(hex, list);
    json_decref(list);
    return is_made
               ? INGOT_OK
               : ingot_error_set(error, INGOT_ERR_NO_MEMORY, folder, NULL, NULL, "out of memory");
}

static json_t *text_json(const ingot_manifest *m, uint64_t index) {
    char hex[33];
    if (index == INGOT_ZOO_NONE) {
        return json_null();
    }
    ingot_digest_hex(hex, m->texts[index].digest);
    return json_string(hex);
}

/* The recipe as it was read, so that its spelling does not matter. */
static json_t *recipe_json(const ingot_recipe *recipe) {
    json_t *object = ingot_recipe_json(recipe);
    ingot_json_put(object, "samples", json_integer((json_int_t)recipe->samples));
    ingot_json_put(object, "seq_len", json_integer((json_int_t)recipe->seq_len));
    ingot_json_put(object, "seed", json_integer((json_int_t)recipe->seed));
    return object;
}

ingot_status ingot_product_make_keys(ingot_product_keys *out, const ingot_manifest *manifest,
                                     const ingot_zoo_product *product, const char *fingerprint,
                                     ingot_error *error) {
    const ingot_recipe *recipe = &manifest->recipes[product->recipe].recipe;
    json_t *convert = json_object(), *evaluate = json_object(), *shared = json_object();
    json_t *table = recipe_json(recipe);
    json_int_t bytes, mtime_ns;
    ingot_json_put(convert, "recipe", recipe_json(recipe));
    ingot_json_put(convert, "calibration", text_json(manifest, product->calibration));
    ingot_json_put(convert, "statistics", json_boolean(product->uses_statistics));
    ingot_json_put(convert, "zstd", json_boolean(product->is_compressed));
    ingot_json_put(convert, "sha256", json_boolean(product->with_sha256));
    ingot_json_put(convert, "shard_bytes", json_integer((json_int_t)product->shard_bytes));
    ingot_json_put(convert, "output", json_string(product->output));
    ingot_json_put(evaluate, "text", text_json(manifest, product->evaluation));
    ingot_json_put(evaluate, "seq_len", json_integer((json_int_t)product->seq_len));
    ingot_json_put(evaluate, "windows", json_integer((json_int_t)product->windows));
    if (product->tasks != NULL && ingot_zoo_file_mark(&bytes, &mtime_ns, product->tasks)) {
        ingot_json_put(evaluate, "tasks", json_pack("[s, I, I]", product->tasks, bytes, mtime_ns));
    }
    ingot_json_put(shared, "model", json_string(fingerprint));
    ingot_json_put(shared, "text", text_json(manifest, product->calibration));
    ingot_json_put(shared, "samples", json_integer((json_int_t)recipe->samples));
    ingot_json_put(shared, "seq_len", json_integer((json_int_t)recipe->seq_len));
    /* A table serves every target: it holds for the rest of the recipe. */
    (void)json_object_del(table, "target_bpw");
    ingot_json_put(table, "shared", json_deep_copy(shared));
    (void)snprintf(out->fingerprint, sizeof out->fingerprint, "%s", fingerprint);
    const bool is_made = ingot_zoo_json_digest(out->convert, convert) &&
                         ingot_zoo_json_digest(out->evaluate, evaluate) &&
                         ingot_zoo_json_digest(out->statistics, shared) &&
                         ingot_zoo_json_digest(out->sensitivity, table);
    json_decref(convert);
    json_decref(evaluate);
    json_decref(shared);
    json_decref(table);
    return is_made ? INGOT_OK
                   : ingot_error_set(error, INGOT_ERR_NO_MEMORY, manifest->path, NULL, NULL,
                                     "out of memory");
}

ingot_status ingot_product_statistics(char key[33], const ingot_manifest *manifest,
                                      const ingot_shelf *shelf, const ingot_zoo_product *product,
                                      ingot_error *error) {
    char fingerprint[33], path[INGOT_SHELF_PATH_SIZE];
    ingot_product_keys keys;
    key[0] = '\0';
    if (!product->uses_statistics) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_zoo_fingerprint(fingerprint, manifest->models[product->model].path, error));
    INGOT_TRY(ingot_product_make_keys(&keys, manifest, product, fingerprint, error));
    if (shelf != NULL) {
        ingot_shelf_path(path, shelf, INGOT_SHELF_STATISTICS, keys.statistics);
    }
    if (shelf == NULL || !ingot_path_exists(path)) {
        memcpy(key, keys.statistics, sizeof keys.statistics);
    }
    return INGOT_OK;
}

/* ---- what is known of it -------------------------------------------------------------------- */

static bool is_equal(const json_t *object, const char *key, const char *value) {
    const char *text = ingot_zoo_text_of(object, key);
    return text != NULL && strcmp(text, value) == 0;
}

bool ingot_product_file(char out[INGOT_SHELF_PATH_SIZE], const json_t *file, unsigned index) {
    const char *first = ingot_zoo_text_of(file, "path");
    const double shards = ingot_json_number_at(file, "shards");
    const size_t length = first != NULL ? strlen(first) : 0, tail = strlen("-00001-of-00001.ingot");
    if (first == NULL || (index > 0 && !(index < shards && length > tail))) {
        return false;
    }
    (void)snprintf(out, INGOT_SHELF_PATH_SIZE, "%s", first);
    if (index > 0) {
        (void)snprintf(out + length - tail, tail + 1, "-%05u-of-%05u.ingot", index + 1,
                       (unsigned)shards);
    }
    return true;
}

ingot_status ingot_product_check_place(const ingot_shelf *shelf, const json_t *record,
                                       const ingot_zoo_product *product, ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE];
    if (!is_equal(record, "output", product->output) &&
        ingot_output_find(path, shelf, product->output, product->shard_bytes != 0)) {
        const bool is_folder = ingot_path_is_directory(path);
        return ingot_error_set(error, INGOT_ERR_EXISTS, path, NULL,
                               is_folder ? "move it away"
                                         : "move it away, or run with --force to replace it",
                               "%s is in the place of the product",
                               is_folder ? "a folder" : "a file that is not on record");
    }
    return INGOT_OK;
}

/* errno's reason why a file may not be read; 0: it may be, or is not there. */
static int why_unreadable(const char *path) {
    const int code = access(path, R_OK) != 0 ? errno : 0;
    return code == ENOENT || code == ENOTDIR || code == ELOOP ? 0 : code;
}

ingot_status ingot_product_check_readable(const ingot_shelf *shelf, const json_t *file,
                                          ingot_error *error) {
    char name[INGOT_SHELF_PATH_SIZE], path[INGOT_SHELF_PATH_SIZE], what[32] = "the file";
    for (unsigned i = 0; ingot_product_file(name, file, i); i++) {
        ingot_shelf_output(path, shelf, name);
        const int code = why_unreadable(path);
        if (i > 0) {
            (void)snprintf(what, sizeof what, "shard %u", i + 1);
        }
        if (code != 0) {
            return ingot_error_set(error, INGOT_ERR_IO, path, NULL,
                                   "check its permissions, or run with --force to make it anew",
                                   "%s cannot be read: %s", what, strerror(code));
        }
    }
    return INGOT_OK;
}

const char *ingot_product_gone(const char *path) {
    return ingot_output_exists(path) ? "something else is in its place"
           : ingot_path_exists(path) ? "the file behind its link is gone"
                                     : "the file is gone";
}

/* Whether all shards are there, behind the first. */
static bool is_complete(const ingot_shelf *shelf, const json_t *file, json_int_t first_bytes,
                        char reason[160]) {
    char name[INGOT_SHELF_PATH_SIZE], path[INGOT_SHELF_PATH_SIZE];
    json_int_t total = first_bytes, bytes, mtime_ns;
    for (unsigned i = 1; ingot_product_file(name, file, i); i++) {
        ingot_shelf_output(path, shelf, name);
        if (!ingot_zoo_file_mark(&bytes, &mtime_ns, path)) {
            (void)snprintf(reason, 160, "shard %u is gone", i + 1);
            return false;
        }
        total += bytes;
    }
    if (total != json_integer_value(json_object_get(file, "bytes"))) {
        (void)snprintf(reason, 160, "a shard was changed after it was made");
        return false;
    }
    return true;
}

/* Whether the file is the one the record is about. */
static bool is_there(const ingot_shelf *shelf, const json_t *file, char reason[160]) {
    char path[INGOT_SHELF_PATH_SIZE];
    json_int_t bytes, mtime_ns;
    const char *name = ingot_zoo_text_of(file, "path");
    ingot_shelf_output(path, shelf, name != NULL ? name : "");
    if (name == NULL || !ingot_zoo_file_mark(&bytes, &mtime_ns, path)) {
        (void)snprintf(reason, 160, "%s", ingot_product_gone(path));
        return false;
    }
    if (bytes != json_integer_value(json_object_get(file, "first_bytes")) ||
        mtime_ns != json_integer_value(json_object_get(file, "mtime_ns"))) {
        (void)snprintf(reason, 160, "the file was changed after it was made");
        return false;
    }
    return is_complete(shelf, file, bytes, reason);
}

ingot_product_state ingot_product_judge(const ingot_shelf *shelf, const json_t *record,
                                        const ingot_product_keys *keys, char reason[160]) {
    const json_t *file = json_object_get(record, "file");
    ingot_error error;
    reason[0] = '\0';
    if (record == NULL) {
        return INGOT_STATE_NEW;
    }
    if (!json_is_object(file)) {
        return is_equal(record, "state", "failed") ? INGOT_STATE_FAILED : INGOT_STATE_CONVERTING;
    }
    /* One that is to be made in another way need not be read. */
    const bool is_asked_for = is_equal(record, "convert_key", keys->convert);
    if (is_asked_for && ingot_product_check_readable(shelf, file, &error) != INGOT_OK) {
        (void)snprintf(reason, 160, "%.159s", error.reason);
        return INGOT_STATE_UNREADABLE;
    }
    if (!is_there(shelf, file, reason)) {
        return INGOT_STATE_MISSING;
    }
    if (!is_asked_for) {
        (void)snprintf(reason, 160, "the recipe, the text or the output was changed");
        return INGOT_STATE_STALE;
    }
    if (!is_equal(record, "fingerprint", keys->fingerprint)) {
        (void)snprintf(reason, 160, "files of the model were written since");
        return INGOT_STATE_STALE;
    }
    if (is_equal(record, "state", "failed")) {
        return INGOT_STATE_FAILED;
    }
    if (!is_equal(record, "state", "done") || !is_equal(record, "evaluate_key", keys->evaluate)) {
        return INGOT_STATE_CONVERTED;
    }
    return INGOT_STATE_DONE;
}

/* NaN, where nothing was measured, fails. */
static bool holds(double limit, const json_t *verify, const char *key, const char *what,
                  char reason[160]) {
    const double value = ingot_json_number_at(verify, key);
    if (isnan(limit) || value <= limit) {
        return true;
    }
    char found[INGOT_FIGURE_SIZE], most[INGOT_FIGURE_SIZE];
    ingot_format_apart(found, most, value, limit, 5);
    (void)snprintf(reason, 160, "%s %s is over %s", what, found, most);
    return false;
}

ingot_gate_verdict ingot_product_gates(const ingot_zoo_product *product, const json_t *record,
                                       char reason[160]) {
    const json_t *verify = json_object_get(record, "verify");
    reason[0] = '\0';
    if (!ingot_product_has_gates(product)) {
        return INGOT_GATES_NONE;
    }
    if (!json_is_object(verify)) {
        return INGOT_GATES_OPEN;
    }
    return holds(product->max_ppl_ratio, verify, "ppl_ratio", "perplexity ratio", reason) &&
                   holds(product->max_kld, verify, "kld_mean", "mean KL divergence", reason) &&
                   holds(product->max_accuracy_drop, verify, "accuracy_drop", "loss of accuracy",
                         reason)
               ? INGOT_GATES_PASSED
               : INGOT_GATES_FAILED;
}
