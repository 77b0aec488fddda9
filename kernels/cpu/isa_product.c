/* Products of packed weights with few rows of x, compiled once per x86-64 level: the loop of
 * decoding, which is to run at the speed at which memory delivers the codes.
 *
 * A 32-bit word holds 32/b codes (b = 2, 4 or 8), and sixteen words make a block.  Code k of all
 * sixteen words is taken at once by a mask without a shift, which leaves it multiplied by 2^(b k),
 * k counted from the middle of the word for its upper half; the activations it meets were divided
 * by as much beforehand (exact, both are powers of two) and laid out in this order, once per call.
 * So a weight costs a mask, a conversion and a multiply-add, each a sixteenth of an instruction or
 * an eighth.  Zero points leave the loop: sum s (q - z) x  =  sum over words of s (sum q x - z sum
 * x), where a word belongs to one group, and sum x of each word lies behind the activations.
 *
 * The order of the sums is that of the lanes: v3 and v4 agree bit for bit (isa_lanes.h). */
#include "kernels/cpu/isa_halves.h"

#define WORDS        16u                            /* in a block, one to a lane */
#define GROUP_VALUES INGOT_CPU_PRODUCT_GROUP_VALUES /* scales of a row widened at a time */
#define ROWS         INGOT_CPU_PRODUCT_ROWS

/* Unrolled completely, but not under sanitizers (clang builds the fuzz targets alone): what they
 * add to every access would take minutes. */
#if defined(__SANITIZE_ADDRESS__) || defined(__clang__)
#define UNROLLED
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif
#define EACH_OF(i, count) UNROLLED for (unsigned i = 0; i < (count); i++)

typedef struct words {
    vec_u32 part[PARTS];
} words;

/* Sixteen words of a row that has `rest` bytes left; behind its end they are zero. */
INLINE words words_load(const uint8_t *codes, uint64_t rest) {
    words r;
    if (rest >= sizeof r) {
        EACH_PART(p) {
            memcpy(&r.part[p], codes + p * sizeof r.part[p], sizeof r.part[p]);
        }
        return r;
    }
    uint8_t buffer[sizeof r] = {0};
    memcpy(buffer, codes, rest);
    EACH_PART(p) {
        memcpy(&r.part[p], buffer + p * sizeof r.part[p], sizeof r.part[p]);
    }
    return r;
}

/* Codes k of the words, times 2^(bits (k mod per_word/2)).  The upper half is shifted down once:
 * so half as many masks are needed, and integers stay positive, since they are converted as signed
 * ones. */
INLINE lanes words_codes(words w, unsigned k, const unsigned bits) {
    const unsigned half = 16 / bits;
    const uint32_t mask = ((1u << bits) - 1u) << (bits * (k % half));
    lanes r;
    EACH_PART(p) {
        const vec_u32 v = k < half ? w.part[p] : w.part[p] >> 16;
        r.part[p] = __builtin_convertvector((vec_i32)(v & mask), vec_f32);
    }
    return r;
}

/* ---- activations ------------------------------------------------------------------------- */

static uint64_t arranged_count(uint64_t cols, unsigned bits) {
    const uint64_t per_word = 32 / bits, block = WORDS * per_word;
    return (cols + block - 1) / block * (per_word + 1) * WORDS;
}

static void arrange(float *out, const float *x, uint64_t cols, unsigned bits) {
    const unsigned per_word = 32 / bits;
    const uint64_t block = (uint64_t)WORDS * per_word;
    for (uint64_t first = 0; first < cols; first += block) {
        float *sums = out + per_word * WORDS;
        for (unsigned j = 0; j < WORDS; j++) {
            const uint64_t at = first + (uint64_t)j * per_word;
            sums[j] = 0.0f;
            for (unsigned k = 0; k < per_word; k++) {
                const float value = at + k < cols ? x[at + k] : 0.0f;
                const unsigned power = bits * (k % (per_word / 2));
                out[k * WORDS + j] = value / (float)(1u << power);
                sums[j] += value;
            }
        }
        out += (per_word + 1) * WORDS;
    }
}

/* ---- rows -------------------------------------------------------------------------------- */

/* Scales and negated zero points of consecutive groups of a row; the rest is zero. */
typedef struct group_values {
    float scale[GROUP_VALUES], zero[GROUP_VALUES];
} group_values;

static void load_groups(group_values *v, const ingot_weight_view *w, uint64_t first,
                        uint64_t count) {
    float_segment(v->scale, w->scales, w->scale_dtype, first, count);
    for (uint64_t g = 0; g < count; g++) {
        v->zero[g] = w->zero_mode == INGOT_ZERO_STORED ? -(float)w->zeros[first + g]
                                                       : -(float)(1u << (w->bits - 1u));
    }
    for (uint64_t g = count; g < GROUP_VALUES && g < count + WORDS; g++) {
        v->scale[g] = v->zero[g] = 0.0f;
    }
}

/* Values of the groups that the sixteen words of a block belong to. */
INLINE lanes spread(const float *values, uint64_t groups_per_block) {
    if (groups_per_block == 1) {
        return lanes_set(values[0]);
    }
    float v[LANES];
    for (unsigned i = 0; i < WORDS; i++) {
        v[i] = values[i * groups_per_block / WORDS];
    }
    return lanes_load(v);
}

/* What is computed at once: `rows` rows of the weights with `m` rows of x, constants where this is
 * used, so that all sums live in registers. */
typedef struct tile {
    const uint8_t *codes[ROWS];
    uint64_t stride; /* of codes: bytes of a row */
    const float *x;  /* arranged, of the block at hand */
    uint64_t x_stride;
    lanes total[ROWS][INGOT_CPU_DOT_ROWS];
} tile;

/* Adds block `b` of the rows. */
INLINE void block_product(tile *t, uint64_t b, const lanes *scale, const lanes *zero,
                          const unsigned rows, const unsigned m, const unsigned bits) {
    const unsigned per_word = 32 / bits;
    const uint64_t at = b * sizeof(words);
    words w[ROWS];
    lanes sum[ROWS][INGOT_CPU_DOT_ROWS];
    EACH_OF(i, rows) {
        w[i] = words_load(t->codes[i] + at, t->stride - at);
        __builtin_prefetch(t->codes[i] + at + rows * t->stride);
        EACH_OF(r, m) {
            sum[i][r] = lanes_mul(zero[i], lanes_load(t->x + r * t->x_stride + per_word * WORDS));
        }
    }
    UNROLLED for (unsigned k = 0; k < per_word; k++) {
        lanes code[ROWS];
        EACH_OF(i, rows) {
            code[i] = words_codes(w[i], k, bits);
        }
        EACH_OF(r, m) {
            const lanes value = lanes_load(t->x + r * t->x_stride + k * WORDS);
            EACH_OF(i, rows) {
                sum[i][r] = lanes_fma(code[i], value, sum[i][r]);
            }
        }
    }
    EACH_OF(i, rows) {
        EACH_OF(r, m) {
            t->total[i][r] = lanes_fma(scale[i], sum[i][r], t->total[i][r]);
        }
    }
    t->x += (per_word + 1) * WORDS;
}

/* Blocks first .. end-1, whose groups lie in values[rows] from their start; a group has
 * blocks_per_group blocks, or a block groups_per_block groups. */
INLINE void blocks_product(tile *t, const group_values *values, uint64_t first, uint64_t end,
                           uint64_t blocks_per_group, uint64_t groups_per_block,
                           const unsigned rows, const unsigned m, const unsigned bits) {
    for (uint64_t b = first, g = 0; b < end; g += groups_per_block) {
        lanes scale[ROWS], zero[ROWS];
        EACH_OF(i, rows) {
            scale[i] = spread(values[i].scale + g, groups_per_block);
            zero[i] = spread(values[i].zero + g, groups_per_block);
        }
        const uint64_t stop = end - b < blocks_per_group ? end : b + blocks_per_group;
        for (; b < stop; b++) {
            block_product(t, b, scale, zero, rows, m, bits);
        }
    }
}

INLINE void rows_product(float *sums, const ingot_weight_view *w, uint64_t row, const float *x,
                         uint64_t x_stride, const unsigned rows, const unsigned m,
                         const unsigned bits) {
    const uint64_t block = WORDS * 32 / bits, blocks = (w->cols + block - 1) / block;
    const uint64_t blocks_per_group = w->groups_per_row == 1 ? blocks
                                      : w->group < block     ? 1
                                                             : w->group / block;
    const uint64_t groups_per_block =
        w->groups_per_row == 1 || w->group >= block ? 1 : block / w->group;
    const uint64_t blocks_at_once = GROUP_VALUES / groups_per_block * blocks_per_group;
    group_values values[ROWS];
    tile t = {.stride = w->row_stride_bytes, .x = x, .x_stride = x_stride};
    EACH_OF(i, rows) {
        t.codes[i] = w->codes + (row + i) * w->row_stride_bytes;
        EACH_OF(r, m) {
            t.total[i][r] = lanes_set(0.0f);
        }
    }
    for (uint64_t b = 0, g = 0; b < blocks; b += blocks_at_once, g += GROUP_VALUES) {
        const uint64_t rest = w->groups_per_row - g;
        const uint64_t end = blocks - b < blocks_at_once ? blocks : b + blocks_at_once;
        EACH_OF(i, rows) {
            load_groups(&values[i], w, (row + i) * w->groups_per_row + g,
                        rest < GROUP_VALUES ? rest : GROUP_VALUES);
        }
        blocks_product(&t, values, b, end, blocks_per_group, groups_per_block, rows, m, bits);
    }
    EACH_OF(i, rows) {
        EACH_OF(r, m) {
            sums[i * m + r] = lanes_sum(t.total[i][r]);
        }
    }
}

/* One case for each number of rows of x, the usual one with several rows of weights, which then
 * share what is loaded of x. */
#define PRODUCT(bits)                                                                              \
    static void product_##bits(float *sums, const ingot_weight_view *w, uint64_t row,              \
                               unsigned rows, const float *x, uint64_t stride, unsigned m) {       \
        if (m == 1 && rows == ROWS) {                                                              \
            rows_product(sums, w, row, x, stride, ROWS, 1, bits);                                  \
            return;                                                                                \
        }                                                                                          \
        for (unsigned i = 0; i < rows; i++) {                                                      \
            if (m == 1) {                                                                          \
                rows_product(sums + i, w, row + i, x, stride, 1, 1, bits);                         \
            } else if (m == 2) {                                                                   \
                rows_product(sums + 2 * i, w, row + i, x, stride, 1, 2, bits);                     \
            } else if (m == 3) {                                                                   \
                rows_product(sums + 3 * i, w, row + i, x, stride, 1, 3, bits);                     \
            } else {                                                                               \
                rows_product(sums + 4 * i, w, row + i, x, stride, 1, 4, bits);                     \
            }                                                                                      \
        }                                                                                          \
    }
PRODUCT(2)
PRODUCT(4)
PRODUCT(8)

static void product(float *sums, const ingot_weight_view *w, uint64_t row, unsigned rows,
                    const float *arranged, uint64_t stride, unsigned m) {
    if (w->bits == 2) {
        product_2(sums, w, row, rows, arranged, stride, m);
    } else if (w->bits == 4) {
        product_4(sums, w, row, rows, arranged, stride, m);
    } else {
        product_8(sums, w, row, rows, arranged, stride, m);
    }
}

const ingot_cpu_product_ops ISA_NAME(ingot_cpu_product_) = {
    .arranged_count = arranged_count,
    .arrange = arrange,
    .rows = product,
};
