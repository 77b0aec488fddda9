/* cuda_product for one or two rows of x in binary16 and weights of the usual kind: the kernel of
 * product_stream.h. */
#include "kernels/cuda/product_stream.h"

static unsigned units_of(const ingot_weight_view *w) {
    return (unsigned)ingot_ceil_div(w->cols, STREAM_UNIT);
}

/* With 4 bits, codes for each multiprocessor: up to SMALL_CODES one block is faster than two
 * (decision 0041), up to SINGLE_CODES one slot of a warp is filled at once, if x is a row as it is,
 * or else EARLY, and with more than BOXED_CODES boxes are faster than pieces (0051), of which SOON
 * slots are filled before x is asked for (0053). */
#define SMALL_CODES  (200u << 10)
#define SINGLE_CODES (500u << 10)
#define BOXED_CODES  (700u << 10)
#define EARLY        2u
#define SOON         4u

/* Of W, and of U where there is one. */
static bool has_more_codes(const ingot_cuda *cuda, const ingot_weight_view *w, bool has_up,
                           unsigned most) {
    return w->rows * w->cols * (has_up ? 2 : 1) > (uint64_t)most * cuda->multiprocessors;
}

/* Whether units come by boxes. */
static bool is_boxed(const ingot_cuda *cuda, const ingot_weight_view *w, bool has_up) {
    return w->bits == 8 || (w->bits == 4 && has_more_codes(cuda, w, has_up, BOXED_CODES));
}

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
static stream_shape shape_of(const ingot_cuda *cuda, const ingot_weight_view *w, bool has_up,
                             uint64_t m) {
    const unsigned all = (unsigned)cuda->shared_bytes, half = product_half_bytes(cuda);
    const unsigned lone = product_lone_bytes(cuda);
    const unsigned turns_shift = units_of(w) > 32 ? 2 : 3; /* long turns want the room for slots */
    const bool has_tight = w->bits == 8 && m == 1;         /* as measured (decision 0043) */
    const struct {
        unsigned blocks, warps, room, turns_shift;
    } ways[] = {{2, 8, half, turns_shift},
                {2, 8, has_tight ? half : 0, turns_shift - 1},
                {1, 16, all, turns_shift},
                {1, 8, all, turns_shift}};
    const unsigned most = is_boxed(cuda, w, has_up) ? STREAM_SLOTS : ASYNC_MOST;
    const bool is_small = w->bits == 4 && !has_more_codes(cuda, w, false, SMALL_CODES);
    for (const auto &way : ways) {
        const unsigned fixed =
            stream_fixed_bytes(w->bits, units_of(w), (unsigned)m, way.warps, way.turns_shift);
        const unsigned each = way.warps * stream_slot_bytes(w->bits), room = way.room;
        const unsigned slots = fixed < room ? ingot_min_u64((room - fixed) / each, most) : 0;
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
           w->row_stride_bytes < (UINT64_C(1) << 27) && w->row_stride_bytes % 16 == 0 &&
           product_is_aligned(w->codes, 16) && product_is_aligned(w->scales, 4);
}

bool product_stream_can(const ingot_cuda *cuda, const product_task *task, ingot_dtype dtype) {
    const ingot_weight_view *w = task->w;
    return cuda->is_hopper && dtype == INGOT_F16 && task->m <= STREAM_ROWS && is_usual(&w[0]) &&
           (!task->has_up || (is_usual(&w[1]) && w[1].row_stride_bytes == w[0].row_stride_bytes)) &&
           shape_of(cuda, &w[0], task->has_up, task->m).slots != 0;
}

template <int BITS, bool IS_BOXED>
static ingot_status launch(const product_context *context, const stream_job &job,
                           const stream_shape &shape) {
    const unsigned most = shape.blocks * (unsigned)context->cuda->multiprocessors;
    const auto kernel = shape.warps == 8
                            ? (job.task.m == 1 ? product_stream_kernel<BITS, 1, 8, IS_BOXED>
                                               : product_stream_kernel<BITS, 2, 8, IS_BOXED>)
                            : (job.task.m == 1 ? product_stream_kernel<BITS, 1, 16, IS_BOXED>
                                               : product_stream_kernel<BITS, 2, 16, IS_BOXED>);
    return product_launch(context, kernel, dim3(job.tiles < most ? job.tiles : most),
                          shape.warps * 32, shape.bytes, 1, job);
}

/* Slots that are filled at once; x comes the later for them. */
static unsigned early_of(const ingot_cuda *cuda, const product_task &task, bool has_norm,
                         const stream_shape &shape) {
    const ingot_weight_view &w = task.w[0];
    const bool is_single =
        task.m == 1 && !has_norm && !has_more_codes(cuda, &w, task.has_up, SINGLE_CODES);
    return w.bits == 3 ? shape.slots : w.bits == 8 || is_single ? 1 : EARLY;
}

ingot_status product_stream(const product_context *context, const product_task &task,
                            const product_source &source) {
    const ingot_cuda *cuda = context->cuda;
    const unsigned bits = task.w[0].bits;
    const bool has_boxes = is_boxed(cuda, &task.w[0], task.has_up);
    const stream_shape shape = shape_of(cuda, &task.w[0], task.has_up, task.m);
    stream_job job = {};
    for (int side = 0; side < (task.has_up ? 2 : 1) && has_boxes; side++) {
        INGOT_TRY(wgmma_map(&job.map[side], &task.w[side],
                            bits == 8 ? STREAM_UNIT / 2 : STREAM_UNIT, 16));
    }
    job.task = task;
    job.source = source;
    job.units = units_of(&task.w[0]);
    job.tiles = (unsigned)(task.w[0].rows / 16);
    job.group_shift = (unsigned)product_group_shift(&task.w[0]);
    job.turns_shift = shape.turns_shift;
    job.slots = shape.slots;
    job.early = early_of(cuda, task, source.norm_weight != nullptr, shape);
    job.soon = bits == 4 && has_boxes ? (unsigned)ingot_min_u64(shape.slots, SOON) : job.early;
    return bits == 3    ? launch<3, false>(context, job, shape)
           : bits == 8  ? launch<8, true>(context, job, shape)
           : !has_boxes ? launch<4, false>(context, job, shape)
                        : launch<4, true>(context, job, shape);
}
