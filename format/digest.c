/* XXH3 digests as little-endian integers (spec/container.md, "Digests"). */
#include "format/digest.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static void store_u64(uint8_t *out, uint64_t value) {
    for (int i = 0; i < 8; i++) {
        out[i] = (uint8_t)(value >> (8 * i));
    }
}

static void store_digest(uint8_t digest[16], XXH128_hash_t hash) {
    store_u64(digest, hash.low64);
    store_u64(digest + 8, hash.high64);
}

uint64_t ingot_digest64(const void *bytes, uint64_t size) {
    return XXH3_64bits(bytes, (size_t)size);
}

void ingot_digest128(uint8_t digest[16], const void *bytes, uint64_t size) {
    store_digest(digest, XXH3_128bits(bytes, (size_t)size));
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
    (void)XXH3_128bits_update(stream->state, bytes, (size_t)size);
}

void ingot_digest_stream_finish(const ingot_digest_stream *stream, uint8_t digest[16]) {
    store_digest(digest, XXH3_128bits_digest(stream->state));
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
