/* Products of packed weights with few rows of x, compiled once per x86-64 level: the loop of
 * decoding, which is to run at the speed at which memory delivers the codes.
 *
 * Sixteen 32-bit words make a block.  A word holds two halves of 16 bits, a half `per_half` codes:
 * 2, 4 and 8 bits fill words as they lie in memory; of other widths the bytes of a half are put
 * together by a shuffle, and a multiplication moves the last code to its top.  Code k of both
 * halves of all words is then taken by a shift and a mask, and meets integers of 16 bits: the
 * activations, rounded to 16 bits with one scale for each word, in the order in which they are
 * met.  One instruction multiplies the two halves and adds them in 32 bits, exactly.  So a weight
 * costs an eighth of an instruction on AVX2, less than a conversion to floats alone would.
 * spec/decisions/0020 has what the rounding does and where it is used.
 *
 * Zero points leave the loop: sum (q - z) x  =  sum q x - z sum x, integers, where a word belongs
 * to one group.  Only  scale of the group x scale of the word  is left for floats.
 *
 * The order of the sums is that of the lanes: v3 and v4 agree bit for bit (isa_lanes.h). */
#include "kernels/cpu/isa_halves.h"

#define WORDS        16u      /* in a block, one to a lane */
#define GROUP_VALUES 512u     /* scales of a row widened at a time */
#define ROWS         4u       /* of the weights, met together */
#define LARGEST      32767.0f /* of the activations */

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

/* a[2i] b[2i] + a[2i+1] b[2i+1], signed */
INLINE vec_i32 pairs_product(vec_u16 a, vec_u16 b) {
#if defined(__AVX512F__)
    return (vec_i32)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (vec_i32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return (vec_i32)_mm_madd_epi16((__m128i)a, (__m128i)b);
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

/* ---- activations ------------------------------------------------------------------------- */

/* Of each block: integers [per_half][WORDS], pairs of 16 bits, then their sum of each word [WORDS],
 * times -2^(bits-1) where that is the zero point, then the scale of each word [WORDS], a float. */
#define ARRANGED_EXTRA 2u

static uint64_t arranged_count(uint64_t cols, unsigned bits) {
    const uint64_t per_half = codes_per_half(bits), block = 2 * WORDS * per_half;
    return (cols + block - 1) / block * (per_half + ARRANGED_EXTRA) * WORDS;
}

/* The word's scale.  Not finite where a value is not: it then makes the sums so.  Words that are
 * next to nothing become zero, since 1 / scale would overflow. */
INLINE float word_scale(const float *x, unsigned count) {
    uint32_t most = 0;
    for (unsigned i = 0; i < count; i++) {
        uint32_t magnitude;
        memcpy(&magnitude, x + i, sizeof magnitude);
        magnitude &= 0x7fffffffu;
        most = magnitude > most ? magnitude : most;
    }
    float largest;
    memcpy(&largest, &most, sizeof largest);
    return largest < 0x1p-100f ? 0.0f : largest / LARGEST;
}

INLINE void arrange_word(int32_t *out, const float *x, const unsigned per_half, int32_t zero) {
    const float scale = word_scale(x, 2 * per_half);
    const float inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
    uint32_t q[16];
    int32_t sum = 0;
    for (unsigned i = 0; i < 2 * per_half; i++) {
        /* adding 1.5 * 2^23 rounds to an integer, which lies in the low bits */
        const float rounded = x[i] * inverse + 12582912.0f;
        memcpy(&q[i], &rounded, sizeof q[i]);
        sum += (int16_t)q[i];
    }
    for (unsigned k = 0; k < per_half; k++) {
        out[k * WORDS] = (int32_t)((q[k] & 0xffffu) | q[k + per_half] << 16);
    }
    out[per_half * WORDS] = zero * sum;
    memcpy(out + (per_half + 1) * WORDS, &scale, sizeof scale);
}

INLINE void arrange_row(int32_t *out, const float *x, uint64_t cols, const unsigned per_half,
                        int32_t zero) {
    const uint64_t word = 2 * per_half, block = WORDS * word;
    for (uint64_t first = 0; first < cols; first += block) {
        for (unsigned j = 0; j < WORDS; j++) {
            const uint64_t at = first + j * word;
            if (at + word <= cols) {
                arrange_word(out + j, x + at, per_half, zero);
                continue;
            }
            float rest[16] = {0};
            if (at < cols) {
                memcpy(rest, x + at, (cols - at) * sizeof *x);
            }
            arrange_word(out + j, rest, per_half, zero);
        }
        out += (per_half + ARRANGED_EXTRA) * WORDS;
    }
}

static void arrange(void *out, const float *x, const ingot_weight_view *w) {
    const int32_t zero = w->zero_mode == INGOT_ZERO_STORED ? 1 : -(1 << (w->bits - 1));
    switch (codes_per_half(w->bits)) {
    case 1:
        arrange_row(out, x, w->cols, 1, zero);
        break;
    case 2:
        arrange_row(out, x, w->cols, 2, zero);
        break;
    case 4:
        arrange_row(out, x, w->cols, 4, zero);
        break;
    default:
        arrange_row(out, x, w->cols, 8, zero);
        break;
    }
}

/* ---- rows -------------------------------------------------------------------------------- */

/* Scales and negated zero points of consecutive groups of a row; the rest is zero. */
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
            v->zero[g] = -(int32_t)w->zeros[first + g];
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

INLINE vec_i32 integers_load(const int32_t *x) {
    vec_i32 v;
    memcpy(&v, x, sizeof v);
    return v;
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

/* What is computed at once: `rows` rows of the weights with `m` rows of x, constants where this is
 * used, so that all sums live in registers. */
typedef struct tile {
    const uint8_t *codes[ROWS]; /* of the block at hand */
    const int32_t *x;           /* arranged, of the block at hand */
    lanes total[ROWS][INGOT_CPU_DOT_ROWS];
} tile;

/* Adds a block whose groups begin at values[i] + g. */
INLINE void block_product(tile *t, const call *c, const group_values *values, uint64_t g,
                          const unsigned rows, const unsigned m, const unsigned bits,
                          const bool has_zeros) {
    const unsigned per_half = codes_per_half(bits);
    const uint64_t next = rows * c->w->row_stride_bytes;
    words w[ROWS];
    EACH_OF(i, rows) {
        w[i] = words_load(t->codes[i], c->rule, bits);
        __builtin_prefetch(t->codes[i] + next);
    }
    EACH_PART(p) {
        EACH_OF(r, m) {
            const int32_t *x = t->x + r * c->x_stride + p * NATIVE;
            const vec_i32 sums = integers_load(x + per_half * WORDS);
            const vec_f32 scale = (vec_f32)integers_load(x + (per_half + 1) * WORDS);
            vec_i32 sum[ROWS];
            EACH_OF(i, rows) {
                sum[i] = sums;
                if (has_zeros) {
                    sum[i] *= spread_i32(values[i].zero + g, p, &c->spread);
                }
            }
            UNROLLED for (unsigned k = 0; k < per_half; k++) {
                const vec_u16 value = (vec_u16)integers_load(x + k * WORDS);
                EACH_OF(i, rows) {
                    sum[i] += pairs_product(half_codes(w[i].part[p], k, bits), value);
                }
            }
            EACH_OF(i, rows) {
                const vec_f32 both = scale * spread_f32(values[i].scale + g, p, &c->spread);
                t->total[i][r].part[p] += __builtin_convertvector(sum[i], vec_f32) * both;
            }
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

INLINE void tile_product(float *sums, const call *c, uint64_t row, const unsigned rows,
                         const unsigned m, const unsigned bits, const bool has_zeros) {
    const ingot_weight_view *w = c->w;
    const unsigned block_bytes = 4 * quarter_bytes(bits);
    const uint64_t stride = w->row_stride_bytes;
    /* Blocks that can be read as 64 bytes without leaving the matrix. */
    const uint64_t rest = (w->rows - row - (rows - 1)) * stride;
    const uint64_t whole = rest < 64 ? 0 : (rest - 64) / block_bytes + 1;
    group_values values[ROWS];
    uint8_t last[ROWS][64];
    tile t;
    t.x = c->x;
    EACH_OF(i, rows) {
        t.codes[i] = w->codes + (row + i) * stride;
        EACH_OF(r, m) {
            t.total[i][r] = lanes_set(0.0f);
        }
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
        block_product(&t, c, values, g, rows, m, bits, has_zeros);
        EACH_OF(i, rows) {
            t.codes[i] += block_bytes;
        }
        if (++in_group == c->blocks_per_group) {
            in_group = 0;
            g += c->groups_per_block;
        }
    }
    EACH_OF(i, rows) {
        EACH_OF(r, m) {
            sums[i * m + r] = lanes_sum(t.total[i][r]);
        }
    }
}

INLINE void rows_product(float *sums, const call *c, uint64_t row, uint64_t rows, const unsigned m,
                         const unsigned bits, const bool has_zeros) {
    uint64_t i = 0;
    for (; m == 1 && i + ROWS <= rows; i += ROWS) {
        tile_product(sums + i, c, row + i, ROWS, 1, bits, has_zeros);
    }
    for (; i < rows; i++) {
        tile_product(sums + i * m, c, row + i, 1, m, bits, has_zeros);
    }
}

/* One case for each number of rows of x; a single one, which is usual, meets several rows of
 * weights at a time, which then share what is loaded of it. */
#define PRODUCT(bits)                                                                              \
    static void product_##bits(float *sums, const ingot_weight_view *w, uint64_t row,              \
                               uint64_t rows, const int32_t *x, uint64_t stride, unsigned m) {     \
        const call c = call_make(w, x, stride, bits);                                              \
        const bool has_zeros = w->zero_mode == INGOT_ZERO_STORED;                                  \
        if (m == 1 && !has_zeros) {                                                                \
            rows_product(sums, &c, row, rows, 1, bits, false);                                     \
        } else if (m == 1) {                                                                       \
            rows_product(sums, &c, row, rows, 1, bits, true);                                      \
        } else if (m == 2) {                                                                       \
            rows_product(sums, &c, row, rows, 2, bits, has_zeros);                                 \
        } else if (m == 3) {                                                                       \
            rows_product(sums, &c, row, rows, 3, bits, has_zeros);                                 \
        } else {                                                                                   \
            rows_product(sums, &c, row, rows, 4, bits, has_zeros);                                 \
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
