/* Texts as windows of tokens: the calibration batch and the perplexity protocol
 * (architecture.md section 5). */
#ifndef INGOT_DATASET_H
#define INGOT_DATASET_H

#include "calib/tokenizer.h"

#define INGOT_MAX_TEXTS 64u /* of a command line */

/* All tokens of the texts, concatenated, and a digest of the raw bytes. */
typedef struct ingot_text {
    uint32_t *ids; /* [count], owned */
    uint64_t count;
    uint64_t bytes;
    uint8_t digest[16]; /* XXH3-128 of the concatenated files */
} ingot_text;

/* Reads paths[path_count] (each a regular file), concatenates, tokenizes.  Text without a token is
 * INGOT_ERR_INPUT. */
ingot_status ingot_text_load(ingot_text *out, const char *const *paths, uint64_t path_count,
                             const ingot_tokenizer *tokenizer, ingot_error *error) INGOT_MUST_CHECK;
void ingot_text_free(ingot_text *text);

/* Of calibration and evaluation alike, where the command line says nothing. */
#define INGOT_WINDOW_LENGTH 2048u /* tokens, or the model's context if that is less */
#define INGOT_WINDOW_COUNT  128u  /* of calibration */
/* *out = tokens of a calibration window: wanted, or 0 for the default; path is the model's.
 * INGOT_ERR_USAGE where the context does not hold them. */
ingot_status ingot_windows_length(uint64_t *out, uint64_t wanted, uint64_t context,
                                  const char *path, ingot_error *error) INGOT_MUST_CHECK;

typedef struct ingot_windows {
    uint32_t *ids; /* [count][length], owned */
    uint64_t count, length;
} ingot_windows;

/* Calibration: n = min(samples, floor(T / L)) windows of L tokens starting at
 * floor(i (T - L) / (n - 1)).  INGOT_ERR_INPUT when the text is shorter than one window. */
ingot_status ingot_windows_calibration(ingot_windows *out, const ingot_text *text, uint64_t samples,
                                       uint64_t length, const char *path,
                                       ingot_error *error) INGOT_MUST_CHECK;
/* Evaluation: non-overlapping windows from the start, tail dropped, the first `limit` (0: all). */
ingot_status ingot_windows_evaluation(ingot_windows *out, const ingot_text *text, uint64_t limit,
                                      uint64_t length, const char *path,
                                      ingot_error *error) INGOT_MUST_CHECK;
void ingot_windows_free(ingot_windows *windows);

#endif
