/* Task accuracy: multiple-choice items scored by likelihood (spec/quality.md, "Task accuracy").
 *
 * A file of items has one JSON object a line: {"context": text, "choices": [text, ...], "answer":
 * index}.  A choice is scored by log P(its tokens | those of the context) / its bytes; the model's
 * answer is the choice with the largest score, the first on ties. */
#ifndef INGOT_TASKS_H
#define INGOT_TASKS_H

#include "calib/score.h"
#include "calib/tokenizer.h"

#include <jansson.h>

#define INGOT_TASK_FILE_BYTES_MAX (256ull << 20)
#define INGOT_TASK_ITEMS_MAX      100000u
#define INGOT_TASK_CHOICES_MAX    64u

/* One item; texts belong to `json`. */
typedef struct ingot_item {
    json_t *json;
    uint64_t line; /* of the file, from 1 */
    const char *context;
    uint64_t context_bytes;
    uint64_t choice_count; /* 2 .. INGOT_TASK_CHOICES_MAX */
    uint64_t answer;       /* < choice_count */
} ingot_item;

typedef struct ingot_tasks {
    ingot_item *items; /* [count], owned */
    uint64_t count;
    uint64_t choices;   /* of all items */
    uint8_t digest[16]; /* XXH3-128 of the file */
} ingot_tasks;

/* Reads a file of items.  Keys other than the three are ignored, blank lines skipped.
 * INGOT_ERR_INPUT names the first line that is malformed, or a limit above that was passed. */
ingot_status ingot_tasks_read(ingot_tasks *out, const char *path,
                              ingot_error *error) INGOT_MUST_CHECK;
void ingot_tasks_free(ingot_tasks *tasks); /* a zeroed one is fine */

/* What a file of items comes to, for plans. */
typedef struct ingot_tasks_size {
    uint64_t items, choices;
    uint64_t text_bytes; /* of contexts and choices */
    /* of a context and one choice as ingot_tasks_score runs them, on average over the choices: all
     * of them; whose likelihood is asked for */
    double tokens, scored;
    double longest; /* tokens of the most that one choice has with its context */
} ingot_tasks_size;
/* Tokenizes the first items, whose sequences together have up to `bytes` bytes; others have as many
 * tokens a byte.  tokenizer NULL: a byte is taken for a token.  Errors as ingot_tasks_score. */
ingot_status ingot_tasks_measure(ingot_tasks_size *out, const ingot_tasks *tasks, const char *path,
                                 const ingot_tokenizer *tokenizer, uint64_t context, uint64_t bytes,
                                 ingot_error *error) INGOT_MUST_CHECK;
/* Host memory that ingot_tasks_score takes beside ingot_score_bytes, `tasks` included; *read (may
 * be NULL) = what these take by themselves. */
uint64_t ingot_tasks_bytes(uint64_t *read, const ingot_tasks_size *size);

/* What one item came to: indices of choices. */
typedef struct ingot_task_answer {
    uint32_t candidate, source; /* source: UINT32_MAX without one */
} ingot_task_answer;

typedef struct ingot_task_score {
    ingot_task_answer *answers; /* [items], owned; NULL: not scored */
    uint64_t items, correct, source_correct;
    uint64_t lost;              /* right by the source, wrong by the candidate */
    uint64_t gained;            /* the other way round */
    uint64_t changed;           /* another choice, right or wrong */
    double accuracy;            /* fractions; NaN where there is none */
    double source_accuracy;     /* NaN without a source, like all below */
    double drop;                /* source_accuracy - accuracy */
    double drop_low, drop_high; /* its 95 % interval: ingot_paired_interval */
} ingot_task_score;

/* All figures NaN, nothing scored. */
void ingot_task_score_init(ingot_task_score *out);
/* Scores every choice by `candidate` and, unless it is NULL, `source`, in one pass over the blocks
 * of both.  context: tokens of the longest sequence; longer ones lose tokens at their left.
 * path is for errors: INGOT_ERR_INPUT names the line of an item whose context or choice gives no
 * token, or whose choice alone is longer than the context.  Others as ingot_score_run.
 * Release with ingot_task_score_free. */
ingot_status ingot_tasks_score(ingot_task_score *out, const ingot_tasks *tasks, const char *path,
                               const ingot_tokenizer *tokenizer, uint64_t context,
                               const ingot_model *model, const ingot_weight_source *candidate,
                               const ingot_weight_source *source, const ingot_backend *backend,
                               uint64_t batch_bytes, ingot_progress *progress,
                               ingot_error *error) INGOT_MUST_CHECK;
void ingot_task_score_free(ingot_task_score *score);

/* 95 % interval of (lost - gained) / items, a difference of proportions of paired data: Bonett and
 * Price, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on
 * Paired Data", 2012: with p = (lost + 1) / (items + 2) and q = (gained + 1) / (items + 2),
 * p - q +- 1.96 sqrt((p + q - (p - q)^2) / (items + 2)). */
void ingot_paired_interval(double *low, double *high, uint64_t items, uint64_t lost,
                           uint64_t gained);

#endif
