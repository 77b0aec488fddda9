/* The stages of a verification, in order; what they found goes to the reports. */
#include "verify/verify.h"

#include "calib/stats.h"
#include "calib/text_model.h"
#include "common/cli.h"
#include "common/json.h"
#include "common/sizes.h"
#include "format/digest.h"
#include "kernels/device_name.h"
#include "verify/source_check.h"
#include "verify/source_folds.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

const char *ingot_layer_kind_name(ingot_layer_kind kind) {
    switch (kind) {
    case INGOT_KIND_EMBED:
        return "embed";
    case INGOT_KIND_HEAD:
        return "head";
    case INGOT_KIND_OTHER:
    case INGOT_KIND_COUNT:
        return "other";
    default:
        return ingot_role_name((ingot_role)kind);
    }
}

/* ---- options ------------------------------------------------------------------------------- */

ingot_status ingot_verify_check_options(const ingot_verify_options *options, ingot_error *error) {
    INGOT_TRY(ingot_device_check_name(options->device, error));
    const bool has_ratio = !isnan(options->max_ppl_ratio), has_kld = !isnan(options->max_kld);
    if ((has_ratio || has_kld) && options->text_count == 0) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "add --text FILE",
                               "%s needs a text to score",
                               has_ratio ? "--max-ppl-ratio" : "--max-kld");
    }
    if ((has_ratio || has_kld) && options->source_path == NULL) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "add --source MODEL_DIR",
                               "%s compares with the source",
                               has_ratio ? "--max-ppl-ratio" : "--max-kld");
    }
    const bool has_drop = !isnan(options->max_accuracy_drop);
    if (has_drop && (options->tasks_path == NULL || options->source_path == NULL)) {
        const bool is_source = options->tasks_path != NULL;
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL,
                               is_source ? "add --source MODEL_DIR" : "add --tasks FILE",
                               "--max-accuracy-drop %s",
                               is_source ? "compares with the source" : "needs items to answer");
    }
    if ((options->seq_len != 0 || options->windows != 0) && options->text_count == 0) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "add --text FILE",
                               "%s says how to cut a text, but there is none",
                               options->seq_len != 0 ? "--seq-len" : "--windows");
    }
    return INGOT_OK;
}

/* Inputs that a later stage needs must be there before an hour of work is spent on earlier ones.
 * Opens the checkpoint: its files and headers. */
static ingot_status check_inputs(ingot_verification *verification, ingot_checkpoint **checkpoint,
                                 ingot_error *error) {
    const ingot_verify_options *options = &verification->options;
    for (uint64_t i = 0; i < options->text_count; i++) {
        ingot_file *file = NULL;
        INGOT_TRY(ingot_file_open(&file, options->text_paths[i], error));
        ingot_file_close(file);
    }
    if (options->source_path != NULL) {
        INGOT_TRY(ingot_checkpoint_open(checkpoint, options->source_path, error));
    }
    return options->tasks_path == NULL
               ? INGOT_OK
               : ingot_tasks_read(&verification->tasks, options->tasks_path, error);
}

/* ---- what the container holds --------------------------------------------------------------- */

static void classify(const ingot_verification *verification, ingot_tensor_report *report) {
    report->class = INGOT_CLASS_UNKNOWN;
    report->layer_kind = INGOT_KIND_OTHER;
    if (!verification->has_model || ingot_is_auxiliary(verification->container, report->tensor)) {
        return;
    }
    report->class = ingot_model_classify(&verification->model, report->tensor->name, &report->layer,
                                         &report->role);
    if (report->class == INGOT_CLASS_LINEAR) {
        report->layer_kind = (ingot_layer_kind)report->role;
        report->has_layer = true;
    } else if (report->class == INGOT_CLASS_EMBED) {
        report->layer_kind = INGOT_KIND_EMBED;
    } else if (report->class == INGOT_CLASS_HEAD) {
        report->layer_kind = INGOT_KIND_HEAD;
    }
}

/* Sum of squares of the figures that are numbers. */
static void add_square(double *sum, uint64_t *count, double value) {
    if (!isnan(value)) {
        *sum += value * value;
        ++*count;
    }
}

static double root_mean(double sum, uint64_t count) {
    return count == 0 ? (double)NAN : sqrt(sum / (double)count);
}

static void summarize_kind(const ingot_verification *verification, ingot_layer_kind kind,
                           ingot_kind_summary *out) {
    uint64_t counts[4] = {0};
    *out = (ingot_kind_summary){.bits_low = 8};
    for (uint64_t i = 0; i < verification->tensor_count; i++) {
        const ingot_tensor_report *report = &verification->tensors[i];
        const ingot_tensor *tensor = report->tensor;
        if (tensor->kind != INGOT_GROUPED || report->layer_kind != kind) {
            continue;
        }
        out->tensors++;
        out->parameters += tensor->rows * tensor->cols;
        out->stored_bytes += report->stored_bytes;
        out->bits_low = tensor->bits < out->bits_low ? tensor->bits : out->bits_low;
        out->bits_high = tensor->bits > out->bits_high ? tensor->bits : out->bits_high;
        out->fallbacks += report->ledger.fallback != INGOT_FALLBACK_NONE;
        add_square(&out->weight_error, &counts[0], report->ledger.weight_error);
        add_square(&out->weight_error_rtn, &counts[1], report->ledger.weight_error_rtn);
        add_square(&out->output_error, &counts[2], report->ledger.output_error);
        add_square(&out->output_error_rtn, &counts[3], report->ledger.output_error_rtn);
    }
    out->weight_error = root_mean(out->weight_error, counts[0]);
    out->weight_error_rtn = root_mean(out->weight_error_rtn, counts[1]);
    out->output_error = root_mean(out->output_error, counts[2]);
    out->output_error_rtn = root_mean(out->output_error_rtn, counts[3]);
}

static ingot_status describe(ingot_verification *verification, ingot_error *error) {
    const ingot_container *container = verification->container;
    const char *path = verification->options.path;
    uint64_t size;
    ingot_get_info(container, &verification->info);
    const char *meta = ingot_meta(container, &size);
    ingot_status status = ingot_json_parse(&verification->meta, meta, size, path, error);
    if (status == INGOT_ERR_INPUT || (status == INGOT_OK && !json_is_object(verification->meta))) {
        char reason[sizeof error->reason];
        (void)snprintf(reason, sizeof reason, "%s", error->reason);
        return ingot_error_set(error, INGOT_BAD_META, path, NULL, "convert again",
                               "META is not a JSON object%s%s", reason[0] != '\0' ? ": " : "",
                               reason);
    }
    INGOT_TRY(status);
    const char *config = ingot_file_entry(container, "config.json", &size);
    if (config != NULL && verification->info.profile == INGOT_PROFILE_MODEL) {
        ingot_error ignored = {0}; /* only --text needs an architecture that is known */
        verification->has_model =
            ingot_model_from_config(&verification->model, config, size, path, &ignored) == INGOT_OK;
    }
    const uint64_t count = ingot_tensor_count(container);
    INGOT_TRY(
        ingot_alloc_zero((void **)&verification->tensors, count, sizeof *verification->tensors));
    verification->tensor_count = count;
    uint64_t quantized_bytes = 0;
    for (uint64_t i = 0; i < count; i++) {
        ingot_tensor_report *report = &verification->tensors[i];
        const ingot_tensor *tensor = report->tensor = ingot_tensor_at(container, i);
        report->recomputed_error = report->recomputed_error_rtn = report->error_bound = NAN;
        ingot_ledger_at(container, i, &report->ledger);
        classify(verification, report);
        for (unsigned part = 0; tensor->kind != INGOT_ALIAS && part < INGOT_PART_COUNT; part++) {
            report->stored_bytes += tensor->part_bytes[part];
        }
        if (tensor->kind == INGOT_DENSE || tensor->kind == INGOT_GROUPED) {
            verification->parameters += tensor->rows * tensor->cols;
        }
        if (tensor->kind == INGOT_GROUPED) {
            verification->quantized_weights += tensor->rows * tensor->cols;
            quantized_bytes += report->stored_bytes;
        }
    }
    if (verification->quantized_weights != 0) {
        verification->bits_per_weight =
            8.0 * (double)quantized_bytes / (double)verification->quantized_weights;
    }
    for (unsigned kind = 0; kind < INGOT_KIND_COUNT; kind++) {
        summarize_kind(verification, (ingot_layer_kind)kind, &verification->kinds[kind]);
    }
    return INGOT_OK;
}

/* ---- stages -------------------------------------------------------------------------------- */

static ingot_status stage_full(ingot_verification *verification, unsigned threads,
                               ingot_error *error) {
    ingot_progress progress;
    const double start = ingot_clock_seconds();
    ingot_progress_begin(&progress, "checking every byte", "MB", 0,
                         verification->options.is_silent);
    const ingot_status status =
        ingot_check_full(verification->container, threads, ingot_progress_bytes, &progress, error);
    ingot_progress_end(&progress);
    verification->full_seconds = ingot_clock_seconds() - start;
    verification->is_full = status == INGOT_OK;
    return status;
}

static ingot_status check_profile(const ingot_verification *verification, ingot_error *error) {
    const uint32_t profile = verification->info.profile;
    if (profile == INGOT_PROFILE_MODEL || profile == INGOT_PROFILE_STATISTICS) {
        return INGOT_OK;
    }
    return ingot_error_set(error, INGOT_ERR_UNSUPPORTED, verification->options.path, NULL,
                           "name a model or a statistics file",
                           "a container of profile %" PRIu32 " is not compared with a source",
                           profile);
}

/* Statistics hold nothing that stands in a checkpoint: they name theirs by a digest. */
static ingot_status statistics_check(ingot_verification *verification,
                                     const ingot_checkpoint *checkpoint, ingot_error *error) {
    ingot_weight_source source;
    ingot_model model;
    ingot_stats *stats;
    ingot_weight_source_from_checkpoint(&source, checkpoint);
    INGOT_TRY(ingot_model_open(&model, &source, error));
    const ingot_status status =
        ingot_stats_open(&stats, verification->options.path, &model, &source, error);
    ingot_stats_close(stats);
    ingot_model_close(&model);
    if (status == INGOT_OK || status == INGOT_FAIL_SOURCE) {
        const bool is_equal = status == INGOT_OK;
        verification->source_verdict = is_equal ? INGOT_VERDICT_YES : INGOT_VERDICT_NO;
        verification->source_checked = ingot_checkpoint_count(checkpoint);
        if (!is_equal) {
            ingot_source_differs(verification, error->tensor[0] != '\0' ? error->tensor : NULL,
                                 NULL, error->reason, error);
        }
    }
    return status;
}

static ingot_status stage_source(ingot_verification *verification,
                                 const ingot_checkpoint *checkpoint, ingot_pool *pool,
                                 ingot_error *error) {
    ingot_progress progress;
    const double start = ingot_clock_seconds();
    verification->source_differences = json_array();
    for (uint64_t i = 0; i < ingot_checkpoint_count(checkpoint); i++) {
        verification->source_bytes += ingot_checkpoint_at(checkpoint, i)->bytes;
    }
    if (verification->info.profile == INGOT_PROFILE_STATISTICS) {
        const ingot_status status = statistics_check(verification, checkpoint, error);
        verification->source_seconds = ingot_clock_seconds() - start;
        return status;
    }
    ingot_progress_begin(&progress, "recomputing", "MB", (double)verification->source_bytes / 1e6,
                         verification->options.is_silent);
    const ingot_status status =
        ingot_source_check(verification, checkpoint, pool, &progress, error);
    ingot_progress_end(&progress);
    verification->source_seconds = ingot_clock_seconds() - start;
    return status;
}

/* What the stages that run the model need, made before the long ones. */
typedef struct model_run {
    ingot_weight_source candidate, source;
    bool has_source;
    ingot_model model;
    ingot_tokenizer *tokenizer;
    const ingot_backend *backend;
    ingot_error failure; /* of opening the model, which the source stage may know more about */
    ingot_text text;     /* without its ids, as soon as it is cut */
    ingot_windows windows;
    double cut_seconds;
} model_run;

static const ingot_weight_source *run_source(const model_run *run) {
    return run->has_source ? &run->source : NULL;
}

static void close_run(model_run *run) {
    ingot_windows_free(&run->windows);
    ingot_tokenizer_destroy(run->tokenizer);
    ingot_model_close(&run->model);
}

static ingot_status open_model(ingot_model *model, ingot_tokenizer **tokenizer,
                               const ingot_weight_source *source, ingot_error *error) {
    INGOT_TRY(ingot_model_open(model, source, error));
    return ingot_source_tokenizer(tokenizer, source, model, error);
}

/* Whether the checkpoint has all that a model needs: then a container that has not is not its. */
static bool is_source_fit(const model_run *run) {
    ingot_model model = {0};
    ingot_tokenizer *tokenizer = NULL;
    ingot_error ignored = {0};
    const bool is_fit = open_model(&model, &tokenizer, &run->source, &ignored) == INGOT_OK;
    ingot_tokenizer_destroy(tokenizer);
    ingot_model_close(&model);
    return is_fit;
}

static ingot_status open_run(model_run *run, const ingot_verification *verification,
                             const ingot_checkpoint *checkpoint, ingot_error *error) {
    ingot_weight_source_from_container(&run->candidate, verification->container, true);
    run->has_source = checkpoint != NULL;
    if (run->has_source) {
        ingot_weight_source_from_checkpoint(&run->source, checkpoint);
    }
    return open_model(&run->model, &run->tokenizer, &run->candidate, error);
}

/* The texts as evaluation windows. */
static ingot_status cut_windows(model_run *run, const ingot_verify_options *options,
                                ingot_error *error) {
    const ingot_model *model = &run->model;
    const double start = ingot_clock_seconds();
    const uint64_t length = options->seq_len != 0
                                ? options->seq_len
                                : ingot_min_u64(INGOT_WINDOW_LENGTH, model->context);
    INGOT_TRY(ingot_text_load(&run->text, options->text_paths, options->text_count, run->tokenizer,
                              error));
    if (length > model->context && !options->is_silent) {
        (void)fprintf(stderr,
                      "ingot-verify: warning: windows of %" PRIu64
                      " tokens are longer than the model's context of %" PRIu64 "\n",
                      length, model->context);
    }
    const ingot_status status = ingot_windows_evaluation(
        &run->windows, &run->text, options->windows, length, options->text_paths[0], error);
    ingot_free(run->text.ids);
    run->text.ids = NULL;
    run->cut_seconds = ingot_clock_seconds() - start;
    return status;
}

/* Texts and items that the model's tokenizer gives too few tokens for are told before an hour of
 * work, too.  Tokenizing is a thousandth of running the model, and of items done again there. */
static ingot_status prepare_run(model_run *run, const ingot_verification *verification,
                                const ingot_checkpoint *checkpoint, ingot_error *error) {
    const ingot_verify_options *options = &verification->options;
    const ingot_status status = open_run(run, verification, checkpoint, error);
    if (status != INGOT_OK && run->has_source &&
        verification->info.profile == INGOT_PROFILE_MODEL && is_source_fit(run)) {
        run->failure = *error;
        run->failure.status = status;
        *error = (ingot_error){0};
        return INGOT_OK;
    }
    INGOT_TRY(status);
    if (options->text_count != 0) {
        INGOT_TRY(cut_windows(run, options, error));
    }
    ingot_tasks_size ignored;
    return options->tasks_path == NULL
               ? INGOT_OK
               : ingot_tasks_measure(&ignored, &verification->tasks, options->tasks_path,
                                     run->tokenizer, run->model.context, UINT64_MAX, error);
}

static ingot_status stage_text(ingot_verification *verification, const model_run *run,
                               ingot_error *error) {
    const ingot_windows *windows = &run->windows;
    ingot_progress progress;
    const double start = ingot_clock_seconds();
    memcpy(verification->text_digest, run->text.digest, sizeof run->text.digest);
    verification->text_bytes = run->text.bytes;
    verification->text_tokens = run->text.count;
    verification->window_length = windows->length;
    verification->window_count = windows->count;
    ingot_progress_begin(&progress, "scoring", "windows", (double)windows->count,
                         verification->options.is_silent);
    const ingot_status status =
        ingot_score_run(&verification->score, &run->model, &run->candidate, run_source(run),
                        windows, run->backend, 0, &progress, error);
    ingot_progress_end(&progress);
    verification->text_seconds = run->cut_seconds + ingot_clock_seconds() - start;
    return status;
}

static ingot_status stage_tasks(ingot_verification *verification, const model_run *run,
                                ingot_error *error) {
    ingot_progress progress;
    const double start = ingot_clock_seconds();
    ingot_progress_begin(&progress, "answering", "choices", (double)verification->tasks.choices,
                         verification->options.is_silent);
    const ingot_status status = ingot_tasks_score(
        &verification->task_score, &verification->tasks, verification->options.tasks_path,
        run->tokenizer, run->model.context, &run->model, &run->candidate, run_source(run),
        run->backend, 0, &progress, error);
    ingot_progress_end(&progress);
    verification->tasks_seconds = ingot_clock_seconds() - start;
    return status;
}

/* The stages that run the model, on whatever was asked for. */
static ingot_status run_model(ingot_verification *verification, model_run *run,
                              ingot_error *error) {
    const ingot_verify_options *options = &verification->options;
    if (run->failure.status != INGOT_OK) {
        *error = run->failure;
        return error->status;
    }
    (void)snprintf(verification->backend, sizeof verification->backend, "%s", run->backend->path);
    /* digests are not checked again where the full check has done it */
    ingot_weight_source_from_container(&run->candidate, verification->container,
                                       !verification->is_full);
    if (options->text_count != 0) {
        INGOT_TRY(stage_text(verification, run, error));
    }
    return options->tasks_path == NULL ? INGOT_OK : stage_tasks(verification, run, error);
}

static ingot_status fail_gate(ingot_verification *verification, const char *what, double value,
                              const char *unit, double limit) {
    char found[INGOT_FIGURE_SIZE], most[INGOT_FIGURE_SIZE];
    ingot_format_apart(found, most, value, limit, 6);
    return ingot_error_set(&verification->error, INGOT_FAIL_GATE, verification->options.path, NULL,
                           "use more bits, a smaller group or calibration data",
                           "%s is %s %s, over the gate of %s", what, found, unit, most);
}

ingot_status ingot_verify_gates(ingot_verification *verification) {
    const ingot_verify_options *options = &verification->options;
    const ingot_score *score = &verification->score;
    const double drop = verification->task_score.drop;
    if (isnan(options->max_ppl_ratio) && isnan(options->max_kld) &&
        isnan(options->max_accuracy_drop)) {
        return INGOT_OK; /* no gate: gates_passed stays NONE */
    }
    verification->gates_passed = INGOT_VERDICT_NO;
    /* Written so that a figure that is not a number fails. */
    if (!isnan(options->max_ppl_ratio) && !(score->ppl_ratio <= options->max_ppl_ratio)) {
        return fail_gate(verification, "perplexity", score->ppl_ratio, "times the source's",
                         options->max_ppl_ratio);
    }
    if (!isnan(options->max_kld) && !(score->kld_mean <= options->max_kld)) {
        return fail_gate(verification, "mean KL divergence", score->kld_mean, "nats",
                         options->max_kld);
    }
    if (!isnan(options->max_accuracy_drop) && !(drop <= options->max_accuracy_drop)) {
        return fail_gate(verification, "accuracy", drop, "lower than the source's",
                         options->max_accuracy_drop);
    }
    verification->gates_passed = INGOT_VERDICT_YES;
    return INGOT_OK;
}

/* ---- the whole ----------------------------------------------------------------------------- */

void ingot_verification_init(ingot_verification *out, const ingot_verify_options *options) {
    *out = (ingot_verification){.options = *options,
                                .bits_per_weight = NAN,
                                .score = {.perplexity = NAN,
                                          .source_perplexity = NAN,
                                          .ppl_ratio = NAN,
                                          .kld_mean = NAN,
                                          .kld_p99 = NAN,
                                          .top1 = NAN}};
    ingot_task_score_init(&out->task_score);
    out->tasks_seconds = NAN;
    out->open_seconds = out->full_seconds = out->source_seconds = out->text_seconds = NAN;
}

/* A check that said no is a verdict; a check that could not run is none. */
static void judge(ingot_verification *verification, ingot_status status) {
    if (status == INGOT_OK) {
        verification->valid = INGOT_VERDICT_YES;
    } else if (ingot_status_exit_code(status) == 1) {
        verification->valid = INGOT_VERDICT_NO;
    }
}

static ingot_status open_container(ingot_verification *verification, ingot_error *error) {
    const double start = ingot_clock_seconds();
    INGOT_TRY(ingot_open(&verification->container, verification->options.path, error));
    verification->open_seconds = ingot_clock_seconds() - start;
    return describe(verification, error);
}

/* All but the stages that run the model; what these need is prepared, if there are any. */
static ingot_status check_container(ingot_verification *verification, model_run *run,
                                    const ingot_checkpoint *checkpoint, ingot_pool *pool,
                                    ingot_error *error) {
    INGOT_TRY(open_container(verification, error));
    if (checkpoint != NULL) {
        INGOT_TRY(check_profile(verification, error));
    }
    if (run->backend != NULL) {
        INGOT_TRY(prepare_run(run, verification, checkpoint, error));
    }
    if (!verification->options.is_quick) {
        INGOT_TRY(stage_full(verification, ingot_pool_threads(pool), error));
    }
    return checkpoint == NULL ? INGOT_OK : stage_source(verification, checkpoint, pool, error);
}

ingot_status ingot_verify_run(ingot_verification *out, const ingot_verify_options *options) {
    ingot_checkpoint *checkpoint = NULL;
    ingot_pool *pool = NULL;
    ingot_backend backend = {0};
    const bool runs_model = options->text_count != 0 || options->tasks_path != NULL;
    model_run run = {.backend = runs_model ? &backend : NULL};
    ingot_verification_init(out, options);
    ingot_error *error = &out->error;
    ingot_status status = ingot_verify_check_options(options, error);
    INGOT_GO(status);
    INGOT_GO(check_inputs(out, &checkpoint, error));
    if (runs_model) { /* a device that is not there is told now, too */
        INGOT_GO(ingot_backend_open(&backend, options->device, options->threads, error));
    }
    INGOT_GO(ingot_pool_create(&pool, options->threads));
    status = check_container(out, &run, checkpoint, pool, error);
    judge(out, status);
    INGOT_GO(status);
    if (runs_model) {
        status = run_model(out, &run, error);
        if (ingot_status_exit_code(status) == 1) {
            judge(out, status); /* --quick: weights are checked as they are loaded */
        }
        INGOT_GO(status);
        status = ingot_verify_gates(out);
    }
done:
    if (status != INGOT_OK && error->status == INGOT_OK) {
        status = ingot_error_set(error, status, options->path, NULL, NULL, "%s",
                                 ingot_status_text(status));
    }
    close_run(&run);
    ingot_backend_close(&backend);
    ingot_pool_destroy(pool);
    ingot_checkpoint_close(checkpoint);
    return status;
}

void ingot_verification_close(ingot_verification *verification) {
    if (verification->has_model) {
        ingot_model_close(&verification->model);
    }
    ingot_free(verification->tensors);
    ingot_tasks_free(&verification->tasks);
    ingot_task_score_free(&verification->task_score);
    json_decref(verification->source_differences);
    json_decref(verification->meta);
    ingot_close(verification->container);
    *verification = (ingot_verification){0};
}
