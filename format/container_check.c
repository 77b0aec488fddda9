/* The full check (spec/container.md, "Integrity", level "full"): every chunk, every padding byte
 * and every value rule.  Together with the open level, OK means that every byte of every shard is
 * accounted for.
 *
 * The work is one sequence of units: runs of chunks in file order, then the outliers of each
 * tensor.  Threads take units in that order; the error reported is that of the first unit that
 * fails, whatever the number of threads.  Memory per thread is constant: one chunk, and the outlier
 * windows. */
#include "format/container_internal.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>

#define RUN_CHUNKS   UINT64_C(4) /* of a unit: a thread reads so much in sequence */
#define MOST_THREADS 64u

/* A position in the sequence of units, and the unit at it. */
typedef struct unit {
    uint64_t sequence;
    bool is_outliers;      /* the rules of the outliers of one tensor; else a run of chunks */
    uint64_t tensor;       /* global record number */
    unsigned part;         /* of the tensor */
    uint64_t first, count; /* chunks of the part */
    uint64_t gap_start;    /* end of the part before this one, in the shard's DATA */
} unit;

typedef struct check {
    const ingot_container *container;
    ingot_check_progress progress;
    void *progress_context;
    pthread_mutex_t lock;
    unit next;
    bool is_exhausted;
    uint64_t done_bytes, total_bytes;
    uint64_t failed_sequence; /* lowest unit that failed */
    ingot_status status;
    ingot_error error;
} check;

/* ---- the sequence ---------------------------------------------------------------------------- */

static bool has_unit(const check *work, const unit *at) {
    const ingot_tensor *tensor = ingot_tensor_at(work->container, at->tensor);
    if (at->is_outliers) {
        return tensor->kind == INGOT_GROUPED && tensor->outlier_count > 0;
    }
    return at->first * CHUNK_BYTES < tensor->part_bytes[at->part];
}

/* Moves to the next position that may hold a unit; false at the end. */
static bool step(const check *work, unit *at) {
    const uint64_t tensors = work->container->tensor_count;
    const ingot_tensor *tensor = ingot_tensor_at(work->container, at->tensor);
    if (!at->is_outliers) {
        const uint64_t bytes = tensor->part_bytes[at->part];
        at->first += RUN_CHUNKS;
        if (at->first * CHUNK_BYTES < bytes) {
            return true;
        }
        if (bytes > 0) {
            at->gap_start = tensor->part_offset[at->part] + bytes;
        }
        at->first = 0;
        if (++at->part < INGOT_PART_COUNT) {
            return true;
        }
        at->part = 0;
    }
    if (++at->tensor < tensors) {
        const shard *part = shard_of_tensor(work->container, at->tensor);
        at->gap_start = part->first_tensor == at->tensor ? 0 : at->gap_start;
        return true;
    }
    const bool is_end = at->is_outliers;
    at->is_outliers = true;
    at->tensor = 0;
    return !is_end;
}

/* Takes the next unit that is still worth doing; called with the lock held. */
static bool take(check *work, unit *out) {
    while (!work->is_exhausted && !has_unit(work, &work->next)) {
        work->is_exhausted = !step(work, &work->next);
    }
    if (work->is_exhausted || work->next.sequence >= work->failed_sequence) {
        return false;
    }
    *out = work->next;
    if (!out->is_outliers) {
        const uint64_t bytes = ingot_tensor_at(work->container, out->tensor)->part_bytes[out->part];
        const uint64_t chunks = ingot_ceil_div(bytes, CHUNK_BYTES);
        out->count = ingot_min_u64(RUN_CHUNKS, chunks - out->first);
    }
    work->next.sequence++;
    work->is_exhausted = !step(work, &work->next);
    return true;
}

/* ---- units ----------------------------------------------------------------------------------- */

/* A chunk, with the bytes between the part before and the first of this one in one sequential read.
 * *bytes points into buffer. */
static ingot_status read_chunk(const shard *part, const ingot_tensor *tensor, const unit *what,
                               uint64_t chunk, uint8_t *buffer, const uint8_t **bytes,
                               ingot_error *error) {
    const uint64_t from = tensor->part_offset[what->part] + chunk * CHUNK_BYTES;
    const uint64_t length = chunk_length(tensor, what->part, chunk);
    const uint64_t gap = chunk == 0 ? from - what->gap_start : 0; /* < DATA_ALIGNMENT */
    uint8_t *start = buffer + DATA_ALIGNMENT - gap;
    INGOT_TRY(shard_read_at(part, start, gap + length, part->data_offset + from - gap, error));
    for (uint64_t i = 0; i < gap; i++) {
        if (start[i] != 0) {
            return ingot_error_set(error, INGOT_BAD_DATA_GAP, part->path, tensor->name,
                                   "copy or download the file again", "%s",
                                   ingot_status_text(INGOT_BAD_DATA_GAP));
        }
    }
    *bytes = start + gap;
    return INGOT_OK;
}

/* Chunk by chunk, each digested while a second-level cache still has it: a whole run read at once
 * comes from memory twice. */
static ingot_status check_run(const shard *part, const ingot_tensor *tensor, const unit *what,
                              uint8_t *buffer, chunk_reader *reader, ingot_error *error) {
    for (uint64_t i = 0; i < what->count; i++) {
        const uint64_t chunk = what->first + i;
        const uint8_t *bytes = buffer;
        if (part->zmap != NULL) { /* such files do not store gaps */
            INGOT_TRY(chunk_read(part, tensor, what->part, chunk, true, buffer, reader, error));
        } else {
            INGOT_TRY(read_chunk(part, tensor, what, chunk, buffer, &bytes, error));
            INGOT_TRY(chunk_check_digest(part, tensor, what->part, chunk, bytes, error));
        }
        INGOT_TRY(values_check_piece(part, tensor, what->part, chunk * CHUNK_BYTES, bytes,
                                     chunk_length(tensor, what->part, chunk), error));
    }
    return INGOT_OK;
}

typedef struct worker {
    uint8_t *buffer; /* [DATA_ALIGNMENT + CHUNK_BYTES] */
    chunk_reader reader;
} worker;

static ingot_status check_unit(const ingot_container *container, const unit *what, worker *self,
                               ingot_error *error) {
    const shard *part = shard_of_tensor(container, what->tensor);
    const ingot_tensor *tensor = ingot_tensor_at(container, what->tensor);
    const bool needs_reader = part->zmap != NULL && self->reader.stored == NULL;
    if (self->buffer == NULL) {
        self->buffer = malloc(DATA_ALIGNMENT + CHUNK_BYTES);
    }
    if (self->buffer == NULL ||
        (needs_reader && chunk_reader_create(&self->reader, true) != INGOT_OK)) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, part->path, tensor->name, NULL,
                               "out of memory");
    }
    return what->is_outliers ? values_check_outliers(part, tensor, NULL, &self->reader, error)
                             : check_run(part, tensor, what, self->buffer, &self->reader, error);
}

static uint64_t unit_bytes(const ingot_container *container, const unit *what) {
    if (what->is_outliers) {
        return 0;
    }
    const uint64_t bytes = ingot_tensor_at(container, what->tensor)->part_bytes[what->part];
    const uint64_t left = bytes - what->first * CHUNK_BYTES;
    return ingot_min_u64(left, what->count * CHUNK_BYTES);
}

/* ---- threads --------------------------------------------------------------------------------- */

static void *check_worker(void *context) {
    check *work = context;
    worker self = {0};
    unit what;
    (void)pthread_mutex_lock(&work->lock);
    while (take(work, &what)) {
        (void)pthread_mutex_unlock(&work->lock);
        ingot_error error = {0};
        const ingot_status status = check_unit(work->container, &what, &self, &error);
        (void)pthread_mutex_lock(&work->lock);
        if (status != INGOT_OK && what.sequence < work->failed_sequence) {
            work->failed_sequence = what.sequence;
            work->status = status;
            work->error = error;
        }
        work->done_bytes += unit_bytes(work->container, &what);
        if (work->progress != NULL && work->failed_sequence > 0 &&
            !work->progress(work->progress_context, work->done_bytes, work->total_bytes)) {
            work->failed_sequence = 0;
            work->status = ingot_error_set(&work->error, INGOT_ERR_INTERRUPTED,
                                           work->container->shards[0].path, NULL, NULL,
                                           "the check was interrupted");
        }
    }
    (void)pthread_mutex_unlock(&work->lock);
    free(self.buffer);
    chunk_reader_destroy(&self.reader);
    return NULL;
}

ingot_status ingot_check_full(const ingot_container *container, unsigned threads,
                              ingot_check_progress progress, void *context, ingot_error *error) {
    check work = {.container = container,
                  .progress = progress,
                  .progress_context = context,
                  .is_exhausted = container->tensor_count == 0,
                  .failed_sequence = UINT64_MAX};
    pthread_t extra[MOST_THREADS];
    unsigned started = 0;
    for (uint64_t i = 0; i < container->tensor_count; i++) {
        for (unsigned p = 0; p < INGOT_PART_COUNT; p++) {
            work.total_bytes += ingot_tensor_at(container, i)->part_bytes[p];
        }
    }
    for (uint32_t i = 0; i < container->shard_count; i++) {
        /* Only a hint: larger read-ahead. */
        (void)posix_fadvise(container->shards[i].fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    }
    if (pthread_mutex_init(&work.lock, NULL) != 0) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, container->shards[0].path, NULL, NULL,
                               "out of memory");
    }
    while (started + 1 < threads && started < MOST_THREADS &&
           pthread_create(&extra[started], NULL, check_worker, &work) == 0) {
        started++;
    }
    (void)check_worker(&work);
    for (unsigned i = 0; i < started; i++) {
        (void)pthread_join(extra[i], NULL);
    }
    (void)pthread_mutex_destroy(&work.lock);
    if (work.status != INGOT_OK && error != NULL) {
        *error = work.error;
    }
    return work.status;
}
