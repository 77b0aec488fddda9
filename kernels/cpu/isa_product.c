/* Products of packed weights with few rows of x, compiled once per x86-64 level and again with the
 * instructions that add products of bytes and of pairs to 32-bit sums (VNNI: v3n, v4n): the loop of
 * decoding, which is to run at the speed at which memory delivers the codes.
 *
 * Sixteen 32-bit words make a block.  A word holds two halves of 16 bits, a half `per_half` codes:
 * 2, 4 and 8 bits fill words as they lie in memory; of other widths the bytes of a half are put
 * together by a shuffle, and a multiplication moves the last code to its top.  Code k of both
 * halves of all words is then taken by a shift and a mask, and meets integers of 16 bits: the
 * activations, rounded to 16 bits with one scale for each word, in the order in which they are
 * met.  One instruction multiplies the two halves and adds them in 32 bits, exactly.
 *
 * Codes of 2 and 4 bits, and of 8 with VNNI, stay bytes, and an integer of 16 bits is met as two
 * digits of 8: q = 256 high + low, both signed.  Twice the products, each of four codes to a word:
 * half the shifts and masks, and the same sums, for all are exact.  Without VNNI the products of a
 * digit fit 16 bits, which two multiplications by 256 and 1 widen; those of 8 bits would not fit.
 * spec/decisions/0020 and 0027 have what the rounding does and where it is used.
 *
 * Zero points leave the loop: sum (q - z) x  =  sum q x - z sum x, integers, where a word belongs
 * to one group.  Only  scale of the group x scale of the word  is left for floats.
 *
 * The order of the sums is that of the lanes: v3, v3n, v4 and v4n agree bit for bit
 * (isa_lanes.h). */
#include "common/sizes.h"
#include "kernels/cpu/isa_halves.h"

#define WORDS        16u      /* in a block, one to a lane */
#define GROUP_VALUES 128u     /* scales of a row widened at a time */
#define LARGEST      32639.0f /* of the activations: 127 x 256 + 127, so that digits are bytes */
#define AHEAD_BYTES  16384u   /* how far codes are asked for ahead */

/* Rows of the weights that are met together, so that all sums stay in registers, of which there are
 * 32 with AVX512 and 16 without; and rows whose scales are widened before they are met. */
#if defined(__AVX512F__)
#define ROWS 4u
#else
#define ROWS 2u
#endif
#define BAND 8u

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define HAS_BYTES 1
#else
#define HAS_BYTES 0
#endif

/* Unrolled completely, but not under sanitizers (clang builds the fuzz targets alone): what they
 * add to every access would take minutes. */
#if defined(__SANITIZE_ADDRESS__) || defined(__clang__)
#define UNROLLED
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif
#define EACH_OF(i, count) UNROLLED for (unsigned i = 0; i < (count); i++)

typedef uint16_t vec_u16 __attribute__((vector_size(4 * NATIVE)));

/* ---- words ------------------------------------------------------------------------------- */

INLINE unsigned codes_per_half(unsigned bits) {
    return bits == 7 ? 1 : bits == 5 || bits == 6 ? 2 : bits == 2 ? 8 : bits == 8 ? 2 : 4;
}

/* Bytes that the codes of a quarter of a block take. */
INLINE unsigned quarter_bytes(unsigned bits) {
    return codes_per_half(bits) * bits;
}

/* What the words of a width need, the same for every 128 bits: where the bytes of a half come
 * from, and the power of two that moves its codes to the top. */
typedef struct word_rule {
    uint8_t from[16];
    uint16_t factor[8];
} word_rule;

static const word_rule word_rules[9] = {
    [3] = {{0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10, 10, 11}, {16, 1, 16, 1, 16, 1, 16, 1}},
    [5] = {{0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 6, 7, 7, 8, 8, 9}, {64, 16, 4, 1, 64, 16, 4, 1}},
    [6] = {{0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 10, 10, 11}, {16, 1, 16, 1, 16, 1, 16, 1}},
    [7] = {{0, 1, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7}, {512, 4, 8, 16, 32, 64, 128, 256}},
};

/* The rule in registers. */
typedef struct vec_rule {
    vec_u16 from, factor;
} vec_rule;

INLINE vec_rule vec_rule_load(unsigned bits) {
    const word_rule *rule = &word_rules[bits];
    vec_rule r;
    for (unsigned i = 0; i < NATIVE / 4; i++) {
        memcpy((char *)&r.from + 16 * i, rule->from, 16);
        memcpy((char *)&r.factor + 16 * i, rule->factor, 16);
    }
    return r;
}

/* Part p of a block: bytes of its quarters, each at the start of 16. */
INLINE vec_u16 quarters_load(const uint8_t *codes, unsigned p, const unsigned quarter) {
    const uint8_t *at = codes + p * (NATIVE / 4) * quarter;
#if defined(__AVX512F__)
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const void *)at));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(at + quarter)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(at + 2 * quarter)), 2);
    return (vec_u16)_mm512_inserti32x4(v, _mm_loadu_si128((const void *)(at + 3 * quarter)), 3);
#elif defined(__AVX2__)
    const __m256i v = _mm256_castsi128_si256(_mm_loadu_si128((const void *)at));
    return (vec_u16)_mm256_inserti128_si256(v, _mm_loadu_si128((const void *)(at + quarter)), 1);
#else
    return (vec_u16)_mm_loadu_si128((const void *)at);
#endif
}

INLINE vec_u16 bytes_shuffle(vec_u16 v, vec_u16 from) {
#if defined(__AVX512F__)
    return (vec_u16)_mm512_shuffle_epi8((__m512i)v, (__m512i)from);
#elif defined(__AVX2__)
    return (vec_u16)_mm256_shuffle_epi8((__m256i)v, (__m256i)from);
#else
    return (vec_u16)_mm_shuffle_epi8((__m128i)v, (__m128i)from);
#endif
}

/* sum[i] + a[2i] b[2i] + a[2i+1] b[2i+1], signed */
INLINE vec_i32 pairs_product(vec_i32 sum, vec_u16 a, vec_u16 b) {
#if defined(__AVX512VNNI__)
    return (vec_i32)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__)
    return (vec_i32)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#elif defined(__AVX512F__)
    return sum + (vec_i32)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return sum + (vec_i32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return sum + (vec_i32)_mm_madd_epi16((__m128i)a, (__m128i)b);
#endif
}

/* Whether codes of this width are met as bytes, and activations as digits. */
INLINE bool are_bytes(unsigned bits) {
    return bits == 2 || bits == 4 || (HAS_BYTES && bits == 8);
}

#if HAS_BYTES
/* sum[i] + the sum of a[4i..4i+3] b[4i..4i+3], a unsigned, b signed */
INLINE vec_i32 bytes_product(vec_i32 sum, vec_u16 a, vec_i32 b) {
#if defined(__AVX512VNNI__)
    return (vec_i32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#else
    return (vec_i32)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#endif
}
#else
/* sum[i] + a[2i] b[2i] + a[2i+1] b[2i+1] in 16 bits, a bytes without a sign, b with one.  The sums
 * of all planes of a word are at most 2 planes (2^bits - 1) 128, 7680 for 4 bits. */
INLINE vec_u16 bytes_product(vec_u16 sum, vec_u16 a, vec_i32 b) {
#if defined(__AVX512F__)
    return sum + (vec_u16)_mm512_maddubs_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return sum + (vec_u16)_mm256_maddubs_epi16((__m256i)a, (__m256i)b);
#else
    return sum + (vec_u16)_mm_maddubs_epi16((__m128i)a, (__m128i)b);
#endif
}
#endif

INLINE vec_i32 vec_max_i32(vec_i32 a, vec_i32 b) {
#if defined(__AVX512F__)
    return (vec_i32)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (vec_i32)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    return (vec_i32)_mm_max_epi32((__m128i)a, (__m128i)b);
#endif
}

/* Part p of a block of words; at least 64 bytes of the block can be read. */
INLINE vec_u16 words_load(const uint8_t *codes, unsigned p, vec_rule rule, const unsigned bits) {
    const unsigned quarter = quarter_bytes(bits);
    vec_u16 w;
    if (quarter == 16) {
        memcpy(&w, codes + p * sizeof w, sizeof w);
    } else {
        w = bytes_shuffle(quarters_load(codes, p, quarter), rule.from) * rule.factor;
    }
    return w;
}

/* Code k of both halves of the words. */
INLINE vec_u16 half_codes(vec_u16 w, unsigned k, const unsigned bits) {
    const unsigned last = codes_per_half(bits) - 1;
    const unsigned at = 16 - bits * (last + 1 - k);
    w = w >> (uint16_t)at;
    return k == last ? w : w & (uint16_t)((1u << bits) - 1u);
}

/* Code k of every byte. */
INLINE vec_u16 byte_codes(vec_u16 w, unsigned k, const unsigned bits) {
    const uint16_t mask = (uint16_t)(((1u << bits) - 1u) * 0x0101u);
    return bits == 8 ? w : (w >> (uint16_t)(bits * k)) & mask;
}

/* ---- activations ------------------------------------------------------------------------- */

/* Of each block: integers [per_half][WORDS], pairs of 16 bits or digits (first all high ones), then
 * what the zero point makes of each word [WORDS]: the sum of its integers times -2^(bits-1) where
 * that is the zero point, else the sum as a pair that meets zero_pair, then the scale of each word
 * [WORDS], a float. */
#define ARRANGED_EXTRA 2u

static uint64_t arranged_count(uint64_t cols, unsigned bits) {
    const uint64_t per_half = codes_per_half(bits), block = 2 * WORDS * per_half;
    return (cols + block - 1) / block * (per_half + ARRANGED_EXTRA) * WORDS;
}

/* A sum of words is 128 a + b; with a in the upper half it meets a zero point as (-128 z, -z). */
#define SUM_SHIFT 7

INLINE vec_i32 sum_pair(vec_i32 sum) {
    return sum >> SUM_SHIFT << 16 | (sum & ((1 << SUM_SHIFT) - 1));
}

INLINE int32_t zero_pair(uint8_t zero) {
    const uint32_t minus = (uint32_t) - (int32_t)zero;
    return (int32_t)(minus << (16 + SUM_SHIFT) | (minus & 0xffffu));
}

INLINE vec_i32 integers_load(const int32_t *x) {
    vec_i32 v;
    memcpy(&v, x, sizeof v);
    return v;
}

INLINE void integers_store(int32_t *x, vec_i32 v) {
    memcpy(x, &v, sizeof v);
}

/* The scales of words: not finite where a value is not: they then make the sums so.  Words that are
 * next to nothing become zero, since 1 / scale would overflow.  value[i]: value i of every word. */
INLINE vec_f32 word_scales(const vec_i32 *value, const unsigned count) {
    vec_i32 most = {0};
    EACH_OF(i, count) {
        most = vec_max_i32(most, value[i] & 0x7fffffff);
    }
    const vec_f32 largest = (vec_f32)most;
    return (vec_f32)((vec_i32)(largest / LARGEST) & ~(vec_i32)(largest < 0x1p-100f));
}

/* A register of words of a block, of which t[i] has value i of every word. */
INLINE void arrange_words(int32_t *out, const float (*t)[WORDS], const unsigned bits,
                          const bool has_zeros) {
    const unsigned per_half = codes_per_half(bits), planes = per_half / 2;
    vec_i32 q[16], sum = {0};
    EACH_OF(i, 2 * per_half) {
        memcpy(&q[i], t[i], sizeof q[i]);
    }
    const vec_f32 scale = word_scales(q, 2 * per_half);
    const vec_f32 inverse = (vec_f32)((vec_i32)(1.0f / scale) & ~(vec_i32)(scale == 0.0f));
    EACH_OF(i, 2 * per_half) {
        /* adding 1.5 * 2^23 rounds to an integer, which lies in the low bits */
        q[i] = (vec_i32)((vec_f32)q[i] * inverse + 12582912.0f) << 16 >> 16;
        sum += q[i];
    }
    for (unsigned k = 0; are_bytes(bits) && k < planes; k++) {
        vec_i32 high = {0}, low = {0};
        EACH_OF(b, 4) {
            const vec_i32 v = q[b * planes + k];
            high |= ((v + 128) >> 8 & 0xff) << (int32_t)(8 * b);
            low |= (v & 0xff) << (int32_t)(8 * b);
        }
        integers_store(out + k * WORDS, high);
        integers_store(out + (planes + k) * WORDS, low);
    }
    for (unsigned k = 0; !are_bytes(bits) && k < per_half; k++) {
        integers_store(out + k * WORDS, (q[k] & 0xffff) | q[k + per_half] << 16);
    }
    sum = has_zeros ? sum_pair(sum) : sum * -(1 << (bits - 1));
    integers_store(out + per_half * WORDS, sum);
    integers_store(out + (per_half + 1) * WORDS, (vec_i32)scale);
}

INLINE void arrange_row(int32_t *out, const float *x, uint64_t cols, const unsigned bits,
                        const bool has_zeros) {
    const unsigned per_half = codes_per_half(bits), word = 2 * per_half, block = WORDS * word;
    float rest[WORDS * 16];
    float t[16][WORDS];
    for (uint64_t first = 0; first < cols; first += block) {
        const float *from = x + first;
        if (cols - first < block) {
            memset(rest, 0, sizeof rest);
            memcpy(rest, from, (cols - first) * sizeof *x);
            from = rest;
        }
        for (unsigned j = 0; j < WORDS; j++) {
            EACH_OF(i, word) {
                t[i][j] = from[j * word + i];
            }
        }
        EACH_PART(p) {
            arrange_words(out + p * NATIVE, (const float(*)[WORDS])(t[0] + p * NATIVE), bits,
                          has_zeros);
        }
        out += (per_half + ARRANGED_EXTRA) * WORDS;
    }
}

static void arrange(void *out, const float *x, const ingot_weight_view *w) {
    const bool has_zeros = w->zero_mode == INGOT_ZERO_STORED;
    switch (w->bits) {
#define ARRANGE(bits)                                                                              \
    case bits:                                                                                     \
        arrange_row(out, x, w->cols, bits, has_zeros);                                             \
        break;
        ARRANGE(2)
        ARRANGE(3)
        ARRANGE(4)
        ARRANGE(5)
        ARRANGE(6)
        ARRANGE(7)
        ARRANGE(8)
    default:
        break;
    }
}

/* ---- rows -------------------------------------------------------------------------------- */

/* Scales of consecutive groups of a row, and zero_pair of their zero points; the rest is zero. */
typedef struct group_values {
    float scale[GROUP_VALUES + WORDS];
    int32_t zero[GROUP_VALUES + WORDS];
} group_values;

INLINE void load_groups(group_values *v, const ingot_weight_view *w, uint64_t first,
                        uint64_t count) {
    if (w->scale_dtype == INGOT_F16) {
        f16_segment(v->scale, (const uint16_t *)w->scales + first, count);
    } else {
        float_segment(v->scale, w->scales, w->scale_dtype, first, count);
    }
    memset(v->scale + count, 0, WORDS * sizeof *v->scale);
    if (w->zero_mode == INGOT_ZERO_STORED) {
        for (uint64_t g = 0; g < count; g++) {
            v->zero[g] = zero_pair(w->zeros[first + g]);
        }
        memset(v->zero + count, 0, WORDS * sizeof *v->zero);
    }
}

/* Which of the values of a block's groups a lane takes, and where those of a part begin. */
typedef struct spread_rule {
    vec_i32 from;
    unsigned begin[PARTS];
} spread_rule;

static spread_rule spread_rule_make(unsigned groups_per_block) {
    static const int32_t from[5][WORDS] = {
        {0},
        {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1},
        {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3},
        {0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7},
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    };
    spread_rule r;
    memcpy(&r.from, from[__builtin_ctz(groups_per_block)], sizeof r.from);
    EACH_PART(p) {
        r.begin[p] = p * groups_per_block * NATIVE / WORDS;
    }
    return r;
}

/* The builtin is GCC's; other compilers, with which the readers are fuzzed, go lane by lane. */
#if defined(__clang__)
#define SHUFFLE(out, v, from)                                                                      \
    do {                                                                                           \
        for (unsigned lane_ = 0; lane_ < sizeof(v) / sizeof((v)[0]); lane_++) {                    \
            (out)[lane_] = (v)[(from)[lane_]];                                                     \
        }                                                                                          \
    } while (0)
#else
#define SHUFFLE(out, v, from) ((out) = __builtin_shuffle(v, from))
#endif

INLINE vec_f32 spread_f32(const float *values, unsigned p, const spread_rule *rule,
                          const bool one_group) {
    vec_f32 v, out;
    if (one_group) { /* of integers: 0 + x is not always x in floats, and would be computed */
        int32_t value;
        memcpy(&value, values, sizeof value);
        return (vec_f32)((vec_i32){0} + value);
    }
    memcpy(&v, values + rule->begin[p], sizeof v);
    SHUFFLE(out, v, rule->from);
    return out;
}

INLINE vec_i32 spread_i32(const int32_t *values, unsigned p, const spread_rule *rule,
                          const bool one_group) {
    vec_i32 v, out;
    if (one_group) {
        return (vec_i32){0} + *values;
    }
    memcpy(&v, values + rule->begin[p], sizeof v);
    SHUFFLE(out, v, rule->from);
    return out;
}

struct band;
struct call;
typedef void run_function(struct band *t, const struct call *c, const uint8_t *codes,
                          uint64_t stride, uint64_t first, uint64_t count, unsigned row,
                          unsigned tiles);

/* A call: what is the same for all its rows.  Groups fall into blocks as some blocks to a group, or
 * some groups to a block. */
typedef struct call {
    const ingot_weight_view *w;
    run_function *const *run; /* tiles of one row, of ROWS rows */
    uint64_t blocks, blocks_per_group, groups_per_block;
    uint64_t chunk; /* blocks whose groups are loaded at once */
    uint64_t block_bytes, block_arranged;
    vec_rule rule;
    spread_rule spread;
} call;

/* Rows of the weights with a row of x.  Blocks come in chunks, as many as have groups in `values`;
 * x and what is to be asked for next are those of the first block of the chunk. */
typedef struct band {
    const uint8_t *ahead;
    const int32_t *x; /* arranged */
    lanes total[BAND];
    group_values values[BAND];
} band;

/* sum[rows] += the words w[rows] times the digits at x */
INLINE void digits_product(vec_i32 *sum, const vec_u16 *w, const int32_t *x, const unsigned rows,
                           const unsigned bits) {
    const unsigned planes = codes_per_half(bits) / 2;
#if HAS_BYTES
    vec_i32 high[ROWS] = {{0}};
    EACH_OF(k, planes) {
        const vec_i32 h = integers_load(x + k * WORDS);
        const vec_i32 l = integers_load(x + (planes + k) * WORDS);
        EACH_OF(i, rows) {
            const vec_u16 codes = byte_codes(w[i], k, bits);
            high[i] = bytes_product(high[i], codes, h);
            sum[i] = bytes_product(sum[i], codes, l);
        }
    }
    EACH_OF(i, rows) {
        sum[i] += high[i] << 8;
    }
#else
    const vec_u16 ones = (vec_u16){0} + 1, shifts = (vec_u16){0} + 256;
    EACH_OF(i, rows) {
        vec_u16 high = {0}, low = {0};
        EACH_OF(k, planes) {
            const vec_u16 codes = byte_codes(w[i], k, bits);
            high = bytes_product(high, codes, integers_load(x + k * WORDS));
            low = bytes_product(low, codes, integers_load(x + (planes + k) * WORDS));
        }
        sum[i] = pairs_product(pairs_product(sum[i], high, shifts), low, ones);
    }
#endif
}

/* sum[rows] += the words w[rows] times the integers at x */
INLINE void words_product(vec_i32 *sum, const vec_u16 *w, const int32_t *x, const unsigned rows,
                          const unsigned bits) {
    const unsigned per_half = codes_per_half(bits);
    if (are_bytes(bits)) {
        digits_product(sum, w, x, rows, bits);
        return;
    }
    EACH_OF(k, per_half) {
        const vec_u16 value = (vec_u16)integers_load(x + k * WORDS);
        EACH_OF(i, rows) {
            sum[i] = pairs_product(sum[i], half_codes(w[i], k, bits), value);
        }
    }
}

/* A tile: adds `count` blocks of a chunk from block `first` on to the totals of `rows` rows, a
 * constant where this is used, so that they live in registers; codes of a row begin `stride` bytes
 * behind those of the one before. */
INLINE void tile_product(lanes *totals, const group_values *values, const call *c,
                         const uint8_t *codes, uint64_t stride, const uint8_t *ahead,
                         const int32_t *x, uint64_t first, uint64_t count, const unsigned rows,
                         const unsigned bits, const bool has_zeros, const bool one_group) {
    const unsigned per_half = codes_per_half(bits), block_bytes = 4 * quarter_bytes(bits);
    const uint64_t blocks_per_group = c->blocks_per_group, groups_per_block = c->groups_per_block;
    const vec_rule rule = c->rule;
    const spread_rule spread = c->spread;
    uint64_t g = first * groups_per_block, in_group = 0;
    if (one_group && first != 0) {
        g = first / blocks_per_group;
        in_group = first % blocks_per_group;
    }
    lanes total[ROWS];
    EACH_OF(i, rows) {
        total[i] = totals[i];
    }
    for (const uint8_t *end = codes + count * block_bytes; codes != end; codes += block_bytes) {
        EACH_PART(p) {
            const vec_i32 sums = integers_load(x + p * NATIVE + per_half * WORDS);
            const vec_f32 scale = (vec_f32)integers_load(x + p * NATIVE + (per_half + 1) * WORDS);
            vec_u16 w[ROWS];
            vec_i32 sum[ROWS];
            EACH_OF(i, rows) {
                w[i] = words_load(codes + i * stride, p, rule, bits);
                sum[i] = sums;
                if (has_zeros) {
                    const vec_i32 zero = spread_i32(values[i].zero + g, p, &spread, one_group);
                    sum[i] = pairs_product((vec_i32){0}, (vec_u16)sums, (vec_u16)zero);
                }
            }
            words_product(sum, w, x + p * NATIVE, rows, bits);
            EACH_OF(i, rows) {
                const vec_f32 both = scale * spread_f32(values[i].scale + g, p, &spread, one_group);
                total[i].part[p] += __builtin_convertvector(sum[i], vec_f32) * both;
            }
        }
        /* Into the second-level cache, and behind the loads of the block, which are waited for. */
        EACH_OF(i, rows) {
            __builtin_prefetch(ahead + i * block_bytes, 0, 2);
        }
        ahead += rows * block_bytes;
        x += (per_half + ARRANGED_EXTRA) * WORDS;
        if (!one_group) {
            g += groups_per_block;
        } else if (++in_group == blocks_per_group) {
            in_group = 0;
            g++;
        }
    }
    EACH_OF(i, rows) {
        totals[i] = total[i];
    }
}

/* Tiles of a band from its row `row` on.  Nothing is called from here, so that compilers keep
 * everything in registers, hence functions of their own. */
INLINE void tiles_product(band *t, const call *c, const uint8_t *codes, uint64_t stride,
                          uint64_t first, uint64_t count, unsigned row, unsigned tiles,
                          const unsigned rows, const unsigned bits, const bool has_zeros,
                          const bool one_group) {
    const uint64_t block_bytes = (uint64_t)4 * quarter_bytes(bits);
    const uint8_t *ahead = t->ahead + row * stride + first * rows * block_bytes;
    const int32_t *x = t->x + first * c->block_arranged;
    for (unsigned end = row + tiles * rows; row != end; row += rows) {
        tile_product(t->total + row, t->values + row, c, codes, stride, ahead, x, first, count,
                     rows, bits, has_zeros, one_group);
        codes += rows * stride;
        ahead += rows * stride;
    }
}

/* tiles_product with its constants. */
#define RUN(bits, kind, rows, has_zeros)                                                           \
    static __attribute__((noinline)) void run_##bits##_##kind(                                     \
        band *t, const call *c, const uint8_t *codes, uint64_t stride, uint64_t first,             \
        uint64_t count, unsigned row, unsigned tiles) {                                            \
        if (c->groups_per_block == 1) {                                                            \
            tiles_product(t, c, codes, stride, first, count, row, tiles, rows, bits, has_zeros,    \
                          true);                                                                   \
        } else {                                                                                   \
            tiles_product(t, c, codes, stride, first, count, row, tiles, rows, bits, has_zeros,    \
                          false);                                                                  \
        }                                                                                          \
    }
#define RUNS(bits)                                                                                 \
    RUN(bits, row, 1, false)                                                                       \
    RUN(bits, rows, ROWS, false)                                                                   \
    RUN(bits, row_zeros, 1, true)                                                                  \
    RUN(bits, rows_zeros, ROWS, true)
RUNS(2)
RUNS(3)
RUNS(4)
RUNS(5)
RUNS(6)
RUNS(7)
RUNS(8)

/* [bits - 2][whether zero points are stored][whether tiles have ROWS rows, not one] */
#define RUN_ENTRY(bits)                                                                            \
    {                                                                                              \
        {run_##bits##_row, run_##bits##_rows}, {                                                   \
            run_##bits##_row_zeros, run_##bits##_rows_zeros                                        \
        }                                                                                          \
    }
static run_function *const run_functions[7][2][2] = {
    RUN_ENTRY(2), RUN_ENTRY(3), RUN_ENTRY(4), RUN_ENTRY(5),
    RUN_ENTRY(6), RUN_ENTRY(7), RUN_ENTRY(8),
};

static call call_make(const ingot_weight_view *w) {
    const unsigned per_half = codes_per_half(w->bits);
    const uint64_t block = (uint64_t)2 * WORDS * per_half;
    call c = {.w = w, .groups_per_block = 1};
    c.run = run_functions[w->bits - 2][w->zero_mode == INGOT_ZERO_STORED];
    c.blocks = (w->cols + block - 1) / block;
    c.blocks_per_group = c.blocks;
    if (w->groups_per_row != 1) {
        c.blocks_per_group = w->group < block ? 1 : w->group / block;
        c.groups_per_block = w->group < block ? block / w->group : 1;
    }
    c.chunk = GROUP_VALUES / c.groups_per_block * c.blocks_per_group;
    c.block_bytes = (uint64_t)4 * quarter_bytes(w->bits);
    c.block_arranged = (per_half + ARRANGED_EXTRA) * WORDS;
    c.rule = vec_rule_load(w->bits);
    c.spread = spread_rule_make((unsigned)c.groups_per_block);
    return c;
}

/* Blocks of row `row` of a band that cannot all be read as 64 bytes without leaving the matrix, of
 * whose codes `rest` bytes are left. */
static void last_product(band *t, const call *c, const uint8_t *codes, uint64_t rest,
                         uint64_t count, unsigned row) {
    const uint64_t whole = rest < 64 ? 0 : (rest - 64) / c->block_bytes + 1;
    if (whole != 0) {
        c->run[0](t, c, codes, 0, 0, whole, row, 1);
    }
    for (uint64_t b = whole; b < count; b++) {
        const uint64_t at = b * c->block_bytes;
        uint8_t last[64] = {0};
        memcpy(last, codes + at, rest - at < 64 ? rest - at : 64);
        c->run[0](t, c, last, 0, b, 1, row, 1);
    }
}

/* A chunk of `count` blocks for the rows row .. row+rows-1, of which block `first` is the first. */
static void chunk_product(band *t, const call *c, uint64_t row, unsigned rows, uint64_t first,
                          uint64_t count) {
    const ingot_weight_view *w = c->w;
    const uint64_t stride = w->row_stride_bytes;
    const uint8_t *codes = w->codes + row * stride + first * c->block_bytes;
    const uint8_t *end = w->codes + w->rows * stride;
    /* Rows of which all blocks can be read as 64 bytes without leaving the matrix. */
    const uint64_t needed = (count - 1) * c->block_bytes + 64;
    unsigned whole = rows;
    while (whole != 0 && (uint64_t)(end - codes) < (whole - 1) * stride + needed) {
        whole--;
    }
    const unsigned tiled = whole / ROWS * ROWS;
    c->run[1](t, c, codes, stride, 0, count, 0, tiled / ROWS);
    c->run[0](t, c, codes + tiled * stride, stride, 0, count, tiled, whole - tiled);
    for (unsigned i = whole; i < rows; i++) {
        const uint8_t *at = codes + i * stride;
        last_product(t, c, at, (uint64_t)(end - at), count, i);
    }
}

/* sums[i * m] = row `row + i` . x, i < rows <= BAND */
static void band_product(float *sums, const call *c, uint64_t row, unsigned rows, const int32_t *x,
                         unsigned m) {
    const ingot_weight_view *w = c->w;
    band t;
    EACH_OF(i, BAND) {
        t.total[i] = lanes_set(0.0f);
    }
    uint64_t group = 0;
    for (uint64_t b = 0; b < c->blocks; b += c->chunk) {
        const uint64_t groups = ingot_min_u64(w->groups_per_row - group, GROUP_VALUES);
        for (unsigned i = 0; i < rows; i++) {
            load_groups(&t.values[i], w, (row + i) * w->groups_per_row + group, groups);
        }
        t.x = x + b * c->block_arranged;
        t.ahead = w->codes + row * w->row_stride_bytes + b * ROWS * c->block_bytes + AHEAD_BYTES;
        chunk_product(&t, c, row, rows, b, ingot_min_u64(c->blocks - b, c->chunk));
        group += GROUP_VALUES;
    }
    float of_row[BAND];
    for (unsigned i = 0; i < BAND; i += 4) {
        lanes_sum_4(of_row + i, t.total[i], t.total[i + 1], t.total[i + 2], t.total[i + 3]);
    }
    for (unsigned i = 0; i < rows; i++) {
        sums[i * m] = of_row[i];
    }
}

/* Several rows of weights at a time share what is loaded of a row of x; their codes stay in the
 * first-level cache for the other rows of x. */
static void product(float *sums, const ingot_weight_view *w, uint64_t row, uint64_t rows,
                    const void *arranged, uint64_t stride, unsigned m) {
    const call c = call_make(w);
    for (uint64_t i = 0; i < rows; i += BAND) {
        const unsigned count = (unsigned)ingot_min_u64(rows - i, BAND);
        for (unsigned r = 0; r < m; r++) {
            band_product(sums + i * m + r, &c, row + i, count,
                         (const int32_t *)arranged + r * stride, m);
        }
    }
}

static unsigned word_codes(unsigned bits) {
    return 2 * codes_per_half(bits);
}

const ingot_cpu_product_ops ISA_NAME(ingot_cpu_product_) = {
    .word_codes = word_codes,
    .arranged_count = arranged_count,
    .arrange = arrange,
    .rows = product,
};
