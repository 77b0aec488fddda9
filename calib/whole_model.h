/* A model that is in memory as a whole, with a cache of keys and values: what decodes operation by
 * operation, one sequence (calib/decode.c) or many at once (calib/self_text.c). */
#ifndef INGOT_WHOLE_MODEL_H
#define INGOT_WHOLE_MODEL_H

#include "calib/forward.h"
#include "common/progress.h"

/* A zeroed one holds nothing. */
typedef struct ingot_whole_model {
    const ingot_model *model; /* the caller's, like the backend */
    const ingot_backend *backend;
    ingot_arena *arena;
    ingot_block *blocks; /* [layers], the first `loaded` of them are there */
    uint64_t loaded;
    ingot_ends ends;
    ingot_kv_cache cache;
    ingot_workspace *work;
    float *x;       /* [tokens of a pass][hidden], device */
    float *scratch; /* [rows of logits][hidden], device */
    float *logits;  /* [rows of logits][vocab], device */
} ingot_whole_model;

/* Loads the weights of out->model to out->backend.  On failure what is there stays, for
 * ingot_whole_model_release; so with the next.  progress counts MB and may be NULL. */
ingot_status ingot_whole_model_load(ingot_whole_model *out, const ingot_weight_source *source,
                                    ingot_progress *progress, ingot_error *error) INGOT_MUST_CHECK;

/* Room for sequences of up to `capacity` tokens, for passes of `tokens` tokens of all of them
 * together and for `rows` rows of logits. */
ingot_status ingot_whole_model_make_room(ingot_whole_model *w, uint64_t sequences,
                                         uint64_t capacity, uint64_t tokens, uint64_t rows,
                                         ingot_error *error) INGOT_MUST_CHECK;

/* One pass of `count` tokens of every sequence, ids[sequences][count]; their hidden states are left
 * in w->x, and the cache is longer by `count`.  progress counts tokens of a sequence, those of the
 * cache included and a part of `count` after each block, and may be NULL.  A signal is looked for
 * before each block, INGOT_ERR_INTERRUPTED: *error is filled for that alone, and what was fed is
 * not in the cache. */
ingot_status ingot_whole_model_pass(ingot_whole_model *w, const uint32_t *ids, uint64_t count,
                                    ingot_progress *progress, ingot_error *error) INGOT_MUST_CHECK;

void ingot_whole_model_release(ingot_whole_model *w);

#endif
