/* ingot-zoo report and status: tables for people, and the files of a report. */
#include "zoo/report.h"

#include "common/files.h"
#include "zoo/rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define REPORT_FORMAT "ingot-zoo-report"

/* ---- comma-separated values ----------------------------------------------------------------- */

typedef struct column {
    const char *name, *part, *key; /* part NULL: a member of the row itself */
} column;

static const column columns[] = {
    {"product", NULL, "product"},
    {"model", NULL, "model"},
    {"recipe", NULL, "recipe"},
    {"output", NULL, "output"},
    {"state", NULL, "state"},
    {"reason", NULL, "reason"},
    {"gates", "gates", "verdict"},
    {"gates_reason", "gates", "reason"},
    {"front", NULL, "front"},
    {"bytes", "file", "bytes"},
    {"shards", "file", "shards"},
    {"root", "file", "root"},
    {"bits_per_weight", "convert", "bits_per_weight"},
    {"fallbacks", "convert", "fallbacks"},
    {"perplexity", "verify", "perplexity"},
    {"source_perplexity", "verify", "source_perplexity"},
    {"ppl_ratio", "verify", "ppl_ratio"},
    {"kld_mean", "verify", "kld_mean"},
    {"kld_p99", "verify", "kld_p99"},
    {"top1", "verify", "top1"},
    {"accuracy", "verify", "accuracy"},
    {"accuracy_drop", "verify", "accuracy_drop"},
    {"convert_seconds", "convert", "seconds"},
    {"peak_host_bytes", "convert", "peak_host_bytes"},
    {"peak_device_bytes", "convert", "peak_device_bytes"},
};

/* Quoted where it must be; a value that a spreadsheet would take for a formula gets a blank. */
static void add_csv_text(ingot_markup *out, const char *text) {
    ingot_markup_add(out, "\"%s", strchr("=+-@", text[0]) != NULL && text[0] != '\0' ? " " : "");
    for (const char *c = text; *c != '\0'; c++) {
        ingot_markup_add(out, *c == '"' ? "\"\"" : "%c", *c);
    }
    ingot_markup_add(out, "\"");
}

static void add_csv_value(ingot_markup *out, const json_t *value) {
    if (json_is_string(value)) {
        add_csv_text(out, json_string_value(value));
    } else if (json_is_integer(value)) {
        ingot_markup_add(out, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    } else if (json_is_real(value)) {
        ingot_markup_add(out, "%.9g", json_real_value(value));
    } else if (json_is_boolean(value)) {
        ingot_markup_add(out, json_is_true(value) ? "true" : "false");
    }
}

void ingot_zoo_csv(ingot_markup *out, const json_t *rows) {
    const size_t count = sizeof columns / sizeof *columns;
    for (size_t i = 0; i < count; i++) {
        ingot_markup_add(out, "%s%s", i > 0 ? "," : "", columns[i].name);
    }
    ingot_markup_add(out, "\r\n");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        for (size_t k = 0; k < count; k++) {
            const json_t *part =
                columns[k].part != NULL ? json_object_get(row, columns[k].part) : row;
            ingot_markup_add(out, k > 0 ? "," : "");
            add_csv_value(out, json_object_get(part, columns[k].key));
        }
        ingot_markup_add(out, "\r\n");
    }
}

/* ---- for people ----------------------------------------------------------------------------- */

static void print_figure(double value, int width, int decimals) {
    if (isfinite(value)) {
        printf("  %*.*f", width, decimals, value);
    } else {
        printf("  %*s", width, "-");
    }
}

static int name_width(const json_t *rows) {
    size_t width = 7;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const size_t length = strlen(ingot_zoo_text_of(json_array_get(rows, i), "product"));
        width = length > width ? length : width;
    }
    return (int)width;
}

static void print_report(const json_t *rows) {
    const int width = name_width(rows);
    printf("%-*s  %-10s  %-6s  %9s  %6s  %10s  %7s  %8s  %s\n", width, "product", "state", "gates",
           "size", "bits", "perplexity", "ratio", "KL", "best");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i), *verify = json_object_get(row, "verify");
        const double bytes = ingot_zoo_bytes(row);
        char size[32] = "-";
        if (isfinite(bytes)) {
            ingot_format_bytes(size, sizeof size, bytes);
        }
        printf("%-*s  %-10s  %-6s  %9s", width, ingot_zoo_text_of(row, "product"),
               ingot_zoo_text_of(row, "state"),
               ingot_zoo_text_of(json_object_get(row, "gates"), "verdict"), size);
        print_figure(ingot_json_number_at(json_object_get(row, "convert"), "bits_per_weight"), 6,
                     3);
        print_figure(ingot_json_number_at(verify, "perplexity"), 10, 4);
        print_figure(ingot_json_number_at(verify, "ppl_ratio"), 7, 4);
        print_figure(ingot_zoo_quality(row), 8, 5);
        printf("%s\n", json_is_true(json_object_get(row, "front")) ? "  *" : "");
    }
}

static void print_status(const json_t *rows) {
    const int width = name_width(rows);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i), *gates = json_object_get(row, "gates");
        const char *reason = ingot_zoo_text_of(row, "reason");
        reason = reason != NULL ? reason : ingot_zoo_text_of(gates, "reason");
        printf("%-*s  %-10s  gates %-6s%s%s\n", width, ingot_zoo_text_of(row, "product"),
               ingot_zoo_text_of(row, "state"), ingot_zoo_text_of(gates, "verdict"),
               reason != NULL ? "  " : "", reason != NULL ? reason : "");
    }
}

/* ---- subcommands ---------------------------------------------------------------------------- */

/* state -> number of products. */
static json_t *count_states(const json_t *rows) {
    json_t *counts = json_object();
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const char *state = ingot_zoo_text_of(json_array_get(rows, i), "state");
        ingot_json_put(counts, state,
                       json_integer(json_integer_value(json_object_get(counts, state)) + 1));
    }
    return counts;
}

static size_t count_over(const json_t *rows) {
    size_t count = 0;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *gates = json_object_get(json_array_get(rows, i), "gates");
        count += strcmp(ingot_zoo_text_of(gates, "verdict"), "failed") == 0;
    }
    return count;
}

/* Exit code 1 where a gate failed, 2 where a product is not there; what both subcommands share. */
static void summarize(ingot_zoo_result *result, json_t *rows) {
    const size_t over = count_over(rows), count = json_array_size(rows);
    json_t *states = count_states(rows);
    const size_t done = (size_t)json_integer_value(json_object_get(states, "done"));
    ingot_json_put(result->json, "states", states);
    ingot_json_put(result->json, "gates_failed", json_integer((json_int_t)over));
    ingot_json_put(result->json, "products", json_incref(rows));
    result->exit_code = done < count ? 2 : over > 0 ? 1 : 0;
}

static void print_states(const json_t *result, size_t count) {
    const json_t *states = json_object_get(result, "states");
    static const char *const names[] = {"done",  "running", "converting", "converted", "failed",
                                        "stale", "missing", "unreadable", "new"};
    printf("%zu products:", count);
    const char *between = " ";
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const json_t *number = json_object_get(states, names[i]);
        if (number != NULL) {
            printf("%s%" JSON_INTEGER_FORMAT " %s", between, json_integer_value(number), names[i]);
            between = ", ";
        }
    }
    printf("%s%" JSON_INTEGER_FORMAT " over a gate\n", between,
           json_integer_value(json_object_get(result, "gates_failed")));
}

ingot_status ingot_zoo_status(ingot_zoo_result *result, const ingot_manifest *manifest,
                              const ingot_zoo_options *options, ingot_error *error) {
    ingot_shelf shelf;
    json_t *rows;
    INGOT_TRY(ingot_shelf_open(&shelf, manifest->shelf, false, error));
    INGOT_TRY(ingot_zoo_rows(&rows, manifest, &shelf, options, false, error));
    summarize(result, rows);
    if (!options->as_json) {
        print_status(rows);
        print_states(result->json, json_array_size(rows));
    }
    json_decref(rows);
    return INGOT_OK;
}

static ingot_status write_file(const ingot_zoo_options *options, const ingot_shelf *shelf,
                               const char *name, const ingot_markup *text, ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE];
    const char *folder = options->folder != NULL ? options->folder : shelf->root;
    if (ingot_markup_status(text) != INGOT_OK) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, name, NULL, NULL, "out of memory");
    }
    INGOT_TRY(ingot_path_join(path, sizeof path, folder, name));
    INGOT_TRY(ingot_file_write_all(path, text->text, text->size, true, error));
    if (!options->as_json) {
        printf("%s\n", path);
    }
    return INGOT_OK;
}

static ingot_status write_files(const ingot_zoo_options *options, const ingot_shelf *shelf,
                                const json_t *document, const json_t *rows, ingot_error *error) {
    ingot_markup page = {0}, table = {0}, json = {0};
    char *text = ingot_json_text(document, JSON_SORT_KEYS | JSON_INDENT(1));
    ingot_status status = text != NULL ? INGOT_OK : INGOT_ERR_NO_MEMORY;
    ingot_zoo_page(&page, rows);
    ingot_zoo_csv(&table, rows);
    ingot_markup_add(&json, "%s\n", text != NULL ? text : "");
    INGOT_GO(status);
    INGOT_GO(write_file(options, shelf, "report.html", &page, error));
    INGOT_GO(write_file(options, shelf, "report.csv", &table, error));
    INGOT_GO(write_file(options, shelf, "report.json", &json, error));
done:
    ingot_markup_free(&page);
    ingot_markup_free(&table);
    ingot_markup_free(&json);
    free(text);
    return status;
}

ingot_status ingot_zoo_report(ingot_zoo_result *result, const ingot_manifest *manifest,
                              const ingot_zoo_options *options, ingot_error *error) {
    ingot_shelf shelf;
    json_t *rows;
    INGOT_TRY(ingot_shelf_open(&shelf, manifest->shelf, false, error));
    INGOT_TRY(ingot_zoo_rows(&rows, manifest, &shelf, options, true, error));
    ingot_json_put(result->json, "format", json_string(REPORT_FORMAT));
    ingot_json_put(result->json, "version", json_integer(1));
    summarize(result, rows);
    if (!options->as_json) {
        print_report(rows);
        print_states(result->json, json_array_size(rows));
    }
    const ingot_status status = write_files(options, &shelf, result->json, rows, error);
    json_decref(rows);
    return status;
}
