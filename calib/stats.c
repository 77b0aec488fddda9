/* Statistics files: collecting H, mean |x| and token counts of every input of a full-precision
 * model, and reading them back for a conversion.  Format: spec/statistics.md.  Not here: what is
 * done with H (convert/), and statistics on the quantized prefix, which a conversion gathers
 * itself. */
#include "calib/stats.h"

#include "common/cli.h"
#include "common/files.h"
#include "common/json.h"
#include "common/sizes.h"
#include "format/container_write.h"
#include "format/digest.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROFILE_STATISTICS  1u
#define DEFAULT_TOKEN_BYTES (64u << 10)   /* of scratch, times the tokens of one forward call */
#define PIECE_BYTES         (1ull << 20)  /* of reading and writing; a chunk of the container */
#define MAX_TOKENS          0x7FFFFFFFull /* counts are stored as I32 */

/* The tensors of one input, in file order. */
enum { TENSOR_GRAM, TENSOR_MAGNITUDE, TENSOR_COUNTS, TENSORS_PER_INPUT };
static const char *const tensor_suffix[TENSORS_PER_INPUT] = {"gram", "magnitude", "counts"};

static void tensor_name(char name[INGOT_NAME_SIZE], uint64_t layer, ingot_input input, int which) {
    snprintf(name, INGOT_NAME_SIZE, "blocks.%llu.%s#%s", (unsigned long long)layer,
             ingot_input_name(input), tensor_suffix[which]);
}

/* Width of an input, 0 when no linear of the model reads it. */
static uint64_t input_width(const ingot_model *model, ingot_input input) {
    for (int role = 0; role < INGOT_ROLE_COUNT; role++) {
        if (model->linear[role].is_present && model->linear[role].input == input) {
            return model->linear[role].cols;
        }
    }
    return 0;
}

/* n (n + 1) / 2; false on overflow. */
static bool triangle_size(uint64_t *out, uint64_t n) {
    uint64_t product;
    if (n == UINT64_MAX || !ingot_size_mul(&product, n, n + 1)) {
        return false;
    }
    *out = product / 2;
    return true;
}

ingot_status ingot_stats_bytes(uint64_t *out, const ingot_model *model) {
    uint64_t layer_values = 0, total;
    for (int input = 0; input < INGOT_INPUT_COUNT; input++) {
        const uint64_t n = input_width(model, (ingot_input)input);
        uint64_t values;
        if (n == 0) {
            continue;
        }
        if (!triangle_size(&values, n) || !ingot_size_add(&values, values, n + 2) ||
            !ingot_size_add(&layer_values, layer_values, values)) {
            return INGOT_ERR_UNSUPPORTED;
        }
    }
    if (!ingot_size_mul(&total, layer_values, model->layers) ||
        !ingot_size_mul(out, total, sizeof(float))) {
        return INGOT_ERR_UNSUPPORTED;
    }
    return INGOT_OK;
}

/* ---- the identity of a checkpoint ------------------------------------------------------- */

static void digest_u64(ingot_digest_stream *stream, uint64_t value) {
    uint8_t bytes[8];
    for (int i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)(value >> (8 * i));
    }
    ingot_digest_stream_update(stream, bytes, sizeof bytes);
}

static ingot_status digest_tensor(ingot_digest_stream *stream, const char *name,
                                  const ingot_weight_source *source, ingot_arena *arena,
                                  ingot_error *error) {
    ingot_weight_info info;
    ingot_weight_view view;
    ingot_arena_reset(arena);
    INGOT_TRY(source->load(source->self, name, arena, &view, error));
    if (view.kind != INGOT_DENSE || !source->describe(source->self, name, &info)) {
        return ingot_error_set(error, INGOT_ERR_INPUT, source->path, name,
                               "take statistics from the full-precision checkpoint",
                               "the tensor is quantized");
    }
    digest_u64(stream, strlen(name));
    ingot_digest_stream_update(stream, name, strlen(name));
    digest_u64(stream, (uint64_t)view.dtype);
    digest_u64(stream, info.rank);
    for (unsigned i = 0; i < info.rank; i++) {
        digest_u64(stream, info.dim[i]);
    }
    ingot_digest_stream_update(stream, view.data,
                               view.rows * view.cols * ingot_dtype_bytes(view.dtype));
    return INGOT_OK;
}

ingot_status ingot_stats_model_digest(uint8_t digest[16], const ingot_weight_source *source,
                                      ingot_error *error) {
    ingot_digest_stream *stream = NULL;
    ingot_arena *arena = NULL;
    ingot_status status = ingot_digest_stream_create(&stream);
    if (status == INGOT_OK) {
        status = ingot_arena_create(&arena);
    }
    if (status != INGOT_OK) {
        ingot_error_set(error, status, source->path, NULL, NULL, "no memory for the digest");
        goto done;
    }
    uint64_t size = 0;
    const char *config = source->file(source->self, "config.json", &size);
    digest_u64(stream, size);
    if (config != NULL) {
        ingot_digest_stream_update(stream, config, size);
    }
    const char *name;
    for (uint64_t i = 0; (name = source->name_at(source->self, i)) != NULL; i++) {
        INGOT_GO(ingot_interrupt_check(error));
        INGOT_GO(digest_tensor(stream, name, source, arena, error));
    }
    ingot_digest_stream_finish(stream, digest);
done:
    ingot_arena_destroy(arena);
    ingot_digest_stream_destroy(stream);
    return status;
}

/* ---- reading ---------------------------------------------------------------------------- */

struct ingot_stats {
    ingot_container *container;
    const ingot_model *model;
    ingot_stats_info info;
    char path[1024];
};

static bool parse_digest(uint8_t digest[16], const char *hex) {
    if (hex == NULL || strlen(hex) != 32) {
        return false;
    }
    for (int i = 0; i < 16; i++) {
        unsigned value;
        /* Most significant byte first in text, last in memory. */
        const char pair[3] = {hex[2 * i], hex[2 * i + 1], '\0'};
        if (strspn(pair, "0123456789abcdef") != 2 || sscanf(pair, "%2x", &value) != 1) {
            return false;
        }
        digest[15 - i] = (uint8_t)value;
    }
    return true;
}

static ingot_status read_meta(ingot_stats *stats, ingot_error *error) {
    uint64_t size;
    const char *text = ingot_meta(stats->container, &size);
    json_t *meta = NULL;
    const char *kind = NULL, *model = NULL, *words = NULL, *backend = NULL;
    ingot_stats_info *info = &stats->info;
    ingot_status status = INGOT_OK;
    INGOT_GO(ingot_json_parse(&meta, text, size, stats->path, error));
    INGOT_GO(ingot_json_get_string(meta, "kind", &kind, stats->path, error));
    INGOT_GO(ingot_json_get_string(meta, "model_digest", &model, stats->path, error));
    INGOT_GO(ingot_json_get_string(meta, "text_digest", &words, stats->path, error));
    INGOT_GO(ingot_json_get_string(meta, "backend", &backend, stats->path, error));
    INGOT_GO(ingot_json_get_u64(meta, "samples", &info->samples, stats->path, error));
    INGOT_GO(ingot_json_get_u64(meta, "seq_len", &info->seq_len, stats->path, error));
    if (kind == NULL || strcmp(kind, "activation-statistics") != 0 || backend == NULL ||
        !parse_digest(info->model_digest, model) || !parse_digest(info->text_digest, words)) {
        status =
            ingot_error_set(error, INGOT_ERR_INPUT, stats->path, NULL, "make it with ingot-calib",
                            "the description of a statistics file is missing or incomplete");
        goto done;
    }
    snprintf(info->backend, sizeof info->backend, "%s", backend);
done:
    json_decref(meta);
    return status;
}

/* The tensor must be dense, of rank 1, and hold exactly `count` values. */
static ingot_status find_tensor(uint64_t *index, const ingot_stats *stats, uint64_t layer,
                                ingot_input input, int which, ingot_error *error) {
    char name[INGOT_NAME_SIZE];
    tensor_name(name, layer, input, which);
    const uint64_t n = input_width(stats->model, input);
    uint64_t count = which == TENSOR_COUNTS ? 2 : n;
    if (which == TENSOR_GRAM && !triangle_size(&count, n)) {
        return INGOT_ERR_UNSUPPORTED;
    }
    const ingot_dtype dtype = which == TENSOR_COUNTS ? INGOT_I32 : INGOT_F32;
    const ingot_tensor *tensor = ingot_tensor_find(stats->container, name, index);
    if (tensor == NULL || tensor->kind != INGOT_DENSE || tensor->rank != 1 ||
        tensor->dim[0] != count || tensor->dtype != dtype) {
        return ingot_error_set(error, INGOT_ERR_INPUT, stats->path, name,
                               "make statistics of this checkpoint with ingot-calib",
                               "expected a vector of %llu %s values", (unsigned long long)count,
                               ingot_dtype_name(dtype));
    }
    return INGOT_OK;
}

static ingot_status check_tensors(const ingot_stats *stats, ingot_error *error) {
    uint64_t index;
    for (uint64_t layer = 0; layer < stats->model->layers; layer++) {
        for (int input = 0; input < INGOT_INPUT_COUNT; input++) {
            if (input_width(stats->model, (ingot_input)input) == 0) {
                continue;
            }
            for (int which = 0; which < TENSORS_PER_INPUT; which++) {
                INGOT_TRY(find_tensor(&index, stats, layer, (ingot_input)input, which, error));
            }
        }
    }
    return INGOT_OK;
}

static ingot_status check_origin(const ingot_stats *stats, const ingot_weight_source *source,
                                 ingot_error *error) {
    uint8_t digest[16];
    INGOT_TRY(ingot_stats_model_digest(digest, source, error));
    if (memcmp(digest, stats->info.model_digest, sizeof digest) == 0) {
        return INGOT_OK;
    }
    char ours[33], theirs[33];
    ingot_digest_hex(ours, digest);
    ingot_digest_hex(theirs, stats->info.model_digest);
    return ingot_error_set(error, INGOT_FAIL_SOURCE, stats->path, NULL,
                           "make statistics of this checkpoint with ingot-calib",
                           "taken from another checkpoint (digest %s, this one has %s)", theirs,
                           ours);
}

ingot_status ingot_stats_open(ingot_stats **out, const char *path, const ingot_model *model,
                              const ingot_weight_source *source, ingot_error *error) {
    *out = NULL;
    void *memory;
    ingot_status status = ingot_alloc_zero(&memory, 1, sizeof(ingot_stats));
    if (status != INGOT_OK) {
        return ingot_error_set(error, status, path, NULL, NULL, "no memory");
    }
    ingot_stats *stats = memory;
    ingot_info info;
    stats->model = model;
    snprintf(stats->path, sizeof stats->path, "%s", path);
    INGOT_GO(ingot_open(&stats->container, path, error));
    ingot_get_info(stats->container, &info);
    if (info.profile != PROFILE_STATISTICS) {
        status = ingot_error_set(error, INGOT_ERR_INPUT, path, NULL, "make it with ingot-calib",
                                 "not a statistics file (profile %u)", (unsigned)info.profile);
        goto done;
    }
    memcpy(stats->info.root, info.root, sizeof stats->info.root);
    INGOT_GO(read_meta(stats, error));
    INGOT_GO(check_tensors(stats, error));
    INGOT_GO(check_origin(stats, source, error));
    *out = stats;
done:
    if (status != INGOT_OK) {
        ingot_stats_close(stats);
    }
    return status;
}

void ingot_stats_close(ingot_stats *stats) {
    if (stats != NULL) {
        ingot_close(stats->container);
        ingot_free(stats);
    }
}

void ingot_stats_get_info(const ingot_stats *stats, ingot_stats_info *out) {
    *out = stats->info;
}

/* gram[n][n] from the packed triangle, one chunk of the file at a time. */
static ingot_status read_gram(const ingot_stats *stats, uint64_t index, float *gram, uint64_t n,
                              float *piece, const char *name, ingot_error *error) {
    uint64_t total, row = 0, col = 0;
    if (!triangle_size(&total, n)) {
        return INGOT_ERR_UNSUPPORTED;
    }
    const uint64_t room = PIECE_BYTES / sizeof(float);
    for (uint64_t first = 0; first < total; first += room) {
        const uint64_t count = ingot_min_u64(room, total - first);
        INGOT_TRY(ingot_part_read(stats->container, index, INGOT_PART_CODES, first * sizeof(float),
                                  count * sizeof(float), true, piece, error));
        for (uint64_t i = 0; i < count; i++) {
            if (!isfinite(piece[i]) || (row == col && piece[i] < 0)) {
                return ingot_error_set(
                    error, INGOT_ERR_NUMERIC, stats->path, name, "make the statistics again",
                    "value %llu is not part of a sum of squares", (unsigned long long)(first + i));
            }
            gram[row * n + col] = piece[i];
            if (col++ == row) {
                memset(gram + row * n + col, 0, (n - col) * sizeof *gram);
                row++;
                col = 0;
            }
        }
    }
    return INGOT_OK;
}

static ingot_status read_small(const ingot_stats *stats, uint64_t index, void *out, uint64_t bytes,
                               ingot_error *error) {
    return ingot_part_read(stats->container, index, INGOT_PART_CODES, 0, bytes, true, out, error);
}

static ingot_status read_input(const ingot_stats *stats, uint64_t layer, ingot_input input,
                               ingot_stats_input *out, float *piece, ingot_error *error) {
    uint64_t index;
    char name[INGOT_NAME_SIZE];
    const uint64_t n = out->width;
    INGOT_TRY(find_tensor(&index, stats, layer, input, TENSOR_GRAM, error));
    tensor_name(name, layer, input, TENSOR_GRAM);
    INGOT_TRY(read_gram(stats, index, out->gram, n, piece, name, error));
    INGOT_TRY(find_tensor(&index, stats, layer, input, TENSOR_MAGNITUDE, error));
    INGOT_TRY(read_small(stats, index, out->magnitude, n * sizeof(float), error));
    int32_t counts[2];
    INGOT_TRY(find_tensor(&index, stats, layer, input, TENSOR_COUNTS, error));
    INGOT_TRY(read_small(stats, index, counts, sizeof counts, error));
    bool is_sound = counts[0] >= 0 && counts[1] >= 0;
    for (uint64_t i = 0; i < n; i++) {
        is_sound = is_sound && isfinite(out->magnitude[i]) && out->magnitude[i] >= 0;
    }
    if (!is_sound) {
        tensor_name(name, layer, input, TENSOR_MAGNITUDE);
        return ingot_error_set(error, INGOT_ERR_NUMERIC, stats->path, name,
                               "make the statistics again", "a mean or a count is negative or NaN");
    }
    out->tokens = (uint64_t)counts[0];
    out->dropped = (uint64_t)counts[1];
    return INGOT_OK;
}

ingot_status ingot_stats_load(const ingot_stats *stats, uint64_t layer, ingot_input input,
                              ingot_arena *arena, ingot_stats_input *out, ingot_error *error) {
    memset(out, 0, sizeof *out);
    out->width = input_width(stats->model, input);
    uint64_t bytes;
    void *memory = NULL;
    void *piece = NULL;
    ingot_status status = INGOT_ERR_NO_MEMORY;
    if (ingot_size_mul(&bytes, out->width, out->width) &&
        ingot_size_mul(&bytes, bytes, sizeof(float))) {
        status = ingot_arena_alloc(arena, &memory, bytes);
        out->gram = memory;
    }
    if (status == INGOT_OK) {
        status = ingot_arena_alloc(arena, &memory, out->width * sizeof(float));
        out->magnitude = memory;
    }
    if (status == INGOT_OK) {
        status = ingot_alloc(&piece, PIECE_BYTES);
    }
    if (status != INGOT_OK) {
        return ingot_error_set(error, status, stats->path, NULL, NULL,
                               "no memory for H of %llu x %llu", (unsigned long long)out->width,
                               (unsigned long long)out->width);
    }
    status = read_input(stats, layer, input, out, piece, error);
    ingot_free(piece);
    return status;
}

/* ---- collecting ------------------------------------------------------------------------- */

typedef struct collector {
    const ingot_model *model;
    const ingot_weight_source *source;
    const ingot_windows *windows;
    const ingot_backend *backend;
    ingot_error *error;
    ingot_arena *arena; /* the weights at hand */
    float *hidden;      /* [count * length][hidden], device */
    ingot_workspace *work;
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

static ingot_status open_collector(collector *c, uint64_t call_bytes) {
    const ingot_model *model = c->model;
    void *memory;
    uint64_t widest = model->hidden;
    INGOT_TRY(ingot_arena_create(&c->arena));
    INGOT_TRY(ingot_alloc(&memory, PIECE_BYTES));
    c->piece = memory;
    for (int i = 0; i < INGOT_INPUT_COUNT; i++) {
        const uint64_t n = input_width(model, (ingot_input)i);
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
    /* What a token takes in a workspace: calib/forward.h. */
    const uint64_t token_bytes =
        sizeof(float) * 2 *
        (model->hidden + (model->heads + model->kv_heads) * model->head_dim + model->ffn);
    const uint64_t batch_tokens = c->backend->batch_tokens;
    call_bytes = call_bytes == 0 ? batch_tokens * DEFAULT_TOKEN_BYTES : call_bytes;
    uint64_t call_windows =
        ingot_min_u64(batch_tokens, call_bytes / token_bytes) / c->windows->length;
    call_windows = ingot_max_u64(1, ingot_min_u64(call_windows, c->windows->count));
    return ingot_workspace_create(&c->work, model, c->backend, call_windows * c->windows->length,
                                  c->error);
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
    const uint64_t n = input_width(c->model, input);
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
    INGOT_TRY(ingot_ends_load_part(&ends, INGOT_ENDS_EMBED, c->model, c->source, c->backend,
                                   c->arena, c->error));
    const ingot_status status =
        ingot_ends_embed(&ends, c->model, c->backend, c->hidden, c->windows->ids,
                         c->windows->count * c->windows->length);
    ingot_ends_release(&ends, c->backend);
    return status;
}

static ingot_status collect_layer(collector *c, uint64_t layer, uint64_t *index) {
    const ingot_backend_ops *ops = c->backend->ops;
    void *context = c->backend->context;
    ingot_block block;
    for (int i = 0; i < INGOT_INPUT_COUNT; i++) {
        const uint64_t n = input_width(c->model, (ingot_input)i);
        c->tokens[i] = 0;
        if (c->gram[i] != NULL) {
            INGOT_TRY(ops->zero(context, c->gram[i], n * n * sizeof(float)));
            INGOT_TRY(ops->zero(context, c->magnitude[i], n * sizeof(double)));
        }
    }
    INGOT_TRY(ops->zero(context, c->dropped, INGOT_INPUT_COUNT * sizeof *c->dropped));
    ingot_arena_reset(c->arena);
    INGOT_TRY(ingot_block_load(&block, c->model, layer, c->source, c->backend, c->arena, c->error));
    const ingot_status status =
        ingot_block_forward_batch(c->model, c->backend, &block, c->hidden, c->windows->count,
                                  c->windows->length, c->work, take_input, c);
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
        inputs += input_width(c->model, (ingot_input)i) != 0;
    }
    c->spec_count = c->model->layers * inputs * TENSORS_PER_INPUT;
    INGOT_TRY(ingot_alloc_zero(&memory, c->spec_count, sizeof *c->specs));
    c->specs = memory;
    INGOT_TRY(ingot_alloc_zero(&memory, c->spec_count, sizeof *c->names));
    c->names = memory;
    uint64_t index = 0;
    for (uint64_t layer = 0; layer < c->model->layers; layer++) {
        for (int i = 0; i < INGOT_INPUT_COUNT; i++) {
            const uint64_t n = input_width(c->model, (ingot_input)i);
            uint64_t triangle;
            if (!triangle_size(&triangle, n)) {
                return INGOT_ERR_UNSUPPORTED;
            }
            const uint64_t sizes[TENSORS_PER_INPUT] = {triangle, n, 2};
            for (int which = 0; n != 0 && which < TENSORS_PER_INPUT; which++, index++) {
                tensor_name(c->names[index], layer, (ingot_input)i, which);
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
        .profile = PROFILE_STATISTICS,
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
