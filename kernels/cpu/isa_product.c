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
 * Where bytes can be multiplied, codes of 2, 4 and 8 bits stay bytes, and an integer of 16 bits is
 * met as two digits of 8: q = 256 high + low, both signed.  Twice the products, each of four codes
 * to a word: half the shifts and masks, and the same sums, for all are exact.
 * spec/decisions/0020 and 0027 have what the rounding does and where it is used.
 *
 * Zero points leave the loop: sum (q - z) x  =  sum q x - z sum x, integers, where a word belongs
 * to one group.  Only  scale of the group x scale of the word  is left for floats.
 *
 * The order of the sums is that of the lanes: v3, v3n, v4 and v4n agree bit for bit
 * (isa_lanes.h). */
#include "kernels/cpu/isa_halves.h"

#define WORDS        16u      /* in a block, one to a lane */
#define GROUP_VALUES 512u     /* scales of a row widened at a time */
#define ROWS         4u       /* of the weights, met together */
#define LARGEST      32639.0f /* of the activations: 127 x 256 + 127, so that digits are bytes */
#define AHEAD_BYTES  16384u   /* how far codes are asked for ahead */

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

typedef struct words {
    vec_u16 part[PARTS];
} words;

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
    return HAS_BYTES && 8 % bits == 0;
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

/* A block of words; at least 64 bytes can be read. */
INLINE words words_load(const uint8_t *codes, vec_rule rule, const unsigned bits) {
    const unsigned quarter = quarter_bytes(bits);
    words r;
    EACH_PART(p) {
        if (quarter == 16) {
            memcpy(&r.part[p], codes + p * sizeof r.part[p], sizeof r.part[p]);
        } else {
            r.part[p] = bytes_shuffle(quarters_load(codes, p, quarter), rule.from) * rule.factor;
        }
    }
    return r;
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

INLINE spread_rule spread_rule_make(unsigned groups_per_block) {
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

INLINE vec_f32 spread_f32(const float *values, unsigned p, const spread_rule *rule) {
    vec_f32 v, out;
    memcpy(&v, values + rule->begin[p], sizeof v);
    SHUFFLE(out, v, rule->from);
    return out;
}

INLINE vec_i32 spread_i32(const int32_t *values, unsigned p, const spread_rule *rule) {
    vec_i32 v, out;
    memcpy(&v, values + rule->begin[p], sizeof v);
    SHUFFLE(out, v, rule->from);
    return out;
}

/* A call: what is the same for all its rows.  Groups fall into blocks as some blocks to a group, or
 * some groups to a block. */
typedef struct call {
    const ingot_weight_view *w;
    const int32_t *x; /* arranged */
    uint64_t x_stride;
    uint64_t blocks, blocks_per_group;
    unsigned groups_per_block;
    vec_rule rule;
    spread_rule spread;
} call;

INLINE call call_make(const ingot_weight_view *w, const int32_t *x, uint64_t x_stride,
                      const unsigned bits) {
    const uint64_t block = (uint64_t)2 * WORDS * codes_per_half(bits);
    call c = {.w = w, .x = x, .x_stride = x_stride, .groups_per_block = 1};
    c.blocks = (w->cols + block - 1) / block;
    c.blocks_per_group = c.blocks;
    if (w->groups_per_row != 1) {
        c.blocks_per_group = w->group < block ? 1 : w->group / block;
        c.groups_per_block = w->group < block ? (unsigned)(block / w->group) : 1;
    }
    c.rule = vec_rule_load(bits);
    c.spread = spread_rule_make(c.groups_per_block);
    return c;
}

/* What is computed at once: `rows` rows of the weights with a row of x, a constant where this is
 * used, so that all sums live in registers. */
typedef struct tile {
    const uint8_t *codes[ROWS]; /* of the block at hand */
    const int32_t *x;           /* arranged, of the block at hand */
    const uint8_t *ahead;       /* codes to be asked for next */
    lanes total[ROWS];
} tile;

/* sum[rows] += part p of the words w[rows] times the integers at x */
INLINE void words_product(vec_i32 *sum, const words *w, const int32_t *x, unsigned p,
                          const unsigned rows, const unsigned bits) {
    const unsigned per_half = codes_per_half(bits);
#if HAS_BYTES
    if (are_bytes(bits)) {
        const unsigned planes = per_half / 2;
        vec_i32 high[ROWS] = {{0}};
        EACH_OF(k, planes) {
            const vec_i32 h = integers_load(x + k * WORDS);
            const vec_i32 l = integers_load(x + (planes + k) * WORDS);
            EACH_OF(i, rows) {
                const vec_u16 codes = byte_codes(w[i].part[p], k, bits);
                high[i] = bytes_product(high[i], codes, h);
                sum[i] = bytes_product(sum[i], codes, l);
            }
        }
        EACH_OF(i, rows) {
            sum[i] += high[i] << 8;
        }
        return;
    }
#endif
    EACH_OF(k, per_half) {
        const vec_u16 value = (vec_u16)integers_load(x + k * WORDS);
        EACH_OF(i, rows) {
            sum[i] = pairs_product(sum[i], half_codes(w[i].part[p], k, bits), value);
        }
    }
}

/* Adds a block whose groups begin at values[i] + g. */
INLINE void block_product(tile *t, const call *c, const group_values *values, uint64_t g,
                          const unsigned rows, const unsigned bits, const bool has_zeros) {
    const unsigned per_half = codes_per_half(bits);
    words w[ROWS];
    EACH_OF(i, rows) {
        w[i] = words_load(t->codes[i], c->rule, bits);
        __builtin_prefetch(t->ahead, 0, 2); /* into the second-level cache */
        t->ahead += 4 * quarter_bytes(bits);
    }
    EACH_PART(p) {
        const int32_t *x = t->x + p * NATIVE;
        const vec_i32 sums = integers_load(x + per_half * WORDS);
        const vec_f32 scale = (vec_f32)integers_load(x + (per_half + 1) * WORDS);
        vec_i32 sum[ROWS];
        EACH_OF(i, rows) {
            sum[i] = sums;
            if (has_zeros) {
                const vec_i32 zero = spread_i32(values[i].zero + g, p, &c->spread);
                sum[i] = pairs_product((vec_i32){0}, (vec_u16)sums, (vec_u16)zero);
            }
        }
        words_product(sum, w, x, p, rows, bits);
        EACH_OF(i, rows) {
            const vec_f32 both = scale * spread_f32(values[i].scale + g, p, &c->spread);
            t->total[i].part[p] += __builtin_convertvector(sum[i], vec_f32) * both;
        }
    }
    t->x += (per_half + ARRANGED_EXTRA) * WORDS;
}

/* Near the end of the matrix: a copy of a block, so that 64 bytes can be read. */
static const uint8_t *copy_last(uint8_t *copy, const ingot_weight_view *w, uint64_t begin) {
    const uint64_t rest = w->rows * w->row_stride_bytes - begin;
    memset(copy, 0, 64);
    memcpy(copy, w->codes + begin, rest < 64 ? rest : 64);
    return copy;
}

/* sums[i] = row `row + i` . x, i < rows */
INLINE void tile_product(float *sums, const call *c, uint64_t row, const int32_t *x,
                         const unsigned rows, const unsigned bits, const bool has_zeros) {
    const ingot_weight_view *w = c->w;
    const unsigned block_bytes = 4 * quarter_bytes(bits);
    const uint64_t stride = w->row_stride_bytes;
    /* Blocks that can be read as 64 bytes without leaving the matrix. */
    const uint64_t rest = (w->rows - row - (rows - 1)) * stride;
    const uint64_t whole = rest < 64 ? 0 : (rest - 64) / block_bytes + 1;
    group_values values[ROWS];
    uint8_t last[ROWS][64];
    tile t;
    t.x = x;
    t.ahead = w->codes + row * stride + AHEAD_BYTES;
    EACH_OF(i, rows) {
        t.codes[i] = w->codes + (row + i) * stride;
        t.total[i] = lanes_set(0.0f);
    }
    uint64_t in_group = 0, g = GROUP_VALUES, first = 0;
    for (uint64_t b = 0; b < c->blocks; b++) {
        if (__builtin_expect(g == GROUP_VALUES, 0)) {
            const uint64_t groups = w->groups_per_row - first;
            EACH_OF(i, rows) {
                load_groups(&values[i], w, (row + i) * w->groups_per_row + first,
                            groups < GROUP_VALUES ? groups : GROUP_VALUES);
            }
            first += GROUP_VALUES;
            g = 0;
        }
        if (__builtin_expect(b >= whole, 0)) {
            EACH_OF(i, rows) {
                t.codes[i] = copy_last(last[i], w, (row + i) * stride + b * block_bytes);
            }
        }
        block_product(&t, c, values, g, rows, bits, has_zeros);
        EACH_OF(i, rows) {
            t.codes[i] += block_bytes;
        }
        if (++in_group == c->blocks_per_group) {
            in_group = 0;
            g += c->groups_per_block;
        }
    }
    if (rows == ROWS) {
        lanes_sum_4(sums, t.total[0], t.total[1], t.total[2], t.total[3]);
    } else {
        sums[0] = lanes_sum(t.total[0]);
    }
}

/* Several rows of weights at a time share what is loaded of a row of x; their codes stay in the
 * first-level cache for the other rows of x. */
INLINE void rows_product(float *sums, const call *c, uint64_t row, uint64_t rows, unsigned m,
                         const unsigned bits, const bool has_zeros) {
    float of_row[ROWS];
    uint64_t i = 0;
    for (; i + ROWS <= rows; i += ROWS) {
        for (unsigned r = 0; r < m; r++) {
            tile_product(of_row, c, row + i, c->x + r * c->x_stride, ROWS, bits, has_zeros);
            for (unsigned k = 0; k < ROWS; k++) {
                sums[(i + k) * m + r] = of_row[k];
            }
        }
    }
    for (; i < rows; i++) {
        for (unsigned r = 0; r < m; r++) {
            tile_product(sums + i * m + r, c, row + i, c->x + r * c->x_stride, 1, bits, has_zeros);
        }
    }
}

#define PRODUCT(bits)                                                                              \
    static void product_##bits(float *sums, const ingot_weight_view *w, uint64_t row,              \
                               uint64_t rows, const int32_t *x, uint64_t stride, unsigned m) {     \
        const call c = call_make(w, x, stride, bits);                                              \
        if (w->zero_mode == INGOT_ZERO_STORED) {                                                   \
            rows_product(sums, &c, row, rows, m, bits, true);                                      \
        } else {                                                                                   \
            rows_product(sums, &c, row, rows, m, bits, false);                                     \
        }                                                                                          \
    }
PRODUCT(2)
PRODUCT(3)
PRODUCT(4)
PRODUCT(5)
PRODUCT(6)
PRODUCT(7)
PRODUCT(8)

static void product(float *sums, const ingot_weight_view *w, uint64_t row, uint64_t rows,
                    const void *arranged, uint64_t stride, unsigned m) {
    static void (*const products[])(float *, const ingot_weight_view *, uint64_t, uint64_t,
                                    const int32_t *, uint64_t, unsigned) = {
        product_2, product_3, product_4, product_5, product_6, product_7, product_8};
    products[w->bits - 2](sums, w, row, rows, arranged, stride, m);
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
