/* Internal to kernels/cuda: attention of the engine, what a block works on and where it has it.
 * engine_attention.cu says how. */
#ifndef INGOT_CUDA_ENGINE_TILE_H
#define INGOT_CUDA_ENGINE_TILE_H

#include "kernels/cuda/async_copy.h"
#include "kernels/cuda/engine_parts.h"

#define THREADS 128
#define WARPS   4u
#define STEP    16u            /* keys of a warp at a time */
#define ROUND   (WARPS * STEP) /* of the block */
#define NO_KEY  UINT32_MAX
#define CLUSTER ((unsigned)CUDA_CLUSTER_PARTS) /* blocks */
/* Keys of a block at least, in steps: where blocks meet in device memory, with fewer that takes
 * longer than a block needs to read its keys (decision 0024: 471 tokens/s for 463 behind 4096
 * tokens); in a cluster it takes less. */
#define LEAST_STEPS         (4 * WARPS)
#define LEAST_MANY_STEPS    (8 * WARPS) /* where tiles without that fill half of the device */
#define LEAST_CLUSTER_STEPS (2 * WARPS)
#define FULL_STEPS          (2 * WARPS) /* of a block, whose slots they fill */

typedef struct attention_job {
    engine_rows rows;
    engine_projected from; /* FUSED: what is shaped on the way */
    engine_head_shape shape;
    const float2 *angles;
    const __half *q; /* not FUSED: [m][heads][head_dim] */
    __half *k, *v, *out;
    ingot_product_form form; /* of out */
    float *part;
    float2 *part_scale;
    unsigned *part_done;
    unsigned *saturated;
    unsigned heads, kv_heads, chunks, tile_tokens, window;
    unsigned cluster;     /* blocks of one; 1: they meet in device memory */
    unsigned least_steps; /* of a block, where blocks meet in device memory */
    unsigned group;       /* query heads of a key head */
    bool has_angles;
    float per_feature;              /* 1 / head_dim */
    float scale, softcap, cap_rate; /* 2 log2 e / softcap */
} attention_job;

/* What a block works on. */
typedef struct span {
    unsigned first_token, tokens, first_head, heads, kv_head, rows;
    unsigned newest;          /* position of the last token */
    unsigned begin, end;      /* keys of this block */
    unsigned active, members; /* blocks that share the tile's keys; of them in a cluster */
    unsigned parts;           /* of the tile that meet in device memory */
    bool is_last;             /* the newest key is among them */
    uint64_t base;            /* of its head in the cache */
} span;

/* False when the block has nothing to do.  JOINT: in clusters. */
template <bool JOINT> __device__ static inline bool find_span(span *s, const attention_job &job) {
    const unsigned group = job.group, chunk = blockIdx.x % job.chunks * ENGINE_TILE;
    s->kv_head = blockIdx.x / job.chunks;
    s->first_head = s->kv_head * group + chunk;
    s->heads = min(group - chunk, ENGINE_TILE);
    s->first_token = blockIdx.y * job.tile_tokens;
    s->tokens = min(job.tile_tokens, job.rows.m - s->first_token);
    s->rows = s->tokens * s->heads;
    const unsigned oldest = engine_position(job.rows, s->first_token);
    const unsigned newest = engine_position(job.rows, s->first_token + s->tokens - 1);
    s->newest = newest;
    if (newest >= job.rows.capacity) {
        return false;
    }
    const unsigned low =
        job.window != 0 && oldest + 1 > job.window ? (oldest + 1 - job.window) / STEP * STEP : 0;
    const unsigned high = newest + 1, steps = (high - low + STEP - 1) / STEP;
    if (JOINT) { /* more than one where a block's slots do not hold its keys */
        const unsigned full = job.cluster * FULL_STEPS;
        s->parts = min((steps + full - 1) / full, gridDim.z / job.cluster);
        s->members = s->parts > 1 ? job.cluster
                                  : min((steps + LEAST_CLUSTER_STEPS - 1) / LEAST_CLUSTER_STEPS,
                                        job.cluster);
        s->active = s->parts * s->members;
    } else {
        s->members = 1;
        s->active = s->parts = min((steps + job.least_steps - 1) / job.least_steps, gridDim.z);
    }
    s->begin = low + blockIdx.z * steps / s->active * STEP;
    s->end = min(high, low + (blockIdx.z + 1) * steps / s->active * STEP);
    s->is_last = blockIdx.z == s->active - 1;
    s->base = ((uint64_t)engine_sequence(job.rows, s->first_token) * job.kv_heads + s->kv_head) *
              job.rows.padded * job.shape.head_dim;
    return blockIdx.z < s->active;
}

/* Keys and values of a step; units of 8 features trade places, so that reads of lanes meet
 * different banks. */
template <int PAD> struct key_slot {
    __half key[STEP][PAD], value[STEP][PAD];

    __device__ static inline unsigned key_at(unsigned row, unsigned unit) {
        return (unit ^ row % 2 * 4) * 8;
    }
    __device__ static inline unsigned value_at(unsigned row, unsigned unit) {
        return (unit ^ row / 2 % 4 * 2) * 8;
    }
};

/* Steps of a warp on their way.  TILED: as many sequences as leave a block all of their keys, or a
 * part of many: what it waits for is the memory (decision 0047).  Those are on Hopper, which has
 * room for them. */
template <bool TILED> constexpr unsigned slots_of = TILED ? 3 : 2;

/* Shared memory of a block. */
template <int PAD, int ROWS, unsigned SLOTS> struct block_memory {
    union {
        key_slot<PAD> slot[WARPS][SLOTS];
        float out[WARPS][ROWS][PAD]; /* in the end */
    };
    __half heads[ROWS + 2][PAD]; /* queries, the newest key and value */
    float scratch[WARPS][ENGINE_HEAD_DIM];
    float peak[WARPS][ROWS], total[WARPS][ROWS];
    bool is_last;
    /* Of a cluster alone: a block without one is smaller (block_bytes). */
    uint64_t has_parts;                    /* a barrier: all parts are here */
    float4 part[ROWS * PAD / 4 + CLUSTER]; /* from the blocks of the cluster */
    float2 part_scale[ROWS * PAD / 4 + CLUSTER];
};

template <int PAD, int ROWS, unsigned SLOTS> static unsigned block_bytes(bool is_joint) {
    typedef block_memory<PAD, ROWS, SLOTS> memory;
    return (unsigned)(is_joint ? sizeof(memory) : offsetof(memory, has_parts));
}

/* Starts copies of the keys and values from `first` on, of one step, but of key `skipped`; zeros
 * behind the features. */
template <int PAD>
__device__ static inline void fetch_keys(key_slot<PAD> *slot, const attention_job &job,
                                         const span &s, unsigned first, unsigned skipped) {
    constexpr unsigned UNITS = PAD / 8, ROWS = 32 / UNITS; /* at once */
    const unsigned dim = job.shape.head_dim;
    const unsigned row = threadIdx.x % 32 / UNITS, unit = threadIdx.x % UNITS;
    const unsigned bytes = unit * 8 < dim ? 16 : 0;
    uint64_t from = s.base + (uint64_t)(first + row) * dim + (bytes != 0 ? unit * 8 : 0);
    const __half *key = job.k + from, *value = job.v + from;
    const unsigned key_to = async_address(slot->key[row]);
    const unsigned value_to = async_address(slot->value[row]);
#pragma unroll
    for (unsigned i = 0; i < STEP / ROWS; i++) {
        if (first + row + i * ROWS != skipped || bytes == 0) {
            async_copy<16>(key_to + (i * ROWS * PAD + slot->key_at(row + i * ROWS, unit)) * 2, key,
                           bytes);
            async_copy<16>(value_to + (i * ROWS * PAD + slot->value_at(row + i * ROWS, unit)) * 2,
                           value, bytes);
        }
        key += ROWS * dim;
        value += ROWS * dim;
    }
}

/* Rows of heads[ROWS][PAD] in binary16, zero beyond. */
template <int PAD, int ROWS, unsigned SLOTS>
__device__ static inline void stage_queries(block_memory<PAD, ROWS, SLOTS> *memory,
                                            const attention_job &job, const span &s) {
    const unsigned dim = job.shape.head_dim;
    for (unsigned i = threadIdx.x; i < ROWS * (PAD / 8); i += THREADS) {
        const unsigned row = i / (PAD / 8), d = i % (PAD / 8) * 8;
        uint4 value = make_uint4(0, 0, 0, 0);
        if (row < s.rows && d < dim) {
            const uint64_t token = s.first_token + row / s.heads;
            value = *reinterpret_cast<const uint4 *>(
                job.q + (token * job.heads + s.first_head + row % s.heads) * dim + d);
        }
        *reinterpret_cast<uint4 *>(&memory->heads[row][d]) = value;
    }
}

/* Sums of one warp over its keys.  Index 0 of the row pairs: row lane / 4, index 1: that + 8. */
template <int PAD> struct warp_sums {
    float out[PAD / 64][8][4];
    float peak[2], total[2];
};

#endif
