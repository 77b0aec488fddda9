/* The limits of a machine (verify/bench_machine.h). */
#include "verify/bench_machine.h"

#include "common/files.h"
#include "common/pool.h"
#include "common/progress.h"
#include "common/random.h"
#include "common/sizes.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <math.h>
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define PIECE_BYTES        (UINT64_C(4) << 20)
#define MEMORY_BYTES       (UINT64_C(512) << 20) /* several times any cache */
#define UPLOAD_BYTES       (UINT64_C(256) << 20)
#define MOST_BENCH_THREADS 64u

extern char **environ;

/* ---- files and memory -----------------------------------------------------------------------
 */
/* Threads take pieces of a file, or of memory, until there are none left. */
typedef struct reading {
    int fd;
    const uint64_t *memory; /* instead of the file */
    uint64_t size;
    atomic_ullong next;
    atomic_bool has_failed;
    atomic_ullong sum; /* keeps the reads of memory from being dropped */
} reading;

static void *read_pieces(void *context) {
    reading *r = context;
    uint8_t *buffer = r->memory != NULL ? NULL : malloc(PIECE_BYTES);
    uint64_t at;
    while ((at = atomic_fetch_add(&r->next, PIECE_BYTES)) < r->size) {
        const uint64_t length = ingot_min_u64(PIECE_BYTES, r->size - at);
        if (r->memory != NULL) {
            uint64_t sum = 0;
            for (uint64_t i = at / 8; i < (at + length) / 8; i++) {
                sum += r->memory[i];
            }
            (void)atomic_fetch_add(&r->sum, sum);
        } else if (buffer == NULL || pread(r->fd, buffer, length, (off_t)at) != (ssize_t)length) {
            atomic_store(&r->has_failed, true);
        }
    }
    free(buffer);
    return NULL;
}

/* Bytes per second; NAN when a read failed. */
static double read_rate(reading *r, unsigned threads) {
    pthread_t extra[MOST_BENCH_THREADS];
    unsigned started = 0;
    atomic_store(&r->next, 0);
    const double start = ingot_clock_seconds();
    while (started + 1 < threads && pthread_create(&extra[started], NULL, read_pieces, r) == 0) {
        started++;
    }
    (void)read_pieces(r);
    for (unsigned i = 0; i < started; i++) {
        (void)pthread_join(extra[i], NULL);
    }
    const double seconds = ingot_clock_seconds() - start;
    return atomic_load(&r->has_failed) ? (double)NAN : (double)r->size / seconds;
}

double ingot_bench_memory_rate(unsigned threads, unsigned runs) {
    uint64_t *memory = malloc(MEMORY_BYTES);
    double best = NAN;
    if (memory == NULL) {
        return best;
    }
    memset(memory, 1, MEMORY_BYTES);
    for (unsigned i = 0; i < runs; i++) {
        reading r = {.memory = memory, .size = MEMORY_BYTES};
        best = fmax(best, read_rate(&r, threads));
    }
    free(memory);
    return best;
}

void ingot_bench_drop_pages(int fd) {
    (void)fsync(fd);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

bool ingot_bench_is_cached(const ingot_bench_file *file) {
    struct statfs where;
    char byte;
    if (fstatfs(file->fd, &where) == 0 && where.f_type == TMPFS_MAGIC) {
        return true; /* which does not always know RWF_NOWAIT */
    }
    const struct iovec one = {.iov_base = &byte, .iov_len = 1};
    return preadv2(file->fd, &one, 1, (off_t)(file->size / 2), RWF_NOWAIT) == 1;
}

double ingot_bench_read_rate(const ingot_bench_file *files, uint64_t count, bool is_cold,
                             unsigned threads, unsigned runs) {
    double best = NAN;
    for (unsigned i = 0; i < runs; i++) {
        double bytes = 0, seconds = 0;
        for (uint64_t f = 0; f < count; f++) {
            reading r = {.fd = files[f].fd, .size = files[f].size};
            if (is_cold) {
                ingot_bench_drop_pages(r.fd);
            }
            bytes += (double)r.size;
            seconds += (double)r.size / read_rate(&r, threads);
        }
        best = fmax(best, bytes / seconds);
    }
    return best;
}

/* A file that threads write. */
typedef struct writing {
    ingot_output *output;
    const void *piece; /* [PIECE_BYTES] */
    uint64_t size;
} writing;

static ingot_status write_piece(void *context, size_t index, unsigned worker, ingot_error *error) {
    (void)worker;
    const writing *w = context;
    const uint64_t at = index * PIECE_BYTES;
    INGOT_TRY(ingot_interrupt_check(error));
    return ingot_output_write_at(w->output, w->piece, ingot_min_u64(PIECE_BYTES, w->size - at), at,
                                 error);
}

/* Bytes per second of a file that is reserved, written and flushed; the status of what failed. */
static ingot_status write_once(double *rate, const char *path, uint64_t size, const void *piece,
                               unsigned threads) {
    ingot_pool *pool = NULL;
    writing w = {.piece = piece, .size = size};
    ingot_status status = INGOT_OK;
    const double start = ingot_clock_seconds();
    INGOT_TRY(ingot_output_create(&w.output, path, true, NULL));
    INGOT_GO(ingot_pool_create(&pool, ingot_output_share(w.output, threads)));
    INGOT_GO(ingot_output_reserve(w.output, size, NULL));
    INGOT_GO(ingot_pool_try(pool, ingot_ceil_div(size, PIECE_BYTES), write_piece, &w, NULL));
    INGOT_GO(ingot_output_sync(w.output, NULL));
    *rate = (double)size / (ingot_clock_seconds() - start);
done:
    ingot_pool_destroy(pool);
    ingot_output_abort(w.output);
    return status;
}

double ingot_bench_write_rate(const char *path, uint64_t size_bytes, unsigned threads,
                              unsigned runs) {
    uint32_t *piece = malloc(PIECE_BYTES);
    uint64_t state = 1;
    double best = NAN;
    for (uint64_t i = 0; piece != NULL && i < PIECE_BYTES / sizeof *piece; i++) {
        piece[i] = (uint32_t)ingot_random_bits(&state);
    }
    for (unsigned i = 0; piece != NULL && i < 2 * runs; i++) {
        double rate = NAN;
        if (write_once(&rate, path, size_bytes, piece, i % 2 == 0 ? 1 : threads) == INGOT_OK) {
            best = fmax(best, rate);
        }
    }
    free(piece);
    return best;
}

double ingot_bench_program_rate(const char *const *words, uint64_t size, unsigned runs) {
    double best = NAN;
    posix_spawn_file_actions_t actions;
    if (posix_spawn_file_actions_init(&actions) != 0) {
        return best;
    }
    bool is_set = posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0) == 0 &&
                  posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0) == 0;
    for (unsigned i = 0; is_set && i < runs; i++) {
        pid_t child;
        int state = -1;
        const double start = ingot_clock_seconds();
        is_set = posix_spawnp(&child, words[0], &actions, NULL, (char *const *)(uintptr_t)words,
                              environ) == 0 &&
                 waitpid(child, &state, 0) == child && state == 0;
        if (is_set) {
            best = fmax(best, (double)size / (ingot_clock_seconds() - start));
        }
    }
    (void)posix_spawn_file_actions_destroy(&actions);
    return best;
}

/* ---- the device -----------------------------------------------------------------------------
 */

double ingot_bench_upload_rate(const ingot_backend *backend, unsigned runs) {
    const ingot_backend_ops *ops = backend->ops;
    void *host = NULL, *device = NULL;
    double best = NAN;
    if (ops->host_alloc(backend->context, &host, UPLOAD_BYTES) == INGOT_OK &&
        ops->alloc(backend->context, &device, UPLOAD_BYTES) == INGOT_OK) {
        memset(host, 1, UPLOAD_BYTES);
        for (unsigned i = 0; i <= runs; i++) { /* the first warms up */
            const double start = ingot_clock_seconds();
            if (ops->upload(backend->context, device, host, UPLOAD_BYTES) == INGOT_OK && i != 0) {
                best = fmax(best, (double)UPLOAD_BYTES / (ingot_clock_seconds() - start));
            }
        }
    }
    if (device != NULL) {
        ops->release(backend->context, device);
    }
    if (host != NULL) {
        ops->host_release(backend->context, host);
    }
    return best;
}
