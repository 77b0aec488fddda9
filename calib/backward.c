/* The backward pass of a decoder block (calib/backward.h). */
#include "calib/backward.h"

#include "calib/forward_internal.h"
#include "common/memory.h"
#include "common/sizes.h"

struct ingot_tape {
    const ingot_model *model;
    const ingot_backend *backend;
    ingot_workspace *work;
    uint64_t sequences, q_len;
    double *opposite;   /* [rotary_dim / 2]: the model's frequencies, turned back */
    ingot_arena *arena; /* device: what follows, rows of [max_tokens] */
    float *d_hidden[2]; /* [hidden] */
    float *d_ffn;       /* [ffn] */
    float *d_context;   /* [heads * head_dim] */
    float *d_q;         /* [heads * head_dim] */
    float *d_k, *d_v;   /* [kv_heads * head_dim] */
};

static ingot_status place(ingot_tape *t, uint64_t tokens) {
    const ingot_model *m = t->model;
    const uint64_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    void *memory;
    INGOT_TRY(ingot_alloc_zero(&memory, m->rotary_dim / 2 + 1, sizeof(double)));
    t->opposite = memory;
    for (uint64_t i = 0; i < m->rotary_dim / 2; i++) {
        t->opposite[i] = -m->inverse_frequency[i];
    }
    struct {
        float **to;
        uint64_t width;
    } const wanted[] = {
        {&t->d_hidden[0], m->hidden},
        {&t->d_hidden[1], m->hidden},
        {&t->d_ffn, m->ffn},
        {&t->d_context, q},
        {&t->d_q, q},
        {&t->d_k, kv},
        {&t->d_v, kv},
    };
    INGOT_TRY(ingot_backend_arena_create(&t->arena, t->backend));
    for (unsigned i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        INGOT_TRY(ingot_arena_array(t->arena, (void **)wanted[i].to, tokens,
                                    wanted[i].width * sizeof(float)));
    }
    return INGOT_OK;
}

ingot_status ingot_tape_create(ingot_tape **out, const ingot_model *model,
                               const ingot_backend *backend, uint64_t max_tokens,
                               ingot_error *error) {
    void *memory;
    *out = NULL;
    INGOT_TRY(ingot_alloc_zero(&memory, 1, sizeof(ingot_tape)));
    ingot_tape *t = memory;
    t->model = model;
    t->backend = backend;
    ingot_status status = place(t, max_tokens);
    if (status == INGOT_OK) {
        status = ingot_workspace_open(&t->work, model, backend, max_tokens, true, error);
    }
    if (status != INGOT_OK) {
        ingot_tape_destroy(t);
        return status;
    }
    *out = t;
    return INGOT_OK;
}

void ingot_tape_destroy(ingot_tape *tape) {
    if (tape == NULL) {
        return;
    }
    ingot_workspace_destroy(tape->work);
    ingot_arena_destroy(tape->arena);
    ingot_free(tape->opposite);
    ingot_free(tape);
}

static ingot_status run_forward(ingot_tape *tape, const ingot_block *block, float *x,
                                uint64_t sequences, uint64_t q_len, ingot_input_hook hook,
                                void *hook_context) {
    tape->sequences = sequences;
    tape->q_len = q_len;
    return ingot_block_forward(tape->model, tape->backend, block, x, sequences, q_len, NULL,
                               tape->work, hook, hook_context);
}

ingot_status ingot_tape_forward(ingot_tape *tape, const ingot_block *block, float *x,
                                uint64_t sequences, uint64_t q_len) {
    return run_forward(tape, block, x, sequences, q_len, NULL, NULL);
}

/* The status that ends a run which has gone as far as it was to. */
#define FAR_ENOUGH INGOT_ERR_USAGE

static ingot_status stop_at_down(void *context, ingot_input input, const float *x, uint64_t m,
                                 uint64_t width) {
    bool *is_done = context;
    (void)x, (void)m, (void)width;
    *is_done = input == INGOT_INPUT_DOWN;
    return *is_done ? FAR_ENOUGH : INGOT_OK;
}

ingot_status ingot_tape_recall(ingot_tape *tape, const ingot_block *block, float *x,
                               uint64_t sequences, uint64_t q_len) {
    bool is_done = false;
    if (block->norm[INGOT_SLOT_MLP_POST] != NULL) { /* whose input is wanted */
        return ingot_tape_forward(tape, block, x, sequences, q_len);
    }
    const ingot_status status =
        run_forward(tape, block, x, sequences, q_len, stop_at_down, &is_done);
    return is_done ? INGOT_OK : status;
}

/* ---- the way back --------------------------------------------------------------------------- */

/* What the steps share. */
typedef struct way {
    const ingot_tape *tape;
    const ingot_model *model;
    const ingot_backend_ops *ops;
    void *context;
    const ingot_block *block;
    const ingot_workspace *kept;
    float *const *gradient;
    uint64_t tokens;
} way;

/* A linear y = x W^T: its weights' gradient, and dx (NULL: not wanted) = or += dy W. */
static ingot_status back_linear(const way *b, ingot_role role, float *dx, bool adds,
                                const float *dy, const float *x) {
    const ingot_linear_desc *d = &b->model->linear[role];
    if (b->gradient[role] != NULL) {
        INGOT_TRY(b->ops->weight_backward(b->context, b->gradient[role], dy, x, b->tokens, d->rows,
                                          d->cols));
    }
    return dx == NULL ? INGOT_OK
                      : b->ops->linear_backward(b->context, dx, &b->block->linear[role], dy, adds,
                                                b->tokens);
}

/* d[m][width], the gradient of a norm's output, becomes that of its input x; without the norm it
 * is the same. */
static ingot_status back_norm(const way *b, ingot_norm_slot slot, float *d, const float *x,
                              uint64_t m, uint64_t width) {
    return b->block->norm[slot] == NULL
               ? INGOT_OK
               : b->ops->norm_backward(b->context, d, d, x, b->block->norm[slot], b->model->norm,
                                       b->model->norm_eps, m, width);
}

/* *branch = the gradient of what a half added to the stream, before its norm: d itself where there
 * is none, else a copy that went through it. */
static ingot_status back_branch(const way *b, ingot_norm_slot slot, float **branch, float *d,
                                const float *before) {
    const uint64_t hidden = b->model->hidden;
    *branch = d;
    if (b->block->norm[slot] == NULL) {
        return INGOT_OK;
    }
    *branch = b->tape->d_hidden[1];
    INGOT_TRY(b->ops->copy(b->context, *branch, d, b->tokens * hidden * sizeof *d));
    return back_norm(b, slot, *branch, before, b->tokens, hidden);
}

/* d[tokens][hidden], the gradient of the block's output, becomes that of the stream between the
 * halves. */
static ingot_status back_mlp(const way *b, float *d) {
    const ingot_workspace *k = b->kept;
    const ingot_model *m = b->model;
    float *branch, *dx = b->tape->d_hidden[0], *inner = b->tape->d_ffn;
    const bool is_gated = m->linear[INGOT_ROLE_GATE].is_present;
    INGOT_TRY(back_branch(b, INGOT_SLOT_MLP_POST, &branch, d, k->mlp_output));
    INGOT_TRY(back_linear(b, INGOT_ROLE_DOWN, inner, false, branch, k->inner));
    INGOT_TRY(b->ops->activate_backward(b->context, is_gated ? k->gate : k->up,
                                        is_gated ? k->up : NULL, inner, m->activation,
                                        b->tokens * m->ffn));
    INGOT_TRY(back_linear(b, INGOT_ROLE_UP, dx, false, k->up, k->mlp_normed));
    if (is_gated) {
        INGOT_TRY(back_linear(b, INGOT_ROLE_GATE, dx, true, k->gate, k->mlp_normed));
    }
    INGOT_TRY(back_norm(b, INGOT_SLOT_MLP, dx, k->middle, b->tokens, m->hidden));
    return b->ops->add(b->context, d, dx, 1.0f, b->tokens * m->hidden);
}

/* d of queries or keys back through rotation and their norm. */
static ingot_status back_heads(const way *b, ingot_norm_slot slot, float *d, const float *raw,
                               uint64_t heads) {
    const ingot_model *m = b->model;
    if (m->rotary_dim != 0) {
        INGOT_TRY(b->ops->rotary(b->context, d, 0, b->tape->q_len, b->tape->opposite,
                                 m->rope_attention_factor, b->tokens, heads, m->head_dim,
                                 m->rotary_dim));
    }
    return back_norm(b, slot, d, raw, b->tokens * heads, m->head_dim);
}

/* d of the stream between the halves becomes that of the block's input x, by way of q, k and v. */
static ingot_status back_projections(const way *b, float *d, const float *x) {
    const ingot_tape *t = b->tape;
    float *dx = t->d_hidden[0];
    INGOT_TRY(b->ops->linear_backward(b->context, dx, &b->block->linear[INGOT_ROLE_Q], t->d_q,
                                      false, b->tokens));
    INGOT_TRY(b->ops->linear_backward(b->context, dx, &b->block->linear[INGOT_ROLE_K], t->d_k, true,
                                      b->tokens));
    INGOT_TRY(b->ops->linear_backward(b->context, dx, &b->block->linear[INGOT_ROLE_V], t->d_v, true,
                                      b->tokens));
    INGOT_TRY(back_norm(b, INGOT_SLOT_ATTENTION, dx, x, b->tokens, b->model->hidden));
    return b->ops->add(b->context, d, dx, 1.0f, b->tokens * b->model->hidden);
}

/* x: the block's input, where its gradient is wanted. */
static ingot_status back_attention(const way *b, float *d, const float *x) {
    const ingot_workspace *k = b->kept;
    const ingot_tape *t = b->tape;
    const ingot_model *m = b->model;
    const ingot_attention shape = {
        .sequences = t->sequences,
        .q_len = t->q_len,
        .kv_len = t->q_len,
        .kv_stride = t->q_len,
        .heads = m->heads,
        .kv_heads = m->kv_heads,
        .head_dim = m->head_dim,
        .window = m->window == NULL ? 0 : m->window[b->block->layer],
        .scale = m->attention_scale,
    };
    float *branch;
    INGOT_TRY(back_branch(b, INGOT_SLOT_ATTENTION_POST, &branch, d, k->attention_output));
    INGOT_TRY(back_linear(b, INGOT_ROLE_O, t->d_context, false, branch, k->context));
    INGOT_TRY(b->ops->attention_backward(b->context, t->d_q, t->d_k, t->d_v, t->d_context, k->q,
                                         k->k, k->v, k->context, &shape));
    INGOT_TRY(back_heads(b, INGOT_SLOT_Q, t->d_q, k->q_raw, m->heads));
    INGOT_TRY(back_heads(b, INGOT_SLOT_K, t->d_k, k->k_raw, m->kv_heads));
    INGOT_TRY(back_linear(b, INGOT_ROLE_Q, NULL, false, t->d_q, k->normed));
    INGOT_TRY(back_linear(b, INGOT_ROLE_K, NULL, false, t->d_k, k->normed));
    INGOT_TRY(back_linear(b, INGOT_ROLE_V, NULL, false, t->d_v, k->normed));
    return x == NULL ? INGOT_OK : back_projections(b, d, x);
}

ingot_status ingot_tape_backward(ingot_tape *tape, const ingot_block *block, float *dy,
                                 const float *x, float *const gradient[INGOT_ROLE_COUNT]) {
    const way b = {
        .tape = tape,
        .model = tape->model,
        .ops = tape->backend->ops,
        .context = tape->backend->context,
        .block = block,
        .kept = tape->work,
        .gradient = gradient,
        .tokens = tape->sequences * tape->q_len,
    };
    INGOT_TRY(back_mlp(&b, dy));
    return back_attention(&b, dy, x);
}
