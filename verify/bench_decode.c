/* ingot-bench decode: tokens a second of the engine of a device, beside what its memory allows.
 *
 * The limit of a token is the time in which the weights of the blocks and the head, once, and the
 * keys and values of all sequences are read at the speed measured in the same run. */
#include "verify/bench.h"

#include "calib/engine_model.h"
#include "common/memory.h"
#include "common/progress.h"
#include "common/random.h"
#include "common/sizes.h"
#include "format/digest.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UPLOAD_BYTES  (UINT64_C(256) << 20)
#define DIGEST_BYTES  (UINT64_C(64) << 20) /* a thread's */
#define DIGEST_PIECE  (UINT64_C(1) << 20)  /* as containers have them */
#define DIGESTERS     4u
#define TOKENS        256u
#define PROMPT        512u
#define LONG_CONTEXT  4096u
#define SHORT_CONTEXT 128u
/* Of logits, relative to their norm: the rounding of some hundred matrices. */
#define MOST_DIFFERENCE 0.05

static const uint64_t batches[] = {1, 16}; /* sequences */

/* ---- the model --------------------------------------------------------------------------------
 */

static const struct shape {
    const char *name;
    uint64_t layers, hidden, ffn, heads, kv_heads, vocab;
} shapes[] = {
    {"llama-3.1-8b", 32, 4096, 14336, 32, 8, 128256},
    {"llama-3.1-70b", 80, 8192, 28672, 64, 8, 128256},
    {"tiny", 2, 256, 512, 4, 2, 1000},
};
#define HEAD_DIM 128u

typedef struct subject {
    ingot_weight_source source; /* of a container */
    ingot_model described;
    bool has_source, has_model;
    ingot_engine_model model;
    ingot_arena *arena;
    uint64_t token_bytes; /* of weights that a token reads */
    ingot_backend backend;
    bool has_backend;
} subject;

static void add_random(ingot_engine_matrix *out, uint64_t rows, uint64_t cols,
                       const ingot_bench_options *options) {
    const uint64_t group = ingot_min_u64(ingot_bench_group(options), cols);
    out->origin = INGOT_ENGINE_RANDOM;
    out->view = (ingot_weight_view){.kind = INGOT_GROUPED,
                                    .rows = rows,
                                    .cols = cols,
                                    .dtype = INGOT_F16,
                                    .bits = 4,
                                    .scale_dtype = INGOT_F16,
                                    .zero_mode = options->has_zeros ? INGOT_ZERO_STORED
                                                                    : INGOT_ZERO_SYMMETRIC,
                                    .group = group,
                                    .groups_per_row = ingot_ceil_div(cols, group),
                                    .row_stride_bytes = cols / 2};
}

/* As they are in checkpoints. */
static void add_dense(ingot_engine_matrix *out, uint64_t rows, uint64_t cols) {
    out->origin = INGOT_ENGINE_RANDOM;
    out->view =
        (ingot_weight_view){.kind = INGOT_DENSE, .rows = rows, .cols = cols, .dtype = INGOT_BF16};
}

static ingot_status generate_model(subject *s, const struct shape *shape,
                                   const ingot_bench_options *options) {
    static const double base = 500000;
    const uint64_t q = shape->heads * HEAD_DIM, kv = shape->kv_heads * HEAD_DIM;
    const uint64_t size[INGOT_ENGINE_ROLES][2] = {
        {q, shape->hidden},          {kv, shape->hidden},         {kv, shape->hidden},
        {shape->hidden, q},          {shape->ffn, shape->hidden}, {shape->ffn, shape->hidden},
        {shape->hidden, shape->ffn},
    };
    void *memory;
    ingot_engine_model *m = &s->model;
    *m = (ingot_engine_model){.layers = shape->layers,
                              .hidden = shape->hidden,
                              .ffn = shape->ffn,
                              .heads = shape->heads,
                              .kv_heads = shape->kv_heads,
                              .head_dim = HEAD_DIM,
                              .vocab = shape->vocab,
                              .rotary_dim = HEAD_DIM,
                              .norm_eps = 1e-5f,
                              .activation = INGOT_ACT_SILU,
                              .embed_scale = 1,
                              .attention_scale = 1 / sqrtf((float)HEAD_DIM),
                              .rotary_scale = 1};
    INGOT_TRY(ingot_arena_array(s->arena, &memory, HEAD_DIM / 2, sizeof(double)));
    double *frequency = memory;
    for (unsigned i = 0; i < HEAD_DIM / 2; i++) {
        frequency[i] = pow(base, -2.0 * i / HEAD_DIM);
    }
    INGOT_TRY(ingot_arena_array(s->arena, &memory, shape->hidden, sizeof(float)));
    float *ones = memory;
    for (uint64_t i = 0; i < shape->hidden; i++) {
        ones[i] = 1;
    }
    const ingot_engine_vector norm = {ones, shape->hidden};
    INGOT_TRY(ingot_arena_array(s->arena, &memory, shape->layers, sizeof(ingot_engine_layer)));
    ingot_engine_layer *layers = memory;
    memset(layers, 0, shape->layers * sizeof *layers);
    for (uint64_t i = 0; i < shape->layers; i++) {
        for (int role = 0; role < INGOT_ENGINE_ROLES; role++) {
            add_random(&layers[i].linear[role], size[role][0], size[role][1], options);
        }
        layers[i].norm_attention = layers[i].norm_mlp = norm;
    }
    if (options->head_bits == 16) {
        add_dense(&m->head, shape->vocab, shape->hidden);
    } else {
        add_random(&m->head, shape->vocab, shape->hidden, options);
    }
    add_dense(&m->embed, shape->vocab, shape->hidden);
    m->inverse_frequency = frequency;
    m->final_norm = norm;
    m->layer = layers;
    return INGOT_OK;
}

static uint64_t matrix_bytes(const ingot_engine_matrix *matrix) {
    if (matrix->origin == INGOT_ENGINE_CONTAINER) {
        const ingot_tensor *t = ingot_tensor_at(matrix->container, matrix->index);
        if (t->kind == INGOT_ALIAS) {
            t = ingot_tensor_at(matrix->container, t->alias_of);
        }
        uint64_t bytes = 0;
        for (int part = 0; part < INGOT_PART_COUNT; part++) {
            bytes += t->part_bytes[part];
        }
        return bytes;
    }
    const ingot_weight_view *v = &matrix->view;
    const uint64_t of_group =
        ingot_dtype_bytes(v->scale_dtype) + (v->zero_mode == INGOT_ZERO_STORED ? 1 : 0);
    return v->kind == INGOT_DENSE ? v->rows * v->cols * ingot_dtype_bytes(v->dtype)
                                  : v->rows * (v->row_stride_bytes + v->groups_per_row * of_group);
}

static void count_bytes(subject *s) {
    const ingot_engine_model *m = &s->model;
    s->token_bytes = matrix_bytes(m->head.origin == INGOT_ENGINE_NONE ? &m->embed : &m->head);
    for (uint64_t i = 0; i < m->layers; i++) {
        for (int role = 0; role < INGOT_ENGINE_ROLES; role++) {
            s->token_bytes += matrix_bytes(&m->layer[i].linear[role]);
        }
    }
}

/* *out stays NULL where a container is measured. */
static ingot_status find_shape(const struct shape **out, const ingot_bench_options *options,
                               ingot_error *error) {
    *out = NULL;
    for (size_t i = 0; options->file == NULL && i < sizeof shapes / sizeof *shapes; i++) {
        if (strcmp(shapes[i].name, options->shape) == 0) {
            *out = &shapes[i];
        }
    }
    return options->file != NULL || *out != NULL
               ? INGOT_OK
               : ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL,
                                 "use llama-3.1-8b, llama-3.1-70b or tiny", "unknown shape \"%s\"",
                                 options->shape);
}

static ingot_status open_model(subject *s, const struct shape *shape,
                               const ingot_bench_options *options, ingot_error *error) {
    if (shape == NULL) {
        INGOT_TRY(ingot_weight_source_open(&s->source, options->file, true, error));
        s->has_source = true;
        INGOT_TRY(ingot_model_open(&s->described, &s->source, error));
        s->has_model = true;
        if (!ingot_engine_model_is_plain(&s->described)) {
            return ingot_error_set(error, INGOT_ERR_UNSUPPORTED, options->file, NULL, NULL,
                                   "the engine does not cover this model");
        }
        return ingot_engine_model_create(&s->model, &s->described, &s->source, s->arena, NULL,
                                         error);
    }
    return generate_model(s, shape, options);
}

/* ---- ceilings ---------------------------------------------------------------------------------
 */

typedef ingot_status (*timed_call)(void *context);

/* The shortest of `runs` calls, in seconds; the device is waited for. */
static ingot_status shortest(const subject *s, unsigned runs, timed_call call, void *context,
                             double *seconds) {
    *seconds = INFINITY;
    for (unsigned i = 0; i < runs; i++) {
        const double start = ingot_clock_seconds();
        INGOT_TRY(call(context));
        INGOT_TRY(s->backend.ops->wait(s->backend.context));
        *seconds = fmin(*seconds, ingot_clock_seconds() - start);
    }
    return INGOT_OK;
}

typedef struct transfer {
    const ingot_backend *backend;
    void *to, *from;
} transfer;

static ingot_status upload_call(void *context) {
    const transfer *t = context;
    return t->backend->ops->upload(t->backend->context, t->to, t->from, UPLOAD_BYTES);
}

/* Bytes a second that the device's memory delivers, and that come from pinned host memory. */
static ingot_status measure_transfers(const subject *s, unsigned runs, double *memory,
                                      double *bus) {
    const ingot_backend_ops *ops = s->backend.ops;
    void *context = s->backend.context;
    transfer host = {.backend = &s->backend};
    double seconds;
    INGOT_TRY(ops->measure_read(context, memory));
    ingot_status status = INGOT_OK;
    INGOT_GO(ops->alloc(context, &host.to, UPLOAD_BYTES));
    INGOT_GO(ops->host_alloc(context, &host.from, UPLOAD_BYTES));
    memset(host.from, 0x5a, UPLOAD_BYTES);
    INGOT_GO(shortest(s, runs + 2, upload_call, &host, &seconds));
    *bus = (double)UPLOAD_BYTES / seconds;
done:
    ops->release(context, host.to);
    ops->host_release(context, host.from);
    return status;
}

static void digest_task(void *context, size_t index, unsigned worker) {
    (void)worker;
    const uint8_t *bytes = (const uint8_t *)context + index * DIGEST_BYTES;
    volatile uint64_t digest = 0; /* or nothing would be worked out */
    for (uint64_t at = 0; at < DIGEST_BYTES; at += DIGEST_PIECE) {
        digest ^= ingot_digest64(bytes + at, DIGEST_PIECE);
    }
}

/* Bytes a second of digests, as a loader checks them, on four threads. */
static ingot_status measure_digests(unsigned runs, double *rate) {
    ingot_pool *pool = NULL;
    void *bytes = NULL;
    double best = INFINITY;
    ingot_status status = INGOT_OK;
    INGOT_GO(ingot_pool_create(&pool, DIGESTERS));
    INGOT_GO(ingot_alloc(&bytes, DIGESTERS * DIGEST_BYTES));
    memset(bytes, 0x5a, DIGESTERS * DIGEST_BYTES);
    for (unsigned i = 0; i < runs + 1; i++) {
        const double start = ingot_clock_seconds();
        ingot_pool_run(pool, DIGESTERS, digest_task, bytes);
        best = fmin(best, ingot_clock_seconds() - start);
    }
    *rate = (double)(DIGESTERS * DIGEST_BYTES) / best;
done:
    ingot_free(bytes);
    ingot_pool_destroy(pool);
    return status;
}

/* ---- figures ----------------------------------------------------------------------------------
 */

static void put(json_t *figures, const char *name, double value) {
    (void)json_object_set_new(figures, name, ingot_json_number(value));
}

#define CELL_NAME 80 /* bytes of the key of a figure */

static void name_cell(char name[CELL_NAME], const char *what, uint64_t batch, uint64_t context) {
    (void)snprintf(name, CELL_NAME, "batch_%" PRIu64 "_context_%" PRIu64 "_%s", batch, context,
                   what);
}

static void put_cell(json_t *figures, const char *what, uint64_t batch, uint64_t context,
                     double value) {
    char name[CELL_NAME];
    name_cell(name, what, batch, context);
    put(figures, name, value);
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Seconds of feeding ids[count] to an empty sequence, the middle of some runs. */
static ingot_status time_prompt(const subject *s, ingot_engine *engine, const uint32_t *ids,
                                uint64_t count, unsigned runs, double *seconds) {
    const ingot_engine_ops *ops = s->backend.ops->engine;
    double times[64];
    const unsigned most = runs < 32 ? 2 * runs + 1 : 64;
    for (unsigned i = 0; i < most + 2; i++) { /* two to warm up */
        INGOT_TRY(ops->rewind(engine, 0));
        INGOT_TRY(s->backend.ops->wait(s->backend.context));
        const double start = ingot_clock_seconds();
        INGOT_TRY(ops->feed(engine, 0, ids, count, NULL));
        INGOT_TRY(s->backend.ops->wait(s->backend.context));
        times[i < 2 ? 0 : i - 2] = ingot_clock_seconds() - start;
    }
    qsort(times, most, sizeof *times, ascending);
    *seconds = times[most / 2];
    return INGOT_OK;
}

/* Greedy tokens behind a context of random ids, prompt excluded. */
static ingot_status time_tokens(json_t *figures, const subject *s, ingot_engine *engine,
                                uint64_t batch, uint64_t context, const uint32_t *ids,
                                unsigned runs, double memory) {
    const ingot_engine_ops *ops = s->backend.ops->engine;
    const ingot_engine_model *m = &s->model;
    const uint64_t states[64] = {0};
    uint32_t out[64];
    double best = INFINITY;
    for (unsigned run = 0; run < runs; run++) {
        for (uint64_t i = 0; i < batch; i++) {
            INGOT_TRY(ops->rewind(engine, i));
            INGOT_TRY(ops->feed(engine, i, ids + i, context, NULL));
        }
        INGOT_TRY(ops->sampler(engine, 0, states));
        INGOT_TRY(ops->next(engine, 2, out)); /* the graph is made */
        INGOT_TRY(ops->next(engine, 0, out));
        const double start = ingot_clock_seconds();
        for (unsigned i = 0; i < TOKENS; i++) {
            INGOT_TRY(ops->next(engine, TOKENS - 1 - i, out));
        }
        best = fmin(best, ingot_clock_seconds() - start);
    }
    const double rate = (double)batch * TOKENS / best;
    const double kv = 4.0 * (double)m->layers * (double)(m->kv_heads * m->head_dim) *
                      ((double)context + TOKENS / 2.0) * (double)batch;
    const double bound = (double)batch * memory / ((double)s->token_bytes + kv);
    put_cell(figures, "tokens_per_second", batch, context, rate);
    put_cell(figures, "bound", batch, context, bound);
    put_cell(figures, "fraction", batch, context, rate / bound);
    return INGOT_OK;
}

/* The norm of the difference of logits over the norm of `want`. */
static double difference(const float *got, const float *want, uint64_t count) {
    double off = 0, size = 0;
    for (uint64_t i = 0; i < count; i++) {
        off += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        size += (double)want[i] * (double)want[i];
    }
    return sqrt(off / size);
}

/* The logits of a token of all sequences together beside those of the same ids as a prompt of one,
 * whose products are others: INGOT_ERR_INTERNAL where they differ by more than rounding. */
static ingot_status check_tokens(json_t *figures, const subject *s, ingot_engine *engine,
                                 uint64_t batch, const uint32_t *ids, ingot_error *error) {
    const ingot_engine_ops *ops = s->backend.ops->engine;
    const uint64_t states[64] = {0}, vocab = s->model.vocab, count = PROMPT - 1;
    uint32_t out[64], behind[64], prompt[PROMPT];
    float *got = NULL, *want = NULL;
    double worst = 0;
    char name[48];
    ingot_status status = INGOT_OK;
    INGOT_GO(ingot_alloc((void **)&got, batch * vocab * sizeof *got));
    INGOT_GO(ingot_alloc((void **)&want, vocab * sizeof *want));
    for (uint64_t i = 0; i < batch; i++) {
        INGOT_GO(ops->rewind(engine, i));
        INGOT_GO(ops->feed(engine, i, ids, count, NULL));
    }
    INGOT_GO(ops->sampler(engine, 0, states));
    INGOT_GO(ops->next(engine, 1, out));
    INGOT_GO(ops->next(engine, 0, behind));
    INGOT_GO(ops->logits(engine, got));
    memcpy(prompt, ids, count * sizeof *ids);
    /* one that is no number is the worst */
    for (uint64_t i = 0; i < batch && worst <= MOST_DIFFERENCE; i++) {
        if (i == 0 || out[i] != out[i - 1]) {
            prompt[count] = out[i];
            INGOT_GO(ops->rewind(engine, 0));
            INGOT_GO(ops->feed(engine, 0, prompt, PROMPT, want));
        }
        const double own = difference(got + i * vocab, want, vocab);
        worst = own <= worst ? worst : own;
    }
    (void)snprintf(name, sizeof name, "batch_%" PRIu64 "_error", batch);
    put(figures, name, worst);
    if (!(worst <= MOST_DIFFERENCE)) {
        status = ingot_error_set(error, INGOT_ERR_INTERNAL, NULL, NULL, NULL,
                                 "logits of %" PRIu64 " sequences are not those of a prompt: they "
                                 "differ by %.3g",
                                 batch, worst);
    }
done:
    ingot_free(got);
    ingot_free(want);
    return status;
}

static ingot_status measure_batch(json_t *figures, const subject *s,
                                  const ingot_bench_options *options, uint64_t batch,
                                  const uint32_t *ids, double memory, ingot_error *error) {
    const ingot_engine_ops *ops = s->backend.ops->engine;
    const bool is_large = s->token_bytes > UINT64_C(16) << 30;
    const bool has_long = (batch == 1 || !is_large) &&
                          (s->has_model == false || s->described.context > LONG_CONTEXT + 300);
    const uint64_t longest = has_long ? LONG_CONTEXT : PROMPT;
    const ingot_engine_options made = {.sequences = batch,
                                       .capacity = longest + TOKENS + 8,
                                       .poll = ingot_interrupt_check,
                                       .seed = 1};
    ingot_engine *engine;
    ingot_engine_load load = {0};
    double seconds;
    INGOT_TRY(ops->create(s->backend.context, &engine, &s->model, &made, &load, error));
    ingot_status status = INGOT_OK;
    if (batch == 1) {
        INGOT_GO(time_prompt(s, engine, ids, PROMPT, options->runs, &seconds));
        put(figures, "prompt_512_tokens_per_second", PROMPT / seconds);
        if (options->file != NULL) {
            put(figures, "load_gbps", (double)load.bytes / load.seconds * 1e-9);
            put(figures, "load_bound_gbps",
                fmin(ingot_json_number_at(figures, "bus_gbps"),
                     ingot_json_number_at(figures, "digest_4_threads_gbps")));
        }
    }
    INGOT_GO(check_tokens(figures, s, engine, batch, ids, error));
    INGOT_GO(time_tokens(figures, s, engine, batch, SHORT_CONTEXT, ids, options->runs, memory));
    if (has_long) {
        INGOT_GO(time_tokens(figures, s, engine, batch, LONG_CONTEXT, ids, 1, memory));
    }
done:
    ops->destroy(engine);
    return status;
}

static ingot_status measure(json_t *figures, subject *s, const ingot_bench_options *options,
                            ingot_error *error) {
    uint32_t ids[LONG_CONTEXT + 64];
    double memory, bus, digests;
    uint64_t state = 1;
    const struct shape *shape;
    INGOT_TRY(find_shape(&shape, options, error));
    INGOT_TRY(ingot_arena_create(&s->arena));
    INGOT_TRY(ingot_backend_open(&s->backend, options->device != NULL ? options->device : "auto",
                                 options->threads, error));
    s->has_backend = true;
    if (s->backend.ops->engine == NULL) {
        return ingot_error_set(error, INGOT_ERR_UNSUPPORTED, NULL, NULL, "use --device cuda",
                               "device %s has no engine", s->backend.ops->name);
    }
    INGOT_TRY(open_model(s, shape, options, error));
    count_bytes(s);
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        ids[i] = (uint32_t)(ingot_random_bits(&state) % s->model.vocab);
    }
    INGOT_TRY(measure_transfers(s, options->runs, &memory, &bus));
    INGOT_TRY(measure_digests(options->runs, &digests));
    (void)json_object_set_new(figures, "device", json_string(s->backend.path));
    (void)json_object_set_new(
        figures, "model",
        ingot_json_any_text(options->file != NULL ? options->file : options->shape));
    put(figures, "memory_gbps", memory * 1e-9);
    put(figures, "bus_gbps", bus * 1e-9);
    put(figures, "digest_4_threads_gbps", digests * 1e-9);
    put(figures, "weight_gigabytes_per_token", (double)s->token_bytes * 1e-9);
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        INGOT_TRY(ingot_interrupt_check(error));
        INGOT_TRY(measure_batch(figures, s, options, batches[i], ids, memory, error));
    }
    return INGOT_OK;
}

ingot_status ingot_bench_decode(json_t **out, const ingot_bench_options *options,
                                ingot_error *error) {
    subject s = {.has_source = false};
    *out = json_object();
    ingot_status status = measure(*out, &s, options, error);
    if (status != INGOT_OK && error->status == INGOT_OK) {
        status = ingot_error_set(error, status, options->file, NULL, NULL, "%s",
                                 ingot_status_text(status));
    }
    if (s.has_backend) {
        ingot_backend_close(&s.backend);
    }
    if (s.has_model) {
        ingot_model_close(&s.described);
    }
    if (s.has_source) {
        ingot_weight_source_close(&s.source);
    }
    ingot_arena_destroy(s.arena);
    return status;
}

/* ---- as text ----------------------------------------------------------------------------------
 */

static double cell(const json_t *figures, const char *what, uint64_t batch, uint64_t context) {
    char name[CELL_NAME];
    name_cell(name, what, batch, context);
    return ingot_json_number_at(figures, name);
}

void ingot_bench_decode_print(const json_t *figures) {
    static const uint64_t contexts[] = {SHORT_CONTEXT, LONG_CONTEXT};
    printf("%s, %s: %.3f GB of weights a token\n",
           json_string_value(json_object_get(figures, "device")),
           json_string_value(json_object_get(figures, "model")),
           ingot_json_number_at(figures, "weight_gigabytes_per_token"));
    printf("memory reads %.0f GB/s, the bus carries %.1f, digests on four threads take %.1f\n",
           ingot_json_number_at(figures, "memory_gbps"), ingot_json_number_at(figures, "bus_gbps"),
           ingot_json_number_at(figures, "digest_4_threads_gbps"));
    printf("%10s %8s %10s %10s %9s\n", "sequences", "behind", "tokens/s", "limit", "of limit");
    for (size_t b = 0; b < sizeof batches / sizeof *batches; b++) {
        for (size_t c = 0; c < sizeof contexts / sizeof *contexts; c++) {
            const double rate = cell(figures, "tokens_per_second", batches[b], contexts[c]);
            if (rate > 0) {
                printf("%10" PRIu64 " %8" PRIu64 " %10.1f %10.1f %8.1f%%\n", batches[b],
                       contexts[c], rate, cell(figures, "bound", batches[b], contexts[c]),
                       100 * cell(figures, "fraction", batches[b], contexts[c]));
            }
        }
    }
    printf("logits of tokens differ from those of a prompt by %.1e (one sequence) and %.1e (16) of "
           "their norm\n",
           ingot_json_number_at(figures, "batch_1_error"),
           ingot_json_number_at(figures, "batch_16_error"));
    printf("prompt of %u tokens: %.0f tokens/s\n", PROMPT,
           ingot_json_number_at(figures, "prompt_512_tokens_per_second"));
    if (json_object_get(figures, "load_gbps") != NULL) {
        const double load = ingot_json_number_at(figures, "load_gbps");
        const double bound = ingot_json_number_at(figures, "load_bound_gbps");
        printf("loaded, checked and put on the device at %.1f GB/s, %.0f%% of the lesser of bus "
               "and digests on four threads\n",
               load, 100 * load / bound);
    }
}
