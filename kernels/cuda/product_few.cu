/* cuda_product for one or two rows of x: the choice of a kernel of product_few.h. */
#include "kernels/cuda/product_few.h"

static unsigned steps_of(const ingot_weight_view *w) {
    return (unsigned)ingot_ceil_div(w->cols, PRODUCT_STEP);
}

bool product_few_can(const ingot_cuda *cuda, const ingot_weight_view *w, uint64_t m) {
    return m <= FEW_ROWS && product_is_regular(w) &&
           few_shared_bytes(steps_of(w), (unsigned)m) <= (unsigned)cuda->shared_bytes;
}

/* Two blocks of eight warps on a multiprocessor, each with its share of the tiles; four steps ahead
 * where registers allow. */
template <int BITS, typename T, product_mode MODE>
static ingot_status launch(const product_context *context, const few_job &job) {
    constexpr int DEPTH = BITS <= 4 ? 4 : 2;
    const unsigned most = 2 * (unsigned)context->cuda->multiprocessors;
    return product_launch(context, product_few_kernel<BITS, T, MODE, DEPTH>,
                          dim3(job.tiles < most ? job.tiles : most), FEW_THREADS,
                          few_shared_bytes(job.steps, (unsigned)job.task.m), 1, job);
}

/* The usual widths have a kernel for the usual groups. */
template <int BITS>
static ingot_status launch_bits(const product_context *context, const few_job &job) {
    const bool is_half = context->dtype == INGOT_F16;
    if constexpr (BITS == 3 || BITS == 4 || BITS == 8) {
        if (product_mode_of(&job.task) == PRODUCT_PLAIN) {
            return is_half ? launch<BITS, __half, PRODUCT_PLAIN>(context, job)
                           : launch<BITS, __nv_bfloat16, PRODUCT_PLAIN>(context, job);
        }
    }
    return is_half ? launch<BITS, __half, PRODUCT_GENERAL>(context, job)
                   : launch<BITS, __nv_bfloat16, PRODUCT_GENERAL>(context, job);
}

ingot_status product_few(const product_context *context, const product_task &task,
                         const product_source &source) {
    if (product_stream_can(context->cuda, &task, context->dtype)) {
        return product_stream(context, task, source);
    }
    few_job job = {};
    job.task = task;
    job.source = source;
    job.steps = steps_of(&task.w[0]);
    job.tiles = (unsigned)ingot_ceil_div(task.w[0].rows, 16);
    job.group_shift = (unsigned)product_group_shift(&task.w[0]);
    job.parts = task.has_up ? FEW_WARPS / 2 : FEW_WARPS;
    ingot_status status;
    PRODUCT_FOR_BITS(status, task.w[0].bits, launch_bits, context, job);
    return status;
}
