/* ingot-bench convert: conversions of a checkpoint, their phases beside the floors that limits
 * measured in the same run set. */
#include "verify/bench_convert.h"

#include "calib/model.h"
#include "common/child.h"
#include "common/cli.h"
#include "common/files.h"
#include "common/memory.h"
#include "common/progress.h"
#include "common/sizes.h"
#include "format/checkpoint.h"
#include "kernels/product_rate.h"
#include "verify/bench_block.h"
#include "verify/bench_convert_print.h"
#include "verify/bench_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST_SHARDS      1024u
#define DISK_READ_BYTES  (UINT64_C(4) << 30) /* of the source, to learn the speed of the disk */
#define DISK_WRITE_BYTES (UINT64_C(1) << 30)
#define WAIT_MS          20

/* Share of all that has been measured is told in these: what limits, a conversion by GPTQ or others
 * of a large model and a slice of a larger one take beside each other, roughly. */
#define LIMITS_WORTH 0.2
#define SLICE_WORTH  0.3
#define ENTIRE       100.0 /* percent */

#define BLOCK_LENGTH 2048u /* tokens of a window of the block that is measured by itself */

/* What the machine does at best, bytes or operations per second; and of a block by itself, as a
 * fraction of products. */
typedef struct limits {
    double product, upload, disk_read, cached_read, disk_write;
    double forward, statistics;
} limits;

/* Arithmetic of one token in all blocks; a multiply and an add are two. */
typedef struct work {
    double forward, second_half, statistics; /* second_half: of forward, the MLP */
} work;

typedef struct bench {
    const ingot_bench_options *options;
    ingot_checkpoint *checkpoint;
    ingot_model model;
    ingot_bench_file shards[MOST_SHARDS];
    uint64_t shard_count;
    ingot_weight_source source;
    bool has_source, has_model;
    char output[4096];
    bool has_output; /* from the start of a conversion */
    int report;      /* what it printed: a file without a name, */
    int end;         /* and how it ended: a wait status */
    limits limits;
    json_t *figures, *runs;
    ingot_progress progress;
    double worth, done; /* of all measurements, of those that are over */
    ingot_error *error;
} bench;

/* ---- how far it is -------------------------------------------------------------------------- */

static double worth_of(const char *method, const char *devices) {
    double worth = strcmp(method, "rtn") == 0 ? 0.1 : strstr(method, "awq") != NULL ? 1.3 : 1;
    for (const char *at = devices; at != NULL && (at = strchr(at, ',')) != NULL; at++) {
        worth *= 0.8;
    }
    return worth;
}

static void show(bench *b, double more) {
    ingot_progress_update(&b->progress, ENTIRE * (b->done + more) / b->worth);
}

/* A measurement is over; what is printed next finds no bar on its line. */
static void count(bench *b, double worth, const char *what, double seconds) {
    const double elapsed = ingot_clock_seconds() - b->progress.start_seconds;
    b->done += worth;
    ingot_progress_line(&b->progress, "%s: %.1f s; about %.0f s left", what, seconds,
                        elapsed / b->done * fmax(0, b->worth - b->done));
}

/* ---- limits --------------------------------------------------------------------------------- */

static ingot_status open_source(bench *b) {
    INGOT_TRY(ingot_checkpoint_open(&b->checkpoint, b->options->model, b->error));
    ingot_weight_source_from_checkpoint(&b->source, b->checkpoint);
    b->has_source = true;
    INGOT_TRY(ingot_model_open(&b->model, &b->source, b->error));
    b->has_model = true;
    b->shard_count = ingot_min_u64(ingot_checkpoint_shard_count(b->checkpoint), MOST_SHARDS);
    for (uint64_t i = 0; i < b->shard_count; i++) {
        const ingot_file *file = ingot_safetensors_file(ingot_checkpoint_shard(b->checkpoint, i));
        b->shards[i] = (ingot_bench_file){.fd = open(ingot_file_path(file), O_RDONLY | O_CLOEXEC),
                                          .size = ingot_file_size(file)};
        if (b->shards[i].fd < 0) {
            b->shard_count = i;
            return ingot_error_set(b->error, INGOT_ERR_IO, ingot_file_path(file), NULL, NULL,
                                   "cannot be opened: %s", strerror(errno));
        }
    }
    return INGOT_OK;
}

/* Takes the source out of the page cache; false: it stays there. */
static bool drop_source(const bench *b) {
    for (uint64_t i = 0; i < b->shard_count; i++) {
        ingot_bench_drop_pages(b->shards[i].fd);
        if (ingot_bench_is_cached(&b->shards[i])) {
            return false;
        }
    }
    return true;
}

static work work_per_token(const ingot_model *model, uint64_t length) {
    work w = {0};
    double width[INGOT_INPUT_COUNT] = {0};
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_linear_desc *d = &model->linear[role];
        if (d->is_present) {
            const double linear = 2.0 * (double)d->rows * (double)d->cols;
            w.forward += linear;
            w.second_half +=
                d->input == INGOT_INPUT_MLP || d->input == INGOT_INPUT_DOWN ? linear : 0;
            width[d->input] = (double)d->cols;
        }
    }
    w.forward += 2.0 * (double)(model->heads * model->head_dim) * (double)(length + 1);
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        w.statistics += width[i] * (width[i] + 1); /* one triangle */
    }
    w.forward *= (double)model->layers;
    w.second_half *= (double)model->layers;
    w.statistics *= (double)model->layers;
    return w;
}

/* What a block by itself makes of the rate of products. */
static ingot_status measure_block(bench *b, const ingot_backend *backend) {
    const ingot_bench_options *o = b->options;
    const uint64_t wanted = o->seq_len != 0 ? o->seq_len : BLOCK_LENGTH;
    const uint64_t length = ingot_min_u64(wanted, b->model.context);
    const work w = work_per_token(&b->model, length);
    const double rate = b->limits.product * (double)b->model.layers;
    ingot_bench_block block;
    b->limits.forward = b->limits.statistics = (double)NAN;
    if (strcmp(o->methods, "rtn") == 0) {
        return INGOT_OK; /* neither is needed */
    }
    INGOT_TRY(ingot_bench_block_measure(&block, &b->model, &b->source, backend, length, o->runs,
                                        b->error));
    b->limits.forward = w.forward / block.forward_seconds / rate;
    b->limits.statistics = w.statistics / block.statistics_seconds / rate;
    return INGOT_OK;
}

/* The backend is closed again: the conversions are to have its memory. */
static ingot_status measure_limits(bench *b, json_t *machine) {
    const ingot_bench_options *o = b->options;
    ingot_backend backend;
    const char *device = o->device != NULL ? o->device : "auto";
    INGOT_TRY(ingot_backend_open(&backend, device, o->threads, b->error));
    b->limits.product = ingot_product_rate(&backend, o->runs);
    b->limits.upload =
        backend.has_own_memory ? ingot_bench_upload_rate(&backend, o->runs) : INFINITY;
    const int failed = json_object_set_new(machine, "backend", json_string(backend.path));
    const ingot_status status = measure_block(b, &backend);
    ingot_backend_close(&backend);
    INGOT_TRY(status);
    INGOT_TRY(ingot_interrupt_check(b->error));

    uint64_t count = 0, bytes = 0;
    while (count < b->shard_count && (count == 0 || bytes < DISK_READ_BYTES)) {
        bytes += b->shards[count++].size;
    }
    b->limits.disk_read =
        drop_source(b) ? ingot_bench_read_rate(b->shards, count, true, o->threads, 1) : (double)NAN;
    b->limits.cached_read = ingot_bench_read_rate(b->shards, b->shard_count, false, o->threads, 2);
    b->limits.disk_write = ingot_bench_write_rate(
        b->output, ingot_max_u64(ingot_min_u64(bytes / 4, DISK_WRITE_BYTES), 1 << 20), o->threads,
        o->runs);
    return failed == 0 ? ingot_interrupt_check(b->error) : INGOT_ERR_NO_MEMORY;
}

/* ---- one conversion ------------------------------------------------------------------------- */

/* What ingot-convert says on stderr, of which lines "block 3/32 ..." tell how far it is. */
typedef struct listener {
    int fd; /* does not block */
    char line[256];
    size_t length;
    double share;                       /* of the blocks */
    double first_seconds, last_seconds; /* when the first and the last of them were finished */
} listener;

static void hear_line(listener *l) {
    unsigned long long block, blocks;
    l->line[l->length] = 0;
    l->length = 0;
    if (sscanf(l->line, "block %llu/%llu", &block, &blocks) == 2 && block <= blocks) {
        l->share = (double)block / (double)blocks;
        l->last_seconds = ingot_clock_seconds();
        l->first_seconds = block == 1 ? l->last_seconds : l->first_seconds;
    }
}

static void hear(listener *l) {
    char bytes[512];
    ssize_t n;
    while ((n = read(l->fd, bytes, sizeof bytes)) > 0) {
        for (ssize_t i = 0; i < n; i++) {
            if (bytes[i] == '\n') {
                hear_line(l);
            } else if (l->length + 1 < sizeof l->line) {
                l->line[l->length++] = bytes[i];
            }
        }
    }
}

/* Waits for a child, b->end being how it did; SIGTERM reaches it when this program was asked to
 * stop. */
static ingot_status wait_for(bench *b, pid_t child, listener *from, double worth) {
    const struct timespec pause = {.tv_nsec = WAIT_MS * 1000000L};
    bool is_told = false;
    b->end = 0;
    for (;;) {
        const pid_t ended = waitpid(child, &b->end, WNOHANG);
        hear(from);
        if (ended == child || (ended < 0 && errno != EINTR)) {
            return ingot_interrupt_check(b->error);
        }
        show(b, worth * from->share);
        if (ingot_interrupted() && !is_told) {
            (void)kill(child, SIGTERM);
            is_told = true;
        }
        (void)nanosleep(&pause, NULL);
    }
}

/* Starts ingot-convert with its --json in b->report and its stderr in a pipe, whose other end is
 * *ear. */
static ingot_status start_tool(pid_t *out, int *ear, bench *b, ingot_child *child) {
    int ends[2];
    if (ftruncate(b->report, 0) != 0 || lseek(b->report, 0, SEEK_SET) != 0 ||
        pipe2(ends, O_CLOEXEC) != 0) {
        return ingot_error_set(b->error, INGOT_ERR_IO, NULL, NULL, NULL, "no pipe: %s",
                               strerror(errno));
    }
    child->out_descriptor = b->report;
    child->log_descriptor = ends[1];
    b->has_output = true;
    (void)fcntl(ends[0], F_SETFL, O_NONBLOCK);
    const ingot_status status = ingot_child_start(out, child, b->error);
    (void)close(ends[1]);
    if (status != INGOT_OK) {
        (void)close(ends[0]);
        return status;
    }
    *ear = ends[0];
    return INGOT_OK;
}

/* Runs ingot-convert on a checkpoint with its --json in b->report; devices NULL: on --device.
 * *later_seconds: all blocks behind the first, by the clock. */
static ingot_status run_tool(bench *b, const char *model, const char *method, const char *devices,
                             double worth, double *later_seconds) {
    const ingot_bench_options *o = b->options;
    ingot_child child;
    INGOT_TRY(ingot_child_begin(&child, "ingot-convert", b->error));
    ingot_child_option(&child, "--output", b->output);
    ingot_child_word(&child, "--force");
    ingot_child_word(&child, "--json");
    ingot_child_option(&child, "--method", method);
    if (strcmp(method, "rtn") != 0) {
        ingot_child_option(&child, "--text", o->text);
        ingot_child_number(&child, "--samples", (double)o->samples);
        if (o->seq_len != 0) {
            ingot_child_number(&child, "--seq-len", (double)o->seq_len);
        }
    }
    if (devices != NULL || o->device != NULL) {
        ingot_child_option(&child, devices != NULL ? "--devices" : "--device",
                           devices != NULL ? devices : o->device);
    }
    ingot_child_number(&child, "--threads", o->threads);
    ingot_child_option(&child, "--", model); /* whose name may begin with a dash */
    listener from = {0};
    pid_t process;
    INGOT_TRY(start_tool(&process, &from.fd, b, &child));
    const ingot_status status = wait_for(b, process, &from, worth);
    (void)close(from.fd);
    *later_seconds = from.last_seconds - from.first_seconds;
    INGOT_TRY(status);
    if (lseek(b->report, 0, SEEK_END) == 0) { /* it was killed, and left its output half done */
        char text[160], partial[sizeof b->output + 16];
        (void)snprintf(partial, sizeof partial, "%s" INGOT_PARTIAL_SUFFIX, b->output);
        (void)unlink(partial);
        ingot_child_describe(text, sizeof text, "ingot-convert", b->end);
        return ingot_error_set(b->error, ingot_child_status(NULL, b->end), NULL, NULL, NULL, "%s",
                               text);
    }
    return INGOT_OK;
}

/* *out = what ingot-convert printed; an error of its own becomes ours. */
static ingot_status read_report(bench *b, json_t **out) {
    const char *message = NULL, *code = NULL;
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", b->report);
    INGOT_TRY(ingot_json_read(out, path, 1 << 20, b->error));
    ingot_status status = ingot_json_get_string(*out, "message", &message, path, b->error);
    if (status == INGOT_OK) {
        status = ingot_json_get_string(*out, "error", &code, path, b->error);
    }
    if (status == INGOT_OK && message == NULL) {
        return INGOT_OK;
    }
    const ingot_status failed = ingot_error_set(
        b->error, ingot_child_status(code, b->end), NULL, NULL, NULL, "ingot-convert failed: %s",
        message != NULL ? message : "its report cannot be read");
    json_decref(*out);
    *out = NULL;
    return failed;
}

/* Tokens that the container says it was calibrated on, and their number in a window; 0: none. */
static void calibration(const bench *b, double *tokens, uint64_t *length) {
    ingot_container *container = NULL;
    json_t *meta = NULL;
    uint64_t size, windows = 0;
    *tokens = 0;
    *length = 0;
    if (ingot_open(&container, b->output, NULL) != INGOT_OK) {
        return;
    }
    const char *text = ingot_meta(container, &size);
    if (ingot_json_parse(&meta, text, size, b->output, NULL) == INGOT_OK) {
        const json_t *part = json_object_get(meta, "calibration");
        if (json_is_object(part) &&
            (ingot_json_get_u64(part, "samples", &windows, b->output, NULL) != INGOT_OK ||
             ingot_json_get_u64(part, "seq_len", length, b->output, NULL) != INGOT_OK)) {
            windows = 0;
        }
        json_decref(meta);
    }
    ingot_close(container);
    *tokens = (double)windows * (double)*length;
}

/* ---- beside the floors ---------------------------------------------------------------------- */

static int set_phase(json_t *phases, const json_t *measured, const char *name, double floor) {
    json_t *phase = json_object();
    const double seconds = ingot_json_number_at(measured, name);
    const int failed =
        json_object_set_new(phase, "seconds", ingot_json_number(seconds)) |
        json_object_set_new(phase, "floor", ingot_json_number(floor > 0 ? floor : (double)NAN));
    return failed | json_object_set_new(phases, name, phase);
}

/* Adds floors to the report of a conversion whose source was in the cache or not. */
static ingot_status add_floors(const bench *b, json_t *run, const char *method, bool is_cold) {
    static const char *const plain[] = {"plan", "fold", "quantize", "finish"};
    double tokens;
    uint64_t length;
    calibration(b, &tokens, &length);
    const work w = work_per_token(&b->model, length);
    const limits *l = &b->limits;
    const double layers = (double)b->model.layers, share = (layers - 1) / layers;
    /* folds are chosen by statistics of a pass of their own (convert/collect.h) */
    const double passes = strstr(method, "awq") != NULL ? 2 : 1;
    const double forward = passes * tokens * w.forward / l->product;
    const double statistics = passes * tokens * w.statistics / l->product;
    /* the first half is run while statistics are gathered */
    const double propagate = tokens * w.second_half / l->product * share;
    const double source = ingot_json_number_at(run, "source_bytes") /
                          fmin(is_cold ? l->disk_read : l->cached_read, l->upload);
    const double written = ingot_json_number_at(run, "bytes") / l->disk_write;
    const double seconds = ingot_json_number_at(run, "seconds");
    const double floor = fmax(fmax(source, written), forward + propagate + statistics);
    json_t *measured = json_incref(json_object_get(run, "phases")), *phases = json_object();
    int failed = set_phase(phases, measured, "read", source) |
                 set_phase(phases, measured, "write", written) |
                 set_phase(phases, measured, "collect", forward + statistics) |
                 set_phase(phases, measured, "propagate", propagate);
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        failed |= set_phase(phases, measured, plain[i], 0);
    }
    failed |= json_object_set_new(run, "tokens", ingot_json_number(tokens));
    failed |= json_object_set_new(run, "floor_seconds", ingot_json_number(floor));
    failed |= json_object_set_new(run, "floor_fraction", ingot_json_number(floor / seconds));
    failed |= json_object_set_new(run, "phases", phases);
    json_decref(measured);
    return failed == 0 ? INGOT_OK : INGOT_ERR_NO_MEMORY;
}

static ingot_status measure_method(bench *b, const char *method, const char *devices,
                                   bool is_cold) {
    static const char *const dropped[] = {"output", "root", "content_id", "error", "message"};
    const double worth = worth_of(method, devices), start = ingot_clock_seconds();
    double later;
    json_t *run = NULL;
    char what[160];
    if (is_cold) {
        (void)drop_source(b);
    } else {
        (void)ingot_bench_read_rate(b->shards, b->shard_count, false, b->options->threads, 1);
    }
    INGOT_TRY(run_tool(b, b->options->model, method, devices, worth, &later));
    INGOT_TRY(read_report(b, &run));
    const ingot_status status = add_floors(b, run, method, is_cold);
    for (size_t i = 0; i < sizeof dropped / sizeof *dropped; i++) {
        (void)json_object_del(run, dropped[i]);
    }
    const int failed =
        json_object_set_new(run, "method", json_string(method)) |
        json_object_set_new(run, "devices", devices != NULL ? json_string(devices) : json_null()) |
        json_object_set_new(run, "source", json_string(is_cold ? "disk" : "cache")) |
        json_array_append(b->runs, run);
    (void)unlink(b->output);
    if (status == INGOT_OK && failed == 0) {
        (void)snprintf(what, sizeof what, "%.32s%s%.64s from the %s", method,
                       devices != NULL ? " on " : "", devices != NULL ? devices : "",
                       is_cold ? "disk" : "page cache");
        count(b, worth, what, ingot_clock_seconds() - start);
        if (!b->options->as_json) {
            ingot_bench_convert_print_run(run);
        }
    }
    json_decref(run);
    return failed == 0 ? status : INGOT_ERR_NO_MEMORY;
}

/* From the disk the first method is measured, and rounding, which is bound by it. */
static bool wants_disk(const char *method, unsigned number) {
    return number == 0 || strcmp(method, "rtn") == 0;
}

/* Calls `each` with every method that is to be measured from there. */
static ingot_status for_methods(bench *b, bool is_cold,
                                ingot_status (*each)(bench *b, const char *method,
                                                     const char *devices, bool is_cold)) {
    char list[128], *rest = list;
    const char *method;
    (void)snprintf(list, sizeof list, "%s", b->options->methods);
    for (unsigned i = 0; (method = strsep(&rest, ",")) != NULL; i++) {
        if (!is_cold || wants_disk(method, i)) {
            INGOT_TRY(each(b, method, NULL, is_cold));
        }
    }
    return INGOT_OK;
}

/* Before anything is measured: what a method needs, and its share of the whole. */
static ingot_status expect_method(bench *b, const char *method, const char *devices, bool is_cold) {
    static const char *const known[] = {"rtn", "awq", "gptq", "awq+gptq"};
    int ignored;
    (void)is_cold;
    INGOT_TRY(ingot_cli_parse_choice(&ignored, "methods", method, known,
                                     sizeof known / sizeof *known, b->error));
    if (strcmp(method, "rtn") != 0 && b->options->text == NULL) {
        return ingot_error_set(b->error, INGOT_ERR_USAGE, NULL, NULL,
                               "give --text, or --methods rtn", "method %s calibrates on text",
                               method);
    }
    b->worth += worth_of(method, devices);
    return INGOT_OK;
}

/* A text that cannot be read is to be known before anything is measured. */
static ingot_status check_text(const bench *b) {
    ingot_file *file = NULL;
    if (b->options->text == NULL) {
        return INGOT_OK;
    }
    const ingot_status status = ingot_file_open(&file, b->options->text, b->error);
    ingot_file_close(file);
    return status;
}

/* The first of the methods. */
static const char *first_method(const bench *b, char room[32]) {
    (void)snprintf(room, 32, "%.*s", (int)strcspn(b->options->methods, ","), b->options->methods);
    return room;
}

/* The first method on several devices; its time on one over that. */
static ingot_status measure_devices(bench *b) {
    char room[32];
    if (b->options->devices == NULL) {
        return INGOT_OK;
    }
    INGOT_TRY(measure_method(b, first_method(b, room), b->options->devices, false));
    const double one = ingot_json_number_at(json_array_get(b->runs, 0), "seconds");
    const double all =
        ingot_json_number_at(json_array_get(b->runs, json_array_size(b->runs) - 1), "seconds");
    return json_object_set_new(b->figures, "devices_speedup", ingot_json_number(one / all)) == 0
               ? INGOT_OK
               : INGOT_ERR_NO_MEMORY;
}

/* Blocks of the checkpoint at hand. */
static ingot_status count_blocks(uint64_t *blocks, const bench *b, const char *model) {
    ingot_checkpoint *checkpoint = NULL;
    ingot_weight_source source;
    ingot_model description;
    INGOT_TRY(ingot_checkpoint_open(&checkpoint, model, b->error));
    ingot_weight_source_from_checkpoint(&source, checkpoint);
    const ingot_status status = ingot_model_open(&description, &source, b->error);
    if (status == INGOT_OK) {
        *blocks = description.layers;
        ingot_model_close(&description);
    }
    ingot_weight_source_close(&source);
    ingot_checkpoint_close(checkpoint);
    return status;
}

/* A few blocks of a larger model, whose other blocks take as long as those behind the first, which
 * brings the device to work; nothing is propagated behind the last one. */
static ingot_status measure_slice(bench *b) {
    const ingot_bench_options *o = b->options;
    json_t *run = NULL, *slice = json_object();
    char room[32];
    uint64_t blocks = 0;
    double later;
    ingot_status status = INGOT_OK;
    if (o->slice == NULL) {
        json_decref(slice);
        return INGOT_OK;
    }
    INGOT_GO(count_blocks(&blocks, b, o->slice));
    if (blocks < 2) {
        INGOT_GO(ingot_error_set(b->error, INGOT_ERR_USAGE, o->slice, NULL,
                                 "give a checkpoint of two blocks or more",
                                 "one block does not tell what the others take"));
    }
    INGOT_GO(run_tool(b, o->slice, first_method(b, room), NULL, SLICE_WORTH, &later));
    INGOT_GO(read_report(b, &run));
    const json_t *phases = json_object_get(run, "phases");
    const double seconds = ingot_json_number_at(run, "seconds");
    const double followers = (double)(blocks - 1);
    const double block =
        (later + ingot_json_number_at(phases, "propagate") / followers) / followers;
    const double more = (double)o->slice_blocks - (double)blocks;
    const int failed =
        json_object_set_new(slice, "method", json_string(room)) |
        json_object_set_new(slice, "blocks", json_integer((json_int_t)blocks)) |
        json_object_set_new(slice, "of_blocks", json_integer((json_int_t)o->slice_blocks)) |
        json_object_set_new(slice, "seconds", ingot_json_number(seconds)) |
        json_object_set_new(slice, "block_seconds", ingot_json_number(block)) |
        json_object_set_new(slice, "whole_seconds", ingot_json_number(seconds + more * block)) |
        json_object_set_new(slice, "peak_device_bytes",
                            ingot_json_number(ingot_json_number_at(run, "peak_device_bytes"))) |
        json_object_set_new(slice, "peak_host_bytes",
                            ingot_json_number(ingot_json_number_at(run, "peak_host_bytes"))) |
        json_object_set(b->figures, "slice", slice);
    status = failed == 0 ? INGOT_OK : INGOT_ERR_NO_MEMORY;
    count(b, SLICE_WORTH, "slice of a larger model", seconds);
done:
    (void)unlink(b->output);
    json_decref(run);
    json_decref(slice);
    return status;
}

static ingot_status name_files(bench *b) {
    INGOT_TRY(ingot_bench_place(b->output, sizeof b->output, b->options,
                                "ingot-bench-convert.ingot", b->error));
    b->report = memfd_create("report of ingot-convert", MFD_CLOEXEC);
    return b->report >= 0 ? INGOT_OK
                          : ingot_error_set(b->error, INGOT_ERR_IO, NULL, NULL, NULL,
                                            "no file in memory: %s", strerror(errno));
}

static int set_limits(json_t *machine, const limits *l) {
    return json_object_set_new(machine, "product_tflops", ingot_json_number(l->product / 1e12)) |
           json_object_set_new(machine, "forward_fraction", ingot_json_number(l->forward)) |
           json_object_set_new(machine, "statistics_fraction", ingot_json_number(l->statistics)) |
           json_object_set_new(machine, "upload_gbps", ingot_json_number(l->upload / 1e9)) |
           json_object_set_new(machine, "disk_read_gbps", ingot_json_number(l->disk_read / 1e9)) |
           json_object_set_new(machine, "cached_read_gbps",
                               ingot_json_number(l->cached_read / 1e9)) |
           json_object_set_new(machine, "disk_write_gbps", ingot_json_number(l->disk_write / 1e9));
}

/* What is asked for, in the order in which it is most wanted; each is in the figures, and shown,
 * once it is measured. */
static ingot_status measure_all(bench *b) {
    const double start = ingot_clock_seconds();
    char room[32];
    b->worth = LIMITS_WORTH + (b->options->slice != NULL ? SLICE_WORTH : 0);
    INGOT_TRY(for_methods(b, false, expect_method));
    if (b->options->devices != NULL) {
        INGOT_TRY(expect_method(b, first_method(b, room), b->options->devices, false));
    }
    const bool has_disk = drop_source(b);
    if (has_disk) {
        INGOT_TRY(for_methods(b, true, expect_method));
    }
    INGOT_TRY(measure_limits(b, b->figures));
    INGOT_TRY(set_limits(b->figures, &b->limits) == 0 ? INGOT_OK : INGOT_ERR_NO_MEMORY);
    count(b, LIMITS_WORTH, "limits of the machine", ingot_clock_seconds() - start);
    if (!b->options->as_json) {
        ingot_bench_convert_print_limits(b->figures);
    }
    INGOT_TRY(for_methods(b, false, measure_method));
    INGOT_TRY(measure_devices(b));
    INGOT_TRY(measure_slice(b));
    return has_disk ? for_methods(b, true, measure_method) : INGOT_OK;
}

ingot_status ingot_bench_convert(json_t **out, const ingot_bench_options *options,
                                 ingot_error *error) {
    bench *b = NULL;
    *out = json_object();
    if (options->model == NULL) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "give --model MODEL_DIR",
                               "no checkpoint was named");
    }
    INGOT_TRY(ingot_alloc_zero((void **)&b, 1, sizeof *b));
    ingot_status status = INGOT_OK;
    b->options = options;
    b->error = error;
    b->report = -1;
    b->figures = *out;
    b->runs = json_array();
    ingot_progress_begin(&b->progress, "measuring", "%", ENTIRE, false);
    INGOT_GO(json_object_set(b->figures, "runs", b->runs) == 0 ? INGOT_OK : INGOT_ERR_NO_MEMORY);
    INGOT_GO(name_files(b));
    INGOT_GO(open_source(b));
    INGOT_GO(check_text(b));
    INGOT_GO(measure_all(b));
done:
    ingot_progress_end(&b->progress);
    if (!options->as_json && json_array_size(b->runs) != 0) {
        ingot_bench_convert_print_summary(b->figures);
    }
    if (b->report >= 0) {
        (void)close(b->report);
    }
    if (b->has_output) {
        (void)unlink(b->output);
    }
    for (uint64_t i = 0; i < b->shard_count; i++) {
        (void)close(b->shards[i].fd);
    }
    if (b->has_model) {
        ingot_model_close(&b->model);
    }
    if (b->has_source) {
        ingot_weight_source_close(&b->source);
    }
    ingot_checkpoint_close(b->checkpoint);
    json_decref(b->runs);
    ingot_free(b);
    return status;
}
