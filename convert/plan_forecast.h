/* What a conversion will take and give, before anything is done: sizes, memory, disk, and which
 * cards hold the result (spec/cli.md, "ingot-convert", --dry-run). */
#ifndef INGOT_PLAN_FORECAST_H
#define INGOT_PLAN_FORECAST_H

#include "calib/tasks.h"
#include "common/json.h"
#include "convert/plan.h"

/* Memory at the peak, estimated. */
typedef struct ingot_memory_need {
    uint64_t host_bytes, device_bytes; /* device 0: all of it is host memory */
} ingot_memory_need;

/* What making a statistics file takes. */
typedef struct ingot_statistics_need {
    uint64_t file_bytes;
    ingot_memory_need cpu, cuda; /* as below */
    uint64_t cuda_least_bytes;   /* with calls of one window, and a text that the model writes of
                                    one sequence at once */
    double seconds;              /* on the device that was measured; NaN: not measured */
} ingot_statistics_need;

/* What scoring it beside the source takes, both together (ingot-verify), in seconds. */
typedef struct ingot_scoring_pace {
    double start;  /* of a GPU, which every process starts anew; else 0 */
    double token;  /* of a token through all blocks, */
    double length; /* more for each token of its sequence: attention, */
    double scored; /* and, where its likelihood is asked for, through the head */
} ingot_scoring_pace;

typedef struct ingot_forecast {
    bool has_weights;      /* false: from config.json alone; no scale dtype was surveyed, and the
                              size is without tokenizer files */
    uint64_t parameters;   /* weights of all tensors of the checkpoint */
    uint64_t source_bytes; /* of these as they are stored */
    uint64_t quantized_weights;
    double bits_per_weight; /* of the quantized tensors; NaN: there are none */
    uint64_t file_bytes;    /* of the container, all shards, before zstd */
    uint32_t shard_count;
    uint64_t disk_bytes; /* free space that the conversion needs at once: the container, and what
                            --resume keeps, matrices that wait for distillation among it */
    uint64_t kv_bytes_per_token;      /* F16 keys and values of one token */
    uint64_t tokens;                  /* of the calibration batch; 0 without data */
    ingot_memory_need cpu, cuda;      /* on either kind of device */
    uint64_t cuda_least_bytes;        /* of device memory it cannot do without: hidden states on the
                                         host, calls of one window, no distillation */
    double seconds;                   /* on the device that was measured; NaN: not measured */
    char device[64];                  /* that the conversion opens (ingot_backend.path); empty: it
                                         was not opened */
    ingot_statistics_need statistics; /* of the file that it reads in place of a text, or zeros */
    /* of scoring it beside the source, or zeros: memory, and of a device with one window or choice
     * at once; a window; time, NaN likewise */
    ingot_memory_need scoring_cpu, scoring_cuda;
    uint64_t scoring_least_bytes;
    uint64_t scoring_length;
    ingot_scoring_pace scoring_pace;
} ingot_forecast;

/* What it is scored on afterwards. */
typedef struct ingot_scoring_job {
    uint64_t text_bytes;    /* of a text, which has no more tokens; 0: none */
    uint64_t windows;       /* of it; 0: all */
    uint64_t length;        /* of a window; 0: min(2048, context) */
    ingot_tasks_size items; /* zeros: none */
} ingot_scoring_job;

/* What a forecast is made of. */
typedef struct ingot_forecast_job {
    const ingot_checkpoint *checkpoint;
    const ingot_model *model;
    const ingot_plan *plan;
    const ingot_recipe *recipe;
    uint64_t windows, length; /* of the calibration batch; 0: none */
    bool has_stats;           /* a statistics file in its place */
    uint64_t text_bytes;      /* of the text that they are cut from */
    bool writes_text;         /* the model writes it instead */
    bool has_widths;          /* a target of bits per weight has been met: nothing is measured */
    ingot_scoring_job scoring;
    ingot_layout_info layout; /* of the container */
} ingot_forecast_job;

void ingot_forecast_make(ingot_forecast *out, const ingot_forecast_job *job);
/* Of statistics of the job's windows, and of writing their text; seconds stays NaN. */
ingot_status ingot_forecast_statistics_make(ingot_statistics_need *out,
                                            const ingot_forecast_job *job) INGOT_MUST_CHECK;

/* Device memory that work on one block takes beside hidden states. */
typedef struct ingot_block_need {
    /* while forward calls run, beside what these take: its weights twice (as they are, and stored
     * or as the forward pass wants them), H and drift of every input, or of one at a time; and what
     * choosing folds takes */
    uint64_t beside_calls;
    /* between them: factor, correction, and what quantizing the largest matrix takes; or, where
     * that is more, weights with their targets, H of every input, and tuning_bytes */
    uint64_t between_calls;
    bool unfolds; /* a call needs an input without the fold of what made it */
} ingot_block_need;

/* tuning_bytes: convert/tune.h; 0: it is not tuned.  judge_tokens: of windows that are held out. */
ingot_block_need ingot_plan_block_need(const ingot_plan *plan, const ingot_model *model,
                                       bool has_drift, uint64_t tuning_bytes,
                                       uint64_t judge_tokens);

/* Cards, by the memory in their name: nominal gigabytes of 10^9 bytes hold weights and keys and
 * values; what a card has beyond them is left to activations and the driver. */
#define INGOT_CARD_COUNT 3
extern const unsigned ingot_card_gigabytes[INGOT_CARD_COUNT]; /* 24, 40, 80 */
/* Tokens of keys and values that fit beside file_bytes of weights; 0 also where these do not fit
 * (*fits false). */
uint64_t ingot_forecast_card_tokens(bool *fits, const ingot_forecast *forecast, unsigned gigabytes);

/* New reference; NULL when out of memory.  With plan: "tensors", one object each (spec/cli.md). */
json_t *ingot_forecast_json(const ingot_forecast *forecast, const ingot_plan *plan);
/* The lines that --dry-run prints below the plan. */
void ingot_forecast_print(const ingot_forecast *forecast, FILE *out);

#endif
