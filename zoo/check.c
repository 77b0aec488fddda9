/* ingot-zoo verify: every file of the shelf against its record, every record against the manifest
 * and the model it came from, and what lies there that nobody made (spec/zoo.md, section 6).
 *
 * Each product is read once, each model once, at the speed of the disk; what follows from the
 * weights themselves was verified when the product was made. */
#include "common/files.h"
#include "common/progress.h"
#include "format/digest.h"
#include "format/ingot.h"
#include "zoo/product.h"
#include "zoo/remains.h"
#include "zoo/source.h"
#include "zoo/zoo.h"

#include <fts.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef enum check_verdict {
    CHECK_WHOLE,
    CHECK_MISSING,
    CHECK_DAMAGED,
    CHECK_STALE,
    CHECK_OVER,
    CHECK_UNREADABLE, /* nothing is known of it */
    CHECK_COUNT
} check_verdict;

static const char *const verdict_names[CHECK_COUNT] = {"whole", "missing",     "damaged",
                                                       "stale", "over a gate", "unreadable"};

typedef struct checker {
    const ingot_manifest *manifest;
    const ingot_zoo_options *options;
    ingot_shelf shelf;
    ingot_zoo_source **sources; /* [model_count], opened at need */
    json_t *known;              /* path below the shelf -> true */
    uint64_t counts[CHECK_COUNT], bytes;
    unsigned threads;
    ingot_progress progress;
    json_t *products, *foreign;
} checker;

/* ---- one product ---------------------------------------------------------------------------- */

static void know(checker *c, const char *path) {
    ingot_json_put(c->known, path, json_true());
}

/* The files of a product: of a set every shard. */
static void know_files(checker *c, const json_t *file) {
    char path[INGOT_SHELF_PATH_SIZE];
    for (unsigned i = 0; ingot_product_file(path, file, i); i++) {
        know(c, path);
    }
}

/* The place of a product, unless what lies there is on no record. */
static void know_place(checker *c, const ingot_zoo_product *p, const json_t *record) {
    if (ingot_product_check_place(&c->shelf, record, p, NULL) == INGOT_OK) {
        know(c, p->output);
    }
}

/* Those of a product that is not asked about. */
static void know_other(checker *c, const ingot_zoo_product *p) {
    json_t *record = NULL;
    const ingot_status status = ingot_shelf_read_record(&record, &c->shelf, p->name, NULL);
    if (status == INGOT_OK || status == INGOT_ERR_NOT_FOUND) {
        know_files(c, json_object_get(record, "file"));
        know_place(c, p, record);
    } else {
        know(c, p->output); /* it may be on the record that is damaged */
    }
    json_decref(record);
}

/* The bytes: the file has the root that is on record, and is whole. */
static ingot_status check_file(checker *c, const json_t *file, const char *path,
                               check_verdict *verdict, char reason[160], ingot_error *error) {
    const char *root = ingot_zoo_text_of(file, "root");
    ingot_container *container = NULL;
    ingot_info info;
    char hex[33];
    *verdict = CHECK_DAMAGED;
    ingot_status status = ingot_open(&container, path, error);
    if (status == INGOT_OK) {
        ingot_get_info(container, &info);
        ingot_digest_hex(hex, info.root);
        c->bytes += info.file_bytes;
        if (root == NULL || strcmp(hex, root) != 0) {
            (void)snprintf(reason, 160, "another file is in its place");
            ingot_close(container);
            return INGOT_OK;
        }
        status = ingot_check_full(container, c->threads, ingot_progress_bytes, NULL, error);
        ingot_close(container);
    }
    if (status == INGOT_ERR_NO_MEMORY || status == INGOT_ERR_INTERRUPTED) {
        return status;
    }
    if (status == INGOT_OK) {
        *verdict = CHECK_WHOLE;
    } else {
        *verdict = status == INGOT_ERR_NOT_FOUND ? CHECK_MISSING
                   : status == INGOT_ERR_IO      ? CHECK_UNREADABLE
                                                 : CHECK_DAMAGED;
        (void)snprintf(reason, 160, "%s: %.120s", ingot_status_code(status), error->reason);
    }
    return INGOT_OK;
}

static ingot_status check_source(checker *c, const ingot_zoo_product *p, const char *path,
                                 check_verdict *verdict, char reason[160], ingot_error *error) {
    ingot_zoo_source **source = &c->sources[p->model];
    bool is_same = false;
    ingot_status status = INGOT_OK;
    if (*source == NULL) {
        status = ingot_zoo_source_open(source, c->manifest->models[p->model].path, error);
    }
    if (status == INGOT_OK) {
        status = ingot_zoo_source_compare(&is_same, *source, path, reason, error);
    }
    if (status == INGOT_ERR_NO_MEMORY || status == INGOT_ERR_INTERRUPTED) {
        return status;
    }
    if (status != INGOT_OK) {
        (void)snprintf(reason, 160, "its model cannot be read: %.120s", error->reason);
    }
    *verdict = is_same ? *verdict : status == INGOT_ERR_IO ? CHECK_UNREADABLE : CHECK_STALE;
    return INGOT_OK;
}

static bool is_equal(const json_t *object, const char *key, const char *value) {
    const char *text = ingot_zoo_text_of(object, key);
    return text != NULL && strcmp(text, value) == 0;
}

/* From the cheapest to the dearest; the first that says no ends it.  failure: what its last run
 * failed for, in the words of its record; empty where it did not fail. */
static ingot_status check_product(checker *c, const ingot_zoo_product *p, check_verdict *verdict,
                                  char reason[160], char failure[INGOT_ERROR_TEXT_SIZE],
                                  ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE];
    json_t *record = NULL;
    ingot_product_keys keys;
    *verdict = CHECK_MISSING;
    INGOT_TRY(ingot_product_make_keys(&keys, c->manifest, p, "", error));
    ingot_status status = ingot_shelf_read_record(&record, &c->shelf, p->name, error);
    if (status == INGOT_ERR_IO) {
        *verdict = CHECK_UNREADABLE;
        (void)snprintf(reason, 160, "its record cannot be read: %.120s", error->reason);
        know_other(c, p);
        return INGOT_OK;
    }
    if (status != INGOT_OK) {
        *verdict = status == INGOT_ERR_NOT_FOUND ? CHECK_MISSING : CHECK_DAMAGED;
        (void)snprintf(reason, 160,
                       status == INGOT_ERR_NOT_FOUND ? "it was never made"
                                                     : "its record is damaged");
        know_other(c, p);
        return status == INGOT_ERR_NO_MEMORY ? status : INGOT_OK;
    }
    const json_t *file = json_object_get(record, "file");
    const char *name = ingot_zoo_text_of(file, "path");
    const char *message = ingot_zoo_text_of(record, "message");
    if (is_equal(record, "state", "failed") && message != NULL) {
        (void)snprintf(failure, INGOT_ERROR_TEXT_SIZE, "%s", message);
    }
    know_files(c, file);
    ingot_shelf_output(path, &c->shelf, name != NULL ? name : p->output);
    know_place(c, p, record);
    if (ingot_product_check_readable(&c->shelf, file, error) != INGOT_OK) {
        *verdict = CHECK_UNREADABLE;
        (void)snprintf(reason, 160, "%.159s", error->reason);
        goto done;
    }
    if (name == NULL || !ingot_output_exists(path)) {
        (void)snprintf(reason, 160, "%s",
                       name == NULL ? "it was never finished" : ingot_product_gone(path));
        goto done;
    }
    INGOT_GO(check_file(c, file, path, verdict, reason, error));
    if (*verdict == CHECK_WHOLE && !is_equal(record, "convert_key", keys.convert)) {
        *verdict = CHECK_STALE;
        (void)snprintf(reason, 160, "the recipe, the text or the output was changed");
    }
    if (*verdict == CHECK_WHOLE) {
        INGOT_GO(check_source(c, p, path, verdict, reason, error));
    }
    if (*verdict == CHECK_WHOLE && ingot_product_gates(p, record, reason) == INGOT_GATES_FAILED) {
        *verdict = CHECK_OVER;
    }
    if (*verdict == CHECK_WHOLE &&
        (!is_equal(record, "state", "done") || !is_equal(record, "evaluate_key", keys.evaluate))) {
        *verdict = CHECK_STALE;
        (void)snprintf(reason, 160, "it was not verified and scored as the manifest asks");
    }
done:
    json_decref(record);
    return status;
}

static void add_product(checker *c, const ingot_zoo_product *p, check_verdict verdict,
                        const char *reason, const char *failure) {
    char text[160 + 32 + INGOT_ERROR_TEXT_SIZE];
    json_t *row = json_object();
    const bool is_news = failure[0] != '\0' && strstr(failure, reason) == NULL;
    (void)snprintf(text, sizeof text, "%s%s%s", reason, is_news ? "; its last run failed: " : "",
                   is_news ? failure : "");
    c->counts[verdict]++;
    ingot_json_put(row, "product", json_string(p->name));
    ingot_json_put(row, "verdict", json_string(verdict_names[verdict]));
    ingot_json_put(row, "reason", ingot_json_any_text(text[0] != '\0' ? text : NULL));
    (void)json_array_append_new(c->products, row);
    if (!c->options->as_json && verdict != CHECK_WHOLE) {
        ingot_progress_line(&c->progress, "%s: %s: %s", p->name, verdict_names[verdict], text);
    }
}

static ingot_status check_products(checker *c, ingot_error *error) {
    for (uint64_t i = 0; i < c->manifest->product_count; i++) {
        const ingot_zoo_product *p = &c->manifest->products[i];
        check_verdict verdict;
        char reason[160] = "", failure[INGOT_ERROR_TEXT_SIZE] = "";
        if (!ingot_zoo_is_chosen(c->options, p)) {
            know_other(c, p);
            continue;
        }
        INGOT_TRY(ingot_interrupt_check(error));
        INGOT_TRY(check_product(c, p, &verdict, reason, failure, error));
        add_product(c, p, verdict, reason, failure);
        ingot_progress_update(&c->progress, (double)(i + 1));
    }
    return INGOT_OK;
}

/* ---- what nobody made ----------------------------------------------------------------------- */

static bool is_own(const checker *c, const char *path) {
    static const char *const reports[] = {"report.html", "report.csv", "report.json"};
    bool is = json_object_get(c->known, path) != NULL;
    for (uint64_t i = 0; i < c->manifest->product_count && !is; i++) { /* one at work */
        is = ingot_remains_are_of(path, c->manifest->products[i].output);
    }
    for (unsigned i = 0; i < sizeof reports / sizeof *reports; i++) {
        is = is || strcmp(path, reports[i]) == 0;
    }
    return is;
}

static void add_foreign(checker *c, const char *path) {
    const ingot_zoo_product *of = NULL;
    for (uint64_t i = 0; i < c->manifest->product_count && of == NULL; i++) {
        const ingot_zoo_product *p = &c->manifest->products[i];
        of = p->shard_bytes != 0 && ingot_output_is_form(path, p->output) ? p : of;
        of = strcmp(path, p->output) == 0 ? p : of;
    }
    (void)json_array_append_new(c->foreign, ingot_json_any_text(path));
    if (!c->options->as_json && of != NULL) {
        ingot_progress_line(&c->progress, "%s: foreign: in the place of %s, and on no record", path,
                            of->name);
    } else if (!c->options->as_json) {
        ingot_progress_line(&c->progress, "%s: foreign: no product of the manifest", path);
    }
}

static int by_name(const FTSENT **a, const FTSENT **b) {
    return strcmp((*a)->fts_name, (*b)->fts_name);
}

static ingot_status find_foreign(checker *c, ingot_error *error) {
    char *const roots[] = {c->shelf.root, NULL};
    const size_t start = strlen(c->shelf.root) + 1;
    FTS *tree = fts_open(roots, FTS_PHYSICAL | FTS_COMFOLLOW | FTS_NOCHDIR, by_name);
    if (tree == NULL) {
        return ingot_error_set(error, INGOT_ERR_IO, c->shelf.root, NULL, NULL,
                               "the shelf cannot be read");
    }
    for (FTSENT *entry = fts_read(tree); entry != NULL; entry = fts_read(tree)) {
        if (entry->fts_info == FTS_DNR || entry->fts_info == FTS_ERR) {
            const ingot_status status =
                ingot_error_set(error, INGOT_ERR_IO, entry->fts_path, NULL, "check its permissions",
                                "the folder cannot be read: %s", strerror(entry->fts_errno));
            (void)fts_close(tree);
            return status;
        }
        if (entry->fts_info == FTS_D && strcmp(entry->fts_name, INGOT_SHELF_FOLDER) == 0) {
            (void)fts_set(tree, entry, FTS_SKIP);
        } else if (entry->fts_info != FTS_D && entry->fts_info != FTS_DP &&
                   !is_own(c, entry->fts_path + start)) {
            add_foreign(c, entry->fts_path + start);
        }
    }
    (void)fts_close(tree);
    return INGOT_OK;
}

/* ---- the subcommand ------------------------------------------------------------------------- */

static void report(const checker *c, ingot_zoo_result *result, double seconds) {
    const uint64_t whole = c->counts[CHECK_WHOLE], count = json_array_size(c->products);
    const size_t foreign = json_array_size(c->foreign);
    json_t *counts = json_object();
    for (unsigned i = 0; i < CHECK_COUNT; i++) {
        ingot_json_put(counts, verdict_names[i], json_integer((json_int_t)c->counts[i]));
    }
    ingot_json_put(result->json, "products", json_incref(c->products));
    ingot_json_put(result->json, "foreign", json_incref(c->foreign));
    ingot_json_put(result->json, "verdicts", counts);
    ingot_json_put(result->json, "bytes", json_integer((json_int_t)c->bytes));
    ingot_json_put(result->json, "seconds", ingot_json_number(seconds));
    result->exit_code = c->counts[CHECK_UNREADABLE] > 0  ? 2
                        : whole == count && foreign == 0 ? 0
                                                         : 1;
    if (!c->options->as_json) {
        char bytes[32], time[32];
        ingot_format_bytes(bytes, sizeof bytes, (double)c->bytes);
        ingot_format_seconds(time, sizeof time, seconds);
        printf("%llu products: %llu whole", (unsigned long long)count, (unsigned long long)whole);
        for (unsigned i = CHECK_MISSING; i < CHECK_COUNT; i++) {
            printf(", %llu %s", (unsigned long long)c->counts[i], verdict_names[i]);
        }
        printf("; %zu foreign files; %s in %s\n", foreign, bytes, time);
    }
}

static unsigned thread_count(const ingot_manifest *m, const ingot_zoo_options *options) {
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    return (unsigned)(options->threads != 0    ? options->threads
                      : m->limits.threads != 0 ? m->limits.threads
                      : cpus > 0               ? (uint64_t)cpus
                                               : 1);
}

ingot_status ingot_zoo_verify(ingot_zoo_result *result, const ingot_manifest *manifest,
                              const ingot_zoo_options *options, ingot_error *error) {
    checker c = {.manifest = manifest,
                 .options = options,
                 .threads = thread_count(manifest, options),
                 .known = json_object(),
                 .products = json_array(),
                 .foreign = json_array()};
    const double start = ingot_clock_seconds();
    void *memory = NULL;
    ingot_status status = ingot_shelf_open(&c.shelf, manifest->shelf, false, error);
    INGOT_GO(status);
    INGOT_GO(ingot_alloc_zero(&memory, manifest->model_count, sizeof(ingot_zoo_source *)));
    c.sources = memory;
    ingot_progress_begin(&c.progress, "verifying", "products", (double)manifest->product_count,
                         false);
    INGOT_GO(check_products(&c, error));
    INGOT_GO(find_foreign(&c, error));
    ingot_progress_end(&c.progress);
    report(&c, result, ingot_clock_seconds() - start);
    *error = (ingot_error){0};
done:
    for (uint64_t i = 0; c.sources != NULL && i < manifest->model_count; i++) {
        ingot_zoo_source_close(c.sources[i]);
    }
    ingot_free(c.sources);
    json_decref(c.known);
    json_decref(c.products);
    json_decref(c.foreign);
    return status;
}
