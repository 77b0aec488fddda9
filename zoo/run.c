/* ingot-zoo run: products side by side, each a row of child processes (zoo/job.h).
 *
 * One thread, no pipes: children write to files of the shelf, and their ends are waited for.  What
 * a child does to itself or the system to it ends at its exit status. */
#include "common/files.h"
#include "common/progress.h"
#include "zoo/job.h"
#include "zoo/leftovers.h"
#include "zoo/plan.h"
#include "zoo/seats.h"
#include "zoo/zoo.h"

#include <errno.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LOCKED_RETRY_SECONDS 1.0
#define WAIT_NANOSECONDS     250000000

typedef enum task_state {
    TASK_WAITING,
    TASK_RUNNING,
    TASK_DONE,
    TASK_FAILED,
    TASK_LEFT,   /* the run was interrupted before */
    TASK_STOPPED /* after its statistics, as was asked for */
} task_state;

typedef struct task {
    const ingot_zoo_product *product;
    task_state state;
    ingot_zoo_job job;
    ingot_error error;
    ingot_gate_verdict gates;
    char gate_reason[160];
    json_t *record; /* of a finished product */
    uint64_t device;
    uint64_t host_bytes, device_bytes; /* at its peak, as planned */
    const char *problem;               /* found by the plan, which keeps it, */
    ingot_status problem_status;       /* and as a status */
    bool was_finished, is_locked;      /* before this run; by another */
    double retry_at, started;          /* monotonic seconds */
} task;

typedef struct runner {
    const ingot_manifest *manifest;
    const ingot_zoo_options *options;
    ingot_shelf shelf;
    ingot_forecasts plan;
    task *tasks;
    uint64_t count, running, settled;
    uint64_t jobs, threads;
    uint64_t host_bytes, host_room; /* of what runs; in all, 0: not known */
    ingot_seats seats;              /* of the manifest's devices */
    json_t *removed;                /* shared files that no product used any more */
    ingot_progress progress;
    bool is_told; /* of an interruption */
} runner;

/* ---- one product ---------------------------------------------------------------------------- */

/* What it had of the run, and its job. */
static void release(runner *r, task *t) {
    if (t->state == TASK_RUNNING) {
        r->running--;
        r->host_bytes -= t->host_bytes;
        ingot_seats_leave(&r->seats, t->device, t->device_bytes);
    }
    ingot_job_close(&t->job);
}

static void settle(runner *r, task *t, task_state state) {
    release(r, t);
    t->state = state;
    r->settled++;
}

static void fail(runner *r, task *t) {
    char text[INGOT_ERROR_TEXT_SIZE], log[INGOT_SHELF_PATH_SIZE];
    ingot_job_fail(&t->job, &t->error);
    ingot_error_format(&t->error, text, sizeof text);
    ingot_shelf_path(log, &r->shelf, INGOT_SHELF_LOG, t->product->name);
    ingot_progress_line(&r->progress, "%s: failed: %s%s%s", t->product->name, text,
                        ingot_path_exists(log) ? "; log: " : "", ingot_path_exists(log) ? log : "");
    settle(r, t, TASK_FAILED);
}

static void describe(char *text, size_t size, const task *t) {
    const json_t *convert = json_object_get(t->record, "convert");
    const json_t *verify = json_object_get(t->record, "verify");
    char bytes[32], quality[160] = "", bits[48] = "";
    const double ratio = ingot_json_number_at(verify, "ppl_ratio");
    ingot_format_bytes(bytes, sizeof bytes,
                       ingot_json_number_at(json_object_get(t->record, "file"), "bytes"));
    if (isfinite(ratio)) {
        (void)snprintf(quality, sizeof quality, ", perplexity %.4f (x %.4f), KL %.5f",
                       ingot_json_number_at(verify, "perplexity"), ratio,
                       ingot_json_number_at(verify, "kld_mean"));
    }
    if (isfinite(ingot_json_number_at(convert, "bits_per_weight"))) {
        (void)snprintf(bits, sizeof bits, ", %.3f bits per weight",
                       ingot_json_number_at(convert, "bits_per_weight"));
    }
    const char *gates = t->gates == INGOT_GATES_PASSED   ? ", gates passed"
                        : t->gates == INGOT_GATES_FAILED ? ", over a gate: "
                                                         : "";
    (void)snprintf(text, size, "%s%s%s%s%s", bytes, bits, quality, gates,
                   t->gates == INGOT_GATES_FAILED ? t->gate_reason : "");
}

static void finish(runner *r, task *t) {
    char text[480], time[32];
    t->record = json_incref(t->job.record);
    t->gates = ingot_product_gates(t->product, t->record, t->gate_reason);
    describe(text, sizeof text, t);
    ingot_format_seconds(time, sizeof time, ingot_clock_seconds() - t->started);
    if (t->was_finished) {
        ingot_progress_line(&r->progress, "%s: finished before: %s", t->product->name, text);
    } else {
        ingot_progress_line(&r->progress, "%s: %s, %s", t->product->name, text, time);
    }
    settle(r, t, TASK_DONE);
}

static void start_step(runner *r, task *t) {
    static const char *const words[] = {"calibrating", "converting", "verifying", ""};
    if (ingot_job_start(&t->job, &t->error) != INGOT_OK) {
        fail(r, t);
        return;
    }
    ingot_progress_line(&r->progress, "%s: %s on %s", t->product->name, words[t->job.step],
                        t->job.device);
}

/* Somebody else is at it, or at what it needs: later. */
static void put_off(runner *r, task *t) {
    if (!t->is_locked) {
        ingot_progress_line(&r->progress, "%s: waits, another is at it", t->product->name);
    }
    t->is_locked = true;
    t->retry_at = ingot_clock_seconds() + LOCKED_RETRY_SECONDS;
    release(r, t);
    t->state = TASK_WAITING;
}

/* Takes up a product, unless it or what it needs is in the hands of another job or process. */
static void open_task(runner *r, task *t) {
    char fingerprint[33] = "";
    ingot_status status =
        ingot_zoo_fingerprint(fingerprint, r->manifest->models[t->product->model].path, &t->error);
    t->started = ingot_clock_seconds();
    if (status == INGOT_OK) {
        status = ingot_job_open(&t->job, r->manifest, &r->shelf, t->product, fingerprint,
                                r->options->is_forced && !t->was_finished, &t->error);
    }
    /* Opened all the same: what was finished before the plan said no is finished. */
    if (status == INGOT_OK && t->problem != NULL && t->job.step != INGOT_STEP_NONE) {
        const size_t name = strlen(t->product->name) + 2; /* it begins with "PRODUCT: " */
        status = ingot_error_set(&t->error, t->problem_status, NULL, NULL, NULL, "%.500s",
                                 t->problem + name);
    }
    if (status == INGOT_ERR_LOCKED) {
        put_off(r, t);
    } else if (status != INGOT_OK) {
        fail(r, t);
    } else if (t->job.step == INGOT_STEP_NONE) {
        t->was_finished = true;
        finish(r, t);
    } else if (r->options->until_statistics && t->job.step != INGOT_STEP_STATISTICS) {
        settle(r, t, TASK_STOPPED);
    } else {
        t->device = ingot_seats_choose(&r->seats, t->device_bytes);
        t->job.device = r->manifest->devices[t->device];
        t->job.threads = (unsigned)(r->threads / r->jobs > 0 ? r->threads / r->jobs : 1);
        t->state = TASK_RUNNING;
        r->running++;
        r->host_bytes += t->host_bytes;
        ingot_seats_take(&r->seats, t->device, t->device_bytes);
        start_step(r, t);
    }
}

/* The next step, or the end. */
static void take_end(runner *r, task *t, int wait_status, const struct rusage *usage) {
    const ingot_status status = ingot_job_finish(&t->job, wait_status, usage, &t->error);
    if (t->job.must_wait) {
        put_off(r, t);
    } else if (status != INGOT_OK) {
        fail(r, t);
    } else if (t->job.step == INGOT_STEP_NONE) {
        finish(r, t);
    } else if (r->options->until_statistics) {
        settle(r, t, TASK_STOPPED);
    } else if (ingot_interrupt_check(&t->error) != INGOT_OK) {
        fail(r, t);
    } else {
        start_step(r, t);
    }
}

/* ---- the loop ------------------------------------------------------------------------------- */

/* What runs side by side shares the memory; one alone always fits, or the plan had refused it. */
static bool has_room(const runner *r, const task *t) {
    return r->running == 0 ||
           ((r->host_room == 0 || r->host_bytes + t->host_bytes <= r->host_room) &&
            ingot_seats_choose(&r->seats, t->device_bytes) != INGOT_ZOO_NONE);
}

static void start_tasks(runner *r) {
    const double now = ingot_clock_seconds();
    for (uint64_t i = 0; i < r->count && r->running < r->jobs && !ingot_interrupted(); i++) {
        task *t = &r->tasks[i];
        if (t->state == TASK_WAITING && t->retry_at <= now && has_room(r, t)) {
            open_task(r, t);
            ingot_progress_update(&r->progress, (double)r->settled);
        }
    }
}

static void reap(runner *r) {
    for (uint64_t i = 0; i < r->count; i++) {
        task *t = &r->tasks[i];
        struct rusage usage;
        int wait_status;
        if (t->state == TASK_RUNNING && t->job.child > 0 &&
            wait4(t->job.child, &wait_status, WNOHANG, &usage) == t->job.child) {
            take_end(r, t, wait_status, &usage);
        }
    }
}

/* Children are asked to end once; what waits is left for another run. */
static void interrupt(runner *r) {
    for (uint64_t i = 0; i < r->count; i++) {
        task *t = &r->tasks[i];
        if (t->state == TASK_RUNNING && t->job.child > 0 && !r->is_told) {
            (void)kill(t->job.child, SIGTERM);
        } else if (t->state == TASK_WAITING) {
            t->state = TASK_LEFT;
            r->settled++;
        }
    }
    if (!r->is_told) {
        ingot_progress_line(&r->progress, "interrupted: waiting for what runs to end");
    }
    r->is_told = true;
}

static void run_loop(runner *r) {
    const struct timespec wait = {.tv_nsec = WAIT_NANOSECONDS};
    sigset_t ends;
    (void)sigemptyset(&ends);
    (void)sigaddset(&ends, SIGCHLD);
    (void)sigprocmask(SIG_BLOCK, &ends, NULL);
    while (r->settled < r->count) {
        start_tasks(r);
        if (ingot_interrupted()) {
            interrupt(r);
        }
        if (r->settled < r->count) {
            (void)sigtimedwait(&ends, NULL, &wait);
            reap(r);
        }
        ingot_progress_update(&r->progress, (double)r->settled);
    }
}

/* ---- the result ----------------------------------------------------------------------------- */

/* A signal that left something undone; one that came when all was settled changes nothing. */
static ingot_status check_interrupted(const runner *r, ingot_error *error) {
    bool is_undone = false;
    for (uint64_t i = 0; i < r->count; i++) {
        const task *t = &r->tasks[i];
        is_undone = is_undone || t->state == TASK_LEFT ||
                    (t->state == TASK_FAILED && t->error.status == INGOT_ERR_INTERRUPTED);
    }
    return is_undone ? ingot_interrupt_check(error) : INGOT_OK;
}

static json_t *task_json(const task *t) {
    static const char *const names[] = {"waiting", "running", "done", "failed", "left", "stopped"};
    const bool is_failed = t->state == TASK_FAILED;
    json_t *object = json_object();
    char text[INGOT_ERROR_TEXT_SIZE];
    ingot_error_format(&t->error, text, sizeof text);
    ingot_json_put(object, "product", json_string(t->product->name));
    ingot_json_put(object, "state", json_string(names[t->state]));
    ingot_json_put(object, "finished_before", json_boolean(t->was_finished));
    ingot_json_put(object, "gates",
                   t->state == TASK_DONE ? json_string(ingot_gate_verdict_name(t->gates))
                                         : json_null());
    ingot_json_put_code(object, is_failed ? t->error.status : INGOT_OK);
    ingot_json_put(object, "message",
                   ingot_json_any_text(is_failed                        ? text
                                       : t->gates == INGOT_GATES_FAILED ? t->gate_reason
                                                                        : NULL));
    return object;
}

static void report(runner *r, ingot_zoo_result *result, double seconds) {
    uint64_t made = 0, before = 0, failed = 0, gates = 0, invalid = 0, left = 0, stopped = 0;
    json_t *list = json_array();
    char time[32];
    for (uint64_t i = 0; i < r->count; i++) {
        const task *t = &r->tasks[i];
        made += t->state == TASK_DONE && !t->was_finished;
        before += t->state == TASK_DONE && t->was_finished;
        /* A check that said no is a product that could be made and must not be shipped. */
        const bool is_verdict =
            t->state == TASK_FAILED && ingot_status_exit_code(t->error.status) == 1;
        invalid += is_verdict;
        failed += t->state == TASK_FAILED && !is_verdict;
        gates += t->state == TASK_DONE && t->gates == INGOT_GATES_FAILED;
        left += t->state == TASK_LEFT;
        stopped += t->state == TASK_STOPPED && t->product->uses_statistics;
        (void)json_array_append_new(list, task_json(t));
    }
    ingot_json_put(result->json, "products", list);
    ingot_json_put(result->json, "made", json_integer((json_int_t)made));
    ingot_json_put(result->json, "finished_before", json_integer((json_int_t)before));
    ingot_json_put(result->json, "failed", json_integer((json_int_t)(failed + invalid)));
    ingot_json_put(result->json, "gates_failed", json_integer((json_int_t)gates));
    ingot_json_put(result->json, "left", json_integer((json_int_t)left));
    ingot_json_put(result->json, "removed", json_incref(r->removed));
    ingot_json_put(result->json, "seconds", ingot_json_number(seconds));
    result->exit_code = failed + left > 0 ? 2 : gates + invalid > 0 ? 1 : 0;
    if (!r->options->as_json) {
        ingot_format_seconds(time, sizeof time, seconds);
        printf("%llu products: %llu made, %llu finished before, %llu failed, %llu over a gate",
               (unsigned long long)r->count, (unsigned long long)made, (unsigned long long)before,
               (unsigned long long)(failed + invalid), (unsigned long long)gates);
        if (left > 0) {
            printf(", %llu left by the interruption", (unsigned long long)left);
        }
        if (stopped > 0) {
            printf(", %llu have their statistics", (unsigned long long)stopped);
        }
        printf("; %s\n", time);
    }
}

static uint64_t usable_cpus(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? (uint64_t)CPU_COUNT(&set) : 1;
}

/* What does not fit, or cannot be made at all, is known before anything is begun: a product by
 * itself is left out, too little disk for all of them is the end of the run. */
static ingot_status check_plan(runner *r, ingot_error *error) {
    ingot_status status = ingot_forecasts_make(&r->plan, r->manifest, &r->shelf, r->options, NULL,
                                               INGOT_FORECASTS_HERE, error);
    r->host_room = r->plan.room.host_bytes;
    for (uint64_t i = 0, k = 0; status == INGOT_OK && i < r->manifest->product_count; i++) {
        if (k < r->count && r->tasks[k].product == &r->manifest->products[i]) {
            r->tasks[k].problem = r->plan.needs[i].problem;
            r->tasks[k].problem_status = r->plan.needs[i].status;
            r->tasks[k].device_bytes = r->plan.needs[i].device_bytes;
            r->tasks[k++].host_bytes = r->plan.needs[i].host_bytes;
        }
    }
    if (status == INGOT_OK) {
        ingot_seats_make(&r->seats, r->manifest->devices, r->plan.room.device_free,
                         r->plan.room.device_bytes, r->manifest->device_count);
    }
    if (status == INGOT_OK && r->plan.lacks_disk) {
        const size_t last = json_array_size(r->plan.problems) - 1;
        status = ingot_error_set(error, INGOT_ERR_NO_SPACE, r->manifest->path, NULL, NULL,
                                 "nothing was begun: %.450s",
                                 json_string_value(json_array_get(r->plan.problems, last)));
    }
    return status;
}

static ingot_status prepare(runner *r, ingot_error *error) {
    const ingot_zoo_limits *limits = &r->manifest->limits;
    void *memory;
    INGOT_TRY(ingot_alloc_zero(&memory, r->manifest->product_count, sizeof *r->tasks));
    r->tasks = memory;
    for (uint64_t i = 0; i < r->manifest->product_count; i++) {
        if (ingot_zoo_is_chosen(r->options, &r->manifest->products[i])) {
            task *t = &r->tasks[r->count++];
            t->product = &r->manifest->products[i];
            t->job.lock = t->job.shared_lock = -1;
        }
    }
    r->jobs = ingot_zoo_jobs(r->manifest, r->options);
    r->threads = r->options->threads != 0 ? r->options->threads
                 : limits->threads != 0   ? limits->threads
                                          : usable_cpus();
    INGOT_TRY(ingot_shelf_open(&r->shelf, r->manifest->shelf, true, error));
    INGOT_TRY(ingot_leftovers_remove(&r->removed, r->manifest, &r->shelf, error)); /* makes room */
    return check_plan(r, error);
}

ingot_status ingot_zoo_run(ingot_zoo_result *result, const ingot_manifest *manifest,
                           const ingot_zoo_options *options, ingot_error *error) {
    runner r = {.manifest = manifest, .options = options};
    const double start = ingot_clock_seconds();
    ingot_status status = prepare(&r, error);
    if (status == INGOT_OK) {
        ingot_progress_begin(&r.progress, "zoo", "products", (double)r.count, false);
        run_loop(&r);
        ingot_progress_end(&r.progress);
        report(&r, result, ingot_clock_seconds() - start);
        status = check_interrupted(&r, error);
    }
    for (uint64_t i = 0; r.tasks != NULL && i < r.count; i++) {
        json_decref(r.tasks[i].record);
    }
    ingot_free(r.tasks);
    json_decref(r.removed);
    ingot_forecasts_free(&r.plan);
    return status;
}
