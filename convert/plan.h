/* The plan of a conversion: every tensor's fate, decided before anything is written.  From here on
 * the geometry is frozen; a fallback changes values, never sizes.
 *
 * Load order: embedding, blocks in order, final norm, head, tensors the model does not know. */
#ifndef INGOT_PLAN_H
#define INGOT_PLAN_H

#include "calib/model.h"
#include "convert/recipe.h"
#include "format/checkpoint.h"
#include "format/container_write.h"
#include "kernels/quantize.h"

#define INGOT_PLAN_NONE      UINT64_MAX
#define INGOT_PLAN_NOTE_SIZE 48

/* Where the values of a planned tensor come from. */
typedef enum ingot_origin {
    INGOT_ORIGIN_COPY,   /* the source's bytes */
    INGOT_ORIGIN_FOLDED, /* a norm or bias behind a fold, stored F32 */
    INGOT_ORIGIN_QUANTIZE,
    INGOT_ORIGIN_COLUMN_FOLD, /* NAME#fold: what the columns of NAME were multiplied by */
    INGOT_ORIGIN_ROW_FOLD,    /* NAME#rowfold: what its rows were multiplied by */
    INGOT_ORIGIN_ALIAS
} ingot_origin;

typedef struct ingot_plan_tensor {
    char *name;            /* owned */
    uint64_t source_index; /* in the checkpoint; INGOT_PLAN_NONE: not there */
    ingot_origin origin;
    ingot_tensor_class class;
    uint64_t layer;                  /* INGOT_PLAN_NONE outside the blocks */
    ingot_role role;                 /* linears, biases and folds of linears */
    ingot_norm_slot slot;            /* norms of blocks */
    unsigned fold;                   /* origin COLUMN_FOLD, ROW_FOLD: index in model->fold */
    ingot_method method;             /* what is planned; the ledger says what was done */
    const char *reason;              /* why, in a few words; static */
    bool is_width_stated;            /* by an option or a rule; else a target may choose it */
    char note[INGOT_PLAN_NOTE_SIZE]; /* what the width was chosen by; empty: nothing */
} ingot_plan_tensor;

typedef struct ingot_plan {
    ingot_plan_tensor *tensors;
    ingot_tensor_spec *specs; /* the same order: what the writer is given */
    uint64_t count;
    bool needs_gram; /* some tensor's method uses calibration data */
    bool has_folds;
    bool has_loop;     /* some tensor is quantized by GPTQ on calibration data */
    ingot_steps steps; /* of the recipe */
    uint64_t quantized_weights, quantized_bytes; /* of grouped tensors */
    uint64_t source_bytes;                       /* of all tensors */
    uint64_t block_bytes;                        /* largest block in the source, */
    uint64_t piece_bytes;                        /* also of what is before and behind them */
    uint64_t gram_bytes;                         /* H of one block, square, F32 */
    uint64_t gram_file_bytes;                    /* H of all blocks as packed triangles */
    uint64_t work_bytes;                         /* largest scratch of one linear */
    double target_bpw;                           /* 0: widths are stated */
    double expected_kl; /* with a target: sum of the chosen widths' sensitivities */
} ingot_plan;

/* Samples rows of the tensors to be quantized where the scale dtype is left to the plan. */
ingot_status ingot_plan_create(ingot_plan *out, const ingot_checkpoint *checkpoint,
                               const ingot_model *model, const ingot_recipe *recipe, bool has_data,
                               ingot_error *error) INGOT_MUST_CHECK;
void ingot_plan_free(ingot_plan *plan);

/* *out = what ingot_plan.quantized_bytes counts of a grouped tensor: codes with the padding of
 * rows, scales, zeros, outliers. */
ingot_status ingot_plan_stored_bytes(uint64_t *out, const ingot_tensor_spec *spec,
                                     ingot_error *error) INGOT_MUST_CHECK;
/* Changes the width of a tensor that is to be quantized, with all that follows from it (sizes, the
 * dtype of its scales); note: why. */
ingot_status ingot_plan_set_bits(ingot_plan *plan, uint64_t index, unsigned bits, const char *note,
                                 const ingot_checkpoint *checkpoint, const ingot_recipe *recipe,
                                 ingot_error *error) INGOT_MUST_CHECK;

/* Index of a tensor by name, or INGOT_PLAN_NONE. */
uint64_t ingot_plan_find(const ingot_plan *plan, const char *name);
/* Whether matrices of blocks wait to be distilled at the end (spec/quality.md, section 10): with
 * effort best (is_best) where the recipe has it and nothing is folded. */
bool ingot_plan_distills(const ingot_plan *plan, bool is_best);
double ingot_plan_bits_per_weight(const ingot_plan *plan);
/* The plan for people: tensors by kind of layer, sizes, memory; every tensor when is_long. */
void ingot_plan_print(const ingot_plan *plan, const ingot_layout_info *layout, bool is_long,
                      FILE *out);

#endif
