/* Random inputs for tests of kernels/backend.h: numbers, odd sizes, and weight views of every kind
 * whose parts lie in memory of exactly their own size, so that a sanitizer sees a read too far. */
#ifndef INGOT_BACKEND_INPUTS_H
#define INGOT_BACKEND_INPUTS_H

#include "common/random.h"
#include "format/half.h"
#include "format/pack.h"
#include "kernels/backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t input_state;

/* Seeds from INGOT_TEST_SEED or the clock, and says so. */
static inline void input_start(const char *suite) {
    const char *text = getenv("INGOT_TEST_SEED");
    input_state = text != NULL ? strtoull(text, NULL, 10) : (uint64_t)time(NULL);
    printf("%s: INGOT_TEST_SEED=%llu\n", suite, (unsigned long long)input_state);
}

static inline uint64_t input_bits(void) {
    return ingot_random_bits(&input_state);
}

static inline uint64_t input_below(uint64_t n) {
    return input_bits() % n;
}

static inline double input_uniform(void) {
    return ingot_random_unit(&input_state);
}

static inline double input_normal(void) {
    return sqrt(-2 * log(1 - input_uniform())) * cos(6.283185307179586 * input_uniform());
}

/* INGOT_TEST_SMALL: for compute-sanitizer, under which a kernel takes a hundred times as long. */
static inline bool input_is_small(void) {
    return getenv("INGOT_TEST_SMALL") != NULL;
}

/* Rounds of random inputs, of `all` that a test makes otherwise. */
static inline unsigned input_rounds(unsigned all) {
    return input_is_small() ? (all + 3) / 4 : all;
}

/* Sizes around the widths of vectors and tiles, up to `largest`. */
static inline uint64_t input_size(uint64_t largest) {
    static const uint64_t sizes[] = {1,  2,  3,  5,   7,   8,   15,  16,  17, 31,
                                     33, 63, 65, 100, 127, 129, 255, 257, 300};
    largest = input_is_small() && largest > 65 ? 65 : largest;
    for (;;) {
        const uint64_t size = sizes[input_below(sizeof sizes / sizeof sizes[0])];
        if (size <= largest) {
            return size;
        }
    }
}

static inline float *input_floats(uint64_t count, double scale) {
    float *x = malloc(count * sizeof *x + !count);
    for (uint64_t i = 0; i < count; i++) {
        x[i] = (float)(scale * input_normal());
    }
    return x;
}

/* ---- weight views ---------------------------------------------------------------------------- */

typedef struct input_weights {
    ingot_weight_view view;
    void *memory[6];
    unsigned count;
} input_weights;

static inline void *input_take(input_weights *w, uint64_t bytes) {
    void *memory = calloc(1, bytes + !bytes);
    w->memory[w->count++] = memory;
    return memory;
}

static inline void input_weights_free(input_weights *w) {
    while (w->count > 0) {
        free(w->memory[--w->count]);
    }
}

/* Floats drawn by `draw`, in dtype. */
static inline const void *input_encoded(input_weights *w, uint64_t count, ingot_dtype dtype,
                                        float (*draw)(void)) {
    void *data = input_take(w, count * ingot_dtype_bytes(dtype));
    for (uint64_t i = 0; i < count; i++) {
        const float value = draw();
        ingot_convert_from_f32((char *)data + i * ingot_dtype_bytes(dtype), dtype, &value, 1);
    }
    return data;
}

static inline float input_draw_weight(void) {
    return (float)(input_normal() * (input_below(50) == 0 ? 0.4 : 0.05));
}

/* Of either sign, now and then zero or a subnormal of F16. */
static inline float input_draw_scale(void) {
    const uint64_t kind = input_below(40);
    const double scale = kind == 0 ? 0 : kind == 1 ? 0x1p-22 : 0.002 + 0.02 * input_uniform();
    return (float)(input_below(2) == 0 ? scale : -scale);
}

static inline input_weights input_dense(uint64_t rows, uint64_t cols, ingot_dtype dtype) {
    input_weights w = {.view = {.kind = INGOT_DENSE, .rows = rows, .cols = cols, .dtype = dtype}};
    w.view.data = input_encoded(&w, rows * cols, dtype, input_draw_weight);
    return w;
}

static inline void input_set_code(uint8_t *row, uint64_t col, unsigned bits, unsigned code) {
    const uint64_t bit = col * bits;
    const unsigned shift = bit % 8, mask = ((1u << bits) - 1) << shift;
    uint8_t *at = row + bit / 8;
    at[0] = (uint8_t)((at[0] & ~mask) | code << shift);
    if (shift + bits > 8) {
        at[1] = (uint8_t)((at[1] & ~(mask >> 8)) | code << shift >> 8);
    }
}

/* Up to four outliers a row; the code at their places is the zero point, as the format asks. */
static inline void input_add_outliers(input_weights *w, uint8_t *codes, ingot_dtype dtype) {
    ingot_weight_view *v = &w->view;
    uint64_t *row_ptr = input_take(w, (v->rows + 1) * sizeof *row_ptr);
    uint32_t *col = input_take(w, 4 * v->rows * sizeof *col);
    uint64_t count = 0;
    for (uint64_t r = 0; r < v->rows; r++) {
        uint64_t next = input_below(v->cols + 3); /* some rows have none */
        for (unsigned i = 0; i < 4 && next < v->cols; i++) {
            const uint64_t group = r * v->groups_per_row + next / v->group;
            const unsigned zero = v->zeros != NULL ? v->zeros[group] : 1u << (v->bits - 1);
            input_set_code(codes + r * v->row_stride_bytes, next, v->bits, zero);
            col[count++] = (uint32_t)next;
            next += 1 + input_below(v->cols / 3 + 1);
        }
        row_ptr[r + 1] = count;
    }
    v->dtype = dtype;
    v->outlier_count = count;
    v->outlier_row_ptr = row_ptr;
    v->outlier_col = col;
    v->outlier_val = input_encoded(w, count, dtype, input_draw_weight);
}

static inline input_weights input_grouped(uint64_t rows, uint64_t cols, unsigned bits,
                                          uint64_t group, ingot_zero_mode zero_mode,
                                          ingot_dtype scale_dtype, bool has_outliers) {
    input_weights w = {.view = {.kind = INGOT_GROUPED,
                                .rows = rows,
                                .cols = cols,
                                .dtype = INGOT_F16,
                                .bits = bits,
                                .zero_mode = zero_mode,
                                .scale_dtype = scale_dtype,
                                .group = group,
                                .groups_per_row = (cols + group - 1) / group,
                                .row_stride_bytes = ingot_pack_row_bytes(cols, bits)}};
    ingot_weight_view *v = &w.view;
    uint8_t *codes = input_take(&w, rows * v->row_stride_bytes);
    for (uint64_t i = 0; i < rows * cols; i++) {
        input_set_code(codes + i / cols * v->row_stride_bytes, i % cols, bits,
                       (unsigned)input_below(1u << bits));
    }
    v->codes = codes;
    v->scales = input_encoded(&w, rows * v->groups_per_row, scale_dtype, input_draw_scale);
    if (zero_mode == INGOT_ZERO_STORED) {
        uint8_t *zeros = input_take(&w, rows * v->groups_per_row);
        for (uint64_t i = 0; i < rows * v->groups_per_row; i++) {
            zeros[i] = (uint8_t)input_below(1u << bits);
        }
        v->zeros = zeros;
    }
    if (has_outliers) {
        input_add_outliers(&w, codes, input_below(2) == 0 ? INGOT_F16 : INGOT_F32);
    }
    return w;
}

/* A view of the number-th kind: F32, F16, BF16, then 2..8 bits by both zero modes, groups, scale
 * types and outliers drawn. */
#define INPUT_KINDS 17u
static inline input_weights input_kind(unsigned number, uint64_t rows, uint64_t cols) {
    static const ingot_dtype dtypes[] = {INGOT_F32, INGOT_F16, INGOT_BF16};
    if (number < 3) {
        return input_dense(rows, cols, dtypes[number]);
    }
    const unsigned bits = 2 + (number - 3) % 7;
    const uint64_t groups[] = {8, 32, 64, 128, cols};
    uint64_t group = groups[input_below(5)];
    group = group < cols ? group : cols;
    return input_grouped(rows, cols, bits, group,
                         number < 10 ? INGOT_ZERO_SYMMETRIC : INGOT_ZERO_STORED,
                         dtypes[input_below(3)], input_below(2) == 0);
}

static inline void input_describe(char *text, size_t size, const ingot_weight_view *w) {
    if (w->kind == INGOT_DENSE) {
        (void)snprintf(text, size, "%s %llux%llu", ingot_dtype_name(w->dtype),
                       (unsigned long long)w->rows, (unsigned long long)w->cols);
        return;
    }
    (void)snprintf(text, size, "W%u g%llu %s %s, %llu outliers, %llux%llu", w->bits,
                   (unsigned long long)w->group, ingot_dtype_name(w->scale_dtype),
                   w->zeros != NULL ? "asym" : "sym", (unsigned long long)w->outlier_count,
                   (unsigned long long)w->rows, (unsigned long long)w->cols);
}

#endif
