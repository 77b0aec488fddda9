/* The engine's choice of tokens, with the meaning of ingot_sampler_next (calib/decode.h).
 *
 * A row of logits is cut into consecutive pieces, one per block.  Greedy: every block finds its
 * largest logit, the last one to end takes the largest of these, the lowest index on ties.  At a
 * temperature a second kernel sums exp((logit - largest) / T) in FP64 in the same way; the last
 * block finds the piece, and in it the first index whose cumulative sum exceeds u times the total.
 * Sums are fixed in order but not in one run from the first index, so that u may fall on the other
 * side of a boundary by an FP64 rounding. */
#include "kernels/cuda/engine_parts.h"

#include "common/random.h"

#define THREADS 256

typedef struct sample_job {
    engine_choice *choice;
    const float *logits;
    unsigned long long *best_part;
    double *sum_part;
    uint32_t *ring;
    unsigned vocab, piece, sequences, capacity;
    bool is_greedy, advances;
} sample_job;

/* Orders as the logit does, then as the lower index does. */
__device__ static unsigned long long rank(float logit, unsigned index) {
    const unsigned bits = __float_as_uint(logit);
    const unsigned order = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return (unsigned long long)order << 32 | (0xffffffffu - index);
}

__device__ static unsigned long long block_max(unsigned long long *shared,
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
    for (int i = 0; i < THREADS / 32; i++) {
        value = shared[i] > value ? shared[i] : value;
    }
    return value;
}

/* One thread: the token of row `row` is known. */
__device__ static void publish(const sample_job &job, unsigned row, uint32_t id) {
    engine_choice *c = job.choice;
    const unsigned at = c->made[row]++ % ENGINE_RING;
    c->id[row] = id;
    if (job.advances && c->length[row] < job.capacity) {
        c->length[row]++;
    }
    job.ring[at * job.sequences + row] = __ldcg(&c->not_finite[row]) != 0 ? UINT32_MAX : id;
    __threadfence_system();
}

/* Whether this block ends last in its row; resets the count. */
__device__ static bool ends_last(bool *shared, engine_choice *choice, unsigned row) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        *shared = atomicAdd(&choice->done[row], 1u) == gridDim.x - 1;
        if (*shared) {
            choice->done[row] = 0;
        }
    }
    __syncthreads();
    __threadfence();
    return *shared;
}

__global__ __launch_bounds__(THREADS) static void engine_best_kernel(const sample_job job) {
    __shared__ unsigned long long shared[THREADS / 32];
    __shared__ bool is_last;
    engine_chain();
    const unsigned row = blockIdx.y, begin = blockIdx.x * job.piece;
    const unsigned end = min(job.vocab, begin + job.piece);
    const float *logits = job.logits + (uint64_t)row * job.vocab;
    unsigned long long best = 0;
    bool is_bad = false;
    for (unsigned i = begin + threadIdx.x; i < end; i += THREADS) {
        const float logit = logits[i];
        const unsigned long long own = rank(logit == 0.0f ? 0.0f : logit, i); /* -0 is 0 */
        is_bad |= !isfinite(logit);
        best = own > best ? own : best;
    }
    if (is_bad) {
        atomicOr(&job.choice->not_finite[row], 1u);
    }
    best = block_max(shared, best);
    if (threadIdx.x == 0) {
        job.best_part[row * ENGINE_BLOCKS + blockIdx.x] = best;
    }
    if (!ends_last(&is_last, job.choice, row)) {
        return;
    }
    best = threadIdx.x < gridDim.x ? __ldcg(&job.best_part[row * ENGINE_BLOCKS + threadIdx.x]) : 0;
    best = block_max(shared, best);
    if (threadIdx.x == 0) {
        const unsigned id = min(0xffffffffu - (unsigned)best, job.vocab - 1);
        job.choice->best[row] = id;
        job.choice->peak[row] = logits[id];
        if (job.is_greedy) {
            publish(job, row, id);
        }
    }
}

/* What comes before thread `threadIdx.x` in the order of threads; *total: of all.  One thread adds,
 * in order. */
__device__ static double sum_before(double *shared, double value, double *total) {
    __syncthreads();
    shared[threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0;
        for (int i = 0; i < THREADS; i++) {
            const double own = shared[i];
            shared[i] = sum;
            sum += own;
        }
        shared[THREADS] = sum;
    }
    __syncthreads();
    *total = shared[THREADS];
    return shared[threadIdx.x];
}

__device__ static double weight_of(const sample_job &job, const float *logits, unsigned row,
                                   unsigned i) {
    return exp(((double)logits[i] - (double)job.choice->peak[row]) / job.choice->temperature);
}

/* The sum of a thread's own run of logits, [*first, *last), of the piece that starts at `begin`. */
__device__ static double run_sum(const sample_job &job, const float *logits, unsigned row,
                                 unsigned begin, unsigned *first, unsigned *last) {
    const unsigned end = min(job.vocab, begin + job.piece);
    const unsigned each = (job.piece + THREADS - 1) / THREADS;
    *first = min(end, begin + threadIdx.x * each);
    *last = min(end, *first + each);
    double sum = 0;
    for (unsigned i = *first; i < *last; i++) {
        sum += weight_of(job, logits, row, i);
    }
    return sum;
}

__global__ __launch_bounds__(THREADS) static void engine_draw_kernel(const sample_job job) {
    __shared__ double shared[THREADS + 1];
    __shared__ double target;
    __shared__ unsigned piece, found;
    __shared__ bool is_last;
    engine_chain();
    const unsigned row = blockIdx.y;
    const float *logits = job.logits + (uint64_t)row * job.vocab;
    unsigned first, last;
    double total;
    double own = run_sum(job, logits, row, blockIdx.x * job.piece, &first, &last);
    (void)sum_before(shared, own, &total);
    if (threadIdx.x == 0) {
        job.sum_part[row * ENGINE_BLOCKS + blockIdx.x] = total;
    }
    if (!ends_last(&is_last, job.choice, row)) {
        return;
    }
    own = threadIdx.x < gridDim.x ? __ldcg(&job.sum_part[row * ENGINE_BLOCKS + threadIdx.x]) : 0;
    double before = sum_before(shared, own, &total);
    if (threadIdx.x == 0) {
        target = ingot_random_unit(&job.choice->random[row]) * total;
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
        own = run_sum(job, logits, row, piece * job.piece, &first, &last);
        before = start + sum_before(shared, own, &total);
        double sum = before;
        for (unsigned i = first; i < last && before <= target; i++) {
            sum += weight_of(job, logits, row, i);
            if (sum > target) {
                atomicMin(&found, i);
                break;
            }
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) { /* by rounding nothing may be found: then the likeliest */
        publish(job, row, found < job.vocab ? found : job.choice->best[row]);
    }
}

ingot_status engine_sample(const ingot_engine *e, bool is_greedy, bool advances) {
    const uint64_t vocab = e->model.vocab;
    const uint64_t blocks = ingot_min_u64(ENGINE_BLOCKS, ingot_ceil_div(vocab, 4 * THREADS));
    const uint64_t piece = ingot_ceil_div(vocab, blocks);
    sample_job job = {};
    job.choice = e->choice;
    job.logits = e->logits;
    job.best_part = e->best_part;
    job.sum_part = e->sum_part;
    job.ring = e->ring;
    job.vocab = (unsigned)vocab;
    job.piece = (unsigned)piece;
    job.sequences = (unsigned)e->sequences;
    job.capacity = (unsigned)e->capacity;
    job.is_greedy = is_greedy;
    job.advances = advances;
    const engine_shape shape = {
        dim3((unsigned)ingot_ceil_div(vocab, piece), (unsigned)e->sequences), THREADS};
    INGOT_TRY(engine_launch(e, engine_best_kernel, shape, job, true));
    return is_greedy ? INGOT_OK : engine_launch(e, engine_draw_kernel, shape, job, true);
}
