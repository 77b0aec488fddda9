/* XXH3 digests as little-endian integers (spec/container.md, "Digests"). */
#include "format/digest.h"

#include "format/digest_isa.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static void store_u64(uint8_t *out, uint64_t value) {
    for (int i = 0; i < 8; i++) {
        out[i] = (uint8_t)(value >> (8 * i));
    }
}

static void store_digest(uint8_t digest[16], const uint64_t hash[2]) {
    store_u64(digest, hash[0]);
    store_u64(digest + 8, hash[1]);
}

const ingot_digest_isa *ingot_digest_isa_at(unsigned index) {
    __builtin_cpu_init();
    switch (index) {
    case 0:
        return &ingot_digest_sse2;
    case 1:
        return __builtin_cpu_supports("avx2") ? &ingot_digest_avx2 : NULL;
    case 2:
        return __builtin_cpu_supports("avx512f") ? &ingot_digest_avx512 : NULL;
    default:
        return NULL;
    }
}

/* The fastest.  Asked once: a virtual machine leaves the guest for every CPUID. */
static const ingot_digest_isa *fastest(void) {
    static const ingot_digest_isa *_Atomic known; /* threads that meet here store the same */
    const ingot_digest_isa *isa = known;
    if (isa == NULL) {
        for (unsigned i = 0; ingot_digest_isa_at(i) != NULL; i++) {
            isa = ingot_digest_isa_at(i);
        }
        known = isa;
    }
    return isa;
}

uint64_t ingot_digest64(const void *bytes, uint64_t size) {
    return fastest()->digest64(bytes, (size_t)size);
}

void ingot_digest128(uint8_t digest[16], const void *bytes, uint64_t size) {
    uint64_t hash[2];
    fastest()->digest128(hash, bytes, (size_t)size);
    store_digest(digest, hash);
}

struct ingot_digest_stream {
    XXH3_state_t *state;
};

ingot_status ingot_digest_stream_create(ingot_digest_stream **out) {
    *out = malloc(sizeof **out);
    if (*out == NULL) {
        return INGOT_ERR_NO_MEMORY;
    }
    (*out)->state = XXH3_createState();
    if ((*out)->state == NULL || XXH3_128bits_reset((*out)->state) != XXH_OK) {
        ingot_digest_stream_destroy(*out);
        *out = NULL;
        return INGOT_ERR_NO_MEMORY;
    }
    return INGOT_OK;
}

void ingot_digest_stream_update(ingot_digest_stream *stream, const void *bytes, uint64_t size) {
    fastest()->update128(stream->state, bytes, (size_t)size);
}

void ingot_digest_stream_finish(const ingot_digest_stream *stream, uint8_t digest[16]) {
    uint64_t hash[2];
    fastest()->finish128(hash, stream->state);
    store_digest(digest, hash);
}

void ingot_digest_stream_destroy(ingot_digest_stream *stream) {
    if (stream != NULL) {
        XXH3_freeState(stream->state);
        free(stream);
    }
}

void ingot_digest_hex(char text[33], const uint8_t digest[16]) {
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 16; i++) {
        const uint8_t byte = digest[15 - i];
        text[2 * i] = digits[byte >> 4];
        text[2 * i + 1] = digits[byte & 15];
    }
    text[32] = '\0';
}
