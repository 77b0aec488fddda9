/* Activation statistics of a full-precision model: collected once (ingot-calib), used by many
 * conversions (spec/statistics.md).
 *
 * Per layer and per input (calib/model.h: linears that read the same vector share it):
 *   H = sum over tokens of x x^T     packed lower triangle in the file, F32
 *   mean |x|                         F32
 *   tokens that were summed, and rows that were dropped because a value was not finite
 * The file is an Ingot container of profile 1 (statistics).  It names the checkpoint by a digest,
 * and opening it for another checkpoint is refused. */
#ifndef INGOT_STATS_H
#define INGOT_STATS_H

#include "calib/dataset.h"
#include "calib/forward.h"
#include "common/progress.h"

/* What identifies a checkpoint here: XXH3-128 over config.json and, in index order, every tensor's
 * name, dtype, shape and bytes.  Reads the whole checkpoint once. */
ingot_status ingot_stats_model_digest(uint8_t digest[16], const ingot_weight_source *source,
                                      ingot_error *error) INGOT_MUST_CHECK;

/* ---- reading ---------------------------------------------------------------------------- */

typedef struct ingot_stats ingot_stats;

typedef struct ingot_stats_info {
    uint8_t model_digest[16], text_digest[16];
    uint64_t samples, seq_len; /* windows and tokens per window that were run */
    char backend[64];          /* ingot_backend.path the statistics were taken on */
    uint8_t root[16];          /* of the statistics file, names it in provenance */
} ingot_stats_info;

/* Opens a statistics file and checks that it belongs to this model: profile, META, every tensor's
 * presence and shape, and the digest of the checkpoint (model and source stay the caller's).
 * INGOT_ERR_INPUT when it is no statistics file; INGOT_FAIL_SOURCE when it was taken from another
 * checkpoint, whatever that one's shape; INGOT_ERR_INPUT when it was taken from this one and has
 * another shape; INGOT_BAD_* when the container is damaged. */
ingot_status ingot_stats_open(ingot_stats **out, const char *path, const ingot_model *model,
                              const ingot_weight_source *source,
                              ingot_error *error) INGOT_MUST_CHECK;
void ingot_stats_close(ingot_stats *stats); /* NULL is fine */
void ingot_stats_get_info(const ingot_stats *stats, ingot_stats_info *out);
/* The file itself, the statistics' own. */
const ingot_container *ingot_stats_container(const ingot_stats *stats);

/* The statistics of one input, in the arena. */
typedef struct ingot_stats_input {
    uint64_t width;
    float *gram;      /* [width][width], lower triangle as ops->gram leaves it, zeros above */
    float *magnitude; /* [width], mean |x| */
    uint64_t tokens, dropped;
} ingot_stats_input;

/* Digests are checked while reading; a value that is not finite is INGOT_ERR_NUMERIC. */
ingot_status ingot_stats_load(const ingot_stats *stats, uint64_t layer, ingot_input input,
                              ingot_arena *arena, ingot_stats_input *out,
                              ingot_error *error) INGOT_MUST_CHECK;

/* ---- collecting ------------------------------------------------------------------------- */

typedef struct ingot_stats_options {
    const char *path; /* the file to write */
    bool force;
    uint64_t batch_bytes; /* bound of the scratch of one forward call (ingot_stats_call_tokens) */
    unsigned threads;     /* for the final check of the file */
} ingot_stats_options;

typedef struct ingot_stats_result {
    uint64_t file_bytes, tokens, dropped;
    uint8_t root[16];
} ingot_stats_result;

/* Bytes of the packed triangles, means and counts of a model (plans and dry runs). */
ingot_status ingot_stats_bytes(uint64_t *out, const ingot_model *model) INGOT_MUST_CHECK;

/* Tokens of one forward call while windows are run: whole windows, as many as batch_tokens
 * (kernels/backend.h) and call_bytes of scratch hold (0: 64 KiB a token), one at least. */
uint64_t ingot_stats_call_tokens(const ingot_model *model, uint64_t windows, uint64_t length,
                                 uint64_t batch_tokens, uint64_t call_bytes);

/* Runs the model on all windows, block by block, and writes the statistics.  Memory: the embedding
 * or one block of weights, the hidden states of all windows, H of one block, and a forward call:
 * where that is short, of fewer windows. */
ingot_status ingot_stats_collect(ingot_stats_result *out, const ingot_model *model,
                                 const ingot_weight_source *source, const ingot_windows *windows,
                                 const ingot_text *text, const ingot_backend *backend,
                                 const ingot_stats_options *options, ingot_progress *progress,
                                 ingot_error *error) INGOT_MUST_CHECK;

#endif
