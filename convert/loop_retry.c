/* Out of memory in the middle of a conversion (spec/decisions/0022): what the loop holds is given
 * back, and it begins anew behind the last block that is whole in the output, with hidden states in
 * host memory and calls of half as many windows.  States at that block are recomputed as after an
 * interruption (convert/replay.h): the block at hand may have changed them in place.
 *
 * This lies above the devices of a team: whichever of them is short of memory, all have left the
 * loop when it begins anew, with the same calls on every one. */
#include "convert/loop.h"

#include "common/files.h"
#include "common/sizes.h"
#include "convert/resume.h"
#include "convert/team.h"
#include "convert/waiting.h"

#include <string.h>

/* The writer of tensor `index` in the block loop, and its number there: the output's, or that of
 * the file in which it waits for distillation. */
static ingot_writer *loop_writer(const ingot_loop_job *job, uint64_t index, uint64_t *number) {
    const bool waits = job->waiting != NULL && ingot_waiting_is_of(job->plan, index);
    *number = waits ? ingot_waiting_number(job->waiting, index) : index;
    return waits ? ingot_waiting_writer(job->waiting) : job->writer;
}

/* Blocks from the first on of which every tensor is written; none where matrices wait for
 * distillation in memory alone. */
static uint64_t finished_blocks(const ingot_loop_job *job) {
    const bool distills = ingot_plan_distills(job->plan, job->is_tuned);
    uint64_t finished = distills && job->waiting == NULL ? 0 : job->model->layers;
    for (uint64_t i = 0; i < job->plan->count; i++) {
        const ingot_plan_tensor *t = &job->plan->tensors[i];
        uint64_t number;
        const ingot_writer *writer = loop_writer(job, i, &number);
        if (t->layer != INGOT_PLAN_NONE && t->origin != INGOT_ORIGIN_ALIAS &&
            !ingot_writer_is_put(writer, number)) {
            finished = ingot_min_u64(finished, t->layer);
        }
    }
    return finished;
}

/* Windows of one call. */
static uint64_t call_windows(const ingot_loop_job *job) {
    return ingot_max_u64(1, job->backend->batch_tokens / ingot_max_u64(1, job->windows->length));
}

/* What is not of finished blocks, nor whole, nor distilled, will be written anew. */
static ingot_status go_back(ingot_loop_job *job, ingot_error *error) {
    if (job->resume != NULL) {
        INGOT_TRY(ingot_resume_wait(job->resume, error));
    }
    job->first_block = finished_blocks(job);
    for (uint64_t i = 0; i < job->plan->count; i++) {
        const uint64_t layer = job->plan->tensors[i].layer;
        uint64_t number;
        ingot_writer *writer = loop_writer(job, i, &number);
        if (layer != INGOT_PLAN_NONE ? layer >= job->first_block
                                     : !ingot_writer_is_put(writer, number)) {
            ingot_writer_forget(writer, number);
        }
        if (writer != job->writer) {
            ingot_writer_forget(job->writer, i);
        }
    }
    return INGOT_OK;
}

/* Goes back, with less memory from now on; false: less would not do, or *error says why not. */
static bool can_go_on(ingot_loop_job *job, ingot_backend *backends, ingot_error *error) {
    const bool has_batch = job->windows != NULL && job->plan->needs_gram;
    if (job->spares_device && !(has_batch && call_windows(job) > 1)) {
        return false;
    }
    const ingot_error failure = *error;
    memset(error, 0, sizeof *error);
    if (go_back(job, error) != INGOT_OK) {
        return false;
    }
    job->spares_device = true;
    for (unsigned i = 0; i <= job->other_count; i++) {
        backends[i].batch_tokens = ingot_max_u64(1, backends[i].batch_tokens / 2);
    }
    (*job->shortages)++;
    ingot_progress_line(
        job->progress, "%s: going on behind block %llu/%llu with at most %llu tokens a call",
        failure.reason[0] != '\0' ? failure.reason : "out of memory",
        (unsigned long long)job->first_block, (unsigned long long)job->model->layers,
        (unsigned long long)backends[0].batch_tokens);
    return true;
}

ingot_status ingot_loop_run(const ingot_loop_job *job, ingot_error *error) {
    ingot_backend backends[INGOT_MAX_DEVICES];
    ingot_loop_job now = *job;
    ingot_error own;
    ingot_status status;
    backends[0] = *job->backend;
    for (unsigned i = 0; i < job->other_count; i++) {
        backends[i + 1] = job->others[i];
    }
    now.backend = backends;
    now.others = backends + 1;
    do {
        memset(&own, 0, sizeof own);
        status = ingot_loop_try(&now, &own);
    } while (status == INGOT_ERR_NO_MEMORY && can_go_on(&now, backends, &own));
    if (status != INGOT_OK && error != NULL) {
        *error = own;
    }
    return status == INGOT_OK || own.status == INGOT_OK ? status : own.status;
}
