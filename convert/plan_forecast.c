/* What a conversion will take and give (convert/plan_forecast.h). */
#include "convert/plan_forecast.h"

#include "calib/score.h"
#include "calib/self_text.h"
#include "calib/stats.h"
#include "calib/text_model.h"
#include "common/cli.h"
#include "common/sizes.h"
#include "convert/distill.h"
#include "convert/loop.h"
#include "convert/sensitivity.h"
#include "convert/tune.h"
#include "convert/waiting.h"

#include <math.h>
#include <string.h>

/* Tokens of one forward call: kernels/cpu/cpu.h and kernels/cuda/open.cu. */
#define CPU_CALL_TOKENS  4096u
#define CUDA_CALL_TOKENS 8192u
/* A process before it reads anything; with a CUDA context and its libraries; what it has on the
 * device by then, for cuBLAS to work in (kernels/cuda/cuda.h). */
#define CPU_BASE_BYTES    (24u << 20)
#define CUDA_BASE_BYTES   (700u << 20)
#define DEVICE_BASE_BYTES (32u << 20)
/* A tokenizer over its file: 49,152 entries and their merges take 25 MB, the file 1.8. */
#define TOKENIZER_RATIO 14u
/* A text over its file, when it is tokenized; its ids stay: 32 MB of books take 66. */
#define TEXT_RATIO 2u

const unsigned ingot_card_gigabytes[INGOT_CARD_COUNT] = {24, 40, 80};

/* Inputs are collected one after another, each when what comes before it is quantized. */
static bool is_in_turn(const ingot_plan *plan) {
    return plan->steps.is_sequential;
}

/* Statistics of an input: sums while windows are run, and what is kept of them until its matrices
 * are quantized; floats. */
typedef struct statistics_need {
    uint64_t gathered, judged, kept;
} statistics_need;

static statistics_need statistics_of(const ingot_plan *plan, const ingot_model *model,
                                     bool has_drift, uint64_t width) {
    const uint64_t square = width * width, drift = width * ingot_min_u64(width, model->hidden);
    statistics_need n = {.gathered = square, .judged = square, .kept = square};
    if (has_drift) { /* H and drift of the judges, and the correction fitted without them */
        n.gathered += square + 2 * drift;
        n.judged += square + 3 * drift;
        n.kept = n.judged;
    }
    n.kept += plan->has_folds ? square : 0;
    return n;
}

static uint64_t together(uint64_t a, uint64_t b, bool is_in_turn_now) {
    return is_in_turn_now ? ingot_max_u64(a, b) : a + b;
}

ingot_block_need ingot_plan_block_need(const ingot_plan *plan, const ingot_model *model,
                                       bool has_drift, uint64_t tuning_bytes,
                                       uint64_t judge_tokens) {
    const bool is_tuned = tuning_bytes != 0;
    uint64_t weights = 0, largest = 0, widest = 0, grams = 0;
    uint64_t width[INGOT_INPUT_COUNT] = {0};
    statistics_need all = {0};
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_linear_desc *d = &model->linear[role];
        if (d->is_present) {
            weights += d->rows * d->cols;
            largest = ingot_max_u64(largest, d->rows * d->cols);
            widest = ingot_max_u64(widest, d->cols);
            width[d->input] = d->cols;
        }
    }
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        const statistics_need n = statistics_of(plan, model, has_drift, width[i]);
        all.gathered = together(all.gathered, n.gathered, is_in_turn(plan));
        all.judged = together(all.judged, n.judged, is_in_turn(plan));
        all.kept = together(all.kept, n.kept, is_in_turn(plan));
        grams += width[i] * width[i];
    }
    /* one after another, tuned ones keep H; and all their targets and codes */
    const uint64_t before = is_in_turn(plan) && is_tuned ? 4 * grams : 0;
    const uint64_t held = plan->piece_bytes + (is_tuned ? 9 : 1) * weights + before;
    /* the factor, and twice its size to polish with */
    const uint64_t solving = 12 * widest * widest;
    ingot_block_need need = {.beside_calls = held + 4 * all.gathered + 12 * largest,
                             .between_calls = held + 4 * all.kept + solving + 32 * largest,
                             .unfolds = plan->has_folds && is_in_turn(plan)};
    if (plan->has_folds) { /* the block rounded for trial, H under a fold, outputs of the judges */
        const uint64_t sums = is_in_turn(plan) ? grams : all.judged;
        need.beside_calls =
            ingot_max_u64(need.beside_calls, held + 4 * sums + 4 * weights + 4 * widest * widest +
                                                 12 * largest + 8 * judge_tokens * model->hidden);
    }
    if (is_tuned) { /* matrices as they are, their targets, codes and packed codes */
        const uint64_t learned = plan->piece_bytes + 6 * weights + 4 * grams + tuning_bytes;
        need.between_calls = ingot_max_u64(need.between_calls, learned);
    }
    return need;
}

/* ---- memory --------------------------------------------------------------------------------- */

typedef struct batch_need {
    bool has_batch, has_exact;
    uint64_t state_bytes; /* of all streams */
    uint64_t token_bytes; /* of one token of a forward call */
} batch_need;

static batch_need need_of_batch(const ingot_forecast_job *job) {
    const ingot_model *model = job->model;
    batch_need b = {.has_batch = job->windows != 0 && job->plan->needs_gram};
    const bool corrects = job->plan->steps.corrects && job->plan->has_loop;
    const bool is_tuned = job->recipe->effort == INGOT_EFFORT_BEST;
    b.has_exact = b.has_batch && ((corrects && job->windows >= INGOT_JUDGED_FROM) || is_tuned);
    b.state_bytes = b.has_batch ? job->windows * job->length * model->hidden * sizeof(float) *
                                      (b.has_exact ? 2 : 1)
                                : 0;
    const uint64_t q = model->heads * model->head_dim, kv = model->kv_heads * model->head_dim;
    const uint64_t widest = ingot_max_u64(ingot_max_u64(q, model->hidden), model->ffn);
    uint64_t floats = 3 * model->hidden + 2 * q + 2 * kv + 2 * model->ffn;
    if (job->plan->has_folds && is_in_turn(job->plan)) { /* an input without its fold */
        floats += widest;
    }
    if (b.has_exact) { /* inputs of the full-precision stream, its residual, drift of an output */
        floats +=
            is_in_turn(job->plan) ? 2 * model->hidden + widest : 5 * model->hidden + q + model->ffn;
    }
    b.token_bytes = b.has_batch ? floats * sizeof(float) : 0;
    return b;
}

static uint64_t call_bytes(const ingot_forecast_job *job, const batch_need *b,
                           uint64_t call_tokens) {
    const uint64_t most = job->windows * job->length;
    return b->token_bytes * ingot_min_u64(most, ingot_max_u64(job->length, call_tokens));
}

/* Whether matrices wait for distillation. */
static bool distills(const ingot_forecast_job *job) {
    return ingot_plan_distills(job->plan, job->recipe->effort == INGOT_EFFORT_BEST);
}

/* 0: the checkpoint has none of that name. */
static uint64_t stored_bytes(const ingot_forecast_job *job, const char *name) {
    uint64_t index;
    const ingot_st_tensor *t = ingot_checkpoint_find(job->checkpoint, name, &index);
    return t != NULL ? t->bytes : 0;
}

/* Of the table that a target of bits per weight is chosen by. */
static uint64_t sensing_bytes(const ingot_forecast_job *job, uint64_t call_tokens,
                              bool has_own_memory) {
    uint64_t count = 0;
    for (uint64_t i = 0; i < job->plan->count; i++) {
        const ingot_plan_tensor *t = &job->plan->tensors[i];
        count += t->origin == INGOT_ORIGIN_QUANTIZE && t->class == INGOT_CLASS_LINEAR;
    }
    return ingot_sensitivity_bytes(job->model, count, job->windows, job->length, call_tokens,
                                   has_own_memory);
}

/* A text that the model writes: all of its weights, and keys and values. */
static void need_to_write(ingot_memory_need *cpu, ingot_memory_need *cuda,
                          uint64_t *cuda_least_bytes, const ingot_forecast_job *job) {
    uint64_t host_least, device_least;
    const uint64_t weights = job->plan->source_bytes;
    const uint64_t host =
        ingot_self_text_bytes(&host_least, job->model, job->windows, job->length, false);
    const uint64_t device =
        ingot_self_text_bytes(&device_least, job->model, job->windows, job->length, true);
    cpu->host_bytes = ingot_max_u64(cpu->host_bytes, CPU_BASE_BYTES + weights + host);
    cuda->device_bytes = ingot_max_u64(cuda->device_bytes, weights + device);
    *cuda_least_bytes = ingot_max_u64(*cuda_least_bytes, weights + device_least);
}

/* A text, or items, that are scored at once. */
typedef struct scored_need {
    uint64_t tokens, longest; /* of all sequences, of one */
    uint64_t kept;            /* host memory beside the models, in bytes */
} scored_need;

/* The text itself, or ids of windows, likelihoods by both and divergences. */
static scored_need need_of_windows(const ingot_scoring_job *s, uint64_t length) {
    const uint64_t most = s->windows != 0 ? s->windows * length : UINT64_MAX;
    const uint64_t tokens = ingot_min_u64(s->text_bytes, most);
    const uint64_t scores = tokens * (sizeof(uint32_t) + 3 * sizeof(double));
    return (scored_need){tokens, length, ingot_max_u64(scores, TEXT_RATIO * s->text_bytes)};
}

/* Sequences that are longer than the context of the model are cut. */
static scored_need need_of_items(const ingot_tasks_size *items, uint64_t context) {
    const uint64_t all = (uint64_t)ceil((double)items->choices * items->tokens);
    return (scored_need){ingot_min_u64(all, items->choices * context),
                         ingot_min_u64((uint64_t)ceil(items->longest), context),
                         ingot_tasks_bytes(NULL, items)};
}

/* One after the other; weights: of both models.  Items are read before the text is scored. */
static void need_of(ingot_forecast *out, const scored_need *n, const ingot_model *model,
                    uint64_t host, uint64_t weights) {
    const uint64_t cpu = ingot_score_bytes(model, n->tokens, n->longest, CPU_CALL_TOKENS);
    const uint64_t cuda = ingot_score_bytes(model, n->tokens, n->longest, CUDA_CALL_TOKENS);
    const uint64_t least = ingot_score_bytes(model, n->longest, n->longest, CUDA_CALL_TOKENS);
    ingot_memory_need *on_cpu = &out->scoring_cpu, *on_cuda = &out->scoring_cuda;
    on_cpu->host_bytes = ingot_max_u64(on_cpu->host_bytes, CPU_BASE_BYTES + host + n->kept + cpu);
    on_cuda->host_bytes = ingot_max_u64(on_cuda->host_bytes, CUDA_BASE_BYTES + host + n->kept);
    on_cuda->device_bytes =
        ingot_max_u64(on_cuda->device_bytes, DEVICE_BASE_BYTES + weights + cuda);
    out->scoring_least_bytes =
        ingot_max_u64(out->scoring_least_bytes, DEVICE_BASE_BYTES + weights + least);
}

/* ingot-verify: a block or both heads, of the container as much as of the source at the most. */
static void need_to_score(ingot_forecast *out, const ingot_forecast_job *job) {
    const ingot_model *model = job->model;
    const ingot_scoring_job *s = &job->scoring;
    const uint64_t embedding = stored_bytes(job, model->embed_name);
    const uint64_t head = ingot_max_u64(embedding, stored_bytes(job, model->head_name));
    const uint64_t weights = 2 * ingot_max_u64(job->plan->block_bytes, head);
    uint64_t tokenizer = 0, read = 0;
    (void)ingot_checkpoint_file(job->checkpoint, INGOT_TOKENIZER_FILE, &tokenizer);
    const uint64_t host = TOKENIZER_RATIO * tokenizer + weights;
    out->scoring_length =
        s->length != 0 ? s->length : ingot_min_u64(INGOT_WINDOW_LENGTH, model->context);
    if (s->items.choices != 0) {
        const scored_need items = need_of_items(&s->items, model->context);
        (void)ingot_tasks_bytes(&read, &s->items);
        need_of(out, &items, model, host, weights);
    }
    if (s->text_bytes != 0) {
        const scored_need windows = need_of_windows(s, out->scoring_length);
        need_of(out, &windows, model, host + read, weights);
    }
}

static void need_memory(ingot_forecast *out, const ingot_forecast_job *job) {
    const ingot_plan *plan = job->plan;
    const batch_need b = need_of_batch(job);
    const uint64_t tuning = b.has_batch && job->recipe->effort == INGOT_EFFORT_BEST
                                ? ingot_tune_bytes(job->model, job->length)
                                : 0;
    /* a block ahead; those behind one that is tuned are read ahead, too, and their head stays */
    const uint64_t embedding = stored_bytes(job, job->model->embed_name);
    const uint64_t own_head = stored_bytes(job, job->model->head_name);
    const uint64_t head = own_head != 0 ? own_head : embedding;
    const uint64_t reading =
        plan->steps.tunes && tuning != 0 ? 4 * plan->piece_bytes + head : 2 * plan->block_bytes;
    /* one matrix, without data */
    ingot_block_need work = {.beside_calls = plan->work_bytes, .between_calls = plan->work_bytes};
    if (plan->needs_gram) {
        const uint64_t judges = ingot_loop_judges(plan, job->windows, tuning != 0);
        work = ingot_plan_block_need(plan, job->model, b.has_exact, tuning, judges * job->length);
    }
    const uint64_t ends = b.has_batch ? embedding : 0;
    uint64_t tokenizer = 0; /* bytes of its file, where there is one and it is read */
    if (job->windows != 0) {
        (void)ingot_checkpoint_file(job->checkpoint, INGOT_TOKENIZER_FILE, &tokenizer);
    }
    const uint64_t base = TOKENIZER_RATIO * tokenizer + TEXT_RATIO * job->text_bytes + reading;
    /* the embedding is gone before the first block */
    work.beside_calls = ingot_max_u64(work.beside_calls, ends);
    out->cpu.host_bytes =
        CPU_BASE_BYTES + base + b.state_bytes + call_bytes(job, &b, CPU_CALL_TOKENS) +
        ingot_max_u64(work.beside_calls, work.between_calls); /* memory of calls stays */
    out->cuda.host_bytes = CUDA_BASE_BYTES + base + ends;
    out->cuda.device_bytes =
        b.state_bytes + ingot_max_u64(call_bytes(job, &b, CUDA_CALL_TOKENS) + work.beside_calls,
                                      work.between_calls);
    out->cuda_least_bytes =
        ingot_max_u64(call_bytes(job, &b, 0) + work.beside_calls, work.between_calls);
    if (job->recipe->target_bpw != 0 && job->windows != 0) {
        const uint64_t host = CPU_BASE_BYTES + base + ingot_max_u64(plan->block_bytes, head);
        out->cpu.host_bytes =
            ingot_max_u64(out->cpu.host_bytes, host + sensing_bytes(job, CPU_CALL_TOKENS, false));
        out->cuda.device_bytes =
            ingot_max_u64(out->cuda.device_bytes, ingot_max_u64(plan->block_bytes, head) +
                                                      sensing_bytes(job, CUDA_CALL_TOKENS, true));
    }
    if (tuning != 0 && distills(job)) {
        uint64_t waiting;
        const uint64_t learning = ingot_distill_bytes(&waiting, plan, job->model, job->length);
        const uint64_t exact = b.state_bytes / 2; /* a device has them on the host by then */
        out->cpu.host_bytes = waiting + ingot_max_u64(out->cpu.host_bytes, learning + exact);
        out->cuda.host_bytes += waiting + exact;
        out->cuda.device_bytes = ingot_max_u64(out->cuda.device_bytes, learning);
    }
}

/* ingot-calib: hidden states of all windows, H of a block's inputs, a block or the embedding. */
ingot_status ingot_forecast_statistics_make(ingot_statistics_need *out,
                                            const ingot_forecast_job *job) {
    const ingot_model *model = job->model;
    const uint64_t windows = job->windows, length = job->length;
    const uint64_t token_bytes = ingot_workspace_token_bytes(model);
    const uint64_t weights =
        ingot_max_u64(job->plan->block_bytes, stored_bytes(job, model->embed_name));
    uint64_t width[INGOT_INPUT_COUNT] = {0}, grams = 0, tokenizer = 0;
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_linear_desc *d = &model->linear[role];
        width[d->input] = d->is_present ? d->cols : width[d->input];
    }
    for (unsigned input = 0; input < INGOT_INPUT_COUNT; input++) {
        grams += width[input] * width[input] * sizeof(float);
    }
    if (!job->writes_text) {
        (void)ingot_checkpoint_file(job->checkpoint, INGOT_TOKENIZER_FILE, &tokenizer);
    }
    const uint64_t host = TOKENIZER_RATIO * tokenizer + TEXT_RATIO * job->text_bytes + weights;
    const uint64_t kept = windows * length * model->hidden * sizeof(float) + grams;
    *out = (ingot_statistics_need){.seconds = NAN};
    out->cpu.host_bytes =
        CPU_BASE_BYTES + host + kept +
        token_bytes * ingot_stats_call_tokens(model, windows, length, CPU_CALL_TOKENS, 0);
    out->cuda.host_bytes = CUDA_BASE_BYTES + host;
    out->cuda.device_bytes =
        weights + kept +
        token_bytes * ingot_stats_call_tokens(model, windows, length, CUDA_CALL_TOKENS, 0);
    out->cuda_least_bytes = weights + kept + token_bytes * length;
    if (job->writes_text) {
        need_to_write(&out->cpu, &out->cuda, &out->cuda_least_bytes, job);
    }
    out->cuda.device_bytes += DEVICE_BASE_BYTES;
    out->cuda_least_bytes += DEVICE_BASE_BYTES;
    return ingot_stats_bytes(&out->file_bytes, model);
}

/* ---- sizes ---------------------------------------------------------------------------------- */

void ingot_forecast_make(ingot_forecast *out, const ingot_forecast_job *job) {
    const ingot_model *model = job->model;
    const ingot_plan *plan = job->plan;
    *out = (ingot_forecast){
        .has_weights = ingot_checkpoint_has_weights(job->checkpoint),
        .source_bytes = plan->source_bytes,
        .quantized_weights = plan->quantized_weights,
        .bits_per_weight = ingot_plan_bits_per_weight(plan),
        .file_bytes = job->layout.file_bytes,
        .shard_count = job->layout.shard_count,
        .kv_bytes_per_token = 4 * model->layers * model->kv_heads * model->head_dim,
        .tokens = job->windows * job->length,
        .seconds = NAN,
        .scoring_pace = {NAN, NAN, NAN, NAN},
    };
    for (uint64_t i = 0; i < ingot_checkpoint_count(job->checkpoint); i++) {
        out->parameters += ingot_checkpoint_at(job->checkpoint, i)->elements;
    }
    need_memory(out, job);
    if (job->writes_text && job->windows != 0) {
        need_to_write(&out->cpu, &out->cuda, &out->cuda_least_bytes, job);
    }
    out->cuda.device_bytes += DEVICE_BASE_BYTES;
    out->cuda_least_bytes += DEVICE_BASE_BYTES;
    if (job->scoring.text_bytes != 0 || job->scoring.items.choices != 0) {
        need_to_score(out, job);
    }
    /* a state is written while the one before is there: digests, places and records */
    const uint64_t waiting = distills(job) ? ingot_waiting_bytes(plan) : 0;
    const uint64_t fronts = ((out->file_bytes + waiting) >> 20) * 32 + plan->count * 512 + 16384;
    out->disk_bytes = out->file_bytes + waiting + 2 * fronts;
}

uint64_t ingot_forecast_card_tokens(bool *fits, const ingot_forecast *forecast,
                                    unsigned gigabytes) {
    const uint64_t card = gigabytes * UINT64_C(1000000000);
    *fits = forecast->file_bytes <= card;
    return *fits ? (card - forecast->file_bytes) / forecast->kv_bytes_per_token : 0;
}

/* ---- reports -------------------------------------------------------------------------------- */

static bool put_u64(json_t *object, const char *key, uint64_t value) {
    return ingot_json_put(object, key, json_integer((json_int_t)value));
}

static json_t *or_null(bool is_known, json_t *value) {
    if (is_known) {
        return value;
    }
    json_decref(value);
    return json_null();
}

static json_t *need_json(const ingot_memory_need *need) {
    json_t *object = json_object();
    return put_u64(object, "host_bytes", need->host_bytes) &&
                   put_u64(object, "device_bytes", need->device_bytes)
               ? object
               : NULL;
}

static json_t *cards_json(const ingot_forecast *f) {
    json_t *list = json_array();
    for (unsigned i = 0; i < INGOT_CARD_COUNT; i++) {
        bool fits;
        const uint64_t tokens = ingot_forecast_card_tokens(&fits, f, ingot_card_gigabytes[i]);
        json_t *card = json_object();
        (void)put_u64(card, "gigabytes", ingot_card_gigabytes[i]);
        (void)ingot_json_put(card, "fits", json_boolean(fits));
        (void)ingot_json_put(card, "kv_tokens", or_null(fits, json_integer((json_int_t)tokens)));
        (void)json_array_append_new(list, card);
    }
    return list;
}

static const char *kind_name(ingot_kind kind) {
    static const char *const names[] = {"dense", "grouped", "alias", "auxiliary"};
    return names[kind];
}

static json_t *tensor_json(const ingot_plan_tensor *t, const ingot_tensor_spec *spec) {
    json_t *object = json_object(), *shape = json_array();
    const bool is_grouped = spec->kind == INGOT_GROUPED, is_alias = spec->kind == INGOT_ALIAS;
    char reason[128];
    uint64_t bytes = 0;
    for (unsigned i = 0; i < spec->rank; i++) {
        (void)json_array_append_new(shape, json_integer((json_int_t)spec->dim[i]));
    }
    (void)snprintf(reason, sizeof reason, "%s%s%s", t->reason != NULL ? t->reason : "",
                   t->note[0] != 0 ? ": " : "", t->note);
    const bool has_bytes = is_alias || ingot_plan_stored_bytes(&bytes, spec, NULL) == INGOT_OK;
    (void)ingot_json_put(object, "name", json_string(t->name));
    (void)ingot_json_put(object, "shape", shape);
    (void)ingot_json_put(object, "kind", json_string(kind_name(spec->kind)));
    (void)ingot_json_put(
        object, "dtype",
        or_null(!is_grouped && !is_alias, json_string(ingot_dtype_name(spec->dtype))));
    (void)ingot_json_put(object, "method",
                         or_null(is_grouped, json_string(ingot_method_name(t->method))));
    (void)ingot_json_put(object, "bits", or_null(is_grouped, json_integer(spec->bits)));
    (void)ingot_json_put(object, "group",
                         or_null(is_grouped, json_integer((json_int_t)spec->group)));
    (void)ingot_json_put(
        object, "symmetric",
        or_null(is_grouped, json_boolean(spec->zero_mode == INGOT_ZERO_SYMMETRIC)));
    (void)ingot_json_put(object, "scale_dtype",
                         or_null(is_grouped, json_string(ingot_dtype_name(spec->scale_dtype))));
    (void)ingot_json_put(object, "outliers",
                         or_null(is_grouped, json_integer((json_int_t)spec->outlier_count)));
    (void)ingot_json_put(object, "bytes", or_null(has_bytes, json_integer((json_int_t)bytes)));
    (void)ingot_json_put(object, "reason", json_string(reason));
    return object;
}

json_t *ingot_forecast_json(const ingot_forecast *f, const ingot_plan *plan) {
    json_t *object = json_object();
    int failed = object == NULL;
    failed |= !ingot_json_put(object, "has_weights", json_boolean(f->has_weights));
    failed |= !put_u64(object, "parameters", f->parameters);
    failed |= !put_u64(object, "f32_bytes", 4 * f->parameters);
    failed |= !put_u64(object, "f16_bytes", 2 * f->parameters);
    failed |= !put_u64(object, "source_bytes", f->source_bytes);
    failed |= !put_u64(object, "quantized_weights", f->quantized_weights);
    failed |= !ingot_json_put(object, "bits_per_weight", ingot_json_number(f->bits_per_weight));
    failed |= !put_u64(object, "file_bytes", f->file_bytes);
    failed |= !put_u64(object, "shards", f->shard_count);
    failed |= !put_u64(object, "disk_bytes", f->disk_bytes);
    failed |= !put_u64(object, "kv_bytes_per_token", f->kv_bytes_per_token);
    failed |= !put_u64(object, "tokens", f->tokens);
    failed |= !ingot_json_put(object, "cpu", need_json(&f->cpu));
    failed |= !ingot_json_put(object, "cuda", need_json(&f->cuda));
    failed |=
        !ingot_json_put(object, "device", or_null(f->device[0] != '\0', json_string(f->device)));
    failed |= !ingot_json_put(object, "seconds", ingot_json_number(f->seconds));
    failed |= !ingot_json_put(object, "cards", cards_json(f));
    json_t *tensors = json_array();
    for (uint64_t i = 0; plan != NULL && i < plan->count; i++) {
        failed |= json_array_append_new(tensors, tensor_json(&plan->tensors[i], &plan->specs[i]));
    }
    failed |= !ingot_json_put(object, "tensors", or_null(plan != NULL, tensors));
    if (failed != 0) {
        json_decref(object);
        return NULL;
    }
    return object;
}

void ingot_forecast_print(const ingot_forecast *f, FILE *out) {
    char a[32], b[32], c[32];
    ingot_format_bytes(a, sizeof a, 4.0 * (double)f->parameters);
    ingot_format_bytes(b, sizeof b, 2.0 * (double)f->parameters);
    (void)fprintf(out, "plan: %.2f billion weights: %s in F32, %s in F16; the container %llu bytes",
                  (double)f->parameters * 1e-9, a, b, (unsigned long long)f->file_bytes);
    (void)fprintf(out, "%s\n", f->has_weights ? "" : " without tokenizer files");
    ingot_format_bytes(a, sizeof a, (double)f->cpu.host_bytes);
    ingot_format_bytes(b, sizeof b, (double)f->cuda.device_bytes);
    ingot_format_bytes(c, sizeof c, (double)f->cuda.host_bytes);
    (void)fprintf(out,
                  "plan: about %s of memory on the cpu; %s of device and %s of host memory "
                  "with CUDA\n",
                  a, b, c);
    ingot_format_bytes(a, sizeof a, (double)f->disk_bytes);
    ingot_format_bytes(b, sizeof b, (double)f->kv_bytes_per_token);
    (void)fprintf(out, "plan: %s of free disk space, what --resume keeps included\n", a);
    (void)fprintf(out, "plan: keys and values in F16 %s a token; beside the weights", b);
    for (unsigned i = 0; i < INGOT_CARD_COUNT; i++) {
        bool fits;
        const uint64_t tokens = ingot_forecast_card_tokens(&fits, f, ingot_card_gigabytes[i]);
        const char *before = i == 0 ? "" : ";";
        if (fits) {
            (void)fprintf(out, "%s %u GB hold %llu tokens", before, ingot_card_gigabytes[i],
                          (unsigned long long)tokens);
        } else {
            (void)fprintf(out, "%s %u GB do not hold them", before, ingot_card_gigabytes[i]);
        }
    }
    (void)fprintf(out, "\n");
    if (isfinite(f->seconds)) {
        ingot_format_seconds(a, sizeof a, f->seconds);
        (void)fprintf(out, "plan: about %s on %s, which it takes here\n", a, f->device);
    }
}
