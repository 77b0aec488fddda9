/* Is this container right?  Integrity, recomputation against the source checkpoint, perplexity and
 * divergence, task accuracy, gates, and the reports of all that (spec/cli.md, "ingot-verify").
 *
 * A verification goes through stages and stops at the first that fails:
 *   open     structure and metadata digests (ingot_open)
 *   full     every byte of the file is accounted for (ingot_check_full); left out with --quick
 *   source   every tensor recomputed from the checkpoint (verify/source_check.h)
 *   text     perplexity, and divergence from the source (calib/score.h)
 *   tasks    accuracy on multiple-choice items, beside the source's (calib/tasks.h)
 *   gates    limits on what the text and tasks stages found
 * What the text and tasks stages need is prepared behind the first: windows and items are there.
 * What was not reached is NaN, INGOT_VERDICT_NONE or an empty text. */
#ifndef INGOT_VERIFY_H
#define INGOT_VERIFY_H

#include "calib/model.h"
#include "calib/score.h"
#include "calib/tasks.h"

#include <jansson.h>
#include <stdio.h>

typedef struct ingot_verify_options {
    const char *path;        /* the container */
    const char *source_path; /* checkpoint folder or NULL */
    const char **text_paths; /* [text_count] */
    uint64_t text_count;
    uint64_t seq_len;         /* tokens per window; 0: min(2048, context) */
    uint64_t windows;         /* 0: all */
    double max_ppl_ratio;     /* NaN: no gate */
    double max_kld;           /* nats, mean; NaN: no gate */
    const char *tasks_path;   /* items of calib/tasks.h, or NULL */
    double max_accuracy_drop; /* fraction; NaN: no gate */
    const char *device;       /* "auto", "cpu", "cuda" or "cuda:N" */
    unsigned threads;         /* 0: one per usable CPU */
    bool is_quick;
    bool is_silent; /* no progress on stderr */
} ingot_verify_options;

typedef enum ingot_verdict {
    INGOT_VERDICT_NONE,
    INGOT_VERDICT_YES,
    INGOT_VERDICT_NO
} ingot_verdict;

/* Kinds of layer a report sums up. */
typedef enum ingot_layer_kind {
    /* 0 .. INGOT_ROLE_COUNT-1: the roles of calib/model.h */
    INGOT_KIND_EMBED = INGOT_ROLE_COUNT,
    INGOT_KIND_HEAD,
    INGOT_KIND_OTHER,
    INGOT_KIND_COUNT
} ingot_layer_kind;
const char *ingot_layer_kind_name(ingot_layer_kind kind); /* "q" ... "down", "embed", ... */

/* One record of the container with what was found about it. */
typedef struct ingot_tensor_report {
    const ingot_tensor *tensor; /* the container's */
    ingot_ledger ledger;
    ingot_tensor_class class; /* INGOT_CLASS_UNKNOWN for auxiliary tensors */
    ingot_layer_kind layer_kind;
    bool has_layer;
    uint64_t layer;        /* has_layer */
    ingot_role role;       /* INGOT_CLASS_LINEAR and INGOT_CLASS_BIAS */
    uint64_t stored_bytes; /* parts as they lie decoded in DATA; 0 for an alias */
    /* source stage */
    ingot_verdict source_verdict; /* NONE: not checked */
    char source_reason[256];      /* why not */
    double recomputed_error;      /* grouped tensors */
    double recomputed_error_rtn;
    double error_bound; /* spec/quality.md, "Bound on the weight error" */
} ingot_tensor_report;

/* The tensors of one kind of layer. */
typedef struct ingot_kind_summary {
    uint64_t tensors, parameters, stored_bytes;
    unsigned bits_low, bits_high;
    /* Root mean square over tensors of the ledger's figures; NaN where no tensor has one. */
    double weight_error, weight_error_rtn, output_error, output_error_rtn;
    uint64_t fallbacks;
} ingot_kind_summary;

typedef struct ingot_verification {
    ingot_verify_options options;
    ingot_error error; /* status INGOT_OK: nothing went wrong */
    ingot_verdict valid, gates_passed;
    bool is_full; /* the full check was made and passed */

    ingot_container *container; /* NULL: not opened */
    ingot_info info;
    json_t *meta;      /* NULL: none */
    ingot_model model; /* from the container's config.json */
    bool has_model;
    ingot_tensor_report *tensors; /* [tensor_count], load order */
    uint64_t tensor_count;
    ingot_kind_summary kinds[INGOT_KIND_COUNT]; /* grouped tensors */
    double bits_per_weight; /* grouped tensors: 8 * bytes of all parts / weights; NaN: none */
    uint64_t quantized_weights, parameters;

    uint64_t source_bytes; /* of the checkpoint's tensors; 0: not opened */
    uint64_t source_checked, source_failures;
    json_t *source_differences; /* "tensor", "file", "reason" of each failure; NULL: not compared */
    ingot_verdict source_verdict;

    uint8_t text_digest[16];
    uint64_t text_bytes, text_tokens, window_count, window_length;
    ingot_score score;
    ingot_tasks tasks;
    ingot_task_score task_score;
    char backend[64];
    double open_seconds, full_seconds, source_seconds, text_seconds, tasks_seconds;
} ingot_verification;

/* Everything but the reports.  Returns the status also left in out->error.status; *out is filled in
 * every case and released with ingot_verification_close. */
ingot_status ingot_verify_run(ingot_verification *out,
                              const ingot_verify_options *options) INGOT_MUST_CHECK;
/* A verification that never began, because the command line was wrong. */
void ingot_verification_init(ingot_verification *out, const ingot_verify_options *options);
void ingot_verification_close(ingot_verification *verification);

/* Contradictory options (gates without what they need), found before anything is read. */
ingot_status ingot_verify_check_options(const ingot_verify_options *options,
                                        ingot_error *error) INGOT_MUST_CHECK;
/* Sets gates_passed from the options and the score; INGOT_FAIL_GATE names the gate. */
ingot_status ingot_verify_gates(ingot_verification *verification) INGOT_MUST_CHECK;

/* ---- reports ---------------------------------------------------------------------------- */

void ingot_verify_report_text(const ingot_verification *verification, FILE *out);
/* New reference, NULL when out of memory.  Every key of spec/cli.md is present. */
json_t *ingot_verify_report_json(const ingot_verification *verification);
/* One self-contained page at path, written atomically; an existing file is replaced. */
ingot_status ingot_verify_report_html(const ingot_verification *verification, const char *path,
                                      ingot_error *error) INGOT_MUST_CHECK;

/* The whole tool: command line in, exit code out. */
int ingot_verify_command(int argc, char **argv);

#endif
