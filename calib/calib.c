/* The tool ingot-calib: command line and report.  Collecting is calib/stats.c. */
#include "calib/calib.h"

#include "calib/self_text.h"
#include "calib/stats.h"
#include "calib/text_model.h"
#include "common/cli.h"
#include "common/files.h"
#include "common/json.h"
#include "common/sizes.h"
#include "format/checkpoint.h"
#include "format/digest.h"

#include <string.h>

static const ingot_cli_option options[] = {
    {"text", 0, "FILE",
     "Text to calibrate on. May be repeated: the files are joined in order. @self: text "
     "that the model writes. Required."},
    {"output", 'o', "OUT.calib", "The statistics file to write. Required."},
    {"samples", 0, "N",
     "Windows of text, evenly spaced over it, fewer when the text is shorter. Default 128."},
    {"seq-len", 0, "N", "Tokens of a window. Default 2048, or the model's context if smaller."},
    {"device", 'd', "DEVICE",
     "auto, cpu, cuda or cuda:N. Default auto. A GPU: compute capability 8.0 or later."},
    {"threads", 'j', "N", "Threads of the cpu device. Default: one per usable CPU."},
    {"force", 0, NULL, "Replace an existing output; of a link the file behind it."},
    {"reuse", 0, NULL,
     "Keep an existing output that has these statistics: of this checkpoint, text, windows and "
     "length, and whole. Statistics of others are replaced, with a message; any other file is "
     "refused."},
    {"json", 0, NULL,
     "Print one JSON object: output, reused, bytes, samples, seq_len, tokens, dropped_rows, "
     "seconds, peak_host_bytes, root, error (a stable code or null), message. Every key is present "
     "on failure too."},
};

static const ingot_cli_spec spec = {
    .tool = "ingot-calib",
    .summary = "collect activation statistics of a checkpoint",
    .positional = "MODEL_DIR",
    .description =
        "Runs the full-precision model on windows of text, one block at a time, and writes for "
        "every group of linears that share an input: H = sum of x x^T, the mean of |x| and the "
        "number of tokens. ingot-convert --stats uses the file any number of times for the same "
        "checkpoint.",
    .options = options,
    .option_count = sizeof options / sizeof options[0],
    .examples = "ingot-calib model/ --text books.txt -o model.calib\n"
                "    128 windows of 2048 tokens.\n"
                "ingot-calib model/ --text a.txt --text b.txt -o model.calib --samples 32 "
                "--seq-len 512\n"
                "    A quicker, smaller calibration on two texts.\n",
};

typedef struct calib_settings {
    const char *path;
    const char *texts[INGOT_MAX_TEXTS];
    uint64_t text_count;
    const char *output;
    const char *device;
    uint64_t samples, seq_len, threads;
    bool force, reuse, is_json;
} calib_settings;

#define MEMBER(name) offsetof(calib_settings, name)

static const ingot_cli_member members[] = {
    {"output", INGOT_CLI_TEXT, .offset = MEMBER(output)},
    {"samples", INGOT_CLI_U64, .offset = MEMBER(samples), .least = 1, .most = 1u << 24},
    {"seq-len", INGOT_CLI_U64, .offset = MEMBER(seq_len), .least = 1, .most = 1u << 24},
    {"device", INGOT_CLI_TEXT, .offset = MEMBER(device)},
    {"threads", INGOT_CLI_U64, .offset = MEMBER(threads), .least = 1, .most = 256},
    {"force", INGOT_CLI_FLAG, .offset = MEMBER(force)},
    {"reuse", INGOT_CLI_FLAG, .offset = MEMBER(reuse)},
    {"json", INGOT_CLI_FLAG, .offset = MEMBER(is_json)},
};

static ingot_status take_option(void *context, const char *name, const char *value,
                                ingot_error *error) {
    calib_settings *s = context;
    if (strcmp(name, "text") != 0) {
        return ingot_cli_store(s, members, sizeof members / sizeof *members, name, value, error);
    }
    if (s->text_count == INGOT_MAX_TEXTS) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "concatenate some of them",
                               "more than %u texts", INGOT_MAX_TEXTS);
    }
    s->texts[s->text_count++] = value;
    return INGOT_OK;
}

/* Everything a run holds. */
typedef struct calibration {
    calib_settings settings;
    ingot_text_model from;
    ingot_backend backend;
    bool has_backend;
    ingot_text text;
    ingot_windows windows;
    ingot_stats_result result;
    double seconds;
    bool is_reused;
} calibration;

/* What can be refused before anything is read. */
static ingot_status check_settings(const calib_settings *s, ingot_error *error) {
    if (s->text_count == 0) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "use --text FILE",
                               "there is no text to calibrate on");
    }
    if (s->output == NULL) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "use -o OUT.calib",
                               "there is no output");
    }
    bool is_input =
        ingot_path_same(s->output, s->path) || ingot_checkpoint_is_input(s->path, s->output);
    for (uint64_t i = 0; i < s->text_count; i++) {
        is_input = is_input || ingot_path_same(s->output, s->texts[i]);
    }
    if (is_input) {
        return ingot_error_set(error, INGOT_ERR_USAGE, s->output, NULL, "use another output",
                               "the output is one of the inputs");
    }
    if (s->reuse && ingot_output_exists(s->output)) {
        return INGOT_OK; /* it may stay, where nothing can be written too */
    }
    INGOT_TRY(ingot_output_check(s->output, error));
    if (!s->force && ingot_output_exists(s->output)) {
        return ingot_error_set(error, INGOT_ERR_EXISTS, s->output, NULL,
                               "use --force to replace it", "the output exists");
    }
    return INGOT_OK;
}

static ingot_status load_text(calibration *c, uint64_t length, ingot_error *error) {
    const calib_settings *s = &c->settings;
    bool is_self_text;
    INGOT_TRY(ingot_self_text_wanted(&is_self_text, s->texts, s->text_count, error));
    if (!is_self_text) {
        INGOT_TRY(
            ingot_source_tokenizer(&c->from.tokenizer, &c->from.source, &c->from.model, error));
        return ingot_text_load(&c->text, s->texts, s->text_count, c->from.tokenizer, error);
    }
    ingot_progress progress;
    ingot_progress_begin(&progress, "writing a text", "tokens", (double)(s->samples * length),
                         false);
    const ingot_status status =
        ingot_self_text_write(&c->text, &c->from.model, &c->from.source, &c->backend, s->samples,
                              length, 0, &progress, NULL, error);
    ingot_progress_end(&progress);
    return status;
}

/* What differs between statistics and what was asked for; NULL: nothing. */
static const char *difference(const ingot_stats_info *info, const calibration *c) {
    if (memcmp(info->text_digest, c->text.digest, sizeof info->text_digest) != 0) {
        return "statistics of another text";
    }
    return info->samples != c->windows.count || info->seq_len != c->windows.length
               ? "statistics of other windows"
               : NULL;
}

/* Damage in what is kept would be found hours into the conversions that use it. */
static ingot_status check_kept(const char **why, const calibration *c, const ingot_stats *stats,
                               ingot_error *error) {
    ingot_progress progress;
    ingot_progress_begin(&progress, "checking", "MB", 0, false);
    const ingot_status status =
        ingot_check_full(ingot_stats_container(stats), ingot_pool_threads(c->backend.pool),
                         ingot_progress_bytes, &progress, error);
    ingot_progress_end(&progress);
    if (status != INGOT_OK && ingot_status_exit_code(status) == 1) {
        *why = "damaged statistics";
        return INGOT_OK;
    }
    return status;
}

/* Takes an output that is there already, if it has what was asked for: c->is_reused. */
static ingot_status try_reuse(calibration *c, ingot_error *error) {
    const calib_settings *s = &c->settings;
    ingot_stats *stats = NULL;
    ingot_stats_info info;
    const char *why = "statistics of another checkpoint";
    if (!s->reuse || !ingot_output_exists(s->output)) {
        return INGOT_OK;
    }
    ingot_status status =
        ingot_stats_open(&stats, s->output, &c->from.model, &c->from.source, error);
    if (status != INGOT_OK && status != INGOT_FAIL_SOURCE) {
        return status;
    }
    if (status == INGOT_OK) {
        ingot_stats_get_info(stats, &info);
        why = difference(&info, c);
        status = why == NULL ? check_kept(&why, c, stats, error) : INGOT_OK;
        ingot_stats_close(stats);
        INGOT_TRY(status);
    }
    if (why != NULL) {
        (void)fprintf(stderr, "%s: %s: %s are replaced\n", spec.tool, s->output, why);
        return INGOT_OK;
    }
    ingot_file *file;
    INGOT_TRY(ingot_file_open(&file, s->output, error));
    c->result = (ingot_stats_result){.file_bytes = ingot_file_size(file),
                                     .tokens = info.samples * info.seq_len};
    ingot_file_close(file);
    memcpy(c->result.root, info.root, sizeof info.root);
    c->is_reused = true;
    return INGOT_OK;
}

static ingot_status calibrate(calibration *c, ingot_error *error) {
    const calib_settings *s = &c->settings;
    const double start = ingot_clock_seconds();
    uint64_t length;
    INGOT_TRY(check_settings(s, error));
    INGOT_TRY(ingot_backend_open(&c->backend, s->device, (unsigned)s->threads, error));
    c->has_backend = true;
    if (!ingot_path_is_directory(s->path) && ingot_is_container(s->path)) {
        return ingot_error_set(error, INGOT_ERR_USAGE, s->path, NULL,
                               "give the checkpoint it was made from",
                               "a container has no full-precision weights to take statistics of");
    }
    INGOT_TRY(ingot_checkpoint_check_folder(s->path, error));
    INGOT_TRY(ingot_text_model_open_weights(&c->from, s->path, true, error));
    INGOT_TRY(ingot_windows_length(&length, s->seq_len, c->from.model.context, s->path, error));
    INGOT_TRY(load_text(c, length, error));
    INGOT_TRY(
        ingot_windows_calibration(&c->windows, &c->text, s->samples, length, s->texts[0], error));
    INGOT_TRY(try_reuse(c, error));
    if (c->is_reused) {
        c->seconds = ingot_clock_seconds() - start;
        return INGOT_OK;
    }
    INGOT_TRY(ingot_output_check(s->output, error));
    const ingot_stats_options collect = {
        .path = s->output,
        .force = s->force || s->reuse,
        .threads = ingot_pool_threads(c->backend.pool),
    };
    ingot_progress progress;
    ingot_progress_begin(&progress, "calibrating", "blocks", (double)c->from.model.layers, false);
    const ingot_status status =
        ingot_stats_collect(&c->result, &c->from.model, &c->from.source, &c->windows, &c->text,
                            &c->backend, &collect, &progress, error);
    ingot_progress_end(&progress);
    c->seconds = ingot_clock_seconds() - start;
    return status;
}

/* One object with every key; finished is NULL on failure.  False when it could not be written. */
static bool print_json(const calibration *finished, const ingot_error *error) {
    static const calibration nothing;
    json_t *object = json_object();
    const bool has = finished != NULL;
    const calibration *c = has ? finished : &nothing;
    char root[33] = "";
    if (has) {
        ingot_digest_hex(root, c->result.root);
    }
    bool is_good =
        ingot_json_put(object, "output", ingot_json_any_text(has ? c->settings.output : NULL));
    is_good &= ingot_json_put(object, "root", has ? json_string(root) : json_null());
    is_good &= ingot_json_put(object, "reused", has ? json_boolean(c->is_reused) : json_null());
    is_good &= ingot_json_put(object, "seconds", has ? ingot_json_number(c->seconds) : json_null());
    const struct {
        const char *key;
        uint64_t value;
    } counts[] = {
        {"bytes", has ? c->result.file_bytes : 0},
        {"samples", has ? c->windows.count : 0},
        {"seq_len", has ? c->windows.length : 0},
        {"tokens", has ? c->result.tokens : 0},
        {"dropped_rows", has ? c->result.dropped : 0},
        {"peak_host_bytes", ingot_memory_peak_bytes()},
    };
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        is_good &= ingot_json_put(object, counts[i].key,
                                  has ? json_integer((json_int_t)counts[i].value) : json_null());
    }
    is_good &= ingot_json_put_error(object, error);
    is_good = is_good && ingot_json_print(object, stdout);
    json_decref(object);
    return is_good;
}

static void print_summary(const calibration *c) {
    char bytes[32], seconds[32];
    ingot_format_bytes(bytes, sizeof bytes, (double)c->result.file_bytes);
    ingot_format_seconds(seconds, sizeof seconds, c->seconds);
    (void)printf("%s: %s, %llu windows of %llu tokens, %s%s\n", c->settings.output, bytes,
                 (unsigned long long)c->windows.count, (unsigned long long)c->windows.length,
                 seconds, c->is_reused ? ", reused" : "");
}

static void close_calibration(calibration *c) {
    ingot_windows_free(&c->windows);
    ingot_text_free(&c->text);
    ingot_text_model_close(&c->from);
    if (c->has_backend) {
        ingot_backend_close(&c->backend);
    }
}

int ingot_calib_tool(int argc, char **argv) {
    ingot_error error;
    memset(&error, 0, sizeof error);
    calibration c = {.settings = {.device = "auto", .samples = INGOT_WINDOW_COUNT}};
    switch (
        ingot_cli_parse(&spec, argc, argv, take_option, &c.settings, &c.settings.path, &error)) {
    case INGOT_CLI_EXIT:
        return 0;
    case INGOT_CLI_USAGE:
        error.status = error.status == INGOT_OK ? INGOT_ERR_USAGE : error.status;
        return ingot_cli_finish(
            spec.tool, 2, !ingot_cli_has_flag(argc, argv, "json") || print_json(NULL, &error));
    case INGOT_CLI_RUN:
        break;
    }
    ingot_interrupt_install();
    ingot_status status = calibrate(&c, &error);
    if (c.result.dropped != 0) {
        (void)fprintf(stderr, "%s: warning: %llu activation rows with NaN or Inf were left out\n",
                      spec.tool, (unsigned long long)c.result.dropped);
    }
    bool is_printed = true;
    error.status = status;
    if (c.settings.is_json) {
        is_printed = print_json(status == INGOT_OK ? &c : NULL, &error);
    } else if (status == INGOT_OK) {
        print_summary(&c);
    }
    close_calibration(&c);
    return ingot_cli_end(spec.tool, status, &error, is_printed);
}
