/* cuda_product for up to 16 rows of x and small matrices of symmetric weights of 4 bits on Hopper:
 * the choice of a kernel of product_pairs.h. */
#include "kernels/cuda/product_pairs.h"

#define PAIR_MOST_TWOS 3            /* of 32 rows, of a tile */
#define PAIR_WORK      (512u << 10) /* codes for a multiprocessor; more: product_wgmma.h */
#define PAIR_LONE      40 /* units of a block: from here on one a multiprocessor is faster */

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

static unsigned units_of(const ingot_weight_view *w) {
    return (unsigned)ingot_ceil_div(w->cols, 2 * PRODUCT_STEP);
}

/* pair_job.pitch, of the block with more groups. */
static unsigned pitch_of(const ingot_weight_view *w) {
    const unsigned units = units_of(w), shift = (unsigned)product_group_shift(w);
    unsigned most = 0;
    for (unsigned half = 0; half < 2; half++) {
        const unsigned first = half * units * 4 >> shift;
        const unsigned last =
            (unsigned)ingot_min_u64((half + 1) * units * 4 - 1 >> shift, w->groups_per_row - 1);
        most = last >= first && last - first + 1 > most ? last - first + 1 : most;
    }
    return (most / 2 + 1) | 1;
}

/* Of shared memory, for a tile of so many rows. */
static unsigned bytes_of(const ingot_weight_view *w, unsigned rows) {
    return pair_layout<1>::SCALES + rows * pitch_of(w) * 4; /* for any tile they begin there */
}

bool product_pairs_can(const ingot_cuda *cuda, const product_task *task) {
    const ingot_weight_view *w = &task->w[0];
    const unsigned twos = twos_of(cuda, w);
    return cuda->clusters[1] != 0 && !task->has_up && task->m <= PAIR_X_ROWS && w->bits == 4 &&
           w->rows % 8 == 0 && product_is_plain(w) && product_is_aligned(w->scales, 4) &&
           task->known.sums == nullptr && task->next.norm_weight == nullptr &&
           w->rows * w->cols < PAIR_WORK * (uint64_t)cuda->multiprocessors && twos != 0 &&
           bytes_of(w, twos * 32) <= PAIR_BYTES;
}

template <typename T, int TWOS>
static ingot_status launch(const product_context *context, const product_task &task) {
    typedef pair_layout<TWOS> layout;
    pair_job job = {};
    job.task = task;
    job.units = units_of(&task.w[0]);
    job.pitch = pitch_of(&task.w[0]);
    job.group_shift = (unsigned)product_group_shift(&task.w[0]);
    job.is_even = product_is_even(task, 4);
    const dim3 grid(2, (unsigned)ingot_ceil_div(task.w[0].rows, layout::ROWS));
    const unsigned bytes = job.units < PAIR_LONE ? bytes_of(&task.w[0], layout::ROWS)
                                                 : product_lone_bytes(context->cuda);
    return product_launch(context, product_pairs_kernel<T, TWOS>, grid, PAIR_THREADS, bytes, 2,
                          job);
}

template <typename T>
static ingot_status launch_twos(const product_context *context, const product_task &task) {
    const unsigned twos = twos_of(context->cuda, &task.w[0]);
    return twos == 1   ? launch<T, 1>(context, task)
           : twos == 2 ? launch<T, 2>(context, task)
                       : launch<T, 3>(context, task);
}

ingot_status product_pairs(const product_context *context, const product_task &task) {
    return context->dtype == INGOT_F16 ? launch_twos<__half>(context, task)
                                       : launch_twos<__nv_bfloat16>(context, task);
}
