/* A container made from the shipped model, which a forger may change before it is written: every
 * digest is right again, whatever was changed. */
#ifndef INGOT_TEST_FORGE_H
#define INGOT_TEST_FORGE_H

#include "common/files.h"
#include "common/memory.h"
#include "format/container_write.h"
#include "format/digest.h"
#include "format/half.h"
#include "kernels/quantize.h"
#include "verify/source_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODEL     "examples/demo-4m"
#define BITS      4u
#define GROUP     128u
#define TENSORS   96u
#define HIDDEN    256u /* of the model */
#define Q_NAME    "model.layers.1.self_attn.q_proj.weight"
#define K_NAME    "model.layers.1.self_attn.k_proj.weight"
#define V_NAME    "model.layers.1.self_attn.v_proj.weight"
#define O_NAME    "model.layers.1.self_attn.o_proj.weight"
#define NORM_NAME "model.layers.1.input_layernorm.weight"

/* A container before it is written; a forger changes it. */
typedef struct forge {
    ingot_checkpoint *checkpoint;
    ingot_arena *arena;
    ingot_tensor_spec specs[TENSORS];
    ingot_weight_view views[TENSORS];
    ingot_ledger ledgers[TENSORS];
    uint64_t count;
    ingot_file_spec files[32];
    uint64_t file_count;
    uint32_t profile;
    const char *meta;
} forge;
typedef void (*forger)(forge *f);

static inline void must(ingot_status status, const ingot_error *error) {
    if (status != INGOT_OK) {
        char text[INGOT_ERROR_TEXT_SIZE] = "";
        if (error != NULL) {
            ingot_error_format(error, text, sizeof text);
        }
        (void)fprintf(stderr, "test set-up failed: %s: %s\n", ingot_status_code(status), text);
        exit(2);
    }
}

static inline void *room(forge *f, uint64_t bytes) {
    void *memory;
    must(ingot_arena_alloc(f->arena, &memory, bytes), NULL);
    return memory;
}

static inline uint64_t index_of(const forge *f, const char *name) {
    for (uint64_t i = 0; i < f->count; i++) {
        if (strcmp(f->specs[i].name, name) == 0) {
            return i;
        }
    }
    (void)fprintf(stderr, "test set-up failed: no tensor %s\n", name);
    exit(2);
}

static const ingot_ledger plain_ledger = {.weight_error = NAN,
                                          .weight_error_rtn = NAN,
                                          .output_error = NAN,
                                          .output_error_rtn = NAN,
                                          .damping = NAN};

/* Rounds tensor `at` of the checkpoint, folds applied, into f->views[slot], and measures it. */
static inline void quantize(forge *f, uint64_t slot, const ingot_weight_view *source,
                            const float *row_fold, const float *column_fold) {
    const ingot_quant_format format = {BITS, GROUP, INGOT_ZERO_SYMMETRIC, INGOT_F16};
    ingot_quantized q;
    float *w = room(f, source->rows * source->cols * sizeof *w);
    ingot_convert_to_f32(w, source->data, source->dtype, source->rows * source->cols);
    must(ingot_quantized_create(&q, source->rows, source->cols, &format, f->arena), NULL);
    ingot_quantize_rtn(&q, w, NULL);
    ingot_ledger *ledger = &f->ledgers[slot];
    must(ingot_quantized_weight_error(&ledger->weight_error_rtn, source, NULL, NULL, &q, NULL),
         NULL);
    for (uint64_t i = 0; i < source->rows * source->cols; i++) {
        w[i] *= row_fold != NULL ? row_fold[i / source->cols] : 1.0f;
        w[i] *= column_fold != NULL ? column_fold[i % source->cols] : 1.0f;
    }
    ingot_quantize_rtn(&q, w, NULL);
    must(ingot_quantized_weight_error(&ledger->weight_error, source, row_fold, column_fold, &q,
                                      NULL),
         NULL);
    ledger->method = INGOT_METHOD_RTN;
    ledger->is_folded = row_fold != NULL || column_fold != NULL;
    must(ingot_quantized_pack(&f->views[slot], &q, f->arena, NULL), NULL);
}

static inline ingot_weight_view source_view(forge *f, const char *name) {
    uint64_t at;
    ingot_error error = {0};
    const ingot_st_tensor *source = ingot_checkpoint_find(f->checkpoint, name, &at);
    if (source == NULL) {
        must(INGOT_ERR_NOT_FOUND, NULL);
        abort(); /* must does not return */
    }
    void *bytes = room(f, source->bytes);
    must(ingot_checkpoint_read(f->checkpoint, at, 0, source->bytes, bytes, &error), &error);
    return (ingot_weight_view){.kind = INGOT_DENSE,
                               .rows = source->rank == 1 ? 1 : source->dim[0],
                               .cols = source->dim[source->rank - 1],
                               .dtype = source->dtype,
                               .data = bytes};
}

static inline void add_source_tensor(forge *f, const ingot_st_tensor *source) {
    const uint64_t slot = f->count++;
    const ingot_weight_view view = source_view(f, source->name);
    const bool is_linear = strstr(source->name, "_proj.") != NULL;
    ingot_tensor_spec spec = {.name = source->name,
                              .kind = is_linear ? INGOT_GROUPED : INGOT_DENSE,
                              .rank = source->rank,
                              .dtype = source->dtype};
    memcpy(spec.dim, source->dim, sizeof spec.dim);
    f->ledgers[slot] = plain_ledger;
    ingot_digest128(f->ledgers[slot].source_digest, view.data, source->bytes);
    if (is_linear) {
        spec.bits = BITS;
        spec.group = GROUP;
        spec.scale_dtype = INGOT_F16;
        quantize(f, slot, &view, NULL, NULL);
    } else {
        f->views[slot] = view;
    }
    f->specs[slot] = spec;
}

/* A second name of an earlier tensor. */
static inline void add_alias(forge *f, const char *name, const char *target) {
    const uint64_t slot = f->count++;
    const uint64_t at = index_of(f, target);
    f->specs[slot] = f->specs[at];
    f->specs[slot].name = name;
    f->specs[slot].kind = INGOT_ALIAS;
    f->specs[slot].alias_of = at;
    f->ledgers[slot] = plain_ledger;
}

static inline void add_vector(forge *f, const char *name, const float *values, uint64_t count) {
    const uint64_t slot = f->count++;
    f->specs[slot] = (ingot_tensor_spec){
        .name = name, .kind = INGOT_AUXILIARY, .rank = 1, .dim = {count}, .dtype = INGOT_F32};
    f->views[slot] = (ingot_weight_view){
        .kind = INGOT_DENSE, .rows = 1, .cols = count, .dtype = INGOT_F32, .data = values};
    f->ledgers[slot] = plain_ledger;
}

static inline void write_container(forge *f, const char *path) {
    ingot_error error = {0};
    const ingot_writer_plan plan = {.tensors = f->specs,
                                    .tensor_count = f->count,
                                    .files = f->files,
                                    .file_count = f->file_count,
                                    .meta = f->meta,
                                    .meta_size = strlen(f->meta),
                                    .profile = f->profile};
    ingot_writer *writer;
    must(ingot_writer_create(&writer, path, true, &plan, &error), &error);
    for (uint64_t i = 0; i < f->count; i++) {
        if (f->specs[i].kind == INGOT_ALIAS) {
            continue;
        }
        must(ingot_writer_put(writer, i, &f->views[i], &f->ledgers[i], &error), &error);
    }
    must(ingot_writer_finish(writer, 1, NULL, NULL, &error), &error);
}

static inline void build(const char *path, forger change) {
    ingot_error error = {0};
    forge *f = calloc(1, sizeof *f);
    must(f == NULL ? INGOT_ERR_NO_MEMORY : ingot_arena_create(&f->arena), NULL);
    must(ingot_checkpoint_open(&f->checkpoint, MODEL, &error), &error);
    for (uint64_t i = 0; i < ingot_checkpoint_count(f->checkpoint); i++) {
        add_source_tensor(f, ingot_checkpoint_at(f->checkpoint, i));
    }
    add_alias(f, "lm_head.weight", "model.embed_tokens.weight");
    for (uint64_t i = 0; i < ingot_checkpoint_file_count(f->checkpoint); i++) {
        ingot_file_spec *file = &f->files[f->file_count++];
        file->name = ingot_checkpoint_file_name(f->checkpoint, i);
        file->bytes = ingot_checkpoint_file(f->checkpoint, file->name, &file->size);
    }
    f->meta = "{\"tool\":\"test\"}";
    if (change != NULL) {
        change(f);
    }
    write_container(f, path);
    ingot_checkpoint_close(f->checkpoint);
    ingot_arena_destroy(f->arena);
    free(f);
}

#endif
