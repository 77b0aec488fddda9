/* Calibration without data: the model writes its own text. */
#ifndef INGOT_SELF_TEXT_H
#define INGOT_SELF_TEXT_H

#include "calib/dataset.h"
#include "calib/forward.h"
#include "common/progress.h"

/* What --text says in place of a file. */
#define INGOT_SELF_TEXT "@self"

/* Whether texts[count] asks for it.  INGOT_ERR_USAGE when it stands beside files. */
ingot_status ingot_self_text_wanted(bool *out, const char *const *texts, uint64_t count,
                                    ingot_error *error) INGOT_MUST_CHECK;

/* samples sequences of `length` tokens, one after another in out->ids; each begins with the token
 * that texts begin with, or, for a model that names none, with any token, and goes on with tokens
 * drawn from the softmax of the full-precision model's logits, also beyond an end of text.
 * Sequence i draws from a generator of its own, of seed and i, as ingot_sampler_next does.
 *
 * out->digest is the XXH3-128 of the ids as little-endian u32, out->bytes their size.  The same
 * seed gives the same ids on the same backend path; another one rounds otherwise, and sequences
 * part where two tokens are about equally likely.
 *
 * Holds all weights of the model as the source stores them, and keys and values of as many
 * sequences as fit in 1 GiB of host or 8 GiB of device memory; where there is less, it begins anew
 * with half as many at once, as long as there is more than one, and counts that in *shortages (may
 * be NULL).  progress may be NULL: counts tokens. */
ingot_status ingot_self_text_write(ingot_text *out, const ingot_model *model,
                                   const ingot_weight_source *source, const ingot_backend *backend,
                                   uint64_t samples, uint64_t length, uint64_t seed,
                                   ingot_progress *progress, unsigned *shortages,
                                   ingot_error *error) INGOT_MUST_CHECK;

/* Memory that it takes beside the weights, for plans; at the least: with one sequence at once. */
uint64_t ingot_self_text_bytes(uint64_t *least_bytes, const ingot_model *model, uint64_t samples,
                               uint64_t length, bool has_own_memory);

#endif
