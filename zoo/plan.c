/* ingot-zoo plan: sizes, memory and disk of every product before any work, from headers alone. */
#include "zoo/plan.h"

#include "calib/text_model.h"
#include "common/files.h"
#include "common/sizes.h"
#include "convert/convert.h"
#include "kernels/plugin.h"
#include "zoo/leftovers.h"
#include "zoo/plan_scoring.h"
#include "zoo/product.h"
#include "zoo/remains.h"
#include "zoo/room.h"
#include "zoo/rows.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <sys/statvfs.h>

/* ---- room ----------------------------------------------------------------------------------- */

/* Free space where the shelf is, or is to be: of the nearest folder that is there; 1 of a full
 * disk, 0 where it is not known. */
static uint64_t free_disk(const char *shelf) {
    char path[INGOT_SHELF_PATH_SIZE];
    struct statvfs info;
    (void)snprintf(path, sizeof path, "%.4000s", shelf);
    while (path[0] != '\0' && !ingot_path_is_directory(path)) {
        char *slash = strrchr(path, '/');
        if (slash == NULL) {
            (void)snprintf(path, sizeof path, ".");
        } else {
            slash[slash == path] = '\0';
        }
    }
    return statvfs(path, &info) == 0 ? ingot_max_u64(1, (uint64_t)info.f_bavail * info.f_frsize)
                                     : 0;
}

/* What is free on the cards of the manifest. */
static void find_free_devices(ingot_zoo_room *room, const ingot_manifest *m) {
    for (uint64_t i = 0; i < m->device_count; i++) {
        const char *device = m->devices[i];
        uint64_t *bytes = &room->device_free[i], *least = &room->device_free_bytes;
        if (strncmp(device, "cuda", 4) == 0 && ingot_plugin_free_bytes(bytes, device)) {
            *least = *least == 0 || *bytes < *least ? *bytes : *least;
        }
    }
}

static uint64_t bytes_of(const json_t *files) {
    json_int_t bytes = 0;
    for (size_t i = 0; i < json_array_size(files); i++) {
        bytes += json_integer_value(json_object_get(json_array_get(files, i), "bytes"));
    }
    return (uint64_t)bytes;
}

static void find_room(ingot_zoo_room *room, const ingot_manifest *m, const json_t *unused,
                      bool is_here) {
    const uint64_t memory = is_here ? ingot_zoo_room_memory() : 0;
    *room = (ingot_zoo_room){
        .host_bytes = m->limits.host_bytes != 0 ? m->limits.host_bytes : memory,
        .device_bytes = m->limits.device_bytes,
        .disk_bytes = m->limits.disk_bytes != 0 ? m->limits.disk_bytes
                                                : free_disk(m->shelf) + bytes_of(unused)};
    if (is_here) {
        find_free_devices(room, m);
    }
}

/* ---- time ----------------------------------------------------------------------------------- */

/* The first device, for measurements; without it times are not known. */
typedef struct stopwatch {
    ingot_backend backend;
    ingot_speeds *speeds; /* NULL: nothing is measured */
    json_t *counted;      /* keys of shared statistics that count with a product before */
    json_t *texts;        /* what is known of texts to score on (zoo/plan_scoring.h) */
} stopwatch;

static void open_stopwatch(stopwatch *w, const ingot_manifest *m,
                           const ingot_zoo_options *options) {
    ingot_error error = {0};
    const double start = ingot_clock_seconds();
    if (ingot_backend_open(&w->backend, m->devices[0], (unsigned)options->threads, &error) !=
        INGOT_OK) {
        (void)fprintf(stderr, "ingot-zoo: no times are estimated here: %s\n", error.reason);
    } else if (ingot_speeds_create(&w->speeds, &w->backend, ingot_clock_seconds() - start) !=
               INGOT_OK) {
        w->speeds = NULL;
    }
}

static void close_stopwatch(stopwatch *w) {
    ingot_speeds_destroy(w->speeds);
    json_decref(w->counted);
    json_decref(w->texts);
    ingot_backend_close(&w->backend);
}

/* ---- one product ---------------------------------------------------------------------------- */

static const char *add_problem(ingot_forecasts *plan, const char *format, ...) INGOT_PRINTF(2, 3);

/* The text is the plan's. */
static const char *add_problem(ingot_forecasts *plan, const char *format, ...) {
    char text[1200];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    (void)json_array_append_new(plan->problems, ingot_json_any_text(text));
    return json_string_value(json_array_get(plan->problems, json_array_size(plan->problems) - 1));
}

/* Whether a device of the manifest may be of a kind: "auto" either, on machines of a cluster; on
 * this one it is settled. */
static bool may_use(const ingot_manifest *m, bool cuda) {
    bool may = false;
    for (uint64_t i = 0; i < m->device_count; i++) {
        may = may || strcmp(m->devices[i], "auto") == 0 ||
              (strncmp(m->devices[i], "cuda", 4) == 0) == cuda;
    }
    return may;
}

static ingot_status forecast_of(ingot_forecast *out, json_t **json, const ingot_manifest *m,
                                const ingot_zoo_product *p, bool with_tensors, stopwatch *watch,
                                ingot_error *error) {
    ingot_convert_options o = {.model_dir = m->models[p->model].path,
                               .recipe =
                                   m->recipes[p->recipe].recipe, /* rules stay the manifest's */
                               .is_dry_run = true,
                               .is_compressed = p->is_compressed,
                               .shard_size_bytes = p->shard_bytes};
    /* F16 and BF16 take the same room: to tell which, weights would have to be read. */
    if (o.recipe.defaults.scale == INGOT_SCALE_AUTO) {
        o.recipe.defaults.scale = INGOT_SCALE_F16;
    }
    o.text_bytes = ingot_product_has_data(p) ? m->texts[p->calibration].bytes : 0; /* @self: 0 */
    if (p->uses_statistics) {
        o.stats = "shared";
        o.stats_of_self_text = strcmp(m->texts[p->calibration].paths[0], INGOT_ZOO_SELF) == 0;
    } else if (ingot_product_has_data(p)) {
        o.text_count = 1;
        o.texts[0] = m->texts[p->calibration].paths[0];
    }
    INGOT_TRY(ingot_zoo_scoring(&o.scoring, watch->texts, m, p, error));
    return ingot_convert_plan(out, with_tensors ? json : NULL, &o, watch->speeds, error);
}

/* A text that a product wants, and no tokenizer to read it with.  A config.json alone has none to
 * be looked for. */
static ingot_status check_tokenizer(const ingot_manifest *m, const ingot_zoo_product *p,
                                    const ingot_forecast *f, ingot_error *error) {
    const char *model = m->models[p->model].path;
    char path[4096];
    const bool reads_calibration =
        ingot_product_has_data(p) && strcmp(m->texts[p->calibration].paths[0], INGOT_ZOO_SELF) != 0;
    if (!f->has_weights ||
        (!reads_calibration && p->evaluation == INGOT_ZOO_NONE && p->tasks == NULL)) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_path_join(path, sizeof path, model, INGOT_TOKENIZER_FILE));
    return ingot_path_exists(path)
               ? INGOT_OK
               : ingot_error_set(error, INGOT_ERR_NOT_FOUND, path, NULL,
                                 "put the model's tokenizer.json beside its config.json",
                                 "there is no tokenizer, which its texts are read with");
}

/* What would take less memory, of the step that takes most of it; empty: nothing in the manifest.
 */
static const char *remedy_of(const ingot_zoo_product *p, bool is_scoring) {
    return is_scoring
               ? (p->evaluation != INGOT_ZOO_NONE ? "a smaller \"seq_len\" of its evaluation, "
                                                  : "")
           : ingot_product_has_data(p)
               ? "fewer \"samples\" or a smaller \"seq_len\" in its recipe, "
               : "";
}

static void check_fits(ingot_forecasts *plan, const ingot_zoo_product *p, ingot_zoo_need *need) {
    char wanted[32], there[32];
    if (plan->room.host_bytes != 0 && need->host_bytes > plan->room.host_bytes) {
        ingot_format_bytes(wanted, sizeof wanted, (double)need->host_bytes);
        ingot_format_bytes(there, sizeof there, (double)plan->room.host_bytes);
        need->status = INGOT_ERR_UNSUPPORTED;
        const char *remedy = remedy_of(p, need->is_host_scoring);
        need->problem = add_problem(
            plan, "%s: needs %s of host memory, there are %s (%s%sraise limits.host_bytes)",
            p->name, wanted, there, remedy, remedy[0] != '\0' ? "or " : "");
    }
    if (plan->room.device_bytes != 0 && need->device_bytes > plan->room.device_bytes) {
        ingot_format_bytes(wanted, sizeof wanted, (double)need->device_bytes);
        ingot_format_bytes(there, sizeof there, (double)plan->room.device_bytes);
        need->status = INGOT_ERR_UNSUPPORTED;
        need->problem =
            add_problem(plan,
                        "%s: needs %s of device memory, limits.device_bytes allows %s (%sanother "
                        "device, or raise it)",
                        p->name, wanted, there, remedy_of(p, need->is_device_scoring));
    }
}

/* What cannot be on a card as it is now: states of the batch give way to the host and calls shrink,
 * but a block at work does not. */
static void check_card(ingot_forecasts *plan, const ingot_zoo_product *p, ingot_zoo_need *need) {
    char wanted[32], there[32];
    if (plan->room.device_free_bytes != 0 &&
        need->device_least_bytes > plan->room.device_free_bytes) {
        ingot_format_bytes(wanted, sizeof wanted, (double)need->device_least_bytes);
        ingot_format_bytes(there, sizeof there, (double)plan->room.device_free_bytes);
        need->status = INGOT_ERR_UNSUPPORTED;
        need->problem =
            add_problem(plan,
                        "%s: needs at least %s of device memory, %s are free on a card of the "
                        "manifest (end what else runs there, %sor another device)",
                        p->name, wanted, there,
                        ingot_product_has_data(p) ? "a smaller \"seq_len\" in its recipe, " : "");
    }
}

static void check_shelf(ingot_forecasts *plan, const ingot_manifest *m) {
    char text[INGOT_ERROR_TEXT_SIZE];
    ingot_error error = {0};
    if (ingot_shelf_check(m->shelf, &error) != INGOT_OK) {
        ingot_error_format(&error, text, sizeof text);
        (void)add_problem(plan, "the shelf: %s", text);
        plan->is_closed = true;
    }
}

static bool has_state(const json_t *row, const char *state) {
    const char *text = ingot_zoo_text_of(row, "state");
    return text != NULL && strcmp(text, state) == 0;
}

/* A file in its place that a run leaves alone: nobody made it, or it may not be read. */
static ingot_status check_present(const ingot_shelf *shelf, const ingot_zoo_product *p,
                                  const json_t *row, ingot_error *error) {
    json_t *record = NULL;
    ingot_status status = ingot_shelf_read_record(&record, shelf, p->name, NULL);
    if (status == INGOT_OK || status == INGOT_ERR_NOT_FOUND) {
        status = ingot_product_check_place(shelf, record, p, error);
    } else if (status != INGOT_ERR_NO_MEMORY) {
        status = INGOT_OK; /* it is made anew */
    }
    if (status == INGOT_OK && has_state(row, "unreadable")) {
        status = ingot_product_check_readable(shelf, json_object_get(record, "file"), error);
    }
    json_decref(record);
    return status;
}

/* Whether a conversion could begin its files: their names are longer than the product's at work. */
static ingot_status check_place(ingot_forecasts *plan, const ingot_manifest *m,
                                const ingot_shelf *shelf, const ingot_zoo_product *p,
                                const json_t *row, ingot_zoo_need *need, bool is_forced) {
    const bool is_best = m->recipes[p->recipe].recipe.effort == INGOT_EFFORT_BEST;
    const char *added = p->shard_bytes != 0 ? "-00001-of-00002.partial"
                        : is_best           ? ".waiting.partial"
                                            : ".resume.partial";
    char text[INGOT_ERROR_TEXT_SIZE];
    ingot_error error = {0};
    ingot_status status =
        ingot_shelf_check_output(m->shelf, p->output, strlen(added), plan->is_closed, &error);
    if (status == INGOT_OK && shelf != NULL && !is_forced) {
        status = check_present(shelf, p, row, &error);
    }
    if (status != INGOT_OK && status != INGOT_ERR_NO_MEMORY) {
        ingot_error_format(&error, text, sizeof text);
        need->status = status;
        need->problem = add_problem(plan, "%s: %s", p->name, text);
    }
    return status == INGOT_ERR_NO_MEMORY ? status : INGOT_OK;
}

/* A product of which nothing is known yet but its name: it has all keys. */
static json_t *empty_row(const ingot_zoo_product *p) {
    static const char *const keys[] = {
        "bits_per_weight", "calibration",    "cards",    "device_bytes", "device_least_bytes",
        "disk_bytes",      "file_bytes",     "finished", "has_weights",  "host_bytes",
        "parameters",      "problem",        "seconds",  "source_bytes", "statistics_seconds",
        "tensors",         "verify_seconds",
    };
    json_t *row = json_object();
    for (unsigned i = 0; i < sizeof keys / sizeof *keys; i++) {
        ingot_json_put(row, keys[i], json_null());
    }
    ingot_json_put(row, "product", json_string(p->name));
    ingot_json_put(row, "output", json_string(p->output));
    return row;
}

static void fill_json(json_t *row, const ingot_forecast *f, const ingot_zoo_need *need) {
    json_t *cards = json_array();
    for (unsigned i = 0; i < INGOT_CARD_COUNT; i++) {
        bool fits;
        const uint64_t tokens = ingot_forecast_card_tokens(&fits, f, ingot_card_gigabytes[i]);
        (void)json_array_append_new(cards, json_pack("{s:I, s:b, s:I}", "gigabytes",
                                                     (json_int_t)ingot_card_gigabytes[i], "fits",
                                                     fits, "tokens", (json_int_t)tokens));
    }
    ingot_json_put(row, "has_weights", json_boolean(f->has_weights));
    ingot_json_put(row, "parameters", json_integer((json_int_t)f->parameters));
    ingot_json_put(row, "source_bytes", json_integer((json_int_t)f->source_bytes));
    ingot_json_put(row, "bits_per_weight", ingot_json_number(f->bits_per_weight));
    ingot_json_put(row, "file_bytes", json_integer((json_int_t)need->file_bytes));
    ingot_json_put(row, "disk_bytes",
                   json_integer((json_int_t)(need->disk_bytes + need->statistics_bytes)));
    ingot_json_put(row, "host_bytes", json_integer((json_int_t)need->host_bytes));
    ingot_json_put(row, "device_bytes", json_integer((json_int_t)need->device_bytes));
    ingot_json_put(row, "device_least_bytes", json_integer((json_int_t)need->device_least_bytes));
    ingot_json_put(row, "cards", cards);
}

/* Whichever product comes first makes the shared statistics; their time and their room count once,
 * and *makes says with which product. */
static void add_statistics(ingot_zoo_need *need, bool *makes, const ingot_manifest *m,
                           const ingot_shelf *shelf, const ingot_zoo_product *p,
                           const ingot_statistics_need *s, bool on_cpu, bool on_cuda,
                           json_t *counted) {
    ingot_error ignored;
    char key[33] = "";
    const uint64_t host = need->host_bytes, device = need->device_bytes;
    *makes = false;
    if (ingot_product_statistics(key, m, shelf, p, &ignored) != INGOT_OK || key[0] == '\0') {
        return;
    }
    if (on_cpu) {
        need->host_bytes = ingot_max_u64(need->host_bytes, s->cpu.host_bytes);
    }
    if (on_cuda) {
        need->host_bytes = ingot_max_u64(need->host_bytes, s->cuda.host_bytes);
        need->device_bytes = ingot_max_u64(need->device_bytes, s->cuda.device_bytes);
        need->device_least_bytes = ingot_max_u64(need->device_least_bytes, s->cuda_least_bytes);
    }
    need->is_host_scoring = need->is_host_scoring && need->host_bytes == host;
    need->is_device_scoring = need->is_device_scoring && need->device_bytes == device;
    *makes = json_object_get(counted, key) == NULL;
    need->statistics_bytes = *makes ? s->file_bytes : 0;
    ingot_json_put(counted, key, json_true());
}

/* The memory of whichever step takes most. */
static void count_memory(ingot_zoo_need *need, const ingot_forecast *f, bool on_cpu, bool on_cuda) {
    const ingot_memory_need *const cpu[] = {&f->cpu, &f->scoring_cpu};
    const ingot_memory_need *const cuda[] = {&f->cuda, &f->scoring_cuda};
    const uint64_t least[] = {f->cuda_least_bytes, f->scoring_least_bytes};
    for (unsigned i = 0; i < 2; i++) {
        const uint64_t host = need->host_bytes, device = need->device_bytes;
        if (on_cpu) {
            need->host_bytes = ingot_max_u64(need->host_bytes, cpu[i]->host_bytes);
        }
        if (on_cuda) {
            need->host_bytes = ingot_max_u64(need->host_bytes, cuda[i]->host_bytes);
            need->device_bytes = ingot_max_u64(need->device_bytes, cuda[i]->device_bytes);
            need->device_least_bytes = ingot_max_u64(need->device_least_bytes, least[i]);
        }
        need->is_host_scoring = i == 1 && need->host_bytes > host;
        need->is_device_scoring = i == 1 && need->device_bytes > device;
    }
}

static ingot_status plan_product(ingot_forecasts *plan, const ingot_manifest *m,
                                 const ingot_shelf *shelf, const ingot_zoo_product *p,
                                 ingot_zoo_need *need, json_t *row,
                                 const ingot_zoo_options *options, stopwatch *watch) {
    ingot_forecast f = {.seconds = NAN};
    ingot_error error = {0};
    json_t *json = NULL;
    char text[900];
    ingot_status status = forecast_of(&f, &json, m, p, options->with_tensors, watch, &error);
    if (status == INGOT_OK) {
        status = check_tokenizer(m, p, &f, &error);
    }
    if (status == INGOT_OK) {
        status = ingot_zoo_check_text(watch->texts, m, p, f.scoring_length, &error);
    }
    if (status == INGOT_ERR_NO_MEMORY || status == INGOT_ERR_INTERRUPTED) {
        return status;
    }
    if (status != INGOT_OK) {
        ingot_error_format(&error, text, sizeof text);
        need->problem = add_problem(plan, "%s: %s", p->name, text);
        need->status = status;
        json_decref(json);
        ingot_json_put(row, "problem", ingot_json_any_text(text));
        return INGOT_OK;
    }
    const bool on_cuda = may_use(m, true), on_cpu = may_use(m, false);
    *need = (ingot_zoo_need){
        .file_bytes = f.file_bytes, .disk_bytes = f.disk_bytes, .is_planned = true};
    count_memory(need, &f, on_cpu, on_cuda);
    const bool is_left = !json_is_true(json_object_get(row, "finished"));
    bool makes = false;
    if (is_left) {
        add_statistics(need, &makes, m, shelf, p, &f.statistics, on_cpu, on_cuda, watch->counted);
    }
    fill_json(row, &f, need);
    ingot_json_put(row, "seconds", ingot_json_number(f.seconds));
    ingot_json_put(row, "statistics_seconds",
                   makes ? ingot_json_number(f.statistics.seconds) : json_null());
    const double verifying = ingot_zoo_scoring_seconds(watch->texts, m, p, &f);
    ingot_json_put(row, "verify_seconds", ingot_json_number(verifying));
    plan->seconds += is_left ? f.seconds + (makes ? f.statistics.seconds : 0) +
                                   (isfinite(verifying) ? verifying : 0)
                             : 0;
    if (json != NULL) {
        ingot_json_put(row, "tensors", json_incref(json_object_get(json, "tensors")));
        json_decref(json);
    }
    return INGOT_OK;
}

/* ---- all of them ---------------------------------------------------------------------------- */

/* Whether a product's file is there already: it takes no more of the disk. */
static bool is_finished(const json_t *row) {
    return has_state(row, "done") || has_state(row, "converted");
}

/* name -> row; empty where there is no shelf yet. */
static ingot_status find_rows(json_t **out, const ingot_manifest *m, const ingot_shelf *shelf,
                              const ingot_zoo_options *options, ingot_error *error) {
    json_t *rows = NULL;
    *out = json_object();
    if (shelf == NULL) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_zoo_rows(&rows, m, shelf, options, true, error));
    for (size_t i = 0; i < json_array_size(rows); i++) {
        json_t *row = json_array_get(rows, i);
        ingot_json_put(*out, ingot_zoo_text_of(row, "product"), json_incref(row));
    }
    json_decref(rows);
    return INGOT_OK;
}

/* What a product that is to be made has on the disk already. */
static void find_present(ingot_zoo_need *need, const ingot_shelf *shelf, const ingot_zoo_product *p,
                         const json_t *row) {
    char name[INGOT_SHELF_PATH_SIZE], path[INGOT_SHELF_PATH_SIZE];
    const json_t *file = json_object_get(row, "file");
    json_int_t bytes, mtime_ns;
    if (shelf == NULL) {
        return;
    }
    need->remaining_bytes = ingot_remains_bytes(shelf, p->output);
    for (unsigned i = 0; ingot_product_file(name, file, i) && ingot_output_is_form(name, p->output);
         i++) {
        ingot_shelf_output(path, shelf, name);
        if (ingot_zoo_file_mark(&bytes, &mtime_ns, path)) {
            need->former_bytes += (uint64_t)bytes;
        }
    }
}

#define MAX_JOBS 256u /* --jobs has no more */

/* The disk while products are made in order, a few at a time. */
typedef struct disk_use {
    int64_t now, most; /* beyond what is there before the first of them */
    /* of the products that may still be at work: what goes when one is made, its former file and
     * what its conversion keeps beside the new one */
    uint64_t passing[MAX_JOBS];
    uint64_t count, jobs; /* products; at a time, 0: all of them */
} disk_use;

static void use_disk(disk_use *d, const ingot_zoo_need *need) {
    if (d->jobs != 0) {
        uint64_t *passing = &d->passing[d->count % d->jobs];
        d->now -= (int64_t)*passing;
        *passing = need->former_bytes + (need->disk_bytes - need->file_bytes);
    }
    d->count++;
    d->now += (int64_t)(need->disk_bytes + need->statistics_bytes);
    d->now -= (int64_t)ingot_min_u64(need->remaining_bytes, need->disk_bytes);
    d->most = d->now > d->most ? d->now : d->most;
}

static void check_disk(ingot_forecasts *plan) {
    char wanted[32], there[32];
    if (plan->room.disk_bytes != 0 && plan->disk_bytes > plan->room.disk_bytes) {
        ingot_format_bytes(wanted, sizeof wanted, (double)plan->disk_bytes);
        ingot_format_bytes(there, sizeof there, (double)plan->room.disk_bytes);
        plan->lacks_disk = true;
        (void)add_problem(
            plan,
            "the products that are left need %s of disk, there are %s (make room, put the "
            "shelf on another disk, make some with --only, or raise limits.disk_bytes)",
            wanted, there);
    }
}

ingot_status ingot_forecasts_make(ingot_forecasts *out, const ingot_manifest *manifest,
                                  const ingot_shelf *shelf, const ingot_zoo_options *options,
                                  const json_t *unused, unsigned use, ingot_error *error) {
    json_t *rows = NULL;
    void *memory;
    ingot_status status;
    stopwatch watch = {0};
    disk_use disk = {0};
    bool is_shelf_checked = false;
    *out = (ingot_forecasts){.products = json_array(), .problems = json_array(), .rate = NAN};
    INGOT_TRY(ingot_alloc_zero(&memory, manifest->product_count, sizeof *out->needs));
    out->needs = memory;
    watch.counted = json_object();
    watch.texts = json_object();
    find_room(&out->room, manifest, unused, (use & INGOT_FORECASTS_HERE) != 0);
    if ((use & INGOT_FORECASTS_TIMES) != 0) {
        open_stopwatch(&watch, manifest, options);
    }
    if ((use & INGOT_FORECASTS_HERE) != 0) {
        disk.jobs = ingot_min_u64(MAX_JOBS, ingot_zoo_jobs(manifest, options));
    }
    INGOT_GO(find_rows(&rows, manifest, shelf, options, error));
    for (uint64_t i = 0; i < manifest->product_count; i++) {
        const ingot_zoo_product *p = &manifest->products[i];
        ingot_zoo_need *need = &out->needs[i];
        if (!ingot_zoo_is_chosen(options, p)) {
            continue;
        }
        json_t *row = empty_row(p);
        const json_t *known = json_object_get(rows, p->name);
        const bool is_done = is_finished(known) && !options->is_forced;
        (void)json_array_append_new(out->products, row);
        ingot_json_put(row, "calibration",
                       ingot_product_has_data(p) ? json_string(manifest->texts[p->calibration].name)
                                                 : json_null());
        ingot_json_put(row, "finished", json_boolean(is_done));
        INGOT_GO(ingot_interrupt_check(error));
        INGOT_GO(plan_product(out, manifest, shelf, p, need, row, options, &watch));
        if (need->is_planned && (options->is_forced || !has_state(known, "done"))) {
            check_fits(out, p, need);
            check_card(out, p, need);
        }
        if (need->is_planned && !is_done) {
            if (!is_shelf_checked) { /* one that is finished need not be written to */
                check_shelf(out, manifest);
                is_shelf_checked = true;
            }
            INGOT_GO(check_place(out, manifest, shelf, p, known, need, options->is_forced));
        }
        if (!is_done && need->is_planned) {
            find_present(need, shelf, p, known);
            use_disk(&disk, need);
        }
    }
    out->disk_bytes = (uint64_t)disk.most;
    check_disk(out);
    out->rate = watch.speeds != NULL ? ingot_speeds_products(watch.speeds) : NAN;
done:
    close_stopwatch(&watch);
    json_decref(rows);
    return status;
}

void ingot_forecasts_free(ingot_forecasts *plan) {
    ingot_free(plan->needs);
    json_decref(plan->products);
    json_decref(plan->problems);
    *plan = (ingot_forecasts){0};
}

/* ---- the subcommand ------------------------------------------------------------------------- */

static void print_cards(const json_t *row) {
    const json_t *cards = json_object_get(row, "cards");
    for (size_t i = 0; i < json_array_size(cards); i++) {
        const json_t *card = json_array_get(cards, i);
        if (json_is_true(json_object_get(card, "fits"))) {
            printf("  %7.0fk", ingot_json_number_at(card, "tokens") / 1000);
        } else {
            printf("  %8s", "-");
        }
    }
}

static void print_tensors(const json_t *row) {
    const json_t *tensors = json_object_get(row, "tensors");
    for (size_t i = 0; i < json_array_size(tensors); i++) {
        const json_t *t = json_array_get(tensors, i);
        const char *kind = ingot_zoo_text_of(t, "kind"), *reason = ingot_zoo_text_of(t, "reason");
        const double bits = ingot_json_number_at(t, "bits"),
                     group = ingot_json_number_at(t, "group");
        printf("    %-48s %-9s", ingot_zoo_text_of(t, "name"), kind != NULL ? kind : "-");
        if (isfinite(bits)) {
            printf("  W%.0f", bits);
        }
        if (isfinite(group)) {
            printf(" g%.0f", group);
        }
        printf("  %s\n", reason != NULL ? reason : "");
    }
}

static void print_seconds(char text[32], double seconds) {
    (void)snprintf(text, 32, "-");
    if (isfinite(seconds)) {
        ingot_format_seconds(text, 32, seconds);
    }
}

static void print_unused(const json_t *unused) {
    char size[32];
    if (json_array_size(unused) > 0) {
        ingot_format_bytes(size, sizeof size, (double)bytes_of(unused));
        printf("%zu shared files (%s) that no product uses any more; run removes them first\n",
               json_array_size(unused), size);
    }
}

/* "cuda:0, cpu" */
static void print_devices(const ingot_manifest *m) {
    for (uint64_t i = 0; i < m->device_count; i++) {
        printf("%s%s", i > 0 ? ", " : "", m->devices[i]);
    }
}

static void print_plan(const ingot_forecasts *plan, const ingot_manifest *manifest) {
    char a[32], b[32], c[32], d[32];
    printf("%-28s %9s %7s %9s %9s %9s  %8s  %8s  %8s\n", "product", "size", "bits", "host",
           "device", "time", "24 GB", "40 GB", "80 GB");
    for (size_t i = 0; i < json_array_size(plan->products); i++) {
        const json_t *row = json_array_get(plan->products, i);
        if (json_is_string(json_object_get(row, "problem"))) {
            printf("%-28s cannot be made\n", ingot_zoo_text_of(row, "product"));
            continue;
        }
        ingot_format_bytes(a, sizeof a, ingot_json_number_at(row, "file_bytes"));
        ingot_format_bytes(b, sizeof b, ingot_json_number_at(row, "host_bytes"));
        ingot_format_bytes(c, sizeof c, ingot_json_number_at(row, "device_bytes"));
        const double statistics = ingot_json_number_at(row, "statistics_seconds");
        const double verifying = ingot_json_number_at(row, "verify_seconds");
        print_seconds(d, ingot_json_number_at(row, "seconds") +
                             (isfinite(statistics) ? statistics : 0) +
                             (isfinite(verifying) ? verifying : 0));
        printf("%-28s %9s %7.3f %9s %9s %9s", ingot_zoo_text_of(row, "product"), a,
               ingot_json_number_at(row, "bits_per_weight"), b, c, d);
        print_cards(row);
        printf("%s\n", json_is_true(json_object_get(row, "finished")) ? "  finished" : "");
        print_tensors(row);
    }
    ingot_format_bytes(a, sizeof a, (double)plan->disk_bytes);
    ingot_format_bytes(b, sizeof b, (double)plan->room.disk_bytes);
    ingot_format_bytes(c, sizeof c, (double)plan->room.host_bytes);
    print_seconds(d, plan->seconds);
    printf("%zu products on ", json_array_size(plan->products));
    print_devices(manifest);
    printf("; those that are left need %s of disk (%s free) and about %s, one after another; host "
           "memory %s; under a card: thousands of tokens of KV cache beside the weights\n",
           a, b, d, c);
    for (size_t i = 0; i < json_array_size(plan->problems); i++) {
        (void)fprintf(stderr, "ingot-zoo: %s\n",
                      json_string_value(json_array_get(plan->problems, i)));
    }
}

static json_t *devices_json(const ingot_manifest *m) {
    json_t *list = json_array();
    for (uint64_t i = 0; i < m->device_count; i++) {
        (void)json_array_append_new(list, json_string(m->devices[i]));
    }
    return list;
}

ingot_status ingot_zoo_plan(ingot_zoo_result *result, const ingot_manifest *manifest,
                            const ingot_zoo_options *options, ingot_error *error) {
    ingot_forecasts plan = {0};
    ingot_shelf shelf;
    if (ingot_path_exists(manifest->shelf) && !ingot_path_is_directory(manifest->shelf)) {
        return ingot_error_set(error, INGOT_ERR_IO, manifest->shelf, NULL, "move it away",
                               "a file is in the place of the shelf's folder");
    }
    const bool has_shelf = ingot_shelf_open(&shelf, manifest->shelf, false, NULL) == INGOT_OK;
    json_t *unused = NULL;
    ingot_status status =
        has_shelf ? ingot_leftovers_find(&unused, manifest, &shelf, error) : INGOT_OK;
    if (status == INGOT_OK) {
        status = ingot_forecasts_make(&plan, manifest, has_shelf ? &shelf : NULL, options, unused,
                                      INGOT_FORECASTS_HERE | INGOT_FORECASTS_TIMES, error);
    }
    if (status == INGOT_OK) {
        ingot_json_put(result->json, "products", json_incref(plan.products));
        ingot_json_put(result->json, "problems", json_incref(plan.problems));
        ingot_json_put(result->json, "devices", devices_json(manifest));
        ingot_json_put(result->json, "room",
                       json_pack("{s:I, s:I, s:I, s:I}", "host_bytes",
                                 (json_int_t)plan.room.host_bytes, "device_bytes",
                                 (json_int_t)plan.room.device_bytes, "device_free_bytes",
                                 (json_int_t)plan.room.device_free_bytes, "disk_bytes",
                                 (json_int_t)plan.room.disk_bytes));
        ingot_json_put(result->json, "seconds", ingot_json_number(plan.seconds));
        ingot_json_put(result->json, "product_rate", ingot_json_number(plan.rate));
        ingot_json_put(result->json, "disk_bytes", json_integer((json_int_t)plan.disk_bytes));
        ingot_json_put(result->json, "unused", unused != NULL ? json_incref(unused) : json_array());
        result->exit_code = json_array_size(plan.problems) > 0 ? 2 : 0;
        if (!options->as_json) {
            print_plan(&plan, manifest);
            print_unused(unused);
        }
    }
    json_decref(unused);
    ingot_forecasts_free(&plan);
    return status;
}
