/* Bit packing (spec/quantization.md, "Codes"): one rule for every width, written with a 64-bit
 * accumulator; 4 and 8 bits have their own loops because most files use them. */
#include "format/pack.h"

#include <string.h>

uint64_t ingot_pack_row_bytes(uint64_t cols, unsigned bits) {
    /* Limits on cols keep this far from overflow; callers that read files check before. */
    return (cols * bits + 127) / 128 * 16;
}

void ingot_pack_row(uint8_t *packed, const uint8_t *codes, uint64_t cols, unsigned bits) {
    const uint64_t row_bytes = ingot_pack_row_bytes(cols, bits);
    if (bits == 8) {
        memcpy(packed, codes, (size_t)cols);
        memset(packed + cols, 0, (size_t)(row_bytes - cols));
        return;
    }
    uint64_t at = 0;
    uint64_t col = 0;
    if (bits == 4) {
        for (; col + 2 <= cols; col += 2) {
            packed[at++] = (uint8_t)(codes[col] | (codes[col + 1] << 4));
        }
    }
    uint64_t pending = 0;
    unsigned pending_bits = 0;
    for (; col < cols; col++) {
        pending |= (uint64_t)codes[col] << pending_bits;
        pending_bits += bits;
        while (pending_bits >= 8) {
            packed[at++] = (uint8_t)pending;
            pending >>= 8;
            pending_bits -= 8;
        }
    }
    if (pending_bits > 0) {
        packed[at++] = (uint8_t)pending;
    }
    memset(packed + at, 0, (size_t)(row_bytes - at));
}

void ingot_unpack_row(uint8_t *codes, const uint8_t *packed, uint64_t first, uint64_t count,
                      unsigned bits) {
    if (bits == 8) {
        memcpy(codes, packed + first, (size_t)count);
        return;
    }
    uint64_t done = 0;
    if (bits == 4 && first % 2 == 0) {
        const uint8_t *byte = packed + first / 2;
        for (; done + 2 <= count; done += 2) {
            codes[done] = *byte & 15;
            codes[done + 1] = *byte++ >> 4;
        }
    }
    const unsigned mask = (1u << bits) - 1;
    for (; done < count; done++) {
        const uint64_t bit = (first + done) * bits;
        const unsigned shift = (unsigned)(bit % 8);
        unsigned word = packed[bit / 8];
        if (shift + bits > 8) { /* the second byte exists: the code reaches into it */
            word |= (unsigned)packed[bit / 8 + 1] << 8;
        }
        codes[done] = (uint8_t)((word >> shift) & mask);
    }
}
