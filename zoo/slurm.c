/* ingot-zoo slurm: what is not finished as job arrays, one task for each product.
 *
 * A task is `ingot-zoo run --only PRODUCT`: locks, records and resumption are those of any run, so
 * that a task that is killed, requeued or started twice does no harm.  Products that want the same
 * resources and wait for the same statistics share an array. */
#include "common/child.h"
#include "common/files.h"
#include "common/svg.h"
#include "zoo/cluster.h"
#include "zoo/plan.h"
#include "zoo/rows.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MEGABYTE        (UINT64_C(1) << 20)
#define LEAST_MEGABYTES 256u
#define TASK_CPUS_MAX   8u /* unless limits.threads says so */
#define WORDS_MAX       64u

typedef struct array {
    char statistics[33]; /* key of the statistics it waits for; empty: none */
    uint64_t megabytes;
    json_t *products; /* names, in the order of the tasks */
} array;

typedef struct submitter {
    const ingot_manifest *manifest;
    const ingot_zoo_options *options;
    ingot_shelf shelf;
    ingot_forecasts plan;
    json_t *states;  /* product -> state on the shelf */
    json_t *cluster; /* product -> what Slurm says */
    json_t *jobs;    /* all that were ever submitted */
    json_t *made;    /* key of statistics -> id of the job that makes them */
    array *arrays;   /* [product_count] */
    uint64_t array_count, submitted, queued, left_out;
    char manifest_path[PATH_MAX], program[PATH_MAX], folder[PATH_MAX];
    uint64_t cpus;
    bool on_cuda;
} submitter;

/* ---- which products, in which arrays -------------------------------------------------------- */

/* A power of two, with a quarter of headroom: few classes, and none too tight. */
static uint64_t memory_class(uint64_t host_bytes) {
    const uint64_t wanted = (host_bytes + host_bytes / 4) / MEGABYTE + 64;
    uint64_t megabytes = LEAST_MEGABYTES;
    while (megabytes < wanted) {
        megabytes *= 2;
    }
    return megabytes;
}

static bool is_left(const submitter *s, const ingot_zoo_product *p) {
    const char *state = json_string_value(json_object_get(s->states, p->name));
    return s->options->is_forced || state == NULL ||
           (strcmp(state, "done") != 0 && strcmp(state, "running") != 0);
}

static ingot_status add_product(submitter *s, const ingot_zoo_product *p, uint64_t host_bytes,
                                ingot_error *error) {
    char key[33];
    uint64_t i = 0;
    INGOT_TRY(ingot_product_statistics(key, s->manifest, &s->shelf, p, error));
    const uint64_t megabytes = memory_class(host_bytes);
    while (i < s->array_count &&
           (s->arrays[i].megabytes != megabytes || strcmp(s->arrays[i].statistics, key) != 0)) {
        i++;
    }
    if (i == s->array_count) {
        s->arrays[s->array_count++] = (array){.megabytes = megabytes, .products = json_array()};
        memcpy(s->arrays[i].statistics, key, sizeof key);
    }
    (void)json_array_append_new(s->arrays[i].products, json_string(p->name));
    return INGOT_OK;
}

static ingot_status collect(submitter *s, ingot_error *error) {
    void *memory;
    INGOT_TRY(ingot_alloc_zero(&memory, s->manifest->product_count, sizeof *s->arrays));
    s->arrays = memory;
    for (uint64_t i = 0; i < s->manifest->product_count; i++) {
        const ingot_zoo_product *p = &s->manifest->products[i];
        const char *state = ingot_zoo_text_of(json_object_get(s->cluster, p->name), "state");
        if (!ingot_zoo_is_chosen(s->options, p) || !is_left(s, p)) {
            continue;
        }
        if (ingot_cluster_is_pending(state)) {
            s->queued++;
        } else if (s->plan.needs[i].problem != NULL) {
            (void)fprintf(stderr, "ingot-zoo: left out: %s\n", s->plan.needs[i].problem);
            s->left_out++;
        } else {
            INGOT_TRY(add_product(s, p, s->plan.needs[i].host_bytes, error));
        }
    }
    return INGOT_OK;
}

/* ---- scripts -------------------------------------------------------------------------------- */

/* 'text', for a shell. */
static void add_quoted(ingot_markup *out, const char *text) {
    ingot_markup_add(out, "'");
    for (const char *c = text; *c != '\0'; c++) {
        ingot_markup_add(out, *c == '\'' ? "'\\''" : "%c", *c);
    }
    ingot_markup_add(out, "'");
}

/* The script of an array, or of the statistics that it waits for. */
static ingot_status write_script(char path[INGOT_SHELF_PATH_SIZE], const submitter *s,
                                 const array *a, bool is_statistics, ingot_error *error) {
    ingot_markup text = {0};
    char name[96];
    static unsigned number;
    (void)snprintf(name, sizeof name, "%lld-%ld-%u.sh", (long long)time(NULL), (long)getpid(),
                   number++);
    ingot_shelf_path(path, &s->shelf, INGOT_SHELF_CLUSTER, name);
    ingot_markup_add(&text, "#!/bin/sh\n# Written by ingot-zoo slurm; one task for each product.\n"
                            "case ${SLURM_ARRAY_TASK_ID:-0} in\n");
    for (size_t i = 0; i < json_array_size(a->products); i++) {
        ingot_markup_add(&text, "%zu) product=", i);
        add_quoted(&text, json_string_value(json_array_get(a->products, i)));
        ingot_markup_add(&text, " ;;\n");
    }
    ingot_markup_add(&text, "*) exit 2 ;;\nesac\nexec ");
    add_quoted(&text, s->program);
    ingot_markup_add(&text, " run ");
    add_quoted(&text, s->manifest_path);
    ingot_markup_add(&text, " --only \"$product\" --jobs 1 --threads %llu",
                     (unsigned long long)s->cpus);
    if (s->on_cuda) { /* the one that Slurm made visible */
        ingot_markup_add(&text, " --device cuda");
    }
    ingot_markup_add(&text, "%s%s\n", is_statistics ? " --until statistics" : "",
                     s->options->is_forced && !is_statistics ? " --force" : "");
    ingot_status status = ingot_markup_status(&text);
    if (status == INGOT_OK) {
        status = ingot_file_write_all(path, text.text, text.size, false, error);
    }
    ingot_markup_free(&text);
    return status;
}

/* ---- submission ----------------------------------------------------------------------------- */

/* The id that "sbatch --parsable" prints, without the name of a cluster. */
static ingot_status submit_words(const char **words, char id[40], ingot_error *error) {
    char *text = NULL;
    const ingot_status status = ingot_child_capture(&text, words, error);
    if (status == INGOT_OK) {
        const char *last = text;
        for (char *c = text; *c != '\0'; c++) { /* warnings stand before it */
            last = *c == '\n' && c[1] != '\0' ? c + 1 : last;
        }
        (void)snprintf(id, 40, "%.*s", (int)strspn(last, "0123456789"), last);
    }
    free(text);
    return status != INGOT_OK || id[0] != '\0'
               ? status
               : ingot_error_set(error, INGOT_ERR_UNSUPPORTED, "sbatch", NULL, NULL,
                                 "it named no job");
}

static ingot_status note_job(submitter *s, const char *id, const char *kind, const array *a,
                             ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE];
    json_t *products = strcmp(kind, "products") == 0 ? json_incref(a->products) : json_array();
    (void)json_array_append_new(s->jobs, json_pack("{s:s, s:s, s:o, s:I}", "job", id, "kind", kind,
                                                   "products", products, "submitted",
                                                   (json_int_t)time(NULL)));
    ingot_shelf_path(path, &s->shelf, INGOT_SHELF_CLUSTER, "jobs.json");
    char *text = ingot_json_text(s->jobs, JSON_SORT_KEYS | JSON_INDENT(1));
    const ingot_status status = text != NULL
                                    ? ingot_file_write_all(path, text, strlen(text), true, error)
                                    : INGOT_ERR_NO_MEMORY;
    free(text);
    return status;
}

static ingot_status submit(submitter *s, const array *a, bool is_statistics, const char *after,
                           char id[40], ingot_error *error) {
    char script[INGOT_SHELF_PATH_SIZE], memory[40], cpus[48], range[48], output[PATH_MAX + 40];
    char dependency[80];
    const char *words[WORDS_MAX] = {"sbatch", "--parsable", "--requeue", "--open-mode=append",
                                    "--signal=B:TERM@60"};
    unsigned count = 5;
    INGOT_TRY(write_script(script, s, a, is_statistics, error));
    (void)snprintf(memory, sizeof memory, "--mem=%lluM", (unsigned long long)a->megabytes);
    (void)snprintf(cpus, sizeof cpus, "--cpus-per-task=%llu", (unsigned long long)s->cpus);
    (void)snprintf(output, sizeof output, "--output=%s/slurm-%s.out", s->folder,
                   is_statistics ? "%j" : "%A_%a");
    words[count++] = memory;
    words[count++] = cpus;
    words[count++] = output;
    words[count++] = is_statistics ? "--job-name=ingot-statistics" : "--job-name=ingot-zoo";
    if (!is_statistics) {
        char limit[24] = "";
        if (s->options->jobs != 0) {
            (void)snprintf(limit, sizeof limit, "%%%llu", (unsigned long long)s->options->jobs);
        }
        (void)snprintf(range, sizeof range, "--array=0-%zu%s", json_array_size(a->products) - 1,
                       limit);
        words[count++] = range;
    }
    if (after[0] != '\0') {
        (void)snprintf(dependency, sizeof dependency, "--dependency=afterok:%.40s", after);
        words[count++] = dependency;
        words[count++] = "--kill-on-invalid-dep=yes";
    }
    if (s->on_cuda) {
        words[count++] = "--gres=gpu:1";
    }
    for (uint64_t i = 0; i < s->manifest->slurm_count && count + 2 < WORDS_MAX; i++) {
        words[count++] = s->manifest->slurm[i];
    }
    words[count++] = script;
    words[count] = NULL;
    const ingot_status status = submit_words(words, id, error);
    if (status != INGOT_OK) {
        (void)unlink(script); /* nobody will run it */
        return status;
    }
    return note_job(s, id, is_statistics ? "statistics" : "products", a, error);
}

static ingot_status submit_array(submitter *s, const array *a, ingot_error *error) {
    char id[40] = "", after[40] = "";
    if (a->statistics[0] != '\0') {
        const char *made = json_string_value(json_object_get(s->made, a->statistics));
        if (made == NULL) {
            INGOT_TRY(submit(s, a, true, "", after, error));
            ingot_json_put(s->made, a->statistics, json_string(after));
        } else {
            (void)snprintf(after, sizeof after, "%s", made);
        }
    }
    INGOT_TRY(submit(s, a, false, after, id, error));
    s->submitted += json_array_size(a->products);
    if (!s->options->as_json) {
        printf("job %s: %zu products, %llu MB of memory, %llu CPUs%s%s%s\n", id,
               json_array_size(a->products), (unsigned long long)a->megabytes,
               (unsigned long long)s->cpus, s->on_cuda ? ", one GPU" : "",
               after[0] != '\0' ? ", after statistics of job " : "", after);
    }
    return INGOT_OK;
}

/* ---- the subcommand ------------------------------------------------------------------------- */

static ingot_status read_states(submitter *s, ingot_error *error) {
    json_t *rows = NULL;
    INGOT_TRY(ingot_zoo_rows(&rows, s->manifest, &s->shelf, s->options, false, error));
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        ingot_json_put(s->states, ingot_zoo_text_of(row, "product"),
                       json_incref(json_object_get(row, "state")));
    }
    json_decref(rows);
    return ingot_cluster_states(&s->cluster, &s->shelf, error);
}

/* Tasks run in another folder, on another machine: what they name must not depend on ours. */
static ingot_status find_paths(submitter *s, ingot_error *error) {
    char folder[INGOT_SHELF_PATH_SIZE];
    const ssize_t length = readlink("/proc/self/exe", s->program, sizeof s->program - 1);
    ingot_shelf_path(folder, &s->shelf, INGOT_SHELF_CLUSTER, "");
    s->program[length > 0 ? length : 0] = '\0';
    if (length <= 0 || realpath(s->manifest->path, s->manifest_path) == NULL ||
        realpath(folder, s->folder) == NULL) {
        return ingot_error_set(error, INGOT_ERR_IO, s->manifest->path, NULL, NULL,
                               "no absolute path: %s", strerror(errno));
    }
    return INGOT_OK;
}

static void find_resources(submitter *s) {
    cpu_set_t set;
    const uint64_t here =
        sched_getaffinity(0, sizeof set, &set) == 0 ? (uint64_t)CPU_COUNT(&set) : 1;
    s->cpus = s->options->threads != 0           ? s->options->threads
              : s->manifest->limits.threads != 0 ? s->manifest->limits.threads
              : here < TASK_CPUS_MAX             ? here
                                                 : TASK_CPUS_MAX;
    for (uint64_t i = 0; i < s->manifest->device_count; i++) {
        s->on_cuda = s->on_cuda || strncmp(s->manifest->devices[i], "cuda", 4) == 0;
    }
}

static ingot_status submit_all(submitter *s, ingot_error *error) {
    char path[INGOT_SHELF_PATH_SIZE];
    INGOT_TRY(find_paths(s, error));
    find_resources(s);
    INGOT_TRY(read_states(s, error));
    INGOT_TRY(ingot_forecasts_make(&s->plan, s->manifest, &s->shelf, s->options, NULL, 0, error));
    ingot_shelf_path(path, &s->shelf, INGOT_SHELF_CLUSTER, "jobs.json");
    if (ingot_path_exists(path)) {
        INGOT_TRY(ingot_json_read(&s->jobs, path, 64u << 20, error));
    } else {
        s->jobs = json_array();
    }
    INGOT_TRY(collect(s, error));
    for (uint64_t i = 0; i < s->array_count; i++) {
        INGOT_TRY(submit_array(s, &s->arrays[i], error));
    }
    return INGOT_OK;
}

ingot_status ingot_zoo_slurm(ingot_zoo_result *result, const ingot_manifest *manifest,
                             const ingot_zoo_options *options, ingot_error *error) {
    submitter s = {
        .manifest = manifest, .options = options, .states = json_object(), .made = json_object()};
    int lock = -1;
    ingot_status status = ingot_shelf_open(&s.shelf, manifest->shelf, true, error);
    if (status == INGOT_OK) {
        status = ingot_shelf_lock(&lock, &s.shelf, "slurm", error);
    }
    if (status == INGOT_OK) {
        status = submit_all(&s, error);
    }
    ingot_shelf_unlock(lock);
    ingot_json_put(result->json, "submitted", json_integer((json_int_t)s.submitted));
    ingot_json_put(result->json, "queued_before", json_integer((json_int_t)s.queued));
    ingot_json_put(result->json, "left_out", json_integer((json_int_t)s.left_out));
    ingot_json_put(result->json, "jobs", s.jobs != NULL ? json_incref(s.jobs) : json_array());
    result->exit_code = s.left_out > 0 ? 2 : 0;
    if (status == INGOT_OK && !options->as_json) {
        printf("%llu products submitted, %llu in the queue before, %llu left out\n",
               (unsigned long long)s.submitted, (unsigned long long)s.queued,
               (unsigned long long)s.left_out);
    }
    for (uint64_t i = 0; i < s.array_count; i++) {
        json_decref(s.arrays[i].products);
    }
    ingot_free(s.arrays);
    ingot_forecasts_free(&s.plan);
    json_decref(s.states);
    json_decref(s.cluster);
    json_decref(s.jobs);
    json_decref(s.made);
    return status;
}
