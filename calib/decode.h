/* Text out of a model: prompt, KV cache, sampling.
 *
 * The whole model's weights stay resident as the source stores them (packed codes stay packed) and
 * are dequantized by ops->linear row by row or tile by tile, never as a whole. */
#ifndef INGOT_DECODE_H
#define INGOT_DECODE_H

#include "calib/forward.h"
#include "calib/tokenizer.h"
#include "common/progress.h"

/* ---- the model with its cache ----------------------------------------------------------- */

typedef struct ingot_decoder ingot_decoder;

/* Loads all weights and makes room for `capacity` tokens of one sequence.  model, source and
 * backend outlive the decoder.  progress counts MB and may be NULL. */
ingot_status ingot_decoder_create(ingot_decoder **out, const ingot_model *model,
                                  const ingot_weight_source *source, const ingot_backend *backend,
                                  uint64_t capacity, ingot_progress *progress,
                                  ingot_error *error) INGOT_MUST_CHECK;
void ingot_decoder_destroy(ingot_decoder *decoder); /* NULL is fine */
/* Appends ids[count] (count >= 1, in chunks of at most 512) to what was fed before.
 * logits[vocab] (host, may be NULL) = those after the last one.  INGOT_ERR_USAGE when the cache is
 * full; INGOT_ERR_NUMERIC when a logit is not finite. */
ingot_status ingot_decoder_feed(ingot_decoder *decoder, const uint32_t *ids, uint64_t count,
                                float *logits, ingot_error *error) INGOT_MUST_CHECK;
uint64_t ingot_decoder_length(const ingot_decoder *decoder); /* tokens fed so far */
void ingot_decoder_rewind(ingot_decoder *decoder);           /* forget all tokens */

/* ---- choosing a token ------------------------------------------------------------------- */

/* temperature 0: the largest logit, the lowest index on ties.  Otherwise the softmax of
 * logits / temperature, in FP64, by inversion: u in [0, 1) from SplitMix64 (Steele, Lea, Flood
 * 2014: 64-bit state += 0x9E3779B97F4A7C15, mixed; top 53 bits), then the first index whose
 * cumulative probability exceeds u.  The same seed and logits give the same tokens. */
typedef struct ingot_sampler {
    double temperature;
    uint64_t state; /* the seed, at first */
} ingot_sampler;
uint32_t ingot_sampler_next(ingot_sampler *sampler, const float *logits, uint64_t vocab);

/* ---- tokens into text as they come ------------------------------------------------------ */

/* Receives text[size]: whole UTF-8 characters only. */
typedef ingot_status (*ingot_text_sink)(void *context, const char *text, uint64_t size);

typedef struct ingot_text_stream ingot_text_stream;

/* Text is what decoding prompt and output together gives beyond the prompt's, so a leading space of
 * the first word is kept; but text that was handed out is not taken back where later bytes of its
 * run make it no UTF-8.  Special tokens give no text. */
ingot_status ingot_text_stream_create(ingot_text_stream **out, const ingot_tokenizer *tokenizer,
                                      const uint32_t *prompt, uint64_t count, ingot_text_sink sink,
                                      void *context, ingot_error *error) INGOT_MUST_CHECK;
void ingot_text_stream_destroy(ingot_text_stream *stream); /* NULL is fine */
/* Text that ends in a replacement character may be the first bytes of a longer one: it waits for
 * the next token. */
ingot_status ingot_text_stream_put(ingot_text_stream *stream, uint32_t id,
                                   ingot_error *error) INGOT_MUST_CHECK;
/* Hands out what is still waiting. */
ingot_status ingot_text_stream_flush(ingot_text_stream *stream,
                                     ingot_error *error) INGOT_MUST_CHECK;

/* ---- a whole generation ----------------------------------------------------------------- */

typedef struct ingot_generation {
    uint32_t *ids;  /* [count], owned: ingot_generation_free */
    uint64_t count; /* without the end-of-text token */
    uint64_t prompt_count;
    bool is_ended; /* by an end-of-text token */
    double prompt_seconds, decode_seconds;
    uint64_t decode_steps; /* forward calls of one token that decode_seconds covers */
    bool is_saturated;     /* ingot_engine_saturated, since it was last asked for a generation */
} ingot_generation;

/* Feeds the prompt and generates until an end-of-text token, `limit` tokens or a full cache.
 * stream may be NULL; so may progress, which counts tokens of the prompt and has ended before the
 * first text.  INGOT_ERR_INPUT for an id beyond the embedding; on INGOT_ERR_INTERRUPTED
 * and other failures *out holds what was generated and still has to be freed. */
ingot_status ingot_generate(ingot_generation *out, ingot_decoder *decoder, ingot_sampler *sampler,
                            const uint32_t *prompt, uint64_t prompt_count, uint64_t limit,
                            ingot_text_stream *stream, ingot_progress *progress,
                            ingot_error *error) INGOT_MUST_CHECK;
void ingot_generation_free(ingot_generation *generation);

#endif
