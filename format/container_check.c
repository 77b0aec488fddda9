/* The full check (spec/container.md, "Integrity", level "full"): every chunk, every padding byte
 * and every value rule.  Together with the open level, OK means that every byte of every shard is
 * accounted for.
 *
 * Tensors are independent, so threads take them one at a time; the error that is reported is the
 * one with the lowest tensor number, whatever the number of threads. */
#include "format/container_internal.h"

#include <pthread.h>
#include <stdlib.h>

typedef struct check {
    const ingot_container *container;
    ingot_check_progress progress;
    void *progress_context;
    pthread_mutex_t lock;
    uint64_t next, done_bytes, total_bytes;
    uint64_t failed_index; /* lowest tensor that failed; tensor_count: none */
    ingot_status status;
    ingot_error error;
} check;

/* The bytes between the end of the part before and this part. */
static ingot_status check_gap(const shard *part, const ingot_tensor *tensor, uint64_t from,
                              uint64_t to, ingot_error *error) {
    uint8_t bytes[DATA_ALIGNMENT];
    if (part->zmap != NULL || from == to) { /* compressed files do not store gaps */
        return INGOT_OK;
    }
    INGOT_TRY(shard_read_at(part, bytes, to - from, part->data_offset + from, error));
    for (uint64_t i = 0; i < to - from; i++) {
        if (bytes[i] != 0) {
            return ingot_error_set(error, INGOT_BAD_DATA_GAP, part->path, tensor->name,
                                   "copy or download the file again", "%s",
                                   ingot_status_text(INGOT_BAD_DATA_GAP));
        }
    }
    return INGOT_OK;
}

/* End of the last part that stands before tensor `local` in its shard. */
static uint64_t previous_end(const shard *part, uint64_t local) {
    for (uint64_t i = local; i > 0; i--) {
        const ingot_tensor *tensor = &part->tensors[i - 1];
        for (unsigned p = INGOT_PART_COUNT; p > 0; p--) {
            if (tensor->part_bytes[p - 1] > 0) {
                return tensor->part_offset[p - 1] + tensor->part_bytes[p - 1];
            }
        }
    }
    return 0;
}

static ingot_status check_tensor(const ingot_container *container, uint64_t index, void **buffer,
                                 uint64_t *capacity, ingot_error *error) {
    const shard *part = shard_of_tensor(container, index);
    const uint64_t local = index - part->first_tensor;
    const ingot_tensor *tensor = &part->tensors[local];
    if (tensor->kind == INGOT_ALIAS) {
        return INGOT_OK;
    }
    uint64_t at = previous_end(part, local);
    for (unsigned p = 0; p < INGOT_PART_COUNT; p++) {
        if (tensor->part_bytes[p] > 0) {
            INGOT_TRY(check_gap(part, tensor, at, tensor->part_offset[p], error));
            at = tensor->part_offset[p] + tensor->part_bytes[p];
        }
    }
    if (tensor->kind == INGOT_GROUPED) {
        const uint64_t need = ingot_tensor_load_bytes(container, index);
        if (need > *capacity) {
            free(*buffer);
            *buffer = aligned_alloc(64, (size_t)need);
            *capacity = *buffer != NULL ? need : 0;
            if (*buffer == NULL) {
                return ingot_error_set(error, INGOT_ERR_NO_MEMORY, part->path, tensor->name, NULL,
                                       "out of memory");
            }
        }
        ingot_weight_view view;
        return ingot_tensor_load(container, index, true, *buffer, &view, error);
    }
    /* Dense data obeys no rule but its digests: chunk by chunk, in constant memory. */
    uint8_t *chunk_buffer = malloc(2 * CHUNK_BYTES);
    if (chunk_buffer == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, part->path, tensor->name, NULL,
                               "out of memory");
    }
    ingot_status status = INGOT_OK;
    const uint64_t bytes = tensor->part_bytes[INGOT_PART_CODES];
    uint64_t chunk = tensor->first_chunk;
    for (uint64_t done = 0; done < bytes && status == INGOT_OK; done += CHUNK_BYTES) {
        status = chunk_read(part, tensor, chunk++, tensor->part_offset[INGOT_PART_CODES] + done,
                            ingot_min_u64(CHUNK_BYTES, bytes - done), true, chunk_buffer,
                            chunk_buffer + CHUNK_BYTES, error);
    }
    free(chunk_buffer);
    return status;
}

static void *check_worker(void *context) {
    check *work = context;
    void *buffer = NULL;
    uint64_t capacity = 0;
    (void)pthread_mutex_lock(&work->lock);
    while (work->next < work->container->tensor_count && work->next < work->failed_index) {
        const uint64_t index = work->next++;
        (void)pthread_mutex_unlock(&work->lock);
        ingot_error error = {0};
        const ingot_status status =
            check_tensor(work->container, index, &buffer, &capacity, &error);
        (void)pthread_mutex_lock(&work->lock);
        if (status != INGOT_OK && index < work->failed_index) {
            work->failed_index = index;
            work->status = status;
            work->error = error;
        }
        work->done_bytes += ingot_tensor_at(work->container, index)->kind == INGOT_ALIAS
                                ? 0
                                : ingot_tensor_load_bytes(work->container, index);
        if (work->progress != NULL &&
            !work->progress(work->progress_context, work->done_bytes, work->total_bytes)) {
            work->failed_index = 0;
            work->status = INGOT_ERR_INTERRUPTED;
            (void)ingot_error_set(&work->error, INGOT_ERR_INTERRUPTED,
                                  work->container->shards[0].path, NULL, NULL, "interrupted");
        }
    }
    (void)pthread_mutex_unlock(&work->lock);
    free(buffer);
    return NULL;
}

ingot_status ingot_check_full(const ingot_container *container, unsigned threads,
                              ingot_check_progress progress, void *context, ingot_error *error) {
    enum { MOST_THREADS = 64 };
    check work = {.container = container, .progress = progress, .progress_context = context};
    pthread_t extra[MOST_THREADS];
    unsigned started = 0;
    for (uint64_t i = 0; i < container->tensor_count; i++) {
        if (ingot_tensor_at(container, i)->kind != INGOT_ALIAS) {
            work.total_bytes += ingot_tensor_load_bytes(container, i);
        }
    }
    work.failed_index = container->tensor_count;
    (void)pthread_mutex_init(&work.lock, NULL);
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
