/* The command line of ingot-verify. */
#include "common/cli.h"
#include "common/files.h"
#include "common/json.h"
#include "verify/verify.h"

#include <math.h>
#include <string.h>

static const ingot_cli_option options_table[] = {
    {"quick", 0, NULL, "Check structure and metadata digests only; the weights are not read."},
    {"source", 0, "MODEL_DIR",
     "Recompute every tensor from the checkpoint the container was made from: source digests, "
     "errors of quantized tensors, bit equality of the others."},
    {"text", 0, "FILE",
     "Perplexity of this text; with --source also the KL divergence from the source. May be "
     "repeated: texts are concatenated."},
    {"seq-len", 0, "N", "Tokens per window; default min(2048, context of the model)."},
    {"windows", 0, "N", "Score the first N windows; default all."},
    {"tasks", 0, "FILE",
     "Accuracy on multiple-choice items, one {\"context\", \"choices\", \"answer\"} a line; with "
     "--source beside the source's."},
    {"max-ppl-ratio", 0, "R",
     "Gate: exit 1 when the perplexity is more than R times the source's. Needs --source and "
     "--text."},
    {"max-kld", 0, "K",
     "Gate: exit 1 when the mean KL divergence is over K nats. Needs --source and --text."},
    {"max-accuracy-drop", 0, "X",
     "Gate: exit 1 when the source answers more than this fraction of the items better. Needs "
     "--source and --tasks."},
    {"device", 0, "D",
     "auto, cpu, cuda or cuda:N; default auto. A GPU: compute capability 8.0 or later."},
    {"threads", 0, "N", "Threads; default one per usable processor."},
    {"json", 0, NULL, "Print one JSON object instead of the report."},
    {"html", 0, "FILE", "Also write the report as one self-contained page; replaces FILE."},
};

static const ingot_cli_spec command_spec = {
    .tool = "ingot-verify",
    .summary = "check an Ingot container: integrity, origin, quality",
    .positional = "FILE.ingot",
    .description =
        "Checks that every byte of the container is accounted for. With --source also that it "
        "was made from that checkpoint and lost no more than its ledger says; with --text how "
        "well it predicts a text, with --tasks how many questions it answers.\n\n"
        "Exit codes: 0 the container is valid and all gates are met; 1 it is corrupt, not from "
        "that source, or over a gate; 2 the check could not run.",
    .options = options_table,
    .option_count = sizeof options_table / sizeof *options_table,
    .examples = "ingot-verify model.ingot\n"
                "    every byte accounted for\n"
                "ingot-verify model.ingot --source MODEL_DIR --text eval.txt --max-kld 0.05\n"
                "    origin and quality, with an exit code for a script\n"
                "ingot-verify model.ingot --source MODEL_DIR --html report.html\n"
                "    the report as a page\n",
};

typedef struct command {
    ingot_verify_options options;
    const char **texts; /* [capacity]: as many as there are arguments */
    const char *html_path;
    bool is_json;
} command;

#define MEMBER(name) offsetof(command, name)

static const ingot_cli_member members[] = {
    {"quick", INGOT_CLI_FLAG, .offset = MEMBER(options.is_quick)},
    {"source", INGOT_CLI_TEXT, .offset = MEMBER(options.source_path)},
    {"seq-len", INGOT_CLI_U64, .offset = MEMBER(options.seq_len), .least = 2, .most = UINT32_MAX},
    {"windows", INGOT_CLI_U64, .offset = MEMBER(options.windows), .least = 1, .most = UINT32_MAX},
    {"tasks", INGOT_CLI_TEXT, .offset = MEMBER(options.tasks_path)},
    {"max-ppl-ratio", INGOT_CLI_DOUBLE, .offset = MEMBER(options.max_ppl_ratio), .high = 1e9},
    {"max-kld", INGOT_CLI_DOUBLE, .offset = MEMBER(options.max_kld), .high = 1e9},
    {"max-accuracy-drop", INGOT_CLI_DOUBLE, .offset = MEMBER(options.max_accuracy_drop), .high = 1},
    {"device", INGOT_CLI_TEXT, .offset = MEMBER(options.device)},
    {"threads", INGOT_CLI_COUNT, .offset = MEMBER(options.threads), .least = 1, .most = 256},
    {"json", INGOT_CLI_FLAG, .offset = MEMBER(is_json)},
    {"html", INGOT_CLI_TEXT, .offset = MEMBER(html_path)},
};

static ingot_status set_option(void *context, const char *name, const char *value,
                               ingot_error *error) {
    command *cmd = context;
    if (strcmp(name, "text") != 0) {
        return ingot_cli_store(cmd, members, sizeof members / sizeof *members, name, value, error);
    }
    cmd->texts[cmd->options.text_count++] = value;
    return INGOT_OK;
}

/* False when not all of it was printed. */
static bool print_report(const command *cmd, const ingot_verification *verification) {
    if (!cmd->is_json) {
        ingot_verify_report_text(verification, stdout);
        return true;
    }
    json_t *object = ingot_verify_report_json(verification);
    const bool is_printed = object != NULL && ingot_json_print(object, stdout);
    json_decref(object);
    return is_printed;
}

/* A command line that cannot be parsed still answers --json with an object. */
static int usage_exit(int argc, char **argv, command *cmd, const ingot_error *error) {
    ingot_verification verification;
    bool is_printed = true;
    cmd->is_json = cmd->is_json || ingot_cli_has_flag(argc, argv, "json");
    if (cmd->is_json) {
        ingot_verification_init(&verification, &cmd->options);
        verification.error = *error;
        if (error->status == INGOT_OK) {
            verification.error.status = INGOT_ERR_USAGE;
        }
        is_printed = print_report(cmd, &verification);
        ingot_verification_close(&verification);
    }
    return ingot_cli_finish(command_spec.tool, 2, is_printed);
}

/* The page replaces an older page, never what is checked. */
static ingot_status check_page(const command *cmd, ingot_error *error) {
    const ingot_verify_options *options = &cmd->options;
    const char *page = cmd->html_path;
    if (page == NULL) {
        return INGOT_OK;
    }
    ingot_output_outlive_readers(); /* an error is reported before the page is written */
    /* Any container: it may be another shard of the set. */
    bool is_input = ingot_path_same(page, options->path) ||
                    (ingot_path_exists(page) && ingot_is_container(page));
    is_input = is_input || (options->source_path != NULL &&
                            ingot_checkpoint_is_input(options->source_path, page));
    for (uint64_t i = 0; i < options->text_count; i++) {
        is_input = is_input || ingot_path_same(page, options->text_paths[i]);
    }
    is_input =
        is_input || (options->tasks_path != NULL && ingot_path_same(page, options->tasks_path));
    if (is_input) {
        return ingot_error_set(error, INGOT_ERR_USAGE, page, NULL, "name another file for --html",
                               "the page would replace an input or a container");
    }
    return ingot_output_check(page, error);
}

static int run(command *cmd) {
    ingot_verification verification;
    ingot_error error = {0};
    ingot_interrupt_install();
    const ingot_status status = ingot_verify_run(&verification, &cmd->options);
    int exit_code = ingot_status_exit_code(status);
    if (status != INGOT_OK) {
        (void)ingot_cli_report(command_spec.tool, &verification.error);
    }
    /* A page says what was found; where nothing was, an older page is left as it is. */
    if (cmd->html_path != NULL && verification.container != NULL && exit_code != 2) {
        const ingot_status written =
            ingot_verify_report_html(&verification, cmd->html_path, &error);
        if (written != INGOT_OK) {
            const int page_code = ingot_cli_report(command_spec.tool, &error);
            if (status == INGOT_OK) { /* else the check said no, which stays the result */
                exit_code = page_code;
                verification.error = error;
            }
        }
    }
    const bool is_printed = print_report(cmd, &verification);
    ingot_verification_close(&verification);
    return ingot_cli_finish(command_spec.tool, exit_code, is_printed);
}

int ingot_verify_command(int argc, char **argv) {
    ingot_error error = {0};
    command cmd = {
        .options = {
            .max_ppl_ratio = NAN, .max_kld = NAN, .max_accuracy_drop = NAN, .device = "auto"}};
    void *texts;
    if (ingot_alloc_zero(&texts, (uint64_t)argc + 1, sizeof *cmd.texts) != INGOT_OK) {
        (void)ingot_error_set(&error, INGOT_ERR_NO_MEMORY, NULL, NULL, NULL, "out of memory");
        (void)ingot_cli_report(command_spec.tool, &error);
        return usage_exit(argc, argv, &cmd, &error);
    }
    cmd.texts = texts;
    cmd.options.text_paths = cmd.texts;
    int exit_code = 0;
    switch (
        ingot_cli_parse(&command_spec, argc, argv, set_option, &cmd, &cmd.options.path, &error)) {
    case INGOT_CLI_RUN:
        if (check_page(&cmd, &error) != INGOT_OK) {
            (void)ingot_cli_report(command_spec.tool, &error);
            exit_code = usage_exit(argc, argv, &cmd, &error);
            break;
        }
        exit_code = run(&cmd);
        break;
    case INGOT_CLI_EXIT:
        break;
    case INGOT_CLI_USAGE:
        exit_code = usage_exit(argc, argv, &cmd, &error);
        break;
    }
    ingot_free(cmd.texts);
    return exit_code;
}
