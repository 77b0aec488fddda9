/* Internal to kernels/cuda: what the warps of product_stream.h copy from device memory, each its
 * own, to slots in shared memory. */
#ifndef INGOT_CUDA_PRODUCT_STREAM_COPIES_H
#define INGOT_CUDA_PRODUCT_STREAM_COPIES_H

#include "kernels/cuda/product_load.h"
#include "kernels/cuda/wgmma.h"

#define STREAM_UNIT      256 /* columns */
#define STREAM_SLOTS     8   /* of a warp at most; by pieces ASYNC_MOST */
#define STREAM_OWN_BYTES 64  /* of a warp: barriers of its slots, or jumps */

typedef struct stream_job {
    CUtensorMap map[2]; /* codes of W and U, by boxes of a unit or of half of it */
    product_task task;
    product_source source;
    unsigned units;       /* of a row of W */
    unsigned tiles;       /* of 16 rows */
    unsigned group_shift; /* log2 of the chunks of 32 in a group */
    unsigned turns_shift; /* log2 of the turns of a block, a tile of one side each, between two
                             meetings of its warps */
    unsigned slots;       /* of a warp, 2 to STREAM_SLOTS */
    unsigned early;       /* of them, filled at once, ... */
    unsigned soon;        /* ... and, those that are more, when the first has come, all before x is
                             asked for; by pieces as many as early */
} stream_job;

/* How groups are stored: of 128 columns and more, of 64, of 32; symmetric or with zero points. */
typedef enum stream_kind {
    STREAM_128,
    STREAM_128_ZEROS,
    STREAM_64,
    STREAM_64_ZEROS,
    STREAM_32,
    STREAM_32_ZEROS
} stream_kind;

__host__ __device__ constexpr bool stream_has_zeros(stream_kind kind) {
    return kind == STREAM_128_ZEROS || kind == STREAM_64_ZEROS || kind == STREAM_32_ZEROS;
}

/* Groups of half a unit: 128 columns. */
__host__ __device__ constexpr unsigned stream_parts(stream_kind kind) {
    return kind >= STREAM_32 ? 4 : kind >= STREAM_64 ? 2 : 1;
}

/* Of a warp: codes of 16 rows as the file has them, but that the 16-byte pieces of rows of 4 and 8
 * bits trade places, in boxes of 128 bytes of each row (WGMMA_SWIZZLE) or as stream_trade says. */
template <int BITS> struct stream_slot {
    static constexpr unsigned ROW = STREAM_UNIT / 8 * BITS; /* bytes of codes */
    static constexpr unsigned PIECES = ROW / 16;            /* of a row */
    static constexpr unsigned BOXES = BITS == 8 ? 2 : 1, BOX_ROW = ROW / BOXES;
    static constexpr unsigned CODES = 16 * ROW;
    static_assert(BITS == 3 || BOX_ROW == WGMMA_SWIZZLE, "");
};

/* And elsewhere what belongs to its groups, of each row and half of the unit: the aligned word, or
 * both, with its scales, then that with its zero points, where there are some. */
template <stream_kind KIND> struct stream_groups {
    static constexpr bool HAS_ZEROS = stream_has_zeros(KIND);
    static constexpr unsigned SCALES = stream_parts(KIND) == 4 ? 8 : 4;
    static constexpr unsigned HALF = HAS_ZEROS ? 2 * SCALES : SCALES;
    static constexpr unsigned ROW = 2 * HALF, BYTES = 16 * ROW;
};

/* Groups are at most so many columns or rows, so that the scales that a lane meets in units of its
 * own stand in the same half of their words, and zero points at the same place of theirs. */
#define STREAM_GROUP       1024
#define STREAM_GROUP_ZEROS 512

#if INGOT_SM90A

/* Keeps the compiler from working a value out again where it is used. */
__device__ static inline unsigned stream_keep(unsigned value) {
    asm volatile("" : "+r"(value));
    return value;
}
__device__ static inline const void *stream_keep(const void *value) {
    asm volatile("" : "+l"(value));
    return value;
}

/* What a warp copies, one unit after the other, to slots of its own.  By boxes, the copy engine
 * fetches a unit for an instruction of one lane, which takes least; by pieces, lanes copy 16 bytes
 * at a time, which are under way sooner, since there is no map to be read first. */
template <int BITS, stream_kind KIND, unsigned WARPS, bool IS_BOXED> struct stream_copies;

/* Where a warp's slots are in shared memory, and what else is its own: STREAM_OWN_BYTES. */
typedef struct stream_room {
    unsigned codes, groups, own;
} stream_room;

/* The aligned word, or both, with the scales of a lane's row and half of unit `unit`, and that with
 * their zero points; lanes 2i and 2i + 1 have the halves of row i. */
template <stream_kind KIND> struct stream_words {
    const uint8_t *scales, *zeros;

    __device__ void find(const ingot_weight_view &of, const product_matrix &w, unsigned tile,
                         unsigned unit) {
        const unsigned lane = threadIdx.x % 32;
        const uint64_t row = (uint64_t)tile * 16 + lane / 2;
        const unsigned group = (unit * 8 + lane % 2 * 4) >> w.group_shift;
        scales =
            static_cast<const uint8_t *>(of.scales) + ((row * w.groups + group) * 2 & ~(uint64_t)3);
        if (stream_has_zeros(KIND)) {
            zeros = of.zeros + ((row * w.groups + group) & ~(uint64_t)3);
        }
    }

    /* Starts copies to `to`, where the lane's are in a slot; zeros where there are no columns. */
    __device__ void fetch(unsigned to, const product_matrix &w, bool is_there) const {
        typedef stream_groups<KIND> groups;
        async_copy<groups::SCALES>(to, scales, is_there ? groups::SCALES : 0);
        if (groups::HAS_ZEROS) {
            async_copy<4>(to + groups::SCALES, zeros, is_there ? 4 : 0);
        }
    }

    __device__ void go_on(const product_matrix &w, unsigned units) {
        scales += units * 16 >> w.group_shift;
        if (stream_has_zeros(KIND)) {
            zeros += units * 8 >> w.group_shift;
        }
    }
};

template <int BITS, stream_kind KIND, unsigned WARPS>
struct stream_copies<BITS, KIND, WARPS, true> {
    typedef stream_slot<BITS> layout;
    typedef stream_groups<KIND> groups;
    const stream_job &job;
    const product_matrix &w;
    const stream_room room; /* own: barriers of the slots */
    const unsigned warp;    /* known to be the same in all lanes */
    stream_words<KIND> words;
    unsigned tile, side, unit, odd;

    __device__ stream_copies(const stream_job &of, const product_matrix &matrix,
                             const stream_room &at, unsigned own_warp)
        : job(of), w(matrix), room(at), warp(own_warp), odd(0) {
        if (threadIdx.x % 32 == 0) {
            for (unsigned slot = 0; slot < job.slots; slot++) {
                barrier_set(room.own + slot * 8, 32 + 1); /* words of all, and who asks */
            }
            barrier_publish();
        }
        __syncwarp();
        start(blockIdx.x, 0);
    }

    /* The warp's first unit of a tile. */
    __device__ void start(unsigned at_tile, unsigned at_side) {
        tile = at_tile, side = at_side;
        unit = warp;
        words.find(job.task.w[side], w, tile, unit);
    }

    /* Starts copies of a unit, if there is one, and goes on.  What is behind the end of a row is
     * zero. */
    __device__ void fetch(unsigned slot) {
        if (tile >= job.tiles || unit >= job.units) {
            return;
        }
        const unsigned lane = threadIdx.x % 32, barrier = room.own + slot * 8;
        words.fetch(room.groups + slot * groups::BYTES + lane * groups::HALF, w,
                    unit * 8 + lane % 2 * 4 <= w.last_chunk);
        async_arrive(barrier);
        if (warp_elect()) {
            barrier_expect(barrier, layout::CODES);
#pragma unroll
            for (unsigned i = 0; i < layout::BOXES; i++) {
                bulk_copy_box(room.codes + slot * layout::CODES + i * (16 * layout::BOX_ROW),
                              &job.map[side], unit * layout::ROW + i * layout::BOX_ROW, tile * 16,
                              barrier);
            }
        }
        words.go_on(w, WARPS);
        unit += WARPS;
        if (unit >= job.units) {
            const bool has_other = job.task.has_up && side == 0;
            start(has_other ? tile : tile + gridDim.x, has_other ? 1 : 0);
        }
    }

    /* Waits for the first unit, if there is one, without its turn. */
    __device__ void await_first(void) const {
        if (warp < job.units) {
            barrier_wait(room.own, 0);
        }
    }

    /* Waits for a slot, each in its turn. */
    __device__ void wait(unsigned slot) {
        barrier_wait(room.own + slot * 8, odd);
        odd ^= slot + 1 == job.slots ? 1 : 0;
    }
};

template <int BITS, stream_kind KIND, unsigned WARPS>
struct stream_copies<BITS, KIND, WARPS, false> {
    typedef stream_slot<BITS> layout;
    typedef stream_groups<KIND> groups;
    const stream_job &job;
    const product_matrix &w;
    const stream_room room; /* own: jumps[side], then those of zero points */
    const uint8_t *codes;   /* the lane's first piece */
    stream_words<KIND> words;
    const unsigned whole;  /* units that are not cut off */
    unsigned to, words_to; /* in slot 0 */
    unsigned tile, side, unit;

    /* jumps[side] = from behind a warp's units of the tile of a side to its first of the block's
     * next tile, of W, or U and W in turn: bytes of codes, of scales, and of zero points. */
    __device__ stream_copies(const stream_job &of, const product_matrix &matrix,
                             const stream_room &at, unsigned warp)
        : job(of), w(matrix), room(at), whole((w.last_chunk + 1) / 8), tile(blockIdx.x), side(0),
          unit(warp) {
        const unsigned lane = threadIdx.x % 32, piece = lane % layout::PIECES;
        const uint64_t row = (uint64_t)tile * 16;
        codes =
            w.codes + ((row + lane / layout::PIECES) * w.stride + unit * layout::ROW + piece * 16);
        words.find(job.task.w[0], w, tile, unit);
        to = stream_keep(room.codes + (BITS == 3 ? lane * 16
                                                 : lane / layout::PIECES * layout::ROW +
                                                       stream_trade(lane / layout::PIECES, piece)));
        words_to = stream_keep(room.groups + lane * groups::HALF);
        const unsigned own = warp < job.units ? (job.units - warp - 1) / WARPS + 1 : 0;
        const ingot_weight_view &from = job.task.w[lane % 2];
        const ingot_weight_view &next = job.task.w[job.task.has_up ? 1 - lane % 2 : 0];
        const long long on = job.task.has_up && lane == 0 ? 0 : (long long)gridDim.x * 16;
        if (lane < 2) {
            const long long other = job.task.has_up ? next.codes - from.codes : 0;
            const long long scale = job.task.has_up ? static_cast<const uint8_t *>(next.scales) -
                                                          static_cast<const uint8_t *>(from.scales)
                                                    : 0;
            shared_write_two(room.own + lane * 16,
                             other + on * w.stride - own * (WARPS * layout::ROW),
                             scale + on * w.groups * 2 - own * (WARPS * 16 >> w.group_shift));
            if (groups::HAS_ZEROS) {
                const long long zero = job.task.has_up ? next.zeros - from.zeros : 0;
                shared_write_one(room.own + 32 + lane * 8,
                                 zero + on * w.groups - own * (WARPS * 8 >> w.group_shift));
            }
        }
        __syncwarp();
    }

    /* Where a piece of a row stands: what the lanes of two adjacent rows read at once lies in
     * different banks.  Rows of 3 bits do so by their length. */
    __device__ static unsigned stream_trade(unsigned row, unsigned piece) {
        return (piece ^ row % 2) * 16;
    }

    /* The pieces of 16 rows, 32 at a time; IS_CUT: with zeros behind the end of a row. */
    template <bool IS_CUT> __device__ void fetch_pieces(unsigned at) const {
        const unsigned piece = threadIdx.x % 32 % layout::PIECES;
        const unsigned column = unit * layout::ROW + piece * 16;
        if constexpr (BITS == 3) { /* 32 pieces are some rows and a part of the next */
#pragma unroll
            for (unsigned i = 0; i < 16 * layout::PIECES; i += 32) {
                const unsigned over = piece + i % layout::PIECES >= layout::PIECES ? 1 : 0;
                const int on = (int)(i % layout::PIECES * 16) - (int)(over * layout::ROW);
                async_copy<16>(at + i * 16, codes + on + (i / layout::PIECES + over) * w.stride,
                               !IS_CUT || column + on < w.stride ? 16 : 0);
            }
        } else {
            constexpr unsigned AT_ONCE = 32 / layout::PIECES; /* rows */
            static_assert(AT_ONCE % 2 == 0, "the pieces of a lane trade places alike");
            const uint8_t *from = codes;
#pragma unroll
            for (unsigned i = 0; i < 16; i += AT_ONCE) {
                async_copy<16>(at + i * layout::ROW, from, !IS_CUT || column < w.stride ? 16 : 0);
                from += AT_ONCE * w.stride;
            }
        }
    }

    __device__ void fetch(unsigned slot) {
        if (tile < job.tiles && unit < job.units) {
            const unsigned at = to + slot * layout::CODES;
            const bool is_cut = unit >= whole;
            if (is_cut) {
                fetch_pieces<true>(at);
            } else {
                fetch_pieces<false>(at);
            }
            words.fetch(words_to + slot * groups::BYTES, w,
                        !is_cut || unit * 8 + threadIdx.x % 2 * 4 <= w.last_chunk);
            codes += WARPS * layout::ROW;
            words.go_on(w, WARPS);
            unit += WARPS;
            if (unit >= job.units) {
                const longlong2 far = shared_read_two(room.own + side * 16);
                const unsigned sides = job.task.has_up ? 2 : 1;
                codes += far.x;
                words.scales += far.y;
                if (groups::HAS_ZEROS) {
                    words.zeros += shared_read_one(room.own + 32 + side * 8);
                }
                unit = threadIdx.x / 32;
                tile += side + 1 == sides ? gridDim.x : 0;
                side = side + 1 == sides ? 0 : 1;
            }
        }
        async_commit();
    }

    __device__ void wait(unsigned) {
        async_arrived_first(job.slots);
        __syncwarp();
    }
};

#endif

#endif
