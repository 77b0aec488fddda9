/* Bit packing of codes (spec/quantization.md, "Codes"): a row is a little-endian bit string, code k
 * in bits [k b, (k+1) b). */
#ifndef INGOT_PACK_H
#define INGOT_PACK_H

#include <stdint.h>

/* Bytes of one packed row: ceil(cols * bits / 8) rounded up to 16. */
uint64_t ingot_pack_row_bytes(uint64_t cols, unsigned bits);
/* packed[ingot_pack_row_bytes] = codes[cols]; padding is zero.  codes[i] < 2^bits. */
void ingot_pack_row(uint8_t *packed, const uint8_t *codes, uint64_t cols, unsigned bits);
/* codes[count] = codes first .. first+count-1 of the row. */
void ingot_unpack_row(uint8_t *codes, const uint8_t *packed, uint64_t first, uint64_t count,
                      unsigned bits);

#endif
