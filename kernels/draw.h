/* Choosing a token by its logits on the host. */
#ifndef INGOT_DRAW_H
#define INGOT_DRAW_H

#include <math.h>
#include <stdint.h>

/* The index of the greatest of logits[vocab], vocab >= 1; of equal ones the first. */
static inline uint64_t ingot_draw_best(const float *logits, uint64_t vocab) {
    uint64_t best = 0;
    for (uint64_t i = 1; i < vocab; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    return best;
}

/* The first index whose cumulative sum of exp(logit / temperature) exceeds the share u, 0 <= u < 1,
 * of all; temperature > 0, logits finite, sums in FP64 in order.  Where by rounding there is none,
 * the likeliest. */
static inline uint64_t ingot_draw_token(const float *logits, uint64_t vocab, double temperature,
                                        double u) {
    const uint64_t best = ingot_draw_best(logits, vocab);
    const double peak = (double)logits[best];
    double total = 0, sum = 0;
    for (uint64_t i = 0; i < vocab; i++) {
        total += exp(((double)logits[i] - peak) / temperature);
    }
    const double target = u * total;
    for (uint64_t i = 0; i < vocab; i++) {
        sum += exp(((double)logits[i] - peak) / temperature);
        if (sum > target) {
            return i;
        }
    }
    return best;
}

#endif
