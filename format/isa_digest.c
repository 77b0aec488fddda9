/* XXH3 compiled for one instruction set, which the makefile names ISA (format/digest_isa.h). */
#include "format/digest_isa.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#define TEXT_(name) #name
#define TEXT(name)  TEXT_(name)
#define JOIN_(a, b) a##b
#define JOIN(a, b)  JOIN_(a, b)
#define TABLE_NAME  JOIN(ingot_digest_, ISA)

static void store(uint64_t out[2], XXH128_hash_t hash) {
    out[0] = hash.low64;
    out[1] = hash.high64;
}

static uint64_t digest64(const void *bytes, size_t size) {
    return XXH3_64bits(bytes, size);
}

static void digest128(uint64_t out[2], const void *bytes, size_t size) {
    store(out, XXH3_128bits(bytes, size));
}

static void update128(void *state, const void *bytes, size_t size) {
    (void)XXH3_128bits_update(state, bytes, size);
}

static void finish128(uint64_t out[2], const void *state) {
    store(out, XXH3_128bits_digest(state));
}

const ingot_digest_isa TABLE_NAME = {
    .name = TEXT(ISA),
    .digest64 = digest64,
    .digest128 = digest128,
    .update128 = update128,
    .finish128 = finish128,
};
