/* What learning is tried on: a tiny model on a device, a batch of random windows the last of which
 * judge, and matrices of it by plain rounding.  For test_tune.c and test_distill.c. */
#ifndef INGOT_TEST_TINY_BATCH_H
#define INGOT_TEST_TINY_BATCH_H

#include "common/sizes.h"
#include "convert/batch.h"
#include "tiny_model.h"

/* Enough to learn from: codes that fit 81 tokens say little of others, those that fit 720 do. */
#define WINDOWS 96u
#define JUDGES  16u
#define LENGTH  9u
#define TOKENS  (WINDOWS * LENGTH)

typedef struct tiny_batch {
    const ingot_backend *b;
    tiny_model *t;
    ingot_arena *host, *device;
    ingot_batch batch;
    ingot_loop_job loop;
    ingot_progress progress;
    ingot_windows windows;
    uint32_t ids[TOKENS];
} tiny_batch;

/* The batch points into *in, which must stay where it is. */
static inline void tiny_batch_begin(tiny_batch *in, const ingot_backend *b, unsigned flags,
                                    uint64_t seed) {
    in->b = b;
    in->t = tiny_create(flags, 7);
    CU_ASSERT_FATAL(ingot_arena_create(&in->host) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_backend_arena_create(&in->device, b) == INGOT_OK);
    tiny_ids(in->t, in->ids, TOKENS);
    in->windows = (ingot_windows){.ids = in->ids, .count = WINDOWS, .length = LENGTH};
    ingot_progress_begin(&in->progress, "testing", "blocks", 1, true);
    in->loop = (ingot_loop_job){.source = &in->t->source,
                                .model = &in->t->model,
                                .backend = b,
                                .windows = &in->windows,
                                .seed = seed,
                                .progress = &in->progress};
    CU_ASSERT_FATAL(ingot_batch_create(&in->batch, &in->loop, JUDGES, INGOT_BOTH, NULL, in->host,
                                       NULL) == INGOT_OK);
}

static inline void tiny_batch_end(tiny_batch *in) {
    ingot_batch_destroy(&in->batch, in->b);
    ingot_arena_destroy(in->host);
    ingot_arena_destroy(in->device);
    tiny_destroy(in->t);
}

static inline void tiny_batch_read(const tiny_batch *in, void *to, const void *from,
                                   uint64_t bytes) {
    CU_ASSERT_FATAL(in->b->ops->download(in->b->context, to, from, bytes) == INGOT_OK);
}

/* The exact states become what the block puts out. */
static inline void tiny_batch_advance(tiny_batch *in, const ingot_block *block) {
    CU_ASSERT_FATAL(ingot_batch_run(&in->batch, &in->loop, block, 0, WINDOWS,
                                    &(ingot_batch_use){.is_exact = true}, NULL) == INGOT_OK);
}

/* *q = a matrix of the block by plain rounding, *w = its values; both in in->device. */
static inline void tiny_batch_round(tiny_batch *in, ingot_quantized *q, float **w,
                                    const ingot_block *block, ingot_role role,
                                    ingot_quant_format format) {
    const ingot_linear_desc *d = &in->t->model.linear[role];
    const ingot_backend_ops *ops = in->b->ops;
    uint64_t bad;
    format.group = ingot_min_u64(format.group, d->cols);
    CU_ASSERT_FATAL(ingot_quantized_create(q, d->rows, d->cols, &format, in->device) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_arena_array(in->device, (void **)w, d->rows, d->cols * 4) == INGOT_OK);
    CU_ASSERT_FATAL(ops->values(in->b->context, *w, &bad, &block->linear[role], NULL, NULL) ==
                    INGOT_OK);
    CU_ASSERT_FATAL(ops->quantize_rtn(in->b->context, q, *w) == INGOT_OK);
}

#endif
