/* What the files of ingot-convert's run share: convert.c (from options to the plan),
 * convert_write.c (from the plan to the file).  Private to them. */
#ifndef INGOT_CONVERT_SESSION_H
#define INGOT_CONVERT_SESSION_H

#include "common/files.h"
#include "common/worker.h"
#include "convert/convert.h"
#include "convert/team.h"

/* Everything a conversion holds; released in one place. */
typedef struct session {
    ingot_convert_options *options;
    ingot_convert_result *result;
    ingot_error *error;
    ingot_checkpoint *checkpoint;
    ingot_weight_source source;
    ingot_model model;
    char devices[INGOT_MAX_DEVICES][64]; /* names, as given */
    unsigned device_count;
    ingot_backend backend;
    ingot_backend others[INGOT_MAX_DEVICES];
    unsigned other_count;
    double open_seconds;   /* what opening all of them took */
    ingot_worker *opening; /* of them, beside the text and the plan; NULL: that is over */
    ingot_output *begun;   /* the output, until a writer has it; NULL: it was not begun early */
    ingot_tokenizer *tokenizer;
    ingot_text text;
    ingot_windows windows;
    ingot_stats *stats;
    ingot_plan plan;
    ingot_file_spec *files;
    char *meta;
    ingot_ledger *ledgers;
    ingot_steps_taken *steps;
    char table[4096];      /* path of the sensitivity table; empty: not kept */
    bool is_self_text;     /* the model writes the calibration text */
    bool has_useless_data; /* a text or statistics were named, and nothing needs them */
    bool has_source, has_model, has_backend, has_text, has_windows, has_plan;
    bool is_forecast;     /* nothing but the plan: no device, no text */
    ingot_speeds *speeds; /* of a device that is the caller's, or NULL */
} session;

/* INGOT_ERR_USAGE where a file is one of the inputs, by device and inode. */
ingot_status ingot_convert_check_input(const session *s, const char *output) INGOT_MUST_CHECK;
/* Begins the output of a plan whose device is still being opened: reserving takes a second for
 * every 12 GB where files are in memory.  Left to ingot_convert_write, with its errors, where its
 * size is not known yet, or an interrupted run left something. */
void ingot_convert_begin(session *s);
/* Writes the container of a plan and commits it; what it finds out goes into the session's result.
 * *since: the clock since the last phase that was booked.  After a failure what --resume needs
 * stays, and nothing else. */
ingot_status ingot_convert_write(session *s, const ingot_writer_plan *plan,
                                 const ingot_layout_info *layout, double *since) INGOT_MUST_CHECK;

#endif
