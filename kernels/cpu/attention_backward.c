/* Gradients of causal attention (FlashAttention's backward pass, arXiv 2205.14135): scores are
 * computed again, block by block, from queries and keys.
 *
 * With P = softmax(S), dV = P^T dO, dP = dO V^T and dS = P (dP - delta), delta = dO . O per query;
 * dQ = dS K and dK = dS^T Q.  A task is one key head of one sequence: it walks over the query heads
 * that read it and their blocks of queries in order, so that dK and dV need no reduction. */
#include "common/sizes.h"
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

/* Scores and their gradients: 2 x 128 x 512 floats are 512 KiB. */
#define BLOCK_Q 128u
#define BLOCK_K 512u

typedef struct attention_task {
    const ingot_cpu *cpu;
    const ingot_attention *shape;
    float *dq, *dk, *dv;
    const float *dout, *q, *k, *v, *out;
} attention_task;

/* A block of queries of one head: where its rows start and what is known of them. */
typedef struct query_block {
    uint64_t q_at, kv_at, q_stride, kv_stride;
    uint64_t first, rows; /* positions */
    float *score, *slope;
    float log_sum[BLOCK_Q], delta[BLOCK_Q];
} query_block;

static uint64_t first_key(const ingot_attention *s, uint64_t position) {
    return s->window > 0 && position + 1 > s->window ? position + 1 - s->window : 0;
}

/* What row r of the block sees of keys key0 .. key0 + keys - 1: [*low, *high) from key0. */
static bool visible(const ingot_attention *s, const query_block *b, uint64_t r, uint64_t key0,
                    uint64_t keys, uint64_t *low, uint64_t *high) {
    const uint64_t begin = ingot_max_u64(first_key(s, b->first + r), key0);
    const uint64_t end = ingot_min_u64(b->first + r + 1, key0 + keys);
    *low = begin < end ? begin - key0 : 0;
    *high = begin < end ? end - key0 : 0;
    return begin < end;
}

/* log_sum and delta of every row. */
static void measure_rows(const attention_task *t, query_block *b) {
    const ingot_attention *s = t->shape;
    float maximum[BLOCK_Q], sum[BLOCK_Q];
    for (uint64_t r = 0; r < b->rows; r++) {
        maximum[r] = -INFINITY;
        sum[r] = 0.0f;
        b->delta[r] = 0.0f;
        const uint64_t at = b->q_at + r * b->q_stride;
        t->cpu->isa->weight->dots(&b->delta[r], t->dout + at, t->out + at, 0, 1, s->head_dim);
    }
    const uint64_t end = b->first + b->rows;
    for (uint64_t key0 = first_key(s, b->first); key0 < end; key0 += BLOCK_K) {
        const uint64_t keys = ingot_min_u64(BLOCK_K, end - key0);
        ingot_cpu_gemm_nt(b->score, keys, t->q + b->q_at, b->q_stride,
                          t->k + b->kv_at + key0 * b->kv_stride, b->kv_stride, b->rows, keys,
                          s->head_dim, 0.0f);
        for (uint64_t r = 0; r < b->rows; r++) {
            uint64_t low, high;
            if (visible(s, b, r, key0, keys, &low, &high)) {
                (void)t->cpu->isa->math->softmax(b->score + r * keys + low, high - low, s->scale,
                                                 s->softcap, &maximum[r], &sum[r]);
            }
        }
    }
    for (uint64_t r = 0; r < b->rows; r++) {
        b->log_sum[r] = maximum[r] + logf(sum[r]);
    }
}

/* Adds what a block of queries and one of keys have to do with each other. */
static void join_blocks(const attention_task *t, query_block *b, uint64_t key0, uint64_t keys) {
    const ingot_attention *s = t->shape;
    const uint64_t kv = b->kv_at + key0 * b->kv_stride, d = s->head_dim;
    ingot_cpu_gemm_nt(b->score, keys, t->q + b->q_at, b->q_stride, t->k + kv, b->kv_stride, b->rows,
                      keys, d, 0.0f);
    ingot_cpu_gemm_nt(b->slope, keys, t->dout + b->q_at, b->q_stride, t->v + kv, b->kv_stride,
                      b->rows, keys, d, 0.0f);
    for (uint64_t r = 0; r < b->rows; r++) {
        uint64_t low, high;
        float *score = b->score + r * keys, *slope = b->slope + r * keys;
        if (visible(s, b, r, key0, keys, &low, &high)) {
            t->cpu->isa->backward->softmax(score + low, slope + low, high - low, s->scale,
                                           s->softcap, b->log_sum[r], b->delta[r]);
        }
        memset(score, 0, low * sizeof *score);
        memset(slope, 0, low * sizeof *slope);
        memset(score + high, 0, (keys - high) * sizeof *score);
        memset(slope + high, 0, (keys - high) * sizeof *slope);
    }
    ingot_cpu_gemm_tn(t->dv + kv, b->kv_stride, b->score, keys, t->dout + b->q_at, b->q_stride,
                      keys, d, b->rows, 1.0f);
    ingot_cpu_gemm_tn(t->dk + kv, b->kv_stride, b->slope, keys, t->q + b->q_at, b->q_stride, keys,
                      d, b->rows, 1.0f);
    ingot_cpu_gemm_nn(t->dq + b->q_at, b->q_stride, b->slope, keys, t->k + kv, b->kv_stride,
                      b->rows, d, keys, 1.0f);
}

static void clear_head(float *x, uint64_t rows, uint64_t stride, uint64_t head_dim) {
    for (uint64_t r = 0; r < rows; r++) {
        memset(x + r * stride, 0, head_dim * sizeof *x);
    }
}

static void backward_head(void *context, size_t index, unsigned worker) {
    const attention_task *t = context;
    const ingot_attention *s = t->shape;
    const uint64_t kv_head = index % s->kv_heads, sequence = index / s->kv_heads;
    const uint64_t shared = s->heads / s->kv_heads;
    query_block b = {.q_stride = s->heads * s->head_dim, .kv_stride = s->kv_heads * s->head_dim};
    b.score = ingot_cpu_scratch(t->cpu, worker);
    b.slope = b.score + BLOCK_Q * BLOCK_K;
    b.kv_at = sequence * s->kv_len * b.kv_stride + kv_head * s->head_dim;
    clear_head(t->dk + b.kv_at, s->kv_len, b.kv_stride, s->head_dim);
    clear_head(t->dv + b.kv_at, s->kv_len, b.kv_stride, s->head_dim);
    for (uint64_t head = kv_head * shared; head < (kv_head + 1) * shared; head++) {
        for (b.first = 0; b.first < s->q_len; b.first += BLOCK_Q) {
            b.rows = ingot_min_u64(BLOCK_Q, s->q_len - b.first);
            b.q_at = (sequence * s->q_len + b.first) * b.q_stride + head * s->head_dim;
            clear_head(t->dq + b.q_at, b.rows, b.q_stride, s->head_dim);
            measure_rows(t, &b);
            const uint64_t end = b.first + b.rows;
            for (uint64_t key0 = first_key(s, b.first); key0 < end; key0 += BLOCK_K) {
                join_blocks(t, &b, key0, ingot_min_u64(BLOCK_K, end - key0));
            }
        }
    }
}

ingot_status ingot_cpu_attention_backward(void *context, float *dq, float *dk, float *dv,
                                          const float *dout, const float *q, const float *k,
                                          const float *v, const float *out,
                                          const ingot_attention *shape) {
    const ingot_cpu *cpu = context;
    if (shape->kv_heads == 0 || shape->heads % shape->kv_heads != 0 ||
        shape->kv_len != shape->q_len || shape->kv_stride != shape->kv_len) {
        return INGOT_ERR_USAGE;
    }
    if (!ingot_cpu_fits(shape->heads * shape->head_dim)) {
        return INGOT_ERR_UNSUPPORTED;
    }
    attention_task t = {cpu, shape, dq, dk, dv, dout, q, k, v, out};
    ingot_pool_run(cpu->pool, shape->sequences * shape->kv_heads, backward_head, &t);
    return INGOT_OK;
}
