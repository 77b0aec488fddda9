/* The XXH3 routines of format/digest.c for one instruction set (format/isa_digest.c, compiled once
 * for each).  All give the same values; a library built for every x86-64 processor has SSE2 alone,
 * which digests at less than half the speed. */
#ifndef INGOT_DIGEST_ISA_H
#define INGOT_DIGEST_ISA_H

#include <stddef.h>
#include <stdint.h>

typedef struct ingot_digest_isa {
    const char *name;
    uint64_t (*digest64)(const void *bytes, size_t size);
    /* out[2]: low half, high half */
    void (*digest128)(uint64_t out[2], const void *bytes, size_t size);
    /* state: an XXH3_state_t after XXH3_128bits_reset */
    void (*update128)(void *state, const void *bytes, size_t size);
    void (*finish128)(uint64_t out[2], const void *state);
} ingot_digest_isa;

extern const ingot_digest_isa ingot_digest_sse2, ingot_digest_avx2, ingot_digest_avx512;

/* Number `index` of those this processor has, slowest first; NULL beyond the last. */
const ingot_digest_isa *ingot_digest_isa_at(unsigned index);

#endif
