/* The command line of ingot-convert. */
#include "convert/convert.h"

#include <string.h>

static const ingot_cli_option options[] = {
    {"output", 'o', "OUT.ingot", "The container to write. Required, except with --dry-run."},
    {"method", 0, "M",
     "rtn (plain rounding), awq, gptq or awq+gptq. Default: gptq with --text or --stats, else "
     "rtn."},
    {"effort", 0, "E",
     "fast: rounding with searched scales. default. best: blocks are tuned as well."},
    {"bits", 0, "2..8", "Bits per weight of the linears (default 4)."},
    {"group", 0, "G", "Weights that share a scale: 32, 64, 128 (default) or row."},
    {"sym", 0, NULL, "Symmetric codes (default)."},
    {"asym", 0, NULL, "Codes with a stored zero point per group."},
    {"outliers", 0, "FRACTION", "Keep this fraction of the weights as sparse F16 values."},
    {"target-bpw", 0, "X",
     "Choose each matrix's bits by its measured sensitivity, for X (2..8) bits per weight in all, "
     "scales included; needs --text."},
    {"sensitivity", 0, "FILE.sens",
     "Where --target-bpw keeps what it measured, for other targets (default: OUT.sens)."},
    {"head-bits", 0, "B", "Quantize the output head to B bits (default: source type)."},
    {"embed-bits", 0, "B", "Quantize the embedding to B bits (default: source type)."},
    {"recipe", 0, "FILE.json", "Defaults and per-tensor rules (spec/recipe.md)."},
    {"text", 0, "FILE", "Calibration text; may be repeated. @self: the model writes it."},
    {"stats", 0, "FILE.calib", "Calibration statistics written by ingot-calib."},
    {"samples", 0, "N", "Calibration windows (default 128)."},
    {"seq-len", 0, "N", "Tokens per window (default: 2048 or the model's context)."},
    {"seed", 0, "N", "Of the windows that tuning draws and of the text of @self (default 0)."},
    {"device", 0, "D",
     "auto (default), cpu, cuda or cuda:N. A GPU: compute capability 8.0 or later."},
    {"devices", 0, "LIST",
     "Several devices, numbers of GPUs or names as for --device: 0,1. They share the calibration "
     "windows and the linears of a block."},
    {"threads", 0, "N", "CPU threads (default: all usable). Never changes the result."},
    {"dry-run", 0, NULL, "Print the plan, its sizes and memory, and stop."},
    {"resume", 0, NULL,
     "Save the state after every block as OUT.resume, and go on from it where there is one."},
    {"force", 0, NULL, "Replace an existing output; of a link the file behind it."},
    {"zstd", 0, NULL, "Compress the data, for archive copies."},
    {"shard-size", 0, "BYTES", "Split the container; suffixes K, M, G, T."},
    {"sha256", 0, NULL, "Record the SHA-256 of the source files."},
    {"json", 0, NULL, "Print one JSON object on stdout, also on failure."},
};

const ingot_cli_spec ingot_convert_spec = {
    .tool = "ingot-convert",
    .summary = "convert a checkpoint into a quantized container",
    .positional = "MODEL_DIR",
    .description =
        "Reads a Hugging Face checkpoint folder (F32, F16 or BF16 safetensors), quantizes the "
        "weights of its linear layers and writes one verified Ingot container.\n\n"
        "With calibration text the blocks are converted in order, each on the activations of the "
        "already quantized prefix. An option overrides the recipe's default of the same name; a "
        "rule of the recipe that matches a tensor's name is more specific than both.",
    .options = options,
    .option_count = sizeof options / sizeof *options,
    .examples = "ingot-convert model -o model.ingot --text notes.txt\n"
                "    4-bit GPTQ, groups of 128, calibrated on notes.txt\n"
                "ingot-convert model -o model.ingot --bits 8 --group row\n"
                "    plain rounding to 8 bits, one scale a row\n"
                "ingot-convert model --dry-run --method gptq --text notes.txt\n"
                "    print the plan and its memory\n",
};

static ingot_status parse_u64(uint64_t *out, unsigned *given, unsigned flag, const char *name,
                              const char *value, uint64_t minimum, uint64_t maximum,
                              ingot_error *error) {
    *given |= flag;
    return ingot_cli_parse_u64(out, name, value, minimum, maximum, error);
}

/* Options of the recipe; *is_known is false when name is none of them. */
static ingot_status recipe_option(ingot_recipe *r, bool *is_known, const char *name,
                                  const char *value, ingot_error *error) {
    ingot_setting *d = &r->defaults;
    uint64_t number = 0;
    *is_known = true;
    if (strcmp(name, "method") == 0) {
        INGOT_TRY(ingot_recipe_parse_method(d, value, NULL, error));
        if (d->method == INGOT_CHOICE_KEEP || d->method == INGOT_CHOICE_SEARCHED) {
            return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL,
                                   "use rtn, awq, gptq or awq+gptq; --effort fast searches scales",
                                   "--method %s is for recipes", value);
        }
    } else if (strcmp(name, "effort") == 0) {
        INGOT_TRY(ingot_recipe_parse_effort(r, value, NULL, error));
    } else if (strcmp(name, "bits") == 0) {
        INGOT_TRY(parse_u64(&number, &d->given, INGOT_GIVEN_BITS, name, value, 2, 8, error));
        d->bits = (unsigned)number;
    } else if (strcmp(name, "group") == 0) {
        INGOT_TRY(ingot_recipe_parse_group(d, value, NULL, error));
    } else if (strcmp(name, "sym") == 0 || strcmp(name, "asym") == 0) {
        d->is_symmetric = name[0] == 's';
        d->given |= INGOT_GIVEN_SYMMETRIC;
    } else if (strcmp(name, "outliers") == 0) {
        d->given |= INGOT_GIVEN_OUTLIERS;
        INGOT_TRY(ingot_cli_parse_double(&d->outliers, name, value, 0, 0.5, error));
    } else if (strcmp(name, "target-bpw") == 0) {
        r->given |= INGOT_GIVEN_TARGET;
        INGOT_TRY(ingot_cli_parse_double(&r->target_bpw, name, value, 2, 8, error));
    } else if (strcmp(name, "head-bits") == 0) {
        INGOT_TRY(parse_u64(&number, &r->given, INGOT_GIVEN_HEAD, name, value, 2, 8, error));
        r->head_bits = (unsigned)number;
    } else if (strcmp(name, "embed-bits") == 0) {
        INGOT_TRY(parse_u64(&number, &r->given, INGOT_GIVEN_EMBED, name, value, 2, 8, error));
        r->embed_bits = (unsigned)number;
    } else if (strcmp(name, "samples") == 0) {
        INGOT_TRY(parse_u64(&r->samples, &r->given, INGOT_GIVEN_SAMPLES, name, value, 1, 1u << 20,
                            error));
    } else if (strcmp(name, "seq-len") == 0) {
        INGOT_TRY(
            parse_u64(&r->seq_len, &r->given, INGOT_GIVEN_LENGTH, name, value, 2, 1u << 20, error));
    } else if (strcmp(name, "seed") == 0) {
        INGOT_TRY(
            parse_u64(&r->seed, &r->given, INGOT_GIVEN_SEED, name, value, 0, INT64_MAX, error));
    } else {
        *is_known = false;
    }
    return INGOT_OK;
}

static ingot_status run_option(ingot_convert_options *o, const char *name, const char *value,
                               ingot_error *error) {
    uint64_t number = 0;
    if (strcmp(name, "output") == 0) {
        o->output = value;
    } else if (strcmp(name, "recipe") == 0) {
        o->recipe_path = value;
    } else if (strcmp(name, "text") == 0) {
        if (o->text_count == INGOT_MAX_TEXTS) {
            return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "concatenate some of them",
                                   "more than %u texts", INGOT_MAX_TEXTS);
        }
        o->texts[o->text_count++] = value;
    } else if (strcmp(name, "stats") == 0) {
        o->stats = value;
    } else if (strcmp(name, "sensitivity") == 0) {
        o->sensitivity = value;
    } else if (strcmp(name, "device") == 0) {
        o->device = value;
    } else if (strcmp(name, "devices") == 0) {
        o->devices = value;
    } else if (strcmp(name, "threads") == 0) {
        INGOT_TRY(ingot_cli_parse_u64(&number, name, value, 1, 256, error));
        o->threads = (unsigned)number;
    } else if (strcmp(name, "dry-run") == 0) {
        o->is_dry_run = true;
    } else if (strcmp(name, "resume") == 0) {
        o->resumes = true;
    } else if (strcmp(name, "force") == 0) {
        o->force = true;
    } else if (strcmp(name, "zstd") == 0) {
        o->is_compressed = true;
    } else if (strcmp(name, "shard-size") == 0) {
        INGOT_TRY(ingot_cli_parse_bytes(&o->shard_size_bytes, name, value, error));
        if (o->shard_size_bytes == 0) {
            return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "leave it out for one file",
                                   "--shard-size must not be 0");
        }
    } else if (strcmp(name, "sha256") == 0) {
        o->with_sha256 = true;
    } else {
        o->as_json = true; /* the last of the table */
    }
    return INGOT_OK;
}

ingot_status ingot_convert_option(void *context, const char *name, const char *value,
                                  ingot_error *error) {
    ingot_convert_options *o = context;
    bool is_known;
    INGOT_TRY(recipe_option(&o->recipe, &is_known, name, value, error));
    return is_known ? INGOT_OK : run_option(o, name, value, error);
}
