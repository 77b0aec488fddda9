/* Weights of the engine: one block of device memory, filled from host views, containers or random
 * numbers.
 *
 * A container is read in pieces by several readers, each on a thread of the backend: a reader reads
 * into pinned memory of its own, checks digests and values, and starts the copy to the device;
 * while that runs it fills its other buffer.  So reading, digests and the bus overlap without a
 * thread waiting for another.  All copies are in one stream: the device runs them one after the
 * other anyway, and a reader's buffer is free again as soon as in a stream of its own with twice
 * the buffers.
 *
 * Q, K and V are put one behind the other where they are stored alike, and become one matrix. */
#include "kernels/cuda/engine_parts.h"
#include "kernels/cuda/forward.h"
#include "kernels/cuda/weights.h"

extern "C" {
#include "common/progress.h"
#include "common/random.h"
#include "format/outliers.h"
}

#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>

#define THREADS     256
#define ALIGNMENT   UINT64_C(256)
#define PIECE_BYTES (UINT64_C(1) << 20)
#define BATCH       1024u /* pieces between two looks at options->poll */
#define BUFFERS     2u    /* of a reader */
/* A reader gets 2.8 to 5 GB/s through pread and digests, a bus takes 25 to 55; more pinned memory
 * takes longer to get (0.3 to 0.5 ms a MiB) than it saves. */
#define MOST_READERS 16u

/* What fills a stretch of device memory. */
typedef struct filling {
    uint8_t *to;
    uint64_t bytes;
    const void *host;                 /* in host memory */
    const ingot_container *container; /* or: from `offset` of a part */
    uint64_t index, offset;
    ingot_part part;
    ingot_dtype dtype; /* or: random values, F32 to BF16 of the given spread, U8: any bytes, */
    uint8_t mask;      /* their bits in it */
    float spread;
} filling;

/* Outliers of a tensor, in host memory: their rules want to be checked as a whole. */
typedef struct outliers {
    const ingot_container *container;
    uint64_t index;
    void *buffer;
    ingot_weight_view view;
} outliers;

typedef struct loader {
    ingot_engine *e;
    const ingot_engine_options *options;
    uint8_t *base; /* NULL: only sizes are counted */
    uint64_t used;
    filling *list;
    uint64_t count, room;
    ingot_arena *host; /* outliers */
    outliers *sparse;  /* of all tensors that have some, in the order of the plan */
    uint64_t sparse_count, sparse_room, sparse_next;
    uint64_t bytes; /* of weights */
    std::mutex telling;
    uint64_t told, total; /* of options->progress */
    ingot_error *error;
} loader;

static void tell(loader *l, uint64_t bytes) {
    if (l->options->progress != nullptr) {
        const std::lock_guard<std::mutex> lock(l->telling);
        l->told += bytes;
        l->options->progress(l->options->progress_context, l->told, l->total);
    }
}

/* ---- the plan ---------------------------------------------------------------------------------
 */

/* Room for one more behind the `count` entries of an array. */
static ingot_status grow(void **array, uint64_t *room, uint64_t count, uint64_t entry_bytes) {
    void *memory;
    if (count < *room) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_alloc_zero(&memory, 2 * *room + 1024, entry_bytes));
    if (count != 0) {
        memcpy(memory, *array, count * entry_bytes);
    }
    ingot_free(*array);
    *array = memory;
    *room = 2 * *room + 1024;
    return INGOT_OK;
}

static ingot_status add_filling(loader *l, const filling &one) {
    if (l->base == nullptr || one.bytes == 0) {
        return INGOT_OK;
    }
    INGOT_TRY(grow(reinterpret_cast<void **>(&l->list), &l->room, l->count, sizeof one));
    l->list[l->count++] = one;
    return INGOT_OK;
}

/* Kernels read whole words and shift: what is behind the last scale is defined. */
static ingot_status end_word(const loader *l) {
    const uint64_t gap = (4 - l->used % 4) % 4;
    return l->base == nullptr || gap == 0
               ? INGOT_OK
               : ingot_cuda_status(cudaMemsetAsync(l->base + l->used, 0, gap, l->e->cuda->stream));
}

/* Room for `bytes`; with is_new on a boundary, else right behind the last. */
static uint8_t *take(loader *l, uint64_t bytes, bool is_new) {
    if (is_new) {
        l->used = (l->used + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    uint8_t *at = l->base == nullptr ? nullptr : l->base + l->used;
    l->used += bytes;
    return at;
}

static ingot_status add_vector(loader *l, const float **out, const ingot_engine_vector &from) {
    *out = nullptr;
    if (from.values == nullptr) {
        return INGOT_OK;
    }
    filling one = {};
    one.bytes = from.count * sizeof *from.values;
    one.to = take(l, one.bytes, true);
    one.host = from.values;
    *out = reinterpret_cast<const float *>(one.to);
    return add_filling(l, one);
}

/* The first plan finds out which tensors have outliers, the second takes what was read of them. */
static ingot_status describe_outliers(loader *l, ingot_engine_matrix *m, uint64_t index) {
    if (l->base != nullptr) {
        const ingot_weight_view *from = &l->sparse[l->sparse_next++].view;
        m->view.outlier_row_ptr = from->outlier_row_ptr;
        m->view.outlier_col = from->outlier_col;
        m->view.outlier_val = from->outlier_val;
        return INGOT_OK;
    }
    outliers one = {};
    one.container = m->container;
    one.index = index;
    INGOT_TRY(
        ingot_arena_alloc(l->host, &one.buffer,
                          ingot_tensor_at(m->container, index)->part_bytes[INGOT_PART_OUTLIERS]));
    INGOT_TRY(
        grow(reinterpret_cast<void **>(&l->sparse), &l->sparse_room, l->sparse_count, sizeof one));
    l->sparse[l->sparse_count++] = one;
    l->total += ingot_tensor_load_bytes(m->container, index);
    return INGOT_OK;
}

static const ingot_tensor *tensor_of(const ingot_engine_matrix *m, uint64_t *index) {
    const ingot_tensor *t = ingot_tensor_at(m->container, m->index);
    *index = t->kind == INGOT_ALIAS ? t->alias_of : m->index;
    return ingot_tensor_at(m->container, *index);
}

/* The geometry of a matrix; of pointers those to outliers, once they are read. */
static ingot_status describe(loader *l, ingot_engine_matrix *m) {
    if (m->origin != INGOT_ENGINE_CONTAINER) {
        return INGOT_OK;
    }
    uint64_t index;
    (void)tensor_of(m, &index);
    m->view = ingot_engine_matrix_view(m);
    return m->view.outlier_count != 0 ? describe_outliers(l, m, index) : INGOT_OK;
}

/* The parts of a matrix that are arrays of rows: codes or data, scales, zeros. */
#define ROW_PARTS 3

static uint64_t part_bytes(const ingot_weight_view *v, int part) {
    if (v->kind == INGOT_DENSE) {
        return part == 0 ? v->rows * v->cols * ingot_dtype_bytes(v->dtype) : 0;
    }
    const uint64_t groups = v->rows * v->groups_per_row;
    return part == 0   ? v->rows * v->row_stride_bytes
           : part == 1 ? groups * ingot_dtype_bytes(v->scale_dtype)
                       : (v->zero_mode == INGOT_ZERO_STORED ? groups : 0);
}

static const void *part_pointer(const ingot_weight_view *v, int part) {
    return part == 0   ? (v->kind == INGOT_DENSE ? v->data : v->codes)
           : part == 1 ? v->scales
                       : static_cast<const void *>(v->zeros);
}

static void set_pointer(ingot_weight_view *v, int part, const uint8_t *to) {
    if (part == 0 && v->kind == INGOT_DENSE) {
        v->data = to;
    } else if (part == 0) {
        v->codes = to;
    } else if (part == 1) {
        v->scales = to;
    } else {
        v->zeros = to;
    }
}

static ingot_status fill_part(loader *l, const ingot_engine_matrix *m, int part, uint8_t *to) {
    filling one = {};
    const ingot_weight_view *v = &m->view;
    const uint64_t bytes = part_bytes(v, part);
    one.to = to;
    one.bytes = bytes;
    l->bytes += bytes;
    if (m->origin == INGOT_ENGINE_RANDOM) {
        const float spread = 1.7f / sqrtf((float)v->cols);
        one.dtype = v->kind == INGOT_DENSE ? v->dtype : part == 1 ? v->scale_dtype : INGOT_U8;
        one.mask = (uint8_t)(part == 2 ? (1u << v->bits) - 1 : 0xff); /* zero points are codes */
        one.spread = part == 1 ? spread / (float)(1u << (v->bits - 1)) : spread;
        return add_filling(l, one);
    }
    if (m->origin == INGOT_ENGINE_HOST) {
        one.host = part_pointer(v, part);
        return add_filling(l, one);
    }
    one.container = m->container;
    (void)tensor_of(m, &one.index);
    one.part = (ingot_part)part;
    for (uint64_t at = 0; at < bytes; at += PIECE_BYTES) {
        one.to = to == nullptr ? nullptr : to + at;
        one.offset = at;
        one.bytes = ingot_min_u64(PIECE_BYTES, bytes - at);
        INGOT_TRY(add_filling(l, one));
    }
    return INGOT_OK;
}

static ingot_status add_outliers(loader *l, engine_linear *out, const ingot_weight_view *from) {
    if (from->kind != INGOT_GROUPED || from->outlier_count == 0) {
        return INGOT_OK;
    }
    const uint64_t sizes[3] = {(from->rows + 1) * sizeof(uint64_t),
                               from->outlier_count * sizeof(uint32_t),
                               from->outlier_count * ingot_dtype_bytes(from->dtype)};
    const void *hosts[3] = {from->outlier_row_ptr, from->outlier_col, from->outlier_val};
    const uint8_t *to[3];
    for (int i = 0; i < 3; i++) {
        filling one = {};
        one.bytes = sizes[i];
        one.to = take(l, sizes[i], true);
        one.host = hosts[i];
        to[i] = one.to;
        l->bytes += sizes[i];
        INGOT_TRY(add_filling(l, one));
    }
    out->w.outlier_row_ptr = reinterpret_cast<const uint64_t *>(to[0]);
    out->w.outlier_col = reinterpret_cast<const uint32_t *>(to[1]);
    out->w.outlier_val = to[2];
    return INGOT_OK;
}

/* Matrices one behind the other, part by part. */
static ingot_status add_matrices(loader *l, engine_linear *out, const ingot_engine_matrix *from,
                                 int count) {
    ingot_engine_matrix m[INGOT_ENGINE_ROLES];
    for (int i = 0; i < count; i++) {
        m[i] = from[i];
        INGOT_TRY(describe(l, &m[i]));
        out[i].w = m[i].view;
        out[i].w.data = out[i].w.codes = nullptr;
        out[i].w.scales = out[i].w.zeros = nullptr;
    }
    for (int part = 0; part < ROW_PARTS; part++) {
        for (int i = 0; i < count; i++) {
            uint8_t *to = take(l, part_bytes(&m[i].view, part), i == 0);
            if (part_bytes(&m[i].view, part) != 0) {
                set_pointer(&out[i].w, part, to);
                INGOT_TRY(fill_part(l, &m[i], part, to));
            }
        }
        INGOT_TRY(end_word(l));
    }
    for (int i = 0; i < count; i++) {
        INGOT_TRY(add_outliers(l, &out[i], &m[i].view));
    }
    return INGOT_OK;
}

/* Whether two matrices could be one: stored alike, without outliers. */
static bool are_alike(loader *l, const ingot_engine_matrix *from, int count) {
    ingot_engine_matrix first = from[0], other;
    for (int i = 0; i < count; i++) {
        other = from[i];
        uint64_t index;
        if (other.origin == INGOT_ENGINE_CONTAINER &&
            tensor_of(&other, &index)->outlier_count != 0) {
            return false; /* before it is described: every plan describes it once */
        }
        if (describe(l, &other) != INGOT_OK || (i == 0 && describe(l, &first) != INGOT_OK)) {
            return false;
        }
        if (!cuda_weights_are_alike(&first.view, &other.view) || other.view.outlier_count != 0) {
            return false;
        }
    }
    return true;
}

/* One bias for Q, K and V, zero where there is none. */
static ingot_status add_projection_bias(loader *l, engine_layer *out,
                                        const ingot_engine_layer *from) {
    out->qkv_bias = nullptr;
    if (from->bias[0].values == nullptr && from->bias[1].values == nullptr &&
        from->bias[2].values == nullptr) {
        return INGOT_OK;
    }
    for (int i = 0; i < 3; i++) {
        filling one = {};
        one.bytes = out->linear[i].w.rows * sizeof(float);
        one.to = take(l, one.bytes, i == 0);
        one.host = from->bias[i].values;
        one.dtype = INGOT_F32; /* without a bias: random values of spread 0 */
        out->qkv_bias = i == 0 ? reinterpret_cast<const float *>(one.to) : out->qkv_bias;
        INGOT_TRY(add_filling(l, one));
    }
    return INGOT_OK;
}

static ingot_status add_layer(loader *l, engine_layer *out, const ingot_engine_layer *from) {
    engine_linear *linear = out->linear;
    out->window = from->window;
    out->is_stacked = are_alike(l, from->linear, 3);
    INGOT_TRY(out->is_stacked ? add_matrices(l, linear, from->linear, 3) : INGOT_OK);
    for (int role = out->is_stacked ? INGOT_ENGINE_O : 0; role < INGOT_ENGINE_ROLES; role++) {
        INGOT_TRY(add_matrices(l, &linear[role], &from->linear[role], 1));
    }
    if (out->is_stacked) {
        out->qkv.w = linear[0].w;
        out->qkv.w.rows = linear[0].w.rows + linear[1].w.rows + linear[2].w.rows;
    }
    INGOT_TRY(add_projection_bias(l, out, from));
    for (int role = INGOT_ENGINE_O; role < INGOT_ENGINE_ROLES; role++) {
        INGOT_TRY(add_vector(l, &linear[role].bias, from->bias[role]));
    }
    INGOT_TRY(add_vector(l, &out->norm_attention, from->norm_attention));
    INGOT_TRY(add_vector(l, &out->norm_mlp, from->norm_mlp));
    INGOT_TRY(add_vector(l, &out->norm_q, from->norm_q));
    return add_vector(l, &out->norm_k, from->norm_k);
}

static ingot_status add_all(loader *l, const ingot_engine_model *model) {
    ingot_engine *e = l->e;
    INGOT_TRY(add_matrices(l, &e->embed, &model->embed, 1));
    for (uint64_t i = 0; i < model->layers; i++) {
        INGOT_TRY(add_layer(l, &e->layer[i], &model->layer[i]));
    }
    if (model->head.origin == INGOT_ENGINE_NONE) {
        e->head = e->embed;
    } else {
        INGOT_TRY(add_matrices(l, &e->head, &model->head, 1));
    }
    return add_vector(l, &e->final_norm, model->final_norm);
}

/* ---- random values ----------------------------------------------------------------------------
 */

/* Floats are uniform: in [-spread, spread] in a matrix, scales within a quarter of it. */
__global__ __launch_bounds__(THREADS) static void random_kernel(uint8_t *to, uint64_t bytes,
                                                                ingot_dtype dtype, uint8_t mask,
                                                                float spread, uint64_t seed) {
    const uint64_t step = (uint64_t)gridDim.x * THREADS, base = ingot_random_bits(&seed);
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i * 4 < bytes; i += step) {
        uint64_t state = base + i;
        const uint64_t random = ingot_random_bits(&state);
        const float a = (float)(int32_t)random * 0x1p-31f * spread;
        const float b = (float)(int32_t)(random >> 32) * 0x1p-31f * spread;
        for (unsigned j = 0; j < 4 && i * 4 + j < bytes; j++) {
            const float value = j < 2 ? a : b;
            unsigned bits = (unsigned)random & mask * 0x01010101u;
            if (dtype == INGOT_F32) {
                bits = __float_as_uint(a);
            } else if (dtype == INGOT_F16) {
                bits = (unsigned)__half_as_ushort(__float2half_rn(value)) << (j < 2 ? 0 : 16);
            } else if (dtype == INGOT_BF16) {
                bits = __float_as_uint(value) >> (j < 2 ? 16 : 0);
            }
            to[i * 4 + j] = (uint8_t)(bits >> (8 * j));
        }
    }
}

/* ---- filling ----------------------------------------------------------------------------------
 */

typedef struct reader {
    uint8_t *buffer[BUFFERS];
    cudaEvent_t event[BUFFERS]; /* of the copy out of it */
    unsigned next;
} reader;

typedef struct reading {
    loader *l;
    cudaStream_t stream;
    reader readers[MOST_READERS];
    unsigned count;
    std::atomic<uint64_t> next; /* piece; those before it are taken */
    uint64_t end;
    std::atomic<bool> has_failed;
    std::mutex mutex;
    ingot_status status;
    ingot_error error;
} reading;

static ingot_status open_readers(reading *all, uint8_t *pinned) {
    INGOT_TRY(ingot_cuda_status(cudaStreamCreateWithFlags(&all->stream, cudaStreamNonBlocking)));
    for (unsigned i = 0; i < all->count * BUFFERS; i++) {
        reader *r = &all->readers[i / BUFFERS];
        r->buffer[i % BUFFERS] = pinned + i * PIECE_BYTES;
        INGOT_TRY(ingot_cuda_status(
            cudaEventCreateWithFlags(&r->event[i % BUFFERS], cudaEventDisableTiming)));
    }
    return INGOT_OK;
}

/* Returns after all copies. */
static void close_readers(reading *all) {
    if (all->stream != nullptr) {
        (void)cudaStreamSynchronize(all->stream);
        (void)cudaStreamDestroy(all->stream);
    }
    for (unsigned i = 0; i < all->count * BUFFERS; i++) {
        cudaEvent_t event = all->readers[i / BUFFERS].event[i % BUFFERS];
        if (event != nullptr) {
            (void)cudaEventDestroy(event);
        }
    }
}

static ingot_status read_piece(reading *all, reader *r, const filling *one, ingot_error *error) {
    const unsigned slot = r->next++ % BUFFERS;
    INGOT_TRY(ingot_cuda_status(cudaEventSynchronize(r->event[slot])));
    INGOT_TRY(ingot_part_read(one->container, one->index, one->part, one->offset, one->bytes,
                              !all->l->options->skip_verify, r->buffer[slot], error));
    INGOT_TRY(ingot_cuda_status(cudaMemcpyAsync(one->to, r->buffer[slot], one->bytes,
                                                cudaMemcpyHostToDevice, all->stream)));
    tell(all->l, one->bytes);
    return ingot_cuda_status(cudaEventRecord(r->event[slot], all->stream));
}

/* The first that goes wrong is kept, and ends the rest. */
static void keep_failure(reading *all, ingot_status status, const ingot_error *error) {
    if (status != INGOT_OK) {
        const std::lock_guard<std::mutex> lock(all->mutex);
        if (!all->has_failed.exchange(true)) {
            all->status = status;
            all->error = *error;
        }
    }
}

static ingot_status failure_of(const reading *all) {
    if (all->has_failed && all->l->error != nullptr) {
        *all->l->error = all->error;
    }
    return all->status; /* INGOT_OK at first */
}

/* Reader `index` takes pieces until there are none. */
static void read_task(void *context, size_t index, unsigned worker) {
    reading *all = static_cast<reading *>(context);
    (void)worker;
    (void)cudaSetDevice(all->l->e->cuda->device);
    for (uint64_t at; !all->has_failed && (at = all->next++) < all->end;) {
        const filling *one = &all->l->list[at];
        ingot_error error = {};
        const ingot_status status = one->container == nullptr
                                        ? INGOT_OK
                                        : read_piece(all, &all->readers[index], one, &error);
        keep_failure(all, status, &error);
    }
}

static void outliers_task(void *context, size_t index, unsigned worker) {
    reading *all = static_cast<reading *>(context);
    outliers *one = &all->l->sparse[index];
    ingot_error error = {};
    (void)worker;
    if (!all->has_failed) {
        keep_failure(all,
                     ingot_outliers_load(one->container, one->index, !all->l->options->skip_verify,
                                         one->buffer, &one->view, &error),
                     &error);
        tell(all->l, ingot_tensor_load_bytes(one->container, one->index));
    }
}

/* Tensor by tensor on all threads: the check of an outlier reads its code, so this reads the codes
 * once more. */
static ingot_status read_outliers(loader *l) {
    reading all = {};
    all.l = l;
    ingot_pool_run(l->e->cuda->pool, l->sparse_count, outliers_task, &all);
    return failure_of(&all);
}

static ingot_status read_containers(reading *all) {
    loader *l = all->l;
    for (uint64_t first = 0; first < l->count; first += BATCH) {
        INGOT_TRY(l->options->poll != nullptr ? l->options->poll(l->error) : INGOT_OK);
        all->next = first;
        all->end = ingot_min_u64(first + BATCH, l->count);
        ingot_pool_run(l->e->cuda->pool, all->count, read_task, all);
        INGOT_TRY(failure_of(all));
    }
    return INGOT_OK;
}

static ingot_status fill_rest(loader *l) {
    const cudaStream_t stream = l->e->cuda->stream;
    for (uint64_t i = 0; i < l->count; i++) {
        const filling *one = &l->list[i];
        if (one->host != nullptr) {
            INGOT_TRY(ingot_cuda_status(
                cudaMemcpyAsync(one->to, one->host, one->bytes, cudaMemcpyHostToDevice, stream)));
            tell(l, one->bytes);
        } else if (one->container == nullptr) {
            const unsigned blocks = 16u * (unsigned)l->e->cuda->multiprocessors;
            random_kernel<<<blocks, THREADS, 0, stream>>>(
                one->to, one->bytes, one->dtype, one->mask, one->spread, l->options->seed + i);
            INGOT_TRY(ingot_cuda_launched());
        }
    }
    return ingot_cuda_status(cudaStreamSynchronize(stream));
}

static bool has_containers(const loader *l) {
    for (uint64_t i = 0; i < l->count; i++) {
        if (l->list[i].container != nullptr) {
            return true;
        }
    }
    return false;
}

static ingot_status fill_all(loader *l) {
    void *pinned = nullptr;
    INGOT_TRY(fill_rest(l));
    if (!has_containers(l)) {
        return INGOT_OK;
    }
    reading all = {};
    all.l = l;
    all.count = (unsigned)ingot_min_u64(ingot_pool_threads(l->e->cuda->pool), MOST_READERS);
    /* At once: every call takes a lock of the driver for long. */
    ingot_status status = ingot_cuda_status(
        cudaHostAlloc(&pinned, all.count * BUFFERS * PIECE_BYTES, cudaHostAllocDefault));
    if (status == INGOT_OK) {
        status = open_readers(&all, static_cast<uint8_t *>(pinned));
    }
    if (status == INGOT_OK) {
        status = read_containers(&all);
    }
    close_readers(&all);
    (void)cudaFreeHost(pinned);
    return status;
}

/* ---- how large weights are ---------------------------------------------------------------------
 */

static ingot_status find_largest(ingot_engine *e) {
    for (uint64_t i = 0; i < e->model.layers; i++) {
        engine_layer *layer = &e->layer[i];
        for (int role = layer->is_stacked ? INGOT_ENGINE_O : 0; role < INGOT_ENGINE_ROLES; role++) {
            engine_linear *linear = &layer->linear[role];
            INGOT_TRY(engine_bound(e, &linear->w, &linear->largest));
        }
        if (layer->is_stacked) {
            INGOT_TRY(engine_bound(e, &layer->qkv.w, &layer->qkv.largest));
        }
    }
    return engine_bound(e, &e->head.w, &e->head.largest);
}

static ingot_status load_all(loader *l, const ingot_engine_model *model) {
    void *memory = nullptr;
    INGOT_TRY(ingot_arena_create(&l->host));
    INGOT_TRY(add_all(l, model));
    const uint64_t bytes = l->used + ALIGNMENT;
    l->total += l->used;
    INGOT_TRY(ingot_cuda_status(cudaMallocAsync(&memory, bytes, l->e->cuda->stream)));
    l->e->slab = memory;
    INGOT_TRY(ingot_cuda_status(cudaStreamSynchronize(l->e->cuda->stream)));
    INGOT_TRY(read_outliers(l));
    l->base = static_cast<uint8_t *>(memory);
    l->used = l->bytes = 0;
    INGOT_TRY(add_all(l, model));
    return fill_all(l);
}

ingot_status engine_load(ingot_engine *e, const ingot_engine_model *model,
                         const ingot_engine_options *options, ingot_engine_load *load,
                         ingot_error *error) {
    const double start = ingot_clock_seconds();
    loader l = {};
    l.e = e;
    l.options = options;
    l.error = error;
    const ingot_status status = load_all(&l, model);
    ingot_free(l.list);
    ingot_free(l.sparse);
    ingot_arena_destroy(l.host);
    load->seconds = ingot_clock_seconds() - start;
    load->bytes = l.bytes;
    return status == INGOT_OK ? find_largest(e) : status;
}
