/* The plan for people (convert/plan.h). */
#include "common/cli.h"
#include "convert/plan.h"

#include <string.h>

static const char *group_text(char text[24], const ingot_tensor_spec *spec) {
    if (spec->group == spec->dim[1]) {
        return "row";
    }
    snprintf(text, 24, "%llu", (unsigned long long)spec->group);
    return text;
}

static void print_tensor(const ingot_plan_tensor *t, const ingot_tensor_spec *spec, FILE *out) {
    char group[24], shape[64] = "";
    for (unsigned i = 0; i < spec->rank; i++) {
        const size_t used = strlen(shape);
        snprintf(shape + used, sizeof shape - used, i == 0 ? "%llu" : "x%llu",
                 (unsigned long long)spec->dim[i]);
    }
    (void)fprintf(out, "  %-52s %-14s ", t->name, shape);
    switch (spec->kind) {
    case INGOT_GROUPED:
        (void)fprintf(out, "%s %u bits, group %s, %s, scales %s", ingot_method_name(t->method),
                      spec->bits, group_text(group, spec),
                      spec->zero_mode == INGOT_ZERO_STORED ? "asymmetric" : "symmetric",
                      ingot_dtype_name(spec->scale_dtype));
        if (spec->outlier_count != 0) {
            (void)fprintf(out, ", %llu outliers%s", (unsigned long long)spec->outlier_count,
                          spec->dtype == INGOT_F32 ? " in F32" : "");
        }
        break;
    case INGOT_ALIAS:
        (void)fprintf(out, "alias");
        break;
    case INGOT_DENSE:
    case INGOT_AUXILIARY:
        (void)fprintf(out, "%s", ingot_dtype_name(spec->dtype));
        break;
    }
    (void)fprintf(out, "  (%s%s%s)\n", t->reason, t->note[0] != 0 ? ": " : "", t->note);
}

/* One line per way of storing. */
static void print_summary(const ingot_plan *plan, FILE *out) {
    uint64_t methods[8] = {0}, dense = 0, aliases = 0, folds = 0, unknown = 0;
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_plan_tensor *t = &plan->tensors[i];
        const ingot_kind kind = plan->specs[i].kind;
        methods[t->method & 7] += kind == INGOT_GROUPED;
        dense += kind == INGOT_DENSE;
        aliases += kind == INGOT_ALIAS;
        folds += kind == INGOT_AUXILIARY;
        unknown += t->class == INGOT_CLASS_UNKNOWN;
    }
    (void)fprintf(out, "plan:");
    for (unsigned m = 0; m < 8; m++) {
        if (methods[m] != 0) {
            (void)fprintf(out, " %llu tensors by %s,", (unsigned long long)methods[m],
                          ingot_method_name((ingot_method)m));
        }
    }
    (void)fprintf(out, " %llu kept dense, %llu aliases, %llu fold vectors\n",
                  (unsigned long long)dense, (unsigned long long)aliases,
                  (unsigned long long)folds);
    if (unknown != 0) {
        (void)fprintf(out, "plan: %llu tensors are not known to this model and are copied\n",
                      (unsigned long long)unknown);
    }
}

/* How many matrices got which width. */
static void print_widths(const ingot_plan *plan, FILE *out) {
    uint64_t count[9] = {0};
    for (uint64_t i = 0; i < plan->count; i++) {
        if (plan->specs[i].kind == INGOT_GROUPED && !plan->tensors[i].is_width_stated) {
            count[plan->specs[i].bits]++;
        }
    }
    (void)fprintf(out, "plan: target %.3f bits per weight:", plan->target_bpw);
    for (unsigned bits = 2; bits <= 8; bits++) {
        if (count[bits] != 0) {
            (void)fprintf(out, " %llu of %u bits,", (unsigned long long)count[bits], bits);
        }
    }
    (void)fprintf(out, " sum of their KL %.3g\n", plan->expected_kl);
}

void ingot_plan_print(const ingot_plan *plan, const ingot_layout_info *layout, bool is_long,
                      FILE *out) {
    char before[32], after[32], gram[32], file[32];
    print_summary(plan, out);
    if (plan->target_bpw != 0) {
        print_widths(plan, out);
    }
    for (uint64_t i = 0; is_long && i < plan->count; i++) {
        print_tensor(&plan->tensors[i], &plan->specs[i], out);
    }
    ingot_format_bytes(before, sizeof before, (double)plan->source_bytes);
    ingot_format_bytes(after, sizeof after, (double)layout->file_bytes);
    (void)fprintf(out, "plan: %s of weights -> %s", before, after);
    if (plan->quantized_weights != 0) {
        (void)fprintf(out, ", %.3f bits per quantized weight", ingot_plan_bits_per_weight(plan));
    }
    (void)fprintf(out, "%s\n",
                  layout->file_bytes > plan->source_bytes ? ": larger than the checkpoint" : "");
    if (plan->needs_gram) {
        ingot_format_bytes(gram, sizeof gram, (double)plan->gram_bytes);
        ingot_format_bytes(file, sizeof file, (double)plan->gram_file_bytes);
        (void)fprintf(out, "plan: H %s a block; %s as a statistics file\n", gram, file);
    }
}
