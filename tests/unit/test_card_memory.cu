/* Blocks on every card that Ingot is built for, by arithmetic: no device is used.
 *
 * Products of packed and dense weights and attention of the engine, by the library of the CUDA
 * backend, but with the functions in this file in place of its own of the same name: nothing is
 * launched.  What would be may ask for no more shared memory than a block can have on the card, and
 * for no clusters or chained launches where there are none.  (Other kernels have a size that every
 * card has room for, which the compiler checks: CUDA_LEAST_SHARED_BYTES.) */
#include "kernels/cuda/engine_parts.h"
#include "kernels/cuda/wgmma.h"
#include "no_device.h"

extern "C" {
#include "format/pack.h"
#include "kernels/cuda/product.h"
#include "suite.h"
}

#include <cstdio>

typedef struct card {
    int major, minor, multiprocessors, shared_bytes;
} card;

/* A100, A40, L40, H100, B200, RTX PRO 6000; of the shared memory of a multiprocessor (CUDA
 * programming guide, compute capabilities) a block can have all but 1 KB. */
static const card cards[] = {{8, 0, 108, 163 << 10},  {8, 6, 84, 99 << 10},
                             {8, 9, 142, 99 << 10},   {9, 0, 132, 227 << 10},
                             {10, 0, 148, 227 << 10}, {12, 0, 188, 99 << 10}};
#define CARDS (sizeof cards / sizeof *cards)

static ingot_cuda device;
static uint64_t launches, most_bytes, tiles, wrong;
static const ingot_product *product; /* at hand, or NULL: attention */

static ingot_cuda device_of(const card *c) {
    ingot_cuda cuda = {};
    cuda.major = c->major;
    cuda.minor = c->minor;
    cuda.multiprocessors = c->multiprocessors;
    cuda.shared_bytes = c->shared_bytes;
    cuda.is_hopper = c->major >= 9;
    for (int i = 0; i < CUDA_CLUSTER_PARTS && c->major == 9; i++) {
        cuda.clusters[i] = (unsigned short)(c->multiprocessors / (i + 1));
    }
    return cuda;
}

/* ---- in place of launches ---------------------------------------------------------------------
 */

static void complain(const cudaLaunchConfig_t &config, const char *what) {
    if (wrong++ >= 10) {
        return;
    }
    printf("\n    compute capability %d.%d: %zu bytes of %d, %s: ", device.major, device.minor,
           config.dynamicSmemBytes, device.shared_bytes, what);
    if (product == nullptr) {
        printf("attention");
        return;
    }
    const ingot_weight_view *w = product->w;
    printf("%llu rows of x, %llu x %llu, %u bits, groups of %llu%s%s",
           (unsigned long long)product->m, (unsigned long long)w->rows, (unsigned long long)w->cols,
           w->bits, (unsigned long long)w->group, w->zeros != nullptr ? ", zero points" : "",
           product->up != nullptr ? ", up" : "");
}

ingot_status ingot_cuda_launch(const void *, const cudaLaunchConfig_t &config, void **) {
    launches++;
    most_bytes = ingot_max_u64(most_bytes, config.dynamicSmemBytes);
    if (config.dynamicSmemBytes > (size_t)device.shared_bytes) {
        complain(config, "too many");
    }
    for (unsigned i = 0; i < config.numAttrs && !device.is_hopper; i++) {
        if (config.attrs[i].id != cudaLaunchAttributePreferredSharedMemoryCarveout) {
            complain(config, "a launch that is Hopper's");
        }
    }
    return INGOT_OK;
}

ingot_status wgmma_map(CUtensorMap *, const ingot_weight_view *, unsigned, unsigned) {
    return INGOT_OK;
}

ingot_status wgmma_map_scales(CUtensorMap *, const ingot_weight_view *, unsigned, unsigned) {
    return INGOT_OK;
}

/* ---- products ---------------------------------------------------------------------------------
 */

/* bits 0: dense, group 0: a row. */
static ingot_weight_view matrix(uint64_t rows, uint64_t cols, unsigned bits, uint64_t group,
                                bool has_zeros, ingot_dtype scale_dtype) {
    ingot_weight_view w = {};
    w.kind = bits == 0 ? INGOT_DENSE : INGOT_GROUPED;
    w.dtype = INGOT_BF16;
    w.rows = rows;
    w.cols = cols;
    w.data = w.codes = somewhere<uint8_t>();
    if (bits != 0) {
        w.bits = bits;
        w.group = group == 0 ? cols : group;
        w.groups_per_row = ingot_ceil_div(cols, w.group);
        w.row_stride_bytes = ingot_pack_row_bytes(cols, bits);
        w.scales = somewhere<uint8_t>();
        w.scale_dtype = scale_dtype;
        w.zero_mode = has_zeros ? INGOT_ZERO_STORED : INGOT_ZERO_SYMMETRIC;
        w.zeros = has_zeros ? somewhere<uint8_t>() : nullptr;
    }
    return w;
}

/* By all kernels that a product of the matrix has, alone and with another. */
static void check_matrix(const ingot_weight_view *w) {
    for (int kind = 0; kind < 4; kind++) {
        ingot_product job = {};
        job.is_chained = true;
        job.w = w;
        job.up = kind % 2 != 0 ? w : nullptr;
        job.has_activation = job.up != nullptr;
        job.x = somewhere<void>();
        job.y = job.workspace = somewhere<void>();
        job.x_dtype = INGOT_F32;
        job.dtype = kind / 2 != 0 ? INGOT_BF16 : INGOT_F16;
        job.y_dtype = INGOT_F32;
        product = &job;
        for (job.m = 1; job.m <= 65; job.m++) {
            const uint64_t before = launches;
            CU_ASSERT_EQUAL(cuda_product(&device, &job), INGOT_OK);
            CU_ASSERT(launches > before);
        }
        product = nullptr;
    }
}

static void test_products(void) {
    static const uint64_t groups[] = {32, 64, 128, 0};
    static const uint64_t shapes[][2] = {{512, 2048}, {14336, 4096}, {4096, 14336}, {64, 65536}};
    wrong = 0;
    for (unsigned c = 0; c < CARDS; c++) {
        device = device_of(&cards[c]);
        launches = most_bytes = 0;
        for (unsigned s = 0; s < 4; s++) {
            const uint64_t rows = shapes[s][0], cols = shapes[s][1];
            ingot_weight_view w = matrix(rows, cols, 0, 0, false, INGOT_F16);
            check_matrix(&w);
            for (unsigned i = 0; i < 7 * 4 * 4; i++) {
                w = matrix(rows, cols, 2 + i / 16, groups[i / 4 % 4], i % 2 != 0,
                           i / 2 % 2 != 0 ? INGOT_F32 : INGOT_F16);
                check_matrix(&w);
            }
        }
        printf("\n    %d.%d: %llu launches, at most %llu of %d bytes", device.major, device.minor,
               (unsigned long long)launches, (unsigned long long)most_bytes, device.shared_bytes);
    }
    CU_ASSERT_EQUAL(wrong, 0);
}

/* ---- attention --------------------------------------------------------------------------------
 */

/* The form in which a product behind it would take `m` rows: tiles, where kernels for them are. */
static ingot_product_form form_behind(unsigned m) {
    const ingot_weight_view w = matrix(4096, 4096, 4, 128, false, INGOT_F16);
    ingot_product job = {};
    job.w = &w;
    job.m = m;
    job.x_dtype = job.dtype = INGOT_F16;
    job.y_dtype = INGOT_F32;
    return cuda_product_takes(&device, &job);
}

static void check_model(uint64_t heads, uint64_t kv_heads, uint64_t head_dim, uint64_t capacity) {
    ingot_engine *e = new ingot_engine();
    const engine_layer layer = {};
    const engine_projected from = {};
    const uint32_t lengths[1] = {0};
    e->cuda = &device;
    e->is_chained = device.is_hopper;
    e->capacity = capacity;
    e->model.heads = heads;
    e->model.kv_heads = kv_heads;
    e->model.head_dim = head_dim;
    for (unsigned m = 1; m <= ENGINE_ROWS; m *= 2) {
        for (int kind = 0; kind < 4; kind++) {
            engine_rows rows = {};
            rows.m = m;
            rows.lengths = kind % 2 != 0 ? nullptr : lengths;
            const ingot_product_form form = kind / 2 != 0 ? form_behind(m) : ingot_product_form{};
            tiles += form.rows != 0;
            CU_ASSERT_EQUAL(engine_attend(e, &rows, &layer, &from, form), INGOT_OK);
        }
    }
    delete e;
}

static void test_attention(void) {
    wrong = 0;
    for (unsigned c = 0; c < CARDS; c++) {
        device = device_of(&cards[c]);
        launches = most_bytes = 0;
        for (unsigned i = 0; i < 3 * 3 * 5; i++) {
            check_model(8u << i / 3 % 3, 8,
                        i % 3 == 0   ? 64
                        : i % 3 == 1 ? 96
                                     : 128,
                        UINT64_C(64) << (i / 9 * 3));
            check_model(8u << i / 3 % 3, 1, ENGINE_HEAD_DIM, UINT64_C(64) << (i / 9 * 3));
        }
        printf("\n    %d.%d: %llu launches, at most %llu of %d bytes", device.major, device.minor,
               (unsigned long long)launches, (unsigned long long)most_bytes, device.shared_bytes);
        CU_ASSERT(launches != 0);
    }
    CU_ASSERT(!INGOT_HAS_SM90A || tiles != 0);
    CU_ASSERT_EQUAL(wrong, 0);
}

int main(void) {
    const CU_TestInfo tests[] = {
        {"products", test_products},
        {"attention", test_attention},
        CU_TEST_INFO_NULL,
    };
    return suite_run("card memory", tests);
}
