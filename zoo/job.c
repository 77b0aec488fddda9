/* Steps of one product, and its record between them (zoo/job.h). */
#include "zoo/job.h"

#include "common/child.h"
#include "common/files.h"
#include "common/progress.h"
#include "format/digest.h"
#include "format/ingot.h"
#include "zoo/figures.h"
#include "zoo/remains.h"
#include "zoo/source.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define REPORT_LIMIT_BYTES (256u << 20)

static const char *const step_tools[] = {"ingot-calib", "ingot-convert", "ingot-verify", ""};

const char *ingot_job_step_name(ingot_job_step step) {
    return step_tools[step];
}

static const ingot_recipe *recipe_of(const ingot_zoo_job *job) {
    return &job->manifest->recipes[job->product->recipe].recipe;
}

static const char *model_of(const ingot_zoo_job *job) {
    return job->manifest->models[job->product->model].path;
}

static ingot_status write_record(ingot_zoo_job *job, ingot_error *error) {
    ingot_json_put(job->record, "written", json_integer((json_int_t)time(NULL)));
    return ingot_shelf_write_record(job->shelf, job->product->name, job->record, error);
}

/* ---- before the first step ------------------------------------------------------------------ */

/* The file a conversion has left under its name: what the tool printed names the same root. */
static ingot_status take_file(ingot_zoo_job *job, const json_t *report, ingot_error *error) {
    ingot_container *container = NULL;
    ingot_info info;
    char hex[33], content[33];
    json_int_t bytes, mtime_ns;
    const char *path = ingot_zoo_text_of(report, "output");
    const char *root = ingot_zoo_text_of(report, "root");
    const size_t start = strlen(job->shelf->root) + 1;
    if (path == NULL || root == NULL || strlen(path) <= start ||
        !ingot_zoo_file_mark(&bytes, &mtime_ns, path)) {
        return ingot_error_set(error, INGOT_ERR_INPUT, NULL, NULL, NULL,
                               "the conversion left no file");
    }
    INGOT_TRY(ingot_open(&container, path, error));
    ingot_get_info(container, &info);
    ingot_close(container);
    ingot_digest_hex(hex, info.root);
    ingot_digest_hex(content, info.content_id);
    if (strcmp(hex, root) != 0) {
        return ingot_error_set(error, INGOT_ERR_INPUT, path, NULL, "move it away",
                               "another file is in the place of the product");
    }
    ingot_json_put(job->record, "file",
                   json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I}", "path", path + start, "root",
                             hex, "content_id", content, "bytes", (json_int_t)info.file_bytes,
                             "first_bytes", bytes, "mtime_ns", mtime_ns, "shards",
                             (json_int_t)info.shard_count));
    ingot_json_put(job->record, "convert", ingot_zoo_convert_figures(report));
    ingot_json_put(job->record, "convert_key", json_string(job->keys.convert));
    ingot_json_put(job->record, "fingerprint", json_string(job->keys.fingerprint));
    (void)json_object_del(job->record, "pending_key");
    (void)json_object_del(job->record, "pending_fingerprint");
    (void)json_object_del(job->record, "verify");
    (void)json_object_del(job->record, "layers");
    (void)json_object_del(job->record, "evaluate_key");
    ingot_json_put(job->record, "state", json_string("converted"));
    return INGOT_OK;
}

static bool is_text(const json_t *object, const char *key, const char *text) {
    const char *value = ingot_zoo_text_of(object, key);
    return value != NULL && strcmp(value, text) == 0;
}

/* A conversion that ended after its file was there and before it was on record. */
static bool adopt(ingot_zoo_job *job) {
    char path[INGOT_SHELF_PATH_SIZE];
    json_t *report = NULL;
    ingot_error ignored;
    if (!is_text(job->record, "pending_key", job->keys.convert) ||
        !is_text(job->record, "pending_fingerprint", job->keys.fingerprint)) {
        return false;
    }
    ingot_shelf_path(path, job->shelf, INGOT_SHELF_CONVERT, job->product->name);
    const bool is_taken =
        ingot_json_read(&report, path, REPORT_LIMIT_BYTES, &ignored) == INGOT_OK &&
        take_file(job, report, &ignored) == INGOT_OK && write_record(job, &ignored) == INGOT_OK;
    json_decref(report);
    return is_taken;
}

/* Whether the container at `path`, of which only the table is read, has that root. */
static bool has_root(const char *path, const char *root) {
    char hex[33];
    ingot_container *container = NULL;
    ingot_info info;
    if (ingot_open(&container, path, NULL) != INGOT_OK) {
        return false;
    }
    ingot_get_info(container, &info);
    ingot_close(container);
    ingot_digest_hex(hex, info.root);
    return strcmp(hex, root) == 0;
}

/* The file was written since, though it may be what it was: a copy, a touch, a backup.  What else
 * is in it is verified anew. */
static void take_back(ingot_zoo_job *job) {
    char path[INGOT_SHELF_PATH_SIZE];
    json_t *file = json_object_get(job->record, "file");
    const char *name = ingot_zoo_text_of(file, "path"), *root = ingot_zoo_text_of(file, "root");
    json_int_t bytes, mtime_ns;
    ingot_error ignored;
    if (name == NULL || root == NULL) {
        return;
    }
    ingot_shelf_output(path, job->shelf, name);
    if (has_root(path, root) && ingot_zoo_file_mark(&bytes, &mtime_ns, path)) {
        ingot_json_put(file, "first_bytes", json_integer(bytes));
        ingot_json_put(file, "mtime_ns", json_integer(mtime_ns));
        ingot_json_put(job->record, "state", json_string("converted"));
        (void)!write_record(job, &ignored);
    }
}

/* Files of the model were written since, though its weights may be what they were: a copy, a touch,
 * a clock that was set. */
static ingot_status compare_source(ingot_zoo_job *job, bool *is_same, ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE], reason[160];
    const char *name = ingot_zoo_text_of(json_object_get(job->record, "file"), "path");
    *is_same = false;
    if (name == NULL || !is_text(job->record, "convert_key", job->keys.convert)) {
        return INGOT_OK;
    }
    ingot_shelf_output(path, job->shelf, name);
    INGOT_TRY(ingot_zoo_compare_source(is_same, path, model_of(job), reason, error));
    if (*is_same) {
        ingot_json_put(job->record, "fingerprint", json_string(job->keys.fingerprint));
        INGOT_TRY(write_record(job, error));
    }
    return INGOT_OK;
}

static ingot_status lock_shared(ingot_zoo_job *job, const char *key, ingot_shelf_kind kind,
                                bool *is_made, ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE];
    ingot_shelf_path(path, job->shelf, kind, key);
    *is_made = ingot_path_exists(path);
    if (!*is_made) {
        INGOT_TRY(ingot_shelf_lock(&job->shared_lock, job->shelf, key, error));
        *is_made = ingot_path_exists(path); /* by whoever had the lock before */
        if (*is_made) {
            ingot_shelf_unlock(job->shared_lock);
            job->shared_lock = -1;
        }
    }
    return INGOT_OK;
}

/* The first step of a conversion: what it shares with others comes before it. */
static ingot_status first_step(ingot_zoo_job *job, ingot_error *error) {
    bool is_made = true;
    job->step = INGOT_STEP_CONVERT;
    if (job->product->uses_statistics) {
        INGOT_TRY(lock_shared(job, job->keys.statistics, INGOT_SHELF_STATISTICS, &is_made, error));
        job->step = is_made ? INGOT_STEP_CONVERT : INGOT_STEP_STATISTICS;
    } else if (recipe_of(job)->target_bpw != 0) {
        INGOT_TRY(
            lock_shared(job, job->keys.sensitivity, INGOT_SHELF_SENSITIVITY, &is_made, error));
    }
    return INGOT_OK;
}

static ingot_status decide(ingot_zoo_job *job, bool is_forced, ingot_error *error) {
    char reason[160];
    ingot_product_state state = ingot_product_judge(job->shelf, job->record, &job->keys, reason);
    bool is_same = false;
    if (is_forced) {
        return first_step(job, error);
    }
    if (state == INGOT_STATE_UNREADABLE) {
        INGOT_TRY(
            ingot_product_check_readable(job->shelf, json_object_get(job->record, "file"), error));
        state = ingot_product_judge(job->shelf, job->record, &job->keys, reason);
    }
    if (state == INGOT_STATE_MISSING) {
        take_back(job);
        state = ingot_product_judge(job->shelf, job->record, &job->keys, reason);
    }
    if (state == INGOT_STATE_STALE) {
        INGOT_TRY(compare_source(job, &is_same, error));
        state = is_same ? ingot_product_judge(job->shelf, job->record, &job->keys, reason) : state;
    }
    if ((state == INGOT_STATE_CONVERTING || state == INGOT_STATE_MISSING) && adopt(job)) {
        state = INGOT_STATE_CONVERTED;
    }
    if (state == INGOT_STATE_DONE) {
        job->step = INGOT_STEP_NONE;
        return INGOT_OK;
    }
    /* A file whose evaluation failed is evaluated again, not made again. */
    if (state == INGOT_STATE_CONVERTED ||
        (state == INGOT_STATE_FAILED && json_is_object(json_object_get(job->record, "file")))) {
        job->step = INGOT_STEP_VERIFY;
        return INGOT_OK;
    }
    return first_step(job, error);
}

ingot_status ingot_job_open(ingot_zoo_job *job, const ingot_manifest *manifest,
                            const ingot_shelf *shelf, const ingot_zoo_product *product,
                            const char *fingerprint, bool is_forced, ingot_error *error) {
    *job = (ingot_zoo_job){.manifest = manifest,
                           .shelf = shelf,
                           .product = product,
                           .lock = -1,
                           .shared_lock = -1,
                           .step = INGOT_STEP_NONE};
    INGOT_TRY(ingot_shelf_lock(&job->lock, shelf, product->name, error));
    INGOT_TRY(ingot_product_make_keys(&job->keys, manifest, product, fingerprint, error));
    const ingot_status status = ingot_shelf_read_record(&job->record, shelf, product->name, error);
    if (status != INGOT_OK && status != INGOT_ERR_NOT_FOUND && status != INGOT_ERR_INPUT) {
        return status;
    }
    job->record = job->record != NULL ? job->record : json_object(); /* for a failure, too */
    if (status != INGOT_ERR_INPUT && !is_forced) { /* of a record that is damaged it may be */
        INGOT_TRY(ingot_product_check_place(shelf, job->record, product, error));
    }
    job->is_forced = is_forced;
    *error = (ingot_error){0};
    return decide(job, is_forced, error);
}

void ingot_job_close(ingot_zoo_job *job) {
    ingot_shelf_unlock(job->shared_lock);
    ingot_shelf_unlock(job->lock);
    json_decref(job->record);
    job->record = NULL;
    job->lock = job->shared_lock = -1;
}

/* ---- command lines -------------------------------------------------------------------------- */

static void add_texts(ingot_child *child, const ingot_zoo_text *text) {
    for (uint64_t i = 0; i < text->path_count; i++) {
        ingot_child_option(child, "--text", text->paths[i]);
    }
}

static void add_windows(ingot_child *child, const ingot_recipe *recipe) {
    ingot_child_number(child, "--samples", (double)recipe->samples);
    if (recipe->seq_len != 0) {
        ingot_child_number(child, "--seq-len", (double)recipe->seq_len);
    }
}

/* What every tool gets last; its argument behind "--", whose name may begin with a dash. */
static void add_rest(ingot_child *child, const ingot_zoo_job *job, const char *argument) {
    ingot_child_option(child, "--device", job->device);
    ingot_child_number(child, "--threads", job->threads);
    ingot_child_word(child, "--json");
    ingot_child_option(child, "--", argument);
}

static void build_statistics(ingot_child *child, const ingot_zoo_job *job, const char *path) {
    ingot_child_option(child, "--output", path);
    add_texts(child, &job->manifest->texts[job->product->calibration]);
    add_windows(child, recipe_of(job));
    add_rest(child, job, model_of(job));
}

static void build_convert(ingot_child *child, const ingot_zoo_job *job, const char *output,
                          const char *recipe, const char *shared) {
    const ingot_zoo_product *p = job->product;
    ingot_child_option(child, "--output", output);
    ingot_child_option(child, "--recipe", recipe);
    ingot_child_word(child, "--force");
    ingot_child_word(child, "--resume");
    if (p->uses_statistics) {
        ingot_child_option(child, "--stats", shared);
    } else if (ingot_product_has_data(p)) {
        add_texts(child, &job->manifest->texts[p->calibration]);
        if (recipe_of(job)->target_bpw != 0) {
            ingot_child_option(child, "--sensitivity", shared);
        }
    }
    if (p->is_compressed) {
        ingot_child_word(child, "--zstd");
    }
    if (p->with_sha256) {
        ingot_child_word(child, "--sha256");
    }
    if (p->shard_bytes != 0) {
        ingot_child_number(child, "--shard-size", (double)p->shard_bytes);
    }
    add_rest(child, job, model_of(job));
}

static void build_verify(ingot_child *child, const ingot_zoo_job *job, const char *output) {
    const ingot_zoo_product *p = job->product;
    ingot_child_option(child, "--source", model_of(job));
    if (p->evaluation != INGOT_ZOO_NONE) {
        add_texts(child, &job->manifest->texts[p->evaluation]);
        if (p->seq_len != 0) {
            ingot_child_number(child, "--seq-len", (double)p->seq_len);
        }
        if (p->windows != 0) {
            ingot_child_number(child, "--windows", (double)p->windows);
        }
    }
    if (p->tasks != NULL) {
        ingot_child_option(child, "--tasks", p->tasks);
    }
    add_rest(child, job, output);
}

/* The recipe of the manifest as the file that ingot-convert reads. */
static ingot_status write_recipe(const ingot_zoo_job *job, const char *path, ingot_error *error) {
    const char *text = job->manifest->recipes[job->product->recipe].text;
    return ingot_file_write_all(path, text, strlen(text), true, error);
}

/* On record before the work: a run that ends in the middle is told from one that never began. */
static ingot_status begin_conversion(ingot_zoo_job *job, const char *recipe, ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE];
    INGOT_TRY(ingot_shelf_make_folders(job->shelf, job->product->output, error));
    INGOT_TRY(write_recipe(job, recipe, error));
    ingot_shelf_path(path, job->shelf, INGOT_SHELF_CONVERT, job->product->name);
    (void)unlink(path); /* the report of an earlier one is not to be taken for this one's */
    if (job->is_forced || !is_text(job->record, "pending_key", job->keys.convert)) {
        ingot_remains_remove(job->shelf, job->product->output);
    }
    ingot_json_put(job->record, "output", json_string(job->product->output));
    ingot_json_put(job->record, "state", json_string("converting"));
    ingot_json_put(job->record, "pending_key", json_string(job->keys.convert));
    ingot_json_put(job->record, "pending_fingerprint", json_string(job->keys.fingerprint));
    (void)json_object_del(job->record, "error");
    (void)json_object_del(job->record, "message");
    return write_record(job, error);
}

static void report_path(char out[INGOT_SHELF_PATH_SIZE], const ingot_zoo_job *job) {
    static const ingot_shelf_kind kinds[] = {INGOT_SHELF_CALIB, INGOT_SHELF_CONVERT,
                                             INGOT_SHELF_VERIFY};
    ingot_shelf_path(out, job->shelf, kinds[job->step], job->product->name);
}

/* The statistics or the table that a product shares with others. */
static void shared_path(char out[INGOT_SHELF_PATH_SIZE], const ingot_zoo_job *job) {
    const bool has_table = !job->product->uses_statistics;
    ingot_shelf_path(out, job->shelf, has_table ? INGOT_SHELF_SENSITIVITY : INGOT_SHELF_STATISTICS,
                     has_table ? job->keys.sensitivity : job->keys.statistics);
}

ingot_status ingot_job_start(ingot_zoo_job *job, ingot_error *error) {
    char output[INGOT_SHELF_PATH_SIZE], recipe[INGOT_SHELF_PATH_SIZE];
    char shared[INGOT_SHELF_PATH_SIZE], log[INGOT_SHELF_PATH_SIZE], out[INGOT_SHELF_PATH_SIZE];
    ingot_child child;
    const char *name = job->product->name;
    shared_path(shared, job);
    ingot_shelf_path(recipe, job->shelf, INGOT_SHELF_RECIPE, name);
    ingot_shelf_path(log, job->shelf, INGOT_SHELF_LOG, name);
    ingot_shelf_output(output, job->shelf, job->product->output);
    report_path(out, job);
    INGOT_TRY(ingot_child_begin(&child, step_tools[job->step], error));
    child.out = out;
    child.log = log;
    child.lock_descriptors[0] = job->lock;
    child.lock_descriptors[1] = job->shared_lock;
    switch (job->step) {
    case INGOT_STEP_STATISTICS:
        build_statistics(&child, job, shared);
        break;
    case INGOT_STEP_CONVERT:
        INGOT_TRY(begin_conversion(job, recipe, error));
        build_convert(&child, job, output, recipe, shared);
        break;
    case INGOT_STEP_VERIFY: {
        const char *path = ingot_zoo_text_of(json_object_get(job->record, "file"), "path");
        ingot_shelf_output(output, job->shelf, path != NULL ? path : "");
        build_verify(&child, job, output);
        break;
    }
    case INGOT_STEP_NONE:
        return INGOT_ERR_INTERNAL;
    }
    job->step_started = ingot_clock_seconds();
    return ingot_child_start(&job->child, &child, error);
}

/* ---- the end of a step ---------------------------------------------------------------------- */

/* The error a tool reported, in its own words. */
static ingot_status tool_error(const ingot_zoo_job *job, const json_t *report, int wait_status,
                               ingot_error *error) {
    const char *message = ingot_zoo_text_of(report, "message");
    char text[200];
    message = message != NULL ? message : ingot_zoo_text_of(report, "error_text");
    if (message == NULL) {
        ingot_child_describe(text, sizeof text, step_tools[job->step], wait_status);
        message = text;
    }
    const ingot_status status = ingot_child_status(ingot_zoo_text_of(report, "error"), wait_status);
    return ingot_error_set(error, status, NULL, NULL, NULL, "%.400s", message);
}

/* A checkpoint must be the same before and after; what was made of a changing one is no product. */
static ingot_status check_unchanged(ingot_zoo_job *job, ingot_error *error) {
    char now[33];
    INGOT_TRY(ingot_zoo_fingerprint(now, model_of(job), error));
    if (strcmp(now, job->keys.fingerprint) == 0) {
        return INGOT_OK;
    }
    return ingot_error_set(error, INGOT_FAIL_SOURCE, model_of(job), NULL,
                           "leave the checkpoint alone and run again",
                           "the checkpoint was changed while it was converted");
}

/* What was the product before: a set of fewer or more shards, or one file, has another name.  It is
 * removed where it is the one on record; at another place it is left to its owner. */
static void remove_former(const ingot_zoo_job *job, const json_t *before) {
    char path[INGOT_SHELF_PATH_SIZE], name[INGOT_SHELF_PATH_SIZE];
    const char *old = ingot_zoo_text_of(before, "path"), *root = ingot_zoo_text_of(before, "root");
    const char *now = ingot_zoo_text_of(json_object_get(job->record, "file"), "path");
    if (old == NULL || root == NULL || now == NULL || strcmp(old, now) == 0 ||
        !ingot_output_is_form(old, job->product->output)) {
        return;
    }
    ingot_shelf_output(path, job->shelf, old);
    if (!has_root(path, root)) {
        return;
    }
    for (unsigned i = 0; ingot_product_file(name, before, i); i++) {
        ingot_shelf_output(path, job->shelf, name);
        (void)unlink(path);
    }
}

static ingot_status finish_convert(ingot_zoo_job *job, const json_t *report, ingot_error *error) {
    json_t *before = json_incref(json_object_get(job->record, "file"));
    ingot_status status = check_unchanged(job, error);
    INGOT_GO(status);
    INGOT_GO(take_file(job, report, error));
    ingot_shelf_unlock(job->shared_lock);
    job->shared_lock = -1;
    job->step = INGOT_STEP_VERIFY;
    INGOT_GO(write_record(job, error));
    remove_former(job, before);
done:
    json_decref(before);
    return status;
}

static ingot_status finish_verify(ingot_zoo_job *job, const json_t *report, ingot_error *error) {
    ingot_json_put(job->record, "verify", ingot_zoo_verify_figures(report));
    ingot_json_put(job->record, "layers", ingot_zoo_layer_errors(report));
    ingot_json_put(job->record, "evaluate_key", json_string(job->keys.evaluate));
    ingot_json_put(job->record, "state", json_string("done"));
    (void)json_object_del(job->record, "error");
    (void)json_object_del(job->record, "message");
    if (json_object_get(job->record, "pending_key") != NULL) { /* of a recipe that was taken back */
        ingot_remains_remove(job->shelf, job->product->output);
        (void)json_object_del(job->record, "pending_key");
        (void)json_object_del(job->record, "pending_fingerprint");
    }
    job->step = INGOT_STEP_NONE;
    return write_record(job, error);
}

/* What a step took, as the system saw it. */
static void note_step(ingot_zoo_job *job, const struct rusage *usage) {
    static const char *const names[] = {"statistics", "convert", "verify", ""};
    json_t *steps = json_object_get(job->record, "steps");
    const double cpu = (double)(usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) +
                       1e-6 * (double)(usage->ru_utime.tv_usec + usage->ru_stime.tv_usec);
    if (steps == NULL || job->step == INGOT_STEP_CONVERT) {
        json_t *before = json_incref(json_object_get(steps, names[INGOT_STEP_STATISTICS]));
        ingot_json_put(job->record, "steps", json_object());
        steps = json_object_get(job->record, "steps");
        if (before != NULL) {
            ingot_json_put(steps, names[INGOT_STEP_STATISTICS], before);
        }
    }
    ingot_json_put(steps, names[job->step],
                   json_pack("{s:f, s:f, s:I}", "seconds",
                             ingot_clock_seconds() - job->step_started, "cpu_seconds", cpu,
                             "peak_host_bytes", (json_int_t)usage->ru_maxrss * 1024));
}

/* Whether a conversion failed for the file that it shares with others: its error begins with the
 * name, and the file is damaged or gone.  One that others have made anew meanwhile is whole. */
static bool is_spoiled(const char *path, const ingot_zoo_job *job, const ingot_error *failure) {
    const size_t length = strlen(path);
    ingot_container *container = NULL;
    if (job->shared_lock >= 0 || /* it was to make the file itself */
        strncmp(failure->reason, path, length) != 0 || failure->reason[length] != ':') {
        return false;
    }
    if (!ingot_path_exists(path) || !job->product->uses_statistics) {
        return failure->status == INGOT_ERR_NOT_FOUND || failure->status == INGOT_ERR_INPUT;
    }
    ingot_status status = ingot_open(&container, path, NULL);
    status =
        status == INGOT_OK ? ingot_check_full(container, job->threads, NULL, NULL, NULL) : status;
    ingot_close(container);
    return status == INGOT_ERR_INPUT || ingot_status_exit_code(status) == 1;
}

/* The first step again; what it shares with others may be in the hands of one. */
static ingot_status begin_anew(ingot_zoo_job *job, ingot_error *error) {
    const ingot_status status = first_step(job, error);
    job->must_wait = status == INGOT_ERR_LOCKED;
    return status;
}

/* After a failure: what would fail every run to come is made anew, once; else the failure stays. */
static ingot_status recover(ingot_zoo_job *job, ingot_status status, ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE];
    if (job->step == INGOT_STEP_VERIFY && !job->is_remade && status >= INGOT_BAD_FIRST &&
        status <= INGOT_BAD_LAST) {
        (void)fprintf(stderr, "%s: damaged: made anew\n", job->product->name);
        job->is_remade = true;
        return begin_anew(job, error);
    }
    if (job->step != INGOT_STEP_CONVERT) {
        return status;
    }
    if (status == INGOT_ERR_STATE && !job->is_restarted) {
        /* Of another version or instruction set, or damaged: from the beginning. */
        job->is_restarted = true;
        ingot_remains_remove(job->shelf, job->product->output);
        return INGOT_OK;
    }
    shared_path(path, job);
    if (!job->has_new_shared && is_spoiled(path, job, error)) {
        (void)fprintf(stderr, "%s: damaged or gone: made anew\n", path);
        job->has_new_shared = true;
        (void)unlink(path);
        return begin_anew(job, error);
    }
    return status;
}

ingot_status ingot_job_finish(ingot_zoo_job *job, int wait_status, const struct rusage *usage,
                              ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE];
    json_t *report = NULL;
    report_path(path, job);
    job->child = 0;
    note_step(job, usage);
    ingot_status status = ingot_json_read(&report, path, REPORT_LIMIT_BYTES, error);
    if (status == INGOT_OK && WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0) {
        switch (job->step) {
        case INGOT_STEP_STATISTICS:
            ingot_shelf_unlock(job->shared_lock);
            job->shared_lock = -1;
            job->step = INGOT_STEP_CONVERT;
            break;
        case INGOT_STEP_CONVERT:
            status = finish_convert(job, report, error);
            break;
        case INGOT_STEP_VERIFY:
            status = finish_verify(job, report, error);
            break;
        case INGOT_STEP_NONE:
            status = INGOT_ERR_INTERNAL;
        }
    } else {
        status = recover(job, tool_error(job, report, wait_status, error), error);
    }
    json_decref(report);
    return status;
}

void ingot_job_fail(ingot_zoo_job *job, const ingot_error *error) {
    ingot_error ignored;
    if (error->status == INGOT_ERR_INTERRUPTED || job->record == NULL) {
        return; /* on record it goes on where it stopped */
    }
    ingot_json_put(job->record, "state", json_string("failed"));
    ingot_json_put_error(job->record, error);
    if (write_record(job, &ignored) != INGOT_OK) {
        (void)fprintf(stderr, "ingot-zoo: warning: %s: the failure could not be put on record\n",
                      job->product->name);
    }
}
