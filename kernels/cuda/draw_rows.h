/* Choosing a token by a row of logits, for the engine's graphs and for ops->draw.
 *
 * A row is cut into consecutive pieces, one per block.  Every block finds the largest logit of its
 * piece, the last one to end takes the largest of these, the lowest index on ties.  Drawing: a
 * second kernel sums exp((logit - largest) / T) in FP64 in the same way; the last block finds the
 * piece, and in it the first index whose cumulative sum exceeds u times the total.  Sums are fixed
 * in order but not in one run from the first index, so that u may fall on the other side of a
 * boundary by an FP64 rounding.
 *
 * What a draw is for is a SINK, with
 *   void begin()                       before anything is read
 *   double temperature()
 *   double unit(row)                   u, 0 <= u < 1; called once for a row
 *   void best(row, id)                 by one thread: the likeliest is known
 *   void drawn(row, id, is_finite)     by one thread: so is the token that was drawn */
#ifndef INGOT_CUDA_DRAW_ROWS_H
#define INGOT_CUDA_DRAW_ROWS_H

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/last_block.h"

#define DRAW_THREADS     256
#define DRAW_BLOCKS_MOST 128u /* of a row */

/* Of rows [gridDim.y]; device memory. */
template <class SINK> struct draw_job {
    const float *logits;           /* [rows][vocab] */
    unsigned long long *best_part; /* [rows][DRAW_BLOCKS_MOST], likewise the next */
    double *sum_part;
    unsigned *done;       /* [rows], 0: blocks that have ended; left at 0 */
    uint32_t *best;       /* [rows] */
    float *peak;          /* [rows], the logit of best */
    unsigned *not_finite; /* [rows], set where a logit is not */
    unsigned vocab, piece;
    SINK sink;
};

/* Blocks and the width of a piece. */
static inline dim3 draw_grid(unsigned *piece, uint64_t vocab, uint64_t rows) {
    const uint64_t blocks =
        ingot_min_u64(DRAW_BLOCKS_MOST, ingot_ceil_div(vocab, 4 * DRAW_THREADS));
    *piece = (unsigned)ingot_ceil_div(vocab, blocks);
    return dim3((unsigned)ingot_ceil_div(vocab, *piece), (unsigned)rows);
}

/* Orders as the logit does, then as the lower index does. */
__device__ static inline unsigned long long draw_rank(float logit, unsigned index) {
    const unsigned bits = __float_as_uint(logit);
    const unsigned order = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return (unsigned long long)order << 32 | (0xffffffffu - index);
}

__device__ static inline unsigned long long draw_block_max(unsigned long long *shared,
                                                           unsigned long long value) {
    for (int other = 16; other > 0; other /= 2) {
        const unsigned long long more = __shfl_xor_sync(0xffffffffu, value, other);
        value = more > value ? more : value;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        shared[threadIdx.x / 32] = value;
    }
    __syncthreads();
    for (int i = 0; i < DRAW_THREADS / 32; i++) {
        value = shared[i] > value ? shared[i] : value;
    }
    return value;
}

template <class SINK>
__global__ __launch_bounds__(DRAW_THREADS) static void draw_best_kernel(const draw_job<SINK> job) {
    __shared__ unsigned long long shared[DRAW_THREADS / 32];
    __shared__ bool is_last;
    job.sink.begin();
    const unsigned row = blockIdx.y, begin = blockIdx.x * job.piece;
    const unsigned end = min(job.vocab, begin + job.piece);
    const float *logits = job.logits + (uint64_t)row * job.vocab;
    unsigned long long best = 0;
    bool is_bad = false;
    for (unsigned i = begin + threadIdx.x; i < end; i += DRAW_THREADS) {
        const float logit = logits[i];
        const unsigned long long own = draw_rank(logit == 0.0f ? 0.0f : logit, i); /* -0 is 0 */
        is_bad |= !isfinite(logit);
        best = own > best ? own : best;
    }
    if (is_bad) {
        atomicOr(&job.not_finite[row], 1u);
    }
    best = draw_block_max(shared, best);
    if (threadIdx.x == 0) {
        job.best_part[row * DRAW_BLOCKS_MOST + blockIdx.x] = best;
    }
    if (!cuda_block_ends_last(&is_last, &job.done[row], gridDim.x)) {
        return;
    }
    best =
        threadIdx.x < gridDim.x ? __ldcg(&job.best_part[row * DRAW_BLOCKS_MOST + threadIdx.x]) : 0;
    best = draw_block_max(shared, best);
    if (threadIdx.x == 0) {
        const unsigned id = min(0xffffffffu - (unsigned)best, job.vocab - 1);
        job.best[row] = id;
        job.peak[row] = logits[id];
        job.sink.best(row, id);
    }
}

/* What comes before thread `threadIdx.x` in the order of threads; *total: of all.  One thread adds,
 * in order. */
__device__ static inline double draw_sum_before(double *shared, double value, double *total) {
    __syncthreads();
    shared[threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0;
        for (int i = 0; i < DRAW_THREADS; i++) {
            const double own = shared[i];
            shared[i] = sum;
            sum += own;
        }
        shared[DRAW_THREADS] = sum;
    }
    __syncthreads();
    *total = shared[DRAW_THREADS];
    return shared[threadIdx.x];
}

template <class SINK>
__device__ static double draw_weight(const draw_job<SINK> &job, unsigned row, unsigned i) {
    const double logit = (double)job.logits[(uint64_t)row * job.vocab + i];
    return exp((logit - (double)job.peak[row]) / job.sink.temperature());
}

/* The sum of a thread's own run of logits, [*first, *last), of the piece that starts at `begin`. */
template <class SINK>
__device__ static double draw_run_sum(const draw_job<SINK> &job, unsigned row, unsigned begin,
                                      unsigned *first, unsigned *last) {
    const unsigned end = min(job.vocab, begin + job.piece);
    const unsigned each = (job.piece + DRAW_THREADS - 1) / DRAW_THREADS;
    *first = min(end, begin + threadIdx.x * each);
    *last = min(end, *first + each);
    double sum = 0;
    for (unsigned i = *first; i < *last; i++) {
        sum += draw_weight(job, row, i);
    }
    return sum;
}

/* The last index of a piece that has any weight: where by rounding no sum exceeds the target. */
template <class SINK>
__device__ static unsigned draw_last(const draw_job<SINK> &job, unsigned row, unsigned begin) {
    unsigned at = min(job.vocab, begin + job.piece) - 1;
    while (at > begin && !(draw_weight(job, row, at) > 0)) {
        at--;
    }
    return at;
}

template <class SINK>
__global__ __launch_bounds__(DRAW_THREADS) static void draw_kernel(const draw_job<SINK> job) {
    __shared__ double shared[DRAW_THREADS + 1];
    __shared__ double target;
    __shared__ unsigned piece, found;
    __shared__ bool is_last;
    job.sink.begin();
    const unsigned row = blockIdx.y;
    unsigned first, last;
    double total;
    double own = draw_run_sum(job, row, blockIdx.x * job.piece, &first, &last);
    (void)draw_sum_before(shared, own, &total);
    if (threadIdx.x == 0) {
        job.sum_part[row * DRAW_BLOCKS_MOST + blockIdx.x] = total;
    }
    if (!cuda_block_ends_last(&is_last, &job.done[row], gridDim.x)) {
        return;
    }
    own = threadIdx.x < gridDim.x ? __ldcg(&job.sum_part[row * DRAW_BLOCKS_MOST + threadIdx.x]) : 0;
    double before = draw_sum_before(shared, own, &total);
    if (threadIdx.x == 0) {
        target = job.sink.unit(row) * total;
        piece = gridDim.x;
        found = job.vocab;
    }
    __syncthreads();
    if (threadIdx.x < gridDim.x && before <= target && before + own > target) {
        piece = threadIdx.x; /* one thread at most: the sums do not fall */
    }
    __syncthreads();
    const double start = piece < gridDim.x ? shared[piece] : 0;
    if (piece < gridDim.x) {
        own = draw_run_sum(job, row, piece * job.piece, &first, &last);
        before = start + draw_sum_before(shared, own, &total);
        double sum = before;
        for (unsigned i = first; i < last && before <= target; i++) {
            sum += draw_weight(job, row, i);
            if (sum > target) {
                atomicMin(&found, i);
                break;
            }
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) { /* without a piece a logit is not finite, and nothing can be drawn */
        const unsigned id = found < job.vocab   ? found
                            : piece < gridDim.x ? draw_last(job, row, piece * job.piece)
                                                : job.best[row];
        job.sink.drawn(row, id, __ldcg(&job.not_finite[row]) == 0);
    }
}

#endif
