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

static stream_kind kind_of(const ingot_weight_view *w) {
    const int shift = product_group_shift(w);
    return w->zeros == nullptr ? (shift == 0   ? STREAM_32
                                  : shift == 1 ? STREAM_64
                                               : STREAM_128)
                               : (shift == 0   ? STREAM_32_ZEROS
                                  : shift == 1 ? STREAM_64_ZEROS
                                               : STREAM_128_ZEROS);
}

/* Of a slot. */
static unsigned slot_bytes(unsigned bits, stream_kind kind) {
    static const unsigned groups[] = {
        stream_groups<STREAM_128>::BYTES, stream_groups<STREAM_128_ZEROS>::BYTES,
        stream_groups<STREAM_64>::BYTES,  stream_groups<STREAM_64_ZEROS>::BYTES,
        stream_groups<STREAM_32>::BYTES,  stream_groups<STREAM_32_ZEROS>::BYTES,
    };
    return groups[kind] + (bits == 3   ? stream_slot<3>::CODES
                           : bits == 4 ? stream_slot<4>::CODES
                                       : stream_slot<8>::CODES);
}

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
    const stream_kind kind = kind_of(w);
    const bool is_small = w->bits == 4 && !has_more_codes(cuda, w, false, SMALL_CODES);
    for (const auto &way : ways) {
        const unsigned fixed =
            stream_fixed_bytes(w->bits, kind, units_of(w), (unsigned)m, way.warps, way.turns_shift);
        const unsigned each = way.warps * slot_bytes(w->bits, kind), room = way.room;
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

/* Whether groups are stored so that words which lanes copy have the scales, and the zero points, of
 * half a unit at the same places. */
static bool has_words(const ingot_weight_view *w) {
    const uint64_t most = w->zeros != nullptr ? STREAM_GROUP_ZEROS : STREAM_GROUP;
    const unsigned parts = stream_parts(kind_of(w));
    return (parts == 1 || w->cols % (STREAM_UNIT / 2) == 0) &&
           (w->group <= most || w->group >= w->cols) && w->scale_dtype == INGOT_F16 &&
           product_is_aligned(w->scales, parts == 4 ? 8 : 4) && product_is_aligned(w->zeros, 4);
}

static bool is_usual(const ingot_weight_view *w) {
    return product_is_regular(w) && (w->bits == 3 || w->bits == 4 || w->bits == 8) &&
           has_words(w) && w->rows % 16 == 0 && w->row_stride_bytes < (UINT64_C(1) << 27) &&
           w->row_stride_bytes % 16 == 0 && product_is_aligned(w->codes, 16);
}

bool product_stream_can(const ingot_cuda *cuda, const product_task *task, ingot_dtype dtype) {
    const ingot_weight_view *w = task->w;
    return cuda->is_hopper && dtype == INGOT_F16 && task->m <= STREAM_ROWS && is_usual(&w[0]) &&
           (!task->has_up || (is_usual(&w[1]) && w[1].row_stride_bytes == w[0].row_stride_bytes &&
                              kind_of(&w[1]) == kind_of(&w[0]))) &&
           shape_of(cuda, &w[0], task->has_up, task->m).slots != 0;
}

template <int BITS, stream_kind KIND, bool IS_BOXED>
static ingot_status launch_kind(const product_context *context, const stream_job &job,
                                const stream_shape &shape) {
    const unsigned most = shape.blocks * (unsigned)context->cuda->multiprocessors;
    const auto kernel =
        shape.warps == 8 ? (job.task.m == 1 ? product_stream_kernel<BITS, KIND, 1, 8, IS_BOXED>
                                            : product_stream_kernel<BITS, KIND, 2, 8, IS_BOXED>)
                         : (job.task.m == 1 ? product_stream_kernel<BITS, KIND, 1, 16, IS_BOXED>
                                            : product_stream_kernel<BITS, KIND, 2, 16, IS_BOXED>);
    return product_launch(context, kernel, dim3(job.tiles < most ? job.tiles : most),
                          shape.warps * 32, shape.bytes, 1, job);
}

template <int BITS, bool IS_BOXED>
static ingot_status launch(const product_context *context, const stream_job &job,
                           const stream_shape &shape) {
    switch (kind_of(&job.task.w[0])) {
    case STREAM_128:
        return launch_kind<BITS, STREAM_128, IS_BOXED>(context, job, shape);
    case STREAM_128_ZEROS:
        return launch_kind<BITS, STREAM_128_ZEROS, IS_BOXED>(context, job, shape);
    case STREAM_64:
        return launch_kind<BITS, STREAM_64, IS_BOXED>(context, job, shape);
    case STREAM_64_ZEROS:
        return launch_kind<BITS, STREAM_64_ZEROS, IS_BOXED>(context, job, shape);
    case STREAM_32:
        return launch_kind<BITS, STREAM_32, IS_BOXED>(context, job, shape);
    default:
        return launch_kind<BITS, STREAM_32_ZEROS, IS_BOXED>(context, job, shape);
    }
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
