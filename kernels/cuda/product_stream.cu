/* cuda_product for one or two rows of x in binary16 and weights of the usual kind: the kernel of
 * product_stream.h. */
#include "kernels/cuda/product_stream.h"

static unsigned units_of(const ingot_weight_view *w) {
    return (unsigned)ingot_ceil_div(w->cols, STREAM_UNIT);
}

typedef struct stream_shape {
    unsigned slots;  /* of a warp; 0: too few have room */
    unsigned blocks; /* of a multiprocessor */
} stream_shape;

/* As many slots as have room in half of a multiprocessor, or in all of it where x is long. */
static stream_shape shape_of(const ingot_cuda *cuda, const ingot_weight_view *w, uint64_t m) {
    const unsigned fixed = stream_fixed_bytes(units_of(w), (unsigned)m);
    const unsigned each = STREAM_WARPS * stream_slot_bytes(w->bits);
    for (unsigned blocks = 2; blocks > 0; blocks--) {
        const unsigned room = blocks == 2 ? stream_half_bytes(cuda) : (unsigned)cuda->shared_bytes;
        const unsigned slots = fixed < room ? (room - fixed) / each : 0;
        if (slots >= 2) {
            return {slots < STREAM_MOST ? slots : STREAM_MOST, blocks};
        }
    }
    return {};
}

static bool is_usual(const ingot_weight_view *w) {
    return product_is_regular(w) && product_is_plain(w) &&
           (w->bits == 3 || w->bits == 4 || w->bits == 8) && product_group_shift(w) >= 2 &&
           (w->group <= STREAM_GROUP || w->group >= w->cols) && w->rows % 16 == 0 &&
           w->row_stride_bytes < (UINT64_C(1) << 27) && product_is_aligned(w->codes, 16) &&
           product_is_aligned(w->scales, 4);
}

bool product_stream_can(const ingot_cuda *cuda, const product_task *task, ingot_dtype dtype) {
    const ingot_weight_view *w = task->w;
    return cuda->is_hopper && dtype == INGOT_F16 && task->m <= STREAM_ROWS && is_usual(&w[0]) &&
           (!task->has_up || (is_usual(&w[1]) && w[1].row_stride_bytes == w[0].row_stride_bytes)) &&
           shape_of(cuda, &w[0], task->m).slots != 0;
}

template <int BITS>
static ingot_status launch(const product_context *context, const stream_job &job) {
    const unsigned most = shape_of(context->cuda, &job.task.w[0], job.task.m).blocks *
                          (unsigned)context->cuda->multiprocessors;
    return product_launch(context, product_stream_kernel<BITS>,
                          dim3(job.tiles < most ? job.tiles : most), STREAM_THREADS,
                          stream_fixed_bytes(job.units, (unsigned)job.task.m) +
                              STREAM_WARPS * job.slots * stream_slot_bytes(BITS),
                          1, job);
}

ingot_status product_stream(const product_context *context, const product_task &task,
                            const product_source &source) {
    stream_job job = {};
    job.task = task;
    job.source = source;
    job.units = units_of(&task.w[0]);
    job.tiles = (unsigned)(task.w[0].rows / 16);
    job.group_shift = (unsigned)product_group_shift(&task.w[0]);
    job.slots = shape_of(context->cuda, &task.w[0], task.m).slots;
    return task.w[0].bits == 3   ? launch<3>(context, job)
           : task.w[0].bits == 4 ? launch<4>(context, job)
                                 : launch<8>(context, job);
}
