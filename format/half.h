/* binary16 and bfloat16 <-> binary32, round to nearest even; portable, exact, vectorizable. */
#ifndef INGOT_HALF_H
#define INGOT_HALF_H

#include "format/ingot.h"

#include <stdint.h>
#include <string.h>

static inline float ingot_bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t ingot_float_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

float ingot_f16_to_f32(uint16_t half);
uint16_t ingot_f32_to_f16(float value); /* overflow gives infinity */

static inline float ingot_bf16_to_f32(uint16_t bits) {
    return ingot_bits_to_float((uint32_t)bits << 16);
}
uint16_t ingot_f32_to_bf16(float value);

/* out[count] = in[count] of dtype F32, F16 or BF16. */
void ingot_convert_to_f32(float *out, const void *in, ingot_dtype dtype, uint64_t count);
/* out[count] of dtype F32, F16 or BF16 = in[count], rounded to nearest even. */
void ingot_convert_from_f32(void *out, ingot_dtype dtype, const float *in, uint64_t count);
/* value rounded to dtype and back. */
float ingot_round_to_dtype(float value, ingot_dtype dtype);

#endif
