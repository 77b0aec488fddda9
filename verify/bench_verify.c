/* ingot-bench verify: how fast a container is checked, beside what the machine can read. */
#include "verify/bench.h"

#include "common/files.h"
#include "common/memory.h"
#include "common/progress.h"
#include "common/random.h"
#include "common/sizes.h"
#include "format/container_write.h"
#include "kernels/device_name.h"
#include "verify/bench_machine.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MANY_TENSORS 10000u
#define OPEN_RUNS    20u
#define ROWS         8192u
#define COLS         4096u

/* ---- generated containers ----------------------------------------------------------------------
 */

static ingot_status write_copies(const char *path, uint64_t count, uint64_t rows, uint64_t cols,
                                 ingot_error *error) {
    ingot_status status = INGOT_OK;
    ingot_tensor geometry;
    ingot_tensor_spec *specs = NULL;
    char(*names)[40] = NULL;
    uint8_t *codes = NULL;
    uint16_t *scales = NULL;
    ingot_writer *writer = NULL;
    const ingot_tensor_spec spec = {.name = "model",
                                    .kind = INGOT_GROUPED,
                                    .rank = 2,
                                    .dim = {rows, cols},
                                    .dtype = INGOT_F16,
                                    .bits = 4,
                                    .scale_dtype = INGOT_F16,
                                    .group = 128};
    INGOT_TRY(ingot_tensor_geometry(&geometry, &spec, error));
    const uint64_t scale_count = geometry.rows * geometry.groups_per_row;
    if (ingot_alloc_zero((void **)&specs, count, sizeof *specs) != INGOT_OK ||
        ingot_alloc_zero((void **)&names, count, sizeof *names) != INGOT_OK ||
        ingot_alloc((void **)&codes, geometry.part_bytes[INGOT_PART_CODES]) != INGOT_OK ||
        ingot_alloc((void **)&scales, scale_count * sizeof *scales) != INGOT_OK) {
        status = ingot_error_set(error, INGOT_ERR_NO_MEMORY, path, NULL, NULL, "out of memory");
        goto done;
    }
    uint64_t state = 1;
    for (uint64_t i = 0; i < geometry.part_bytes[INGOT_PART_CODES]; i++) {
        codes[i] = (uint8_t)ingot_random_bits(&state);
    }
    for (uint64_t i = 0; i < scale_count; i++) {
        scales[i] = 0x2000; /* 2^-7 */
    }
    for (uint64_t i = 0; i < count; i++) {
        (void)snprintf(names[i], sizeof names[i], "layers.%llu.weight", (unsigned long long)i);
        specs[i] = spec;
        specs[i].name = names[i];
    }
    const ingot_writer_plan plan = {
        .tensors = specs, .tensor_count = count, .meta = "{}", .meta_size = 2};
    const ingot_weight_view view = {.kind = INGOT_GROUPED,
                                    .rows = geometry.rows,
                                    .cols = geometry.cols,
                                    .bits = 4,
                                    .scale_dtype = INGOT_F16,
                                    .group = 128,
                                    .groups_per_row = geometry.groups_per_row,
                                    .row_stride_bytes = geometry.row_stride_bytes,
                                    .codes = codes,
                                    .scales = scales};
    INGOT_GO(ingot_writer_create(&writer, path, false, &plan, error));
    for (uint64_t i = 0; i < count; i++) {
        INGOT_GO(ingot_interrupt_check(error));
        INGOT_GO(ingot_writer_put(writer, i, &view, NULL, error));
    }
    ingot_writer *whole = writer;
    writer = NULL;
    status = ingot_writer_finish(whole, 1, NULL, NULL, error);
done:
    ingot_writer_abort(writer);
    ingot_free(scales);
    ingot_free(codes);
    ingot_free(names);
    ingot_free(specs);
    return status;
}

/* ---- the reader --------------------------------------------------------------------------------
 */

/* The best of the runs, in bytes per second: *read of reading the file, *check of opening and
 * checking it.  One after the other in every run, so that what else the machine does hits both. */
static ingot_status file_rates(double *read, double *check, const char *path,
                               const ingot_bench_file *file, bool is_cold,
                               const ingot_bench_options *o, ingot_error *error) {
    *read = *check = NAN;
    for (unsigned i = 0; i < o->runs; i++) {
        ingot_container *container;
        *read = fmax(*read, ingot_bench_read_rate(file, 1, is_cold, o->threads, 1));
        if (is_cold) {
            ingot_bench_drop_pages(file->fd);
        }
        const double start = ingot_clock_seconds();
        INGOT_TRY(ingot_open(&container, path, error));
        const ingot_status status = ingot_check_full(container, o->threads, NULL, NULL, error);
        ingot_close(container);
        INGOT_TRY(status);
        *check = fmax(*check, (double)file->size / (ingot_clock_seconds() - start));
    }
    return INGOT_OK;
}

static int compare_doubles(const void *a, const void *b) {
    const double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* Median milliseconds to open a container of many tensors, which is generated. */
static ingot_status open_time(double *median_ms, const char *path, ingot_error *error) {
    double times[OPEN_RUNS];
    INGOT_TRY(write_copies(path, MANY_TENSORS, 8, 128, error));
    ingot_status status = INGOT_OK;
    for (unsigned i = 0; i < OPEN_RUNS && status == INGOT_OK; i++) {
        ingot_container *container;
        const double start = ingot_clock_seconds();
        status = ingot_open(&container, path, error);
        times[i] = 1000 * (ingot_clock_seconds() - start);
        if (status == INGOT_OK) {
            ingot_close(container);
        }
    }
    (void)unlink(path);
    INGOT_TRY(status);
    qsort(times, OPEN_RUNS, sizeof *times, compare_doubles);
    *median_ms = times[OPEN_RUNS / 2];
    return INGOT_OK;
}

static int set_gigabytes(json_t *object, const char *key, double bytes_per_second) {
    return json_object_set_new(object, key, ingot_json_number(bytes_per_second / 1e9));
}

/* A file that can be opened and checked, and all of what its check reads. */
static ingot_status check_file(const char *path, ingot_error *error) {
    ingot_container *container;
    ingot_info info;
    INGOT_TRY(ingot_open(&container, path, error));
    ingot_get_info(container, &info);
    ingot_close(container);
    return info.shard_count == 1
               ? INGOT_OK
               : ingot_error_set(
                     error, INGOT_ERR_UNSUPPORTED, path, NULL, "name a container that is one file",
                     "is one of %u shards, which are checked together", (unsigned)info.shard_count);
}

static ingot_status measure_file(json_t *out, const char *path, const ingot_bench_options *o,
                                 ingot_error *error) {
    ingot_status status = INGOT_OK;
    INGOT_TRY(check_file(path, error));
    const char *const xxhsum[] = {"xxhsum", "-H3", path, NULL};
    const char *const sha256sum[] = {"sha256sum", path, NULL};
    double disk, check_cold, cached, check_cached;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    if (end <= 0) {
        status = ingot_error_set(error, INGOT_ERR_NOT_FOUND, path, NULL, "check the path",
                                 "cannot be read");
        goto done;
    }
    const uint64_t size = (uint64_t)end;
    const ingot_bench_file file = {.fd = fd, .size = size};
    const double memory = ingot_bench_memory_rate(o->threads, o->runs);
    INGOT_GO(file_rates(&disk, &check_cold, path, &file, true, o, error));
    INGOT_GO(file_rates(&cached, &check_cached, path, &file, false, o, error));
    const int failed =
        json_object_set_new(out, "bytes", json_integer((json_int_t)size)) |
        set_gigabytes(out, "memory_read_gbps", memory) |
        set_gigabytes(out, "disk_read_gbps", disk) |
        set_gigabytes(out, "verify_disk_gbps", check_cold) |
        json_object_set_new(out, "verify_disk_fraction",
                            ingot_json_number(check_cold / fmin(disk, memory))) |
        set_gigabytes(out, "cached_read_gbps", cached) |
        set_gigabytes(out, "verify_cached_gbps", check_cached) |
        json_object_set_new(out, "verify_cached_fraction",
                            ingot_json_number(check_cached / fmin(cached, memory))) |
        set_gigabytes(out, "xxhsum_gbps", ingot_bench_program_rate(xxhsum, size, o->runs)) |
        set_gigabytes(out, "sha256sum_gbps", ingot_bench_program_rate(sha256sum, size, 1));
    if (failed != 0) {
        status = ingot_error_set(error, INGOT_ERR_NO_MEMORY, NULL, NULL, NULL, "out of memory");
    }
done:
    if (fd >= 0) {
        (void)close(fd);
    }
    return status;
}

/* Every measurement takes --device; this one has a single device to take. */
static ingot_status check_device(const char *device, ingot_error *error) {
    if (device == NULL) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_device_check_name(device, error));
    return strcmp(device, "auto") == 0 || strcmp(device, "cpu") == 0
               ? INGOT_OK
               : ingot_error_set(error, INGOT_ERR_UNSUPPORTED, NULL, NULL,
                                 "use --device cpu, or none",
                                 "device %s: containers are verified by the cpu", device);
}

ingot_status ingot_bench_verify(json_t **out, const ingot_bench_options *options,
                                ingot_error *error) {
    ingot_status status = INGOT_OK;
    char path[4096], many[4096];
    double open_ms = NAN;
    const bool is_generated = options->file == NULL;
    *out = json_object();
    INGOT_TRY(check_device(options->device, error));
    INGOT_TRY(ingot_bench_place(many, sizeof many, options, "ingot-bench-many.ingot", error));
    if (is_generated) {
        INGOT_TRY(ingot_bench_place(path, sizeof path, options, "ingot-bench.ingot", error));
        const uint64_t copy_bytes = (uint64_t)ROWS * COLS / 2 + (uint64_t)ROWS * COLS / 128 * 2;
        INGOT_TRY(write_copies(path, ingot_max_u64(options->size_bytes / copy_bytes, 1), ROWS, COLS,
                               error));
    }
    status = measure_file(*out, is_generated ? path : options->file, options, error);
    if (is_generated) {
        (void)unlink(path);
    }
    if (status == INGOT_OK) {
        status = open_time(&open_ms, many, error);
    }
    if (status == INGOT_OK &&
        (json_object_set_new(*out, "threads", json_integer((json_int_t)options->threads)) |
         json_object_set_new(*out, "open_tensors", json_integer(MANY_TENSORS)) |
         json_object_set_new(*out, "open_milliseconds", ingot_json_number(open_ms))) != 0) {
        status = ingot_error_set(error, INGOT_ERR_NO_MEMORY, NULL, NULL, NULL, "out of memory");
    }
    return status;
}
