/* How long a conversion will take (convert/plan_measure.h).
 *
 * The work of every phase follows from the plan; what a unit of it takes is measured on small
 * matrices.  That is good to some ten percent where products dominate, to a factor of two
 * elsewhere.
 *
 * A GPU has two costs more, which are most of what a small model takes: an operation's first call
 * loads its kernels, and what goes on column by column waits for each of many small ones, however
 * few rows there are.  Both are measured as well. */
#include "convert/plan_measure.h"

#include "common/memory.h"
#include "common/progress.h"
#include "common/sizes.h"
#include "convert/block.h"
#include "convert/distill.h"
#include "convert/linear.h"
#include "convert/plan_learning.h"
#include "convert/sensitivity.h"
#include "convert/tune.h"

#include <math.h>
#include <string.h>

#define READ_BYTES   (UINT64_C(32) << 20)
#define SMALL_TOKENS 64u /* enough to call an operation with */

/* Sizes that keep the device busy, and rows that do not; 0: it is busy with any. */
typedef struct sizes {
    uint64_t tokens, n, rows, narrow, few_rows;
} sizes;

/* What quantizing by a method takes. */
typedef struct pace {
    bool is_known;
    double column;        /* seconds per column of quantizing a matrix, however many rows, */
    double weight;        /* per weight, */
    double weight_column; /* and per weight and column */
    double factor;        /* seconds per n^3 of factorizing H, */
    double factor_column; /* and per n */
    double first;         /* what first calls took longer than later ones */
} pace;

#define METHOD_COUNT 8u /* methods, rounded up */

/* What the pace of learning depends on. */
typedef struct learning_shape {
    uint64_t hidden, ffn, heads, kv_heads, head_dim, vocab, length, windows;
} learning_shape;

struct ingot_speeds {
    const ingot_backend *backend;
    const ingot_backend_ops *ops;
    void *context;
    sizes size;
    ingot_arena *arena, *scratch; /* device */
    float *x, *y;                 /* [tokens][n] */
    float *gram;                  /* [n][n], of x */
    ingot_weight_view w;          /* [n][n], F32, device */
    bool is_prepared;
    double product_flops; /* of large products per second, a multiply and an add being two; */
    double gram_flops;    /* of H, whose lower triangle counts; 0: not measured */
    double read_bytes;    /* of a checkpoint per second; 0: not measured */
    double product_first; /* what first calls of these, and of the rest of a block, took longer */
    pace paces[2][METHOD_COUNT]; /* without and with H */
    double fold_trial;           /* of a fold for one matrix, however small; 0: not measured */
    learning_shape learning_of;  /* all 0: not measured */
    ingot_learning_pace learning;
    double open_seconds; /* of the backend */
    ingot_error *error;  /* of the forecast at hand */
};
typedef ingot_speeds bench;

static ingot_status prepare(bench *b) {
    float *w;
    if (b->is_prepared) {
        return INGOT_OK;
    }
    b->size = b->backend->has_own_memory ? (sizes){8192, 4096, 2048, 1024, 64}
                                         : (sizes){1024, 640, 64, 256, 0};
    INGOT_TRY(ingot_backend_arena_create(&b->arena, b->backend));
    INGOT_TRY(ingot_backend_arena_create(&b->scratch, b->backend));
    INGOT_TRY(ingot_random_matrix(&b->x, b->backend, b->arena, b->size.tokens, b->size.n));
    INGOT_TRY(ingot_random_matrix(&w, b->backend, b->arena, b->size.n, b->size.n));
    INGOT_TRY(ingot_arena_array(b->arena, (void **)&b->gram, b->size.n, b->size.n * sizeof(float)));
    b->w = (ingot_weight_view){
        .kind = INGOT_DENSE, .rows = b->size.n, .cols = b->size.n, .dtype = INGOT_F32, .data = w};
    b->is_prepared = true;
    return INGOT_OK;
}

/* ---- measurements --------------------------------------------------------------------------- */

static ingot_status take_time(double *seconds, double *longer, const bench *b,
                              ingot_timed_work work, void *context) {
    return ingot_time_work(seconds, longer, b->backend, work, context);
}

static ingot_status multiply(void *context) {
    const bench *b = context;
    return b->ops->linear(b->context, b->y, &b->w, NULL, b->x, b->size.tokens);
}

static ingot_status sum_gram(void *context) {
    const bench *b = context;
    return b->ops->gram(b->context, b->gram, NULL, NULL, b->x, b->size.tokens, b->size.n);
}

/* Operations of a block that nothing else here calls, on few tokens. */
typedef struct small_block {
    const bench *bench;
    const ingot_model *model;
    float *q, *k, *v, *out;               /* [SMALL_TOKENS][heads or kv_heads][head_dim] */
    float *stream, *norm, *wide, *square; /* [SMALL_TOKENS][hidden], [hidden], [SMALL_TOKENS][ffn],
                                             [SMALL_TOKENS][SMALL_TOKENS] */
} small_block;

static ingot_status pass_small(void *context) {
    const small_block *s = context;
    const bench *b = s->bench;
    const ingot_model *m = s->model;
    const ingot_attention shape = {.sequences = 1,
                                   .q_len = SMALL_TOKENS,
                                   .kv_len = SMALL_TOKENS,
                                   .kv_stride = SMALL_TOKENS,
                                   .heads = m->heads,
                                   .kv_heads = m->kv_heads,
                                   .head_dim = m->head_dim,
                                   .scale = 1};
    INGOT_TRY(b->ops->norm(b->context, s->stream, s->stream, s->norm, NULL, m->norm, m->norm_eps,
                           SMALL_TOKENS, m->hidden));
    if (m->rotary_dim != 0) {
        INGOT_TRY(b->ops->rotary(b->context, s->q, 0, SMALL_TOKENS, m->inverse_frequency, 1,
                                 SMALL_TOKENS, m->heads, m->head_dim, m->rotary_dim));
    }
    INGOT_TRY(b->ops->attention(b->context, s->out, s->q, s->k, s->v, &shape));
    INGOT_TRY(b->ops->activate(b->context, s->wide, s->wide, m->activation, SMALL_TOKENS * m->ffn));
    return b->ops->add(b->context, s->stream, s->stream, 0.5f, SMALL_TOKENS * m->hidden);
}

/* And of the correction, of SMALL_TOKENS inputs. */
static ingot_status correct_small(void *context) {
    const small_block *s = context;
    const bench *b = s->bench;
    const uint64_t n = SMALL_TOKENS;
    double sum;
    unsigned step;
    ingot_arena_reset(b->scratch);
    INGOT_TRY(b->ops->zero(b->context, s->square, n * n * sizeof(float)));
    INGOT_TRY(b->ops->gram(b->context, s->square, NULL, NULL, b->x, b->size.tokens, n));
    INGOT_TRY(b->ops->gram_fold(b->context, s->square, s->square, NULL, n));
    INGOT_TRY(b->ops->drift(b->context, s->wide, b->x, NULL, b->x, n, n, n));
    INGOT_TRY(b->ops->gram_solve(b->context, s->wide, &step, n, s->square, n, b->scratch));
    INGOT_TRY(b->ops->multiply_add(b->context, s->stream, 1, s->wide, s->square, n, n, n));
    INGOT_TRY(b->ops->inner(b->context, &sum, s->wide, s->square, n * n));
    ingot_arena_reset(b->scratch);
    return b->ops->quadratic_loss(b->context, &sum, s->wide, n, n, NULL, s->square, b->scratch);
}

/* What their first calls take. */
static ingot_status touch_block(bench *b, const ingot_forecast_job *job) {
    const ingot_model *m = job->model;
    small_block s = {.bench = b, .model = m};
    const uint64_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    const uint64_t square = SMALL_TOKENS;
    const struct {
        float **at;
        uint64_t rows, width;
    } arrays[] = {
        {&s.q, SMALL_TOKENS, q},
        {&s.k, SMALL_TOKENS, kv},
        {&s.v, SMALL_TOKENS, kv},
        {&s.out, SMALL_TOKENS, q},
        {&s.stream, SMALL_TOKENS, ingot_max_u64(m->hidden, square)},
        {&s.norm, 1, m->hidden},
        {&s.wide, SMALL_TOKENS, ingot_max_u64(m->ffn, square)},
        {&s.square, SMALL_TOKENS, square},
    };
    double ignored;
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        const uint64_t row_bytes = arrays[i].width * sizeof(float);
        INGOT_TRY(ingot_arena_array(b->arena, (void **)arrays[i].at, arrays[i].rows, row_bytes));
        INGOT_TRY(b->ops->zero(b->context, *arrays[i].at, arrays[i].rows * row_bytes));
    }
    INGOT_TRY(take_time(&ignored, &b->product_first, b, pass_small, &s));
    return take_time(&ignored, &b->product_first, b, correct_small, &s);
}

/* A matrix of a number of columns, and the factor of their H. */
typedef struct trial {
    const bench *bench;
    ingot_linear_job job;
    float *gram;
    uint64_t cols;
    ingot_gptq_factor factor;
    ingot_arena *kept; /* the factor's */
} trial;

static ingot_status factorize(void *context) {
    trial *t = context;
    const bench *b = t->bench;
    ingot_arena_reset(t->kept);
    ingot_arena_reset(b->scratch);
    return b->ops->factorize(b->context, &t->factor, t->gram, t->cols, t->job.format.group, t->kept,
                             b->scratch);
}

static ingot_status quantize(void *context) {
    const trial *t = context;
    const bench *b = t->bench;
    ingot_arena *result;
    ingot_quantized q;
    ingot_ledger ledger;
    ingot_steps_taken steps;
    double bound;
    INGOT_TRY(ingot_backend_arena_create(&result, b->backend));
    ingot_arena_reset(b->scratch);
    const ingot_status status =
        ingot_linear_quantize(&q, &ledger, &steps, &bound, &t->job, result, b->scratch, b->error);
    ingot_arena_destroy(result);
    return status;
}

/* Seconds of quantizing a matrix by a method, and of factorizing H of its inputs. */
static ingot_status time_matrix(double *seconds, double *factor, double *longer, bench *b,
                                ingot_method method, const ingot_forecast_job *from, bool has_gram,
                                uint64_t rows, uint64_t cols) {
    const ingot_setting *setting = &from->recipe->defaults;
    const uint64_t group = setting->group == 0 ? cols : ingot_min_u64(setting->group, cols);
    trial t = {.bench = b, .cols = cols, .gram = b->gram};
    ingot_weight_view w = b->w;
    w.rows = rows;
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
    if (has_gram) {
        /* H of the first columns is the first rows of that of x summed over these alone */
        INGOT_GO(ingot_arena_array(b->arena, (void **)&t.gram, cols, cols * sizeof(float)));
        INGOT_GO(b->ops->zero(b->context, t.gram, cols * cols * sizeof(float)));
        INGOT_GO(b->ops->gram(b->context, t.gram, NULL, NULL, b->x,
                              b->size.tokens * b->size.n / cols, cols));
        INGOT_GO(b->ops->gram_fold(b->context, t.gram, t.gram, NULL, cols));
        INGOT_GO(take_time(factor, longer, b, factorize, &t));
        t.job.data = (ingot_linear_data){
            .gram = t.gram, .plain_gram = t.gram, .factor = &t.factor, .tokens = b->size.tokens};
    }
    INGOT_GO(take_time(seconds, longer, b, quantize, &t));
done:
    ingot_arena_destroy(t.kept);
    return status;
}

/* A fold judged on a matrix of so few weights that all of it is waiting: convert/awq.c. */
static ingot_status judge_small(void *context) {
    const bench *b = context;
    const uint64_t n = SMALL_TOKENS;
    const ingot_quant_format format = {
        .bits = 4, .group = n, .zero_mode = INGOT_ZERO_SYMMETRIC, .scale_dtype = INGOT_F16};
    const ingot_weight_view view = {
        .kind = INGOT_DENSE, .rows = n, .cols = n, .dtype = INGOT_F32, .data = b->w.data};
    float *gram, *importance, *w;
    double loss;
    uint64_t bad;
    ingot_quantized q;
    ingot_arena_reset(b->scratch);
    INGOT_TRY(ingot_arena_array(b->scratch, (void **)&gram, n, n * sizeof *gram));
    INGOT_TRY(ingot_arena_array(b->scratch, (void **)&w, n, n * sizeof *w));
    INGOT_TRY(ingot_arena_array(b->scratch, (void **)&importance, n, sizeof *importance));
    INGOT_TRY(ingot_quantized_create(&q, n, n, &format, b->scratch));
    INGOT_TRY(b->ops->zero(b->context, gram, n * n * sizeof *gram));
    INGOT_TRY(b->ops->gram_fold(b->context, gram, gram, NULL, n));
    INGOT_TRY(b->ops->gram_diagonal(b->context, importance, gram, n));
    INGOT_TRY(b->ops->values(b->context, w, &bad, &view, NULL, NULL));
    INGOT_TRY(b->ops->quantize_search(b->context, &q, w, importance, b->scratch));
    return b->ops->quadratic_loss(b->context, &loss, w, n, n, &q, gram, b->scratch);
}

/* The method of most weights. */
static ingot_method main_method(const ingot_plan *plan) {
    double weights[METHOD_COUNT] = {0};
    unsigned best = INGOT_METHOD_RTN;
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_tensor_spec *spec = &plan->specs[i];
        if (plan->tensors[i].origin == INGOT_ORIGIN_QUANTIZE) {
            const unsigned method = (unsigned)plan->tensors[i].method % METHOD_COUNT;
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

/* Products, and sums of H. */
static ingot_status measure_products(bench *b, const ingot_forecast_job *job) {
    const sizes *s = &b->size;
    double seconds;
    if (b->gram_flops != 0) {
        return INGOT_OK;
    }
    INGOT_TRY(prepare(b));
    const double tokens = (double)s->tokens, n = (double)s->n;
    INGOT_TRY(ingot_arena_array(b->arena, (void **)&b->y, s->tokens, s->n * sizeof(float)));
    INGOT_TRY(take_time(&seconds, &b->product_first, b, multiply, b));
    b->product_flops = 2 * tokens * n * n / seconds;
    INGOT_TRY(b->ops->zero(b->context, b->gram, s->n * s->n * sizeof(float)));
    INGOT_TRY(take_time(&seconds, &b->product_first, b, sum_gram, b));
    b->gram_flops = tokens * n * n / seconds;
    return b->backend->has_own_memory ? touch_block(b, job) : INGOT_OK;
}

/* *out = the pace of a method, with H or without. */
static ingot_status measure_pace(const pace **out, bench *b, ingot_method method, bool has_gram,
                                 const ingot_forecast_job *job) {
    pace *p = &b->paces[has_gram][(unsigned)method % METHOD_COUNT];
    double wide, narrow, few, wide_factor, narrow_factor, ignored, ignored_first = 0;
    const sizes *s = &b->size;
    *out = p;
    if (p->is_known) {
        return INGOT_OK;
    }
    INGOT_TRY(prepare(b));
    const double n = (double)s->n, c = (double)s->narrow, rows = (double)s->rows;
    INGOT_TRY(time_matrix(&wide, &wide_factor, &p->first, b, method, job, has_gram, s->rows, s->n));
    INGOT_TRY(time_matrix(&narrow, &narrow_factor, &p->first, b, method, job, has_gram, s->rows,
                          s->narrow));
    if (s->few_rows != 0) {
        const double few_rows = (double)s->few_rows;
        INGOT_TRY(time_matrix(&few, &ignored, &ignored_first, b, method, job, has_gram, s->few_rows,
                              s->narrow));
        p->column = fmax(0, (few * rows - narrow * few_rows) / ((rows - few_rows) * c));
    }
    const double per_wide = fmax(0, wide / n - p->column) / rows,
                 per_narrow = fmax(0, narrow / c - p->column) / rows;
    p->weight_column = fmax(0, (per_wide - per_narrow) / (n - c));
    p->weight = fmax(0, per_narrow - p->weight_column * c);
    p->factor = fmax(0, (wide_factor / n - narrow_factor / c) / (n * n - c * c));
    p->factor_column = fmax(0, wide_factor / n - p->factor * n * n);
    p->is_known = true;
    return INGOT_OK;
}

ingot_status ingot_speeds_create(ingot_speeds **out, const ingot_backend *backend,
                                 double open_seconds) {
    void *memory;
    *out = NULL;
    INGOT_TRY(ingot_alloc_zero(&memory, 1, sizeof(ingot_speeds)));
    *out = memory;
    **out = (ingot_speeds){.backend = backend,
                           .ops = backend->ops,
                           .context = backend->context,
                           .open_seconds = open_seconds};
    return INGOT_OK;
}

void ingot_speeds_destroy(ingot_speeds *speeds) {
    if (speeds != NULL) {
        ingot_arena_destroy(speeds->arena);
        ingot_arena_destroy(speeds->scratch);
        ingot_free(speeds);
    }
}

double ingot_speeds_products(const ingot_speeds *speeds) {
    return speeds->product_flops != 0 ? speeds->product_flops : NAN;
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
static double collecting_seconds(const ingot_forecast_job *job, const bench *b, const pace *own) {
    const ingot_plan *plan = job->plan;
    const block_work w = work_of(job);
    const double tokens = (double)(job->windows * job->length), hidden = (double)job->model->hidden;
    const bool corrects =
        plan->steps.corrects && plan->has_loop && job->windows >= INGOT_JUDGED_FROM;
    const bool is_sequential = plan->steps.is_sequential;
    double products = w.whole, grams = 0, factors = 0; /* propagating */
    for (unsigned input = 0; input < INGOT_INPUT_COUNT; input++) {
        const double n = (double)w.width[input];
        const double streams = corrects ? 2 : 1;
        products += is_sequential || input == w.last ? streams * w.before[input] : 0;
        grams += n * n;
        factors += own->factor * n * n * n + own->factor_column * n;
        if (corrects) {
            const bool has_residual = input == INGOT_INPUT_OUTPUT || input == INGOT_INPUT_DOWN;
            const double p = n + (has_residual ? hidden : 0);
            products += p * n;                           /* drift */
            products += 2 * p * n * n / fmax(1, tokens); /* solving, twice */
        }
    }
    products += corrects ? w.whole - w.before[w.last] : 0; /* the full-precision block's rest */
    if (plan->has_folds && is_sequential) { /* H of the whole block first, to choose folds by */
        products += w.before[w.last];
        grams *= 2;
    }
    return 2 * tokens * products / b->product_flops + tokens * grams / b->gram_flops +
           factors * (corrects ? 3 : 1);
}

static double folding_seconds(const ingot_forecast_job *job, const bench *b, double searched) {
    double seconds = 0; /* of a block */
    for (unsigned i = 0; i < job->model->fold_count; i++) {
        const ingot_fold_desc *f = &job->model->fold[i];
        for (unsigned c = 0; c < f->consumer_count; c++) {
            const ingot_linear_desc *d = &job->model->linear[f->consumers[c]];
            const double cols = (double)d->cols,
                         weights = (double)ingot_min_u64(d->rows, INGOT_FOLD_ROWS) * cols;
            seconds += INGOT_FOLD_TRIALS *
                       (b->fold_trial + weights * (searched + 2 * cols / b->product_flops));
        }
    }
    return seconds;
}

/* What a unit of learning takes: measured, or by the products of it. */
static ingot_status learning_pace(ingot_learning_pace *out, const ingot_forecast_job *job,
                                  bench *b) {
    const ingot_model *m = job->model;
    const learning_shape shape = {m->hidden,   m->ffn,   m->heads,    m->kv_heads,
                                  m->head_dim, m->vocab, job->length, job->windows};
    if (memcmp(&shape, &b->learning_of, sizeof shape) != 0) {
        bool has_pace;
        INGOT_TRY(ingot_learning_measure(&b->learning, &has_pace, job, b->backend, b->product_flops,
                                         b->error));
        if (!has_pace) {
            b->learning.pass = 2 * work_of(job).whole / b->product_flops;
            b->learning.learn = 3 * b->learning.pass;
            b->learning.head = 2 * (double)m->vocab * (double)m->hidden / b->product_flops;
        }
        b->learning_of = shape;
    }
    *out = b->learning;
    return INGOT_OK;
}

/* Tuning of all blocks, and distillation. */
static double learning_seconds(const ingot_forecast_job *job, const ingot_learning_pace *unit) {
    const ingot_plan *plan = job->plan;
    const double layers = (double)job->model->layers;
    const uint64_t judges = ingot_loop_judges(plan, job->windows, true);
    double seconds = 0;
    if (plan->steps.tunes) {
        const ingot_learning_work w = ingot_tune_work(job->windows, job->length, judges);
        seconds += layers * (w.steps * unit->step + w.pass_tokens * unit->pass +
                             w.learn_tokens * unit->learn +
                             w.behind_tokens * (unit->pass * layers / 2 + unit->head));
    }
    if (ingot_plan_distills(plan, true)) {
        const ingot_learning_work w = ingot_distill_work(plan, job->windows, job->length, judges);
        seconds += layers * (w.steps * unit->step + w.pass_tokens * unit->pass +
                             w.learn_tokens * unit->learn) +
                   w.head_tokens * unit->head;
    }
    return seconds;
}

/* The table that a target of bits per weight is chosen by: every matrix at a few widths, each
 * through the blocks behind it. */
static double sensing_seconds(const ingot_forecast_job *job, const ingot_learning_pace *unit) {
    const ingot_model *model = job->model;
    const double layers = (double)model->layers;
    double matrices = 0;
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        matrices += model->linear[role].is_present ? 1 : 0;
    }
    const double candidates = layers * matrices * INGOT_MEASURED_COUNT;
    const double tokens = (double)(ingot_min_u64(job->windows, INGOT_SENSITIVITY_WINDOWS) *
                                   ingot_min_u64(job->length, INGOT_SENSITIVITY_LENGTH));
    return tokens * candidates * (unit->pass * layers / 2 + unit->head);
}

static ingot_status add_up(double *out, const ingot_forecast_job *job, bench *b) {
    const ingot_plan *plan = job->plan;
    const pace *own, *searching;
    const double layers = (double)job->model->layers;
    const bool has_batch = plan->needs_gram && job->windows != 0;
    const bool has_target = job->recipe->target_bpw != 0 && !job->has_widths && job->windows != 0;
    if (b->read_bytes == 0) {
        INGOT_TRY(time_reading(&b->read_bytes, job->checkpoint, b->error));
    }
    double seconds = b->read_bytes > 0 ? (double)plan->source_bytes / b->read_bytes : 0;
    double first = 0;
    if (has_batch || has_target || plan->has_folds) {
        INGOT_TRY(measure_products(b, job));
        first += b->product_first;
    }
    INGOT_TRY(measure_pace(&own, b, main_method(plan), plan->needs_gram, job));
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_tensor_spec *spec = &plan->specs[i];
        if (plan->tensors[i].origin == INGOT_ORIGIN_QUANTIZE) {
            const double rows = (double)spec->dim[0], cols = (double)spec->dim[1];
            seconds += cols * (own->column + rows * (own->weight + own->weight_column * cols));
        }
    }
    first += own->first;
    if (has_batch) {
        seconds += layers * collecting_seconds(job, b, own);
    }
    if (plan->has_folds) {
        INGOT_TRY(measure_pace(&searching, b, INGOT_METHOD_SEARCHED, plan->needs_gram, job));
        if (b->fold_trial == 0) {
            double ignored = 0; /* what is first called here is counted as part of the search */
            INGOT_TRY(take_time(&b->fold_trial, &ignored, b, judge_small, b));
        }
        seconds += layers * folding_seconds(job, b, searching->weight);
        first += searching != own ? searching->first : 0;
    }
    const bool learns = job->recipe->effort == INGOT_EFFORT_BEST && has_batch;
    if (learns || has_target) {
        ingot_learning_pace unit;
        INGOT_TRY(learning_pace(&unit, job, b));
        seconds += learns ? learning_seconds(job, &unit) : 0;
        seconds += has_target ? sensing_seconds(job, &unit) : 0;
        first += unit.first;
    }
    *out = seconds + (b->backend->has_own_memory ? b->open_seconds + first : 0);
    return INGOT_OK;
}

ingot_status ingot_forecast_seconds(double *seconds, const ingot_forecast_job *job,
                                    ingot_speeds *speeds, ingot_error *error) {
    speeds->error = error;
    *seconds = NAN;
    const ingot_status status = add_up(seconds, job, speeds);
    speeds->error = NULL;
    return status;
}

/* One pass of every block, and H of each of its inputs. */
ingot_status ingot_forecast_statistics(double *seconds, const ingot_forecast_job *job,
                                       ingot_speeds *speeds, ingot_error *error) {
    bench *b = speeds;
    const block_work w = work_of(job);
    const double tokens = (double)(job->windows * job->length);
    double grams = 0;
    b->error = error;
    *seconds = NAN;
    const ingot_status status = measure_products(b, job);
    b->error = NULL;
    INGOT_TRY(status);
    for (unsigned input = 0; input < INGOT_INPUT_COUNT; input++) {
        grams += (double)w.width[input] * (double)w.width[input];
    }
    *seconds = (double)job->model->layers * tokens *
               (2 * w.whole / b->product_flops + grams / b->gram_flops);
    *seconds += b->backend->has_own_memory ? b->open_seconds + b->product_first : 0;
    return INGOT_OK;
}

/* Two models, block by block, and their heads. */
ingot_status ingot_forecast_scoring(ingot_scoring_pace *out, const ingot_forecast_job *job,
                                    ingot_speeds *speeds, ingot_error *error) {
    bench *b = speeds;
    ingot_forecast_job scored = *job;
    const ingot_model *model = job->model;
    b->error = error;
    const ingot_status status = measure_products(b, job);
    b->error = NULL;
    INGOT_TRY(status);
    const double unit = 2 * 2 / b->product_flops, layers = (double)model->layers;
    scored.length = 0; /* without attention */
    const double linears = work_of(&scored).whole;
    scored.length = 1;
    out->token = unit * layers * linears;
    out->length = unit * layers * (work_of(&scored).whole - linears);
    out->scored = unit * (double)model->vocab * (double)model->hidden;
    out->start = b->backend->has_own_memory ? b->open_seconds + b->product_first : 0;
    return INGOT_OK;
}
