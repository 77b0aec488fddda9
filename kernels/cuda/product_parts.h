/* Internal to kernels/cuda: what the files of cuda_product (product.h) share. */
#ifndef INGOT_CUDA_PRODUCT_PARTS_H
#define INGOT_CUDA_PRODUCT_PARTS_H

#include "kernels/cuda/element.h"

extern "C" {
#include "kernels/cuda/product.h"
}

/* Where x comes from. */
typedef struct product_source {
    const void *x; /* [m][stride] */
    ingot_dtype dtype;
    uint64_t cols, stride;                /* elements */
    const float *norm_weight, *norm_bias; /* NULL: no norm, no bias */
    ingot_norm_kind norm_kind;
    float norm_eps;
    bool is_even; /* whole units of eight columns, 16-byte aligned, norm_weight too */
} product_source;

/* ingot_product_squares, as kernels take them. */
typedef struct product_known {
    const float *sums; /* NULL: none */
    unsigned parts, cols;
    float eps;
    bool is_factor; /* y is multiplied by the norm's factor; else they say how large y may be */
} product_known;

/* ingot_product_next, as kernels take it. */
typedef struct product_next {
    __half *x; /* NULL: none */
    ingot_product_form form;
    const float *norm_weight;
    float more;  /* than each of them */
    float *sums; /* [m][parts + 1] */
} product_next;

/* What the kernels that multiply take of a product; all pointers are on the device. */
typedef struct product_task {
    ingot_weight_view w[2]; /* W, U */
    const float *bias[2];
    const float *addend[2]; /* [m][rows] FP32: what outliers give; NULL: none */
    const void *x;          /* [m][x_stride] in 16 bits, 16-byte aligned */
    uint64_t x_stride;      /* elements; a multiple of 8, what lies behind the columns is zero */
    unsigned x_order; /* columns stand in the order of codes of that many bits (product_unpack.h),
                         rows are whole steps long; 0: in their own */
    unsigned x_tile;  /* x is in tiles, the last of so many rows (product_tile_of); 0: in rows */
    float4 *parts;    /* with x_tile: in the workspace, any contents, for blocks of product_wgmma.h
                         that    meet in a tile of W */
    product_known known; /* with x_tile */
    product_next next;   /* the same */
    const void *residual;
    void *y;
    ingot_dtype y_dtype;
    int activation; /* an ingot_activation, or -1 */
    bool has_up;
    uint64_t m;
} product_task;

/* What goes along with a task. */
typedef struct product_context {
    ingot_cuda *cuda;
    ingot_dtype dtype;  /* of x in 16 bits */
    bool is_chained;    /* the next launch may start before the kernel in front of it is done */
    uint8_t *workspace; /* what is left of it */
    bool uses_l1;       /* cuda_carveout */
    float largest[2];   /* of W and U (ingot_product); not in the task, which kernels take */
} product_context;

/* The kernels.  `can` says for which tasks a kernel is meant, `most` for how many rows of x, with
 * which they are not 0.  Packed weights are multiplied by up to PRODUCT_TILE rows at once. */
bool product_few_can(const ingot_cuda *cuda, const ingot_weight_view *w, uint64_t m);
ingot_status product_few(const product_context *context, const product_task &task,
                         const product_source &source);
/* For weights of 3, 4 or 8 bits with F16 scales of groups of 32 to 1024 columns (512 with zero
 * points) or of whole rows, rows in sixteens, and x in F16. */
bool product_stream_can(const ingot_cuda *cuda, const product_task *task, ingot_dtype dtype);
ingot_status product_stream(const product_context *context, const product_task &task,
                            const product_source &source);
uint64_t product_block_most(const ingot_cuda *cuda, const ingot_weight_view *w);
/* Whether it takes x in its own order, too: in 16 bits, is_even. */
bool product_block_orders(const ingot_weight_view *w, uint64_t m);
ingot_status product_block(const product_context *context, const product_task &task);
uint64_t product_wgmma_most(const ingot_cuda *cuda, const ingot_weight_view *w, bool has_up);
/* The rows of the last tile of x for it, or 0 where it is not meant for so many.  is_handed: x is
 * there in tiles, which need not be made. */
unsigned product_wgmma_tile(const ingot_cuda *cuda, const ingot_weight_view *w, bool has_up,
                            uint64_t m, bool is_handed);
/* Of product_task.parts; they are free for the next tile of x when one is done. */
uint64_t product_wgmma_parts_bytes(const ingot_cuda *cuda, const ingot_weight_view *w, bool has_up,
                                   uint64_t m);
ingot_status product_wgmma(const product_context *context, const product_task &task);
/* The same where a multiprocessor has little to do (product_cluster.h); product_wgmma asks.  Once
 * for a context, zeroed before: how its kernels run on the device. */
void product_cluster_open(ingot_cuda *cuda);
bool product_cluster_can(const ingot_cuda *cuda, const ingot_weight_view *w, bool has_up,
                         uint64_t m);
ingot_status product_cluster(const product_context *context, const product_task &task);
/* The parts of its squares where it hands on y with a norm. */
unsigned product_cluster_parts(const ingot_weight_view *w);
/* The same for up to 16 rows of x and some of those matrices (product_pairs.h), where squares of a
 * norm are neither taken nor handed on; asked first. */
bool product_pairs_can(const ingot_cuda *cuda, const product_task *task);
ingot_status product_pairs(const product_context *context, const product_task &task);
ingot_status product_plain(const product_context *context, const product_task &task);
/* For dense weights, rows of whole 16 bytes; those in F16 with x in F16 alone. */
bool product_dense_can(const ingot_cuda *cuda, const ingot_weight_view *w, uint64_t m,
                       ingot_dtype dtype);
ingot_status product_dense(const product_context *context, const product_task &task);
/* By way of cuBLAS and, but for dense weights as they are, weights in 16 bits; whether it would
 * read them as they are, and the workspace it needs beyond that of x. */
bool product_gemm_reads(const ingot_weight_view *w, uint64_t m, ingot_dtype dtype);
uint64_t product_gemm_workspace_bytes(const product_task &task, ingot_dtype dtype);
ingot_status product_gemm(const product_context *context, const product_task &task);

/* Chunks of 32 columns in a group as a power of two, or 31 when a row is one group; -1 when it is
 * neither. */
static inline int product_group_shift(const ingot_weight_view *w) {
    if (w->group >= w->cols) {
        return 31;
    }
    int shift = 0;
    while (shift < 27 && (UINT64_C(32) << shift) < w->group) {
        shift++;
    }
    return (UINT64_C(32) << shift) == w->group ? shift : -1;
}

static inline uint64_t product_aligned(uint64_t bytes) {
    return (bytes + 255) / 256 * 256;
}

/* Shared memory of a block when two fill a multiprocessor: the runtime takes 1 KB of each. */
static inline unsigned product_half_bytes(const ingot_cuda *cuda) {
    return ((unsigned)cuda->shared_bytes + 1024) / 2 - 1024;
}

/* More than that: no two blocks with so much are on a multiprocessor, but another kernel's may
 * start beside one. */
static inline unsigned product_lone_bytes(const ingot_cuda *cuda) {
    return product_half_bytes(cuda) + 4096;
}

/* Waits until the kernels before this one in the stream are done; in every kernel, in every thread
 * that reads or writes what others share. */
__device__ static inline void product_wait(void) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The kernel behind this one may start; it waits where it needs what this one writes. */
__device__ static inline void product_let_next_start(void) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* Those that are seldom met: instructions between those of a kernel's end would have to be fetched
 * around. */
__device__ static __noinline__ float product_activate_other(float x, int kind) {
    switch (kind) {
    case INGOT_ACT_GELU:
        return 0.5f * x * erfcf(-0.7071067812f * x);
    case INGOT_ACT_GELU_TANH: {
        const float root = 0.7978845608f;
        return x / (1.0f + expf(x * fmaf(x * x, -2.0f * root * 0.044715f, -2.0f * root)));
    }
    case INGOT_ACT_RELU:
        return x < 0.0f ? 0.0f : x;
    default:
        return x;
    }
}

/* The forms of kernels/cpu/isa_math.c. */
__device__ static inline float product_activate(float x, int kind) {
    return kind == INGOT_ACT_SILU ? x / (1.0f + expf(-x)) : product_activate_other(x, kind);
}

/* What is added to y[i][row] in the end. */
__device__ static inline float product_residual(const product_task &task, uint64_t i,
                                                uint64_t row) {
    const uint64_t at = i * task.w[0].rows + row;
    if (task.residual == nullptr) {
        return 0.0f;
    }
    switch (task.y_dtype) {
    case INGOT_F32:
        return static_cast<const float *>(task.residual)[at];
    case INGOT_F16:
        return to_float(static_cast<const __half *>(task.residual)[at]);
    default:
        return to_float(static_cast<const __nv_bfloat16 *>(task.residual)[at]);
    }
}

/* Everything behind the sums: y[i][row] from x W^T, x U^T and product_residual. */
__device__ static inline void product_store(const product_task &task, uint64_t i, uint64_t row,
                                            float sum, float up, float residual) {
    const uint64_t at = i * task.w[0].rows + row;
    sum += task.addend[0] != nullptr ? task.addend[0][at] : 0.0f;
    sum += task.bias[0] != nullptr ? task.bias[0][row] : 0.0f;
    if (task.activation >= 0) {
        sum = product_activate(sum, task.activation);
    }
    if (task.has_up) {
        up += task.addend[1] != nullptr ? task.addend[1][at] : 0.0f;
        up += task.bias[1] != nullptr ? task.bias[1][row] : 0.0f;
        sum *= up;
    }
    sum += residual;
    switch (task.y_dtype) {
    case INGOT_F32:
        static_cast<float *>(task.y)[at] = sum;
        break;
    case INGOT_F16:
        static_cast<__half *>(task.y)[at] = from_float<__half>(sum);
        break;
    default:
        static_cast<__nv_bfloat16 *>(task.y)[at] = from_float<__nv_bfloat16>(sum);
    }
}

/* x as the sum of two numbers in BF16, which is exact: 8 of its 11 bits, and the rest. */
__device__ static inline void product_split(__nv_bfloat16 &high, __nv_bfloat16 &low, __half x) {
    const float v = __half2float(x);
    high = __float2bfloat16_rn(v);
    low = __float2bfloat16_rn(v - __bfloat162float(high));
}

/* Launches `kernel`; chained: see ingot_product. */
template <typename... Parameters, typename... Arguments>
static inline ingot_status
product_launch(const product_context *context, void (*kernel)(Parameters...), dim3 grid,
               unsigned threads, unsigned shared_bytes, unsigned cluster, Arguments... arguments) {
    cudaLaunchAttribute attribute[3] = {};
    unsigned count = 0;
    attribute[count].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attribute[count++].val.sharedMemCarveout = cuda_carveout(context->uses_l1);
    if (context->is_chained && context->cuda->is_hopper) {
        attribute[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
        attribute[count].id = cudaLaunchAttributeClusterDimension;
        attribute[count].val.clusterDim.x = cluster;
        attribute[count].val.clusterDim.y = 1;
        attribute[count++].val.clusterDim.z = 1;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = context->cuda->stream;
    config.attrs = attribute;
    config.numAttrs = count;
    return cuda_launch(kernel, config, Parameters(arguments)...);
}

#endif
