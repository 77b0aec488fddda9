/* What a conversion writes behind its main loop (convert/loop_internal.h): packed matrices, dense
 * tensors, folds. */
#include "convert/loop_internal.h"

#include "common/files.h"
#include "common/memory.h"
#include "common/sizes.h"
#include "format/digest.h"

#include <math.h>
#include <string.h>

#define COPY_BYTES  (8u << 20) /* of a dense tensor read at once, */
#define SLICE_BYTES (1u << 20) /* by threads that take these */

/* ---- writing behind ------------------------------------------------------------------------- */

static ingot_status run_put(void *context, ingot_error *error) {
    const struct ingot_loop_put *put = context;
    if (put->waiting != NULL) {
        return ingot_waiting_put(put->waiting, put->index, put->matrix, put->ledger, error);
    }
    if (put->bytes != NULL) {
        return ingot_writer_put_bytes(put->writer, put->index, put->bytes, put->size, put->offset,
                                      error);
    }
    return ingot_writer_put(put->writer, put->index, &put->view, put->ledger, error);
}

/* Returns when nothing is on its way to the writer, which then may be used directly. */
ingot_status ingot_loop_settle(ingot_loop *l) {
    const double start = ingot_clock_seconds();
    l->put.is_running = false;
    const ingot_status status = ingot_worker_wait(l->writing, l->error);
    l->job->phase_seconds[INGOT_PHASE_WRITE] += ingot_clock_seconds() - start;
    return status;
}

/* Digests and writes in the background what lies in the memory of the tensor at hand or of the
 * block. */
static ingot_status start_put(ingot_loop *l, struct ingot_loop_put put) {
    INGOT_TRY(ingot_loop_settle(l));
    l->put = put;
    l->put.writer = l->job->writer;
    l->put.turn = l->turn;
    l->put.is_running = true;
    ingot_worker_start(l->writing, run_put, &l->put);
    return INGOT_OK;
}

ingot_status ingot_loop_put_behind(ingot_loop *l, uint64_t index, const ingot_weight_view *view,
                                   ingot_ledger *ledger) {
    return start_put(l, (struct ingot_loop_put){.index = index, .view = *view, .ledger = ledger});
}

ingot_status ingot_loop_save_behind(ingot_loop *l, uint64_t index, const ingot_quantized *matrix,
                                    ingot_ledger *ledger) {
    return start_put(
        l, (struct ingot_loop_put){
               .waiting = l->job->waiting, .matrix = matrix, .index = index, .ledger = ledger});
}

static ingot_status put_bytes_behind(ingot_loop *l, uint64_t index, const void *bytes,
                                     uint64_t size, uint64_t offset) {
    return start_put(
        l, (struct ingot_loop_put){.index = index, .bytes = bytes, .size = size, .offset = offset});
}

/* Memory for the next tensor. */
ingot_status ingot_loop_next_tensor(ingot_loop *l) {
    l->turn = 1 - l->turn;
    if (l->put.is_running && l->put.turn == l->turn) {
        INGOT_TRY(ingot_loop_settle(l));
    }
    ingot_loop_reset(&l->tensors[l->turn]);
    return INGOT_OK;
}

/* ---- dense tensors -------------------------------------------------------------------------- */

static ingot_status check_finite(const ingot_loop *l, const ingot_st_tensor *source,
                                 const void *bytes, uint64_t offset, uint64_t size,
                                 ingot_error *error) {
    if (source->dtype == INGOT_I32 || source->dtype == INGOT_U8) {
        return INGOT_OK;
    }
    const uint64_t element = ingot_dtype_bytes(source->dtype), count = size / element;
    const uint64_t bad = ingot_first_not_finite(bytes, source->dtype, count);
    if (bad == count) {
        return INGOT_OK;
    }
    uint64_t index = 0;
    (void)ingot_checkpoint_find(l->job->checkpoint, source->name, &index);
    return ingot_error_set(
        error, INGOT_ERR_NUMERIC, ingot_checkpoint_shard_path(l->job->checkpoint, index),
        source->name, "the checkpoint is damaged: fetch or export it again",
        "element %llu is NaN or infinite", (unsigned long long)(offset / element + bad));
}

/* A piece of a dense tensor on its way into memory, and the one before, which is digested beside
 * it: a digest is one thread's. */
typedef struct piece {
    const ingot_loop *l;
    uint64_t source_index, offset, size;
    char *bytes;
    ingot_digest_stream *digest;
    const char *before; /* [before_size] */
    uint64_t before_size;
} piece;

static ingot_status read_slice(void *context, size_t index, unsigned worker, ingot_error *error) {
    (void)worker;
    const piece *p = context;
    if (index == 0) { /* the longest of all */
        ingot_digest_stream_update(p->digest, p->before, p->before_size);
        return INGOT_OK;
    }
    index--;
    const ingot_checkpoint *from = p->l->job->checkpoint;
    const uint64_t at = index * SLICE_BYTES, size = ingot_min_u64(p->size - at, SLICE_BYTES);
    INGOT_TRY(
        ingot_checkpoint_read(from, p->source_index, p->offset + at, size, p->bytes + at, error));
    return check_finite(p->l, ingot_checkpoint_at(from, p->source_index), p->bytes + at,
                        p->offset + at, size, error);
}

/* Reads and scans a piece, if there is one, with all threads: one of them copies 4 to 5 GB/s out of
 * the page cache, less than is written meanwhile. */
static ingot_status read_piece(piece *p) {
    return ingot_pool_try(p->l->job->backend->pool, 1 + ingot_ceil_div(p->size, SLICE_BYTES),
                          read_slice, p, p->l->error);
}

/* Copies a tensor's bytes as they are, digesting and scanning them on the way; a piece is written
 * while the next one is read. */
ingot_status ingot_loop_copy_dense(ingot_loop *l, uint64_t index) {
    const ingot_plan_tensor *t = &l->job->plan->tensors[index];
    const ingot_st_tensor *source = ingot_checkpoint_at(l->job->checkpoint, t->source_index);
    ingot_digest_stream *digest = NULL;
    void *pieces[2];
    INGOT_TRY(ingot_loop_next_tensor(l));
    for (unsigned i = 0; i < 2; i++) {
        INGOT_TRY(ingot_arena_alloc(l->tensors[l->turn].host, &pieces[i],
                                    ingot_min_u64(source->bytes, COPY_BYTES)));
    }
    INGOT_TRY(ingot_digest_stream_create(&digest));
    ingot_status status = INGOT_OK;
    double since = ingot_clock_seconds();
    piece p = {.l = l, .source_index = t->source_index, .digest = digest};
    for (uint64_t i = 0; p.offset < source->bytes || p.before_size != 0; i++) {
        p.size = ingot_min_u64(source->bytes - p.offset, COPY_BYTES);
        p.bytes = pieces[i % 2];
        INGOT_GO(ingot_interrupt_check(l->error));
        INGOT_GO(read_piece(&p));
        ingot_loop_lap(l, INGOT_PHASE_READ, &since);
        INGOT_GO(p.size != 0 ? put_bytes_behind(l, index, p.bytes, p.size, p.offset) : INGOT_OK);
        since = ingot_clock_seconds();
        p.before = p.bytes;
        p.before_size = p.size;
        p.offset += p.size;
    }
    INGOT_GO(ingot_loop_settle(l));
    ingot_ledger *ledger = &l->job->ledgers[index];
    ingot_ledger_copy(ledger);
    ingot_digest_stream_finish(digest, ledger->source_digest);
    ingot_writer_put_ledger(l->job->writer, index, ledger);
done:
    ingot_digest_stream_destroy(digest);
    return status;
}

/* A norm divided by its fold, or a bias multiplied by its row fold, stored as F32. */
ingot_status ingot_loop_write_folded(ingot_loop *l, uint64_t index,
                                     const ingot_block_state *state) {
    const ingot_plan_tensor *t = &l->job->plan->tensors[index];
    const ingot_st_tensor *source = ingot_checkpoint_at(l->job->checkpoint, t->source_index);
    void *bytes;
    float *values;
    INGOT_TRY(ingot_loop_next_tensor(l));
    INGOT_TRY(ingot_arena_alloc(l->tensors[l->turn].host, &bytes, source->bytes));
    INGOT_TRY(ingot_arena_alloc(l->tensors[l->turn].host, (void **)&values,
                                source->elements * sizeof *values));
    INGOT_TRY(ingot_checkpoint_read(l->job->checkpoint, t->source_index, 0, source->bytes, bytes,
                                    l->error));
    INGOT_TRY(check_finite(l, source, bytes, 0, source->bytes, l->error));
    ingot_rows_to_f32(values, bytes, source->dtype, source->elements);
    ingot_ledger *ledger = &l->job->ledgers[index];
    ingot_ledger_copy(ledger);
    ingot_digest128(ledger->source_digest, bytes, source->bytes);
    ledger->is_folded = true;
    for (uint64_t i = 0; i < source->elements; i++) {
        values[i] = t->class == INGOT_CLASS_NORM ? values[i] / state->norm_fold[t->slot][i]
                                                 : values[i] * state->row_fold[t->role][i];
    }
    const ingot_weight_view view = {.kind = INGOT_DENSE,
                                    .rows = 1,
                                    .cols = source->elements,
                                    .dtype = INGOT_F32,
                                    .data = values};
    INGOT_TRY(ingot_loop_settle(l));
    return ingot_writer_put(l->job->writer, index, &view, ledger, l->error);
}

ingot_status ingot_loop_write_fold(ingot_loop *l, uint64_t index, const ingot_block_state *state) {
    const ingot_plan_tensor *t = &l->job->plan->tensors[index];
    const ingot_linear_desc *d = &l->job->model->linear[t->role];
    const bool is_row = t->origin == INGOT_ORIGIN_ROW_FOLD;
    const ingot_weight_view view = {.kind = INGOT_DENSE,
                                    .rows = 1,
                                    .cols = is_row ? d->rows : d->cols,
                                    .dtype = INGOT_F32,
                                    .data = is_row ? state->row_fold[t->role]
                                                   : state->input[d->input].fold};
    ingot_ledger_copy(&l->job->ledgers[index]);
    INGOT_TRY(ingot_loop_settle(l));
    return ingot_writer_put(l->job->writer, index, &view, &l->job->ledgers[index], l->error);
}
