/* Internal to kernels/cuda: what the files of the engine (kernels/engine.h) share.
 *
 * engine.cu        life, feeding, graphs
 * engine_load.cu   weights into device memory
 * engine_pass.cu   one pass of rows through all blocks, as launches
 * engine_rows.cu   embedding, norm, rotary, activation, unpacking: kernels over rows
 * engine_attention.cu (engine_tile.h, engine_join.h), engine_sample.cu
 *
 * A pass takes m rows: the next token of each of m sequences, or m consecutive tokens of one
 * prompt. Up to ENGINE_PRODUCT_ROWS rows read packed weights, more where that pays (product.h);
 * else they go through unpacked binary16 and cuBLAS.
 *
 * Every kernel lets its successor start early and waits for its predecessor before it touches what
 * that one writes (programmatic dependent launch); so the gaps between kernels are short. */
#ifndef INGOT_CUDA_ENGINE_PARTS_H
#define INGOT_CUDA_ENGINE_PARTS_H

#include "kernels/cuda/element.h"

extern "C" {
#include "kernels/cuda/product.h"
#include "kernels/engine.h"
}

#define ENGINE_ROWS         512u /* of one pass */
#define ENGINE_PRODUCT_ROWS 64u
#define ENGINE_PIECE_BYTES  (UINT64_C(160) << 20) /* of a matrix in binary16 at once */
#define ENGINE_TILE         16u                   /* rows of queries that share keys in one tile */
#define ENGINE_SPLITS       48u                   /* most parts of a context */
#define ENGINE_RING         64u  /* tokens on their way to the host, per sequence */
#define ENGINE_BLOCKS       128u /* of the search over one row of logits, most */

typedef struct engine_linear {
    ingot_weight_view w; /* device */
    const float *bias;   /* device [w.rows] or NULL */
    float largest;       /* a bound of the magnitudes of w: its copies in binary16 follow it */
} engine_linear;

typedef struct engine_layer {
    engine_linear linear[INGOT_ENGINE_ROLES];
    engine_linear qkv; /* Q, K and V as one matrix, where is_stacked */
    bool is_stacked;
    const float *qkv_bias; /* device [rows of Q, K and V], or NULL */
    const float *norm_attention, *norm_mlp, *norm_q, *norm_k; /* device or NULL */
    __half *k, *v; /* [sequences][kv_heads][capacity][head_dim] */
    uint64_t window;
} engine_layer;

/* The rows of a pass, for kernels. */
typedef struct engine_rows {
    unsigned m;
    const uint32_t *ids; /* [m] device */
    const uint32_t
        *lengths;      /* [m] device: row r is the token of sequence r there; NULL: a prompt */
    unsigned first;    /* prompt: the position of row 0 */
    unsigned sequence; /* prompt: whose */
    unsigned capacity; /* of a sequence; rows beyond are left out */
    unsigned padded;   /* capacity of the cache, a multiple of 16 */
} engine_rows;

/* What the projections left for attention. */
typedef struct engine_projected {
    const float *x[3];  /* q, k, v of row 0 */
    uint64_t stride[3]; /* from row to row */
    const float *bias;  /* [q + k + v] or NULL */
    const float *norm_q, *norm_k;
} engine_projected;

/* State of the choice of tokens, on the device. */
typedef struct engine_choice {
    double temperature;
    uint64_t random[ENGINE_SEQUENCES];
    uint32_t id[ENGINE_SEQUENCES];
    uint32_t length[ENGINE_SEQUENCES]; /* tokens in the cache */
    uint32_t made[ENGINE_SEQUENCES];   /* tokens chosen so far */
    unsigned done[ENGINE_SEQUENCES];   /* blocks of the search that have ended */
    uint32_t best[ENGINE_SEQUENCES];
    float peak[ENGINE_SEQUENCES];
    unsigned not_finite[ENGINE_SEQUENCES];
} engine_choice;

struct ingot_engine {
    ingot_cuda *cuda;
    ingot_engine_model model; /* numbers alone: its pointers are not used */
    uint64_t sequences, capacity, padded;
    uint64_t pass_rows; /* most rows of one pass */
    bool is_chained;    /* programmatic dependent launch is there */
    bool uses_l1;       /* cuda_carveout, as products of a row of each sequence do */

    void *slab;      /* all weights */
    void *owned[32]; /* working memory */
    unsigned owned_count;
    engine_layer *layer;
    engine_linear embed, head;
    const float *final_norm;
    double *inverse_frequency; /* device */

    /* working memory, device */
    __half *cache;
    float *x, *projected, *logits;
    __half *normed, *q, *context, *inner; /* in rows, or in a tile (ingot_product_form) */
    float *squares[2]; /* sums of squares of rows of x, of now and of before (product.h) */
    __half *gate_up;   /* [2][pass_rows][ffn]: gate, up */
    float2 *angles;    /* [pass_rows][rotary_dim / 2]: cos, sin */
    float *part;       /* of split attention: sums */
    float2 *part_scale;
    unsigned *part_done;
    unsigned *saturated; /* ingot_engine_saturated */
    void *product_work;
    __half *unpacked; /* a piece of a matrix */
    uint32_t *ids;    /* [pass_rows] of a prompt */
    engine_choice *choice;
    unsigned long long *best_part; /* [sequences][ENGINE_BLOCKS] */
    double *sum_part;              /* the same */

    /* the host's side */
    uint32_t length[ENGINE_SEQUENCES];  /* tokens fed */
    uint32_t written[ENGINE_SEQUENCES]; /* tokens since it was empty that may have left values */
    bool has_logits[ENGINE_SEQUENCES];  /* fed since `next` */
    bool is_choosing;                   /* `next` was the last call, its tokens are not fed */
    double temperature;
    uint64_t random[ENGINE_SEQUENCES]; /* the sampler's, for choice random_at since is_choosing */
    uint64_t random_at;
    uint64_t launched, delivered; /* choices since is_choosing */
    uint32_t *ring;               /* pinned [ENGINE_RING][sequences] */
    cudaEvent_t event[ENGINE_RING];
    cudaGraphExec_t graph[2]; /* greedy, sampled; made when needed */
};

/* ---- launching --------------------------------------------------------------------------------
 */

typedef struct engine_shape {
    dim3 grid;
    unsigned threads, shared_bytes;
    unsigned cluster; /* blocks of a cluster, along z; 0 or 1: none */
} engine_shape;

/* Launches a kernel whose only argument is `job`; chained to the one before. */
template <typename T>
static ingot_status engine_launch(const ingot_engine *e, void (*kernel)(T),
                                  const engine_shape &shape, const T &job, bool is_chained) {
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute[3] = {};
    unsigned count = 0;
    attribute[count].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attribute[count++].val.sharedMemCarveout = cuda_carveout(e->uses_l1);
    if (is_chained && e->is_chained) {
        attribute[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (shape.cluster > 1) {
        attribute[count].id = cudaLaunchAttributeClusterDimension;
        attribute[count].val.clusterDim.x = 1;
        attribute[count].val.clusterDim.y = 1;
        attribute[count++].val.clusterDim.z = shape.cluster;
    }
    config.gridDim = shape.grid;
    config.blockDim = dim3(shape.threads);
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = e->cuda->stream;
    config.attrs = attribute;
    config.numAttrs = count;
    return cuda_launch(kernel, config, job);
}

/* ---- engine_load.cu ---------------------------------------------------------------------------
 */

/* Fills slab, layer, embed, head and final_norm. */
ingot_status engine_load(ingot_engine *e, const ingot_engine_model *model,
                         const ingot_engine_options *options, ingot_engine_load *load,
                         ingot_error *error);

/* ---- engine_rows.cu ---------------------------------------------------------------------------
 */

/* x[m][hidden] = embeddings; angles[m] = of their positions; what is handed on of x (next->x, with
 * a norm; squares have one part), unless that is NULL. */
ingot_status engine_embed(const ingot_engine *e, const engine_rows *rows,
                          const ingot_product_next *next);
/* The first `count` values of a sequence become zero, in all layers. */
ingot_status engine_clear(const ingot_engine *e, uint64_t sequence, uint64_t count);
/* normed[m][hidden] = norm(x) in binary16; with weight NULL x itself. */
ingot_status engine_norm(const ingot_engine *e, const engine_rows *rows, const float *weight);
/* q in binary16, k and v into the cache, from what the projections left. */
ingot_status engine_heads(const ingot_engine *e, const engine_rows *rows, const engine_layer *layer,
                          const engine_projected *from);
/* inner[m][ffn] = activation(gate + gate_bias) * (up + up_bias); with biases ffn is a multiple of
 * 8. */
ingot_status engine_activate(const ingot_engine *e, const engine_rows *rows, const float *gate_bias,
                             const float *up_bias);
/* x[m][hidden] += bias[hidden] */
ingot_status engine_add_bias(const ingot_engine *e, const engine_rows *rows, const float *bias);
/* out[rows][w.cols] = rows first.. of w in binary16, divided by two to the power that follows from
 * linear->largest (cuda_exponent_of). */
ingot_status engine_unpack(const ingot_engine *e, __half *out, const engine_linear *linear,
                           uint64_t first, uint64_t rows);
/* *largest (host) = a bound on the magnitude of the weights; waits. */
ingot_status engine_bound(const ingot_engine *e, const ingot_weight_view *w, float *largest);

/* ---- engine_attention.cu ----------------------------------------------------------------------
 */

/* Floats of `part` and elements of part_scale and part_done that any pass of this engine needs. */
uint64_t engine_attention_parts(const ingot_engine *e);
uint64_t engine_attention_units(const ingot_engine *e);
/* context[m][heads * head_dim], in `form` if that has rows, = attention; for sequences (not a
 * prompt) the heads are shaped and the cache is written on the way, for a prompt engine_heads did
 * it. */
ingot_status engine_attend(const ingot_engine *e, const engine_rows *rows,
                           const engine_layer *layer, const engine_projected *from,
                           ingot_product_form form);

/* ---- engine_pass.cu ---------------------------------------------------------------------------
 */

uint64_t engine_product_work_bytes(const ingot_engine *e);
/* Of each of `squares`. */
uint64_t engine_square_bytes(const ingot_engine *e);
/* Of the products of a pass over all sequences (cuda_product_uses_l1). */
bool engine_products_use_l1(const ingot_engine *e);
/* All blocks; then logits: of the last row into those of its sequence for a prompt (only when
 * wants_logits), of every row else. */
ingot_status engine_pass(const ingot_engine *e, const engine_rows *rows, bool wants_logits);

/* ---- engine_sample.cu -------------------------------------------------------------------------
 */

/* The next token of every sequence from `logits`; advances: the pass before fed a token. */
ingot_status engine_sample(const ingot_engine *e, bool is_greedy, bool advances);

/* ---- what kernels share -----------------------------------------------------------------------
 */

#ifdef __CUDACC__

/* Waits until the kernel before has ended. */
__device__ static inline void engine_wait(void) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Lets the next kernel of the stream start. */
__device__ static inline void engine_let_next_start(void) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ static inline void engine_chain(void) {
    engine_let_next_start();
    engine_wait();
}

/* Notes a magnitude that finite_half has cut off, or would have but for rounding. */
__device__ static inline void engine_note_saturated(unsigned *saturated, float peak) {
    if (peak >= 65504.0f) {
        *saturated = 1;
    }
}

__device__ static inline unsigned engine_position(const engine_rows &rows, unsigned row) {
    return rows.lengths != nullptr ? rows.lengths[row] : rows.first + row;
}

__device__ static inline unsigned engine_sequence(const engine_rows &rows, unsigned row) {
    return rows.lengths != nullptr ? row : rows.sequence;
}

/* A head of projections as one warp makes it ready: read with its bias, then normalised into
 * v[head_dim], which is the warp's own shared memory.  Every lane must call; ends in step. */
typedef struct engine_head_shape {
    unsigned head_dim, rotary;
    float eps;
    bool is_plus_one;
} engine_head_shape;

#define ENGINE_HEAD_PARTS (ENGINE_HEAD_DIM / 32) /* of a head in a lane: d = lane + 32 i */

__device__ static inline void engine_read_head(float (&part)[ENGINE_HEAD_PARTS], const float *x,
                                               const float *bias, const engine_head_shape &shape) {
    const unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned i = 0; i < ENGINE_HEAD_PARTS; i++) {
        const unsigned d = lane + 32 * i;
        part[i] = d < shape.head_dim ? x[d] + (bias != nullptr ? bias[d] : 0.0f) : 0.0f;
    }
}

/* The sum of squares of a head that the lanes of a warp hold, in every lane. */
__device__ static inline float engine_head_square(const float (&part)[ENGINE_HEAD_PARTS]) {
    float square = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < ENGINE_HEAD_PARTS; i++) {
        square = fmaf(part[i], part[i], square);
    }
    for (int other = 16; other > 0; other /= 2) {
        square += __shfl_xor_sync(0xffffffffu, square, other);
    }
    return square;
}

__device__ static inline void engine_norm_head(float *v, const float (&part)[ENGINE_HEAD_PARTS],
                                               const float *norm, const engine_head_shape &shape) {
    const unsigned lane = threadIdx.x % 32;
    float factor = 1.0f;
    if (norm != nullptr) {
        const float square = engine_head_square(part);
        factor = 1.0f / sqrtf(square / (float)shape.head_dim + shape.eps);
    }
    __syncwarp();
#pragma unroll
    for (unsigned i = 0; i < ENGINE_HEAD_PARTS; i++) {
        const unsigned d = lane + 32 * i;
        if (d < shape.head_dim) {
            v[d] = norm == nullptr
                       ? part[i]
                       : part[i] * factor * (norm[d] + (shape.is_plus_one ? 1.0f : 0.0f));
        }
    }
    __syncwarp();
}

/* Feature d of the head after rotation by `angle`, which is engine_angle of d. */
__device__ static inline float engine_rotated(const float *v, const float2 &angle, unsigned d,
                                              unsigned rotary) {
    const unsigned middle = rotary / 2;
    if (d >= rotary) {
        return v[d];
    }
    return d < middle ? v[d] * angle.x - v[d + middle] * angle.y
                      : v[d] * angle.x + v[d - middle] * angle.y;
}

__device__ static inline float2 engine_angle(const float2 *angles, unsigned d, unsigned rotary) {
    const unsigned middle = rotary / 2;
    return d < rotary ? angles[d < middle ? d : d - middle] : make_float2(1.0f, 0.0f);
}

#endif

#endif
