/* cuda_product for few rows of x, up to 64 at once: the choice of a kernel of product_block.h. */
#include "kernels/cuda/product_block.h"

#define BLOCK_PARTS_MOST 8            /* blocks of a cluster that run everywhere */
#define BLOCK_TWO_CODES  (512u << 10) /* of a multiprocessor, from which two tiles of x pay */

/* Groups of 32 and 64 take a kernel of their own, of the usual widths. */
static bool has_small_groups(const ingot_weight_view *w) {
    return w->group < PRODUCT_STEP && w->group < w->cols;
}

uint64_t product_block_most(const ingot_cuda *cuda, const ingot_weight_view *w) {
    const bool can = product_is_regular(w) && w->rows <= 65535 * (uint64_t)(BLOCK_ROWS / 2) &&
                     (!has_small_groups(w) || w->bits == 4 || w->bits == 8);
    if (!can) {
        return 0;
    }
    const uint64_t codes = w->rows * w->cols / (uint64_t)cuda->multiprocessors;
    const bool has_two = cuda->major == 9 && !has_small_groups(w) && codes >= BLOCK_TWO_CODES;
    return (has_two ? 2 : 1) * PRODUCT_TILE;
}

/* Whether the kernel puts x in order itself. */
bool product_block_orders(const ingot_weight_view *w, uint64_t m) {
    return m <= 16 && (w->bits == 4 || w->bits == 8);
}

/* Blocks that share the columns of a tile: as many as keep every multiprocessor busy with two, and
 * leave a block enough steps to be worth its start and end. */
static unsigned parts_of(const ingot_cuda *cuda, unsigned tiles, unsigned steps) {
    const unsigned enough = 2 * (unsigned)cuda->multiprocessors;
    unsigned parts = 1;
    if (!cuda->is_hopper || 4 * tiles >= 3 * enough) {
        return 1;
    }
    while (parts < BLOCK_PARTS_MOST && tiles * parts < enough && steps / (2 * parts) >= 4) {
        parts *= 2;
    }
    return parts;
}

template <int BITS, typename T, product_mode MODE, int COLUMNS, int SUBS, int SLOTS, int BLOCKS>
static ingot_status launch_shape(const product_context *context, const block_job &job,
                                 unsigned parts, unsigned tiles) {
    return product_launch(
        context, product_block_kernel<BITS, T, MODE, COLUMNS, SUBS, SLOTS, BLOCKS>,
        dim3(parts, tiles), BLOCK_THREADS,
        block_shared_bytes<COLUMNS>(SLOTS, product_slot<BITS, MODE, SUBS>::BYTES), parts, job);
}

/* Of so many slots, those that every device has room for. */
template <int COLUMNS> static constexpr int slots_everywhere(int slots, unsigned bytes) {
    while (block_shared_bytes<COLUMNS>((unsigned)slots, bytes) > CUDA_LEAST_SHARED_BYTES) {
        slots--;
    }
    return slots;
}

/* As many slots as were fastest on Hopper, or where a block cannot have so much memory, as every
 * device has room for.  Two blocks on a multiprocessor where both fit; three where columns are
 * shared. */
template <int BITS, typename T, product_mode MODE, int COLUMNS, int SUBS>
static ingot_status launch(const product_context *context, const product_task &task) {
    constexpr unsigned BYTES = product_slot<BITS, MODE, SUBS>::BYTES;
    constexpr int SLOTS = COLUMNS == 8 || BITS > 4 ? 3 : COLUMNS == 4 ? 4 : 6;
    constexpr int FEWER = slots_everywhere<COLUMNS>(SLOTS, BYTES);
    static_assert(FEWER >= 2, "a step that is used, and one on its way");
    block_job job = {};
    const unsigned rows = task.has_up ? BLOCK_ROWS / 2 : BLOCK_ROWS;
    const unsigned tiles = (unsigned)ingot_ceil_div(task.w[0].rows, rows);
    job.task = task;
    job.steps = (unsigned)ingot_ceil_div(task.w[0].cols, PRODUCT_STEP);
    const unsigned parts = parts_of(context->cuda, tiles, job.steps);
    job.own_steps = (job.steps + parts - 1) / parts;
    job.group_shift = (unsigned)product_group_shift(&task.w[0]);
    if constexpr (BITS == 4 && MODE == PRODUCT_PLAIN && COLUMNS <= 2) {
        if (parts > 1) {
            return launch_shape<BITS, T, MODE, COLUMNS, SUBS, 4, 3>(context, job, parts, tiles);
        }
    }
    if constexpr (FEWER < SLOTS) {
        if (block_shared_bytes<COLUMNS>(SLOTS, BYTES) > (unsigned)context->cuda->shared_bytes) {
            return launch_shape<BITS, T, MODE, COLUMNS, SUBS, FEWER, 2>(context, job, parts, tiles);
        }
    }
    return launch_shape<BITS, T, MODE, COLUMNS, SUBS, SLOTS, 2>(context, job, parts, tiles);
}

/* The usual widths have kernels for 8, 16, 32 and 64 rows of x, others, and 8 bits in small groups,
 * for 16 and 64. */
template <int BITS, typename T, product_mode MODE, int SUBS>
static ingot_status launch_columns(const product_context *context, const product_task &task) {
    if constexpr (BITS == 4 || (SUBS == 1 && (BITS == 3 || BITS == 8))) {
        if (task.m <= 8) {
            return launch<BITS, T, MODE, 1, SUBS>(context, task);
        }
        if (task.m > 16 && task.m <= 32) {
            return launch<BITS, T, MODE, 4, SUBS>(context, task);
        }
    }
    return task.m <= 16 ? launch<BITS, T, MODE, 2, SUBS>(context, task)
                        : launch<BITS, T, MODE, 8, SUBS>(context, task);
}

template <int BITS, typename T>
static ingot_status launch_type(const product_context *context, const product_task &task) {
    if constexpr (BITS == 4 || BITS == 8) {
        if (has_small_groups(&task.w[0])) {
            return product_mode_of(&task) == PRODUCT_PLAIN
                       ? launch_columns<BITS, T, PRODUCT_PLAIN, 4>(context, task)
                       : launch_columns<BITS, T, PRODUCT_GENERAL, 4>(context, task);
        }
    }
    if constexpr (BITS == 4) {
        if (product_mode_of(&task) == PRODUCT_PLAIN) {
            return launch_columns<BITS, T, PRODUCT_PLAIN, 1>(context, task);
        }
    }
    return launch_columns<BITS, T, PRODUCT_GENERAL, 1>(context, task);
}

template <int BITS>
static ingot_status launch_bits(const product_context *context, const product_task &task) {
    return context->dtype == INGOT_F16 ? launch_type<BITS, __half>(context, task)
                                       : launch_type<BITS, __nv_bfloat16>(context, task);
}

ingot_status product_block(const product_context *context, const product_task &task) {
    ingot_status status;
    PRODUCT_FOR_BITS(status, task.w[0].bits, launch_bits, context, task);
    return status;
}
