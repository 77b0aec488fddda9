/* Digests (format/digest.h) of every instruction set against XXH3 without any: whole, and in
 * pieces. */
#include "format/digest.h"
#include "format/digest_isa.h"
#include "suite.h"

#include <string.h>
#include <time.h>

#define XXH_INLINE_ALL
#define XXH_VECTOR XXH_SCALAR
#include <xxhash.h>

/* Beyond the short forms (240 bytes), the internal buffer (256) and several stripes' blocks (1024),
 * and an odd end. */
#define MOST_BYTES ((1u << 20) + 77)

static uint8_t *bytes; /* [MOST_BYTES] */
static uint64_t state;

static uint64_t next_random(void) {
    state = state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return state >> 33;
}

/* Any length, short ones as often as long ones. */
static uint64_t any_size(void) {
    const uint64_t limits[] = {17, 129, 300, 2500, 70000, MOST_BYTES};
    return next_random() % limits[next_random() % 6];
}

static void check_whole(const ingot_digest_isa *isa, const uint8_t *from, uint64_t size) {
    uint64_t hash[2];
    const XXH128_hash_t expected = XXH3_128bits(from, size);
    isa->digest128(hash, from, size);
    CU_ASSERT(hash[0] == expected.low64 && hash[1] == expected.high64);
    CU_ASSERT(isa->digest64(from, size) == XXH3_64bits(from, size));
}

static void check_pieces(const ingot_digest_isa *isa, const uint8_t *from, uint64_t size) {
    uint64_t hash[2];
    const XXH128_hash_t expected = XXH3_128bits(from, size);
    XXH3_state_t *stream = XXH3_createState();
    CU_ASSERT_PTR_NOT_NULL_FATAL(stream);
    (void)XXH3_128bits_reset(stream);
    for (uint64_t at = 0; at < size;) {
        const uint64_t piece = 1 + next_random() % (size - at);
        isa->update128(stream, from + at, piece);
        at += piece;
    }
    isa->finish128(hash, stream);
    CU_ASSERT(hash[0] == expected.low64 && hash[1] == expected.high64);
    XXH3_freeState(stream);
}

static void test_sets(void) {
    for (unsigned i = 0; ingot_digest_isa_at(i) != NULL; i++) {
        const ingot_digest_isa *isa = ingot_digest_isa_at(i);
        printf("%s ", isa->name);
        for (uint64_t size = 0; size < 600; size++) {
            check_whole(isa, bytes + size % 3, size);
        }
        for (unsigned run = 0; run < 300; run++) {
            const uint64_t size = any_size();
            const uint64_t offset = next_random() % (MOST_BYTES - size);
            check_whole(isa, bytes + offset, size);
            check_pieces(isa, bytes + offset, size);
        }
    }
    CU_ASSERT(ingot_digest_isa_at(0) == &ingot_digest_sse2);
    CU_ASSERT(ingot_digest_isa_at(3) == NULL);
}

/* The functions that everybody calls, and their order of bytes. */
static void test_functions(void) {
    for (unsigned run = 0; run < 100; run++) {
        const uint64_t size = any_size();
        const XXH128_hash_t expected = XXH3_128bits(bytes, size);
        uint8_t digest[16], streamed[16], wanted[16];
        for (int i = 0; i < 16; i++) {
            wanted[i] = (uint8_t)((i < 8 ? expected.low64 : expected.high64) >> (8 * (i % 8)));
        }
        ingot_digest_stream *stream;
        CU_ASSERT_EQUAL_FATAL(ingot_digest_stream_create(&stream), INGOT_OK);
        ingot_digest_stream_update(stream, bytes, size / 3);
        ingot_digest_stream_update(stream, bytes + size / 3, size - size / 3);
        ingot_digest_stream_finish(stream, streamed);
        ingot_digest_stream_destroy(stream);
        ingot_digest128(digest, bytes, size);
        CU_ASSERT(memcmp(digest, wanted, 16) == 0);
        CU_ASSERT(memcmp(streamed, wanted, 16) == 0);
        CU_ASSERT(ingot_digest64(bytes, size) == XXH3_64bits(bytes, size));
    }
}

int main(void) {
    state = (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)state);
    bytes = malloc(MOST_BYTES);
    if (bytes == NULL) {
        return 2;
    }
    for (uint64_t i = 0; i < MOST_BYTES; i++) {
        bytes[i] = (uint8_t)next_random();
    }
    const CU_TestInfo tests[] = {
        {"every instruction set", test_sets},
        {"whole and streamed", test_functions},
        CU_TEST_INFO_NULL,
    };
    const int result = suite_run("digest", tests);
    free(bytes);
    return result;
}
