/* cuda_product for one or two rows of x in binary16 and weights of the usual kind: the kernel of
 * product_stream.h. */
#include "kernels/cuda/product_stream.h"

static unsigned units_of(const ingot_weight_view *w) {
    return (unsigned)ingot_ceil_div(w->cols, STREAM_UNIT);
}

/* With 4 bits: codes for each multiprocessor up to which one block is faster than two, and slots of
 * a warp that are filled before x is asked for (decision 0041). */
#define SMALL_CODES (200u << 10)
#define EARLY       2u

typedef struct stream_shape {
    unsigned slots;  /* of a warp; 0: too few have room */
    unsigned blocks; /* of a multiprocessor */
    unsigned warps;  /* of a block */
    unsigned bytes;  /* of shared memory for a block */
    unsigned turns_shift;
} stream_shape;

/* As many slots as have room: in half of a multiprocessor, or where x is long in all of it, for
 * twice as many warps if they have room.  A block of a small matrix asks for more than half, so
 * that no other of its kind comes beside it while another multiprocessor has none. */
static stream_shape shape_of(const ingot_cuda *cuda, const ingot_weight_view *w, uint64_t m) {
    const unsigned all = (unsigned)cuda->shared_bytes, half = product_half_bytes(cuda);
    const unsigned lone = half + 4096;
    const unsigned turns_shift = units_of(w) > 32 ? 2 : 3; /* long turns want the room for slots */
    const bool has_tight = w->bits == 8 && m == 1;         /* as measured (decision 0043) */
    const struct {
        unsigned blocks, warps, room, turns_shift;
    } ways[] = {{2, 8, half, turns_shift},
                {2, 8, has_tight ? half : 0, turns_shift - 1},
                {1, 16, all, turns_shift},
                {1, 8, all, turns_shift}};
    const bool is_small =
        w->bits == 4 && w->rows * w->cols <= (uint64_t)SMALL_CODES * cuda->multiprocessors;
    for (const auto &way : ways) {
        const unsigned fixed =
            stream_fixed_bytes(units_of(w), (unsigned)m, way.warps, way.turns_shift);
        const unsigned each = way.warps * stream_slot_bytes(w->bits), room = way.room;
        const unsigned slots = fixed < room ? ingot_min_u64((room - fixed) / each, ASYNC_MOST) : 0;
        if (slots >= 2) {
            const unsigned bytes = fixed + slots * each;
            return way.blocks == 2 && is_small && bytes < lone
                       ? stream_shape{slots, 1, way.warps, lone, way.turns_shift}
                       : stream_shape{slots, way.blocks, way.warps, bytes, way.turns_shift};
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
static ingot_status launch(const product_context *context, const stream_job &job,
                           const stream_shape &shape) {
    const unsigned most = shape.blocks * (unsigned)context->cuda->multiprocessors;
    const auto kernel = shape.warps == 8 ? (job.task.m == 1 ? product_stream_kernel<BITS, 1, 8>
                                                            : product_stream_kernel<BITS, 2, 8>)
                                         : (job.task.m == 1 ? product_stream_kernel<BITS, 1, 16>
                                                            : product_stream_kernel<BITS, 2, 16>);
    return product_launch(context, kernel, dim3(job.tiles < most ? job.tiles : most),
                          shape.warps * 32, shape.bytes, 1, job);
}

ingot_status product_stream(const product_context *context, const product_task &task,
                            const product_source &source) {
    const stream_shape shape = shape_of(context->cuda, &task.w[0], task.m);
    stream_job job = {};
    job.task = task;
    job.source = source;
    job.units = units_of(&task.w[0]);
    job.tiles = (unsigned)(task.w[0].rows / 16);
    job.group_shift = (unsigned)product_group_shift(&task.w[0]);
    job.turns_shift = shape.turns_shift;
    job.slots = shape.slots;
    job.early = task.w[0].bits == 4 ? EARLY : shape.slots;
    return task.w[0].bits == 3   ? launch<3>(context, job, shape)
           : task.w[0].bits == 4 ? launch<4>(context, job, shape)
                                 : launch<8>(context, job, shape);
}
