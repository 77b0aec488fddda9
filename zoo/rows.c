/* Rows of status and report, from the records of a shelf. */
#include "zoo/rows.h"

#include "common/files.h"
#include "zoo/cluster.h"

#include <math.h>
#include <string.h>

#define LOG_TAIL_BYTES 4096u

/* Fingerprints of the models' folders, taken once each. */
static json_t *take_fingerprints(const ingot_manifest *m) {
    json_t *list = json_array();
    for (uint64_t i = 0; i < m->model_count; i++) {
        char hex[33];
        const bool is_taken = ingot_zoo_fingerprint(hex, m->models[i].path, NULL) == INGOT_OK;
        (void)json_array_append_new(list, json_string(is_taken ? hex : ""));
    }
    return list;
}

static json_t *gate_json(double limit, const json_t *verify, const char *key) {
    const double value = ingot_json_number_at(verify, key);
    if (isnan(limit)) {
        return json_null();
    }
    json_t *gate = json_object();
    ingot_json_put(gate, "limit", ingot_json_number(limit));
    ingot_json_put(gate, "value", ingot_json_number(value));
    ingot_json_put(gate, "passed", isnan(value) ? json_null() : json_boolean(value <= limit));
    return gate;
}

static json_t *gates_json(const ingot_zoo_product *p, const json_t *record) {
    const json_t *verify = json_object_get(record, "verify");
    json_t *gates = json_object();
    char reason[160];
    const ingot_gate_verdict verdict = ingot_product_gates(p, record, reason);
    ingot_json_put(gates, "verdict", json_string(ingot_gate_verdict_name(verdict)));
    ingot_json_put(gates, "reason", ingot_json_any_text(reason[0] != '\0' ? reason : NULL));
    ingot_json_put(gates, "ppl_ratio", gate_json(p->max_ppl_ratio, verify, "ppl_ratio"));
    ingot_json_put(gates, "kld_mean", gate_json(p->max_kld, verify, "kld_mean"));
    ingot_json_put(gates, "accuracy_drop",
                   gate_json(p->max_accuracy_drop, verify, "accuracy_drop"));
    return gates;
}

/* How far a product at work is: the last "block 3/32" of its log, or "block 3 of 32" of its
 * statistics; empty where there is none. */
static void find_progress(char progress[160], const ingot_shelf *shelf, const char *product) {
    char path[INGOT_SHELF_PATH_SIZE], text[LOG_TAIL_BYTES + 1];
    ingot_file *file = NULL;
    unsigned done, total;
    progress[0] = '\0';
    ingot_shelf_path(path, shelf, INGOT_SHELF_LOG, product);
    if (ingot_file_open(&file, path, NULL) != INGOT_OK) {
        return;
    }
    const uint64_t size = ingot_file_size(file);
    const uint64_t tail = size < LOG_TAIL_BYTES ? size : LOG_TAIL_BYTES;
    const bool is_read = ingot_file_read_at(file, text, tail, size - tail, NULL) == INGOT_OK;
    text[is_read ? tail : 0] = '\0';
    ingot_file_close(file);
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (sscanf(line, "block %u/%u", &done, &total) == 2 ||
            sscanf(line, "block %u of %u", &done, &total) == 2) {
            (void)snprintf(progress, 160, "block %u of %u", done, total);
        } else if (strncmp(line, "plan:", 5) == 0) {
            progress[0] = '\0'; /* of an earlier run */
        }
    }
}

static ingot_status make_row(json_t **out, const ingot_manifest *m, const ingot_shelf *shelf,
                             const ingot_zoo_product *p, const char *fingerprint, bool with_figures,
                             ingot_error *error) {
    static const char *const figures[] = {"file", "convert", "verify", "layers", "steps"};
    ingot_product_keys keys;
    json_t *record = NULL;
    char reason[160], taken[INGOT_ERROR_TEXT_SIZE];
    ingot_error place = {0};
    INGOT_TRY(ingot_product_make_keys(&keys, m, p, fingerprint, error));
    const ingot_status status = ingot_shelf_read_record(&record, shelf, p->name, error);
    const ingot_product_state state = ingot_product_judge(shelf, record, &keys, reason);
    const char *recorded = ingot_zoo_text_of(record, "state");
    const bool is_failed = recorded != NULL && strcmp(recorded, "failed") == 0;
    const bool is_readable = state != INGOT_STATE_UNREADABLE; /* if not, runs fail for that */
    const char *name = ingot_shelf_is_locked(shelf, p->name) ? "running"
                       : is_failed && is_readable            ? recorded
                                                             : ingot_product_state_name(state);
    if (status == INGOT_ERR_INPUT) {
        (void)snprintf(reason, sizeof reason, "its record is damaged");
    } else if (status == INGOT_ERR_IO) {
        (void)snprintf(reason, sizeof reason, "its record cannot be read: %.120s", error->reason);
    }
    if (strcmp(name, "running") == 0) {
        find_progress(reason, shelf, p->name);
    }
    /* In the tool's own words, whole: a long path in front would leave none of them. */
    const char *message = ingot_zoo_text_of(record, "message");
    bool is_told = strcmp(name, "failed") == 0 && message != NULL;
    /* It will fail for that, whatever it failed for before. */
    if ((status == INGOT_OK || status == INGOT_ERR_NOT_FOUND) && strcmp(name, "running") != 0 &&
        ingot_product_check_place(shelf, record, p, &place) != INGOT_OK) {
        ingot_error_format(&place, taken, sizeof taken);
        message = taken;
        is_told = true;
    }
    json_t *row = json_object();
    ingot_json_put(row, "product", json_string(p->name));
    ingot_json_put(row, "model", json_string(m->models[p->model].name));
    ingot_json_put(row, "recipe", json_string(m->recipes[p->recipe].name));
    ingot_json_put(row, "output", json_string(p->output));
    ingot_json_put(row, "state", json_string(name));
    ingot_json_put(row, "reason",
                   ingot_json_any_text(is_told             ? message
                                       : reason[0] != '\0' ? reason
                                                           : NULL));
    ingot_json_put(row, "gates", gates_json(p, record));
    for (size_t i = 0; i < sizeof figures / sizeof *figures && with_figures; i++) {
        json_t *value = json_object_get(record, figures[i]);
        ingot_json_put(row, figures[i], value != NULL ? json_incref(value) : json_null());
    }
    json_decref(record);
    *out = row;
    *error = (ingot_error){0};
    return status == INGOT_ERR_NO_MEMORY ? status : INGOT_OK;
}

/* Of one model: whether no other row is both smaller and better. */
typedef struct score {
    json_t *row;
    const char *model;
    double bytes, divergence;
} score;

static bool is_beaten(const score *a, const score *b) {
    return strcmp(a->model, b->model) == 0 && b->bytes <= a->bytes &&
           b->divergence <= a->divergence && (b->bytes < a->bytes || b->divergence < a->divergence);
}

static ingot_status mark_fronts(json_t *rows) {
    void *memory;
    size_t count = 0;
    INGOT_TRY(ingot_alloc_zero(&memory, json_array_size(rows) + 1, sizeof(score)));
    score *scores = memory;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        json_t *row = json_array_get(rows, i);
        const score s = {.row = row,
                         .model = ingot_zoo_text_of(row, "model"),
                         .bytes = ingot_json_number_at(json_object_get(row, "file"), "bytes"),
                         .divergence =
                             ingot_json_number_at(json_object_get(row, "verify"), "kld_mean")};
        ingot_json_put(row, "front", json_false());
        if (isfinite(s.bytes) && isfinite(s.divergence)) {
            scores[count++] = s;
        }
    }
    for (size_t i = 0; i < count; i++) {
        bool is_best = true;
        for (size_t k = 0; k < count && is_best; k++) {
            is_best = !is_beaten(&scores[i], &scores[k]);
        }
        ingot_json_put(scores[i].row, "front", json_boolean(is_best));
    }
    ingot_free(scores);
    return INGOT_OK;
}

/* What Slurm says of a product that is not finished: it waits, or runs, or why it did not end. */
static void add_cluster(json_t *row, json_t *task) {
    const char *state = ingot_zoo_text_of(row, "state"), *said = ingot_zoo_text_of(task, "state");
    char reason[160];
    ingot_json_put(row, "slurm", task != NULL ? json_incref(task) : json_null());
    if (task == NULL || said == NULL || strcmp(state, "done") == 0 ||
        strcmp(state, "running") == 0 || strcmp(said, "COMPLETED") == 0) {
        return;
    }
    (void)snprintf(reason, sizeof reason, "job %.40s %.40s %.30s", ingot_zoo_text_of(task, "job"),
                   said, ingot_zoo_text_of(task, "node"));
    if (ingot_cluster_is_pending(said)) {
        ingot_json_put(row, "state",
                       json_string(strcmp(said, "PENDING") == 0 ? "queued" : "running"));
        ingot_json_put(row, "reason", ingot_json_any_text(reason));
    } else if (strcmp(state, "failed") != 0) {
        ingot_json_put(row, "reason", ingot_json_any_text(reason));
    }
}

ingot_status ingot_zoo_rows(json_t **out, const ingot_manifest *manifest, const ingot_shelf *shelf,
                            const ingot_zoo_options *options, bool with_figures,
                            ingot_error *error) {
    json_t *rows = json_array(), *prints = take_fingerprints(manifest), *tasks = NULL;
    ingot_status status = ingot_cluster_states(&tasks, shelf, error);
    for (uint64_t i = 0; i < manifest->product_count && status == INGOT_OK; i++) {
        const ingot_zoo_product *p = &manifest->products[i];
        json_t *row = NULL;
        if (ingot_zoo_is_chosen(options, p)) {
            const char *print = json_string_value(json_array_get(prints, p->model));
            status =
                make_row(&row, manifest, shelf, p, print != NULL ? print : "", with_figures, error);
            if (row != NULL) {
                add_cluster(row, json_object_get(tasks, p->name));
            }
            (void)json_array_append_new(rows, row);
        }
    }
    json_decref(prints);
    json_decref(tasks);
    if (status == INGOT_OK && with_figures) {
        status = mark_fronts(rows);
    }
    *out = status == INGOT_OK ? rows : NULL;
    if (status != INGOT_OK) {
        json_decref(rows);
    }
    return status;
}
