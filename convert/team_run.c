/* A conversion on several devices: a thread for each (convert/team_run.h). */
#include "convert/team_run.h"

#include "common/memory.h"
#include "common/sizes.h"
#include "common/worker.h"

/* A device, and the thread that drives it (rank 0: the caller's). */
typedef struct member {
    ingot_loop_job job;
    ingot_rank rank;
    ingot_windows windows;
    ingot_progress progress;
    double phase_seconds[INGOT_PHASE_COUNT];
    uint64_t phase_bytes[INGOT_PHASE_COUNT];
    unsigned shortages;
    uint64_t judges;
    ingot_rank_run *run;
    ingot_worker *thread;
    ingot_status status;
    ingot_error error;
} member;

static ingot_status run_member(void *context, ingot_error *error) {
    member *m = context;
    return m->run(&m->job, &m->rank, m->judges, error);
}

static ingot_status open_member(member *m, const ingot_loop_job *job, ingot_team *team,
                                unsigned number, unsigned size) {
    m->job = *job;
    m->job.backend = number == 0 ? job->backend : &job->others[number - 1];
    m->rank = (ingot_rank){.team = team, .number = number, .size = size, .backend = m->job.backend};
    INGOT_TRY(ingot_team_windows(&m->windows, &m->rank, job->windows, m->judges));
    m->job.windows = &m->windows;
    if (number == 0) {
        return INGOT_OK;
    }
    m->job.writer = NULL;
    m->job.shortages = &m->shortages;
    m->job.phase_seconds = m->phase_seconds;
    m->job.phase_bytes = m->phase_bytes;
    ingot_progress_begin(&m->progress, "", "", 0, true);
    m->job.progress = &m->progress;
    return ingot_worker_create(&m->thread);
}

/* The error of a team is that of the rank which left first: the others left because of it. */
ingot_status ingot_team_run(const ingot_loop_job *job, unsigned size, uint64_t judges,
                            ingot_rank_run *run, ingot_error *error) {
    ingot_team *team = NULL;
    member *members = NULL;
    ingot_status status = INGOT_OK;
    INGOT_GO(ingot_alloc_zero((void **)&members, size, sizeof *members));
    INGOT_GO(ingot_team_create(&team, size));
    for (unsigned i = 0; i < size; i++) {
        members[i].judges = judges;
        members[i].run = run;
        INGOT_GO(open_member(&members[i], job, team, i, size));
    }
    for (unsigned i = 1; i < size; i++) {
        ingot_worker_start(members[i].thread, run_member, &members[i]);
    }
    members[0].status = run_member(&members[0], &members[0].error);
    for (unsigned i = 1; i < size; i++) {
        members[i].status = ingot_worker_wait(members[i].thread, &members[i].error);
        for (unsigned k = 0; k < INGOT_PHASE_COUNT; k++) {
            job->phase_bytes[k] = ingot_max_u64(job->phase_bytes[k], members[i].phase_bytes[k]);
        }
        if (members[i].shortages != 0) { /* its own lines are not shown */
            *job->shortages += members[i].shortages;
            ingot_progress_line(job->progress,
                                "device %u of %u was short of memory: fewer windows a call, or "
                                "hidden states in host memory",
                                i + 1, size);
        }
    }
    if (ingot_team_left(team) >= 0) {
        const member *first = &members[ingot_team_left(team)];
        status = first->status;
        if (error != NULL) {
            *error = first->error;
        }
    }
done:
    for (unsigned i = 0; members != NULL && i < size; i++) {
        ingot_worker_destroy(members[i].thread);
        ingot_windows_free(&members[i].windows);
    }
    ingot_team_destroy(team);
    ingot_free(members);
    return status;
}
