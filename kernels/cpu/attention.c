/* Causal attention with an online softmax (Dao et al., FlashAttention): a block of queries of one
 * head meets the keys it can see block by block; scores live in the worker's scratch only. */
#include "common/sizes.h"
#include "kernels/cpu/cpu.h"

#include <math.h>
#include <string.h>

/* Scores of a block: 128 x 512 floats are 256 KiB. */
#define BLOCK_Q      128u
#define BLOCK_K      512u
#define MAX_HEAD_DIM 1024u
/* Queries of a block up to which keys and values are read as they lie: BLAS would copy them first.
 */
#define FEW_ROWS 2u

typedef struct attention_task {
    const ingot_cpu *cpu;
    const ingot_attention *shape;
    float *out;
    const float *q, *k, *v;
    ingot_cpu_cut cut_q;
} attention_task;

/* What one query block keeps between key blocks. */
typedef struct block_state {
    float *scores;      /* [BLOCK_Q][BLOCK_K] */
    float *accumulated; /* [BLOCK_Q][head_dim], not yet divided by sum */
    float maximum[BLOCK_Q], sum[BLOCK_Q];
} block_state;

/* First key that the query at `position` sees. */
static uint64_t first_key(const ingot_attention *s, uint64_t position) {
    return s->window > 0 && position + 1 > s->window ? position + 1 - s->window : 0;
}

/* Softmax of rows of scores[rows][keys] whose query positions start at `position`; keys that a
 * query does not see get weight zero. */
static void weigh_rows(const attention_task *t, block_state *state, uint64_t position,
                       uint64_t rows, uint64_t key0, uint64_t keys) {
    const ingot_attention *s = t->shape;
    const ingot_cpu_math_ops *math = t->cpu->isa->math;
    for (uint64_t r = 0; r < rows; r++) {
        float *row = state->scores + r * keys;
        const uint64_t low = ingot_max_u64(first_key(s, position + r), key0);
        const uint64_t high = ingot_min_u64(position + r + 1, key0 + keys);
        if (low >= high) {
            memset(row, 0, keys * sizeof(float));
            continue;
        }
        memset(row, 0, (low - key0) * sizeof(float));
        const float correction = math->softmax(row + (low - key0), high - low, s->scale, s->softcap,
                                               &state->maximum[r], &state->sum[r]);
        memset(row + (high - key0), 0, (key0 + keys - high) * sizeof(float));
        if (correction != 1.0f) {
            math->scale(state->accumulated + r * s->head_dim, correction, s->head_dim);
        }
    }
}

/* scores[rows][keys] = q k^T */
static void score_keys(const attention_task *t, float *scores, const float *q, uint64_t q_stride,
                       const float *k, uint64_t k_stride, uint64_t rows, uint64_t keys) {
    const uint64_t n = t->shape->head_dim;
    if (rows > FEW_ROWS) {
        ingot_cpu_gemm_nt(scores, keys, q, q_stride, k, k_stride, rows, keys, n, 0.0f);
        return;
    }
    memset(scores, 0, rows * keys * sizeof *scores);
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t i = 0; i < keys; i += INGOT_CPU_DOT_ROWS) {
            const unsigned count = (unsigned)ingot_min_u64(INGOT_CPU_DOT_ROWS, keys - i);
            t->cpu->isa->weight->dots(scores + r * keys + i, q + r * q_stride, k + i * k_stride,
                                      k_stride, count, n);
        }
    }
}

/* sums[rows][head_dim] += scores[rows][keys] v */
static void sum_values(const attention_task *t, float *sums, const float *scores, const float *v,
                       uint64_t v_stride, uint64_t rows, uint64_t keys) {
    const uint64_t n = t->shape->head_dim;
    if (rows > FEW_ROWS) {
        ingot_cpu_gemm_nn(sums, n, scores, keys, v, v_stride, rows, n, keys, 1.0f);
        return;
    }
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t i = 0; i < keys; i++) {
            t->cpu->isa->math->add(sums + r * n, v + i * v_stride, scores[r * keys + i], n);
        }
    }
}

static bool are_finite(const attention_task *t, const float *v, uint64_t stride, uint64_t keys) {
    bool are = true;
    for (uint64_t i = 0; i < keys && are; i++) {
        are = t->cpu->isa->math->is_finite(v + i * stride, t->shape->head_dim);
    }
    return are;
}

/* accumulated += weights v.  A weight of zero does not undo a value that is not finite, so where
 * there is one each query meets the keys that it sees alone.  A single query sees all of them. */
static void add_values(const attention_task *t, block_state *state, uint64_t position,
                       uint64_t rows, uint64_t key0, uint64_t keys, const float *v) {
    const ingot_attention *s = t->shape;
    const uint64_t stride = s->kv_heads * s->head_dim;
    if (rows == 1 || are_finite(t, v, stride, keys)) {
        sum_values(t, state->accumulated, state->scores, v, stride, rows, keys);
        return;
    }
    for (uint64_t r = 0; r < rows; r++) {
        const uint64_t low = ingot_max_u64(first_key(s, position + r), key0);
        const uint64_t high = ingot_min_u64(position + r + 1, key0 + keys);
        if (low < high) {
            sum_values(t, state->accumulated + r * s->head_dim,
                       state->scores + r * keys + (low - key0), v + (low - key0) * stride, stride,
                       1, high - low);
        }
    }
}

static void attend_block(void *context, size_t index, unsigned worker) {
    const attention_task *t = context;
    const ingot_attention *s = t->shape;
    const uint64_t block = index % t->cut_q.count;
    const uint64_t head = index / t->cut_q.count % s->heads;
    const uint64_t sequence = index / t->cut_q.count / s->heads;
    const uint64_t q0 = ingot_cpu_cut_begin(&t->cut_q, block);
    const uint64_t rows = ingot_cpu_cut_size(&t->cut_q, block);
    const uint64_t q_stride = s->heads * s->head_dim, kv_stride = s->kv_heads * s->head_dim;
    const uint64_t kv_at =
        sequence * s->kv_stride * kv_stride + head / (s->heads / s->kv_heads) * s->head_dim;
    const uint64_t q_at = (sequence * s->q_len + q0) * q_stride + head * s->head_dim;
    const uint64_t position = s->kv_len - s->q_len + q0;

    block_state state;
    state.scores = ingot_cpu_scratch(t->cpu, worker);
    state.accumulated = state.scores + BLOCK_Q * BLOCK_K;
    memset(state.accumulated, 0, rows * s->head_dim * sizeof(float));
    for (uint64_t r = 0; r < rows; r++) {
        state.maximum[r] = -INFINITY;
        state.sum[r] = 0.0f;
    }
    const uint64_t end = position + rows; /* the last query sees itself */
    for (uint64_t key0 = first_key(s, position); key0 < end; key0 += BLOCK_K) {
        const uint64_t keys = ingot_min_u64(BLOCK_K, end - key0);
        const uint64_t at = kv_at + key0 * kv_stride;
        score_keys(t, state.scores, t->q + q_at, q_stride, t->k + at, kv_stride, rows, keys);
        weigh_rows(t, &state, position, rows, key0, keys);
        add_values(t, &state, position, rows, key0, keys, t->v + at);
    }
    for (uint64_t r = 0; r < rows; r++) {
        float *out = t->out + q_at + r * q_stride;
        memcpy(out, state.accumulated + r * s->head_dim, s->head_dim * sizeof(float));
        t->cpu->isa->math->scale(out, 1.0f / state.sum[r], s->head_dim);
    }
}

ingot_status ingot_cpu_attention(void *context, float *out, const float *q, const float *k,
                                 const float *v, const ingot_attention *shape) {
    const ingot_cpu *cpu = context;
    if (shape->kv_heads == 0 || shape->heads % shape->kv_heads != 0 ||
        shape->kv_len < shape->q_len || shape->kv_stride < shape->kv_len) {
        return INGOT_ERR_USAGE;
    }
    if (shape->head_dim > MAX_HEAD_DIM || !ingot_cpu_fits(shape->heads * shape->head_dim)) {
        return INGOT_ERR_UNSUPPORTED;
    }
    attention_task t = {.cpu = cpu,
                        .shape = shape,
                        .out = out,
                        .q = q,
                        .k = k,
                        .v = v,
                        .cut_q = ingot_cpu_cut_make(shape->q_len, BLOCK_Q, 1)};
    ingot_pool_run(cpu->pool, shape->sequences * shape->heads * t.cut_q.count, attend_block, &t);
    return INGOT_OK;
}
