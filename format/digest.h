/* Digests: XXH3 (fast, detects accidents) and SHA-256 (on request).  XXH3 values are stored as
 * little-endian integers: 8 or 16 bytes, low half first (spec/container.md, "Digests"). */
#ifndef INGOT_DIGEST_H
#define INGOT_DIGEST_H

#include "ingot_status.h"

#include <stdint.h>

uint64_t ingot_digest64(const void *bytes, uint64_t size);
void ingot_digest128(uint8_t digest[16], const void *bytes, uint64_t size);

/* Streaming XXH3-128. */
typedef struct ingot_digest_stream ingot_digest_stream;
ingot_status ingot_digest_stream_create(ingot_digest_stream **out) INGOT_MUST_CHECK;
void ingot_digest_stream_update(ingot_digest_stream *stream, const void *bytes, uint64_t size);
void ingot_digest_stream_finish(const ingot_digest_stream *stream, uint8_t digest[16]);
void ingot_digest_stream_destroy(ingot_digest_stream *stream);

/* Lower-case hexadecimal of the little-endian bytes, most significant byte first (as xxhsum
 * prints it): text[33], NUL-terminated. */
void ingot_digest_hex(char text[33], const uint8_t digest[16]);

/* SHA-256 of a whole file as lower-case hexadecimal (format/sha256.c, libcrypto; not in
 * libingot). */
ingot_status ingot_sha256_file(char text[65], const char *path,
                               ingot_error *error) INGOT_MUST_CHECK;

#endif
