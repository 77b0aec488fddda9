/* ingot-convert: from the command line to the plan, and what is done with it (convert/convert.h).
 * The file itself: convert_write.c. */
#include "convert/session.h"

#include "calib/self_text.h"
#include "calib/text_model.h"
#include "common/files.h"
#include "common/memory.h"
#include "common/sizes.h"
#include "convert/meta.h"
#include "convert/plan_config.h"
#include "convert/resume.h"
#include "convert/widths.h"
#include "format/digest.h"
#include "kernels/device_name.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- before any work ------------------------------------------------------------------------ */

/* What the target of bits per weight needs and excludes. */
static ingot_status check_target(const session *s) {
    const ingot_convert_options *o = s->options;
    if (o->recipe.target_bpw == 0) {
        return o->sensitivity == NULL
                   ? INGOT_OK
                   : ingot_error_set(s->error, INGOT_ERR_USAGE, NULL, NULL, "give --target-bpw X",
                                     "--sensitivity is for a target of bits per weight");
    }
    if (o->text_count == 0) {
        return ingot_error_set(s->error, INGOT_ERR_USAGE, NULL, NULL, "give --text FILE",
                               "a target of bits per weight needs text to measure on");
    }
    if (o->sensitivity != NULL && o->output != NULL && strcmp(o->sensitivity, o->output) == 0) {
        return ingot_error_set(s->error, INGOT_ERR_USAGE, o->output, NULL, "name another file",
                               "the sensitivity table is the output");
    }
    return INGOT_OK;
}

/* --sensitivity, or the output's name with .sens in place of .ingot. */
static ingot_status name_table(session *s) {
    const ingot_convert_options *o = s->options;
    int length = 0;
    if (o->sensitivity != NULL) {
        length = snprintf(s->table, sizeof s->table, "%s", o->sensitivity);
    } else if (o->output != NULL) {
        const size_t whole = strlen(o->output), ending = strlen(".ingot");
        const bool has_ending = whole > ending && strcmp(o->output + whole - ending, ".ingot") == 0;
        length = snprintf(s->table, sizeof s->table, "%.*s.sens",
                          (int)(has_ending ? whole - ending : whole), o->output);
    }
    return length < (int)sizeof s->table
               ? INGOT_OK
               : ingot_error_set(s->error, INGOT_ERR_USAGE, NULL, NULL, NULL,
                                 "the path of the sensitivity table is too long");
}

/* The list of devices, or the one: a number is that of a GPU.  Names that are none are found before
 * anything is read or opened. */
static ingot_status name_devices(session *s) {
    const ingot_convert_options *o = s->options;
    if (o->devices != NULL && o->device != NULL) {
        return ingot_error_set(s->error, INGOT_ERR_USAGE, NULL, NULL, "give one of them",
                               "--device and --devices exclude each other");
    }
    const char *from = o->devices != NULL ? o->devices : o->device != NULL ? o->device : "auto";
    for (bool is_last = false; !is_last; s->device_count++) {
        if (s->device_count == INGOT_MAX_DEVICES) {
            return ingot_error_set(s->error, INGOT_ERR_USAGE, NULL, NULL, NULL,
                                   "more than %u devices", INGOT_MAX_DEVICES);
        }
        char *device = s->devices[s->device_count];
        const size_t length = strcspn(from, ",");
        (void)snprintf(device, sizeof s->devices[0], "%s%.*s",
                       from[0] >= '0' && from[0] <= '9' ? "cuda:" : "", (int)length, from);
        INGOT_TRY(ingot_device_check_name(device, s->error));
        is_last = from[length] == '\0';
        from += length + 1;
    }
    return INGOT_OK;
}

static ingot_status check_options(session *s) {
    const ingot_convert_options *o = s->options;
    if (o->output == NULL && !o->is_dry_run) {
        return ingot_error_set(s->error, INGOT_ERR_USAGE, NULL, NULL, "give -o OUT.ingot",
                               "no output was named");
    }
    if (o->stats != NULL && o->text_count != 0) {
        return ingot_error_set(s->error, INGOT_ERR_USAGE, NULL, NULL, "give one of them",
                               "--text and --stats exclude each other");
    }
    if (o->output != NULL && ingot_path_is_directory(o->output)) {
        return ingot_error_set(s->error, INGOT_ERR_USAGE, o->output, NULL,
                               "name a file, such as OUT.ingot", "the output is a folder");
    }
    INGOT_TRY(name_devices(s));
    INGOT_TRY(ingot_self_text_wanted(&s->is_self_text, o->texts, o->text_count, s->error));
    const bool has_data = o->stats != NULL || o->text_count != 0;
    INGOT_TRY(check_target(s));
    INGOT_TRY(ingot_recipe_check(&o->recipe, has_data, s->error));
    if (o->recipe.effort == INGOT_EFFORT_BEST && o->text_count == 0) {
        return ingot_error_set(s->error, INGOT_ERR_USAGE, NULL, NULL, "give --text FILE",
                               "--effort best tunes blocks on the calibration text itself");
    }
    ingot_recipe_settle(&s->options->recipe, has_data);
    return INGOT_OK;
}

ingot_status ingot_convert_check_input(const session *s, const char *output) {
    const ingot_convert_options *o = s->options;
    bool is_input = false;
    for (uint64_t i = 0; i < o->text_count; i++) {
        is_input = is_input || ingot_path_same(output, o->texts[i]);
    }
    is_input = is_input || (o->stats != NULL && ingot_path_same(output, o->stats));
    is_input = is_input || (o->recipe_path != NULL && ingot_path_same(output, o->recipe_path));
    is_input = is_input || ingot_checkpoint_is_input(o->model_dir, output);
    return is_input ? ingot_error_set(s->error, INGOT_ERR_USAGE, output, NULL,
                                      "name another output", "the output is one of the inputs")
                    : INGOT_OK;
}

static ingot_status check_output(const session *s) {
    const ingot_convert_options *o = s->options;
    if (o->output != NULL && !o->is_dry_run) {
        INGOT_TRY(ingot_output_check(o->output, s->error));
        if (o->resumes) {
            char state[4096];
            INGOT_TRY(ingot_resume_path(state, o->output, s->error));
            INGOT_TRY(ingot_output_check(state, s->error));
        }
    }
    if (o->output == NULL || !ingot_output_exists(o->output)) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_convert_check_input(s, o->output));
    /* what may be the result of this conversion is looked at once its plan is there */
    if (!o->force && !o->is_dry_run && !(o->resumes && ingot_is_container(o->output))) {
        return ingot_error_set(s->error, INGOT_ERR_EXISTS, o->output, NULL,
                               "use --force to replace it", "the output exists");
    }
    return INGOT_OK;
}

/* The device, or the list of them; what they compute depends on how many they are. */
static ingot_status open_devices(void *context, ingot_error *error) {
    session *s = context;
    const double start = ingot_clock_seconds();
    const ingot_convert_options *o = s->options;
    char path[sizeof s->backend.path];
    for (unsigned i = 0; i < s->device_count; i++) {
        if (i > 0 && o->recipe.effort == INGOT_EFFORT_BEST) {
            (void)fprintf(stderr, "--effort best runs on one device: on the first of --devices\n");
            break;
        }
        ingot_backend *backend = i > 0 ? &s->others[s->other_count] : &s->backend;
        INGOT_TRY(ingot_backend_open(backend, s->devices[i], o->threads, error));
        s->other_count += i > 0;
        s->has_backend = true;
        if (strcmp(backend->path, s->backend.path) != 0) {
            return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "give devices of one model",
                                   "devices differ: %s and %s", s->backend.path, backend->path);
        }
    }
    if (s->other_count != 0) {
        (void)snprintf(path, sizeof path, "%.48s x%u", s->backend.path, s->other_count + 1);
        memcpy(s->backend.path, path, sizeof path);
    }
    s->open_seconds = ingot_clock_seconds() - start;
    return INGOT_OK;
}

/* Opening a GPU takes a third of a second, in which the text is read and the plan is made. */
static ingot_status start_devices(session *s) {
    INGOT_TRY(ingot_worker_create(&s->opening));
    ingot_worker_start(s->opening, open_devices, s);
    return INGOT_OK;
}

/* From here on the devices may be used. */
static ingot_status await_devices(session *s) {
    if (s->opening == NULL) {
        return INGOT_OK;
    }
    const ingot_status status = ingot_worker_wait(s->opening, s->error);
    ingot_worker_destroy(s->opening);
    s->opening = NULL;
    return status;
}

/* Windows need a text to be cut from.  Of the command line alone: a recipe may serve with one, with
 * statistics and without data. */
static ingot_status check_windows(const session *s) {
    const ingot_convert_options *o = s->options;
    const unsigned given = o->recipe.given & (INGOT_GIVEN_SAMPLES | INGOT_GIVEN_LENGTH);
    if (o->text_count != 0 || given == 0) {
        return INGOT_OK;
    }
    if (o->stats != NULL) {
        return ingot_error_set(s->error, INGOT_ERR_USAGE, NULL, NULL, "give them to ingot-calib",
                               "--samples and --seq-len cut a text; statistics are made of one");
    }
    return ingot_error_set(s->error, INGOT_ERR_USAGE, NULL, NULL, "add --text FILE",
                           "%s says how to cut a text, but there is none",
                           (given & INGOT_GIVEN_SAMPLES) != 0 ? "--samples" : "--seq-len");
}

/* Data that no tensor has a use for is left alone, as if it had not been named: a text that the
 * model writes itself takes longer than all the rest. */
static ingot_status leave_useless_data(session *s) {
    ingot_convert_options *o = s->options;
    if ((o->text_count == 0 && o->stats == NULL) || ingot_recipe_uses_data(&o->recipe)) {
        return INGOT_OK;
    }
    const bool is_read = !s->is_forecast && !s->is_self_text;
    for (uint64_t i = 0; is_read && i < o->text_count + (o->stats != NULL); i++) {
        ingot_file *file; /* a slip of the pen is one all the same */
        INGOT_TRY(ingot_file_open(&file, i < o->text_count ? o->texts[i] : o->stats, s->error));
        ingot_file_close(file);
    }
    o->text_count = 0;
    o->stats = NULL;
    s->is_self_text = false;
    s->has_useless_data = true;
    return INGOT_OK;
}

static ingot_status open_inputs(session *s) {
    ingot_convert_options *o = s->options;
    INGOT_TRY(s->is_forecast ? INGOT_OK : check_windows(s));
    if (o->recipe_path != NULL) {
        INGOT_TRY(ingot_recipe_read(&o->recipe, o->recipe_path, s->error));
    }
    INGOT_TRY(check_options(s));
    if (o->is_dry_run && ingot_plan_is_config(o->model_dir)) {
        INGOT_TRY(ingot_plan_read_config(&s->checkpoint, &s->model, o->model_dir, s->error));
        s->has_model = true;
        s->is_forecast = true;
        return leave_useless_data(s);
    }
    INGOT_TRY(ingot_checkpoint_open(&s->checkpoint, o->model_dir, s->error));
    INGOT_TRY(check_output(s));
    INGOT_TRY(leave_useless_data(s));
    ingot_weight_source_from_checkpoint(&s->source, s->checkpoint);
    s->has_source = true;
    INGOT_TRY(ingot_model_open(&s->model, &s->source, s->error));
    s->has_model = true;
    return s->is_forecast ? INGOT_OK : start_devices(s);
}

/* ---- calibration data ----------------------------------------------------------------------- */

static ingot_status window_length(uint64_t *length, const session *s) {
    const ingot_convert_options *o = s->options;
    return ingot_windows_length(length, o->recipe.seq_len, s->model.context, o->model_dir,
                                s->error);
}

/* The tokens of the texts. */
static ingot_status read_texts(session *s) {
    const ingot_convert_options *o = s->options;
    INGOT_TRY(ingot_source_tokenizer(&s->tokenizer, &s->source, &s->model, s->error));
    return ingot_text_load(&s->text, o->texts, o->text_count, s->tokenizer, s->error);
}

/* Tokens that the model writes. */
static ingot_status write_text(session *s, uint64_t length) {
    const ingot_recipe *recipe = &s->options->recipe;
    ingot_progress progress;
    ingot_progress_begin(&progress, "writing a text", "tokens", (double)(recipe->samples * length),
                         false);
    const ingot_status status =
        ingot_self_text_write(&s->text, &s->model, &s->source, &s->backend, recipe->samples, length,
                              recipe->seed, &progress, &s->result->memory_shortages, s->error);
    ingot_progress_end(&progress);
    return status;
}

static ingot_status load_text(session *s) {
    const ingot_convert_options *o = s->options;
    uint64_t length;
    INGOT_TRY(window_length(&length, s));
    INGOT_TRY(s->is_self_text ? await_devices(s) : INGOT_OK);
    INGOT_TRY(s->is_self_text ? write_text(s, length) : read_texts(s));
    s->has_text = true;
    INGOT_TRY(ingot_windows_calibration(&s->windows, &s->text, o->recipe.samples, length,
                                        o->texts[0], s->error));
    s->has_windows = true;
    return INGOT_OK;
}

/* The batch that a forecast takes for granted: all samples that are asked for. */
static ingot_status assume_windows(session *s) {
    s->windows = (ingot_windows){.count = s->options->recipe.samples};
    s->text.bytes = UINT32_MAX; /* as long a number as texts have */
    s->has_text = s->has_windows = true;
    return window_length(&s->windows.length, s);
}

static ingot_status load_data(session *s) {
    ingot_convert_options *o = s->options;
    if (s->is_forecast) {
        return o->text_count != 0 || o->stats != NULL ? assume_windows(s) : INGOT_OK;
    }
    if (o->text_count != 0) {
        INGOT_TRY(load_text(s));
    }
    if (o->stats != NULL) {
        INGOT_TRY(ingot_stats_open(&s->stats, o->stats, &s->model, &s->source, s->error));
    }
    return INGOT_OK;
}

/* ---- the conversion ------------------------------------------------------------------------- */

static ingot_status collect_files(session *s, uint64_t *count) {
    *count = ingot_checkpoint_file_count(s->checkpoint);
    INGOT_TRY(ingot_alloc_zero((void **)&s->files, *count + 1, sizeof *s->files));
    for (uint64_t i = 0; i < *count; i++) {
        s->files[i].name = ingot_checkpoint_file_name(s->checkpoint, i);
        s->files[i].bytes =
            ingot_checkpoint_file(s->checkpoint, s->files[i].name, &s->files[i].size);
    }
    return INGOT_OK;
}

static ingot_status choose_widths(session *s) {
    INGOT_TRY(name_table(s));
    const ingot_widths_job job = {.checkpoint = s->checkpoint,
                                  .source = &s->source,
                                  .model = &s->model,
                                  .backend = &s->backend,
                                  .recipe = &s->options->recipe,
                                  .text = &s->text,
                                  .windows = &s->windows,
                                  .table = s->table[0] != 0 ? s->table : NULL,
                                  .shortages = &s->result->memory_shortages};
    return ingot_widths_choose(&s->plan, &job, s->error);
}

static ingot_status make_plan(session *s, ingot_writer_plan *plan, ingot_layout_info *layout) {
    ingot_convert_options *o = s->options;
    const bool has_data = s->stats != NULL || s->has_windows;
    if (o->recipe.effort == INGOT_EFFORT_BEST && s->windows.count < 2) {
        return ingot_error_set(s->error, INGOT_ERR_USAGE, NULL, NULL, "give more text or --samples",
                               "--effort best holds windows out: two at least are needed");
    }
    INGOT_TRY(
        ingot_plan_create(&s->plan, s->checkpoint, &s->model, &o->recipe, has_data, s->error));
    s->has_plan = true;
    uint64_t file_count;
    INGOT_TRY(collect_files(s, &file_count));
    ingot_convert_begin(s);
    INGOT_TRY(await_devices(s));
    if (o->recipe.target_bpw != 0 && !s->is_forecast) {
        INGOT_TRY(choose_widths(s));
    }
    const ingot_meta_job meta = {.checkpoint = s->checkpoint,
                                 .model = &s->model,
                                 .backend = &s->backend,
                                 .plan = &s->plan,
                                 .recipe = &o->recipe,
                                 .text = s->has_text ? &s->text : NULL,
                                 .is_self_text = s->is_self_text,
                                 .windows = s->has_windows ? &s->windows : NULL,
                                 .stats = s->stats,
                                 .with_sha256 = o->with_sha256,
                                 .is_forecast = o->is_dry_run};
    INGOT_TRY(ingot_meta_create(&s->meta, &meta, s->error));
    *plan = (ingot_writer_plan){.tensors = s->plan.specs,
                                .tensor_count = s->plan.count,
                                .files = s->files,
                                .file_count = file_count,
                                .meta = s->meta,
                                .meta_size = strlen(s->meta),
                                .is_compressed = o->is_compressed,
                                .shard_size_bytes = o->shard_size_bytes,
                                .output = s->begun};
    ingot_digest128(plan->set_id, s->meta, plan->meta_size);
    INGOT_TRY(ingot_layout_compute(layout, plan, s->error));
    s->result->bits_per_weight = ingot_plan_bits_per_weight(&s->plan);
    s->result->source_bytes = s->plan.source_bytes;
    return INGOT_OK;
}

static ingot_status make_forecast(ingot_forecast *out, const session *s,
                                  const ingot_layout_info *layout) {
    const ingot_recipe *recipe = &s->options->recipe;
    const bool has_windows = s->has_windows && s->options->stats == NULL;
    const uint64_t text_bytes = s->is_forecast ? s->options->text_bytes : s->text.bytes;
    const ingot_forecast_job job = {.checkpoint = s->checkpoint,
                                    .model = &s->model,
                                    .plan = &s->plan,
                                    .recipe = recipe,
                                    .windows = has_windows ? s->windows.count : 0,
                                    .length = has_windows ? s->windows.length : 0,
                                    .text_bytes = has_windows ? text_bytes : 0,
                                    .writes_text = s->is_self_text,
                                    .has_widths = !s->is_forecast,
                                    .scoring = s->options->scoring,
                                    .layout = *layout};
    ingot_forecast_make(out, &job);
    if (s->is_forecast && recipe->target_bpw != 0 && s->plan.quantized_weights != 0) {
        const double planned = out->bits_per_weight * (double)s->plan.quantized_weights / 8;
        const double target = recipe->target_bpw * (double)s->plan.quantized_weights / 8;
        out->file_bytes = (uint64_t)((double)out->file_bytes - planned + target);
        out->bits_per_weight = recipe->target_bpw;
    }
    if (s->options->stats != NULL && s->has_windows) { /* of a file that is still to be made */
        ingot_forecast_job making = job;
        making.windows = s->windows.count;
        making.length = s->windows.length;
        making.text_bytes = text_bytes;
        making.writes_text = s->options->stats_of_self_text;
        INGOT_TRY(ingot_forecast_statistics_make(&out->statistics, &making));
        if (s->speeds != NULL) {
            INGOT_TRY(
                ingot_forecast_statistics(&out->statistics.seconds, &making, s->speeds, s->error));
        }
    }
    if (s->speeds != NULL && out->scoring_length != 0) {
        INGOT_TRY(ingot_forecast_scoring(&out->scoring_pace, &job, s->speeds, s->error));
    }
    if (s->speeds != NULL || !s->has_backend) {
        return s->speeds != NULL ? ingot_forecast_seconds(&out->seconds, &job, s->speeds, s->error)
                                 : INGOT_OK;
    }
    (void)snprintf(out->device, sizeof out->device, "%s", s->backend.path);
    ingot_speeds *speeds;
    INGOT_TRY(ingot_speeds_create(&speeds, &s->backend, s->open_seconds));
    const ingot_status status = ingot_forecast_seconds(&out->seconds, &job, speeds, s->error);
    ingot_speeds_destroy(speeds);
    return status;
}

/* Device memory at its most since the last phase. */
static void note_peak(session *s, ingot_phase phase) {
    if (s->has_backend) {
        uint64_t *bytes = &s->result->phase_bytes[phase];
        *bytes = ingot_max_u64(*bytes, s->backend.ops->peak_bytes(s->backend.context));
    }
}

/* A container without a tokenizer is whole, and of no use to those who run texts. */
static void print_missing_tokenizer(const session *s, FILE *out) {
    uint64_t size;
    if (ingot_checkpoint_has_weights(s->checkpoint) &&
        ingot_checkpoint_file(s->checkpoint, INGOT_TOKENIZER_FILE, &size) == NULL) {
        (void)fprintf(out, "plan: there is no tokenizer.json: the container will hold none, and "
                           "run and be scored on no text\n");
    }
}

/* A rule about no matrix of this model does nothing: a slip of the pen, or of another model. */
static void print_idle_rules(const session *s, FILE *out) {
    const ingot_recipe *recipe = &s->options->recipe;
    for (uint64_t r = 0; r < recipe->rule_count; r++) {
        bool is_idle = true;
        for (uint64_t i = 0; i < s->plan.count; i++) {
            const ingot_tensor_class class = s->plan.tensors[i].class;
            const bool is_matrix = class == INGOT_CLASS_LINEAR || class == INGOT_CLASS_EMBED ||
                                   class == INGOT_CLASS_HEAD;
            is_idle = is_idle && !(is_matrix &&
                                   ingot_rule_matches(&recipe->rules[r], s->plan.tensors[i].name));
        }
        if (is_idle) {
            (void)fprintf(out,
                          "plan: a rule of the recipe matches no matrix of this model: \"%s\"\n",
                          recipe->rules[r].pattern);
        }
    }
}

static ingot_status run(session *s) {
    ingot_writer_plan plan;
    ingot_layout_info layout;
    double since = ingot_clock_seconds();
    INGOT_TRY(open_inputs(s));
    INGOT_TRY(load_data(s));
    INGOT_TRY(make_plan(s, &plan, &layout));
    s->result->phase_seconds[INGOT_PHASE_PLAN] = ingot_lap(&since);
    note_peak(s, INGOT_PHASE_PLAN);
    const bool is_on_stdout = s->options->is_dry_run && !s->options->as_json;
    FILE *out = is_on_stdout ? stdout : stderr;
    ingot_plan_print(&s->plan, &layout, s->options->is_dry_run, out);
    print_missing_tokenizer(s, out);
    print_idle_rules(s, out);
    if (s->has_useless_data) {
        (void)fprintf(out, "plan: no method of these needs calibration data: it is not read\n");
    }
    if (s->options->is_dry_run) {
        ingot_forecast forecast;
        INGOT_TRY(make_forecast(&forecast, s, &layout));
        ingot_forecast_print(&forecast, out);
        s->result->bytes = layout.file_bytes;
        s->result->forecast = ingot_forecast_json(&forecast, &s->plan);
        return s->result->forecast != NULL ? INGOT_OK : INGOT_ERR_NO_MEMORY;
    }
    INGOT_TRY(ingot_convert_write(s, &plan, &layout, &since));
    s->result->phase_seconds[INGOT_PHASE_FINISH] = ingot_lap(&since);
    note_peak(s, INGOT_PHASE_FINISH);
    return INGOT_OK;
}

static void release(session *s) {
    ingot_worker_destroy(s->opening);
    ingot_output_abort(s->begun);
    if (s->has_plan) {
        ingot_plan_free(&s->plan);
    }
    ingot_free(s->files);
    ingot_free(s->ledgers);
    ingot_free(s->steps);
    free(s->meta);
    ingot_stats_close(s->stats);
    if (s->has_windows) {
        ingot_windows_free(&s->windows);
    }
    if (s->has_text) {
        ingot_text_free(&s->text);
    }
    ingot_tokenizer_destroy(s->tokenizer);
    if (s->has_backend) {
        uint64_t peak = s->backend.ops->peak_bytes(s->backend.context);
        for (unsigned i = 0; i < INGOT_PHASE_COUNT; i++) {
            peak = ingot_max_u64(peak, s->result->phase_bytes[i]);
        }
        s->result->peak_device_bytes = peak;
        for (unsigned i = 0; i < s->other_count; i++) {
            ingot_backend_close(&s->others[i]);
        }
        ingot_backend_close(&s->backend);
    }
    if (s->has_model) {
        ingot_model_close(&s->model);
    }
    if (s->has_source) {
        ingot_weight_source_close(&s->source);
    }
    ingot_checkpoint_close(s->checkpoint);
}

ingot_status ingot_convert_run(ingot_convert_result *result, ingot_convert_options *options,
                               ingot_error *error) {
    session s = {.options = options, .result = result, .error = error};
    const double start = ingot_clock_seconds();
    *result = (ingot_convert_result){.bits_per_weight = NAN};
    const ingot_status status = run(&s);
    release(&s);
    result->seconds = ingot_clock_seconds() - start;
    return status;
}

ingot_status ingot_convert_plan(ingot_forecast *out, json_t **json, ingot_convert_options *options,
                                ingot_speeds *speeds, ingot_error *error) {
    ingot_convert_result result = {.bits_per_weight = NAN};
    session s = {.options = options,
                 .result = &result,
                 .error = error,
                 .is_forecast = true,
                 .speeds = speeds};
    ingot_writer_plan plan;
    ingot_layout_info layout;
    ingot_status status;
    options->is_dry_run = true;
    INGOT_GO(open_inputs(&s));
    INGOT_GO(load_data(&s));
    INGOT_GO(make_plan(&s, &plan, &layout));
    INGOT_GO(make_forecast(out, &s, &layout));
    if (json != NULL) {
        *json = ingot_forecast_json(out, &s.plan);
        status = *json != NULL ? INGOT_OK : INGOT_ERR_NO_MEMORY;
    }
done:
    release(&s);
    return status;
}
