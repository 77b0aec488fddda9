/* Plain rounding and the scale search on the device: the candidates, the shortlist and the
 * refinement of kernels/cpu/isa_quantize.c, one warp to a group.
 *
 * A group passes through shared memory in pieces; every lane then judges candidates of its own over
 * the whole piece, so that no sum crosses lanes.  The six best candidates and plain rounding are
 * refined side by side, four lanes to each.  Sums are FP32 over a piece and FP64 over pieces. */
#include "kernels/cuda/element.h"
#include "kernels/cuda/forward.h"
#include "kernels/cuda/search.h"

#include <cfloat>

#define WARPS        4
#define PIECE        128 /* values of a group in shared memory */
#define LADDER_STEPS 32  /* candidates of either sign */
#define WINDOWS      5   /* zero points tried for each scale */
#define KEPT         6   /* candidates that are refined */
#define REFITS       4   /* rounds of refinement, at most */
#define CHAIN_LANES  4   /* lanes that refine one candidate */

/* To nearest, ties to even; |x| < 2^22. */
__device__ static inline float nearest(float x) {
    const float magic = 12582912.0f;
    return __fsub_rn(__fadd_rn(x, magic), magic);
}

__device__ static inline float code_of(float x, float low, float high) {
    return nearest(fminf(fmaxf(x, low), high));
}

/* One group of one row, as the kernels below see it. */
struct group_view {
    const float *w, *importance; /* NULL importance: ones */
    const uint8_t *skip;         /* nonzero: left out; NULL: none */
    uint64_t count;
};

struct __align__(8) weighted {
    float w, d;
};

__device__ static int piece_size(const group_view &g, uint64_t first) {
    return (int)(g.count - first < PIECE ? g.count - first : PIECE);
}

/* Loads the piece of the group that begins with value `first`. */
__device__ static void load_piece(weighted *piece, const group_view &g, uint64_t first, int lane) {
    __syncwarp();
    for (int i = lane; i < piece_size(g, first); i += 32) {
        const uint64_t at = first + i;
        weighted x = {0.0f, 0.0f};
        if (g.skip == nullptr || g.skip[at] == 0) {
            x.w = g.w[at];
            x.d = g.importance != nullptr ? g.importance[at] : 1.0f;
        }
        piece[i] = x;
    }
    __syncwarp();
}

__device__ static double warp_sum(double x) {
    for (int lane = 16; lane > 0; lane /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, lane);
    }
    return x;
}

__device__ static double chain_sum(double x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* What is known of a group before the search. */
struct group_range {
    float low, high;                /* zero included */
    double weight, product, energy; /* sums of d, d w, d w w */
};

__device__ static group_range measure_group(weighted *piece, const group_view &g, int lane) {
    group_range r = {0.0f, 0.0f, 0.0, 0.0, 0.0};
    for (uint64_t first = 0; first < g.count; first += PIECE) {
        load_piece(piece, g, first, lane);
        float weight = 0, product = 0, energy = 0;
        for (int i = lane; i < piece_size(g, first); i += 32) {
            const weighted x = piece[i];
            r.low = fminf(r.low, x.w);
            r.high = fmaxf(r.high, x.w);
            weight += x.d;
            product += x.d * x.w;
            energy += x.d * x.w * x.w;
        }
        r.weight += (double)weight;
        r.product += (double)product;
        r.energy += (double)energy;
    }
    for (int step = 16; step > 0; step /= 2) {
        r.low = fminf(r.low, __shfl_xor_sync(0xffffffffu, r.low, step));
        r.high = fmaxf(r.high, __shfl_xor_sync(0xffffffffu, r.high, step));
    }
    r.weight = warp_sum(r.weight);
    r.product = warp_sum(r.product);
    r.energy = warp_sum(r.energy);
    return r;
}

/* ---- candidates -------------------------------------------------------------------------------
 */

/* Scale and zero of candidate number `index`; false past the last or when the scale is zero. */
template <bool IS_FREE>
__device__ static bool candidate(float *scale, unsigned *zero, unsigned index, const group_range &r,
                                 unsigned top, unsigned half) {
    if (!IS_FREE) {
        const float largest = fmaxf(-r.low, r.high);
        const float end = (float)half / (float)(half - 1); /* max|w| on code 2^(bits-1) - 1 */
        const unsigned step = index / 2;
        const float part = step < LADDER_STEPS
                               ? 0.5f + (end - 0.5f) * (float)step / (float)(LADDER_STEPS - 1)
                               : 1.0f;
        *zero = half;
        *scale = largest * part / (float)half * (index % 2 == 0 ? 1.0f : -1.0f);
        return index < 2 * LADDER_STEPS + 2 && fabsf(*scale) > 0.0f;
    }
    const unsigned step = index / WINDOWS, window = index % WINDOWS;
    const float part = 0.35f + 0.75f * (float)step / (float)(LADDER_STEPS - 1);
    *scale = (r.high - r.low) / (float)top * part;
    /* the window of codes slid from one end of the range to the other */
    const float at_low = -r.low / *scale, at_high = (float)top - r.high / *scale;
    const float z = rintf(at_low + (at_high - at_low) * (float)window / (float)(WINDOWS - 1));
    *zero = (unsigned)fminf(fmaxf(z, 0.0f), (float)top);
    return index < LADDER_STEPS * WINDOWS && fabsf(*scale) > 0.0f;
}

struct shortlisted {
    float scale;
    unsigned zero;
    bool is_present;
};

/* The candidate of rank lane / CHAIN_LANES by gain, for every lane; ties go to the lower number. */
template <bool IS_FREE>
__device__ static shortlisted shortlist(weighted *piece, const group_view &g, const group_range &r,
                                        unsigned top, unsigned half, int lane) {
    constexpr int EACH = IS_FREE ? 5 : 3; /* candidates of a lane: 160, or 66 of 96 */
    float inverse[EACH], low[EACH], high[EACH];
    unsigned zero[EACH];
    double wc[EACH], cc[EACH];
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        float scale;
        const bool is_valid =
            candidate<IS_FREE>(&scale, &zero[k], (unsigned)(k * 32 + lane), r, top, half);
        inverse[k] = is_valid ? 1.0f / scale : 0.0f;
        low[k] = is_valid ? -(float)zero[k] : 0.0f;
        high[k] = is_valid ? (float)(top - zero[k]) : 0.0f;
        wc[k] = cc[k] = 0;
    }
    for (uint64_t first = 0; first < g.count; first += PIECE) {
        if (g.count > PIECE) {
            load_piece(piece, g, first, lane);
        }
        const int count = piece_size(g, first);
        float part_wc[EACH] = {}, part_cc[EACH] = {};
        for (int i = 0; i < count; i++) {
            const weighted x = piece[i];
#pragma unroll
            for (int k = 0; k < EACH; k++) {
                const float c = code_of(x.w * inverse[k], low[k], high[k]), t = x.d * c;
                part_wc[k] = fmaf(t, x.w, part_wc[k]);
                part_cc[k] = fmaf(t, c, part_cc[k]);
            }
        }
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            wc[k] += (double)part_wc[k];
            cc[k] += (double)part_cc[k];
        }
    }
    double gain[EACH];
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        gain[k] = cc[k] > 0 ? wc[k] * wc[k] / cc[k] : -1.0;
    }
    shortlisted chosen = {0.0f, half, false};
#pragma unroll
    for (int rank = 0; rank < KEPT; rank++) {
        double best = -1.0;
        unsigned best_index = UINT32_MAX;
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            if (gain[k] > best) {
                best = gain[k];
                best_index = (unsigned)(k * 32 + lane);
            }
        }
        for (int step = 16; step > 0; step /= 2) {
            const double other = __shfl_xor_sync(0xffffffffu, best, step);
            const unsigned index = __shfl_xor_sync(0xffffffffu, best_index, step);
            if (other > best || (other == best && index < best_index)) {
                best = other;
                best_index = index;
            }
        }
        if (best_index == UINT32_MAX) {
            break;
        }
        float scale = 0;
        unsigned of_zero = 0;
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            if (best_index == (unsigned)(k * 32 + lane)) {
                scale = (float)(wc[k] / cc[k]);
                of_zero = zero[k];
                gain[k] = -1.0;
            }
        }
        scale = __shfl_sync(0xffffffffu, scale, (int)(best_index % 32));
        of_zero = __shfl_sync(0xffffffffu, of_zero, (int)(best_index % 32));
        if (lane / CHAIN_LANES == rank) {
            chosen.scale = scale;
            chosen.zero = of_zero;
            chosen.is_present = true;
        }
    }
    return chosen;
}

/* ---- refinement -------------------------------------------------------------------------------
 */

struct fit {
    double wc, cc, c, loss;
};

/* Sums over the group for one scale and zero per chain; all lanes take part. */
__device__ static fit fit_chain(weighted *piece, const group_view &g, float scale, unsigned zero,
                                unsigned top, int lane) {
    const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    const float low = -(float)zero, high = (float)(top - zero);
    fit f = {0, 0, 0, 0};
    for (uint64_t first = 0; first < g.count; first += PIECE) {
        if (g.count > PIECE) {
            load_piece(piece, g, first, lane);
        }
        const int count = piece_size(g, first);
        float wc = 0, cc = 0, cs = 0, loss = 0;
        for (int i = lane % CHAIN_LANES; i < count; i += CHAIN_LANES) {
            const weighted x = piece[i];
            const float c = code_of(x.w * inverse, low, high), t = x.d * c;
            const float e = fmaf(-scale, c, x.w);
            wc = fmaf(t, x.w, wc);
            cc = fmaf(t, c, cc);
            cs += t;
            loss = fmaf(x.d * e, e, loss);
        }
        f.wc += (double)wc;
        f.cc += (double)cc;
        f.c += (double)cs;
        f.loss += (double)loss;
    }
    f.wc = chain_sum(f.wc);
    f.cc = chain_sum(f.cc);
    f.c = chain_sum(f.c);
    f.loss = chain_sum(f.loss);
    return f;
}

struct choice {
    float scale;
    unsigned zero;
    float loss;
};

/* Chains 0 .. KEPT-1 refine the shortlist, chain KEPT tries plain rounding. */
template <bool IS_FREE>
__device__ static choice refine(weighted *piece, const group_view &g, const group_range &r,
                                shortlisted s, unsigned top, unsigned half, ingot_dtype dtype,
                                int lane) {
    const int chain = lane / CHAIN_LANES;
    choice best = {0.0f, half, FLT_MAX};
    float scale = s.scale;
    unsigned zero = s.zero;
    bool is_active = s.is_present;
    if (chain == KEPT) {
        const float largest = fmaxf(-r.low, r.high);
        scale = IS_FREE ? (r.high - r.low) / (float)top : largest / (float)(half - 1);
        const float stored = cuda_scale_store(scale, dtype);
        if (IS_FREE && stored != 0.0f) {
            zero = (unsigned)fminf(rintf(-r.low / stored), (float)top);
        } else {
            zero = half;
        }
        is_active = stored != 0.0f;
    }
    for (int round = 0; round < REFITS; round++) {
        const float stored = is_active ? cuda_scale_store(scale, dtype) : 0.0f;
        is_active = is_active && stored != 0.0f;
        if (__all_sync(0xffffffffu, !is_active)) {
            break;
        }
        const fit f = fit_chain(piece, g, stored, zero, top, lane);
        if (!is_active) {
            continue;
        }
        if (f.loss < (double)best.loss) {
            best.scale = stored;
            best.zero = zero;
            best.loss = (float)f.loss;
        }
        const unsigned old_zero = zero;
        const double determinant = r.weight * f.cc - f.c * f.c;
        double shift = 0;
        if (IS_FREE && determinant > 0) { /* w = s c + m: the zero moves by -m / s */
            const double slope = (r.weight * f.wc - f.c * r.product) / determinant;
            const double m = (r.product - slope * f.c) / r.weight;
            double moved = slope != 0 ? rint((double)zero - m / slope) : (double)zero;
            moved = moved < 0 ? 0 : moved > (double)top ? (double)top : moved;
            zero = (unsigned)moved;
            shift = (double)old_zero - (double)zero;
        }
        const double cc = f.cc + 2 * shift * f.c + shift * shift * r.weight;
        const double wc = f.wc + shift * r.product;
        is_active = cc > 0 && chain != KEPT;
        scale = cc > 0 ? (float)(wc / cc) : 0.0f;
        is_active = is_active && !(zero == old_zero && cuda_scale_store(scale, dtype) == stored);
    }
    return best;
}

/* The better of a zero scale, plain rounding and the chains, in that order on ties. */
__device__ static choice take_best(choice own, double energy, unsigned half) {
    choice best = {0.0f, half, (float)energy};
    for (int i = 0; i <= KEPT; i++) {
        const int from = (i == 0 ? KEPT : i - 1) * CHAIN_LANES;
        choice other;
        other.scale = __shfl_sync(0xffffffffu, own.scale, from);
        other.zero = __shfl_sync(0xffffffffu, own.zero, from);
        other.loss = __shfl_sync(0xffffffffu, own.loss, from);
        if (other.loss < best.loss) {
            best = other;
        }
    }
    return best;
}

/* ---- kernels ----------------------------------------------------------------------------------
 */

__device__ static void write_codes(uint8_t *codes, const group_view &g, float scale, unsigned zero,
                                   unsigned top, int lane) {
    const float low = -(float)zero, high = (float)(top - zero);
    for (uint64_t i = lane; i < g.count; i += 32) {
        const bool is_out = scale == 0.0f || (g.skip != nullptr && g.skip[i] != 0);
        codes[i] =
            is_out ? (uint8_t)zero : (uint8_t)(code_of(__fdiv_rn(g.w[i], scale), low, high) - low);
    }
}

/* The group of this warp; false past the last. */
__device__ static bool own_group(group_view *g, uint64_t *row, uint64_t *index,
                                 const cuda_search_job &job) {
    const uint64_t warp = (uint64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (warp >= job.rows * job.groups) {
        return false;
    }
    *row = warp / job.groups;
    *index = warp % job.groups;
    const uint64_t first = *index * job.group;
    g->w = job.w + *row * job.stride + first;
    g->importance = job.importance != nullptr ? job.importance + first : nullptr;
    g->skip = job.skip != nullptr ? job.skip + *row * job.skip_stride + first : nullptr;
    g->count = job.cols - first < job.group ? job.cols - first : job.group;
    return true;
}

template <bool IS_FREE>
__global__ __launch_bounds__(WARPS * 32) void search_kernel(const cuda_search_job job) {
    __shared__ weighted pieces[WARPS][PIECE];
    const int lane = threadIdx.x % 32;
    weighted *piece = pieces[threadIdx.x / 32];
    const unsigned top = (1u << job.bits) - 1, half = 1u << (job.bits - 1);
    group_view g;
    uint64_t row, index;
    if (!own_group(&g, &row, &index, job)) {
        return;
    }
    const group_range r = measure_group(piece, g, lane);
    choice best = {0.0f, half, 0.0f};
    if (fmaxf(-r.low, r.high) != 0.0f) {
        const shortlisted s = shortlist<IS_FREE>(piece, g, r, top, half, lane);
        best = refine<IS_FREE>(piece, g, r, s, top, half, job.scale_dtype, lane);
        best = take_best(best, r.energy, half);
    }
    if (lane == 0) {
        job.scales[row * job.scale_stride + job.first_group + index] = best.scale;
        job.zeros[row * job.scale_stride + job.first_group + index] = (uint8_t)best.zero;
    }
    if (job.codes != nullptr) {
        write_codes(job.codes + row * job.stride + index * job.group, g, best.scale, best.zero, top,
                    lane);
    }
}

__global__ __launch_bounds__(WARPS * 32) void rtn_kernel(const cuda_search_job job, bool is_free) {
    const int lane = threadIdx.x % 32;
    const unsigned top = (1u << job.bits) - 1, half = 1u << (job.bits - 1);
    group_view g;
    uint64_t row, index;
    if (!own_group(&g, &row, &index, job)) {
        return;
    }
    float low = 0, high = 0;
    for (uint64_t i = lane; i < g.count; i += 32) {
        low = fminf(low, g.w[i]);
        high = fmaxf(high, g.w[i]);
    }
    for (int step = 16; step > 0; step /= 2) {
        low = fminf(low, __shfl_xor_sync(0xffffffffu, low, step));
        high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, step));
    }
    unsigned zero = half;
    float scale;
    if (is_free) {
        scale = cuda_scale_store(__fdiv_rn(high - low, (float)top), job.scale_dtype);
        if (scale != 0.0f) {
            zero = (unsigned)fminf(rintf(__fdiv_rn(-low, scale)), (float)top);
        }
    } else {
        scale = cuda_scale_store(__fdiv_rn(fmaxf(-low, high), (float)(half - 1)), job.scale_dtype);
    }
    if (lane == 0) {
        job.scales[row * job.scale_stride + index] = scale;
        job.zeros[row * job.scale_stride + index] = (uint8_t)zero;
    }
    write_codes(job.codes + row * job.stride + index * job.group, g, scale, zero, top, lane);
}

/* mask[row][col] = 1 for every outlier. */
__global__ static void outlier_mask_kernel(uint8_t *mask, const uint64_t *row_ptr,
                                           const uint32_t *col, uint64_t rows, uint64_t cols) {
    const uint64_t row = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (uint64_t i = row < rows ? row_ptr[row] : 0; row < rows && i < row_ptr[row + 1]; i++) {
        mask[row * cols + col[i]] = 1;
    }
}

ingot_status cuda_outlier_mask(const ingot_cuda *cuda, uint8_t *mask, const ingot_outliers *o,
                               uint64_t rows, uint64_t cols) {
    INGOT_TRY(ingot_cuda_status(cudaMemsetAsync(mask, 0, rows * cols, cuda->stream)));
    outlier_mask_kernel<<<(unsigned)ingot_ceil_div(rows, 256), 256, 0, cuda->stream>>>(
        mask, o->row_ptr, o->col, rows, cols);
    return ingot_cuda_launched();
}

ingot_status cuda_search_groups(const ingot_cuda *cuda, const cuda_search_job *job,
                                ingot_zero_mode zero_mode) {
    const uint64_t blocks = ingot_ceil_div(job->rows * job->groups, WARPS);
    if (blocks == 0) {
        return INGOT_OK;
    }
    if (blocks > INT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    if (zero_mode == INGOT_ZERO_STORED) {
        search_kernel<true><<<(unsigned)blocks, WARPS * 32, 0, cuda->stream>>>(*job);
    } else {
        search_kernel<false><<<(unsigned)blocks, WARPS * 32, 0, cuda->stream>>>(*job);
    }
    return ingot_cuda_launched();
}

static cuda_search_job whole_job(const ingot_quantized *q, const float *w,
                                 const float *importance) {
    cuda_search_job job = {};
    job.w = w;
    job.importance = importance;
    job.rows = q->rows;
    job.cols = q->cols;
    job.stride = q->cols;
    job.group = q->format.group;
    job.groups = q->groups;
    job.bits = q->format.bits;
    job.scale_dtype = q->format.scale_dtype;
    job.scales = q->scales;
    job.zeros = q->zeros;
    job.scale_stride = q->groups;
    job.codes = q->codes;
    return job;
}

ingot_status cuda_search(void *context, ingot_quantized *q, const float *w, const float *importance,
                         ingot_arena *scratch) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    cuda_search_job job = whole_job(q, w, importance);
    if (q->outliers.count != 0) {
        void *mask;
        INGOT_TRY(ingot_arena_array(scratch, &mask, q->rows, q->cols));
        INGOT_TRY(
            cuda_outlier_mask(cuda, static_cast<uint8_t *>(mask), &q->outliers, q->rows, q->cols));
        job.skip = static_cast<uint8_t *>(mask);
        job.skip_stride = q->cols;
    }
    return cuda_search_groups(cuda, &job, q->format.zero_mode);
}

ingot_status cuda_rtn(void *context, ingot_quantized *q, const float *w) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    const cuda_search_job job = whole_job(q, w, nullptr);
    const uint64_t blocks = ingot_ceil_div(q->rows * q->groups, WARPS);
    if (blocks == 0) {
        return INGOT_OK;
    }
    if (blocks > INT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    rtn_kernel<<<(unsigned)blocks, WARPS * 32, 0, cuda->stream>>>(job, q->format.zero_mode ==
                                                                           INGOT_ZERO_STORED);
    return ingot_cuda_launched();
}
