/* Gathering what ingot-inspect shows, and the tool's command line. */
#include "format/inspect.h"

#include "common/cli.h"
#include "common/files.h"
#include "common/memory.h"
#include "format/container_internal.h"
#include "format/digest.h"
#include "format/weight_source.h"

#include <math.h>
#include <stdlib.h>

static const char *const kind_names[] = {"dense", "grouped", "alias", "auxiliary"};

const char *path_base(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash == NULL ? path : slash + 1;
}

/* ---- roles ---------------------------------------------------------------------------------- */

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

/* Components of the name that are numbers become '*': "layers.3.mlp" -> "layers.*.mlp". */
static void role_name(char out[INGOT_MAX_NAME + 1], const char *name) {
    size_t at = 0;
    bool is_start = true;
    while (*name != '\0') {
        size_t digits = 0;
        while (is_start && is_digit(name[digits])) {
            digits++;
        }
        if (digits > 0 && (name[digits] == '.' || name[digits] == '\0')) {
            out[at++] = '*';
            name += digits;
        } else {
            is_start = *name == '.';
            out[at++] = *name++;
            continue;
        }
        is_start = false;
    }
    out[at] = '\0';
}

static int compare_roles(const void *a, const void *b, void *context) {
    const inspection *all = context;
    const uint64_t left = *(const uint64_t *)a;
    const uint64_t right = *(const uint64_t *)b;
    char left_name[INGOT_MAX_NAME + 1];
    char right_name[INGOT_MAX_NAME + 1];
    role_name(left_name, all->tensors[left].name);
    role_name(right_name, all->tensors[right].name);
    const int order = strcmp(left_name, right_name);
    return order != 0 ? order : left < right ? -1 : left > right;
}

/* Gives every tensor its role; roles are numbered in order of first appearance.  By sorting, so
 * that a file of a million different names takes no longer than it must. */
static ingot_status find_roles(inspection *all) {
    void *memory;
    INGOT_TRY(ingot_alloc_zero(&memory, 2 * all->tensor_count + 1, sizeof(uint64_t)));
    uint64_t *order = memory;
    uint64_t *first = order + all->tensor_count; /* of the tensor's role, by tensor */
    for (uint64_t i = 0; i < all->tensor_count; i++) {
        order[i] = i;
    }
    qsort_r(order, (size_t)all->tensor_count, sizeof *order, compare_roles, all);
    for (uint64_t i = 0; i < all->tensor_count; i++) {
        char name[INGOT_MAX_NAME + 1];
        char previous[INGOT_MAX_NAME + 1] = "";
        role_name(name, all->tensors[order[i]].name);
        if (i > 0) {
            role_name(previous, all->tensors[order[i - 1]].name);
        }
        first[order[i]] = strcmp(name, previous) == 0 ? first[order[i - 1]] : order[i];
    }
    for (uint64_t i = 0; i < all->tensor_count; i++) {
        all->tensors[i].role = first[i] == i ? all->role_count++ : all->tensors[first[i]].role;
        role_name(all->roles[all->tensors[i].role].name, all->tensors[i].name);
    }
    ingot_free(memory);
    return INGOT_OK;
}

static bool is_same_storage(const inspect_tensor *a, const inspect_tensor *b) {
    if (strcmp(a->kind, b->kind) != 0 || strcmp(a->dtype, b->dtype) != 0) {
        return false;
    }
    return a->record == NULL || b->record == NULL ||
           (a->record->bits == b->record->bits && a->record->group == b->record->group &&
            a->record->zero_mode == b->record->zero_mode &&
            a->record->scale_dtype == b->record->scale_dtype);
}

static void add_figure(double *sum, uint64_t *count, double value) {
    if (isfinite(value)) {
        *sum = hypot(*sum, value); /* no square of it is beyond a binary64 */
        ++*count;
    }
}

static ingot_status sum_roles(inspection *all) {
    void *memory;
    INGOT_TRY(ingot_alloc_zero(&memory, all->role_count + 1, sizeof(uint64_t[4])));
    uint64_t(*counts)[4] = memory;
    for (uint64_t i = 0; i < all->tensor_count; i++) {
        const inspect_tensor *tensor = &all->tensors[i];
        inspect_role *role = &all->roles[tensor->role];
        uint64_t *count = counts[tensor->role];
        if (role->first == NULL) {
            role->first = tensor;
            role->is_uniform = true;
        }
        role->is_uniform = role->is_uniform && is_same_storage(role->first, tensor);
        role->tensors++;
        role->elements += tensor->elements;
        role->bytes += tensor->bytes;
        add_figure(&role->weight_error, &count[0], tensor->ledger.weight_error);
        add_figure(&role->weight_error_rtn, &count[1], tensor->ledger.weight_error_rtn);
        add_figure(&role->output_error, &count[2], tensor->ledger.output_error);
        add_figure(&role->output_error_rtn, &count[3], tensor->ledger.output_error_rtn);
    }
    for (uint64_t i = 0; i < all->role_count; i++) {
        inspect_role *role = &all->roles[i]; /* 0 / 0 is NaN: nothing to show */
        role->weight_error /= sqrt((double)counts[i][0]);
        role->weight_error_rtn /= sqrt((double)counts[i][1]);
        role->output_error /= sqrt((double)counts[i][2]);
        role->output_error_rtn /= sqrt((double)counts[i][3]);
    }
    ingot_free(memory);
    return INGOT_OK;
}

/* ---- gathering --------------------------------------------------------------------------------
 */

static void take_record(inspection *all, inspect_tensor *out, uint64_t index) {
    const ingot_tensor *record = ingot_tensor_at(all->container, index);
    out->record = record;
    out->name = record->name;
    out->kind = kind_names[record->kind];
    out->dtype = ingot_dtype_name(record->dtype);
    out->rank = record->rank;
    memcpy(out->dim, record->dim, sizeof out->dim);
    out->elements = record->rows * record->cols;
    for (unsigned p = 0; p < INGOT_PART_COUNT; p++) {
        out->bytes += record->part_bytes[p];
    }
    ingot_ledger_at(all->container, index, &out->ledger);
    const bool is_alias = record->kind == INGOT_ALIAS; /* of the same file */
    const ingot_tensor *holder =
        is_alias ? ingot_tensor_at(all->container, record->alias_of) : record;
    const shard *part = shard_of_tensor(all->container, index);
    ingot_digest128(out->data_digest, part->chunks + 8 * holder->first_chunk,
                    8 * tensor_chunk_count(holder));
    out->alias_of = is_alias ? holder->name : NULL;
    if (is_alias || record->kind == INGOT_AUXILIARY) {
        return;
    }
    all->weights += out->elements;
    all->methods[out->ledger.method]++;
    if (record->kind == INGOT_GROUPED) {
        all->quantized_tensors++;
        all->quantized_weights += out->elements;
        all->quantized_bytes += out->bytes;
    }
}

static void take_source(inspection *all, inspect_tensor *out, uint64_t index) {
    const ingot_st_tensor *source = ingot_checkpoint_at(all->checkpoint, index);
    out->name = source->name;
    out->kind = kind_names[INGOT_DENSE];
    out->dtype = source->dtype_name;
    out->rank = source->rank;
    memcpy(out->dim, source->dim, sizeof out->dim);
    out->elements = source->elements;
    out->bytes = source->bytes;
    out->ledger.weight_error = out->ledger.weight_error_rtn = NAN;
    out->ledger.output_error = out->ledger.output_error_rtn = NAN;
    all->weights += out->elements;
}

uint64_t inspection_data_file_count(const inspection *all) {
    return all->container != NULL ? all->container->shard_count
                                  : ingot_checkpoint_shard_count(all->checkpoint);
}

const char *inspection_data_file(const inspection *all, uint64_t index) {
    return all->container != NULL ? all->container->shards[index].path
                                  : ingot_file_path(ingot_safetensors_file(
                                        ingot_checkpoint_shard(all->checkpoint, index)));
}

static ingot_status open_either(inspection *all, ingot_error *error) {
    if (ingot_path_is_directory(all->path)) {
        INGOT_TRY(ingot_checkpoint_open(&all->checkpoint, all->path, error));
        all->tensor_count = ingot_checkpoint_count(all->checkpoint);
        for (uint64_t i = 0; i < ingot_checkpoint_shard_count(all->checkpoint); i++) {
            const ingot_safetensors *file = ingot_checkpoint_shard(all->checkpoint, i);
            all->file_bytes += ingot_file_size(ingot_safetensors_file(file));
        }
        return INGOT_OK;
    }
    uint64_t size;
    INGOT_TRY(ingot_weight_container_open(&all->container, all->path, error));
    all->tensor_count = ingot_tensor_count(all->container);
    ingot_get_info(all->container, &all->info);
    all->file_bytes = all->info.file_bytes;
    const char *meta = ingot_meta(all->container, &size);
    return ingot_json_parse(&all->meta, meta, size, "META", error);
}

static ingot_status digest_files(inspection *all, ingot_error *error) {
    const uint64_t count = inspection_data_file_count(all);
    void *memory;
    INGOT_TRY(ingot_alloc_zero(&memory, count + 1, sizeof *all->sha256));
    all->sha256 = memory;
    for (uint64_t i = 0; i < count; i++) {
        INGOT_TRY(ingot_alloc(&memory, 65));
        all->sha256[i] = memory;
        INGOT_TRY(ingot_sha256_file(all->sha256[i], inspection_data_file(all, i), error));
        INGOT_TRY(ingot_interrupt_check(error));
    }
    return INGOT_OK;
}

static ingot_status gather(inspection *all, bool with_sha256, ingot_error *error) {
    void *memory;
    INGOT_TRY(open_either(all, error));
    INGOT_TRY(ingot_alloc_zero(&memory, all->tensor_count + 1, sizeof *all->tensors));
    all->tensors = memory;
    INGOT_TRY(ingot_alloc_zero(&memory, all->tensor_count + 1, sizeof *all->roles));
    all->roles = memory;
    for (uint64_t i = 0; i < all->tensor_count; i++) {
        inspect_tensor *tensor = &all->tensors[i];
        if (all->container != NULL) {
            take_record(all, tensor, i);
        } else {
            take_source(all, tensor, i);
        }
    }
    INGOT_TRY(find_roles(all));
    INGOT_TRY(sum_roles(all));
    return with_sha256 ? digest_files(all, error) : INGOT_OK;
}

ingot_status inspection_open(inspection *out, const char *path, bool with_sha256,
                             ingot_error *error) {
    *out = (inspection){.path = path};
    const ingot_status status = gather(out, with_sha256, error);
    if (status != INGOT_OK) {
        if (error != NULL && error->status != status) {
            (void)ingot_error_set(error, status, path, NULL, NULL, "%s", ingot_status_text(status));
        }
        inspection_close(out);
    }
    return status;
}

void inspection_close(inspection *all) {
    for (uint64_t i = 0; all->sha256 != NULL && i < inspection_data_file_count(all); i++) {
        ingot_free(all->sha256[i]);
    }
    ingot_free(all->sha256);
    ingot_free(all->tensors);
    ingot_free(all->roles);
    json_decref(all->meta);
    ingot_close(all->container);
    ingot_checkpoint_close(all->checkpoint);
    *all = (inspection){0};
}

const char *inspection_profile_name(const inspection *all) {
    static const char *const names[] = {"model", "statistics", "conversion state"};
    return all->container == NULL ? "checkpoint" : names[all->info.profile];
}

double inspection_bits_per_weight(const inspection *all) {
    return all->quantized_weights == 0
               ? NAN
               : 8.0 * (double)all->quantized_bytes / (double)all->quantized_weights;
}

double inspection_file_bits_per_weight(const inspection *all) {
    return all->weights == 0 ? NAN : 8.0 * (double)all->file_bytes / (double)all->weights;
}

/* ---- comparing ----------------------------------------------------------------------------------
 */

static bool is_same_figure(double a, double b) {
    return a == b || (isnan(a) && isnan(b));
}

static bool is_same_ledger(const ingot_ledger *a, const ingot_ledger *b) {
    return a->method == b->method && a->fallback == b->fallback && a->is_folded == b->is_folded &&
           a->damping_step == b->damping_step && a->dead_columns == b->dead_columns &&
           a->low_precision_scales == b->low_precision_scales && a->tokens_seen == b->tokens_seen &&
           a->outliers == b->outliers && is_same_figure(a->weight_error, b->weight_error) &&
           is_same_figure(a->weight_error_rtn, b->weight_error_rtn) &&
           is_same_figure(a->output_error, b->output_error) &&
           is_same_figure(a->output_error_rtn, b->output_error_rtn) &&
           is_same_figure(a->damping, b->damping) &&
           memcmp(a->source_digest, b->source_digest, 16) == 0;
}

static void compare_tensors(inspect_difference *out) {
    const inspect_tensor *a = out->a;
    const inspect_tensor *b = out->b;
    out->differs_in_shape = a->rank != b->rank || memcmp(a->dim, b->dim, sizeof a->dim) != 0;
    out->differs_in_storage = !is_same_storage(a, b) ||
                              (a->alias_of == NULL) != (b->alias_of == NULL) ||
                              (a->alias_of != NULL && strcmp(a->alias_of, b->alias_of) != 0) ||
                              a->record->outlier_count != b->record->outlier_count;
    out->differs_in_data = memcmp(a->data_digest, b->data_digest, 16) != 0;
    out->differs_in_ledger = !is_same_ledger(&a->ledger, &b->ledger);
}

static bool are_files_equal(const ingot_container *a, const ingot_container *b) {
    if (ingot_file_entry_count(a) != ingot_file_entry_count(b)) {
        return false;
    }
    for (uint64_t i = 0; i < ingot_file_entry_count(a); i++) {
        const char *name = ingot_file_entry_name(a, i);
        uint64_t size_a = 0;
        uint64_t size_b = 0;
        const void *bytes_a = ingot_file_entry(a, name, &size_a);
        const void *bytes_b = ingot_file_entry(b, name, &size_b);
        if (bytes_b == NULL || size_a != size_b || memcmp(bytes_a, bytes_b, (size_t)size_a) != 0) {
            return false;
        }
    }
    return true;
}

ingot_status inspection_compare(inspect_comparison *out, const inspection *a, const inspection *b,
                                ingot_error *error) {
    *out = (inspect_comparison){0};
    if (a->container == NULL || b->container == NULL) {
        const char *folder = a->container == NULL ? a->path : b->path;
        return ingot_error_set(error, INGOT_ERR_USAGE, folder, NULL,
                               "use ingot-verify --source to compare with a checkpoint",
                               "only containers can be compared");
    }
    void *memory;
    if (ingot_alloc_zero(&memory, a->tensor_count + b->tensor_count + 1, sizeof *out->entries) !=
        INGOT_OK) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, a->path, NULL, NULL, "out of memory");
    }
    out->entries = memory;
    for (uint64_t i = 0; i < a->tensor_count; i++) {
        inspect_difference *entry = &out->entries[out->count++];
        uint64_t found;
        entry->a = &a->tensors[i];
        if (ingot_tensor_find(b->container, entry->a->name, &found) == NULL) {
            out->only_a++;
            continue;
        }
        entry->b = &b->tensors[found];
        compare_tensors(entry);
        if (entry->differs_in_shape || entry->differs_in_storage || entry->differs_in_data ||
            entry->differs_in_ledger) {
            out->different++;
        } else {
            out->equal++;
        }
    }
    for (uint64_t i = 0; i < b->tensor_count; i++) {
        if (ingot_tensor_find(a->container, b->tensors[i].name, NULL) == NULL) {
            out->entries[out->count++].b = &b->tensors[i];
            out->only_b++;
        }
    }
    out->is_same_content = memcmp(a->info.content_id, b->info.content_id, 16) == 0;
    out->are_files_equal = are_files_equal(a->container, b->container);
    out->is_meta_equal = json_equal(a->meta, b->meta) == 1;
    return INGOT_OK;
}

/* ---- the tool
 * ------------------------------------------------------------------------------------ */

static const ingot_cli_option options[] = {
    {"tensors", 't', NULL, "List every tensor, not only the table of roles."},
    {"compare", 'c', "OTHER",
     "Compare with another container, tensor by tensor: presence, shape, storage, digests of the "
     "data, ledger. Differences are a result, not a failure: the exit status is 0."},
    {"sha256", 0, NULL,
     "Compute the SHA-256 of each file that holds tensors (reads them whole, about 1 GB/s)."},
    {"json", 0, NULL,
     "Print one JSON object instead of text. On failure too: every key is there, null where "
     "nothing was computed, \"error\" holds a stable code and \"message\" its text."},
};

static const ingot_cli_spec spec = {
    .tool = "ingot-inspect",
    .summary = "show what a container, a checkpoint or a statistics file holds",
    .positional = "PATH",
    .description =
        "PATH is an Ingot container (for a sharded set: any of its files), a statistics file, or a "
        "checkpoint folder. Shown are sizes, digests, bits per weight, methods and errors per role "
        "(tensors whose names differ in numbers only), provenance and the files inside.\n\n"
        "Headers and metadata are read and checked, the weights are not: ingot-verify does that. "
        "Bits per weight count codes, scales, zero points and outliers of the quantized tensors "
        "over their weights; the figure for the whole file counts every byte over all weights.\n\n"
        "Exit status: 0 shown; 1 the container breaks a rule of the format; 2 it could not be "
        "read.",
    .options = options,
    .option_count = sizeof options / sizeof options[0],
    .examples = "ingot-inspect model.ingot\n"
                "    What is in the container, and what quantization cost per role.\n"
                "ingot-inspect model.ingot --compare other.ingot --json\n"
                "    How two conversions differ.\n",
};

typedef struct inspect_options {
    const char *path, *other;
    bool is_json, with_tensors, with_sha256;
} inspect_options;

#define MEMBER(name) offsetof(inspect_options, name)

static const ingot_cli_member members[] = {
    {"tensors", INGOT_CLI_FLAG, .offset = MEMBER(with_tensors)},
    {"compare", INGOT_CLI_TEXT, .offset = MEMBER(other)},
    {"sha256", INGOT_CLI_FLAG, .offset = MEMBER(with_sha256)},
    {"json", INGOT_CLI_FLAG, .offset = MEMBER(is_json)},
};

static ingot_status take_option(void *context, const char *name, const char *value,
                                ingot_error *error) {
    return ingot_cli_store(context, members, sizeof members / sizeof *members, name, value, error);
}

/* The result on standard output; false when it could not be written. */
static bool show(const inspect_options *wanted, const inspection *all, const inspection *other,
                 const inspect_comparison *comparison, const ingot_error *error) {
    const bool has_result = error->status == INGOT_OK;
    if (wanted->is_json) {
        json_t *object = inspection_json(has_result ? all : NULL, wanted->with_tensors, other,
                                         comparison, error);
        const bool is_printed = object != NULL && ingot_json_print(object, stdout);
        json_decref(object);
        return is_printed;
    }
    if (has_result) {
        inspection_print(all, wanted->with_tensors);
        if (comparison != NULL) {
            inspection_print_comparison(all, other, comparison);
        }
    }
    return true;
}

int ingot_inspect_tool(int argc, char **argv) {
    ingot_error error = {0};
    inspect_options wanted = {0};
    inspection all = {0};
    inspection other = {0};
    inspect_comparison comparison = {0};
    switch (ingot_cli_parse(&spec, argc, argv, take_option, &wanted, &wanted.path, &error)) {
    case INGOT_CLI_EXIT:
        return 0;
    case INGOT_CLI_USAGE:
        wanted.is_json = ingot_cli_has_flag(argc, argv, "json");
        error.status = error.status == INGOT_OK ? INGOT_ERR_USAGE : error.status;
        return ingot_cli_finish(spec.tool, 2, show(&wanted, NULL, NULL, NULL, &error));
    case INGOT_CLI_RUN:
        break;
    }
    ingot_interrupt_install();
    ingot_status status;
    bool is_shown;
    INGOT_GO(inspection_open(&all, wanted.path, wanted.with_sha256, &error));
    if (wanted.other != NULL) {
        INGOT_GO(inspection_open(&other, wanted.other, false, &error));
        INGOT_GO(inspection_compare(&comparison, &all, &other, &error));
    }
done:
    error.status = status;
    is_shown = show(&wanted, &all, &other, wanted.other != NULL ? &comparison : NULL, &error);
    ingot_free(comparison.entries);
    inspection_close(&other);
    inspection_close(&all);
    return ingot_cli_end(spec.tool, status, &error, is_shown);
}
