/* cuda_product for 3 to 64 rows of x and small matrices on Hopper: the choice of a kernel of
 * product_cluster.h. */
#include "kernels/cuda/product_cluster.h"

#include <cmath>

/* Codes for a multiprocessor; more: product_wgmma.h, as measured (decisions 0025 and 0050). */
#define CLUSTER_WORK       (512u << 10)
#define CLUSTER_WORK_ONCE  (1024u << 10) /* fills_once, with 4 bits and up to 16 rows of x */
#define CLUSTER_WORK_3_BIT (384u << 10)  /* of one matrix, for more than 32 rows of x */

/* How a product is spread over the device. */
typedef struct cluster_plan {
    unsigned tiles, steps, parts, own_steps;
} cluster_plan;

/* Zeros where the device does not say. */
void product_cluster_open(ingot_cuda *cuda) {
    const auto kernel = product_cluster_kernel<4, __half, PRODUCT_128, 8>;
    typedef cluster_layout<4, PRODUCT_128, 8> layout;
    if (!INGOT_HAS_SM90A || cuda->major != 9 || cuda->minor != 0) {
        return;
    }
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             (int)layout::BYTES);
    for (unsigned parts = 1; parts <= CUDA_CLUSTER_PARTS; parts++) {
        cudaLaunchAttribute attribute = {};
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim.x = parts;
        attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim = dim3(parts, 1);
        config.blockDim = dim3(layout::THREADS);
        config.dynamicSmemBytes = layout::BYTES;
        config.attrs = &attribute;
        config.numAttrs = 1;
        int count = 0;
        if (error == cudaSuccess) {
            error = cudaOccupancyMaxActiveClusters(&count, kernel, &config);
        }
        cuda->clusters[parts - 1] = error == cudaSuccess ? (unsigned short)count : 0;
    }
    (void)cudaGetLastError();
}

/* What takes least by a model of it, in 128 columns of two blocks on a multiprocessor, a step
 * having `halves` times that: one block that is alone there takes a little more than half of it,
 * the start and the end of a block are worth a few. */
static cluster_plan plan_of(const ingot_cuda *cuda, const ingot_weight_view *w, bool has_up,
                            unsigned halves) {
    float least = HUGE_VALF;
    cluster_plan best = {};
    best.steps = (unsigned)ingot_ceil_div(w->cols, PRODUCT_STEP * halves);
    best.tiles = (unsigned)ingot_ceil_div(w->rows, has_up ? CLUSTER_BOX : CLUSTER_ROWS);
    for (unsigned parts = 1; parts <= CUDA_CLUSTER_PARTS; parts++) {
        const unsigned together = cuda->clusters[parts - 1];
        const unsigned own_steps = (best.steps + parts - 1) / parts;
        if (together == 0 || (parts - 1) * own_steps >= best.steps) {
            continue; /* every block has a step */
        }
        const unsigned turns = (best.tiles + together - 1) / together;
        const float half =
            (uint64_t)best.tiles * parts <= (uint64_t)cuda->multiprocessors ? 0.6f : 1.0f;
        const float took = (float)turns * ((float)(own_steps * halves) * half + 4.0f);
        if (took < least) {
            least = took;
            best.parts = parts;
            best.own_steps = own_steps;
        }
    }
    return best;
}

/* Whether tiles of W fill the device once, each with all its columns. */
static bool fills_once(const ingot_cuda *cuda, const ingot_weight_view *w, bool has_up) {
    const uint64_t tiles = ingot_ceil_div(w->rows, has_up ? CLUSTER_BOX : CLUSTER_ROWS);
    return tiles <= cuda->clusters[0] && 4 * tiles >= 3 * (uint64_t)cuda->clusters[0];
}

bool product_cluster_can(const ingot_cuda *cuda, const ingot_weight_view *w, bool has_up,
                         uint64_t m) {
    const uint64_t work = w->bits == 3 && m > 32 && !has_up ? CLUSTER_WORK_3_BIT
                          : w->bits == 4 && m <= 16 && fills_once(cuda, w, has_up)
                              ? CLUSTER_WORK_ONCE
                              : CLUSTER_WORK;
    return cuda->clusters[0] != 0 && (w->bits == 3 || w->bits == 4) &&
           w->rows * w->cols < work * (uint64_t)cuda->multiprocessors;
}

unsigned product_cluster_parts(const ingot_weight_view *w) {
    return (unsigned)ingot_ceil_div(w->rows, CLUSTER_ROWS);
}

template <int BITS, typename T, product_mode MODE, int COLUMNS>
static ingot_status launch(const product_context *context, const product_task &task) {
    typedef cluster_layout<BITS, MODE, COLUMNS> layout;
    constexpr unsigned columns = PRODUCT_STEP * layout::HALVES;
    const cluster_plan plan = plan_of(context->cuda, &task.w[0], task.has_up, layout::HALVES);
    cluster_job job = {};
    INGOT_TRY(wgmma_map(&job.map[0], &task.w[0], columns, CLUSTER_BOX));
    INGOT_TRY(wgmma_map(&job.map[1], &task.w[task.has_up ? 1 : 0], columns, CLUSTER_BOX));
    job.task = task;
    job.steps = plan.steps;
    job.own_steps = plan.own_steps;
    job.group_shift = (unsigned)product_group_shift(&task.w[0]);
    job.is_even = product_is_even(task, 4);
    return product_launch(context, product_cluster_kernel<BITS, T, MODE, COLUMNS>,
                          dim3(plan.parts, plan.tiles), layout::THREADS, layout::BYTES, plan.parts,
                          job);
}

template <int BITS, typename T, product_mode MODE>
static ingot_status launch_columns(const product_context *context, const product_task &task) {
    return task.x_tile == 16   ? launch<BITS, T, MODE, 2>(context, task)
           : task.x_tile == 32 ? launch<BITS, T, MODE, 4>(context, task)
                               : launch<BITS, T, MODE, 8>(context, task);
}

/* Whether scales can be read two by two (cluster_groups). */
static bool has_pairs(const product_task &task) {
    bool has = task.w[0].groups_per_row % 2 == 0;
    for (int side = 0; side < (task.has_up ? 2 : 1); side++) {
        has = has && product_is_aligned(task.w[side].scales, 4);
    }
    return has;
}

template <int BITS, typename T>
static ingot_status launch_type(const product_context *context, const product_task &task) {
    if constexpr (BITS == 4) {
        const bool is_plain = product_mode_of(&task) == PRODUCT_PLAIN;
        if (is_plain && product_group_shift(&task.w[0]) > 2) {
            return launch_columns<BITS, T, PRODUCT_PLAIN>(context, task);
        }
        if (is_plain && has_pairs(task)) {
            return launch_columns<BITS, T, PRODUCT_128>(context, task);
        }
    }
    return launch_columns<BITS, T, PRODUCT_GENERAL>(context, task);
}

ingot_status product_cluster(const product_context *context, const product_task &task) {
    const bool is_half = context->dtype == INGOT_F16;
    if (task.w[0].bits == 3) {
        return is_half ? launch_type<3, __half>(context, task)
                       : launch_type<3, __nv_bfloat16>(context, task);
    }
    return is_half ? launch_type<4, __half>(context, task)
                   : launch_type<4, __nv_bfloat16>(context, task);
}
