/* Likelihoods, perplexity and KL divergence of a model on windows of text, block by block, so that
 * only one block of weights and a bounded batch of hidden states are in memory.
 *
 * Protocol (architecture.md section 5): in each window tokens 1..L-1 are scored given those before
 * them.  Sums run over positions in order, in FP64: the figures do not depend on batch_bytes or on
 * the number of threads. */
#ifndef INGOT_SCORE_H
#define INGOT_SCORE_H

#include "calib/dataset.h"
#include "calib/forward.h"
#include "common/progress.h"

typedef struct ingot_score {
    uint64_t positions;       /* scored: windows * (length - 1) */
    double perplexity;        /* of the candidate; exp of the mean negative log-likelihood */
    double source_perplexity; /* NaN without a source */
    double ppl_ratio;         /* candidate / source, NaN without a source */
    /* KL(source || candidate) in nats, NaN without a source.  p99 is the nearest-rank percentile:
     * the ceil(0.99 n)-th smallest of the n values. */
    double kld_mean, kld_p99;
    double top1; /* fraction of positions with the same argmax; NaN without one */
} ingot_score;

/* Sequences of tokens, one after the other, of which the tokens from `first` on are scored given
 * all before them. */
typedef struct ingot_sequence {
    uint64_t length, first; /* 1 <= first < length */
} ingot_sequence;
typedef struct ingot_sequences {
    const uint32_t *ids; /* [sum of lengths] */
    const ingot_sequence *items;
    uint64_t count;
} ingot_sequences;

/* nll[sum of length - first] = negative log-likelihoods in nats of the scored tokens, in order, by
 * `candidate`; source_nll the same by `source` (both NULL: none).  Neighbours of equal length are
 * run together: sort by length.  batch_bytes, progress (which counts sequences) and errors as
 * below. */
ingot_status ingot_score_sequences(double *nll, double *source_nll, const ingot_model *model,
                                   const ingot_weight_source *candidate,
                                   const ingot_weight_source *source,
                                   const ingot_sequences *sequences, const ingot_backend *backend,
                                   uint64_t batch_bytes, ingot_progress *progress,
                                   ingot_error *error) INGOT_MUST_CHECK;

/* Scores `candidate`; `source` may be NULL.  Both are models of the same description.
 * batch_bytes bounds the hidden states kept at once (0: 512 MiB; one window at least); where memory
 * is short it begins anew with half of them.  progress counts windows and may be NULL.
 * INGOT_ERR_USAGE for windows shorter than 2 tokens, INGOT_ERR_NUMERIC when a model gives a
 * likelihood that is not finite. */
ingot_status ingot_score_run(ingot_score *out, const ingot_model *model,
                             const ingot_weight_source *candidate,
                             const ingot_weight_source *source, const ingot_windows *windows,
                             const ingot_backend *backend, uint64_t batch_bytes,
                             ingot_progress *progress, ingot_error *error) INGOT_MUST_CHECK;

/* Memory that it takes beside weights to score `tokens` tokens in sequences of up to `longest` with
 * a source, for plans; batch_tokens as backends have it. */
uint64_t ingot_score_bytes(const ingot_model *model, uint64_t tokens, uint64_t longest,
                           uint64_t batch_tokens);

#endif
