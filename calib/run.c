/* The tool ingot-run: command line, output and --json.  Decoding itself is calib/decode.c. */
#include "calib/run.h"

#include "calib/decode.h"
#include "calib/text_model.h"
#include "common/cli.h"
#include "common/files.h"
#include "common/json.h"
#include "common/progress.h"
#include "common/sizes.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utf8proc.h>

#define PROMPT_MOST_BYTES (UINT64_C(64) << 20) /* more text than a context takes, by far */
#define WAIT_MS           100                  /* for standard input, between looks for a signal */
#define PROMPT_SECONDS    1.0 /* of one that is shown how far it is; most are shorter */

static const ingot_cli_option options[] = {
    {"prompt", 'p', "TEXT",
     "The text to continue, raw: no template, no special tokens. It or --prompt-file is required."},
    {"prompt-file", 0, "FILE",
     "The same, read from a file of UTF-8, or from standard input where FILE is -. All of it is "
     "the "
     "prompt but the end of its last line."},
    {"tokens", 'n', "N", "Generate at most N tokens. Default 128."},
    {"temperature", 't', "T",
     "Sample from the softmax of the logits divided by T. 0, the default, is greedy: always the "
     "most likely token."},
    {"seed", 's', "S", "Seed of the sampling. The same seed gives the same text. Default 0."},
    {"device", 'd', "DEVICE",
     "auto, cpu, cuda or cuda:N. Default auto. A GPU: compute capability 8.0 or later."},
    {"threads", 'j', "N", "Threads of the cpu device. Default: one per usable CPU."},
    {"no-verify", 0, NULL,
     "Do not compare the digests of a container's tensors while loading. Its structure is checked "
     "all the same."},
    {"json", 0, NULL,
     "Print one JSON object instead of the text: text (without the prompt), tokens, token_ids, "
     "prompt_tokens_per_second, decode_tokens_per_second, saturated (whether a GPU cut "
     "activations off to 65504), error (a stable code or null), message. Every key is present on "
     "failure too."},
};

static const ingot_cli_spec spec = {
    .tool = "ingot-run",
    .summary = "generate text from a container or a checkpoint",
    .positional = "FILE.ingot|MODEL_DIR",
    .description =
        "Continues the prompt and prints the text as it comes; rates go to standard error. "
        "Weights stay in memory as they are stored and are dequantized on the fly.\n\n"
        "Generation ends with the model's end-of-text token, after N tokens, or when the model's "
        "context is full.\n\n"
        "Exit status: 0 done; 1 the container is corrupt; 2 it could not run.",
    .options = options,
    .option_count = sizeof options / sizeof options[0],
    .examples = "ingot-run model.ingot --prompt \"The old captain\" -n 48\n"
                "    Continue greedily with at most 48 tokens.\n"
                "ingot-run model/ -p \"Once upon a time\" -t 0.8 -s 7\n"
                "    Sample from the full-precision checkpoint, repeatably.\n"
                "ingot-run model.ingot --prompt-file chapter.txt\n"
                "    Continue a text that is longer than an argument may be.\n",
};

typedef struct run_settings {
    const char *path;
    const char *prompt, *prompt_path;
    const char *device;
    uint64_t limit, seed, threads;
    double temperature;
    bool skip_verify, is_json;
} run_settings;

#define MEMBER(name) offsetof(run_settings, name)

static const ingot_cli_member members[] = {
    {"prompt", INGOT_CLI_TEXT, .offset = MEMBER(prompt)},
    {"prompt-file", INGOT_CLI_TEXT, .offset = MEMBER(prompt_path)},
    {"tokens", INGOT_CLI_U64, .offset = MEMBER(limit), .least = 1, .most = 1u << 24},
    {"temperature", INGOT_CLI_DOUBLE, .offset = MEMBER(temperature), .high = 100},
    {"seed", INGOT_CLI_U64, .offset = MEMBER(seed), .most = UINT64_MAX},
    {"device", INGOT_CLI_TEXT, .offset = MEMBER(device)},
    {"threads", INGOT_CLI_U64, .offset = MEMBER(threads), .least = 1, .most = 256},
    {"no-verify", INGOT_CLI_FLAG, .offset = MEMBER(skip_verify)},
    {"json", INGOT_CLI_FLAG, .offset = MEMBER(is_json)},
};

static ingot_status take_option(void *context, const char *name, const char *value,
                                ingot_error *error) {
    return ingot_cli_store(context, members, sizeof members / sizeof *members, name, value, error);
}

/* Everything a run holds. */
typedef struct runner {
    run_settings settings;
    ingot_text_model from;
    ingot_backend backend;
    bool has_backend;
    ingot_decoder *decoder;
    ingot_text_stream *stream;
    char *prompt_text; /* of --prompt-file */
    uint64_t prompt_bytes;
    uint32_t *prompt;
    uint64_t prompt_count;
    ingot_generation generation;
    char *text; /* what was generated, for --json */
    uint64_t text_size, text_room;
} runner;

static ingot_status keep_text(runner *r, const char *text, uint64_t size) {
    if (size > r->text_room - r->text_size) {
        void *memory;
        const uint64_t room = 2 * (r->text_room + size);
        INGOT_TRY(ingot_alloc(&memory, room));
        if (r->text_size != 0) {
            memcpy(memory, r->text, r->text_size);
        }
        ingot_free(r->text);
        r->text = memory;
        r->text_room = room;
    }
    memcpy(r->text + r->text_size, text, size);
    r->text_size += size;
    return INGOT_OK;
}

static ingot_status take_text(void *context, const char *text, uint64_t size) {
    runner *r = context;
    if (r->settings.is_json) {
        return keep_text(r, text, size);
    }
    const bool is_written = fwrite(text, 1, size, stdout) == size && fflush(stdout) == 0;
    return is_written ? INGOT_OK : INGOT_ERR_IO;
}

/* ---- the prompt of a file ------------------------------------------------------------------- */

/* At most `room` bytes of standard input, *count 0 at its end.  A read would go on after a signal,
 * so that it is not begun before there is something to read. */
static ingot_status read_some(char *bytes, uint64_t room, uint64_t *count, const char *name,
                              ingot_error *error) {
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    while (poll(&input, 1, WAIT_MS) <= 0) {
        INGOT_TRY(ingot_interrupt_check(error));
    }
    ssize_t got;
    do {
        got = read(STDIN_FILENO, bytes, (size_t)room);
    } while (got < 0 && errno == EINTR);
    if (got < 0) {
        return ingot_error_set(error, INGOT_ERR_IO, name, NULL, NULL, "cannot be read: %s",
                               strerror(errno));
    }
    *count = (uint64_t)got;
    return INGOT_OK;
}

static ingot_status read_input(runner *r, const char *name, ingot_error *error) {
    void *memory;
    uint64_t count = 1;
    /* Room for all of it: pages that nothing is read into are no memory. */
    if (ingot_alloc(&memory, PROMPT_MOST_BYTES + 1) != INGOT_OK) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, name, NULL, "free some memory",
                               "out of memory");
    }
    r->prompt_text = memory;
    while (count != 0 && r->prompt_bytes <= PROMPT_MOST_BYTES) {
        INGOT_TRY(read_some(r->prompt_text + r->prompt_bytes,
                            PROMPT_MOST_BYTES + 1 - r->prompt_bytes, &count, name, error));
        r->prompt_bytes += count;
    }
    return r->prompt_bytes <= PROMPT_MOST_BYTES
               ? INGOT_OK
               : ingot_error_set(error, INGOT_ERR_INPUT, name, NULL, NULL,
                                 "is longer than the limit of %llu bytes",
                                 (unsigned long long)PROMPT_MOST_BYTES);
}

static ingot_status check_utf8(const char *text, uint64_t size, const char *name,
                               ingot_error *error) {
    for (uint64_t at = 0; at < size;) {
        utf8proc_int32_t character;
        const utf8proc_ssize_t length = utf8proc_iterate((const utf8proc_uint8_t *)text + at,
                                                         (utf8proc_ssize_t)(size - at), &character);
        if (length <= 0) {
            return ingot_error_set(error, INGOT_ERR_INPUT, name, NULL, "convert it to UTF-8",
                                   "is not UTF-8 at byte %llu", (unsigned long long)at);
        }
        at += (uint64_t)length;
    }
    return INGOT_OK;
}

static ingot_status read_prompt(runner *r, ingot_error *error) {
    const char *path = r->settings.prompt_path;
    const bool is_input = strcmp(path, "-") == 0;
    const char *name = is_input ? "standard input" : path;
    INGOT_TRY(is_input ? read_input(r, name, error)
                       : ingot_file_read_all(path, PROMPT_MOST_BYTES, &r->prompt_text,
                                             &r->prompt_bytes, error));
    INGOT_TRY(ingot_file_refuse_pointer(r->prompt_text, r->prompt_bytes, name, error));
    /* Editors end the last line, too; a text is to be continued in it. */
    if (r->prompt_bytes > 0 && r->prompt_text[r->prompt_bytes - 1] == '\n') {
        r->prompt_bytes--;
        if (r->prompt_bytes > 0 && r->prompt_text[r->prompt_bytes - 1] == '\r') {
            r->prompt_bytes--;
        }
    }
    if (r->prompt_bytes == 0) {
        return ingot_error_set(error, INGOT_ERR_INPUT, name, NULL, "give a text to continue",
                               "the prompt is empty");
    }
    return check_utf8(r->prompt_text, r->prompt_bytes, name, error);
}

static ingot_status take_prompt(runner *r, ingot_error *error) {
    const run_settings *s = &r->settings;
    if (s->prompt == NULL && s->prompt_path == NULL) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL,
                               "use --prompt TEXT or --prompt-file FILE", "there is no prompt");
    }
    if (s->prompt != NULL && s->prompt_path != NULL) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "leave one of them out",
                               "both --prompt and --prompt-file name a prompt");
    }
    return s->prompt_path != NULL ? read_prompt(r, error)
                                  : check_utf8(s->prompt, strlen(s->prompt), "--prompt", error);
}

static ingot_status check_prompt(runner *r, ingot_error *error) {
    const run_settings *s = &r->settings;
    const bool is_file = s->prompt_path != NULL;
    INGOT_TRY(ingot_tokenizer_encode(r->from.tokenizer, is_file ? r->prompt_text : s->prompt,
                                     is_file ? r->prompt_bytes : strlen(s->prompt), &r->prompt,
                                     &r->prompt_count, error));
    if (r->prompt_count == 0) {
        return ingot_error_set(error, INGOT_ERR_USAGE, s->path, NULL, "use another prompt",
                               "the prompt gives no tokens");
    }
    if (r->prompt_count >= r->from.model.context) {
        return ingot_error_set(error, INGOT_ERR_USAGE, s->path, NULL, "use a shorter prompt",
                               "the prompt has %llu tokens, the model's context %llu",
                               (unsigned long long)r->prompt_count,
                               (unsigned long long)r->from.model.context);
    }
    return INGOT_OK;
}

/* Weights and room for `capacity` tokens. */
static ingot_status load(runner *r, uint64_t capacity, ingot_error *error) {
    ingot_progress progress;
    ingot_progress_begin(&progress, "loading", "MB", 0, false);
    const ingot_status status = ingot_decoder_create(&r->decoder, &r->from.model, &r->from.source,
                                                     &r->backend, capacity, &progress, error);
    ingot_progress_end(&progress);
    return status;
}

static ingot_status run(runner *r, ingot_error *error) {
    const run_settings *s = &r->settings;
    INGOT_TRY(take_prompt(r, error));
    INGOT_TRY(ingot_backend_open(&r->backend, s->device, (unsigned)s->threads, error));
    r->has_backend = true;
    INGOT_TRY(ingot_text_model_open(&r->from, s->path, !s->skip_verify, error));
    INGOT_TRY(check_prompt(r, error));
    /* The last token that is generated is never fed back. */
    const uint64_t capacity = ingot_min_u64(r->from.model.context, r->prompt_count + s->limit - 1);
    INGOT_TRY(load(r, capacity, error));
    INGOT_TRY(ingot_text_stream_create(&r->stream, r->from.tokenizer, r->prompt, r->prompt_count,
                                       take_text, r, error));
    ingot_sampler sampler = {.temperature = s->temperature, .state = s->seed};
    /* The context holds prompt and output together. */
    const uint64_t limit = ingot_min_u64(s->limit, r->from.model.context - r->prompt_count);
    ingot_progress progress;
    ingot_progress_begin(&progress, "prompt", "tokens", (double)r->prompt_count, false);
    progress.patience_seconds = PROMPT_SECONDS;
    const ingot_status status = ingot_generate(&r->generation, r->decoder, &sampler, r->prompt,
                                               r->prompt_count, limit, r->stream, &progress, error);
    if (!s->is_json && r->generation.count != 0) {
        (void)putchar('\n');
    }
    INGOT_TRY(status);
    if (!s->is_json && (fflush(stdout) != 0 || ferror(stdout) != 0)) {
        return ingot_error_set(error, INGOT_ERR_IO, NULL, NULL, NULL,
                               "the text could not be written");
    }
    return INGOT_OK;
}

static double rate(uint64_t count, double seconds) {
    return count == 0 || seconds <= 0 ? NAN : (double)count / seconds;
}

static void print_rates(const runner *r) {
    const ingot_generation *g = &r->generation;
    (void)fprintf(stderr, "prompt: %llu tokens, %.1f tokens/s\n",
                  (unsigned long long)g->prompt_count, rate(g->prompt_count, g->prompt_seconds));
    (void)fprintf(stderr, "output: %llu tokens%s", (unsigned long long)g->count,
                  g->is_ended ? " and end of text" : "");
    if (g->decode_steps != 0) {
        (void)fprintf(stderr, ", %.1f tokens/s", rate(g->decode_steps, g->decode_seconds));
    }
    (void)fputc('\n', stderr);
    if (g->is_saturated) {
        (void)fputs("warning: activations were beyond 65504 and cut off to it, the text may differ "
                    "from the model's: compare with --device cpu\n",
                    stderr);
    }
    if (r->from.model.is_endless) {
        (void)fputs("warning: eos_token_id is no token of the vocabulary: the text does not end "
                    "before -n tokens\n",
                    stderr);
    }
}

/* One object with every key; r is NULL on failure.  False when it could not be written. */
static bool print_json(const runner *r, const ingot_error *error) {
    json_t *object = json_object();
    json_t *ids = r == NULL ? json_null() : json_array();
    json_t *text = json_null(), *count = json_null(), *fed = json_null(), *decoded = json_null();
    json_t *saturated = json_null();
    bool is_good = true;
    if (r != NULL) {
        const ingot_generation *g = &r->generation;
        for (uint64_t i = 0; i < g->count; i++) {
            is_good &= json_array_append_new(ids, json_integer(g->ids[i])) == 0;
        }
        text = json_stringn(r->text_size == 0 ? "" : r->text, (size_t)r->text_size);
        count = json_integer((json_int_t)g->count);
        fed = ingot_json_number(rate(g->prompt_count, g->prompt_seconds));
        decoded = ingot_json_number(rate(g->decode_steps, g->decode_seconds));
        saturated = json_boolean(g->is_saturated);
    }
    is_good &= ingot_json_put(object, "token_ids", ids);
    is_good &= ingot_json_put(object, "text", text);
    is_good &= ingot_json_put(object, "tokens", count);
    is_good &= ingot_json_put(object, "prompt_tokens_per_second", fed);
    is_good &= ingot_json_put(object, "decode_tokens_per_second", decoded);
    is_good &= ingot_json_put(object, "saturated", saturated);
    is_good &= ingot_json_put_error(object, error);
    is_good = is_good && ingot_json_print(object, stdout);
    json_decref(object);
    return is_good;
}

static void close_runner(runner *r) {
    ingot_generation_free(&r->generation);
    ingot_text_stream_destroy(r->stream);
    ingot_decoder_destroy(r->decoder);
    ingot_text_model_close(&r->from);
    if (r->has_backend) {
        ingot_backend_close(&r->backend);
    }
    ingot_free(r->prompt_text);
    ingot_free(r->prompt);
    ingot_free(r->text);
}

int ingot_run_tool(int argc, char **argv) {
    ingot_error error;
    memset(&error, 0, sizeof error);
    runner r = {.settings = {.device = "auto", .limit = 128}};
    switch (
        ingot_cli_parse(&spec, argc, argv, take_option, &r.settings, &r.settings.path, &error)) {
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
    ingot_status status = run(&r, &error);
    if (status == INGOT_OK && !r.settings.is_json) {
        print_rates(&r);
    }
    const bool is_json = r.settings.is_json; /* a text that stopped short is an error of run */
    error.status = status;
    const bool is_printed = !is_json || print_json(status == INGOT_OK ? &r : NULL, &error);
    close_runner(&r);
    if (is_json) {
        return ingot_cli_end(spec.tool, status, &error, is_printed);
    }
    return status == INGOT_OK ? 0 : ingot_cli_report(spec.tool, &error);
}
