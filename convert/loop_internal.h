/* Internal to convert/loop*.c: what the main loop of a conversion shares with what writes behind
 * it.
 */
#ifndef INGOT_LOOP_INTERNAL_H
#define INGOT_LOOP_INTERNAL_H

#include "common/sizes.h"
#include "common/worker.h"
#include "convert/collect.h"
#include "convert/distill.h"
#include "convert/loop.h"
#include "convert/prefetch.h"
#include "convert/team_run.h"

/* Memory with one lifetime, on the host (pinned) and on the device. */
typedef struct ingot_loop_memory {
    ingot_arena *host, *device;
} ingot_loop_memory;

/* A matrix that was quantized before it is written, and what it stands for: [rows][cols]; both on
 * the device while the block is, H of its input too.  target NULL: it was not. */
typedef struct ingot_tuned_matrix {
    ingot_quantized q;
    float *target;
    double bound;         /* on its weight error (ingot_linear_quantize) */
    ingot_linear_job job; /* what it was quantized by, without what is gone by then */
} ingot_tuned_matrix;

/* What the functions of the loop share. */
typedef struct ingot_loop {
    const ingot_loop_job *job;
    ingot_rank rank; /* of this device in the team */
    uint64_t judges; /* windows at the end that are held out of the statistics */
    const ingot_backend_ops *ops;
    void *context;
    ingot_loop_memory block; /* lifetime: a block */
    /* device, of inputs (convert/block.h); where these are collected in turn the first is of all */
    ingot_arena *statistics[INGOT_INPUT_COUNT], *solving[INGOT_INPUT_COUNT];
    ingot_loop_memory
        tensors[2];       /* lifetime: a tensor; the one before may still be on its way out */
    unsigned turn;        /* which of the two is in use */
    ingot_arena *scratch; /* device, a call */
    ingot_tuned_matrix tuned[INGOT_ROLE_COUNT]; /* of the block at hand */
    ingot_distill *distill; /* NULL: no distillation, matrices are written at once */
    ingot_prefetch *prefetch;
    ingot_prefetch *behind; /* of blocks behind one that is tuned; NULL: none is */
    ingot_worker *writing;  /* puts a packed matrix into the writer */
    struct ingot_loop_put {
        ingot_writer *writer;
        ingot_waiting *waiting; /* not NULL: of a matrix that waits, */
        const ingot_quantized *matrix;
        uint64_t index;
        ingot_weight_view view; /* a packed matrix; or, with bytes set, a piece of a tensor */
        ingot_ledger *ledger;
        const void *bytes;
        uint64_t size, offset;
        unsigned turn;
        bool is_running;
    } put;
    ingot_batch batch;
    bool has_batch;
    ingot_error *error;
} ingot_loop;

/* Of several devices one writes what all have made. */
static inline bool ingot_loop_is_writer(const ingot_loop *l) {
    return l->rank.number == 0;
}

static inline void ingot_loop_reset(const ingot_loop_memory *m) {
    ingot_arena_reset(m->host);
    ingot_arena_reset(m->device);
}

/* Books the time since *since, and the device memory at its most since the phase before, under a
 * phase; the device is done with it by then (an error of its
 * work is reported by the next operation). */
static inline void ingot_loop_lap(const ingot_loop *l, ingot_phase phase, double *since) {
    (void)!l->ops->wait(l->context);
    l->job->phase_seconds[phase] += ingot_lap(since);
    l->job->phase_bytes[phase] =
        ingot_max_u64(l->job->phase_bytes[phase], l->ops->peak_bytes(l->context));
}

/* What is to be done with planned tensor `index`, with the factor it needs. */
ingot_status ingot_loop_linear_job(ingot_linear_job *job, ingot_loop *l, uint64_t index,
                                   const ingot_weight_view *source, ingot_input_state *input,
                                   const float *row_fold) INGOT_MUST_CHECK;

/* loop_statistics.c.  Whether the statistics of an input are gathered only once what comes before
 * it in the block is quantized. */
bool ingot_loop_is_sequential(const ingot_loop *l);
/* Statistics of the inputs in a mask (convert/collect.h), on the calibration batch; */
ingot_status ingot_loop_collect(ingot_loop *l, ingot_block_state *state,
                                unsigned inputs) INGOT_MUST_CHECK;
/* or of all of them from the statistics file. */
ingot_status ingot_loop_load_statistics(ingot_loop *l, ingot_block_state *state) INGOT_MUST_CHECK;
/* Advances the full-precision stream over a block of which nothing was collected. */
ingot_status ingot_loop_keep_step(ingot_loop *l, const ingot_block_state *state) INGOT_MUST_CHECK;
/* The folds of a block, chosen before anything in it is quantized; and H under them, where inputs
 * are not collected in turn. */
ingot_status ingot_loop_choose_folds(ingot_loop *l, ingot_block_state *state) INGOT_MUST_CHECK;
/* Gives the block the norms and biases that belong to folded linears: those of linears that read
 * the inputs of a mask, all of which are quantized. */
ingot_status ingot_loop_apply_folds(ingot_loop *l, ingot_block_state *state,
                                    unsigned inputs) INGOT_MUST_CHECK;
/* Planned tensor `index` is written: gives back the statistics of its input, unless another matrix
 * of the block is yet to read them. */
void ingot_loop_forget_statistics(ingot_loop *l, ingot_block_state *state, uint64_t index);

/* loop_tune.c: quantizes the matrices of the block at hand and tunes them together. */
ingot_status ingot_loop_tune(ingot_loop *l, ingot_block_state *state) INGOT_MUST_CHECK;

/* Returns when nothing is on its way to the writer, which then may be used directly. */
ingot_status ingot_loop_settle(ingot_loop *l) INGOT_MUST_CHECK;
/* Digests and writes planned tensor `index` in the background; the view's bytes lie in the memory
 * of the tensor at hand or of the block. */
ingot_status ingot_loop_put_behind(ingot_loop *l, uint64_t index, const ingot_weight_view *view,
                                   ingot_ledger *ledger) INGOT_MUST_CHECK;
/* Memory for the next tensor. */
ingot_status ingot_loop_next_tensor(ingot_loop *l) INGOT_MUST_CHECK;
/* Copies a tensor's bytes as they are, digesting and scanning them on the way. */
ingot_status ingot_loop_copy_dense(ingot_loop *l, uint64_t index) INGOT_MUST_CHECK;
/* A norm or bias divided or multiplied by its fold, and the vector of a fold. */
ingot_status ingot_loop_write_folded(ingot_loop *l, uint64_t index,
                                     const ingot_block_state *state) INGOT_MUST_CHECK;
ingot_status ingot_loop_write_fold(ingot_loop *l, uint64_t index,
                                   const ingot_block_state *state) INGOT_MUST_CHECK;

/* Saves a matrix that waits, in the background; it stays where it is until then. */
ingot_status ingot_loop_save_behind(ingot_loop *l, uint64_t index, const ingot_quantized *matrix,
                                    ingot_ledger *ledger) INGOT_MUST_CHECK;

/* loop_distill.c: a matrix of the block at hand that will be distilled, from the device.  bound: on
 * its weight error (ingot_linear_quantize). */
ingot_status ingot_loop_keep_matrix(ingot_loop *l, uint64_t index, const ingot_quantized *q,
                                    double bound) INGOT_MUST_CHECK;
/* The same of a block that an interrupted conversion finished; *packed (host, from the arena) is
 * what the forward pass reads. */
ingot_status ingot_loop_keep_saved(ingot_loop *l, uint64_t index, ingot_arena *arena,
                                   ingot_weight_view *packed) INGOT_MUST_CHECK;
/* Distils what was kept, and writes it. */
ingot_status ingot_loop_distill(ingot_loop *l) INGOT_MUST_CHECK;

#endif
