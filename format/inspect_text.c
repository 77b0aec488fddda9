/* ingot-inspect for people.  Names, META and file names come from the file: names are printable
 * ASCII by the rules of both formats, values of META are printed as escaped JSON, and of its keys
 * only what is printable. */
#include "format/inspect.h"

#include "common/cli.h"
#include "format/digest.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Figures of one cell; NaN is a dash. */
static const char *figure(char text[16], double value) {
    if (isnan(value)) {
        return "-";
    }
    (void)snprintf(text, 16, "%.4f", value);
    return text;
}

static const char *shape_text(char text[96], const inspect_tensor *tensor) {
    size_t at = 0;
    text[0] = '\0';
    for (unsigned i = 0; i < tensor->rank; i++) {
        at += (size_t)snprintf(text + at, 96 - at, "%s%" PRIu64, i == 0 ? "" : "x", tensor->dim[i]);
    }
    return tensor->rank == 0 ? "scalar" : text;
}

/* "4 bit g128", "BF16", "-> name". */
static const char *storage_text(char text[320], const inspect_tensor *tensor) {
    const ingot_tensor *record = tensor->record;
    if (tensor->alias_of != NULL) {
        (void)snprintf(text, 320, "-> %s", tensor->alias_of);
    } else if (record != NULL && record->kind == INGOT_GROUPED) {
        (void)snprintf(text, 320, "%u bit g%" PRIu64 "%s%s", record->bits, record->group,
                       record->zero_mode == INGOT_ZERO_STORED ? " asym" : "",
                       record->outlier_count > 0 ? " sparse" : "");
    } else {
        (void)snprintf(text, 320, "%s", tensor->dtype);
    }
    return text;
}

static void print_size(const char *label, uint64_t bytes) {
    char text[32];
    ingot_format_bytes(text, sizeof text, (double)bytes);
    printf("  %-17s%s (%" PRIu64 " bytes)\n", label, text, bytes);
}

/* ---- provenance --------------------------------------------------------------------------------
 */

static void print_value(const char *label, const json_t *value) {
    char *text = ingot_json_text(value, JSON_ENCODE_ANY | JSON_ENSURE_ASCII | JSON_COMPACT |
                                            JSON_SORT_KEYS | JSON_REAL_PRECISION(6));
    const bool is_quoted = json_is_string(value) && text != NULL && strlen(text) >= 2;
    if (text != NULL && strlen(text) <= 160) {
        const int length = (int)strlen(text);
        printf("  %-33s%.*s\n", label, is_quoted ? length - 2 : length, text + is_quoted);
    } else {
        const size_t entries =
            json_is_object(value) ? json_object_size(value) : json_array_size(value);
        printf("  %-33s(%zu entries; see --json)\n", label, entries);
    }
    free(text);
}

/* Appends a key of META to label[64], '?' for every byte that is not printable ASCII. */
static void append_key(char label[64], const char *key) {
    size_t at = strlen(label);
    for (; *key != '\0' && at + 1 < 64; key++) {
        label[at++] = *key >= 0x20 && *key <= 0x7e ? *key : '?';
    }
    label[at] = '\0';
}

/* Members of members on lines of their own, deeper values as they are. */
static void print_meta(json_t *meta) {
    const char *key;
    json_t *value;
    if (!json_is_object(meta) || json_object_size(meta) == 0) {
        return;
    }
    printf("\nProvenance\n");
    json_object_foreach(meta, key, value) {
        const char *inner_key;
        json_t *inner;
        char label[64] = "";
        append_key(label, key);
        if (!json_is_object(value)) {
            print_value(label, value);
            continue;
        }
        append_key(label, ".");
        const size_t outer = strlen(label);
        json_object_foreach(value, inner_key, inner) {
            label[outer] = '\0';
            append_key(label, inner_key);
            print_value(label, inner);
        }
    }
}

/* ---- tables ------------------------------------------------------------------------------------
 */

static int longer(int width, const char *text) {
    const int length = (int)strlen(text);
    return length > width ? length : width;
}

/* An alias names its target in the list of tensors only. */
static const char *role_storage(char text[320], const inspect_role *role) {
    return !role->is_uniform               ? "mixed"
           : role->first->alias_of != NULL ? "alias"
                                           : storage_text(text, role->first);
}

static void print_roles(const inspection *all) {
    char text[320];
    int width = 4;
    int storage_width = 9;
    bool has_errors = false;
    for (uint64_t i = 0; i < all->role_count; i++) {
        width = longer(width, all->roles[i].name);
        storage_width = longer(storage_width, role_storage(text, &all->roles[i]));
        has_errors = has_errors || !isnan(all->roles[i].weight_error);
    }
    printf("\n%-*s %6s  %-14s %-*s %9s", width, "Role", "count", "shape", storage_width,
           "stored as", "size");
    printf(has_errors ? " %8s %8s %8s %8s\n" : "\n", "error", "(rtn)", "output", "(rtn)");
    for (uint64_t i = 0; i < all->role_count; i++) {
        const inspect_role *role = &all->roles[i];
        char shape[96];
        char size[32];
        char cell[4][16];
        ingot_format_bytes(size, sizeof size, (double)role->bytes);
        printf("%-*s %6" PRIu64 "  %-14s %-*s %9s", width, role->name, role->tensors,
               shape_text(shape, role->first), storage_width, role_storage(text, role), size);
        if (has_errors) {
            printf(" %8s %8s %8s %8s", figure(cell[0], role->weight_error),
                   figure(cell[1], role->weight_error_rtn), figure(cell[2], role->output_error),
                   figure(cell[3], role->output_error_rtn));
        }
        printf("\n");
    }
    if (has_errors) {
        printf("Relative errors, root mean squares over the tensors; (rtn): plain rounding at the "
               "same size.\n");
    }
}

static void print_tensors(const inspection *all) {
    char storage[320];
    int width = 6;
    int storage_width = 9;
    for (uint64_t i = 0; i < all->tensor_count; i++) {
        width = longer(width, all->tensors[i].name);
        storage_width = longer(storage_width, storage_text(storage, &all->tensors[i]));
    }
    printf("\n%-*s  %-14s %-*s %9s  %-9s %8s %8s\n", width, "Tensor", "shape", storage_width,
           "stored as", "size", "method", "error", "output");
    for (uint64_t i = 0; i < all->tensor_count; i++) {
        const inspect_tensor *tensor = &all->tensors[i];
        const ingot_ledger *ledger = &tensor->ledger;
        const bool has_method = tensor->record != NULL && tensor->record->kind <= INGOT_GROUPED;
        char shape[96];
        char size[32];
        char cell[2][16];
        ingot_format_bytes(size, sizeof size, (double)tensor->bytes);
        printf("%-*s  %-14s %-*s %9s  %-9s %8s %8s%s%s\n", width, tensor->name,
               shape_text(shape, tensor), storage_width, storage_text(storage, tensor), size,
               has_method ? ingot_method_name(ledger->method) : "-",
               figure(cell[0], ledger->weight_error), figure(cell[1], ledger->output_error),
               ledger->fallback != INGOT_FALLBACK_NONE ? "  " : "",
               ledger->fallback != INGOT_FALLBACK_NONE ? ingot_fallback_name(ledger->fallback)
                                                       : "");
    }
}

static void print_files(const inspection *all) {
    const bool is_container = all->container != NULL;
    const uint64_t total = is_container ? ingot_file_entry_count(all->container)
                                        : ingot_checkpoint_file_count(all->checkpoint);
    if (total > 0) {
        printf("\nFiles\n");
    }
    for (uint64_t i = 0; i < total; i++) {
        const char *name = is_container ? ingot_file_entry_name(all->container, i)
                                        : ingot_checkpoint_file_name(all->checkpoint, i);
        uint64_t size = 0;
        char text[32];
        if (is_container) {
            (void)ingot_file_entry(all->container, name, &size);
        } else {
            (void)ingot_checkpoint_file(all->checkpoint, name, &size);
        }
        ingot_format_bytes(text, sizeof text, (double)size);
        printf("  %-33s%s\n", name, text);
    }
}

/* ---- summary
 * ------------------------------------------------------------------------------------- */

static void print_container(const inspection *all) {
    char hex[33];
    printf("%s: Ingot container %u.%u, %s\n", path_base(all->path), all->info.major,
           all->info.minor, inspection_profile_name(all));
    print_size("size", all->file_bytes);
    print_size("data", all->info.decoded_data_bytes);
    ingot_digest_hex(hex, all->info.root);
    printf("  %-17s%s\n", "root", hex);
    ingot_digest_hex(hex, all->info.content_id);
    printf("  %-17s%s\n", "content id", hex);
    if (all->info.shard_count > 1) {
        printf("  %-17s%u\n", "shards", all->info.shard_count);
    }
    printf("  %-17s%s", "features", all->info.is_compressed ? "zstd" : "none");
    if (all->info.ro_compat != 0 || all->info.compat != 0) {
        printf(", ro_compat 0x%" PRIx64 ", compat 0x%" PRIx64, all->info.ro_compat,
               all->info.compat);
    }
    printf("\n");
}

void inspection_print(const inspection *all, bool with_tensors) {
    if (all->container != NULL) {
        print_container(all);
    } else {
        printf("%s: checkpoint folder\n", all->path);
        print_size("size", all->file_bytes);
        printf("  %-17s%" PRIu64 "\n", "shards", inspection_data_file_count(all));
    }
    printf("  %-17s%" PRIu64 ", %" PRIu64 " weights", "tensors", all->tensor_count, all->weights);
    if (all->quantized_tensors > 0) {
        printf("; %" PRIu64 " quantized, %" PRIu64 " weights", all->quantized_tensors,
               all->quantized_weights);
    }
    printf("\n");
    if (all->weights > 0) {
        printf("  %-17s", "bits per weight");
        if (all->quantized_weights > 0) {
            printf("%.4f in quantized tensors, ", inspection_bits_per_weight(all));
        }
        printf("%.4f over the whole file\n", inspection_file_bits_per_weight(all));
    }
    if (all->container != NULL && all->quantized_tensors > 0) {
        printf("  %-17s", "methods");
        const char *separator = "";
        for (unsigned i = 0; i < sizeof all->methods / sizeof *all->methods; i++) {
            if (all->methods[i] > 0) {
                printf("%s%s %" PRIu64, separator, ingot_method_name((ingot_method)i),
                       all->methods[i]);
                separator = ", ";
            }
        }
        printf("\n");
    }
    for (uint64_t i = 0; all->sha256 != NULL && i < inspection_data_file_count(all); i++) {
        printf("  %-17s%s  %s\n", "sha256", all->sha256[i],
               path_base(inspection_data_file(all, i)));
    }
    print_meta(all->meta);
    print_files(all);
    print_roles(all);
    if (with_tensors) {
        print_tensors(all);
    }
}

/* ---- comparison --------------------------------------------------------------------------------
 */

static void print_difference(const inspect_difference *entry) {
    char left[320];
    char right[320];
    char cell[4][16];
    if (entry->a == NULL || entry->b == NULL) {
        const inspect_tensor *only = entry->a != NULL ? entry->a : entry->b;
        printf("%c %s  %s\n", entry->a != NULL ? '-' : '+', only->name, storage_text(left, only));
        return;
    }
    if (!entry->differs_in_shape && !entry->differs_in_storage && !entry->differs_in_data &&
        !entry->differs_in_ledger) {
        return;
    }
    printf("! %s ", entry->a->name);
    if (entry->differs_in_shape) {
        char shape[2][96];
        printf(" shape %s | %s", shape_text(shape[0], entry->a), shape_text(shape[1], entry->b));
    }
    if (entry->differs_in_storage) {
        printf(" stored as %s | %s", storage_text(left, entry->a), storage_text(right, entry->b));
    }
    if (entry->differs_in_data) {
        printf(" data");
    }
    if (entry->differs_in_ledger) {
        printf(" ledger (error %s | %s, output %s | %s)",
               figure(cell[0], entry->a->ledger.weight_error),
               figure(cell[1], entry->b->ledger.weight_error),
               figure(cell[2], entry->a->ledger.output_error),
               figure(cell[3], entry->b->ledger.output_error));
    }
    printf("\n");
}

/* hint: where it is in a container of the same model. */
static const inspect_role *find_role(const inspection *all, const char *name, uint64_t hint) {
    if (hint < all->role_count && strcmp(all->roles[hint].name, name) == 0) {
        return &all->roles[hint];
    }
    for (uint64_t i = 0; i < all->role_count; i++) {
        if (strcmp(all->roles[i].name, name) == 0) {
            return &all->roles[i];
        }
    }
    return NULL;
}

/* The roles that both have and one of them quantizes, side by side. */
static void print_role_pairs(const inspection *a, const inspection *b) {
    bool has_header = false;
    int width = 4;
    for (uint64_t i = 0; i < a->role_count; i++) {
        width = longer(width, a->roles[i].name);
    }
    for (uint64_t i = 0; i < a->role_count; i++) {
        const inspect_role *left = &a->roles[i], *right = find_role(b, left->name, i);
        char storage[2][320];
        char cell[4][16];
        if (right == NULL || (isnan(left->weight_error) && isnan(right->weight_error))) {
            continue;
        }
        if (!has_header) {
            printf("\n%-*s  %-12s | %-12s  %8s | %8s  %8s | %8s\n", width, "Role", "stored as",
                   "second", "error", "second", "output", "second");
            has_header = true;
        }
        printf("%-*s  %-12s | %-12s  %8s | %8s  %8s | %8s\n", width, left->name,
               role_storage(storage[0], left), role_storage(storage[1], right),
               figure(cell[0], left->weight_error), figure(cell[1], right->weight_error),
               figure(cell[2], left->output_error), figure(cell[3], right->output_error));
    }
    if (has_header) {
        printf("\n");
    }
}

void inspection_print_comparison(const inspection *a, const inspection *b,
                                 const inspect_comparison *comparison) {
    printf("\nCompared with %s\n", b->path);
    printf("  %-17s%s\n", "content", comparison->is_same_content ? "the same" : "different");
    printf("  %-17s%s\n", "META", comparison->is_meta_equal ? "the same" : "different");
    printf("  %-17s%s\n", "files", comparison->are_files_equal ? "the same" : "different");
    printf("  %-17s%" PRIu64 " | %" PRIu64 " bytes\n", "size", a->file_bytes, b->file_bytes);
    if (a->quantized_weights > 0 && b->quantized_weights > 0) {
        printf("  %-17s%.4f | %.4f\n", "bits per weight", inspection_bits_per_weight(a),
               inspection_bits_per_weight(b));
    }
    printf("  %-17s%" PRIu64 " equal, %" PRIu64 " different, %" PRIu64
           " only in the first, %" PRIu64 " only in the second\n",
           "tensors", comparison->equal, comparison->different, comparison->only_a,
           comparison->only_b);
    print_role_pairs(a, b);
    for (uint64_t i = 0; i < comparison->count; i++) {
        print_difference(&comparison->entries[i]);
    }
}
