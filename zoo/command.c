/* The command line of ingot-zoo: which subcommand, its options, its one JSON object. */
#include "zoo/zoo.h"

#include "common/files.h"
#include "kernels/backend.h"
#include "kernels/device_name.h"

#include <stdlib.h>
#include <string.h>

static const ingot_cli_option options_table[] = {
    {"jobs", 0, "N",
     "Products at a time (default: limits.jobs of the manifest, or one a device): of run, of the "
     "disk that plan counts, of tasks that slurm lets run; the others take one after another."},
    {"threads", 0, "N",
     "threads of the CPU, shared by the jobs (default: limits.threads, or all)."},
    {"only", 0, "PRODUCT", "This product alone, as MODEL/RECIPE; may be repeated."},
    {"device", 0, "D", "this device in place of those of the manifest."},
    {"until", 0, "statistics", "stop each product once its shared statistics are there."},
    {"force", 0, NULL, "make products anew, also those that are finished."},
    {"tensors", 0, NULL, "show every tensor: kind, bits, group, and why."},
    {"folder", 0, "DIR", "where its files go (default: the shelf)."},
    {"json", 0, NULL, "Print one JSON object on stdout, also on failure."},
};

static const ingot_cli_scope scopes[] = {
    {"threads", "plan, run, verify, slurm"}, {"device", "plan, run"}, {"until", "run"},
    {"force", "plan, run, slurm"},           {"tensors", "plan"},     {"folder", "report"},
};

static const ingot_cli_spec zoo_spec = {
    .tool = "ingot-zoo",
    .summary = "convert many models by many recipes into a shelf of verified files",
    .positional = "plan|run|status|report|verify|slurm MANIFEST.json",
    .description =
        "The manifest (spec/zoo.md) names models, texts, recipes, and the products to make: which "
        "model by which recipe, scored on which text, within which gates.\n\n"
        "plan: size, memory and disk of every product, and which cards hold it with how many "
        "tokens of KV cache; a model may be a config.json alone. What cannot be made, or does not "
        "fit, is named with what to change, and nothing is begun: exit code 2. run looks at the "
        "same first.\n\n"
        "run: makes every product that is not finished: ingot-convert, then ingot-verify against "
        "the source and on the text. A product that fails does not stop the others. What is "
        "finished is recognized by the digests of recipe and text and by the model's files, and "
        "left alone. Two runs on one shelf share the work. Exit code 1 if a gate failed, 2 if a "
        "product could not be made.\n\n"
        "status: the state of every product, from the records of the shelf.\n\n"
        "report: report.html (one page with charts), report.csv and report.json.\n\n"
        "verify: reads every file of the shelf: is it the one on record, whole, made as the "
        "manifest says from the model as it is now, within its gates; and which files are missing "
        "or nobody's. Of a product whose last run failed it also says for what. Exit code 1 if any "
        "is not, 2 if one cannot be read.\n\n"
        "slurm: submits what is not finished as job arrays of Slurm, one task for each product, "
        "with memory and CPUs from the plan; shared statistics come first. --jobs bounds the tasks "
        "at a time. status then shows what squeue says, and of jobs that have left the queue what "
        "sacct says, where the site has accounting.",
    .options = options_table,
    .option_count = sizeof options_table / sizeof *options_table,
    .scopes = scopes,
    .scope_count = sizeof scopes / sizeof *scopes,
    .examples = "ingot-zoo plan zoo.json\n"
                "    what it will take, and whether it fits\n"
                "ingot-zoo run zoo.json --jobs 2\n"
                "    makes what is missing, two products at a time\n"
                "ingot-zoo report zoo.json\n"
                "    tables and charts of what is on the shelf\n",
};

#define KEYS_MAX 8

static const struct {
    const char *name;
    ingot_zoo_command run;
    bool uses_devices;          /* of this machine */
    const char *keys[KEYS_MAX]; /* of its object, null until they are known */
} commands[] = {
    {"plan",
     ingot_zoo_plan,
     true,
     {"products", "problems", "devices", "room", "disk_bytes", "seconds", "product_rate",
      "unused"}},
    {"run",
     ingot_zoo_run,
     true,
     {"products", "made", "finished_before", "failed", "gates_failed", "left", "seconds",
      "removed"}},
    {"status", ingot_zoo_status, false, {"products", "states", "gates_failed"}},
    {"report",
     ingot_zoo_report,
     false,
     {"products", "states", "gates_failed", "format", "version"}},
    {"verify", ingot_zoo_verify, false, {"products", "foreign", "verdicts", "bytes", "seconds"}},
    {"slurm", ingot_zoo_slurm, false, {"submitted", "queued_before", "left_out", "jobs"}},
};
#define COMMAND_COUNT (sizeof commands / sizeof *commands)

uint64_t ingot_zoo_jobs(const ingot_manifest *manifest, const ingot_zoo_options *options) {
    return options->jobs != 0           ? options->jobs
           : manifest->limits.jobs != 0 ? manifest->limits.jobs
                                        : manifest->device_count;
}

bool ingot_zoo_is_chosen(const ingot_zoo_options *options, const ingot_zoo_product *product) {
    bool is_chosen = options->only_count == 0;
    for (uint64_t i = 0; i < options->only_count && !is_chosen; i++) {
        is_chosen = strcmp(options->only[i], product->name) == 0;
    }
    return is_chosen;
}

#define MEMBER(name) offsetof(ingot_zoo_options, name)

static const ingot_cli_member members[] = {
    {"jobs", INGOT_CLI_U64, .offset = MEMBER(jobs), .least = 1, .most = 256},
    {"threads", INGOT_CLI_U64, .offset = MEMBER(threads), .least = 1, .most = 256},
    {"force", INGOT_CLI_FLAG, .offset = MEMBER(is_forced)},
    {"tensors", INGOT_CLI_FLAG, .offset = MEMBER(with_tensors)},
    {"folder", INGOT_CLI_TEXT, .offset = MEMBER(folder)},
    {"json", INGOT_CLI_FLAG, .offset = MEMBER(as_json)},
};

static ingot_status on_option(void *context, const char *name, const char *value,
                              ingot_error *error) {
    ingot_zoo_options *o = context;
    if (strcmp(name, "only") == 0) {
        if (o->only_count == INGOT_ZOO_MAX_ONLY) {
            return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "use a smaller manifest",
                                   "--only more than %u times", INGOT_ZOO_MAX_ONLY);
        }
        o->only[o->only_count++] = value;
        return INGOT_OK;
    }
    if (strcmp(name, "device") == 0) {
        o->device = value;
        return ingot_device_check_name(value, error);
    }
    if (strcmp(name, "until") == 0) {
        static const char *const steps[] = {"statistics"};
        int index;
        o->until_statistics = true;
        return ingot_cli_parse_choice(&index, name, value, steps, 1, error);
    }
    return ingot_cli_store(o, members, sizeof members / sizeof *members, name, value, error);
}

/* The object of a subcommand, nothing known yet; COMMAND_COUNT: of none. */
static json_t *empty_object(size_t index) {
    json_t *object = json_object();
    for (unsigned i = 0; index < COMMAND_COUNT && i < KEYS_MAX; i++) {
        if (commands[index].keys[i] != NULL) {
            ingot_json_put(object, commands[index].keys[i], json_null());
        }
    }
    return object;
}

/* Adds what every subcommand's object has, and prints it: false when not all of it. */
static bool print_json(json_t *object, const char *command, const ingot_error *error) {
    ingot_json_put(object, "command", command != NULL ? json_string(command) : json_null());
    ingot_json_put_error(object, error);
    return ingot_json_print(object, stdout);
}

/* --only must name products of the manifest: a slip of the pen is no empty run. */
static ingot_status check_only(const ingot_manifest *m, const ingot_zoo_options *o,
                               ingot_error *error) {
    for (uint64_t i = 0; i < o->only_count; i++) {
        uint64_t k = 0;
        while (k < m->product_count && strcmp(m->products[k].name, o->only[i]) != 0) {
            k++;
        }
        if (k == m->product_count) {
            return ingot_error_set(error, INGOT_ERR_USAGE, m->path, NULL, "give it as MODEL/RECIPE",
                                   "no product %s", o->only[i]);
        }
    }
    return INGOT_OK;
}

/* "auto" is one device for the plan and for every tool of a run. */
static void settle_devices(ingot_manifest *m) {
    const char *settled = NULL;
    for (uint64_t i = 0; i < m->device_count; i++) {
        if (strcmp(m->devices[i], "auto") == 0) {
            settled = settled != NULL ? settled : ingot_backend_settle(m->devices[i]);
            m->devices[i] = settled;
        }
    }
}

static int run(size_t index, const ingot_zoo_options *options) {
    ingot_manifest manifest;
    ingot_error error = {0};
    ingot_zoo_result result = {.json = empty_object(index)};
    ingot_interrupt_install();
    ingot_status status = ingot_manifest_read(&manifest, options->manifest_path, &error);
    if (status == INGOT_OK) {
        status = check_only(&manifest, options, &error);
    }
    if (status == INGOT_OK && options->device != NULL) {
        manifest.devices[0] = options->device;
        manifest.device_count = 1;
    }
    if (status == INGOT_OK && commands[index].uses_devices) {
        settle_devices(&manifest);
    }
    if (status == INGOT_OK) {
        status = commands[index].run(&result, &manifest, options, &error);
    }
    ingot_manifest_free(&manifest);
    if (status != INGOT_OK) {
        if (error.status != status) {
            (void)ingot_error_set(&error, status, options->manifest_path, NULL, NULL, "%s",
                                  ingot_status_text(status));
        }
        result.exit_code = ingot_cli_report(zoo_spec.tool, &error);
    }
    const bool is_printed =
        !options->as_json || print_json(result.json, commands[index].name, &error);
    json_decref(result.json);
    return ingot_cli_finish(zoo_spec.tool, result.exit_code, is_printed);
}

int ingot_zoo_tool(int argc, char **argv) {
    ingot_zoo_options options = {0};
    ingot_error error = {0};
    const size_t count = COMMAND_COUNT;
    size_t index = 0;
    /* The subcommand is the first word; the rest is the command line of a tool as all others. */
    const bool has_command = argc > 1 && argv[1][0] != '-';
    while (has_command && index < count && strcmp(argv[1], commands[index].name) != 0) {
        index++;
    }
    if (!has_command || index == count) {
        index = count;
    }
    /* A word that is no subcommand, alone, is most likely the manifest. */
    const int skipped = has_command && (index < count || argc > 2) ? 1 : 0;
    argv[skipped] = argv[0];
    ingot_cli_spec spec = zoo_spec;
    spec.argument = index < count ? "MANIFEST.json" : NULL;
    const ingot_cli_outcome outcome = ingot_cli_parse(
        &spec, argc - skipped, argv + skipped, on_option, &options, &options.manifest_path, &error);
    if (outcome == INGOT_CLI_EXIT) {
        return 0;
    }
    if (outcome == INGOT_CLI_RUN && index < count &&
        ingot_cli_check_scopes(&zoo_spec, argc - skipped, argv + skipped, commands[index].name,
                               &error) == INGOT_OK) {
        return run(index, &options);
    }
    if (outcome == INGOT_CLI_RUN && index < count) {
        (void)ingot_cli_report(zoo_spec.tool, &error);
    } else if (outcome == INGOT_CLI_RUN) {
        (void)ingot_error_set(&error, INGOT_ERR_USAGE, NULL, NULL, NULL,
                              "the first word must say what to do: %s", zoo_spec.positional);
        (void)ingot_cli_report(zoo_spec.tool, &error);
    }
    error.status = error.status == INGOT_OK ? INGOT_ERR_USAGE : error.status;
    bool is_printed = true;
    if (ingot_cli_has_flag(argc - skipped, argv + skipped, "json")) {
        json_t *object = empty_object(index);
        is_printed = print_json(object, index < count ? commands[index].name : NULL, &error);
        json_decref(object);
    }
    return ingot_cli_finish(zoo_spec.tool, 2, is_printed);
}
