/* Internal to kernels/cuda: 3 to 64 rows of x with a matrix of packed weights on Hopper, by
 * products of warpgroups (wgmma).
 *
 * A block fills a multiprocessor: 16 warps of 16 rows of W each share the columns of x, and one
 * warp fetches for them, a step of 128 columns at a time, with 4 bits of 256: two boxes of codes as
 * the file has them, rows of 128 bytes with 4 and 8 bits, and the tile of x (product_tile_at),
 * three instructions of the copy engine.  Barriers count bytes that came and warps that are done.
 * Codes go from shared memory to registers, where they become the a of a product, exactly q - z or
 * a power of two times that; b is x.  Sums of 128 columns are scaled to FP32 totals: groups are 128
 * columns or more.
 *
 * Tiles of W, one behind the other, are one sequence of steps.  Blocks share it evenly, or first
 * those tiles that are too few for a round of all blocks and then have whole ones, as many each.
 * Blocks that meet in a tile write what they have to memory and add it up together in the end, in
 * the order of the columns: a warp waits for its likes in the other blocks, which all run at once.
 * Where x was handed on with a norm (product_next.h) two more warps find what its rows lack. */
#ifndef INGOT_CUDA_PRODUCT_WGMMA_H
#define INGOT_CUDA_PRODUCT_WGMMA_H

#include "kernels/cuda/product_wgmma_tile.h"

#if INGOT_SM90A

/* ---- copies, and what rows of x lack ------------------------------------------------------------
 */

/* A place in the sequence of stages. */
typedef struct wgmma_place {
    unsigned stage, odd; /* odd: of the phase of its barriers */
} wgmma_place;

template <unsigned STAGES> __device__ static inline void wgmma_go_on(wgmma_place &place) {
    place.stage++;
    if (place.stage == STAGES) {
        place.stage = 0;
        place.odd ^= 1;
    }
}

/* Whether a step is the first with the scales of a box. */
template <unsigned HALVES>
__device__ static inline bool wgmma_is_new(unsigned group_shift, unsigned step) {
    return (step & ((WGMMA_SCALES / (4 * HALVES) << group_shift) - 1)) == 0;
}

/* A unit, and where it is. */
typedef struct wgmma_at {
    unsigned unit, tile, step;
} wgmma_at;

/* All copies of a block; one thread. */
template <typename layout>
__device__ static void wgmma_fetch(const wgmma_job &job, unsigned stages_at) {
    const product_task &task = job.task;
    const unsigned rows = task.has_up ? WGMMA_BOX : WGMMA_ROWS;
    const unsigned full = stages_at + layout::BARRIERS, empty = full + 8 * layout::STAGES;
    const wgmma_units units = wgmma_units_of(job);
    unsigned slot = 0;
    bool is_first = true;
    const auto start = [&](unsigned unit) {
        const wgmma_at at = {unit, unit / job.steps, unit % job.steps};
        return at;
    };
    const auto go_on = [&](wgmma_at &at) {
        at.unit++;
        at.step++;
        if (at.unit == units.stop) {
            at = start(units.whole);
        } else if (at.step == job.steps) {
            at.step = 0;
            at.tile++;
        }
    };
    wgmma_at at = start(units.begin != units.stop ? units.begin : units.whole), behind = at;
    const auto codes = [&](unsigned stage) {
        const unsigned to = stages_at + stage * layout::STAGE_BYTES + layout::X_BYTES;
        const unsigned barrier = full + 8 * stage, column = at.step * layout::ROW_BYTES;
        const unsigned group = at.step * (4 * layout::HALVES) >> job.group_shift;
        if (job.has_boxes && (is_first || wgmma_is_new<layout::HALVES>(job.group_shift, at.step))) {
            /* with the first step that needs them.  A slot is read to its end before it is written
             * again: the first box and the last of what blocks share may serve a single step each,
             * but of three that follow each other one is whole, more steps than stages */
            const unsigned scales = stages_at + layout::SCALES + slot * layout::SLOT_BYTES;
            const unsigned from = group / WGMMA_SCALES * WGMMA_SCALES;
            barrier_expect(barrier, layout::STAGE_BYTES + layout::SLOT_BYTES);
            bulk_copy_box(scales, &job.scale_map[0], from, at.tile * rows, barrier);
            bulk_copy_box(scales + layout::SLOT_BYTES / 2, &job.scale_map[1], from,
                          at.tile * rows + (task.has_up ? 0 : WGMMA_BOX), barrier);
            slot = slot + 1 == WGMMA_SLOTS ? 0 : slot + 1;
        } else {
            barrier_expect(barrier, layout::STAGE_BYTES);
        }
        is_first = false;
        bulk_copy_box(to, &job.map[0], column, at.tile * rows, barrier);
        bulk_copy_box(to + layout::BOX_BYTES, &job.map[1], column,
                      at.tile * rows + (task.has_up ? 0 : WGMMA_BOX), barrier);
    };
    const auto x = [&](unsigned stage, unsigned step) {
        bulk_copy(stages_at + stage * layout::STAGE_BYTES,
                  static_cast<const uint8_t *>(task.x) + (uint64_t)step * layout::X_BYTES,
                  layout::X_BYTES, full + 8 * stage);
    };
    const unsigned ahead = min(units.count, layout::STAGES);
    for (unsigned i = 0; i < ahead; i++) {
        codes(i);
        go_on(at);
    }
    product_wait();
    for (unsigned i = 0; i < ahead; i++) {
        x(i, behind.step);
        go_on(behind);
    }
    wgmma_place place = {};
#pragma unroll 1
    for (unsigned i = ahead; i < units.count; i++) {
        barrier_wait(empty + 8 * place.stage, place.odd);
        codes(place.stage);
        x(place.stage, at.step);
        go_on(at);
        wgmma_go_on<layout::STAGES>(place);
    }
}

/* Factors of rows of x to shared memory, by WGMMA_KNOWN threads that do nothing else. */
template <typename layout, int COLUMNS>
__device__ static inline void wgmma_find_factors(const wgmma_job &job, uint8_t *shared,
                                                 unsigned thread) {
    constexpr unsigned ROWS = COLUMNS * 8, MEMBERS = WGMMA_KNOWN / ROWS; /* of a row */
    const product_known &known = job.task.known;
    float *factors = reinterpret_cast<float *>(shared + layout::FACTORS);
    float *parts = factors + PRODUCT_TILE;
    const unsigned m = (unsigned)job.task.m;
    product_wait();
    parts[thread] = product_known_part(known, thread / MEMBERS, m, thread % MEMBERS, MEMBERS);
    asm volatile("bar.sync 1, %0;" ::"n"(WGMMA_KNOWN) : "memory");
    if (thread < ROWS) {
        float square = 0.0f;
        for (unsigned i = 0; i < MEMBERS; i++) {
            square += parts[thread * MEMBERS + i];
        }
        factors[thread] =
            product_known_factor(known, square, product_known_power(known, thread, m));
    }
    barrier_arrive(async_address(shared) + layout::FACTORS - 16);
}

/* ---- inputs ------------------------------------------------------------------------------------
 */

__device__ static inline uint4 wgmma_read(unsigned address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address));
    return v;
}

/* A chunk of both rows of a lane; that of the first row is at `codes` in shared memory, the other
 * is in the other box.  `codes` is that of unit 0 of the lane in the order of WGMMA_SWIZZLE. */
template <typename layout, int BITS>
__device__ static inline void wgmma_take(unsigned (&out)[2][BITS], unsigned codes) {
#pragma unroll
    for (unsigned h = 0; h < 2; h++) {
        if constexpr (BITS % 4 == 0) {
#pragma unroll
            for (unsigned i = 0; i < BITS / 4; i++) {
                const uint4 v = wgmma_read((codes ^ i * 16) + h * layout::BOX_BYTES);
                out[h][4 * i] = v.x, out[h][4 * i + 1] = v.y;
                out[h][4 * i + 2] = v.z, out[h][4 * i + 3] = v.w;
            }
        } else {
#pragma unroll
            for (unsigned i = 0; i < BITS; i++) {
                asm volatile("ld.shared.u32 %0, [%1];"
                             : "=r"(out[h][i])
                             : "r"(codes + h * layout::BOX_BYTES + i * 4));
            }
        }
    }
}

/* Where a lane finds scales and zero points of its two rows: the index of the first of each. */
typedef struct wgmma_rows {
    unsigned at[2];
} wgmma_rows;

__device__ static inline wgmma_rows wgmma_find(const wgmma_job &job, unsigned row) {
    const ingot_weight_view &w = job.task.w[0]; /* U is alike but for its pointers */
    const unsigned last = (unsigned)w.rows - 1, groups = (unsigned)w.groups_per_row;
    const unsigned other = job.task.has_up ? row : row + WGMMA_BOX;
    wgmma_rows out;
    out.at[0] = min(row, last) * groups;
    out.at[1] = min(other, last) * groups;
    return out;
}

/* The scale of row h of a lane, as it is stored; the next ones, nearby, come with it. */
template <product_mode MODE>
__device__ static inline unsigned wgmma_load_scale(const wgmma_job &job, const wgmma_rows &rows,
                                                   int h, unsigned group) {
    const unsigned at = rows.at[h] + group;
    if (MODE == PRODUCT_GENERAL && job.task.w[0].scale_dtype == INGOT_F32) {
        return __ldg(static_cast<const unsigned *>(job.scales[h]) + at);
    }
    unsigned short half;
    asm volatile("ld.global.nc.L2::128B.u16 %0, [%1];"
                 : "=h"(half)
                 : "l"(static_cast<const unsigned short *>(job.scales[h]) + at));
    return half;
}

/* Known when the kernel is compiled where groups are of 128 columns. */
template <product_mode MODE>
__device__ static inline unsigned wgmma_group_shift(const wgmma_job &job) {
    return MODE == PRODUCT_128 ? 2 : job.group_shift;
}

/* The scales of both rows of a lane for the halves of a step, from `slot` where there are boxes. */
template <typename layout, product_mode MODE>
__device__ static inline void
wgmma_take_scales(const wgmma_job &job, unsigned (&out)[layout::HALVES][2], bool has_boxes,
                  const wgmma_rows &rows, unsigned step, unsigned slot) {
    constexpr unsigned HALVES = layout::HALVES;
    const unsigned group_shift = wgmma_group_shift<MODE>(job);
    const unsigned group = step * (4 * HALVES) >> group_shift;
    if (!has_boxes) {
        const unsigned last = (unsigned)job.task.w[0].groups_per_row - 1;
#pragma unroll
        for (unsigned half = 0; half < HALVES; half++) {
            const unsigned own = (step * HALVES + half) * 4 >> group_shift;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                out[half][h] = wgmma_load_scale<MODE>(job, rows, h, min(own, last));
            }
        }
        return;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const unsigned at = slot + h * (layout::SLOT_BYTES / 2);
        if (HALVES == 1) {
            out[0][h] = shared_read2(at + group % WGMMA_SCALES * 2);
            continue;
        }
        /* groups of 128: those of the halves; longer ones: of both, the first or the second */
        const unsigned two = shared_read4(at + group / 2 * 2 % WGMMA_SCALES * 2);
        if (MODE == PRODUCT_128) {
            out[0][h] = two & 0xffff;
            out[HALVES - 1][h] = two >> 16;
            continue;
        }
        const unsigned first = group % 2 != 0 ? 0x2 : 0x0;
        const unsigned second = group_shift == 2 ? 0x2 : first;
        out[0][h] = __byte_perm(two, 0, 0x4410 + first * 0x11);
        out[HALVES - 1][h] = __byte_perm(two, 0, 0x4410 + second * 0x11);
    }
}

/* Codes to FACTOR^-1 (q - z), of one row and group. */
template <int BITS, typename T> struct wgmma_zero {
    static constexpr float FACTOR = 1.0f;
    product_zero<BITS, T> zero[1];
    __device__ void set(unsigned value) {
        zero[0].set(value);
    }
    __device__ void unpack(unsigned (&out)[16], const unsigned (&code)[BITS]) const {
        product_unpack<BITS, T, 1>(out, code, zero);
    }
};
template <int BITS> struct wgmma_zero<BITS, __half> {
    static constexpr float FACTOR = 1.0f / PRODUCT_SMALL;
    unsigned zero;
    __device__ void set(unsigned value) {
        zero = product_small_zero(value);
    }
    __device__ void unpack(unsigned (&out)[16], const unsigned (&code)[BITS]) const {
        product_unpack_small<BITS>(out, code, zero);
    }
};

/* What the warps that multiply do. */
template <int BITS, typename T, product_mode MODE, int COLUMNS>
__device__ static inline void wgmma_multiply(const wgmma_job &job, const uint8_t *shared) {
    typedef wgmma_layout<BITS, COLUMNS> layout;
    constexpr unsigned HALVES = layout::HALVES;
    constexpr float FACTOR = wgmma_zero<BITS, T>::FACTOR;
    const product_task &task = job.task;
    const unsigned stages_at = async_address(shared);
    const unsigned full = stages_at + layout::BARRIERS, empty = full + 8 * layout::STAGES;
    const unsigned group_shift = wgmma_group_shift<MODE>(job);
    const product_matrix w = product_matrix_of(task, false, group_shift);
    const bool has_zeros = MODE == PRODUCT_GENERAL && task.w[0].zeros != nullptr;
    const bool has_boxes = MODE != PRODUCT_GENERAL || job.has_boxes;
    const unsigned rows = task.has_up ? WGMMA_BOX : WGMMA_ROWS;
    const unsigned own_row = threadIdx.x / 32 * 8 + wgmma_lane_row<layout::HALVES>();
    unsigned codes = stages_at + layout::X_BYTES + own_row * layout::ROW_BYTES;
    codes += layout::IS_SWIZZLED ? (threadIdx.x % 4 * (BITS / 4) ^ own_row % 8) * 16
                                 : threadIdx.x % 4 * 4 * BITS;
    unsigned slot = stages_at + layout::SCALES + own_row * (WGMMA_SCALES * 2);
    asm volatile("" : "+r"(codes), "+r"(slot)); /* or they would be made anew in every step */
    const wgmma_units units = wgmma_units_of(job);
    unsigned unit = units.begin, left = units.count;
    unsigned met[2] = {}; /* wgmma_leave of the first and the last tile that blocks share */
    unsigned code[2][BITS], slot_now = WGMMA_SLOTS - 1;
    bool is_first = true;
    wgmma_place place = {};
    const auto take = [&](unsigned half) {
        if (half == 0) {
            barrier_wait(full + 8 * place.stage, place.odd);
        }
        wgmma_take<layout, BITS>(code, (codes ^ half * layout::HALF_BYTES) +
                                           place.stage * layout::STAGE_BYTES);
    };
    constexpr bool IS_EARLY = BITS <= 4; /* while the step in front is multiplied: registers */
    product_wait(); /* by all that write y, or read what the kernel in front wrote */
    if (IS_EARLY) {
        take(0);
    }
#pragma unroll 1
    while (left != 0) { /* a tile, or what this block has of it */
        unit = unit == units.stop ? units.whole : unit;
        const unsigned tile = unit / job.steps, first = unit % job.steps;
        const unsigned end = min(job.steps, first + (unit < units.stop ? units.stop - unit : left));
        unsigned step = first;
        const wgmma_rows where = wgmma_find(job, tile * rows + own_row);
        float totals[COLUMNS][4] = {};
        wgmma_zero<BITS, T> zero[2];
        /* of `part` * 128 columns */
        const auto load_zeros = [&](unsigned part) {
            const unsigned group = min(part * 4 >> group_shift, w.groups - 1);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                zero[h].set(has_zeros ? __ldg(job.zeros[h] + where.at[h] + group)
                                      : 1u << (BITS - 1));
            }
        };
        load_zeros(step * HALVES);
        left -= end - first;
        unit += end - first;
#pragma unroll 1
        for (; step != end; step++) {
            unsigned scale_bits[HALVES][2];
            if (!IS_EARLY) {
                take(0); /* before scales, which came with it */
            }
            if (has_boxes && (is_first || wgmma_is_new<HALVES>(group_shift, step))) {
                slot_now = slot_now == WGMMA_SLOTS - 1 ? 0 : slot_now + 1;
            }
            is_first = false;
            wgmma_take_scales<layout, MODE>(job, scale_bits, has_boxes, where, step,
                                            slot + slot_now * layout::SLOT_BYTES);
#pragma unroll
            for (unsigned half = 0; half < HALVES; half++) {
                unsigned pair[2][16];
                float sums[COLUMNS][4];
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    zero[h].unpack(pair[h], code[h]);
                }
                if (has_zeros) {
                    load_zeros(step * HALVES + half + 1);
                }
                const uint64_t b = wgmma_matrix<COLUMNS * 8>(
                    stages_at + place.stage * layout::STAGE_BYTES + half * layout::HALF_X_BYTES);
                wgmma_products<T, COLUMNS, 2>(sums, pair, b);
                const unsigned done = empty + 8 * place.stage;
                if (half == HALVES - 1) {
                    wgmma_go_on<layout::STAGES>(place);
                }
                if (half != HALVES - 1) {
                    take(half + 1);
                } else if (IS_EARLY && (left != 0 || step + 1 != end)) {
                    take(0);
                }
                wgmma_wait<0>();
                if (half == HALVES - 1) {
                    barrier_arrive_once(done);
                }
                const float scale[2] = {product_scale<MODE>(scale_bits[half][0], w),
                                        product_scale<MODE>(scale_bits[half][1], w)};
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        totals[c][k] = fmaf(scale[k / 2], sums[c][k], totals[c][k]);
                    }
                }
            }
        }
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                totals[c][k] *= FACTOR;
            }
        }
        if (task.known.sums != nullptr) {
            barrier_wait(stages_at + layout::FACTORS - 16, 0);
        }
        if (end - first == job.steps) {
            if (job.is_bare) {
                if (task.known.sums != nullptr) {
                    wgmma_apply_factors<BITS, COLUMNS>(task, totals);
                }
                wgmma_put_bare<BITS, COLUMNS>(job, tile, totals);
            } else {
                wgmma_put<BITS, COLUMNS>(job, tile, totals);
            }
        } else {
            const unsigned now = wgmma_leave<COLUMNS>(job, tile, totals);
            const bool is_begin = tile == units.begin / job.steps;
            met[0] = is_begin ? now : met[0];
            met[1] = is_begin ? 0 : now;
        }
    }
    if (units.begin == units.stop) {
        return;
    }
    /* parts, once all of this block are there: of its first and its last tile */
    const unsigned last = (units.stop - 1) / job.steps;
    unsigned tile = units.begin / job.steps;
#pragma unroll 1
    for (bool goes_on = true; goes_on;) {
        const unsigned from = tile * job.steps;
        if (from < units.begin || from + job.steps > units.stop) {
            wgmma_join<BITS, COLUMNS>(job, tile, met[0]);
        }
        goes_on = tile != last;
        tile = last;
        met[0] = met[1];
    }
}

#endif

template <int BITS, typename T, product_mode MODE, int COLUMNS>
__global__
__launch_bounds__(WGMMA_THREADS,
                  1) static void product_wgmma_kernel(const __grid_constant__ wgmma_job job) {
#if INGOT_SM90A
    typedef wgmma_layout<BITS, COLUMNS> layout;
    extern __shared__ __align__(1024) uint8_t wgmma_shared[];
    const unsigned stages_at = async_address(wgmma_shared);
    product_let_next_start();
    if (threadIdx.x == 0) {
        const unsigned full = stages_at + layout::BARRIERS, empty = full + 8 * layout::STAGES;
        for (unsigned i = 0; i < layout::STAGES; i++) {
            barrier_set(full + 8 * i, 1);
            barrier_set(empty + 8 * i, WGMMA_WARPS);
        }
        barrier_set(stages_at + layout::FACTORS - 16, WGMMA_KNOWN);
        barrier_publish();
    }
    __syncthreads();
    if (__shfl_sync(0xffffffffu, threadIdx.x / 128, 0) == WGMMA_WARPS / 4) {
        warpgroup_keep<24>();
        if (threadIdx.x == WGMMA_WARPS * 32) {
            wgmma_fetch<layout>(job, stages_at);
        } else if (threadIdx.x >= (WGMMA_WARPS + 1) * 32 &&
                   threadIdx.x < (WGMMA_WARPS + 1) * 32 + WGMMA_KNOWN &&
                   job.task.known.sums != nullptr) {
            wgmma_find_factors<layout, COLUMNS>(job, wgmma_shared,
                                                threadIdx.x - (WGMMA_WARPS + 1) * 32);
        }
    } else {
        warpgroup_claim<112>();
        wgmma_multiply<BITS, T, MODE, COLUMNS>(job, wgmma_shared);
    }
#endif
}

#endif
