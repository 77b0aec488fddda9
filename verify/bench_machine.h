/* What a machine can do at best: the limits that ingot-bench prints its figures beside.  Rates are
 * bytes per second, the best of the runs; NAN where something failed. */
#ifndef INGOT_BENCH_MACHINE_H
#define INGOT_BENCH_MACHINE_H

#include "kernels/backend.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct ingot_bench_file {
    int fd; /* open for reading */
    uint64_t size;
} ingot_bench_file;

/* Plain loads by all threads from several times any cache. */
double ingot_bench_memory_rate(unsigned threads, unsigned runs);
/* The files, one after another, with pread by all threads; is_cold: their pages dropped before. */
double ingot_bench_read_rate(const ingot_bench_file *files, uint64_t count, bool is_cold,
                             unsigned threads, unsigned runs);
/* A file of size_bytes under construction at path, reserved, written in pieces, by one thread or by
 * all, whichever is faster, and synced; removed again. */
double ingot_bench_write_rate(const char *path, uint64_t size_bytes, unsigned threads,
                              unsigned runs);
/* size bytes over the time that another program takes for them. */
double ingot_bench_program_rate(const char *const *words, uint64_t size, unsigned runs);

/* Drops the pages of a file that is on the disk from the cache (posix_fadvise). */
void ingot_bench_drop_pages(int fd);
/* Whether the middle of the file is in the page cache (always, where files live in memory). */
bool ingot_bench_is_cached(const ingot_bench_file *file);

/* Pinned host memory to the device. */
double ingot_bench_upload_rate(const ingot_backend *backend, unsigned runs);

#endif
