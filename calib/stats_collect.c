/* Collecting a statistics file: the full-precision model runs on all windows, block by block, and
 * H, mean |x| and token counts of every input go into the file.  Format: spec/statistics.md. */
#include "calib/stats_parts.h"

#include "common/cli.h"
#include "common/files.h"
#include "common/json.h"
#include "common/sizes.h"
#include "format/container_write.h"
#include "format/digest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_TOKEN_BYTES (64u << 10)   /* of scratch, times the tokens of one forward call */
#define MAX_TOKENS          0x7FFFFFFFull /* counts are stored as I32 */

typedef struct collector {
    const ingot_model *model;
    const ingot_weight_source *source;
    const ingot_windows *windows;
    const ingot_backend *backend;
    ingot_error *error;
    ingot_arena *arena;    /* the weights at hand */
    float *hidden;         /* [count * length][hidden], device */
    ingot_workspace *work; /* of call_windows, or NULL */
    uint64_t call_windows; /* of one forward call */
    ingot_progress *progress;
    float *gram[INGOT_INPUT_COUNT];       /* [width][width], device; NULL without such an input */
    double *magnitude[INGOT_INPUT_COUNT]; /* [width], device */
    uint64_t *dropped;                    /* [INGOT_INPUT_COUNT], device */
    uint64_t tokens[INGOT_INPUT_COUNT];
    uint64_t total_dropped;
    float *piece; /* [PIECE_BYTES / 4] packed values on their way to the file */
    void *rows;   /* rows of H off the device */
    uint64_t rows_bytes;
    ingot_tensor_spec *specs; /* [spec_count] */
    char (*names)[INGOT_NAME_SIZE];
    uint64_t spec_count;
    ingot_writer *writer;
} collector;

static ingot_status device_memory(const collector *c, void **out, uint64_t count, uint64_t size) {
    uint64_t bytes;
    *out = NULL;
    if (!ingot_size_mul(&bytes, count, size)) {
        return ingot_error_set(c->error, INGOT_ERR_NO_MEMORY, NULL, NULL, NULL,
                               "a buffer of more than 2^64 bytes was asked for");
    }
    const ingot_status status = c->backend->ops->alloc(c->backend->context, out, bytes);
    if (status != INGOT_OK) {
        return ingot_error_set(c->error, status, NULL, NULL, "use fewer or shorter samples",
                               "no memory for %llu bytes on the device", (unsigned long long)bytes);
    }
    return INGOT_OK;
}

uint64_t ingot_stats_call_tokens(const ingot_model *model, uint64_t windows, uint64_t length,
                                 uint64_t batch_tokens, uint64_t call_bytes) {
    const uint64_t bytes = call_bytes == 0 ? batch_tokens * DEFAULT_TOKEN_BYTES : call_bytes;
    const uint64_t tokens = ingot_min_u64(batch_tokens, bytes / ingot_workspace_token_bytes(model));
    return length * ingot_max_u64(1, ingot_min_u64(tokens / length, windows));
}

/* After a failure for want of device memory: half as many windows at once.  False where it failed
 * for something else, or there is one. */
static bool take_fewer(collector *c, ingot_status status) {
    if (status != INGOT_ERR_NO_MEMORY || c->call_windows == 1) {
        return false;
    }
    if (c->progress != NULL) {
        ingot_progress_line(c->progress, "%s: %llu windows at once instead of %llu",
                            ingot_backend_failure(c->backend, status),
                            (unsigned long long)(c->call_windows / 2),
                            (unsigned long long)c->call_windows);
    }
    ingot_workspace_destroy(c->work);
    c->work = NULL;
    c->call_windows /= 2;
    *c->error = (ingot_error){0};
    return true;
}

/* Memory of calls, if there is none. */
static ingot_status open_calls(collector *c) {
    ingot_status status;
    do {
        status = c->work != NULL
                     ? INGOT_OK
                     : ingot_workspace_create(&c->work, c->model, c->backend,
                                              c->call_windows * c->windows->length, c->error);
    } while (take_fewer(c, status));
    return status;
}

static ingot_status open_collector(collector *c, uint64_t call_bytes) {
    const ingot_model *model = c->model;
    void *memory;
    uint64_t widest = model->hidden;
    INGOT_TRY(ingot_arena_create(&c->arena));
    INGOT_TRY(ingot_alloc(&memory, PIECE_BYTES));
    c->piece = memory;
    for (int i = 0; i < INGOT_INPUT_COUNT; i++) {
        const uint64_t n = ingot_stats_width(model, (ingot_input)i);
        if (n == 0) {
            continue;
        }
        widest = ingot_max_u64(widest, n);
        INGOT_TRY(device_memory(c, &memory, n, n * sizeof(float)));
        c->gram[i] = memory;
        INGOT_TRY(device_memory(c, &memory, n, sizeof(double)));
        c->magnitude[i] = memory;
    }
    INGOT_TRY(device_memory(c, &memory, INGOT_INPUT_COUNT, sizeof *c->dropped));
    c->dropped = memory;
    /* At least one row of H, and one vector of FP64 sums. */
    c->rows_bytes = ingot_max_u64(PIECE_BYTES, widest * sizeof(double));
    INGOT_TRY(ingot_alloc(&c->rows, c->rows_bytes));
    const uint64_t tokens = c->windows->count * c->windows->length;
    INGOT_TRY(device_memory(c, &memory, tokens, model->hidden * sizeof(float)));
    c->hidden = memory;
    const uint64_t call_tokens = ingot_stats_call_tokens(
        model, c->windows->count, c->windows->length, c->backend->batch_tokens, call_bytes);
    c->call_windows = call_tokens / c->windows->length;
    return open_calls(c);
}

static void close_collector(collector *c) {
    const ingot_backend_ops *ops = c->backend->ops;
    for (int i = 0; i < INGOT_INPUT_COUNT; i++) {
        if (c->gram[i] != NULL) {
            ops->release(c->backend->context, c->gram[i]);
        }
        if (c->magnitude[i] != NULL) {
            ops->release(c->backend->context, c->magnitude[i]);
        }
    }
    if (c->hidden != NULL) {
        ops->release(c->backend->context, c->hidden);
    }
    if (c->dropped != NULL) {
        ops->release(c->backend->context, c->dropped);
    }
    ingot_workspace_destroy(c->work);
    ingot_arena_destroy(c->arena);
    ingot_free(c->piece);
    ingot_free(c->rows);
    ingot_free(c->specs);
    ingot_free(c->names);
    ingot_writer_abort(c->writer);
}

static ingot_status take_input(void *context, ingot_input input, const float *x, uint64_t m,
                               uint64_t width) {
    collector *c = context;
    INGOT_TRY(ingot_interrupt_check(c->error));
    c->tokens[input] += m;
    return c->backend->ops->gram(c->backend->context, c->gram[input], c->magnitude[input],
                                 c->dropped + input, x, m, width);
}

/* The packed triangle of one input, from the device to the file. */
static ingot_status write_gram(collector *c, uint64_t index, const float *gram, uint64_t n) {
    const uint64_t rows_per_read = c->rows_bytes / (n * sizeof(float));
    const uint64_t room = PIECE_BYTES / sizeof(float);
    uint64_t used = 0, offset = 0;
    for (uint64_t first = 0; first < n; first += rows_per_read) {
        const uint64_t count = ingot_min_u64(rows_per_read, n - first);
        const float *rows = c->rows;
        INGOT_TRY(c->backend->ops->download(c->backend->context, c->rows, gram + first * n,
                                            count * n * sizeof(float)));
        for (uint64_t r = 0; r < count; r++) {
            for (uint64_t col = 0; col <= first + r; col++) {
                const float value = rows[r * n + col];
                if (!isfinite(value)) {
                    return ingot_error_set(c->error, INGOT_ERR_NUMERIC, c->source->path,
                                           c->specs[index].name,
                                           "the activations overflow binary32 when squared",
                                           "H has a value that is not finite");
                }
                c->piece[used++] = value;
                if (used == room) {
                    INGOT_TRY(ingot_writer_put_bytes(c->writer, index, c->piece, PIECE_BYTES,
                                                     offset, c->error));
                    offset += PIECE_BYTES;
                    used = 0;
                }
            }
        }
    }
    return used == 0 ? INGOT_OK
                     : ingot_writer_put_bytes(c->writer, index, c->piece, used * sizeof(float),
                                              offset, c->error);
}

static ingot_ledger plain_ledger(uint64_t tokens) {
    return (ingot_ledger){
        .method = INGOT_METHOD_COPY,
        .tokens_seen = tokens,
        .weight_error = NAN,
        .weight_error_rtn = NAN,
        .output_error = NAN,
        .output_error_rtn = NAN,
        .damping = NAN,
    };
}

/* Writes the three tensors of an input, the first of which is record `index`. */
static ingot_status write_input(collector *c, uint64_t index, ingot_input input) {
    const uint64_t n = ingot_stats_width(c->model, input);
    uint64_t dropped;
    INGOT_TRY(c->backend->ops->download(c->backend->context, &dropped, c->dropped + input,
                                        sizeof dropped));
    const uint64_t tokens = c->tokens[input] - dropped;
    if (tokens == 0) {
        return ingot_error_set(c->error, INGOT_ERR_NUMERIC, c->source->path, c->specs[index].name,
                               "look for NaN or infinite weights",
                               "every activation row has a value that is not finite");
    }
    const ingot_ledger ledger = plain_ledger(tokens);
    INGOT_TRY(write_gram(c, index, c->gram[input], n));
    double *sums = c->rows;
    INGOT_TRY(c->backend->ops->download(c->backend->context, sums, c->magnitude[input],
                                        n * sizeof(double)));
    /* In place, front to back: a float never reaches a sum that was not read yet. */
    float *means = c->rows;
    for (uint64_t i = 0; i < n; i++) {
        const double sum = sums[i];
        const float mean = (float)(sum / (double)tokens);
        memcpy(&means[i], &mean, sizeof mean);
    }
    INGOT_TRY(ingot_writer_put_bytes(c->writer, index + TENSOR_MAGNITUDE, means, n * sizeof(float),
                                     0, c->error));
    const int32_t counts[2] = {(int32_t)tokens, (int32_t)dropped};
    INGOT_TRY(ingot_writer_put_bytes(c->writer, index + TENSOR_COUNTS, counts, sizeof counts, 0,
                                     c->error));
    for (int which = 0; which < TENSORS_PER_INPUT; which++) {
        ingot_writer_put_ledger(c->writer, index + (uint64_t)which, &ledger);
    }
    c->total_dropped += dropped;
    return INGOT_OK;
}

static ingot_status embed_all(collector *c) {
    ingot_ends ends;
    ingot_status status;
    do {
        ingot_arena_reset(c->arena);
        status = ingot_ends_load_part(&ends, INGOT_ENDS_EMBED, c->model, c->source, c->backend,
                                      c->arena, c->error);
    } while (take_fewer(c, status));
    INGOT_TRY(status);
    status = ingot_ends_embed(&ends, c->model, c->backend, c->hidden, c->windows->ids,
                              c->windows->count * c->windows->length);
    ingot_ends_release(&ends, c->backend);
    return status;
}

/* A block, and memory of calls beside it. */
static ingot_status load_block(ingot_block *block, collector *c, uint64_t layer) {
    ingot_status status;
    do {
        ingot_arena_reset(c->arena);
        INGOT_TRY(open_calls(c));
        status =
            ingot_block_load(block, c->model, layer, c->source, c->backend, c->arena, c->error);
    } while (take_fewer(c, status));
    return status;
}

static ingot_status collect_layer(collector *c, uint64_t layer, uint64_t *index) {
    const ingot_backend_ops *ops = c->backend->ops;
    void *context = c->backend->context;
    ingot_block block;
    for (int i = 0; i < INGOT_INPUT_COUNT; i++) {
        const uint64_t n = ingot_stats_width(c->model, (ingot_input)i);
        c->tokens[i] = 0;
        if (c->gram[i] != NULL) {
            INGOT_TRY(ops->zero(context, c->gram[i], n * n * sizeof(float)));
            INGOT_TRY(ops->zero(context, c->magnitude[i], n * sizeof(double)));
        }
    }
    INGOT_TRY(ops->zero(context, c->dropped, INGOT_INPUT_COUNT * sizeof *c->dropped));
    INGOT_TRY(load_block(&block, c, layer));
    const ingot_status status =
        ingot_block_forward_batch(c->model, c->backend, &block, c->hidden, c->windows->count,
                                  c->windows->length, c->work, take_input, c, c->error);
    ingot_block_release(&block, c->backend);
    INGOT_TRY(status);
    for (int i = 0; i < INGOT_INPUT_COUNT; i++) {
        if (c->gram[i] != NULL) {
            INGOT_TRY(write_input(c, *index, (ingot_input)i));
            *index += TENSORS_PER_INPUT;
        }
    }
    return INGOT_OK;
}

static ingot_status plan_tensors(collector *c) {
    uint64_t inputs = 0;
    void *memory;
    for (int i = 0; i < INGOT_INPUT_COUNT; i++) {
        inputs += ingot_stats_width(c->model, (ingot_input)i) != 0;
    }
    c->spec_count = c->model->layers * inputs * TENSORS_PER_INPUT;
    INGOT_TRY(ingot_alloc_zero(&memory, c->spec_count, sizeof *c->specs));
    c->specs = memory;
    INGOT_TRY(ingot_alloc_zero(&memory, c->spec_count, sizeof *c->names));
    c->names = memory;
    uint64_t index = 0;
    for (uint64_t layer = 0; layer < c->model->layers; layer++) {
        for (int i = 0; i < INGOT_INPUT_COUNT; i++) {
            const uint64_t n = ingot_stats_width(c->model, (ingot_input)i);
            uint64_t triangle;
            if (!ingot_stats_triangle(&triangle, n)) {
                return INGOT_ERR_UNSUPPORTED;
            }
            const uint64_t sizes[TENSORS_PER_INPUT] = {triangle, n, 2};
            for (int which = 0; n != 0 && which < TENSORS_PER_INPUT; which++, index++) {
                ingot_stats_tensor_name(c->names[index], layer, (ingot_input)i, which);
                c->specs[index] = (ingot_tensor_spec){
                    .name = c->names[index],
                    .kind = INGOT_DENSE,
                    .rank = 1,
                    .dim = {sizes[which]},
                    .dtype = which == TENSOR_COUNTS ? INGOT_I32 : INGOT_F32,
                };
            }
        }
    }
    return INGOT_OK;
}

/* Canonical JSON (spec/statistics.md), released with free(); NULL when out of memory. */
static char *build_meta(const collector *c, const ingot_text *text, const uint8_t digest[16]) {
    char model_hex[33], text_hex[33];
    ingot_digest_hex(model_hex, digest);
    ingot_digest_hex(text_hex, text->digest);
    json_t *meta = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I}", "kind", "activation-statistics",
        "tool", "ingot-calib " INGOT_VERSION, "backend", c->backend->path, "family",
        c->model->family, "model_digest", model_hex, "text_digest", text_hex, "text_bytes",
        (json_int_t)text->bytes, "text_tokens", (json_int_t)text->count, "samples",
        (json_int_t)c->windows->count, "seq_len", (json_int_t)c->windows->length);
    char *canonical = meta == NULL ? NULL : ingot_json_canonical(meta);
    json_decref(meta);
    return canonical;
}

static ingot_status collect_all(collector *c, const ingot_stats_options *options,
                                ingot_progress *progress, ingot_stats_result *out) {
    uint64_t index = 0;
    INGOT_TRY(open_collector(c, options->batch_bytes));
    INGOT_TRY(embed_all(c));
    for (uint64_t layer = 0; layer < c->model->layers; layer++) {
        const double start = ingot_clock_seconds();
        INGOT_TRY(ingot_interrupt_check(c->error));
        INGOT_TRY(collect_layer(c, layer, &index));
        if (progress != NULL) {
            ingot_progress_line(
                progress, "block %llu of %llu: %.1f s", (unsigned long long)(layer + 1),
                (unsigned long long)c->model->layers, ingot_clock_seconds() - start);
            ingot_progress_update(progress, (double)(layer + 1));
        }
    }
    ingot_writer *writer = c->writer;
    c->writer = NULL; /* finish releases it in every case */
    INGOT_TRY(ingot_writer_finish(writer, options->threads, out->root, NULL, c->error));
    out->tokens = c->windows->count * c->windows->length;
    out->dropped = c->total_dropped;
    return INGOT_OK;
}

ingot_status ingot_stats_collect(ingot_stats_result *out, const ingot_model *model,
                                 const ingot_weight_source *source, const ingot_windows *windows,
                                 const ingot_text *text, const ingot_backend *backend,
                                 const ingot_stats_options *options, ingot_progress *progress,
                                 ingot_error *error) {
    memset(out, 0, sizeof *out);
    ingot_error local;
    memset(&local, 0, sizeof local);
    collector c = {
        .model = model,
        .source = source,
        .windows = windows,
        .backend = backend,
        .error = &local,
        .progress = progress,
    };
    char *meta = NULL;
    uint8_t digest[16];
    ingot_layout_info layout;
    ingot_status status = INGOT_OK;
    if (windows->count == 0 || windows->length == 0 ||
        windows->count > MAX_TOKENS / windows->length) {
        status = ingot_error_set(&local, INGOT_ERR_USAGE, source->path, NULL,
                                 "use fewer or shorter samples",
                                 "between 1 and 2^31 - 1 tokens can be counted");
        goto done;
    }
    INGOT_GO(ingot_stats_model_digest(digest, source, &local));
    INGOT_GO(plan_tensors(&c));
    meta = build_meta(&c, text, digest);
    if (meta == NULL) {
        status = INGOT_ERR_NO_MEMORY;
        goto done;
    }
    const ingot_writer_plan plan = {
        .profile = INGOT_PROFILE_STATISTICS,
        .tensors = c.specs,
        .tensor_count = c.spec_count,
        .meta = meta,
        .meta_size = strlen(meta),
    };
    INGOT_GO(ingot_layout_compute(&layout, &plan, &local));
    out->file_bytes = layout.file_bytes;
    INGOT_GO(ingot_writer_create(&c.writer, options->path, options->force, &plan, &local));
    INGOT_GO(collect_all(&c, options, progress, out));
done:
    close_collector(&c);
    free(meta);
    if (status != INGOT_OK && local.status != status) {
        ingot_error_set(&local, status, source->path, NULL, NULL,
                        "collecting statistics failed: %s", ingot_status_text(status));
    }
    if (status != INGOT_OK && error != NULL) {
        *error = local;
    }
    return status;
}
