/* Pseudo-random numbers from a seed: splitmix64 (Steele, Lea and Flood, "Fast splittable
 * pseudorandom number generators", OOPSLA 2014).  Results that a user can repeat by a seed depend
 * on every bit of it.  Not for anything that must be secret. */
#ifndef INGOT_RANDOM_H
#define INGOT_RANDOM_H

#include <stdint.h>

#ifdef __CUDACC__
#define INGOT_RANDOM_CALL static __host__ __device__ inline
#else
#define INGOT_RANDOM_CALL static inline
#endif

/* The next 64 bits; *state starts at the seed, any value. */
INGOT_RANDOM_CALL uint64_t ingot_random_bits(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* Uniform in [0, 1), a multiple of 2^-53. */
INGOT_RANDOM_CALL double ingot_random_unit(uint64_t *state) {
    return (double)(ingot_random_bits(state) >> 11) * 0x1p-53;
}

/* Uniform in [-1, 1), a multiple of 2^-23. */
INGOT_RANDOM_CALL float ingot_random_signed(uint64_t *state) {
    return (float)(ingot_random_bits(state) >> 40) * 0x1p-23f - 1.0f;
}

#endif
