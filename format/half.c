/* binary16 and bfloat16 conversions, round to nearest even, without special instructions: branches
 * are selects, so compilers vectorize the loops.  NaN stays NaN (quiet). */
#include "format/half.h"

uint64_t ingot_dtype_bytes(ingot_dtype dtype) {
    switch (dtype) {
    case INGOT_F32:
    case INGOT_I32:
        return 4;
    case INGOT_F16:
    case INGOT_BF16:
        return 2;
    case INGOT_U8:
        return 1;
    }
    return 0;
}

const char *ingot_dtype_name(ingot_dtype dtype) {
    switch (dtype) {
    case INGOT_F32:
        return "F32";
    case INGOT_F16:
        return "F16";
    case INGOT_BF16:
        return "BF16";
    case INGOT_I32:
        return "I32";
    case INGOT_U8:
        return "U8";
    }
    return "unknown";
}

static inline float half_to_float(uint16_t half) {
    /* Shift exponent and mantissa into place and scale by 2^112: exact for normals and
     * subnormals alike; infinities and NaNs get their exponent put right. */
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t magnitude = (uint32_t)(half & 0x7fffu) << 13;
    const float scaled = ingot_bits_to_float(magnitude) * 0x1p112f;
    const uint32_t special = magnitude | 0x7f800000u;
    const uint32_t bits = magnitude >= 0x0f800000u ? special : ingot_float_to_bits(scaled);
    return ingot_bits_to_float(bits | sign);
}

float ingot_f16_to_f32(uint16_t half) {
    return half_to_float(half);
}

uint16_t ingot_f32_to_f16(float value) {
    const uint32_t bits = ingot_float_to_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u);
    }
    if (magnitude >= 0x477ff000u) { /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) {
        /* Below 2^-14: let the addition of 0.5 round at the subnormal step 2^-24. */
        const float shifted = ingot_bits_to_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (ingot_float_to_bits(shifted) - 0x3f000000u));
    }
    const uint32_t odd = (magnitude >> 13) & 1u;
    const uint32_t rounded = magnitude + 0x0fffu + odd - 0x38000000u;
    return (uint16_t)(sign | (rounded >> 13));
}

uint16_t ingot_f32_to_bf16(float value) {
    const uint32_t bits = ingot_float_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((bits >> 16) | 0x0040u);
    }
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

void ingot_convert_to_f32(float *out, const void *in, ingot_dtype dtype, uint64_t count) {
    const uint16_t *half = in;
    if (dtype == INGOT_F16) {
        for (uint64_t i = 0; i < count; i++) {
            out[i] = half_to_float(half[i]);
        }
    } else if (dtype == INGOT_BF16) {
        for (uint64_t i = 0; i < count; i++) {
            out[i] = ingot_bf16_to_f32(half[i]);
        }
    } else {
        memcpy(out, in, (size_t)count * sizeof(float));
    }
}

void ingot_convert_from_f32(void *out, ingot_dtype dtype, const float *in, uint64_t count) {
    uint16_t *half = out;
    if (dtype == INGOT_F16) {
        for (uint64_t i = 0; i < count; i++) {
            half[i] = ingot_f32_to_f16(in[i]);
        }
    } else if (dtype == INGOT_BF16) {
        for (uint64_t i = 0; i < count; i++) {
            half[i] = ingot_f32_to_bf16(in[i]);
        }
    } else {
        memcpy(out, in, (size_t)count * sizeof(float));
    }
}

float ingot_round_to_dtype(float value, ingot_dtype dtype) {
    if (dtype == INGOT_F16) {
        return half_to_float(ingot_f32_to_f16(value));
    }
    return dtype == INGOT_BF16 ? ingot_bf16_to_f32(ingot_f32_to_bf16(value)) : value;
}
