/* Overflow-checked arithmetic on 64-bit sizes.  Every size that comes from a file or from a shape
 * goes through these; the result is false on overflow and *out is then untouched. */
#ifndef INGOT_SIZES_H
#define INGOT_SIZES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool ingot_size_add(uint64_t *out, uint64_t a, uint64_t b) {
    uint64_t sum;
    if (__builtin_add_overflow(a, b, &sum)) {
        return false;
    }
    *out = sum;
    return true;
}

static inline bool ingot_size_mul(uint64_t *out, uint64_t a, uint64_t b) {
    uint64_t product;
    if (__builtin_mul_overflow(a, b, &product)) {
        return false;
    }
    *out = product;
    return true;
}

/* Rounds value up to a multiple of alignment (a power of two). */
static inline bool ingot_size_align(uint64_t *out, uint64_t value, uint64_t alignment) {
    uint64_t raised;
    if (!ingot_size_add(&raised, value, alignment - 1)) {
        return false;
    }
    *out = raised & ~(alignment - 1);
    return true;
}

static inline uint64_t ingot_ceil_div(uint64_t a, uint64_t b) {
    return a / b + (a % b != 0);
}

static inline uint64_t ingot_min_u64(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static inline uint64_t ingot_max_u64(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

#endif
