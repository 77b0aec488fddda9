/* Products of the decoder on CUDA (kernels/cuda/product.h) against FP64: every width, group, zero
 * mode and dtype, odd shapes, one to many rows, outliers, norms, and everything behind the sums.
 * Results lie between guards in poisoned memory.  Skipped, loudly, where there is no device. */
#include "kernels/cuda/card.h"
#include "product_case.h"

/* ---- cases -------------------------------------------------------------------------------------
 */

static const uint64_t row_counts[] = {1, 2, 3, 8, 9, 16, 17, 31, 33, 64};
#define ROW_COUNTS (sizeof row_counts / sizeof row_counts[0])

static uint64_t pick(const uint64_t *from, unsigned count) {
    return from[input_below(count)];
}

/* Symmetric weights and x of binary16, y of FP32, and nothing else. */
static product_case plain_case(uint64_t rows, uint64_t cols, unsigned bits, uint64_t m) {
    return (product_case){.rows = rows,
                          .cols = cols,
                          .m = m,
                          .bits = bits,
                          .group = 128,
                          .zero_mode = INGOT_ZERO_SYMMETRIC,
                          .scale_dtype = INGOT_F16,
                          .dtype = INGOT_F16,
                          .x_dtype = INGOT_F16,
                          .y_dtype = INGOT_F32,
                          .x_scale = 1.0f};
}

/* Everything that is not given is drawn. */
static product_case draw(unsigned bits, uint64_t group, uint64_t m) {
    static const uint64_t rows[] = {1, 7, 16, 17, 40, 64, 100, 130};
    static const uint64_t cols[] = {1, 8, 31, 40, 96, 128, 160, 200, 264, 512, 1000, 1032};
    static const ingot_dtype dtypes[] = {INGOT_F16, INGOT_BF16, INGOT_F32};
    product_case c = {.rows = pick(rows, is_brief ? 5 : 8),
                      .cols = pick(cols, is_brief ? 9 : 12),
                      .m = m,
                      .bits = bits,
                      .zero_mode = input_below(2) ? INGOT_ZERO_STORED : INGOT_ZERO_SYMMETRIC,
                      .scale_dtype = dtypes[input_below(3)],
                      .dtype = dtypes[input_below(2)],
                      .x_dtype = dtypes[input_below(3)],
                      .y_dtype = dtypes[input_below(3)],
                      .has_outliers = bits != 0 && input_below(4) == 0,
                      .has_up = input_below(4) == 0,
                      .has_bias = input_below(3) == 0,
                      .has_residual = input_below(3) == 0,
                      .has_norm = input_below(3) == 0,
                      .is_chained = input_below(2) == 0,
                      .is_positive = input_below(4) == 0,
                      .activation = (ingot_activation)input_below(4),
                      .norm_kind = (ingot_norm_kind)input_below(3),
                      .x_scale = 1.0f};
    c.has_activation = c.has_up || input_below(5) == 0;
    c.group = group == 0 || group > c.cols ? c.cols : group;
    return c;
}

static void test_widths(void) {
    static const uint64_t groups[] = {32, 64, 128, 256, 0};
    for (unsigned bits = 2; bits <= 8; bits++) {
        for (unsigned g = 0; g < 5; g += is_brief ? 2 : 1) {
            for (unsigned i = 0; i < ROW_COUNTS;
                 i += (is_brief ? 3u : 1u) + (unsigned)input_below(2)) {
                const product_case c = draw(bits, groups[g], row_counts[i]);
                check(&c);
            }
        }
    }
}

/* Groups without a kernel, dense weights, and more rows than kernels take. */
static void test_other_weights(void) {
    static const uint64_t groups[] = {8, 24, 40, 96, 136};
    static const uint64_t more[] = {1, 2, 5, 8, 9, 40};
    for (unsigned i = 0; i < 12; i++) {
        const product_case c = draw(2 + (unsigned)input_below(7), groups[i % 5], pick(more, 6));
        check(&c);
        const product_case dense = draw(0, 0, pick(more, 6));
        check(&dense);
    }
    for (unsigned bits = 0; bits <= 8; bits += bits == 0 ? 2 : 1) {
        const product_case c = draw(bits, 128, 65 + input_below(30));
        check(&c);
    }
}

/* Long rows: more steps than are fetched ahead, clusters.  Many rows: more tiles than blocks. */
static void test_large(void) {
    static const uint64_t m[] = {1, 2, 16, 64};
    for (unsigned i = 0; i < 4; i++) {
        for (unsigned bits = 3; bits <= 8; bits += bits == 4 ? 4 : 1) {
            product_case c = draw(bits, 0, m[i]);
            c.rows = is_brief ? 40 : i < 2 && bits == 4 ? 4300 : 100 + input_below(100);
            c.cols = i < 2 && bits == 4 ? 512 : (is_brief ? 1024 : 4096) + 32 * input_below(10);
            c.group = i % 2 == 0 ? 128 : 64;
            check(&c);
        }
    }
}

/* Symmetric weights with F16 scales, which kernels of their own take: up to 16 rows of x, fewer
 * tiles of W than multiprocessors and more, columns that end inside a step of 128, fewer steps than
 * warps and more than are fetched ahead, x longer than a block holds, with and without a norm. */
static void test_usual_weights(void) {
    static const uint64_t rows[] = {16, 48, 144, 2144, 4240}, groups[] = {128, 256, 1024, 2048, 0};
    static const uint64_t cols[] = {32, 96, 256, 288, 1536, 2080, 4096, 14336, 28672};
    static const uint64_t m[] = {1, 2, 9, 16, 1, 2, 3, 8};
    static const unsigned widths[] = {3, 4, 8};
    for (unsigned i = 0; i < (is_brief ? 18u : 144u); i++) {
        product_case c = draw(widths[i % 3], 0, m[i / 3 % 8]);
        const uint64_t group = pick(groups, 5);
        c.rows = pick(rows, is_brief ? 2 : c.has_up ? 4 : 5);
        c.cols = pick(cols, is_brief ? 5 : c.rows > 144 ? 6 : 9);
        c.group = group == 0 || group > c.cols ? c.cols : group;
        c.zero_mode = INGOT_ZERO_SYMMETRIC;
        c.scale_dtype = INGOT_F16;
        c.dtype = input_below(4) == 0 ? INGOT_BF16 : INGOT_F16;
        check(&c);
    }
}

/* One or two rows of x and weights whose groups are of 32 and 64 columns, or have zero points: the
 * same shapes, but rows of whole groups of 128, and those that a kernel of wider groups takes. */
static void test_small_groups(void) {
    static const uint64_t rows[] = {16, 48, 144, 2144, 4240};
    static const uint64_t cols[] = {128, 256, 640, 1536, 2176, 4096, 14336, 28672};
    static const uint64_t groups[] = {32, 64, 128, 32, 64, 256, 32, 64, 512, 32, 64, 0};
    static const unsigned widths[] = {3, 4, 8};
    for (unsigned i = 0; i < (is_brief ? 36u : 216u); i++) {
        product_case c = draw(widths[i % 3], 0, 1 + i / 36 % 2);
        const uint64_t group = groups[i / 3 % 12];
        c.rows = pick(rows, is_brief ? 2 : c.has_up ? 4 : 5);
        c.cols = pick(cols, is_brief ? 5 : c.rows > 144 ? 6 : 8);
        c.group = group == 0 || group > c.cols ? c.cols : group;
        c.zero_mode = c.group >= 128 ? INGOT_ZERO_STORED : c.zero_mode;
        c.scale_dtype = c.dtype = INGOT_F16;
        c.x_dtype = c.has_norm ? INGOT_F32 : INGOT_F16;
        c.norm_kind = c.norm_kind == INGOT_NORM_LAYER ? INGOT_NORM_RMS : c.norm_kind;
        c.m = is_brief ? 1 + input_below(2) : c.m;
        check(&c);
    }
}

/* One or two rows of x and so many tiles of W that the warps of a block meet again and again, also
 * with sums of two matrices between two meetings; in brief, several units of a tile for a warp. */
static void test_many_tiles(void) {
    static const unsigned widths[] = {3, 4, 8};
    for (unsigned i = 0; i < 12; i++) { /* of groups of 128, of 64, of 32 */
        product_case c = draw(widths[i % 3], 0, 1 + i % 2);
        c.has_up = i % 2 != 0;
        c.has_activation = c.has_activation || c.has_up;
        c.rows = is_brief ? 32 : i % 4 == 3 ? 8480 : 40000;
        c.cols = is_brief ? 4096 : i % 4 == 3 ? 8448 : i < 4 ? 288 : 384;
        c.group = 128 >> i / 4;
        c.zero_mode = i < 4 ? INGOT_ZERO_SYMMETRIC : c.zero_mode;
        c.scale_dtype = c.dtype = INGOT_F16;
        check(&c);
    }
    const ingot_cuda_card *card = cuda.context;
    for (unsigned i = 0; i < (is_brief ? 2u : 10u); i++) { /* 4 bits: so many that they are boxed */
        static const uint64_t groups[] = {128, 32, 64, 128, 128, 128, 64, 32, 128, 256};
        const bool is_symmetric = i == 0 || (i >= 3 && i < 6);
        product_case c = draw(4, 0, 1 + i / 2 % 2);
        c.has_up = i % 2 != 0;
        c.has_activation = c.has_activation || c.has_up;
        /* the last unit of a row is cut off */
        c.cols = groups[i] < 128 ? 3968 : i / 2 % 2 == 0 ? 4128 : 3872;
        c.rows =
            ((uint64_t)card->multiprocessors * (768 << 10) / c.cols / (c.has_up ? 2 : 1) + 16) /
            16 * 16;
        c.group = groups[i];
        c.has_norm = i % 3 == 0;
        c.norm_kind = i == 0 ? INGOT_NORM_RMS_PLUS_ONE : INGOT_NORM_RMS;
        c.x_dtype = c.has_norm ? INGOT_F32 : INGOT_F16;
        c.zero_mode = is_symmetric || i == 7 ? INGOT_ZERO_SYMMETRIC : INGOT_ZERO_STORED;
        c.scale_dtype = c.dtype = INGOT_F16;
        c.has_outliers = false;
        check(&c);
    }
}

/* 3 to 64 rows, odd ones too, with groups that products of warpgroups take: tiles that end early,
 * more steps than stages, tiles that blocks share, both matrices of a block. */
static void test_warpgroups(void) {
    static const unsigned widths[] = {3, 4, 8};
    static const uint64_t groups[] = {128, 256, 0};
    static const uint64_t cols[] = {32, 96, 128, 1024, 2208, 4096};
    static const uint64_t brief_cols[] = {96, 2208, 16384}; /* the last: more steps than stages */
    for (unsigned i = 0; i < (is_brief ? 9u : 36u); i++) {
        product_case c = draw(widths[i % 3], 0, 17 + input_below(48));
        c.rows = is_brief ? 20 + input_below(30) : 1 + input_below(700);
        c.cols = is_brief ? brief_cols[i / 3] : cols[i / 3 % 6];
        c.group = groups[input_below(3)];
        c.group = c.group == 0 || c.group > c.cols ? c.cols : c.group;
        if (i % 4 == 0) { /* as most files are */
            c.zero_mode = INGOT_ZERO_SYMMETRIC;
            c.scale_dtype = INGOT_F16;
            c.group = c.cols < 128 ? c.cols : 128;
        }
        check(&c);
    }
    for (unsigned i = 0; i < 4 && !is_brief; i++) { /* up to 16 rows: large matrices */
        product_case c = draw(3 + i % 2, 128, 9 + input_below(8));
        c.rows = 7000 + input_below(100);
        c.cols = 4096;
        c.group = i < 2 ? c.cols : 128; /* draw knew of other columns */
        if (i >= 2) {
            c.zero_mode = INGOT_ZERO_SYMMETRIC;
            c.scale_dtype = c.dtype = INGOT_F16;
        }
        check(&c);
    }
    for (unsigned i = 0; i < 2; i++) { /* blocks that take the scales of several boxes in turn */
        product_case c = draw(8, 128, i == 0 ? 17 : 33);
        c.rows = 20 + input_below(8);
        c.cols = 2048 * (145 + input_below(8));
        c.group = 128;
        c.has_up = c.has_outliers = false;
        c.zero_mode = i == 0 ? INGOT_ZERO_SYMMETRIC : INGOT_ZERO_STORED;
        c.scale_dtype = INGOT_F16;
        check(&c);
    }
    for (unsigned i = 0; i < (is_brief ? 1u : 4u); i++) { /* more tiles than blocks */
        product_case c = draw(i == 1 ? 4 : 8, 128, 17 + input_below(20));
        c.rows = (is_brief ? 1000 : 34000) + input_below(5000);
        c.cols = 128 * (1 + i);
        c.group = 128;
        c.has_up = i == 3;
        c.has_activation = c.has_up || c.has_activation;
        if (i < 2) {
            c.zero_mode = INGOT_ZERO_SYMMETRIC;
            c.scale_dtype = INGOT_F16;
        }
        check(&c);
    }
    for (unsigned i = 0; i < 3 && !is_brief; i++) { /* the same, and blocks share the first
                                                             tiles, too few for all */
        product_case c = draw(i == 0 ? 8 : i + 2, 128, i == 2 ? 3 + input_below(14) : 17);
        c.rows = 33800 + input_below(2000);
        c.cols = i == 0 ? 4128 : 4096;
        c.group = 128;
        c.has_up = c.has_outliers = false;
        c.zero_mode = INGOT_ZERO_SYMMETRIC;
        c.scale_dtype = INGOT_F16;
        check(&c);
    }
}

/* 4 bits and so few rows of x that steps have 256 columns: rows that end in either half, groups
 * that are read two by two and those that are not, more steps than stages; and matrices that are
 * large but fill the device once. */
static void test_halves(void) {
    static const uint64_t cols[][2] = {{224, 128},  {256, 128},   {640, 128},  {896, 256},
                                       {1888, 128}, {1952, 128},  {2432, 512}, {2528, 0},
                                       {7296, 128}, {10240, 1024}};
    for (unsigned i = 0; i < (is_brief ? 10u : 60u); i++) {
        const bool is_large = i >= 50; /* as up to 16 rows want it to take them here */
        const uint64_t *own = cols[is_large ? 4 + i % 5 : i % 10];
        product_case c = draw(4, 0, is_large ? 9 + input_below(8) : 17 + input_below(16));
        c.rows = is_large ? 22100000 / own[0] : 20 + input_below(is_brief ? 20 : 300);
        c.cols = own[0];
        c.group = own[1] == 0 ? c.cols : own[1];
        c.has_up = c.has_up && !is_large;
        c.dtype = input_below(4) == 0 ? INGOT_BF16 : INGOT_F16;
        if (i % 3 != 0) { /* as most files are */
            c.zero_mode = INGOT_ZERO_SYMMETRIC;
            c.scale_dtype = INGOT_F16;
        }
        check(&c);
    }
    for (unsigned i = 0; i < 2 && !is_brief; i++) {
        product_case c = draw(4, 0, 3 + input_below(14));
        c.rows = 28000 + input_below(1000);
        c.cols = i == 0 ? 4096 : 2784;
        c.group = 128;
        c.has_up = false;
        c.zero_mode = i == 0 ? INGOT_ZERO_SYMMETRIC : INGOT_ZERO_STORED;
        c.scale_dtype = INGOT_F16;
        check(&c);
    }
}

/* 4 bits as most files are, and steps of 256 columns that have one scale, two, or the half of one's
 * columns, for small matrices and for one that is large for every number of rows of x: scales that
 * differ from group to group, also in a small run. */
static void test_scales_of_steps(void) {
    static const uint64_t m[] = {9, 24, 40}, groups[] = {128, 256, 512};
    static const uint64_t large_m[] = {40, 24, 9, 60};
    for (unsigned i = 0; i < 9; i++) {
        product_case c = plain_case(40, 1536 + 256 * input_below(3), 4, m[i % 3]);
        c.group = groups[i / 3];
        c.dtype = input_below(4) == 0 ? INGOT_BF16 : INGOT_F16;
        check(&c);
    }
    const ingot_cuda_card *card = cuda.context;
    for (unsigned i = 0; i < (is_brief ? 2u : 4u); i++) { /* columns: scales come in boxes */
        product_case c = plain_case(0, 4096, 4, large_m[i]);
        c.rows = (512 << 10) / c.cols * (uint64_t)card->multiprocessors + 300;
        c.group = i % 2 == 0 ? 128 : 256;
        check(&c);
    }
}

/* Those that go to blocks of 256 rows; a small run leaves them out. */
static void test_large_warpgroups(void) {
    /* many tiles and few, and one that is large for 3 bits and more than 32 rows */
    for (unsigned i = 0; i < 3 && !is_brief; i++) {
        product_case c = draw(i == 0 ? 4 : 3, 128, i == 0 ? 9 : i == 1 ? 3 : 33);
        c.rows = i == 0 ? 17200 : i == 1 ? 4300 : 3650;
        c.cols = i == 0 ? 4096 : i == 1 ? 16384 : 14336;
        c.has_up = false;
        c.group = i == 2 ? 128 : 256;
        check(&c);
    }
    /* 4 bits, the last step half empty: many tiles, both matrices, few tiles with many steps,
     * groups of whole rows */
    for (unsigned i = 0; i < 4 && !is_brief; i++) {
        static const uint64_t large_rows[] = {17000, 16600, 2200, 17000};
        static const uint64_t large_cols[] = {4128, 4224, 32800, 4192};
        product_case c = draw(4, 128, 3 + input_below(62));
        c.rows = large_rows[i];
        c.cols = large_cols[i];
        c.group = i == 3 ? c.cols : i == 1 ? 256 : 128;
        c.zero_mode = i % 2 == 0 ? INGOT_ZERO_STORED : INGOT_ZERO_SYMMETRIC;
        c.has_up = i == 1;
        c.has_activation = c.has_up || c.has_activation;
        check(&c);
    }
}

/* More rows than a tile of x has, and matrices so large that weights stay packed: whole tiles and a
 * last one of every height, each multiplied by itself. */
static void test_tiles_of_x(void) {
    static const unsigned widths[] = {4, 8, 3}, others[] = {2, 5, 6, 7};
    static const uint64_t m[] = {65, 96, 127, 128};
    for (unsigned i = 0; i < (is_brief ? 2u : 12u); i++) {
        product_case c = draw(widths[i % 3], 0, m[i % 4]);
        c.cols = 4096 + 32 * input_below(2);
        c.has_up = i % 5 == 4;
        c.has_activation = c.has_up || c.has_activation;
        c.rows = (c.has_up ? 2060 : 4120) + input_below(100);
        c.group = i % 4 == 2 ? c.cols : 128;
        c.has_outliers = false;
        c.has_residual = i % 2 == 0;
        if (i % 3 != i / 3 % 3) { /* as most files are */
            c.zero_mode = INGOT_ZERO_SYMMETRIC;
            c.scale_dtype = c.dtype = INGOT_F16;
        }
        check(&c);
    }
    /* four tiles; blocks of 256 rows of W; other widths; outliers, which do not stay packed */
    for (unsigned i = 0; i < 5 && !is_brief; i++) {
        static const uint64_t large_rows[] = {13300, 3900, 8400, 17000, 4200};
        static const uint64_t large_cols[] = {4096, 14336, 4224, 4128, 4096};
        static const uint64_t large_m[] = {200, 200, 129, 96, 128};
        const unsigned bits = i == 1 ? 3 : i == 3 ? others[input_below(4)] : 4;
        product_case c = draw(bits, 0, large_m[i]);
        c.rows = large_rows[i];
        c.cols = large_cols[i];
        c.group = 128;
        c.has_outliers = i == 4;
        c.has_up = i == 2;
        c.has_activation = c.has_up || c.has_activation;
        c.has_residual = i % 2 == 0;
        check(&c);
    }
}

/* One x of each row is far larger than the others, as in models: tensor cores cut what they add to
 * a unit of the largest.  Others down to what is cut off whole, in every kernel. */
static product_case draw_huge(unsigned bits, uint64_t m) {
    static const uint64_t groups[] = {32, 64, 128, 256, 0};
    product_case c = draw(bits, 0, m);
    c.rows = is_brief ? 32 : 64 + 16 * input_below(4);
    c.cols = is_brief ? 256 : 128 * (1 + input_below(24));
    c.group = pick(groups, 5);
    if (m > 16 || input_below(2) == 0) { /* as most files are */
        c.zero_mode = INGOT_ZERO_SYMMETRIC;
        c.scale_dtype = c.dtype = INGOT_F16;
        c.group = 128;
    }
    c.group = c.group == 0 || c.group > c.cols ? c.cols : c.group;
    c.has_outliers = c.has_up = c.has_activation = c.has_residual = false;
    c.y_dtype = INGOT_F32;
    c.side = bits != 0 ? (int)input_below(3) - 1 : 0;
    c.huge = 30000.0f;
    c.x_scale = c.huge * ldexpf(1.0f, -(int)(4 + input_below(23)));
    return c;
}

static void test_huge_x(void) {
    static const uint64_t m[] = {1, 2, 1, 2, 3, 8, 12, 16, 24, 64, 70};
    static const uint64_t large_m[] = {8, 12}, large_rows[] = {8464, 5296};
    for (unsigned bits = 0; bits <= 8; bits += bits == 0 ? 2 : 1) {
        for (unsigned i = 0; i < 11 * (is_brief ? 1 : 4); i++) {
            const product_case c = draw_huge(bits, m[i % 11]);
            check(&c);
        }
    }
    for (unsigned i = 0; i < 2 && !is_brief; i++) { /* kernels that take large ones alone */
        product_case c = draw_huge(4, large_m[i]);
        c.rows = large_rows[i];
        c.cols = 4096;
        c.group = 128;
        check(&c);
    }
}

/* One or two rows of x that kernels split into digits, short enough for the lowest of them to show:
 * what is lost grows with the root of the columns, the bound with their number. */
static void test_digits(void) {
    static const unsigned widths[] = {3, 4, 8};
    for (unsigned i = 0; i < 12; i++) {
        const product_case c = plain_case(48, i < 6 ? 128 : 256, widths[i / 2 % 3], 1 + i % 2);
        check(&c);
    }
}

/* One or two rows of x as kernels take them that split x into integers: what is not finite must not
 * become a number. */
static void test_infinite_x(void) {
    static const unsigned widths[] = {3, 4, 8, 0};
    for (unsigned i = 0; i < 48; i++) {
        product_case c = draw_huge(widths[i % 4], 1 + i / 4 % 2);
        c.zero_mode = i / 4 % 4 == 0 ? INGOT_ZERO_SYMMETRIC : c.zero_mode;
        c.scale_dtype = c.bits != 0 ? INGOT_F16 : INGOT_BF16;
        c.dtype = INGOT_F16;
        c.group = UINT64_C(128) >> i / 4 % 3;
        c.huge = i < 24 ? INFINITY : NAN;
        c.x_scale = 1.0f;
        inputs in = make_inputs(&c);
        float *got[2];
        run_twice(&c, &in, got);
        unsigned wrong = 0;
        for (uint64_t k = 0; k < c.m * c.rows; k++) {
            wrong += isfinite(got[0][k]) ? 1 : 0;
        }
        if (wrong != 0) {
            describe(&c);
            printf(": %u of %llu are numbers", wrong, (unsigned long long)(c.m * c.rows));
        }
        CU_ASSERT(wrong == 0);
        free(got[0]);
        free(got[1]);
        free_inputs(&in);
    }
}

/* Dense weights of every dtype: fewer units of a row than warps and more, x that fits a block and
 * x that does not, more tiles than blocks; from 9 rows on as cuBLAS reads them, too. */
static void test_dense(void) {
    static const ingot_dtype kinds[] = {INGOT_BF16, INGOT_F16, INGOT_F32};
    static const uint64_t rows[] = {1, 7, 16, 40, 130, 700};
    static const uint64_t cols[] = {1, 8, 31, 100, 264, 1032, 4096, 14336, 28672};
    for (unsigned i = 0; i < (is_brief ? 36u : 180u); i++) {
        product_case c = draw(0, 0, i % 3 == 2 ? 9 + input_below(56) : 1 + input_below(8));
        c.scale_dtype = kinds[i / 3 % 3];
        c.rows = pick(rows, is_brief ? 4 : 6);
        c.cols = c.group = pick(cols, is_brief ? 6 : c.rows > 40 ? 7 : 9);
        c.dtype = input_below(4) == 0 ? INGOT_BF16 : INGOT_F16;
        check(&c);
    }
    for (unsigned i = 0; i < 6 && !is_brief; i++) {
        product_case c = draw(0, 0, 1 + i % 3 * 3);
        c.scale_dtype = kinds[i % 3];
        c.dtype = INGOT_F16;
        c.has_up = i == 5;
        c.has_activation = c.has_activation || c.has_up;
        c.rows = 20000 + input_below(100);
        c.cols = c.group = i < 3 ? 288 : 1024;
        check(&c);
    }
}

/* Dense weights beyond binary16, or times 256 beyond it, and so small that it would lose them: they
 * are not rounded on their way. */
static void test_dense_range(void) {
    static const uint64_t m[] = {1, 5, 8, 9, 33, 64};
    for (unsigned i = 0; i < 18; i++) {
        product_case c = plain_case(40, 264, 0, m[i % 6]);
        c.group = c.cols;
        c.scale_dtype = i < 12 ? INGOT_BF16 : INGOT_F16;
        c.w_scale = i < 6 ? 0x1p30f : i < 12 ? 0x1p-24f : 0x1p12f;
        check(&c);
    }
}

/* x in tiles and y handed on, as products of a layer do. */
static void test_handed(void) {
    static const uint64_t m[] = {9, 12, 16, 17, 31, 32, 33, 50, 64};
    static const uint64_t rows[] = {256, 512, 768, 1024, 1280};
    static const unsigned bits[] = {3, 4, 8};
    for (unsigned i = 0; i < (is_brief ? 4 : 90); i++) {
        /* blocks share longer rows of 8 bits */
        const uint64_t steps = 1 + input_below(is_brief ? 2 : bits[i % 3] == 8 ? 12 : 5);
        product_case c = plain_case(pick(rows, 5), 256 * steps, bits[i % 3], m[input_below(9)]);
        c.is_handed = i % 4 != 3 || c.m <= 16;
        c.is_normed = c.is_handed && i / 3 % 2 == 0;
        c.is_chained = input_below(2) == 0;
        c.has_bias = input_below(2) == 0;
        c.has_outliers = input_below(4) == 0;
        c.zero_mode = input_below(4) == 0 ? INGOT_ZERO_STORED : INGOT_ZERO_SYMMETRIC;
        c.group = input_below(3) == 0 ? c.cols : UINT64_C(128) << input_below(2);
        c.hands_bits = bits[input_below(3)];
        const unsigned tile = c.m <= 16 ? 16 : c.m <= 32 ? 32 : 64;
        if (i / 6 % 2 == 0 && !c.is_normed && c.bits != 8) { /* as the output projection */
            c.has_residual = true;
            c.hands_norm = true;
            c.norm_kind = i % 2 == 0 ? INGOT_NORM_RMS : INGOT_NORM_RMS_PLUS_ONE;
            c.hands = tile;
        } else if (i % 3 != 0) { /* as gate and up */
            c.has_up = c.has_activation = input_below(4) != 0;
            c.activation = (ingot_activation)input_below(4);
            c.y_dtype = INGOT_F16;
            c.hands_wide = input_below(2) == 0;
            c.hands = tile;
        }
        check(&c);
    }
    if (is_brief) {
        return;
    }
    product_case c = plain_case(103000, 1024, 4, 16);
    c.is_handed = c.is_normed = true; /* blocks have many tiles of W */
    check(&c);
    c = plain_case(17408, 2048, 4, 5); /* of few rows large matrices alone take tiles */
    c.is_handed = c.is_normed = true;
    check(&c);
    c = plain_case(4096, 17664, 4, 20); /* as `down` of a large model: blocks share its rows */
    c.is_handed = c.has_residual = true;
    check(&c);
    c = plain_case(256, 3072, 8, 40);
    c.times = 600; /* what counts how often blocks have met wraps */
    check(&c);
    c = plain_case(25600, 4096, 4, 24);
    c.is_handed = c.is_normed = c.has_up = c.has_activation = true;
    c.y_dtype = INGOT_F16;
    c.hands = 32, c.hands_bits = 4;
    check(&c);
}

/* 4 bits, symmetric, and rows of W that pairs of blocks of Hopper share (product_pairs.h): tiles
 * that are not whole, units that warps have none of, one, and more than fit at once. */
static void test_pairs(void) {
    /* all tiles, the last one not whole: a unit for one warp of eight, for nine, for seventeen; one
     * that starts and ends within words of scales */
    static const uint64_t shapes[][2] = {{1384, 256}, {2760, 2304}, {2760, 4352}, {5480, 1280}};
    for (unsigned i = 0; i < 6; i++) {
        product_case c = plain_case(shapes[i % 4][0], shapes[i % 4][1], 4, 9 + input_below(8));
        c.is_handed = c.is_chained = true;
        c.has_residual = i < 4;
        c.has_outliers = i == 4;
        c.group = i == 4 ? c.cols : i == 5 ? 256 : 128;
        check(&c);
    }
    { /* x in its own order, the last unit with a chunk of columns */
        product_case c = plain_case(4104, 5408, 4, 11);
        c.dtype = INGOT_BF16;
        c.has_bias = c.has_residual = true;
        check(&c);
    }
    for (unsigned i = 0; i < 2 && !is_brief; i++) { /* behind a tile of 64 rows of x */
        product_case c = plain_case(4096, 4096, 4, i == 0 ? 65 : 80);
        c.has_bias = c.has_residual = true;
        check(&c);
    }
    for (unsigned i = 0; i < (is_brief ? 0u : 48u); i++) {
        const uint64_t units = i % 8 == 7 ? 30 + input_below(24) : 1 + input_below(20);
        const uint64_t tile = 1 + i % 3; /* times 32 rows */
        const uint64_t eights = tile * (176 + input_below(89));
        const bool hands = i / 3 % 3 == 0; /* whole steps, as products take them */
        product_case c =
            plain_case(hands ? eights / 32 * 256 : eights * 8, 256 * units, 4, 9 + input_below(8));
        c.is_handed = true;
        c.is_chained = input_below(2) == 0;
        c.has_bias = input_below(2) == 0;
        c.has_outliers = input_below(4) == 0;
        c.has_residual = input_below(2) == 0;
        c.group = input_below(3) == 0 ? c.cols : UINT64_C(128) << input_below(4);
        c.hands = hands ? 16 : 0;
        c.hands_bits = input_below(2) == 0 ? 4 : 8;
        if (hands || input_below(2) == 0) {
            c.y_dtype = INGOT_F16;
            c.hands_wide = hands && input_below(2) == 0;
            c.has_residual = c.has_residual && !hands;
        }
        check(&c);
    }
    for (unsigned i = 0; i < 6 && !is_brief; i++) { /* x in its own order; few rows of it */
        product_case c = draw(4, 128, i < 3 ? 9 + input_below(8) : 3 + input_below(6));
        c.rows = 8 * (500 + input_below(28));
        c.cols = (i < 3 ? 5472 : 8480) + 32 * input_below(16);
        c.group = 128;
        c.has_up = false;
        c.dtype = i % 2 == 0 ? INGOT_BF16 : INGOT_F16;
        c.zero_mode = INGOT_ZERO_SYMMETRIC;
        c.scale_dtype = INGOT_F16;
        check(&c);
    }
}

/* Weights beyond what copies in binary16 hold as they are, and scales as large as the format
 * allows, with ordinary ones beside them. */
static void test_large_weights(void) {
    static const uint64_t m[] = {1, 2, 5, 9, 16, 40, 64, 70}, groups[] = {8, 32, 128, 256};
    static const float large[] = {1000, 5000, 32768};
    for (unsigned i = 0; i < 8; i += is_brief ? 3 : 1) {
        for (unsigned j = 0; j < 16; j++) {
            product_case c = plain_case(64, 256, j < 4 ? 0 : j % 3 == 0 ? 8 : 3 + j % 2, m[i]);
            c.group = groups[j % 4];
            c.large = large[(i + j) % 3];
            c.has_outliers = j >= 12;
            c.dtype = j == 0 ? INGOT_BF16 : INGOT_F16;
            c.has_up = c.has_activation = j == 1 || j == 8;
            check(&c);
        }
    }
}

/* Each part behind and before the sums by itself, where a mistake cannot hide behind another. */
static void test_parts(void) {
    static const uint64_t m[] = {1, 2, 5, 20, 70};
    for (unsigned i = 0; i < 5; i += is_brief ? 3 : 1) { /* few rows, many rows */
        const product_case plain = plain_case(50, 264, 4, m[i]);
        check(&plain);
        product_case c = plain;
        c.has_bias = true;
        check(&c);
        c = plain, c.has_residual = true;
        check(&c);
        c = plain, c.has_outliers = true;
        check(&c);
        for (int kind = 0; kind < 4; kind++) {
            c = plain, c.has_activation = true, c.activation = (ingot_activation)kind;
            check(&c);
            c.has_up = true;
            check(&c);
        }
        for (int kind = 0; kind < 3; kind++) {
            c = plain, c.has_norm = true, c.norm_kind = (ingot_norm_kind)kind;
            c.x_dtype = INGOT_F32;
            check(&c);
        }
        c = plain, c.dtype = INGOT_BF16, c.x_dtype = INGOT_F32;
        c.x_scale = 1e6f; /* beyond binary16 */
        check(&c);
    }
    CU_ASSERT(squares_seen != 0);
}

/* As on cards with less shared memory for a block (an A100 and an RTX 3090) and nothing of what
 * Hopper has: fewer steps ahead, and product_block.h for what goes to warpgroups elsewhere. */
static void test_lesser_cards(void) {
    static const int cards[][2] = {{0, 163 << 10}, {6, CUDA_LEAST_SHARED_BYTES}};
    static const unsigned storages[][2] = {{4, 32}, {4, 64}, {8, 32}, {8, 64}, {8, 128}, {7, 128}};
    static const uint64_t m[] = {3, 16, 17, 64, 9, 33, 32, 5};
    static const uint64_t cols[] = {32, 96, 160, 512, 1056, 4096};
    ingot_cuda_card *card = cuda.context;
    const ingot_cuda_card own = *card;
    for (unsigned i = 0; i < 2; i++) {
        *card = (ingot_cuda_card){.multiprocessors = own.multiprocessors,
                                  .shared_bytes = cards[i][1],
                                  .major = 8,
                                  .minor = cards[i][0]};
        for (unsigned j = 0; j < 6 * 8; j += is_brief ? 3 : 1) {
            const unsigned *storage = storages[j / 8];
            product_case c = draw(storage[0], storage[1], m[j % 8]);
            c.rows = 1 + input_below(is_brief ? 140 : 400);
            c.cols = cols[input_below(is_brief ? 5 : 6)];
            c.group = ingot_min_u64(storage[1], c.cols);
            check(&c);
        }
        if (!is_brief) {
            test_widths();
            test_other_weights();
            test_large();
        }
    }
    *card = own;
}

int main(void) {
    ingot_error error;
    input_start("cuda product");
    if (ingot_backend_open(&cuda, "cuda", 0, &error) != INGOT_OK) {
        printf("SKIP: no CUDA device: %s\n", error.reason);
        return 77;
    }
    is_brief = getenv("INGOT_TEST_SMALL") != NULL;
    if (ingot_pool_create(&pool, 0) != INGOT_OK) {
        return 2;
    }
    const CU_TestInfo tests[] = {
        {"parts by themselves", test_parts},       {"widths and groups", test_widths},
        {"other weights", test_other_weights},     {"large", test_large},
        {"large weights", test_large_weights},     {"usual weights", test_usual_weights},
        {"small groups", test_small_groups},       {"many tiles", test_many_tiles},
        {"warpgroups", test_warpgroups},           {"halves of steps", test_halves},
        {"scales of steps", test_scales_of_steps}, {"warpgroups, large", test_large_warpgroups},
        {"tiles of x", test_tiles_of_x},           {"dense", test_dense},
        {"dense, range", test_dense_range},        {"handed on", test_handed},
        {"pairs of blocks", test_pairs},           {"digits of x", test_digits},
        {"lesser cards", test_lesser_cards},       {"one huge x", test_huge_x},
        {"x that is not finite", test_infinite_x}, CU_TEST_INFO_NULL,
    };
    const int result = suite_run("cuda product", tests);
    ingot_pool_destroy(pool);
    ingot_backend_close(&cuda);
    return result;
}
