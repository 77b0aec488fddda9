/* What Slurm says of the jobs of a shelf: squeue for what it has, sacct for what it had. */
#include "zoo/cluster.h"

#include "common/child.h"
#include "common/files.h"

#include <stdlib.h>
#include <string.h>

#define JOBS_LIMIT_BYTES (64u << 20)
#define IDS_BYTES        8192u

bool ingot_cluster_is_pending(const char *state) {
    static const char *const names[] = {"PENDING",   "RUNNING",   "CONFIGURING",  "COMPLETING",
                                        "SUSPENDED", "REQUEUED",  "REQUEUE_HOLD", "RESIZING",
                                        "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT"};
    for (size_t i = 0; state != NULL && i < sizeof names / sizeof *names; i++) {
        if (strcmp(state, names[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* The product of task `index` of job `job`, or NULL. */
static const char *product_of(const json_t *jobs, const char *job, long index) {
    for (size_t i = 0; i < json_array_size(jobs); i++) {
        const json_t *entry = json_array_get(jobs, i);
        const char *id = ingot_zoo_text_of(entry, "job");
        if (id != NULL && strcmp(id, job) == 0) {
            return json_string_value(
                json_array_get(json_object_get(entry, "products"), (size_t)index));
        }
    }
    return NULL;
}

/* A line of squeue or sacct. */
typedef struct said {
    const char *job, *state, *node, *reason;
} said;

/* Notes what was said of one task; false: the job has no such task. */
static bool take_task(json_t *states, const json_t *jobs, const said *line, long index) {
    const char *product = product_of(jobs, line->job, index);
    if (product == NULL) {
        return false;
    }
    /* Jobs are in the order of their submission: a later one replaces what was said before. */
    const json_t *before = json_object_get(states, product);
    const char *other = ingot_zoo_text_of(before, "job");
    if (other != NULL && strtol(other, NULL, 10) > strtol(line->job, NULL, 10)) {
        return true;
    }
    char id[64];
    (void)snprintf(id, sizeof id, "%.40s_%ld", line->job, index);
    ingot_json_put(states, product,
                   json_pack("{s:s, s:s, s:s, s:s}", "job", id, "state", line->state, "node",
                             line->node, "reason", line->reason));
    return true;
}

/* The tasks of "3", or of "[0-2,5%2]", as sacct calls those of an array that were never started
 * one by one ("%2": so many at a time; "...": it was too long to be told). */
static void take_tasks(json_t *states, const json_t *jobs, const said *line, const char *text) {
    const char *at = text + (text[0] == '[');
    while (*at >= '0' && *at <= '9') {
        char *end;
        const long first = strtol(at, &end, 10);
        long last = first, step = 1;
        last = *end == '-' ? strtol(end + 1, &end, 10) : last;
        step = *end == ':' ? strtol(end + 1, &end, 10) : step;
        for (long i = first; i <= last && step > 0; i += step) {
            if (!take_task(states, jobs, line, i)) {
                break;
            }
        }
        at = end + (*end == ',');
    }
}

/* One line "JOB_TASKS|STATE|NODE|REASON"; lines about other things are passed over. */
static void take_line(json_t *states, const json_t *jobs, char *line) {
    char nothing[1] = "", *fields[4] = {nothing, nothing, nothing, nothing};
    for (unsigned i = 0; i < 4 && line != NULL; i++) {
        fields[i] = strsep(&line, "|");
    }
    char *underscore = strchr(fields[0], '_');
    if (underscore == NULL) {
        return;
    }
    *underscore = '\0';
    fields[1][strcspn(fields[1], " +")] = '\0'; /* "CANCELLED by 0" */
    const bool has_node = strcmp(fields[2], "None assigned") != 0;
    const said what = {.job = fields[0],
                       .state = fields[1],
                       .node = has_node ? fields[2] : nothing,
                       .reason = fields[3]};
    take_tasks(states, jobs, &what, underscore + 1);
}

static void take_lines(json_t *states, const json_t *jobs, char *text) {
    char *rest = text, *line;
    while ((line = strsep(&rest, "\n")) != NULL) {
        take_line(states, jobs, line);
    }
}

static ingot_status read_jobs(json_t **out, const ingot_shelf *shelf, ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE];
    ingot_shelf_path(path, shelf, INGOT_SHELF_CLUSTER, "jobs.json");
    *out = NULL;
    return ingot_path_exists(path) ? ingot_json_read(out, path, JOBS_LIMIT_BYTES, error) : INGOT_OK;
}

/* The ids that fit, the latest first. */
static void list_ids(char ids[IDS_BYTES], const json_t *jobs) {
    size_t length = 0;
    ids[0] = '\0';
    for (size_t i = json_array_size(jobs); i > 0 && length + 64 < IDS_BYTES; i--) {
        const char *id = ingot_zoo_text_of(json_array_get(jobs, i - 1), "job");
        length += (size_t)snprintf(ids + length, IDS_BYTES - length, "%s%.40s",
                                   length > 0 ? "," : "", id != NULL ? id : "0");
    }
}

ingot_status ingot_cluster_states(json_t **out, const ingot_shelf *shelf, ingot_error *error) {
    json_t *jobs = NULL;
    char ids[IDS_BYTES], *text = NULL;
    *out = json_object();
    INGOT_TRY(read_jobs(&jobs, shelf, error));
    if (json_array_size(jobs) == 0) {
        json_decref(jobs);
        return INGOT_OK;
    }
    list_ids(ids, jobs);
    const char *const account[] = {
        "sacct", "-n", "-P", "-X", "-j", ids, "-o", "JobID,State,NodeList,ExitCode", NULL};
    const char *const queue[] = {"squeue", "-h", "-r", "-t", "all", "-o", "%F_%K|%T|%N|%r", NULL};
    /* Without accounting sacct says no, and what has ended is known for a while by squeue alone. */
    if (ingot_child_capture(&text, account, error) == INGOT_OK) {
        take_lines(*out, jobs, text);
    }
    free(text);
    text = NULL;
    if (ingot_child_capture(&text, queue, error) == INGOT_OK) {
        take_lines(*out, jobs, text);
    } else {
        (void)fprintf(stderr, "ingot-zoo: warning: squeue does not answer: states of jobs are "
                              "those of the records\n");
    }
    free(text);
    json_decref(jobs);
    *error = (ingot_error){0};
    return INGOT_OK;
}
