/* The command line of ingot-bench: which measurement, its options, figures as text or JSON. */
#include "verify/bench.h"

#include "calib/dataset.h"
#include "common/files.h"
#include "verify/bench_convert.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_figures(const json_t *figures) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)figures, key, value) {
        if (json_is_real(value)) {
            printf("  %-40s%.4g\n", key, json_real_value(value));
        } else if (json_is_integer(value)) {
            printf("  %-40s%" PRId64 "\n", key, (int64_t)json_integer_value(value));
        } else {
            printf("  %-40s%s\n", key, json_is_string(value) ? json_string_value(value) : "-");
        }
    }
}

typedef struct measurement {
    const char *name;
    ingot_bench_run run;
    ingot_bench_print print; /* NULL: it prints while it measures */
    unsigned threads;        /* unless the command line says how many; 0: one per CPU */
} measurement;

static const measurement measurements[] = {
    {"verify", ingot_bench_verify, print_figures, 2},
    {"convert", ingot_bench_convert, NULL, 2},
    {"decode", ingot_bench_decode, ingot_bench_decode_print, 0},
    {"kernels", ingot_bench_kernels, ingot_bench_kernels_print, 0},
};

static const ingot_cli_option options_table[] = {
    {"file", 0, "FILE.ingot", "measure this container (default: one that is generated)."},
    {"size", 0, "BYTES", "size of the generated container; suffixes K, M, G (default 1G)."},
    {"folder", 0, "DIR", "where it is generated, and removed again (default: the current one)."},
    {"threads", 0, "N", "Threads (default 2; decode, kernels: one per CPU)."},
    {"runs", 0, "N", "Repetitions; the fastest counts (default 3). A conversion runs once."},
    {"model", 0, "MODEL_DIR", "the checkpoint."},
    {"text", 0, "FILE", "calibration text."},
    {"methods", 0, "LIST", "methods, separated by commas (default gptq,awq+gptq,rtn)."},
    {"samples", 0, "N", "calibration windows (default 128)."},
    {"seq-len", 0, "N", "tokens per window (default: 2048 or the model's context)."},
    {"device", 0, "D",
     "auto (default), cpu, cuda or cuda:N. A GPU: compute capability 8.0 or later. Containers are "
     "verified by the cpu alone."},
    {"devices", 0, "LIST", "the first method once more on these devices together: 0,1."},
    {"slice", 0, "MODEL_DIR",
     "a checkpoint with the first blocks of a larger model, whose time is extrapolated."},
    {"slice-blocks", 0, "N", "blocks of that larger model (default 80)."},
    {"shape", 0, "NAME",
     "shapes of the generated model: llama-3.1-8b (default), llama-3.1-70b or tiny."},
    {"head-bits", 0, "N",
     "bits of the generated model's head: 4 (default), or 16, as ingot-convert leaves it."},
    {"group", 0, "G",
     "columns of a group of the weights of --products and of the generated model (default 128)."},
    {"asym", 0, NULL, "those weights have stored zero points."},
    {"products", 0, "LIST",
     "these products alone, separated by commas: NxK, NxK:BITS, NxK:BITS:M with M rows of "
     "activations, and NxK:BITS:M:handed with those as the product in front hands them on."},
    {"json", 0, NULL, "Print one JSON object on stdout, also on failure."},
};

static const ingot_cli_scope scopes[] = {
    {"file", "verify, decode"},  {"size", "verify"},          {"folder", "verify, convert"},
    {"model", "convert"},        {"text", "convert"},         {"methods", "convert"},
    {"samples", "convert"},      {"seq-len", "convert"},      {"devices", "convert"},
    {"slice", "convert"},        {"slice-blocks", "convert"}, {"shape", "decode"},
    {"head-bits", "decode"},     {"products", "kernels"},     {"group", "decode, kernels"},
    {"asym", "decode, kernels"},
};

static const ingot_cli_spec bench_spec = {
    .tool = "ingot-bench",
    .summary = "measure this machine, each figure beside its limit",
    .positional = "verify|convert|decode|kernels",
    .description =
        "verify: the speed of the full check of a container, from the disk and from the page "
        "cache, beside the speed at which the same bytes are read from disk, cache and memory, "
        "and beside xxhsum -H3 and sha256sum on the same file; and the time to open a container of "
        "10,000 tensors.\n\n"
        "convert: ingot-convert over a checkpoint, by each method with the source in the page "
        "cache, and by the first of them and rtn with its pages dropped: seconds of every phase "
        "beside the least that products, bus and disk as measured here allow, the most device and "
        "host memory, and a block's forward pass and statistics beside the rate of products.  "
        "Figures are printed as they are measured, and those that are there stay when it is "
        "interrupted or fails.  On an H200 the default methods took an 8B model in memory two and "
        "a half minutes, --devices and --slice one more.\n\n"
        "decode: tokens a second of a device at batch 1 and 16 behind 128 and 4096 tokens, and of "
        "a "
        "prompt of 512, for a container or for random weights (4 bits; groups as --group and "
        "--asym, the head as --head-bits say) made on the "
        "device; beside the speed at which its memory could deliver weights, keys and values.  For "
        "a container also how fast it is loaded, beside the bus and digests on four threads.\n\n"
        "kernels: the time of products with packed random weights of the shapes of 8B and 70B "
        "models, and with a head of an 8B model in BF16, beside the time in which the device reads "
        "those bytes and beside cuBLAS with "
        "BF16 weights; the results are compared with FP64 in the same run, and a wrong one is a "
        "failure.\n\n"
        "The page cache is asked to drop the file before it is read from the disk (posix_fadvise); "
        "whether the "
        "storage below has a cache of its own cannot be seen from here.",
    .options = options_table,
    .option_count = sizeof options_table / sizeof *options_table,
    .scopes = scopes,
    .scope_count = sizeof scopes / sizeof *scopes,
    .examples = "ingot-bench verify --json\n"
                "    a generated container of 1 GiB, two threads\n"
                "ingot-bench convert --model model --text notes.txt --folder /fast --threads 16\n"
                "    three methods, from the page cache and from the disk\n"
                "ingot-bench kernels --device cuda\n"
                "    the kernels of the decoder on the first GPU\n"
                "ingot-bench kernels --products 4096x4096,4096x14336:4:16:handed\n"
                "    one product with one row, 4 bits, and one with 16 rows handed on\n",
};

#define MEMBER(name) offsetof(ingot_bench_options, name)

static const ingot_cli_member members[] = {
    {"file", INGOT_CLI_TEXT, .offset = MEMBER(file)},
    {"folder", INGOT_CLI_TEXT, .offset = MEMBER(folder)},
    {"threads", INGOT_CLI_COUNT, .offset = MEMBER(threads), .least = 1, .most = 64},
    {"runs", INGOT_CLI_COUNT, .offset = MEMBER(runs), .least = 1, .most = 1000},
    {"model", INGOT_CLI_TEXT, .offset = MEMBER(model)},
    {"text", INGOT_CLI_TEXT, .offset = MEMBER(text)},
    {"methods", INGOT_CLI_TEXT, .offset = MEMBER(methods)},
    {"samples", INGOT_CLI_U64, .offset = MEMBER(samples), .least = 1, .most = 1 << 20},
    {"seq-len", INGOT_CLI_U64, .offset = MEMBER(seq_len), .least = 2, .most = 1 << 20},
    {"device", INGOT_CLI_TEXT, .offset = MEMBER(device)},
    {"devices", INGOT_CLI_TEXT, .offset = MEMBER(devices)},
    {"slice", INGOT_CLI_TEXT, .offset = MEMBER(slice)},
    {"slice-blocks", INGOT_CLI_U64, .offset = MEMBER(slice_blocks), .least = 1, .most = 1 << 20},
    {"shape", INGOT_CLI_TEXT, .offset = MEMBER(shape)},
    {"head-bits", INGOT_CLI_COUNT, .offset = MEMBER(head_bits), .least = 4, .most = 16},
    {"products", INGOT_CLI_TEXT, .offset = MEMBER(products)},
    {"group", INGOT_CLI_U64, .offset = MEMBER(group), .least = 8, .most = 1 << 20},
    {"asym", INGOT_CLI_FLAG, .offset = MEMBER(has_zeros)},
    {"json", INGOT_CLI_FLAG, .offset = MEMBER(as_json)},
};

static ingot_status on_option(void *context, const char *name, const char *value,
                              ingot_error *error) {
    ingot_bench_options *o = context;
    if (strcmp(name, "size") != 0) {
        return ingot_cli_store(o, members, sizeof members / sizeof *members, name, value, error);
    }
    INGOT_TRY(ingot_cli_parse_bytes(&o->size_bytes, name, value, error));
    return o->size_bytes >= 1 << 20 && o->size_bytes <= UINT64_C(1) << 40
               ? INGOT_OK
               : ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, NULL,
                                 "--size must lie between 1M and 1T");
}

/* False when not all of it was printed. */
static bool print_json(json_t *figures, const char *name, const ingot_error *error) {
    json_t *object = json_object();
    (void)json_object_set_new(object, "bench", ingot_json_any_text(name));
    const bool has_figures = figures != NULL && json_object_size(figures) != 0;
    (void)json_object_set(object, "figures", has_figures ? figures : json_null());
    ingot_json_put_error(object, error);
    const bool is_printed = ingot_json_print(object, stdout);
    json_decref(object);
    return is_printed;
}

/* NULL when there is none of that name. */
static const measurement *find_measurement(const char *name) {
    for (size_t i = 0; i < sizeof measurements / sizeof *measurements; i++) {
        if (strcmp(measurements[i].name, name) == 0) {
            return &measurements[i];
        }
    }
    return NULL;
}

/* What describes a generated container or model does not go with a file, nor a slice's blocks or a
 * text's windows with none; then the defaults of these. */
static ingot_status settle(ingot_bench_options *o, ingot_error *error) {
    if (o->file != NULL && (o->size_bytes != 0 || o->shape != NULL || o->head_bits != 0 ||
                            o->group != 0 || o->has_zeros)) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "leave one of them out",
                               "--%s describes what is generated in the place of --file",
                               o->shape != NULL    ? "shape"
                               : o->head_bits != 0 ? "head-bits"
                               : o->group != 0     ? "group"
                               : o->has_zeros      ? "asym"
                                                   : "size");
    }
    if (o->head_bits != 0 && o->head_bits != 4 && o->head_bits != 16) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, NULL, "--head-bits is 4 or 16");
    }
    if (o->slice == NULL && o->slice_blocks != 0) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "give --slice MODEL_DIR",
                               "--slice-blocks is about a slice");
    }
    if (o->text == NULL && (o->samples != 0 || o->seq_len != 0)) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "add --text FILE",
                               "--%s says how to cut a text, but there is none",
                               o->samples != 0 ? "samples" : "seq-len");
    }
    o->samples = o->samples != 0 ? o->samples : INGOT_WINDOW_COUNT;
    o->size_bytes = o->size_bytes != 0 ? o->size_bytes : UINT64_C(1) << 30;
    o->slice_blocks = o->slice_blocks != 0 ? o->slice_blocks : 80;
    o->shape = o->shape != NULL ? o->shape : "llama-3.1-8b";
    return INGOT_OK;
}

ingot_status ingot_bench_place(char *path, size_t size, const ingot_bench_options *options,
                               const char *name, ingot_error *error) {
    INGOT_TRY(ingot_path_join(path, size, options->folder, name));
    INGOT_TRY(ingot_output_check(path, error));
    return ingot_path_exists(path)
               ? ingot_error_set(error, INGOT_ERR_EXISTS, path, NULL,
                                 "move it away, or name another --folder",
                                 "a file has the name of one that is to be generated")
               : INGOT_OK;
}

int ingot_bench_tool(int argc, char **argv) {
    ingot_bench_options options = {.folder = ".", .runs = 3, .methods = "gptq,awq+gptq,rtn"};
    const char *name = NULL;
    json_t *figures = NULL;
    ingot_error error = {0};
    const ingot_cli_outcome outcome =
        ingot_cli_parse(&bench_spec, argc, argv, on_option, &options, &name, &error);
    if (outcome == INGOT_CLI_EXIT) {
        return 0;
    }
    if (outcome == INGOT_CLI_USAGE) {
        error.status = error.status == INGOT_OK ? INGOT_ERR_USAGE : error.status;
        return ingot_cli_finish(bench_spec.tool, 2,
                                !ingot_cli_has_flag(argc, argv, "json") ||
                                    print_json(NULL, name, &error));
    }
    ingot_interrupt_install();
    const measurement *found = find_measurement(name);
    if (found != NULL && options.threads == 0) {
        options.threads = found->threads;
    }
    ingot_status status = found != NULL
                              ? ingot_cli_check_scopes(&bench_spec, argc, argv, name, &error)
                              : ingot_error_set(&error, INGOT_ERR_USAGE, NULL, NULL,
                                                "use verify, convert, decode or kernels",
                                                "unknown measurement \"%s\"", name);
    status = status == INGOT_OK ? settle(&options, &error) : status;
    if (status == INGOT_OK) {
        status = found->run(&figures, &options, &error);
    }
    error.status = status;
    bool is_printed = true;
    if (options.as_json) {
        is_printed = print_json(figures, name, &error);
    } else if (status == INGOT_OK && found->print != NULL) {
        found->print(figures);
    }
    json_decref(figures);
    return ingot_cli_end(bench_spec.tool, status, &error, is_printed);
}
