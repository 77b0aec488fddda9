/* How long a conversion will take (convert/plan_measure.h).
 *
 * The work of every phase follows from the plan; what a unit of it takes is measured on small
 * matrices.  That is good to some ten percent where products dominate, to a factor of two
 * elsewhere. */
#include "convert/plan_measure.h"

#include "common/memory.h"
#include "common/progress.h"
#include "common/sizes.h"
#include "convert/linear.h"

#include <math.h>

#define LEAST_SECONDS 0.05 /* of a measurement; what is faster is repeated */
#define READ_BYTES    (UINT64_C(32) << 20)
#define FOLD_RATIOS   20u  /* that a fold tries (convert/awq.c), */
#define FOLD_ROWS     512u /* on so many rows of each consumer */
#define JUDGED_FROM   8u   /* windows (convert/loop.c) */

/* Sizes that keep the device busy. */
typedef struct sizes {
    uint64_t tokens, n, rows, narrow;
} sizes;

typedef struct bench {
    const ingot_backend *backend;
    const ingot_backend_ops *ops;
    void *context;
    sizes size;
    ingot_arena *arena, *scratch; /* device */
    float *x;                     /* [tokens][n] */
    float *gram;                  /* [n][n], of x */
    ingot_weight_view w;          /* [rows][n], F32, device */
    ingot_error *error;
} bench;

/* ---- random matrices ------------------------------------------------------------------------ */

static ingot_status fill(const bench *b, float **out, uint64_t rows, uint64_t cols) {
    float *host;
    const uint64_t count = rows * cols;
    uint64_t state = rows * 31 + cols;
    INGOT_TRY(ingot_arena_array(b->arena, (void **)out, rows, cols * sizeof(float)));
    INGOT_TRY(ingot_alloc((void **)&host, count * sizeof *host));
    for (uint64_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        host[i] = (float)(int32_t)(state >> 32) * 0x1p-31f;
    }
    const ingot_status status = b->ops->upload(b->context, *out, host, count * sizeof *host);
    ingot_free(host);
    return status;
}

static ingot_status prepare(bench *b) {
    float *w;
    b->ops = b->backend->ops;
    b->context = b->backend->context;
    b->size =
        b->backend->has_own_memory ? (sizes){8192, 4096, 2048, 1024} : (sizes){1024, 640, 64, 256};
    INGOT_TRY(ingot_backend_arena_create(&b->arena, b->backend));
    INGOT_TRY(ingot_backend_arena_create(&b->scratch, b->backend));
    INGOT_TRY(fill(b, &b->x, b->size.tokens, b->size.n));
    INGOT_TRY(fill(b, &w, b->size.n, b->size.n));
    INGOT_TRY(ingot_arena_array(b->arena, (void **)&b->gram, b->size.n, b->size.n * sizeof(float)));
    b->w = (ingot_weight_view){
        .kind = INGOT_DENSE, .rows = b->size.n, .cols = b->size.n, .dtype = INGOT_F32, .data = w};
    return INGOT_OK;
}

/* ---- measurements --------------------------------------------------------------------------- */

typedef ingot_status (*piece_of_work)(bench *b, void *context);

/* *seconds of one call, the device being done with it; the first one warms up. */
static ingot_status take_time(double *seconds, bench *b, piece_of_work work, void *context) {
    unsigned calls = 0;
    INGOT_TRY(work(b, context));
    INGOT_TRY(b->ops->wait(b->context));
    const double start = ingot_clock_seconds();
    do {
        INGOT_TRY(work(b, context));
        INGOT_TRY(b->ops->wait(b->context));
        calls++;
        *seconds = (ingot_clock_seconds() - start) / calls;
    } while (*seconds * calls < LEAST_SECONDS);
    return INGOT_OK;
}

static ingot_status multiply(bench *b, void *y) {
    return b->ops->linear(b->context, y, &b->w, NULL, b->x, b->size.tokens);
}

static ingot_status sum_gram(bench *b, void *unused) {
    (void)unused;
    return b->ops->gram(b->context, b->gram, NULL, NULL, b->x, b->size.tokens, b->size.n);
}

/* A matrix of a number of columns, and the factor of their H. */
typedef struct trial {
    ingot_linear_job job;
    float *gram;
    uint64_t cols;
    ingot_gptq_factor factor;
    ingot_arena *kept; /* the factor's */
} trial;

static ingot_status factorize(bench *b, void *context) {
    trial *t = context;
    ingot_arena_reset(t->kept);
    ingot_arena_reset(b->scratch);
    return b->ops->factorize(b->context, &t->factor, t->gram, t->cols, t->job.format.group, t->kept,
                             b->scratch);
}

static ingot_status quantize(bench *b, void *context) {
    const trial *t = context;
    ingot_arena *result;
    ingot_quantized q;
    ingot_ledger ledger;
    ingot_steps_taken steps;
    INGOT_TRY(ingot_backend_arena_create(&result, b->backend));
    ingot_arena_reset(b->scratch);
    const ingot_status status =
        ingot_linear_quantize(&q, &ledger, &steps, &t->job, result, b->scratch, b->error);
    ingot_arena_destroy(result);
    return status;
}

/* Seconds of quantizing a matrix of `cols` columns by a method, and of factorizing its H. */
static ingot_status time_matrix(double *seconds, double *factor, bench *b, ingot_method method,
                                const ingot_forecast_job *from, uint64_t cols) {
    const ingot_setting *setting = &from->recipe->defaults;
    const uint64_t group = setting->group == 0 ? cols : ingot_min_u64(setting->group, cols);
    trial t = {.cols = cols, .gram = b->gram};
    ingot_weight_view w = b->w;
    w.rows = b->size.rows;
    w.cols = cols;
    t.job = (ingot_linear_job){
        .backend = b->backend,
        .file = "",
        .name = "",
        .source = &w,
        .format = {.bits = setting->bits,
                   .group = group,
                   .zero_mode = setting->is_symmetric ? INGOT_ZERO_SYMMETRIC : INGOT_ZERO_STORED,
                   .scale_dtype = INGOT_F16},
        .outlier_dtype = INGOT_F16,
        .method = method,
        .polish_rounds = from->plan->steps.polish_rounds};
    ingot_status status = INGOT_OK;
    *factor = 0;
    INGOT_GO(ingot_backend_arena_create(&t.kept, b->backend));
    if (from->plan->needs_gram) {
        /* H of the first columns is the first rows of that of x summed over these alone */
        INGOT_GO(ingot_arena_array(b->arena, (void **)&t.gram, cols, cols * sizeof(float)));
        INGOT_GO(b->ops->zero(b->context, t.gram, cols * cols * sizeof(float)));
        INGOT_GO(b->ops->gram(b->context, t.gram, NULL, NULL, b->x,
                              b->size.tokens * b->size.n / cols, cols));
        INGOT_GO(b->ops->gram_fold(b->context, t.gram, t.gram, NULL, cols));
        INGOT_GO(take_time(factor, b, factorize, &t));
        t.job.data = (ingot_linear_data){
            .gram = t.gram, .plain_gram = t.gram, .factor = &t.factor, .tokens = b->size.tokens};
    }
    INGOT_GO(take_time(seconds, b, quantize, &t));
done:
    ingot_arena_destroy(t.kept);
    return status;
}

/* The method of most weights. */
static ingot_method main_method(const ingot_plan *plan) {
    double weights[8] = {0};
    unsigned best = INGOT_METHOD_RTN;
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_tensor_spec *spec = &plan->specs[i];
        if (plan->tensors[i].origin == INGOT_ORIGIN_QUANTIZE) {
            const unsigned method = (unsigned)plan->tensors[i].method & 7;
            weights[method] += (double)spec->dim[0] * (double)spec->dim[1];
            best = weights[method] > weights[best] ? method : best;
        }
    }
    return (ingot_method)best;
}

static ingot_status time_reading(double *rate, const ingot_checkpoint *checkpoint,
                                 ingot_error *error) {
    uint64_t largest = 0, bytes = 0;
    void *buffer;
    *rate = 0;
    for (uint64_t i = 0; i < ingot_checkpoint_count(checkpoint); i++) {
        const uint64_t size = ingot_checkpoint_at(checkpoint, i)->bytes;
        largest = size > bytes ? i : largest;
        bytes = ingot_max_u64(bytes, size);
    }
    bytes = ingot_min_u64(bytes, READ_BYTES);
    if (!ingot_checkpoint_has_weights(checkpoint) || bytes == 0) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_alloc(&buffer, bytes));
    const double start = ingot_clock_seconds();
    const ingot_status status = ingot_checkpoint_read(checkpoint, largest, 0, bytes, buffer, error);
    *rate = (double)bytes / fmax(ingot_clock_seconds() - start, 1e-6);
    ingot_free(buffer);
    return status;
}

static ingot_status measure(ingot_speed *out, bench *b, const ingot_forecast_job *job) {
    const ingot_method method = main_method(job->plan);
    double wide, narrow, wide_factor, narrow_factor, seconds;
    float *y;
    INGOT_TRY(prepare(b));
    const sizes *s = &b->size;
    const double tokens = (double)s->tokens, n = (double)s->n;
    if (job->plan->needs_gram) {
        INGOT_TRY(ingot_arena_array(b->arena, (void **)&y, s->tokens, s->n * sizeof(float)));
        INGOT_TRY(take_time(&seconds, b, multiply, y));
        out->product_flops = 2 * tokens * n * n / seconds;
        INGOT_TRY(b->ops->zero(b->context, b->gram, s->n * s->n * sizeof(float)));
        INGOT_TRY(take_time(&seconds, b, sum_gram, NULL));
        out->gram_flops = tokens * n * n / seconds;
    }
    INGOT_TRY(time_matrix(&wide, &wide_factor, b, method, job, s->n));
    INGOT_TRY(time_matrix(&narrow, &narrow_factor, b, method, job, s->narrow));
    const double per_wide = wide / ((double)s->rows * n),
                 per_narrow = narrow / (double)(s->rows * s->narrow);
    out->factor = wide_factor / (n * n * n);
    out->weight_column = fmax(0, (per_wide - per_narrow) / (n - (double)s->narrow));
    out->weight = fmax(0, per_narrow - out->weight_column * (double)s->narrow);
    if (job->plan->has_folds) {
        INGOT_TRY(time_matrix(&seconds, &wide_factor, b, INGOT_METHOD_SEARCHED, job, s->narrow));
        out->searched = seconds / (double)(s->rows * s->narrow);
    }
    return time_reading(&out->read_bytes, job->checkpoint, b->error);
}

ingot_status ingot_speed_measure(ingot_speed *out, const ingot_forecast_job *job,
                                 const ingot_backend *backend, ingot_error *error) {
    bench b = {.backend = backend, .error = error};
    *out = (ingot_speed){0};
    const ingot_status status = measure(out, &b, job);
    ingot_arena_destroy(b.arena);
    ingot_arena_destroy(b.scratch);
    return status;
}

/* ---- the work ------------------------------------------------------------------------------- */

/* Multiply-adds of a block per token: all of it, and up to each input. */
typedef struct block_work {
    double whole, before[INGOT_INPUT_COUNT];
    uint64_t width[INGOT_INPUT_COUNT];
    unsigned last;
} block_work;

static block_work work_of(const ingot_forecast_job *job) {
    const ingot_model *model = job->model;
    block_work w = {0};
    /* attention: a query meets half of its window, twice */
    const double attention = (double)model->heads * (double)model->head_dim * (double)job->length;
    for (unsigned input = 0; input < INGOT_INPUT_COUNT; input++) {
        w.before[input] = w.whole + (input >= INGOT_INPUT_OUTPUT ? attention : 0);
        for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
            const ingot_linear_desc *d = &model->linear[role];
            if (d->is_present && (unsigned)d->input == input) {
                w.whole += (double)d->rows * (double)d->cols;
                w.width[input] = d->cols;
                w.last = input;
            }
        }
    }
    w.whole += attention;
    return w;
}

/* Of one block: forward passes, statistics and what follows from them. */
static double collecting_seconds(const ingot_forecast_job *job, const ingot_speed *speed) {
    const ingot_plan *plan = job->plan;
    const block_work w = work_of(job);
    const double tokens = (double)(job->windows * job->length), hidden = (double)job->model->hidden;
    const bool corrects = plan->steps.corrects && plan->has_loop && job->windows >= JUDGED_FROM;
    const bool is_sequential = plan->steps.is_sequential && !plan->has_folds;
    double products = w.whole, grams = 0, factors = 0; /* propagating */
    for (unsigned input = 0; input < INGOT_INPUT_COUNT; input++) {
        const double n = (double)w.width[input];
        const double streams = corrects ? 2 : 1;
        products += is_sequential || input == w.last ? streams * w.before[input] : 0;
        grams += n * n;
        factors += n * n * n;
        if (corrects) {
            const bool has_residual = input == INGOT_INPUT_OUTPUT || input == INGOT_INPUT_DOWN;
            const double p = n + (has_residual ? hidden : 0);
            products += p * n;                           /* drift */
            products += 2 * p * n * n / fmax(1, tokens); /* solving, twice */
        }
    }
    products += corrects ? w.whole - w.before[w.last] : 0; /* the full-precision block's rest */
    return 2 * tokens * products / speed->product_flops + tokens * grams / speed->gram_flops +
           speed->factor * factors * (corrects ? 3 : 1);
}

static double folding_seconds(const ingot_forecast_job *job, const ingot_speed *speed) {
    double seconds = 0;
    for (unsigned i = 0; i < job->model->fold_count; i++) {
        const ingot_fold_desc *f = &job->model->fold[i];
        for (unsigned c = 0; c < f->consumer_count; c++) {
            const ingot_linear_desc *d = &job->model->linear[f->consumers[c]];
            const double cols = (double)d->cols,
                         weights = (double)ingot_min_u64(d->rows, FOLD_ROWS) * cols;
            seconds += FOLD_RATIOS * weights * (speed->searched + 2 * cols / speed->product_flops);
        }
    }
    return seconds;
}

double ingot_forecast_seconds(const ingot_forecast_job *job, const ingot_speed *speed) {
    const ingot_plan *plan = job->plan;
    double seconds = speed->read_bytes > 0 ? (double)plan->source_bytes / speed->read_bytes : 0;
    if (job->recipe->effort == INGOT_EFFORT_BEST) {
        return NAN;
    }
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_tensor_spec *spec = &plan->specs[i];
        if (plan->tensors[i].origin == INGOT_ORIGIN_QUANTIZE) {
            seconds += (double)spec->dim[0] * (double)spec->dim[1] *
                       (speed->weight + speed->weight_column * (double)spec->dim[1]);
        }
    }
    const double layers = (double)job->model->layers;
    if (plan->needs_gram && job->windows != 0) {
        seconds += layers * collecting_seconds(job, speed);
    }
    return seconds + (plan->has_folds ? layers * folding_seconds(job, speed) : 0);
}
