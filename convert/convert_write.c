/* ingot-convert: from the plan to the finished container, and what --resume finds of one that was
 * interrupted (spec/resume.md). */
#include "convert/session.h"

#include "common/files.h"
#include "common/memory.h"
#include "common/sizes.h"
#include "convert/finished.h"
#include "convert/outlier_gain.h"
#include "convert/resume.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

/* What a tensor's outliers gain beside smaller groups of no more bits; null without outliers. */
static json_t *outliers_json(const ingot_tensor_spec *spec, const ingot_steps_taken *steps) {
    const uint64_t rows = spec->dim[0], cols = spec->dim[1];
    ingot_quant_format format = {.bits = spec->bits,
                                 .group = spec->group,
                                 .zero_mode = spec->zero_mode,
                                 .scale_dtype = spec->scale_dtype};
    if (spec->outlier_count == 0) {
        return json_null();
    }
    const uint64_t group =
        ingot_outlier_gain_group(&format, rows, cols, spec->outlier_count, spec->dtype);
    const double bits =
        ingot_outlier_gain_bits(&format, rows, cols, spec->outlier_count, spec->dtype);
    format.group = ingot_max_u64(group, 1);
    const double group_bits =
        group == 0 ? (double)NAN : ingot_outlier_gain_bits(&format, rows, cols, 0, spec->dtype);
    json_t *object = json_object();
    ingot_json_put(object, "bits_per_weight", ingot_json_number(bits));
    ingot_json_put(object, "error", ingot_json_number(steps->outliers));
    ingot_json_put(object, "group", group == 0 ? json_null() : json_integer((json_int_t)group));
    ingot_json_put(object, "group_bits_per_weight", ingot_json_number(group_bits));
    ingot_json_put(object, "group_error", ingot_json_number(steps->groups));
    ingot_json_put(object, "left_out", json_integer((json_int_t)steps->left_out));
    return object;
}

/* The quantized tensors and what each step gained; NULL when out of memory. */
static json_t *tensors_json(const session *s) {
    json_t *list = json_array();
    for (uint64_t i = 0; i < s->plan.count; i++) {
        const ingot_ledger *ledger = &s->ledgers[i];
        const ingot_steps_taken *steps = &s->steps[i];
        if (s->plan.tensors[i].origin != INGOT_ORIGIN_QUANTIZE) {
            continue;
        }
        json_t *tensor = json_object();
        ingot_json_put(tensor, "name", json_string(s->plan.tensors[i].name));
        ingot_json_put(tensor, "method", json_string(ingot_method_name(ledger->method)));
        ingot_json_put(tensor, "bits", json_integer(s->plan.specs[i].bits));
        ingot_json_put(tensor, "output_error_rtn", ingot_json_number(ledger->output_error_rtn));
        ingot_json_put(tensor, "output_error", ingot_json_number(ledger->output_error));
        ingot_json_put(tensor, "correction_share", ingot_json_number(steps->share));
        ingot_json_put(tensor, "correction_gain", ingot_json_number(steps->gain));
        ingot_json_put(tensor, "gptq", ingot_json_number(steps->gptq));
        ingot_json_put(tensor, "polish", ingot_json_number(steps->polished));
        ingot_json_put(tensor, "outliers", outliers_json(&s->plan.specs[i], steps));
        (void)json_array_append_new(list, tensor);
    }
    return list;
}

/* Says where matrices have other outliers than they were asked for. */
static void tell_left_out(const session *s) {
    uint64_t matrices = 0, first = 0;
    double left_out = 0;
    for (uint64_t i = 0; i < s->plan.count; i++) {
        if (s->steps[i].left_out > 0) {
            first = matrices == 0 ? i : first;
            left_out += s->steps[i].left_out;
            matrices++;
        }
    }
    if (matrices != 0) {
        (void)fprintf(stderr,
                      "%s: outliers out of the range of %s were left out, others are in their "
                      "place: %.0f, in %llu matrices (the first: %s)\n",
                      s->result->path, ingot_dtype_name(s->plan.specs[first].dtype), left_out,
                      (unsigned long long)matrices, s->plan.tensors[first].name);
    }
}

static uint64_t written_bytes(const char *path, uint64_t fallback) {
    ingot_container *container = NULL;
    ingot_info info;
    if (ingot_open(&container, path, NULL) != INGOT_OK) {
        return fallback;
    }
    ingot_get_info(container, &info);
    ingot_close(container);
    return info.file_bytes;
}

/* ---- the output ----------------------------------------------------------------------------- */

/* An output under work, and what --resume keeps of it. */
typedef struct work {
    ingot_writer *writer;
    ingot_waiting *waiting;
    char state[4096]; /* path of the state */
    ingot_resume *resume;
    uint64_t first_block;
} work;

void ingot_convert_begin(session *s) {
    const ingot_convert_options *o = s->options;
    char state[4096], target[INGOT_PATH_BYTES];
    char partial[sizeof target + sizeof INGOT_PARTIAL_SUFFIX];
    ingot_layout_info layout;
    /* all but the provenance, which follows with the writer: never more than the file takes */
    const ingot_writer_plan plan = {.tensors = s->plan.specs,
                                    .tensor_count = s->plan.count,
                                    .files = s->files,
                                    .file_count = ingot_checkpoint_file_count(s->checkpoint),
                                    .meta = ""};
    if (o->output == NULL || o->is_dry_run || o->resumes || o->is_compressed ||
        o->shard_size_bytes != 0 || o->recipe.target_bpw != 0 ||
        ingot_resume_path(state, o->output, NULL) != INGOT_OK || ingot_path_exists(state) ||
        ingot_output_target(target, o->output, NULL) != INGOT_OK ||
        snprintf(partial, sizeof partial, "%s" INGOT_PARTIAL_SUFFIX, target) < 0 ||
        ingot_path_exists(partial) || ingot_layout_compute(&layout, &plan, NULL) != INGOT_OK ||
        ingot_output_create(&s->begun, o->output, o->force, NULL) != INGOT_OK) {
        return;
    }
    ingot_output_reserve_behind(s->begun, layout.file_bytes);
}

/* A state that nobody will go on from: its output is about to be written anew. */
static void drop_state(const char *path, const char *reason) {
    if (ingot_resume_is_state(path)) {
        (void)fprintf(stderr, "%s: %s: removed\n", path, reason);
        (void)unlink(path);
    }
}

/* Opens the partial output that an interrupted run left. */
static ingot_status reopen(work *w, const session *s, const ingot_writer_plan *plan) {
    const ingot_convert_options *o = s->options;
    ingot_error missing;
    memset(&missing, 0, sizeof missing);
    const ingot_status status =
        ingot_writer_reopen(&w->writer, o->output, o->force, plan, &missing);
    if (status != INGOT_ERR_NOT_FOUND && status != INGOT_OK && s->error != NULL) {
        *s->error = missing;
    }
    return status == INGOT_ERR_NOT_FOUND ? INGOT_OK : status;
}

/* Whether matrices wait for distillation before they are in the partial output. */
static bool distills(const session *s) {
    return ingot_plan_distills(&s->plan, s->options->recipe.effort == INGOT_EFFORT_BEST);
}

/* Files beside an output that nobody writes who has not locked it, but for the state. */
static void drop_remains(const char *state, const char *waiting) {
    char half_state[4096 + 16];
    (void)unlink(waiting);
    (void)snprintf(half_state, sizeof half_state, "%s" INGOT_PARTIAL_SUFFIX, state);
    (void)unlink(half_state);
}

/* The result that a run before came to is that of this one; what that run did not come to remove
 * goes: the state first, so that it is never beside the partial file that stands for the lock. */
static ingot_status take_finished(session *s, const ingot_container *finished, const char *state,
                                  const char *waiting) {
    ingot_convert_result *r = s->result;
    ingot_output *lock;
    ingot_info info;
    (void)unlink(state);
    INGOT_TRY(ingot_output_create(&lock, ingot_path(finished), true, s->error));
    drop_remains(state, waiting);
    ingot_output_abort(lock);
    ingot_get_info(finished, &info);
    r->is_written = r->was_finished = true;
    r->bytes = info.file_bytes;
    r->tuning_count = 0;
    memcpy(r->root, info.root, sizeof r->root);
    memcpy(r->content_id, info.content_id, sizeof r->content_id);
    (void)snprintf(r->path, sizeof r->path, "%s", ingot_path(finished));
    for (uint64_t i = 0; i < ingot_tensor_count(finished); i++) {
        ingot_ledger ledger;
        ingot_ledger_at(finished, i, &ledger);
        r->fallbacks += ledger.fallback != INGOT_FALLBACK_NONE;
    }
    (void)fprintf(stderr, "%s: is the whole result of this conversion: nothing is left to do\n",
                  r->path);
    return INGOT_OK;
}

/* Looks for the result of this conversion under the output's name.  With --force, which asks for a
 * new one, only where a state says that it was on its way; a state with its partial output says
 * that it still is. */
static ingot_status look_for_finished(session *s, const ingot_writer_plan *plan, const char *state,
                                      bool has_state, const char *waiting) {
    const ingot_convert_options *o = s->options;
    ingot_container *finished;
    ingot_error found;
    if (!o->resumes || (o->force && !has_state)) {
        return INGOT_OK;
    }
    memset(&found, 0, sizeof found);
    ingot_status status =
        ingot_finished_find(&finished, o->output, !has_state, s->checkpoint, &s->plan, plan,
                            ingot_pool_threads(s->backend.pool), &found);
    if (status == INGOT_OK) {
        status = take_finished(s, finished, state, waiting);
        ingot_close(finished);
        return status;
    }
    if (status != INGOT_ERR_NOT_FOUND) {
        return ingot_error_set(s->error, status, found.file, found.tensor, found.remedy, "%s",
                               found.reason);
    }
    return o->force || !ingot_output_exists(o->output)
               ? INGOT_OK
               : ingot_error_set(s->error, INGOT_ERR_EXISTS, o->output, NULL,
                                 "use --force to replace it",
                                 "the output exists and is no whole result of this conversion: %s",
                                 found.reason);
}

/* A shard's name may lead to an input. */
static ingot_status check_shards(const work *w, const session *s) {
    for (uint32_t i = 0; i < ingot_writer_shard_count(w->writer); i++) {
        INGOT_TRY(ingot_convert_check_input(s, ingot_writer_shard_path(w->writer, i)));
    }
    return INGOT_OK;
}

static ingot_status open_work(work *w, session *s, const ingot_writer_plan *plan) {
    const ingot_convert_options *o = s->options;
    const char *reason = "left by an interrupted run, which --resume goes on with";
    char waiting[4096];
    INGOT_TRY(ingot_resume_path(w->state, o->output, s->error));
    INGOT_TRY(ingot_waiting_path(waiting, o->output, s->error));
    ingot_resume_job job = {.path = w->state,
                            .checkpoint = s->checkpoint,
                            .plan = &s->plan,
                            .writer_plan = plan,
                            .layers = s->model.layers,
                            .ledgers = s->ledgers,
                            .steps = s->steps,
                            .tunings = s->result->tunings};
    const bool has_state = o->resumes && ingot_path_exists(w->state);
    INGOT_TRY(has_state ? ingot_resume_check(&job, s->error) : INGOT_OK);
    INGOT_TRY(look_for_finished(s, plan, w->state, has_state, waiting));
    if (s->result->was_finished) {
        return INGOT_OK;
    }
    if (has_state) {
        if (!distills(s) || ingot_path_exists(waiting)) {
            INGOT_TRY(reopen(w, s, plan));
        }
        reason = "its partial output is gone";
    }
    const bool goes_on = w->writer != NULL;
    if (!goes_on) {
        INGOT_TRY(ingot_writer_create(&w->writer, o->output, o->force, plan, s->error));
        s->begun = NULL;
        INGOT_TRY(check_shards(w, s));
        drop_state(w->state, reason);
        drop_remains(w->state, waiting);
    }
    INGOT_TRY(ingot_writer_use_threads(w->writer, ingot_pool_threads(s->backend.pool)));
    if (!o->resumes) {
        return INGOT_OK;
    }
    if (distills(s)) {
        INGOT_TRY(ingot_waiting_create(&w->waiting, o->output, &s->plan, goes_on, s->error));
    }
    job.writer = w->writer;
    job.waiting = w->waiting;
    INGOT_TRY(ingot_resume_create(&w->resume, &job, s->error));
    return goes_on ? ingot_resume_load(w->resume, &w->first_block, s->error) : INGOT_OK;
}

/* After a failure: what can be gone on from stays. */
static void abandon(work *w, const session *s) {
    if (w->resume != NULL) {
        (void)!ingot_resume_wait(w->resume, NULL);
    }
    const bool is_kept = w->resume != NULL && ingot_resume_blocks(w->resume) != 0;
    if (is_kept) {
        if (w->writer != NULL) {
            ingot_writer_keep(w->writer);
        }
        if (w->waiting != NULL) {
            ingot_writer_keep(ingot_waiting_writer(w->waiting));
        }
        (void)fprintf(stderr, "%s: %llu of %llu blocks are kept; --resume goes on from there\n",
                      w->state, (unsigned long long)ingot_resume_blocks(w->resume),
                      (unsigned long long)s->model.layers);
    }
    ingot_writer_abort(w->writer);
    ingot_resume_destroy(w->resume);
    ingot_waiting_destroy(w->waiting);
}

static ingot_status convert_into(work *w, session *s) {
    ingot_progress progress;
    ingot_progress_begin(&progress, "converting", "blocks", (double)s->model.layers, false);
    const ingot_loop_job job = {.checkpoint = s->checkpoint,
                                .source = &s->source,
                                .model = &s->model,
                                .backend = &s->backend,
                                .others = s->others,
                                .other_count = s->other_count,
                                .plan = &s->plan,
                                .windows = s->has_windows ? &s->windows : NULL,
                                .stats = s->stats,
                                .is_tuned = s->options->recipe.effort == INGOT_EFFORT_BEST,
                                .seed = s->options->recipe.seed,
                                .writer = w->writer,
                                .resume = w->resume,
                                .waiting = w->waiting,
                                .first_block = w->first_block,
                                .stored = w->writer,
                                .shortages = &s->result->memory_shortages,
                                .progress = &progress,
                                .phase_seconds = s->result->phase_seconds,
                                .phase_bytes = s->result->phase_bytes,
                                .ledgers = s->ledgers,
                                .steps = s->steps,
                                .tunings = s->result->tunings,
                                .distillation = &s->result->distillation};
    ingot_status status = ingot_loop_run(&job, s->error);
    ingot_progress_end(&progress);
    if (status == INGOT_OK && w->resume != NULL) {
        status = ingot_resume_wait(w->resume, s->error);
    }
    return status == INGOT_OK ? ingot_interrupt_check(s->error) : status;
}

ingot_status ingot_convert_write(session *s, const ingot_writer_plan *plan,
                                 const ingot_layout_info *layout, double *since) {
    const ingot_convert_options *o = s->options;
    work w = {0};
    INGOT_TRY(ingot_alloc_zero((void **)&s->ledgers, s->plan.count + 1, sizeof *s->ledgers));
    INGOT_TRY(ingot_alloc_zero((void **)&s->steps, s->plan.count + 1, sizeof *s->steps));
    if (o->recipe.effort == INGOT_EFFORT_BEST && s->plan.steps.tunes) {
        INGOT_TRY(ingot_alloc_zero((void **)&s->result->tunings, s->model.layers,
                                   sizeof *s->result->tunings));
        s->result->tuning_count = s->model.layers;
    }
    ingot_status status = INGOT_OK;
    INGOT_GO(open_work(&w, s, plan));
    if (s->result->was_finished) {
        return INGOT_OK;
    }
    s->result->phase_seconds[INGOT_PHASE_WRITE] += ingot_lap(since); /* room was reserved */
    INGOT_GO(convert_into(&w, s));
    *since = ingot_clock_seconds();
    (void)snprintf(s->result->path, sizeof s->result->path, "%s", ingot_writer_path(w.writer));
    if (w.resume != NULL && ingot_resume_blocks(w.resume) != 0) {
        ingot_writer_keep(w.writer);
    }
    ingot_writer *writer = w.writer;
    w.writer = NULL; /* finishing releases it */
    INGOT_GO(ingot_writer_finish(writer, ingot_pool_threads(s->backend.pool), s->result->root,
                                 s->result->content_id, s->error));
    if (w.resume != NULL) {
        (void)unlink(w.state);
    }
    s->result->is_written = true;
    s->result->bytes = written_bytes(s->result->path, layout->file_bytes);
    for (uint64_t i = 0; i < s->plan.count; i++) {
        s->result->fallbacks += s->ledgers[i].fallback != INGOT_FALLBACK_NONE;
    }
    s->result->tensors = tensors_json(s);
    tell_left_out(s);
    ingot_resume_destroy(w.resume);
    ingot_waiting_remove(w.waiting);
    return INGOT_OK;
done:
    abandon(&w, s);
    return status;
}
