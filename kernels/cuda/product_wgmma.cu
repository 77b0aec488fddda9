/* cuda_product for 3 rows of x or more on Hopper, 64 at once: the choice of a kernel of
 * product_wgmma.h. */
#include "kernels/cuda/product_wgmma.h"

#include <cudaTypedefs.h>

#define WGMMA_LEAST    3   /* rows of x */
#define WGMMA_JOIN     6u  /* 128 columns of a tile, so often, that adding up its parts is worth */
#define WGMMA_JOIN_TWO 20u /* the same of two tiles */
/* the same in front of whole tiles, at most: a last round of fewer blocks would have more of the
 * memory for each (decision 0025) */
#define WGMMA_JOIN_WHOLE 24u

/* How a product is spread over the device. */
typedef struct wgmma_plan {
    unsigned tiles, steps;
    unsigned parts, spans; /* blocks */
    bool has_parts;        /* blocks meet in a tile ... */
    unsigned shared; /* ... of the first so many, one a multiprocessor at most, or have them all
                        where they do not ... */
    unsigned whole;  /* ... and then each so many of the others */
} wgmma_plan;

/* What takes least by a model of it, in steps: as many blocks as run at once, each with as many
 * tiles, each with as many steps, or each with as many steps of the tiles that are one too few for
 * all and then whole ones; or, when there are few tiles, as many blocks for each tile. */
static wgmma_plan plan_of(const ingot_cuda *cuda, const ingot_weight_view *w, bool has_up) {
    const unsigned most = (unsigned)cuda->multiprocessors, halves = wgmma_halves(w->bits);
    const unsigned join = (WGMMA_JOIN + halves - 1) / halves;
    const unsigned join_two = (WGMMA_JOIN_TWO + halves - 1) / halves;
    const unsigned join_whole = (WGMMA_JOIN_WHOLE + halves - 1) / halves;
    wgmma_plan plan = {};
    plan.steps = (unsigned)ingot_ceil_div(w->cols, PRODUCT_STEP * halves);
    plan.tiles = (unsigned)ingot_ceil_div(w->rows, has_up ? WGMMA_BOX : WGMMA_ROWS);
    plan.parts = plan.tiles < most ? plan.tiles : most;
    plan.spans = 1;
    plan.shared = plan.tiles;
    uint64_t least = ingot_ceil_div(plan.tiles, most) * plan.steps;
    const unsigned whole = plan.tiles / most, rest = plan.tiles % most;
    const uint64_t units = (uint64_t)rest * plan.steps;
    const uint64_t took =
        whole * plan.steps + ingot_ceil_div(units, most) + (whole != 0 ? join_whole : join_two);
    if ((whole != 0 ? rest != 0 : units >= most) && took < least) {
        least = took;
        plan.parts = most;
        plan.whole = whole;
        plan.shared = rest;
        plan.has_parts = true;
    }
    for (unsigned parts = 2; parts <= plan.steps && (uint64_t)parts * plan.tiles <= most; parts++) {
        const uint64_t took = ingot_ceil_div(plan.steps, parts) + join;
        if (took < least) {
            least = took;
            plan.parts = parts;
            plan.spans = plan.tiles;
            plan.has_parts = true;
        }
    }
    return plan;
}

/* The codes for each multiprocessor from which tiles of x pay: with fewer, and few rows of x,
 * product_block.h is faster, which makes none. */
static uint64_t least_codes(uint64_t m, bool is_handed) {
    return m > 16 || (m > 8 && is_handed) ? 0 : m > 8 ? 160u << 10 : 256u << 10;
}

/* Tiles of x that as a rule take less time with packed weights than with those in 16 bits: two from
 * so many codes of a multiprocessor on, and one more for every so many; more than eight were not
 * measured (decision 0025). */
#define WGMMA_TWO_CODES  (112u << 10)
#define WGMMA_TILE_CODES (144u << 10)
#define WGMMA_TILES      8u

uint64_t product_wgmma_most(const ingot_cuda *cuda, const ingot_weight_view *w, bool has_up) {
    const bool can = INGOT_HAS_SM90A && cuda->major == 9 && cuda->minor == 0 &&
                     product_is_regular(w) && (w->bits == 3 || w->bits == 4 || w->bits == 8) &&
                     (w->group >= PRODUCT_STEP || w->group >= w->cols) &&
                     product_block_most(cuda, w) != 0 && /* for the fewest rows */
                     (w->rows / WGMMA_BOX + 1) * (w->cols / PRODUCT_STEP + 1) < (1u << 30);
    if (!can) {
        return 0;
    }
    const uint64_t codes = (has_up ? 2 : 1) * w->rows * w->cols / (uint64_t)cuda->multiprocessors;
    const uint64_t tiles =
        codes < WGMMA_TWO_CODES ? 1 : 2 + (codes - WGMMA_TWO_CODES) / WGMMA_TILE_CODES;
    return ingot_min_u64(tiles, WGMMA_TILES) * PRODUCT_TILE;
}

/* The rows of a tile of x for m of them. */
static unsigned tile_of(uint64_t m) {
    return m <= 16 ? 16 : m <= 32 ? 32 : PRODUCT_TILE;
}

unsigned product_wgmma_tile(const ingot_cuda *cuda, const ingot_weight_view *w, bool has_up,
                            uint64_t m, bool is_handed) {
    const uint64_t least = least_codes(m, is_handed) * (uint64_t)cuda->multiprocessors;
    return m >= WGMMA_LEAST && w->rows * w->cols >= least &&
                   m <= product_wgmma_most(cuda, w, has_up)
               ? tile_of((m - 1) % PRODUCT_TILE + 1)
               : 0;
}

uint64_t product_wgmma_parts_bytes(const ingot_cuda *cuda, const ingot_weight_view *w, bool has_up,
                                   uint64_t m) {
    const wgmma_plan plan = plan_of(cuda, w, has_up);
    const uint64_t most = ingot_min_u64(m, PRODUCT_TILE); /* of a tile */
    return plan.has_parts && !product_cluster_can(cuda, w, has_up, most)
               ? (uint64_t)plan.parts * plan.spans * 2 * WGMMA_ROWS * tile_of(most) * sizeof(float)
               : 0;
}

static PFN_cuTensorMapEncodeTiled_v12000 find_encode(void) {
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    void *function = nullptr;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &found);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess
               ? reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function)
               : nullptr;
}

/* Of bytes or pairs of bytes, [rows][stride] of them; boxes[2]: columns, rows. */
static ingot_status make_map(CUtensorMap *map, CUtensorMapDataType type, const void *from,
                             uint64_t columns, uint64_t rows, uint64_t stride_bytes,
                             const cuuint32_t box[2], bool is_swizzled) {
    static const PFN_cuTensorMapEncodeTiled_v12000 encode = find_encode();
    if (encode == nullptr) {
        return ingot_cuda_failed("cuTensorMapEncodeTiled", "not in this driver", false);
    }
    const cuuint64_t sizes[2] = {columns, rows}, strides[1] = {stride_bytes};
    const cuuint32_t steps[2] = {1, 1};
    const CUresult result =
        encode(map, type, 2, const_cast<void *>(from), sizes, strides, box, steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE,
               is_swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
               CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? INGOT_OK
                                  : ingot_cuda_failed("cuTensorMapEncodeTiled", "refused", false);
}

ingot_status wgmma_map(CUtensorMap *map, const ingot_weight_view *w, unsigned columns,
                       unsigned rows) {
    const cuuint32_t box[2] = {columns * w->bits / 8, rows};
    return make_map(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, w->codes, w->row_stride_bytes, w->rows,
                    w->row_stride_bytes, box, box[0] == WGMMA_SWIZZLE);
}

ingot_status wgmma_map_scales(CUtensorMap *map, const ingot_weight_view *w, unsigned groups,
                              unsigned rows) {
    const cuuint32_t box[2] = {groups, rows};
    return make_map(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, w->scales, w->groups_per_row, w->rows,
                    w->groups_per_row * 2, box, false);
}

/* See wgmma_job: whole boxes in a row of W, so that no two follow each other too closely. */
static bool has_boxes(const product_task &task) {
    bool has = true;
    for (int side = 0; side < (task.has_up ? 2 : 1); side++) {
        const ingot_weight_view &w = task.w[side];
        has = has && w.scale_dtype != INGOT_F32 && w.groups_per_row % WGMMA_SCALES == 0 &&
              w.group * w.groups_per_row == w.cols && product_is_aligned(w.scales, 16);
    }
    return has;
}

template <int BITS, typename T, product_mode MODE, int COLUMNS>
static ingot_status launch(const product_context *context, const product_task &task) {
    typedef wgmma_layout<BITS, COLUMNS> layout;
    const wgmma_plan plan = plan_of(context->cuda, &task.w[0], task.has_up);
    wgmma_job job = {};
    const unsigned columns = PRODUCT_STEP * layout::HALVES;
    INGOT_TRY(wgmma_map(&job.map[0], &task.w[0], columns, WGMMA_BOX));
    INGOT_TRY(wgmma_map(&job.map[1], &task.w[task.has_up ? 1 : 0], columns, WGMMA_BOX));
    job.task = task;
    job.counters = context->cuda->counters;
    job.has_boxes = has_boxes(task);
    for (int h = 0; h < 2 && job.has_boxes; h++) {
        INGOT_TRY(wgmma_map_scales(&job.scale_map[h], &task.w[task.has_up ? h : 0], WGMMA_SCALES,
                                   WGMMA_BOX));
    }
    for (int h = 0; h < 2; h++) {
        const ingot_weight_view &w = task.w[task.has_up ? h : 0];
        job.scales[h] = w.scales;
        job.zeros[h] = w.zeros;
    }
    job.steps = plan.steps;
    job.span = plan.shared / plan.spans * plan.steps;
    job.whole = plan.whole;
    job.piece = plan.has_parts ? 1 : plan.steps;
    job.least = job.span / job.piece / plan.parts;
    job.more = job.span / job.piece % plan.parts;
    job.group_shift = (unsigned)product_group_shift(&task.w[0]);
    job.is_even = product_is_even(task, 2);
    job.is_bare = job.is_even && !task.has_up && task.addend[0] == nullptr &&
                  task.bias[0] == nullptr && task.activation < 0 && task.residual == nullptr &&
                  task.next.x == nullptr && task.y_dtype == INGOT_F32;
    return product_launch(context, product_wgmma_kernel<BITS, T, MODE, COLUMNS>,
                          dim3(plan.parts, plan.spans), WGMMA_THREADS, layout::BYTES, 1, job);
}

template <int BITS, typename T, product_mode MODE>
static ingot_status launch_columns(const product_context *context, const product_task &task) {
    return task.x_tile == 16   ? launch<BITS, T, MODE, 2>(context, task)
           : task.x_tile == 32 ? launch<BITS, T, MODE, 4>(context, task)
                               : launch<BITS, T, MODE, 8>(context, task);
}

template <int BITS, typename T>
static ingot_status launch_mode(const product_context *context, const product_task &task) {
    /* with 4 bits a step may have two groups; symmetric ones of more than 128 columns are seldom
     * met, and have no kernel of their own */
    constexpr product_mode PLAIN = BITS == 4 ? PRODUCT_128 : PRODUCT_PLAIN;
    const bool is_plain = product_mode_of(&task) == PRODUCT_PLAIN && has_boxes(task);
    return is_plain && (PLAIN == PRODUCT_PLAIN || product_group_shift(&task.w[0]) == 2)
               ? launch_columns<BITS, T, PLAIN>(context, task)
               : launch_columns<BITS, T, PRODUCT_GENERAL>(context, task);
}

template <int BITS>
static ingot_status launch_type(const product_context *context, const product_task &task) {
    return context->dtype == INGOT_F16 ? launch_mode<BITS, __half>(context, task)
                                       : launch_mode<BITS, __nv_bfloat16>(context, task);
}

ingot_status product_wgmma(const product_context *context, const product_task &task) {
    if (product_pairs_can(context->cuda, &task)) {
        return product_pairs(context, task);
    }
    if (product_cluster_can(context->cuda, &task.w[0], task.has_up, task.m)) {
        return product_cluster(context, task);
    }
    return task.w[0].bits == 3   ? launch_type<3>(context, task)
           : task.w[0].bits == 4 ? launch_type<4>(context, task)
                                 : launch_type<8>(context, task);
}
