/* cuda_product for up to 16 rows of x and small matrices of symmetric weights of 4 bits on Hopper:
 * the choice of a kernel of product_pairs.h. */
#include "kernels/cuda/product_pairs.h"

#define PAIR_MOST_TWOS 2            /* of 32 rows, of a tile */
#define PAIR_WORK      (512u << 10) /* codes for a multiprocessor; more: product_wgmma.h */

/* A tile is so many times 32 rows, so that its blocks fill the device once, and not by half; 0:
 * this is not a matrix for it. */
static unsigned twos_of(const ingot_cuda *cuda, const ingot_weight_view *w) {
    const uint64_t most = (uint64_t)cuda->multiprocessors / 2;
    for (unsigned twos = 1; twos <= PAIR_MOST_TWOS; twos++) {
        const uint64_t tiles = ingot_ceil_div(w->rows, twos * 32);
        if (tiles <= most) {
            return tiles * 3 >= most * 2 && w->rows >= twos * 32 ? twos : 0;
        }
    }
    return 0;
}

bool product_pairs_can(const ingot_cuda *cuda, const product_task *task) {
    const ingot_weight_view *w = &task->w[0];
    return cuda->clusters[1] != 0 && !task->has_up && task->m <= PAIR_X_ROWS && w->bits == 4 &&
           w->rows % 8 == 0 && product_is_plain(w) && task->next.norm_weight == nullptr &&
           w->rows * w->cols < PAIR_WORK * (uint64_t)cuda->multiprocessors && twos_of(cuda, w) != 0;
}

template <typename T, int TWOS>
static ingot_status launch(const product_context *context, const product_task &task) {
    typedef pair_layout<TWOS> layout;
    pair_job job = {};
    job.task = task;
    job.units = (unsigned)ingot_ceil_div(task.w[0].cols, 2 * PRODUCT_STEP);
    job.group_shift = (unsigned)product_group_shift(&task.w[0]);
    job.is_even = product_is_even(task, 4);
    const dim3 grid(2, (unsigned)ingot_ceil_div(task.w[0].rows, layout::ROWS));
    return product_launch(context, product_pairs_kernel<T, TWOS>, grid, PAIR_THREADS, layout::BYTES,
                          2, job);
}

template <typename T>
static ingot_status launch_twos(const product_context *context, const product_task &task) {
    const unsigned twos = twos_of(context->cuda, &task.w[0]);
    return twos == 1 ? launch<T, 1>(context, task) : launch<T, 2>(context, task);
}

ingot_status product_pairs(const product_context *context, const product_task &task) {
    return context->dtype == INGOT_F16 ? launch_twos<__half>(context, task)
                                       : launch_twos<__nv_bfloat16>(context, task);
}
