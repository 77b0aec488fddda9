/* Runs of 16-bit floats widened to binary32, exactly; included by isa_*.c alone. */
#ifndef INGOT_ISA_HALVES_H
#define INGOT_ISA_HALVES_H

#include "format/half.h"
#include "kernels/cpu/isa_lanes.h"

INLINE void f16_segment(float *out, const uint16_t *in, uint64_t count) {
    uint64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= count; i += 16) {
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(in + i))));
    }
    const __mmask16 rest = (__mmask16)((1u << (count - i)) - 1u);
    _mm512_mask_storeu_ps(out + i, rest, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(rest, in + i)));
#elif defined(__F16C__)
    for (; i + 8 <= count; i += 8) {
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(in + i))));
    }
    if (i < count && count >= 8) { /* the last once more, rather than one by one */
        i = count - 8;
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(in + i))));
        return;
    }
    for (; i < count; i++) {
        out[i] = _cvtsh_ss(in[i]);
    }
#else
    for (; i < count; i++) {
        out[i] = ingot_f16_to_f32(in[i]);
    }
#endif
}

INLINE void bf16_segment(float *out, const uint16_t *in, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        out[i] = ingot_bf16_to_f32(in[i]);
    }
}

/* out[count] = elements first .. first+count-1 of an array of a floating-point type. */
INLINE void float_segment(float *out, const void *data, ingot_dtype dtype, uint64_t first,
                          uint64_t count) {
    switch (dtype) {
    case INGOT_F16:
        f16_segment(out, (const uint16_t *)data + first, count);
        break;
    case INGOT_BF16:
        bf16_segment(out, (const uint16_t *)data + first, count);
        break;
    default:
        memcpy(out, (const float *)data + first, count * sizeof(float));
        break;
    }
}

#endif
