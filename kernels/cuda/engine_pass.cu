/* One pass of the engine, as launches.  Few rows read packed weights: five kernels or so a block.
 * Many rows of a prompt go through cuBLAS on pieces of a matrix in binary16, where that takes less
 * than packed weights. */
#include "kernels/cuda/engine_parts.h"
#include "kernels/cuda/forward.h"
#include "kernels/cuda/weights.h"

extern "C" {
#include "kernels/cuda/product.h"
}

/* ---- products of few rows ---------------------------------------------------------------------
 *
 * Where their kernels can, products hand on what they have in the form that the next one reads
 * (product.h): attention to the output projection, that to gate and up, these to down, and down to
 * query, key and value of the next layer or to the head.  Else a kernel in front of a product makes
 * it of rows. */

/* What is known of e->x while a pass goes through the layers. */
typedef struct engine_stream {
    ingot_product_squares squares; /* of its rows, or of what they were a product or two before */
    ingot_product_form form;       /* rows: e->normed has its norm for the product that comes */
    unsigned turn;                 /* of e->squares: the one that is not in use */
} engine_stream;

/* A product of this pass, of which the caller fills in what is special. */
static ingot_product product_of(const ingot_engine *e, uint64_t m, const engine_linear *linear) {
    ingot_product job = {};
    job.is_chained = e->is_chained;
    job.m = m;
    job.w = &linear->w;
    job.largest = linear->largest;
    job.bias = linear->bias;
    job.dtype = INGOT_F16;
    job.norm_kind = e->model.norm;
    job.norm_eps = e->model.norm_eps;
    job.workspace = e->product_work;
    return job;
}

/* y[m][rows] (FP32) = norm(x) W^T */
static ingot_product read_stream(const ingot_engine *e, uint64_t m, const engine_linear *linear,
                                 const float *x, const float *norm, float *y) {
    ingot_product job = product_of(e, m, linear);
    job.x = x;
    job.x_dtype = INGOT_F32;
    job.norm_weight = norm;
    job.y = y;
    job.y_dtype = INGOT_F32;
    return job;
}

/* x[m][hidden] += in W^T + bias */
static ingot_product add_to_stream(const ingot_engine *e, uint64_t m, const engine_linear *linear,
                                   const __half *in) {
    ingot_product job = product_of(e, m, linear);
    job.x = in;
    job.x_dtype = INGOT_F16;
    job.residual = e->x;
    job.y = e->x;
    job.y_dtype = INGOT_F32;
    return job;
}

/* inner = activation(gate) * up where both are stored alike. */
static ingot_product gate_and_up(const ingot_engine *e, uint64_t m, const engine_layer *layer) {
    const engine_linear *up = &layer->linear[INGOT_ENGINE_UP];
    ingot_product job =
        read_stream(e, m, &layer->linear[INGOT_ENGINE_GATE], e->x, layer->norm_mlp, nullptr);
    job.up = &up->w;
    job.up_largest = up->largest;
    job.up_bias = up->bias;
    job.has_activation = true;
    job.activation = e->model.activation;
    job.y = e->inner;
    job.y_dtype = INGOT_F16;
    return job;
}

static ingot_status run(const ingot_engine *e, const ingot_product &job) {
    return cuda_product(e->cuda, &job);
}

/* A product of read_stream as it is where x was handed on; else it leaves the squares of x, if it
 * can. */
static ingot_product taken(const ingot_engine *e, ingot_product job, engine_stream *stream) {
    if (stream->form.rows != 0) {
        job.x = e->normed;
        job.x_dtype = INGOT_F16;
        job.x_form = stream->form;
        job.squares = stream->squares;
        job.norm_weight = nullptr;
    } else if (cuda_product_normalises(e->cuda, &job)) {
        job.x_squares = e->squares[stream->turn];
        stream->squares = {job.x_squares, 1};
        stream->turn ^= 1;
    } else {
        stream->squares = {};
    }
    return job;
}

/* A product of add_to_stream, which hands on its norm in `form`, if it can. */
static ingot_status run_and_hand_on(const ingot_engine *e, ingot_product job, engine_stream *stream,
                                    ingot_product_form form, const float *norm) {
    const unsigned parts = form.rows != 0 && norm != nullptr && stream->squares.sums != nullptr
                               ? cuda_product_hands(e->cuda, &job, true)
                               : 0;
    stream->form = {};
    if (parts != 0) {
        job.squares = stream->squares;
        job.next = {e->normed, form, norm, {e->squares[stream->turn], parts}};
        stream->squares = job.next.squares;
        stream->turn ^= 1;
        stream->form = form;
    }
    return run(e, job);
}

/* The form in which all of `count` products would take their x, or none. */
static ingot_product_form form_of(const ingot_engine *e, const ingot_product *jobs, int count) {
    ingot_product_form form = cuda_product_takes(e->cuda, &jobs[0]);
    for (int i = 1; i < count; i++) {
        const ingot_product_form other = cuda_product_takes(e->cuda, &jobs[i]);
        form = other.rows == form.rows && other.bits == form.bits ? form : ingot_product_form{};
    }
    return form;
}

/* Gate or up alone, for matrices that are stored in different ways. */
static ingot_product gate_or_up(const ingot_engine *e, uint64_t m, const engine_layer *layer,
                                int role) {
    ingot_product job = read_stream(e, m, &layer->linear[role], e->x, layer->norm_mlp, nullptr);
    job.y = e->gate_up + (role == INGOT_ENGINE_UP ? e->pass_rows * e->model.ffn : 0);
    job.y_dtype = INGOT_F16;
    return job;
}

/* Where the projections of a pass lie: one matrix after the other, or side by side in a row. */
static engine_projected projections(const ingot_engine *e, const engine_layer *layer,
                                    bool is_side_by_side) {
    const uint64_t q = e->model.heads * e->model.head_dim;
    const uint64_t kv = e->model.kv_heads * e->model.head_dim;
    const uint64_t starts[3] = {0, q, q + kv}, widths[3] = {q, kv, kv};
    engine_projected from = {};
    for (int i = 0; i < 3; i++) {
        from.x[i] = e->projected + (is_side_by_side ? 1 : e->pass_rows) * starts[i];
        from.stride[i] = is_side_by_side ? q + 2 * kv : widths[i];
    }
    from.bias = layer->qkv_bias;
    from.norm_q = layer->norm_q;
    from.norm_k = layer->norm_k;
    return from;
}

static ingot_status attend(const ingot_engine *e, const engine_rows *rows,
                           const engine_layer *layer, const engine_projected *from,
                           ingot_product_form form) {
    if (rows->lengths == nullptr) {
        INGOT_TRY(engine_heads(e, rows, layer, from));
    }
    return engine_attend(e, rows, layer, from, form);
}

/* The products of query, key and value, or the one that makes all; returns how many. */
static int project(const ingot_engine *e, uint64_t m, const engine_layer *layer,
                   ingot_product (*jobs)[3]) {
    const engine_projected from = projections(e, layer, layer->is_stacked);
    const int count = layer->is_stacked ? 1 : 3;
    for (int i = 0; i < count; i++) {
        const engine_linear *one =
            layer->is_stacked ? &layer->qkv : &layer->linear[INGOT_ENGINE_Q + i];
        (*jobs)[i] =
            read_stream(e, m, one, e->x, layer->norm_attention, const_cast<float *>(from.x[i]));
        (*jobs)[i].bias = nullptr; /* added with what follows */
    }
    return count;
}

/* The products of gate and up, or the one that makes both; returns how many. */
static int widen(const ingot_engine *e, uint64_t m, const engine_layer *layer,
                 ingot_product (*jobs)[3]) {
    const engine_linear *linear = layer->linear;
    if (cuda_product_is_alike(&linear[INGOT_ENGINE_GATE].w, &linear[INGOT_ENGINE_UP].w)) {
        (*jobs)[0] = gate_and_up(e, m, layer);
        return 1;
    }
    (*jobs)[0] = gate_or_up(e, m, layer, INGOT_ENGINE_GATE);
    (*jobs)[1] = gate_or_up(e, m, layer, INGOT_ENGINE_UP);
    return 2;
}

static ingot_product head_of(const ingot_engine *e, uint64_t m, const float *x, float *logits) {
    return read_stream(e, m, &e->head, x, e->final_norm, logits);
}

/* The products of `layer`; *stream: what is known before and behind it. */
static ingot_status run_few(const ingot_engine *e, const engine_rows *rows,
                            const engine_layer *layer, engine_stream *stream) {
    const uint64_t m = rows->m;
    const bool is_last = layer + 1 == e->layer + e->model.layers;
    const engine_projected from = projections(e, layer, layer->is_stacked);
    ingot_product jobs[3];
    int count = project(e, m, layer, &jobs);
    for (int i = 0; i < count; i++) {
        INGOT_TRY(run(e, taken(e, jobs[i], stream)));
    }
    ingot_product out = add_to_stream(e, m, &layer->linear[INGOT_ENGINE_O], e->context);
    out.x_form = cuda_product_takes(e->cuda, &out);
    INGOT_TRY(attend(e, rows, layer, &from, out.x_form));
    count = widen(e, m, layer, &jobs);
    INGOT_TRY(run_and_hand_on(e, out, stream, form_of(e, jobs, count), layer->norm_mlp));
    ingot_product down = add_to_stream(e, m, &layer->linear[INGOT_ENGINE_DOWN], e->inner);
    for (int i = 0; i < count; i++) {
        jobs[i] = taken(e, jobs[i], stream);
    }
    if (count > 1) {
        INGOT_TRY(run(e, jobs[0]));
        INGOT_TRY(run(e, jobs[1]));
        INGOT_TRY(engine_activate(e, rows, nullptr, nullptr));
    } else {
        const ingot_product_form form = cuda_product_takes(e->cuda, &down);
        if (form.rows != 0 && cuda_product_hands(e->cuda, &jobs[0], false) != 0) {
            jobs[0].next = {jobs[0].y, form, nullptr, {}};
            jobs[0].y = nullptr;
            down.x_form = form;
        }
        INGOT_TRY(run(e, jobs[0]));
    }
    ingot_product_form form = {};
    if (!is_last) {
        count = project(e, m, layer + 1, &jobs);
        form = form_of(e, jobs, count);
    } else if (rows->lengths != nullptr) { /* a prompt has logits of one row */
        jobs[0] = head_of(e, m, e->x, e->logits);
        form = form_of(e, jobs, 1);
    }
    return run_and_hand_on(e, down, stream, form,
                           is_last ? e->final_norm : (layer + 1)->norm_attention);
}

/* Of a product with as many rows as a pass may give it; the head has 64 at most. */
static uint64_t work_bytes(const ingot_engine *e, ingot_product job) {
    const uint64_t packed = cuda_product_packed_rows(e->cuda, job.w, job.up);
    job.m = ingot_min_u64(ingot_max_u64(packed, ENGINE_PRODUCT_ROWS), e->pass_rows);
    return cuda_product_workspace_bytes(e->cuda, &job);
}

uint64_t engine_square_bytes(const ingot_engine *e) {
    /* no product leaves more parts than one for 64 columns */
    return (ingot_ceil_div(e->model.hidden, 64) + 1) * ENGINE_PRODUCT_ROWS * sizeof(float);
}

uint64_t engine_product_work_bytes(const ingot_engine *e) {
    ingot_product job = head_of(e, 0, e->x, e->logits);
    uint64_t bytes = work_bytes(e, job);
    for (uint64_t i = 0; i < e->model.layers; i++) {
        const engine_layer *layer = &e->layer[i];
        for (int role = 0; role < INGOT_ENGINE_ROLES; role++) {
            const bool is_inner = role == INGOT_ENGINE_O || role == INGOT_ENGINE_DOWN;
            const bool is_pair = role == INGOT_ENGINE_GATE || role == INGOT_ENGINE_UP;
            job = is_inner ? add_to_stream(e, 0, &layer->linear[role], e->inner)
                  : is_pair
                      ? gate_or_up(e, 0, layer, role)
                      : read_stream(e, 0, &layer->linear[role], e->x, layer->norm_attention, e->x);
            bytes = ingot_max_u64(bytes, work_bytes(e, job));
        }
        bytes = ingot_max_u64(bytes, work_bytes(e, gate_and_up(e, 0, layer)));
        if (layer->is_stacked) {
            job = read_stream(e, 0, &layer->qkv, e->x, layer->norm_attention, e->x);
            bytes = ingot_max_u64(bytes, work_bytes(e, job));
        }
    }
    return bytes;
}

bool engine_products_use_l1(const ingot_engine *e) {
    if (e->model.layers == 0) {
        return false;
    }
    const ingot_product job = gate_and_up(e, e->sequences, &e->layer[0]);
    return cuda_product_uses_l1(e->cuda, &job);
}

/* ---- products of many rows --------------------------------------------------------------------
 */

static bool is_packed(const ingot_engine *e, uint64_t m, const engine_linear *linear,
                      const engine_linear *up) {
    return m <= cuda_product_packed_rows(e->cuda, &linear->w, up != nullptr ? &up->w : nullptr);
}

/* The same as multiply, by packed weights. */
static ingot_status multiply_packed(const ingot_engine *e, uint64_t m, const engine_linear *linear,
                                    const __half *in, void *c, cudaDataType type, bool adds) {
    ingot_product job = product_of(e, m, linear);
    job.bias = nullptr;
    job.x = in;
    job.x_dtype = INGOT_F16;
    job.residual = adds ? c : nullptr;
    job.y = c;
    job.y_dtype = type == CUDA_R_32F ? INGOT_F32 : INGOT_F16;
    return run(e, job);
}

/* c[m][stride] (+)= in[m][cols] W^T, of FP32 or binary16. */
static ingot_status multiply(const ingot_engine *e, uint64_t m, const engine_linear *linear,
                             const __half *in, void *c, cudaDataType type, uint64_t stride,
                             bool adds) {
    const ingot_weight_view *w = &linear->w;
    if (stride == w->rows && is_packed(e, m, linear, nullptr)) {
        return multiply_packed(e, m, linear, in, c, type, adds);
    }
    const float beta = adds ? 1.0f : 0.0f;
    const bool is_ready = w->kind == INGOT_DENSE && w->dtype == INGOT_F16;
    const float alpha =
        is_ready ? 1.0f : ldexpf(1.0f, cuda_exponent_of(linear->largest, CUDA_WEIGHT_USUAL));
    const uint64_t most = ingot_max_u64(ENGINE_PIECE_BYTES / (w->cols * sizeof(__half)), 1);
    const uint64_t count = is_ready ? 1 : ingot_ceil_div(w->rows, most);
    const uint64_t piece = (ingot_ceil_div(w->rows, count) + 127) / 128 * 128;
    for (uint64_t first = 0; first < w->rows; first += piece) {
        const uint64_t rows = ingot_min_u64(piece, w->rows - first);
        const __half *weights = static_cast<const __half *>(w->data);
        if (!is_ready) {
            INGOT_TRY(engine_unpack(e, e->unpacked, linear, first, rows));
            weights = e->unpacked;
        }
        char *to = static_cast<char *>(c) + first * (type == CUDA_R_32F ? 4 : 2);
        INGOT_TRY(ingot_cublas_status(
            cublasGemmEx_64(e->cuda->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int64_t)rows, (int64_t)m,
                            (int64_t)w->cols, &alpha, weights + (is_ready ? first * w->cols : 0),
                            CUDA_R_16F, (int64_t)w->cols, in, CUDA_R_16F, (int64_t)w->cols, &beta,
                            to, type, (int64_t)stride, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT)));
    }
    return INGOT_OK;
}

static ingot_status add_many(const ingot_engine *e, const engine_rows *rows,
                             const engine_linear *linear, const __half *in) {
    if (linear->bias != nullptr) {
        INGOT_TRY(engine_add_bias(e, rows, linear->bias));
    }
    return multiply(e, rows->m, linear, in, e->x, CUDA_R_32F, e->model.hidden, true);
}

/* inner = activation(gate) * up from what is normed. */
static ingot_status gate_and_up_many(const ingot_engine *e, const engine_rows *rows,
                                     const engine_layer *layer) {
    const engine_linear *gate = &layer->linear[INGOT_ENGINE_GATE],
                        *up = &layer->linear[INGOT_ENGINE_UP];
    if (cuda_product_is_alike(&gate->w, &up->w) && is_packed(e, rows->m, gate, up)) {
        ingot_product job = gate_and_up(e, rows->m, layer);
        job.x = e->normed;
        job.x_dtype = INGOT_F16;
        job.norm_weight = nullptr;
        return run(e, job);
    }
    for (int i = 0; i < 2; i++) {
        INGOT_TRY(multiply(e, rows->m, &layer->linear[INGOT_ENGINE_GATE + i], e->normed,
                           e->gate_up + (uint64_t)i * e->pass_rows * e->model.ffn, CUDA_R_16F,
                           e->model.ffn, false));
    }
    return engine_activate(e, rows, gate->bias, up->bias);
}

static ingot_status run_many(const ingot_engine *e, const engine_rows *rows,
                             const engine_layer *layer) {
    const engine_linear *linear = layer->linear;
    const engine_projected from = projections(e, layer, true);
    INGOT_TRY(engine_norm(e, rows, layer->norm_attention));
    for (int i = 0; i < (layer->is_stacked ? 1 : 3); i++) {
        INGOT_TRY(multiply(e, rows->m,
                           layer->is_stacked ? &layer->qkv : &linear[INGOT_ENGINE_Q + i], e->normed,
                           const_cast<float *>(from.x[i]), CUDA_R_32F, from.stride[i], false));
    }
    INGOT_TRY(attend(e, rows, layer, &from, ingot_product_form{}));
    INGOT_TRY(add_many(e, rows, &linear[INGOT_ENGINE_O], e->context));
    INGOT_TRY(engine_norm(e, rows, layer->norm_mlp));
    INGOT_TRY(gate_and_up_many(e, rows, layer));
    return add_many(e, rows, &linear[INGOT_ENGINE_DOWN], e->inner);
}

/* ---- the pass ---------------------------------------------------------------------------------
 */

ingot_status engine_pass(const ingot_engine *e, const engine_rows *rows, bool wants_logits) {
    const bool is_few = rows->m <= ENGINE_PRODUCT_ROWS;
    engine_stream stream = {};
    ingot_product_next next = {};
    if (is_few && e->model.layers != 0 && e->layer[0].norm_attention != nullptr) {
        ingot_product jobs[3];
        next.form = form_of(e, jobs, project(e, rows->m, e->layer, &jobs));
    }
    if (next.form.rows != 0) {
        next.x = e->normed;
        next.norm_weight = e->layer[0].norm_attention;
        next.squares = {e->squares[0], 1};
        stream = {next.squares, next.form, 1};
    }
    INGOT_TRY(engine_embed(e, rows, &next));
    for (uint64_t i = 0; i < e->model.layers; i++) {
        INGOT_TRY(is_few ? run_few(e, rows, &e->layer[i], &stream)
                         : run_many(e, rows, &e->layer[i]));
    }
    if (!wants_logits) {
        return INGOT_OK;
    }
    if (rows->lengths != nullptr) {
        return run(e, taken(e, head_of(e, rows->m, e->x, e->logits), &stream));
    }
    return run(e, head_of(e, 1, e->x + (rows->m - 1) * e->model.hidden,
                          e->logits + rows->sequence * e->model.vocab));
}
