/* Rounding and signed descent of codes and scales (kernels/quantize.h): a warp per group. */
#include "kernels/cuda/backward.h"
#include "kernels/cuda/element.h"
#include "kernels/cuda/search.h"

#define THREADS 256

#define REMAINDER_MOST 0.25f
#define GAIN_LEAST     0.5f
#define GAIN_MOST      2.0f

typedef struct tuning_job {
    ingot_tuning t;
    const float *w, *gradient;
    uint8_t *codes;
    float *scales;
    const uint8_t *zeros;
    const uint8_t *skip; /* [rows][cols], nonzero at outliers; NULL: none */
    uint64_t rows, cols, groups, group;
    float most; /* largest code */
    float rate, gain_rate;
    ingot_dtype scale_dtype;
} tuning_job;

static tuning_job job_of(const ingot_quantized *q, const ingot_tuning *t) {
    tuning_job job = {};
    job.t = *t;
    job.codes = q->codes;
    job.scales = q->scales;
    job.zeros = q->zeros;
    job.rows = q->rows;
    job.cols = q->cols;
    job.groups = q->groups;
    job.group = q->format.group;
    job.most = (float)((1u << q->format.bits) - 1);
    job.scale_dtype = q->format.scale_dtype;
    return job;
}

/* One warp of a grid-stride loop over groups: its first element, and columns of the group. */
typedef struct group_place {
    uint64_t group; /* of the matrix */
    uint64_t begin; /* element */
    uint64_t count;
} group_place;

__device__ static bool place_of(const tuning_job &job, uint64_t index, group_place *p) {
    if (index >= job.rows * job.groups) {
        return false;
    }
    const uint64_t row = index / job.groups, g = index - row * job.groups;
    p->group = index;
    p->begin = row * job.cols + g * job.group;
    p->count = min(job.group, job.cols - g * job.group);
    return true;
}

__device__ static uint64_t warp_index(void) {
    return ((uint64_t)blockIdx.x * THREADS + threadIdx.x) / 32;
}

__device__ static uint64_t warp_count(void) {
    return (uint64_t)gridDim.x * (THREADS / 32);
}

__device__ static float sign_of(float x) {
    return (float)(x > 0.0f) - (float)(x < 0.0f);
}

__global__ __launch_bounds__(THREADS) static void tuning_begin_kernel(const tuning_job job) {
    group_place p;
    for (uint64_t i = warp_index(); place_of(job, i, &p); i += warp_count()) {
        const float scale = job.scales[p.group], zero = (float)job.zeros[p.group];
        if (threadIdx.x % 32 == 0) {
            job.t.start_scale[p.group] = scale;
            job.t.gain[p.group] = 1.0f;
        }
        for (uint64_t j = p.begin + threadIdx.x % 32; j < p.begin + p.count; j += 32) {
            const float code = (float)job.codes[j];
            const float lacks = scale != 0.0f ? job.w[j] / scale + zero - code : 0.0f;
            job.t.position[j] = job.skip != nullptr && job.skip[j] != 0
                                    ? -INFINITY
                                    : code + fminf(fmaxf(lacks, -REMAINDER_MOST), REMAINDER_MOST);
        }
    }
}

__global__ __launch_bounds__(THREADS) static void tuning_round_kernel(const tuning_job job) {
    group_place p;
    for (uint64_t i = warp_index(); place_of(job, i, &p); i += warp_count()) {
        if (threadIdx.x % 32 == 0) {
            const float start = job.t.start_scale[p.group];
            const float stored =
                cuda_scale_store(__fmul_rn(start, job.t.gain[p.group]), job.scale_dtype);
            job.scales[p.group] = stored != 0.0f ? stored : start; /* the smallest there is */
        }
        for (uint64_t j = p.begin + threadIdx.x % 32; j < p.begin + p.count; j += 32) {
            const float position = job.t.position[j];
            job.codes[j] = position == -INFINITY
                               ? job.zeros[p.group]
                               : (uint8_t)fminf(fmaxf(rintf(position), 0.0f), job.most);
        }
    }
}

__global__ __launch_bounds__(THREADS) static void tuning_step_kernel(const tuning_job job) {
    group_place p;
    for (uint64_t i = warp_index(); place_of(job, i, &p); i += warp_count()) {
        const float zero = (float)job.zeros[p.group];
        const float turn = job.rate * sign_of(job.scales[p.group]);
        float sum = 0.0f;
        for (uint64_t j = p.begin + threadIdx.x % 32; j < p.begin + p.count; j += 32) {
            const float slope = job.gradient[j], position = job.t.position[j];
            sum = fmaf(slope, (float)job.codes[j] - zero, sum);
            const float moved = position - turn * sign_of(slope);
            job.t.position[j] =
                position == -INFINITY ? position : fminf(fmaxf(moved, -0.5f), job.most + 0.5f);
        }
        for (int lane = 16; lane > 0; lane /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, lane);
        }
        if (threadIdx.x % 32 == 0) {
            const float gain =
                job.t.gain[p.group] - job.gain_rate * sign_of(sum * job.t.start_scale[p.group]);
            job.t.gain[p.group] = fminf(fmaxf(gain, GAIN_LEAST), GAIN_MOST);
        }
    }
}

/* A warp per group: sum of slopes times code - zero, added to out. */
__global__ __launch_bounds__(THREADS) static void scale_backward_kernel(float *out,
                                                                        const tuning_job job) {
    group_place p;
    for (uint64_t i = warp_index(); place_of(job, i, &p); i += warp_count()) {
        const float zero = (float)job.zeros[p.group];
        float sum = 0.0f;
        for (uint64_t j = p.begin + threadIdx.x % 32; j < p.begin + p.count; j += 32) {
            sum = fmaf(job.gradient[j], (float)job.codes[j] - zero, sum);
        }
        for (int lane = 16; lane > 0; lane /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, lane);
        }
        if (threadIdx.x % 32 == 0) {
            out[p.group] += sum;
        }
    }
}

/* A thread per group; job.gradient is that of the gains. */
__global__ __launch_bounds__(THREADS) static void scale_step_kernel(const tuning_job job) {
    const uint64_t count = job.rows * job.groups, stride = (uint64_t)gridDim.x * THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += stride) {
        const float start = job.t.start_scale[i];
        const float moved = __fsub_rn(
            job.t.gain[i], __fmul_rn(job.rate, sign_of(__fmul_rn(job.gradient[i], start))));
        const float gain = fminf(fmaxf(moved, GAIN_LEAST), GAIN_MOST);
        const float stored = cuda_scale_store(__fmul_rn(start, gain), job.scale_dtype);
        job.t.gain[i] = gain;
        job.scales[i] = stored != 0.0f ? stored : start;
    }
}

static unsigned grid_of(const ingot_cuda *cuda, const tuning_job &job) {
    const uint64_t wanted = ingot_ceil_div(job.rows * job.groups, THREADS / 32);
    return (unsigned)ingot_min_u64(ingot_max_u64(wanted, 1), 64u * (unsigned)cuda->multiprocessors);
}

ingot_status cuda_tuning_begin(void *context, const ingot_tuning *t, const ingot_quantized *q,
                               const float *w) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    tuning_job job = job_of(q, t);
    ingot_cuda_buffer mask(cuda);
    job.w = w;
    if (q->outliers.count != 0) {
        INGOT_TRY(mask.alloc(q->rows, q->cols));
        INGOT_TRY(cuda_outlier_mask(cuda, mask.as<uint8_t>(), &q->outliers, q->rows, q->cols));
        job.skip = mask.as<uint8_t>();
    }
    tuning_begin_kernel<<<grid_of(cuda, job), THREADS, 0, cuda->stream>>>(job);
    return ingot_cuda_launched();
}

ingot_status cuda_tuning_round(void *context, ingot_quantized *q, const ingot_tuning *t) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    const tuning_job job = job_of(q, t);
    tuning_round_kernel<<<grid_of(cuda, job), THREADS, 0, cuda->stream>>>(job);
    return ingot_cuda_launched();
}

ingot_status cuda_tuning_step(void *context, const ingot_tuning *t, const ingot_quantized *q,
                              const float *gradient, float rate, float gain_rate) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    tuning_job job = job_of(q, t);
    job.gradient = gradient;
    job.rate = rate;
    job.gain_rate = gain_rate;
    tuning_step_kernel<<<grid_of(cuda, job), THREADS, 0, cuda->stream>>>(job);
    return ingot_cuda_launched();
}

ingot_status cuda_scale_backward(void *context, float *out, const ingot_quantized *q,
                                 const float *gradient) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    const ingot_tuning none = {};
    tuning_job job = job_of(q, &none);
    job.gradient = gradient;
    scale_backward_kernel<<<grid_of(cuda, job), THREADS, 0, cuda->stream>>>(out, job);
    return ingot_cuda_launched();
}

ingot_status cuda_scale_step(void *context, ingot_quantized *q, float *gain, const float *start,
                             const float *gradient, float rate) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    ingot_tuning t = {};
    t.gain = gain;
    t.start_scale = const_cast<float *>(start);
    tuning_job job = job_of(q, &t);
    job.gradient = gradient;
    job.rate = rate;
    scale_step_kernel<<<grid_of(cuda, job), THREADS, 0, cuda->stream>>>(job);
    return ingot_cuda_launched();
}
