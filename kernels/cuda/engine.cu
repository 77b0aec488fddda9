/* The engine: life, feeding, and the graph of a token (kernels/engine.h). */
#include "kernels/cuda/engine.h"

#include "kernels/cuda/engine_parts.h"

extern "C" {
#include "common/random.h"
}

#include <cmath>
#include <cstring>

/* ---- life -------------------------------------------------------------------------------------
 */

static void engine_destroy(ingot_engine *e) {
    if (e == nullptr) {
        return;
    }
    (void)cudaSetDevice(e->cuda->device);
    const cudaStream_t stream = e->cuda->stream;
    (void)cudaStreamSynchronize(stream);
    for (int i = 0; i < 2; i++) {
        if (e->graph[i] != nullptr) {
            (void)cudaGraphExecDestroy(e->graph[i]);
        }
    }
    for (unsigned i = 0; i < ENGINE_RING; i++) {
        if (e->event[i] != nullptr) {
            (void)cudaEventDestroy(e->event[i]);
        }
    }
    for (unsigned i = 0; i < e->owned_count; i++) {
        (void)cudaFreeAsync(e->owned[i], stream);
    }
    (void)cudaFreeAsync(e->slab, stream);
    (void)cudaFreeHost(e->ring);
    (void)cudaStreamSynchronize(stream);
    (void)cudaGetLastError();
    ingot_free(e->layer);
    ingot_free(e);
}

template <typename T> static ingot_status take(ingot_engine *e, T **out, uint64_t count) {
    void *memory = nullptr;
    uint64_t bytes;
    if (!ingot_size_mul(&bytes, count, sizeof(T))) {
        return INGOT_ERR_NO_MEMORY;
    }
    INGOT_TRY(ingot_cuda_status(cudaMallocAsync(&memory, bytes != 0 ? bytes : 1, e->cuda->stream)));
    e->owned[e->owned_count++] = memory;
    *out = static_cast<T *>(memory);
    return INGOT_OK;
}

template <typename T> static ingot_status take_zeroed(ingot_engine *e, T **out, uint64_t count) {
    INGOT_TRY(take(e, out, count));
    return ingot_cuda_status(cudaMemsetAsync(*out, 0, count * sizeof(T), e->cuda->stream));
}

/* Zeroed: what lies behind the newest key is multiplied by zero, so it has to be a number. */
static ingot_status make_cache(ingot_engine *e) {
    const ingot_engine_model *m = &e->model;
    const uint64_t each = e->sequences * m->kv_heads * e->padded * m->head_dim;
    uint64_t all;
    if (!ingot_size_mul(&all, each, 2 * m->layers)) {
        return INGOT_ERR_NO_MEMORY;
    }
    INGOT_TRY(take_zeroed(e, &e->cache, all));
    for (uint64_t i = 0; i < m->layers; i++) {
        e->layer[i].k = e->cache + 2 * i * each;
        e->layer[i].v = e->layer[i].k + each;
    }
    return INGOT_OK;
}

static ingot_status make_room(ingot_engine *e) {
    const ingot_engine_model *m = &e->model;
    const uint64_t rows = e->pass_rows, q = m->heads * m->head_dim;
    const uint64_t kv = m->kv_heads * m->head_dim;
    const uint64_t parts = engine_attention_parts(e) * ENGINE_TILE;
    const bool has_many = rows > ENGINE_PRODUCT_ROWS;
    uint8_t *work;
    void *ring;
    INGOT_TRY(take(e, &e->x, rows * m->hidden));
    INGOT_TRY(take(e, &e->projected, rows * (q + 2 * kv)));
    INGOT_TRY(take(e, &e->logits, e->sequences * m->vocab));
    INGOT_TRY(take_zeroed(e, &e->normed, rows * m->hidden)); /* rows of a tile that no pass has */
    INGOT_TRY(take(e, &e->q, rows * q));
    INGOT_TRY(take_zeroed(e, &e->context, rows * q));
    INGOT_TRY(take_zeroed(e, &e->inner, rows * m->ffn));
    for (int i = 0; i < 2; i++) {
        INGOT_TRY(take(e, &e->squares[i], engine_square_bytes(e) / sizeof(float)));
    }
    INGOT_TRY(take(e, &e->gate_up, 2 * rows * m->ffn));
    INGOT_TRY(take(e, &e->angles, rows * (m->rotary_dim / 2)));
    INGOT_TRY(take(e, &e->part, parts * ENGINE_HEAD_DIM));
    INGOT_TRY(take(e, &e->part_scale, parts));
    INGOT_TRY(take_zeroed(e, &e->part_done, engine_attention_units(e)));
    INGOT_TRY(take_zeroed(e, &e->saturated, 1));
    INGOT_TRY(take(e, &e->ids, rows));
    INGOT_TRY(take_zeroed(e, &e->choice, 1));
    INGOT_TRY(take(e, &e->best_part, e->sequences * ENGINE_BLOCKS));
    INGOT_TRY(take(e, &e->sum_part, e->sequences * ENGINE_BLOCKS));
    INGOT_TRY(take(e, &work, engine_product_work_bytes(e)));
    e->product_work = work;
    if (has_many) {
        const uint64_t widest = ingot_max_u64(ingot_max_u64(m->hidden, m->ffn), q);
        const uint64_t most = ingot_max_u64(ENGINE_PIECE_BYTES / sizeof(__half), widest);
        INGOT_TRY(take(e, &e->unpacked, most + 128 * widest)); /* pieces are rounded up */
    }
    INGOT_TRY(ingot_cuda_status(
        cudaHostAlloc(&ring, ENGINE_RING * e->sequences * sizeof(uint32_t), cudaHostAllocDefault)));
    e->ring = static_cast<uint32_t *>(ring);
    for (unsigned i = 0; i < ENGINE_RING; i++) {
        INGOT_TRY(
            ingot_cuda_status(cudaEventCreateWithFlags(&e->event[i], cudaEventDisableTiming)));
    }
    return INGOT_OK;
}

static ingot_status upload_frequencies(ingot_engine *e, const double *host) {
    const uint64_t count = e->model.rotary_dim / 2;
    INGOT_TRY(take(e, &e->inverse_frequency, count));
    if (count != 0) {
        INGOT_TRY(
            ingot_cuda_status(cudaMemcpyAsync(e->inverse_frequency, host, count * sizeof *host,
                                              cudaMemcpyHostToDevice, e->cuda->stream)));
    }
    return ingot_cuda_status(cudaStreamSynchronize(e->cuda->stream));
}

static ingot_status fill(ingot_engine *e, const ingot_engine_model *model,
                         const ingot_engine_options *options, ingot_engine_load *load,
                         ingot_error *error) {
    void *memory;
    int major = 0;
    INGOT_TRY(ingot_cuda_status(
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, e->cuda->device)));
    e->is_chained = major >= 9;
    e->model = *model;
    e->sequences = options->sequences;
    e->capacity = options->capacity;
    e->padded = (options->capacity + 15) / 16 * 16;
    const bool fits_many =
        model->hidden % 8 == 0 && model->ffn % 8 == 0; /* rows of 16 bytes for cuBLAS */
    e->pass_rows = fits_many ? ENGINE_ROWS : ENGINE_PRODUCT_ROWS;
    INGOT_TRY(ingot_alloc_zero(&memory, model->layers, sizeof(engine_layer)));
    e->layer = static_cast<engine_layer *>(memory);
    INGOT_TRY(engine_load(e, model, options, load, error));
    e->uses_l1 = engine_products_use_l1(e);
    INGOT_TRY(upload_frequencies(e, model->inverse_frequency));
    INGOT_TRY(make_cache(e));
    return make_room(e);
}

static ingot_status engine_create(void *context, ingot_engine **out,
                                  const ingot_engine_model *model,
                                  const ingot_engine_options *options, ingot_engine_load *load,
                                  ingot_error *error) {
    void *memory;
    *out = nullptr;
    INGOT_TRY(ingot_engine_check(model, options, error));
    INGOT_TRY(ingot_alloc_zero(&memory, 1, sizeof(ingot_engine)));
    ingot_engine *e = static_cast<ingot_engine *>(memory);
    e->cuda = ingot_cuda_of(context);
    ingot_engine_load ignored;
    const ingot_status status = fill(e, model, options, load != nullptr ? load : &ignored, error);
    if (status != INGOT_OK) {
        engine_destroy(e);
        return status;
    }
    *out = e;
    return INGOT_OK;
}

/* ---- feeding ----------------------------------------------------------------------------------
 */

static ingot_status wait(const ingot_engine *e) {
    return ingot_cuda_status(cudaStreamSynchronize(e->cuda->stream));
}

static void note_written(ingot_engine *e, uint64_t sequence, uint64_t length) {
    const uint64_t most = ingot_max_u64(e->written[sequence], length);
    e->written[sequence] = (uint32_t)ingot_min_u64(most, e->capacity);
}

/* The device forgets what was done ahead; the tokens of `next` are not fed. */
static ingot_status settle(ingot_engine *e) {
    if (e->is_choosing) {
        const uint64_t ahead = e->launched - e->delivered;
        for (uint64_t s = 0; s < e->sequences; s++) {
            note_written(e, s, e->length[s] + ahead);
            for (uint64_t i = e->random_at; e->temperature > 0 && i < e->delivered; i++) {
                (void)ingot_random_bits(&e->random[s]);
            }
        }
        e->is_choosing = false;
        memset(e->has_logits, 0, sizeof e->has_logits);
        INGOT_TRY(wait(e));
    }
    return INGOT_OK;
}

/* Values are cleared for make_cache's reason: one that is no number would stay one in all that
 * comes behind it. */
static ingot_status engine_rewind(ingot_engine *e, uint64_t sequence) {
    (void)cudaSetDevice(e->cuda->device);
    if (sequence >= e->sequences) {
        return INGOT_ERR_USAGE;
    }
    INGOT_TRY(settle(e));
    INGOT_TRY(engine_clear(e, sequence, e->written[sequence]));
    e->length[sequence] = e->written[sequence] = 0;
    e->has_logits[sequence] = false;
    return INGOT_OK;
}

/* logits[vocab] of a sequence, to the host. */
static ingot_status take_logits(const ingot_engine *e, uint64_t sequence, float *logits) {
    const uint64_t vocab = e->model.vocab;
    INGOT_TRY(ingot_cuda_status(cudaMemcpyAsync(logits, e->logits + sequence * vocab,
                                                vocab * sizeof *logits, cudaMemcpyDeviceToHost,
                                                e->cuda->stream)));
    INGOT_TRY(wait(e));
    for (uint64_t i = 0; i < vocab; i++) {
        if (!std::isfinite(logits[i])) {
            return INGOT_ERR_NUMERIC;
        }
    }
    return INGOT_OK;
}

static ingot_status engine_feed(ingot_engine *e, uint64_t sequence, const uint32_t *ids,
                                uint64_t count, float *logits) {
    (void)cudaSetDevice(e->cuda->device);
    if (sequence >= e->sequences || count == 0 || count > e->capacity - e->length[sequence]) {
        return INGOT_ERR_USAGE;
    }
    for (uint64_t i = 0; i < count; i++) {
        if (ids[i] >= e->model.vocab) {
            return INGOT_ERR_INPUT;
        }
    }
    INGOT_TRY(settle(e));
    const cudaStream_t stream = e->cuda->stream;
    for (uint64_t done = 0; done < count;) {
        const uint64_t m = ingot_min_u64(e->pass_rows, count - done);
        engine_rows rows = {};
        rows.m = (unsigned)m;
        rows.ids = e->ids;
        rows.first = e->length[sequence];
        rows.sequence = (unsigned)sequence;
        rows.capacity = (unsigned)e->capacity;
        rows.padded = (unsigned)e->padded;
        INGOT_TRY(ingot_cuda_status(
            cudaMemcpyAsync(e->ids, ids + done, m * sizeof *ids, cudaMemcpyHostToDevice, stream)));
        done += m;
        note_written(e, sequence, e->length[sequence] + m);
        INGOT_TRY(engine_pass(e, &rows, done == count));
        e->length[sequence] += (uint32_t)m;
    }
    e->has_logits[sequence] = true;
    return logits == nullptr ? INGOT_OK : take_logits(e, sequence, logits);
}

/* ---- tokens -----------------------------------------------------------------------------------
 */

/* In the order of the stream; host memory is free again when it returns. */
static ingot_status put(const ingot_engine *e, void *device, const void *host, uint64_t bytes) {
    return ingot_cuda_status(
        cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, e->cuda->stream));
}

static ingot_status engine_sampler(ingot_engine *e, double temperature, const uint64_t *state) {
    (void)cudaSetDevice(e->cuda->device);
    if (!(temperature >= 0) || std::isinf(temperature)) {
        return INGOT_ERR_USAGE;
    }
    e->temperature = temperature;
    memcpy(e->random, state, e->sequences * sizeof *state);
    e->random_at = e->is_choosing ? e->launched : 0;
    INGOT_TRY(put(e, &e->choice->temperature, &temperature, sizeof temperature));
    return put(e, e->choice->random, state, e->sequences * sizeof *state);
}

/* The pass of one token of every sequence, and the choice of the next. */
static ingot_status step(const ingot_engine *e, bool is_greedy) {
    engine_rows rows = {};
    rows.m = (unsigned)e->sequences;
    rows.ids = e->choice->id;
    rows.lengths = e->choice->length;
    rows.capacity = (unsigned)e->capacity;
    rows.padded = (unsigned)e->padded;
    INGOT_TRY(engine_pass(e, &rows, true));
    return engine_sample(e, is_greedy, true);
}

static ingot_status capture(ingot_engine *e, bool is_greedy) {
    cudaGraph_t graph = nullptr;
    const cudaStream_t stream = e->cuda->stream;
    INGOT_TRY(ingot_cuda_status(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal)));
    ingot_status status = step(e, is_greedy);
    const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
    status = status != INGOT_OK ? status : ingot_cuda_check(ended, "cudaStreamEndCapture");
    if (status == INGOT_OK) {
        status = ingot_cuda_status(cudaGraphInstantiate(&e->graph[is_greedy], graph, 0));
    }
    if (graph != nullptr) {
        (void)cudaGraphDestroy(graph);
    }
    (void)cudaGetLastError();
    return status;
}

/* After prompts: the device learns where every sequence stands, and chooses from their logits. */
static ingot_status start(ingot_engine *e, bool is_greedy) {
    for (uint64_t s = 0; s < e->sequences; s++) {
        if (!e->has_logits[s]) {
            return INGOT_ERR_USAGE;
        }
    }
    INGOT_TRY(put(e, e->choice->length, e->length, e->sequences * sizeof *e->length));
    INGOT_TRY(put(e, e->choice->random, e->random, e->sequences * sizeof *e->random));
    e->random_at = 0;
    INGOT_TRY(ingot_cuda_status(
        cudaMemsetAsync(e->choice->made, 0, sizeof e->choice->made, e->cuda->stream)));
    INGOT_TRY(ingot_cuda_status(
        cudaMemsetAsync(e->choice->not_finite, 0, sizeof e->choice->not_finite, e->cuda->stream)));
    e->is_choosing = true;
    return engine_sample(e, is_greedy, false);
}

/* One more choice in the stream. */
static ingot_status launch(ingot_engine *e) {
    const bool is_greedy = e->temperature <= 0;
    if (!e->is_choosing) {
        INGOT_TRY(start(e, is_greedy));
    } else {
        if (e->graph[is_greedy] == nullptr) {
            INGOT_TRY(capture(e, is_greedy));
        }
        INGOT_TRY(ingot_cuda_status(cudaGraphLaunch(e->graph[is_greedy], e->cuda->stream)));
    }
    const uint64_t slot = e->launched++ % ENGINE_RING;
    return ingot_cuda_status(cudaEventRecord(e->event[slot], e->cuda->stream));
}

static ingot_status engine_next(ingot_engine *e, uint64_t ahead, uint32_t *ids) {
    (void)cudaSetDevice(e->cuda->device);
    const bool is_fresh = !e->is_choosing;
    uint64_t room = UINT64_MAX;
    for (uint64_t s = 0; s < e->sequences; s++) { /* of the fullest sequence */
        room = ingot_min_u64(room, e->capacity - e->length[s]);
    }
    if (!is_fresh && room == 0) {
        return INGOT_ERR_USAGE;
    }
    if (is_fresh) {
        e->launched = e->delivered = 0;
    }
    const uint64_t most = is_fresh ? room : room - 1; /* the token of before takes one */
    const uint64_t wanted = e->delivered + 1 + ingot_min_u64(ingot_min_u64(ahead, 32), most);
    while (e->launched < wanted) {
        INGOT_TRY(launch(e));
    }
    for (uint64_t s = 0; !is_fresh && s < e->sequences; s++) {
        e->length[s]++;
    }
    const uint64_t slot = e->delivered++ % ENGINE_RING;
    INGOT_TRY(ingot_cuda_status(cudaEventSynchronize(e->event[slot])));
    memcpy(ids, e->ring + slot * e->sequences, e->sequences * sizeof *ids);
    unsigned not_finite = 0;
    for (uint64_t s = 0; s < e->sequences; s++) {
        not_finite |= ids[s] == UINT32_MAX;
    }
    return not_finite != 0 ? INGOT_ERR_NUMERIC : INGOT_OK;
}

/* The device has those of the last choice that was made, ahead or not. */
static ingot_status engine_logits(ingot_engine *e, float *logits) {
    (void)cudaSetDevice(e->cuda->device);
    if (!e->is_choosing || e->launched != e->delivered) {
        return INGOT_ERR_USAGE;
    }
    for (uint64_t s = 0; s < e->sequences; s++) {
        INGOT_TRY(take_logits(e, s, logits + s * e->model.vocab));
    }
    return INGOT_OK;
}

static ingot_status engine_saturated(ingot_engine *e, bool *is_saturated) {
    (void)cudaSetDevice(e->cuda->device);
    unsigned found = 0;
    INGOT_TRY(ingot_cuda_status(cudaMemcpyAsync(&found, e->saturated, sizeof found,
                                                cudaMemcpyDeviceToHost, e->cuda->stream)));
    INGOT_TRY(
        ingot_cuda_status(cudaMemsetAsync(e->saturated, 0, sizeof *e->saturated, e->cuda->stream)));
    INGOT_TRY(wait(e));
    *is_saturated = found != 0;
    return INGOT_OK;
}

const ingot_engine_ops *ingot_cuda_engine(void) {
    static const ingot_engine_ops ops = {engine_create, engine_destroy,  engine_rewind,
                                         engine_feed,   engine_sampler,  engine_next,
                                         engine_logits, engine_saturated};
    return &ops;
}
