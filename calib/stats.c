/* Statistics files: what is in one, the identity of a checkpoint, and reading them for a
 * conversion. Format: spec/statistics.md.  Collecting: stats_collect.c.  Not here: what is done
 * with H (convert/), and statistics on the quantized prefix, which a conversion gathers itself. */
#include "calib/stats_parts.h"

#include "common/files.h"
#include "common/json.h"
#include "common/sizes.h"
#include "format/digest.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const tensor_suffix[TENSORS_PER_INPUT] = {"gram", "magnitude", "counts"};

void ingot_stats_tensor_name(char name[INGOT_NAME_SIZE], uint64_t layer, ingot_input input,
                             int which) {
    snprintf(name, INGOT_NAME_SIZE, "blocks.%llu.%s#%s", (unsigned long long)layer,
             ingot_input_name(input), tensor_suffix[which]);
}

uint64_t ingot_stats_width(const ingot_model *model, ingot_input input) {
    for (int role = 0; role < INGOT_ROLE_COUNT; role++) {
        if (model->linear[role].is_present && model->linear[role].input == input) {
            return model->linear[role].cols;
        }
    }
    return 0;
}

bool ingot_stats_triangle(uint64_t *out, uint64_t n) {
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
        const uint64_t n = ingot_stats_width(model, (ingot_input)input);
        uint64_t values;
        if (n == 0) {
            continue;
        }
        if (!ingot_stats_triangle(&values, n) || !ingot_size_add(&values, values, n + 2) ||
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
    ingot_stats_tensor_name(name, layer, input, which);
    const uint64_t n = ingot_stats_width(stats->model, input);
    uint64_t count = which == TENSOR_COUNTS ? 2 : n;
    if (which == TENSOR_GRAM && !ingot_stats_triangle(&count, n)) {
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
            if (ingot_stats_width(stats->model, (ingot_input)input) == 0) {
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
    if (info.profile != INGOT_PROFILE_STATISTICS) {
        status = ingot_error_set(error, INGOT_ERR_INPUT, path, NULL, "make it with ingot-calib",
                                 "not a statistics file (profile %u)", (unsigned)info.profile);
        goto done;
    }
    memcpy(stats->info.root, info.root, sizeof stats->info.root);
    INGOT_GO(read_meta(stats, error));
    INGOT_GO(check_origin(stats, source, error)); /* first: another model has other tensors */
    INGOT_GO(check_tensors(stats, error));
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

const ingot_container *ingot_stats_container(const ingot_stats *stats) {
    return stats->container;
}

/* gram[n][n] from the packed triangle, one chunk of the file at a time. */
static ingot_status read_gram(const ingot_stats *stats, uint64_t index, float *gram, uint64_t n,
                              float *piece, const char *name, ingot_error *error) {
    uint64_t total, row = 0, col = 0;
    if (!ingot_stats_triangle(&total, n)) {
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
    ingot_stats_tensor_name(name, layer, input, TENSOR_GRAM);
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
        ingot_stats_tensor_name(name, layer, input, TENSOR_MAGNITUDE);
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
    out->width = ingot_stats_width(stats->model, input);
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
