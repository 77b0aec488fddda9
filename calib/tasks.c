/* Multiple-choice items: reading them, and what models answer (spec/quality.md). */
#include "calib/tasks.h"

#include "common/files.h"
#include "common/json.h"
#include "common/sizes.h"
#include "format/digest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NORMAL_975 1.959963984540054 /* quantile of the normal distribution: 95 %, two-sided */
/* What an item takes without its texts, and a choice; measured, with jansson 2.14. */
#define ITEM_BYTES   720u
#define CHOICE_BYTES 100u

/* ---- reading ------------------------------------------------------------------------------- */

static ingot_status malformed(const char *path, uint64_t line, const char *what,
                              ingot_error *error) {
    return ingot_error_set(error, INGOT_ERR_INPUT, path, NULL,
                           "an item is {\"context\": TEXT, \"choices\": [TEXT, TEXT, ...], "
                           "\"answer\": INDEX from 0}",
                           "line %llu: %s", (unsigned long long)line, what);
}

static ingot_status no_memory(const char *path, ingot_error *error) {
    return ingot_error_set(error, INGOT_ERR_NO_MEMORY, path, NULL, "use fewer items",
                           "out of memory for the items");
}

static const json_t *choice_at(const ingot_item *item, uint64_t index) {
    return json_array_get(json_object_get(item->json, "choices"), (size_t)index);
}

static ingot_status check_item(ingot_item *item, const char *path, ingot_error *error) {
    const json_t *context = json_object_get(item->json, "context");
    const json_t *choices = json_object_get(item->json, "choices");
    const json_t *answer = json_object_get(item->json, "answer");
    const uint64_t line = item->line;
    if (!json_is_object(item->json)) {
        return malformed(path, line, "not an object", error);
    }
    if (!json_is_string(context) || json_string_length(context) == 0) {
        return malformed(path, line, "\"context\" is no text, or empty", error);
    }
    if (!json_is_array(choices)) {
        return malformed(path, line, "\"choices\" is no list", error);
    }
    item->choice_count = json_array_size(choices);
    if (item->choice_count < 2 || item->choice_count > INGOT_TASK_CHOICES_MAX) {
        return malformed(path, line, "not 2 to 64 choices", error);
    }
    for (uint64_t i = 0; i < item->choice_count; i++) {
        if (!json_is_string(choice_at(item, i)) || json_string_length(choice_at(item, i)) == 0) {
            return malformed(path, line, "a choice is no text, or empty", error);
        }
    }
    if (!json_is_integer(answer) || json_integer_value(answer) < 0 ||
        (uint64_t)json_integer_value(answer) >= item->choice_count) {
        return malformed(path, line, "\"answer\" is not the index of a choice", error);
    }
    item->context = json_string_value(context);
    item->context_bytes = json_string_length(context);
    item->answer = (uint64_t)json_integer_value(answer);
    return INGOT_OK;
}

static ingot_status read_line(ingot_tasks *out, const char *text, uint64_t size, uint64_t line,
                              const char *path, ingot_error *error) {
    uint64_t blanks = 0;
    while (blanks < size && strchr(" \t\r", text[blanks]) != NULL && text[blanks] != '\0') {
        blanks++;
    }
    if (blanks == size) {
        return INGOT_OK;
    }
    if (out->count == INGOT_TASK_ITEMS_MAX) {
        return malformed(path, line, "more than 100000 items", error);
    }
    ingot_item *item = &out->items[out->count];
    ingot_error inner = {0};
    const ingot_status status = ingot_json_parse(&item->json, text, size, path, &inner);
    if (status == INGOT_ERR_INPUT) {
        return malformed(path, line, inner.reason, error);
    }
    if (status != INGOT_OK) {
        return no_memory(path, error);
    }
    out->count++; /* from here on ingot_tasks_free releases it */
    item->line = line;
    INGOT_TRY(check_item(item, path, error));
    out->choices += item->choice_count;
    return INGOT_OK;
}

ingot_status ingot_tasks_read(ingot_tasks *out, const char *path, ingot_error *error) {
    char *text = NULL;
    uint64_t size = 0, lines = 1;
    void *items;
    *out = (ingot_tasks){0};
    INGOT_TRY(ingot_file_read_all(path, INGOT_TASK_FILE_BYTES_MAX, &text, &size, error));
    ingot_digest128(out->digest, text, size);
    for (uint64_t i = 0; i < size; i++) {
        lines += text[i] == '\n';
    }
    ingot_status status =
        ingot_alloc_zero(&items, ingot_min_u64(lines, INGOT_TASK_ITEMS_MAX), sizeof *out->items);
    if (status != INGOT_OK) {
        status = no_memory(path, error);
        goto done;
    }
    out->items = items;
    for (uint64_t at = 0, line = 1; at < size; line++) {
        const char *end = memchr(text + at, '\n', size - at);
        const uint64_t length = end == NULL ? size - at : (uint64_t)(end - (text + at));
        INGOT_GO(read_line(out, text + at, length, line, path, error));
        at += length + 1;
    }
    if (out->count == 0) {
        status = malformed(path, 1, "no item in the file", error);
    }
done:
    ingot_free(text);
    if (status != INGOT_OK) {
        ingot_tasks_free(out);
    }
    return status;
}

void ingot_tasks_free(ingot_tasks *tasks) {
    for (uint64_t i = 0; i < tasks->count; i++) {
        json_decref(tasks->items[i].json);
    }
    ingot_free(tasks->items);
    *tasks = (ingot_tasks){0};
}

/* ---- tokens -------------------------------------------------------------------------------- */

/* Context and one choice. */
typedef struct choice_tokens {
    uint32_t *ids;        /* [count], owned */
    uint64_t count, skip; /* tokens cut off at the left */
    uint64_t first;       /* scored from here */
    uint64_t index;       /* of the choice among all of all items */
} choice_tokens;

static uint64_t common_prefix(const uint32_t *a, uint64_t a_count, const uint32_t *b,
                              uint64_t b_count) {
    uint64_t n = 0;
    while (n < a_count && n < b_count && a[n] == b[n]) {
        n++;
    }
    return n;
}

/* Context and choice are tokenized together, so that the text is cut as it would be in use. */
static ingot_status encode_choice(choice_tokens *out, const ingot_item *item, uint64_t index,
                                  const ingot_tokenizer *tokenizer, ingot_error *error) {
    const json_t *choice = choice_at(item, index);
    const uint64_t choice_bytes = json_string_length(choice);
    void *text;
    INGOT_TRY(ingot_alloc(&text, item->context_bytes + choice_bytes));
    memcpy(text, item->context, item->context_bytes);
    memcpy((char *)text + item->context_bytes, json_string_value(choice), choice_bytes);
    const ingot_status status = ingot_tokenizer_encode(
        tokenizer, text, item->context_bytes + choice_bytes, &out->ids, &out->count, error);
    ingot_free(text);
    return status;
}

/* tokens[choice_count] of an item.  All its choices are scored from the same token on: the first in
 * which one of them differs from the context alone. */
static ingot_status encode_item(choice_tokens *tokens, const ingot_item *item, const char *path,
                                const ingot_tokenizer *tokenizer, uint64_t limit,
                                ingot_error *error) {
    uint32_t *ids;
    uint64_t first, longest = 0;
    INGOT_TRY(
        ingot_tokenizer_encode(tokenizer, item->context, item->context_bytes, &ids, &first, error));
    ingot_status status = INGOT_OK;
    for (uint64_t i = 0; i < item->choice_count; i++) {
        INGOT_GO(encode_choice(&tokens[i], item, i, tokenizer, error));
        first = common_prefix(ids, first, tokens[i].ids, tokens[i].count);
        longest = ingot_max_u64(longest, tokens[i].count);
    }
    const uint64_t skip = longest > limit ? longest - limit : 0;
    if (first <= skip) {
        status = malformed(path, item->line,
                           skip == 0 ? "the context gives no token of its own"
                                     : "a choice alone is as long as the context of the model",
                           error);
        goto done;
    }
    for (uint64_t i = 0; i < item->choice_count; i++) {
        if (tokens[i].count <= first) {
            status = malformed(path, item->line, "a choice adds no token to the context", error);
            goto done;
        }
        tokens[i].first = first;
        tokens[i].skip = skip;
    }
done:
    ingot_free(ids);
    return status;
}

/* Of several choices behind their contexts. */
typedef struct extent {
    double tokens, scored; /* of all; whose likelihood is asked for */
    double longest;        /* tokens of one */
} extent;

static void add_choices(extent *e, const choice_tokens *tokens, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        const double length = (double)(tokens[i].count - tokens[i].skip);
        e->tokens += length;
        e->scored += (double)(tokens[i].count - tokens[i].first);
        e->longest = fmax(e->longest, length);
    }
}

static ingot_status add_item(extent *e, const ingot_item *item, const char *path,
                             const ingot_tokenizer *tokenizer, uint64_t limit, ingot_error *error) {
    choice_tokens tokens[INGOT_TASK_CHOICES_MAX];
    memset(tokens, 0, sizeof tokens);
    const ingot_status status = encode_item(tokens, item, path, tokenizer, limit, error);
    add_choices(e, tokens, item->choice_count);
    for (uint64_t i = 0; i < item->choice_count; i++) {
        ingot_free(tokens[i].ids);
    }
    return status;
}

/* A token a byte. */
static void add_item_bytes(extent *e, const ingot_item *item) {
    for (uint64_t i = 0; i < item->choice_count; i++) {
        const choice_tokens one = {.count =
                                       item->context_bytes + json_string_length(choice_at(item, i)),
                                   .first = item->context_bytes};
        add_choices(e, &one, 1);
    }
}

ingot_status ingot_tasks_measure(ingot_tasks_size *out, const ingot_tasks *tasks, const char *path,
                                 const ingot_tokenizer *tokenizer, uint64_t context, uint64_t bytes,
                                 ingot_error *error) {
    extent tokenized = {0}, same = {0}, others = {0}; /* the latter two in bytes */
    double contexts = 0;
    for (uint64_t i = 0; i < tasks->count; i++) {
        const ingot_item *item = &tasks->items[i];
        const bool is_first = tokenizer != NULL && same.tokens < (double)bytes;
        if (is_first) {
            INGOT_TRY(add_item(&tokenized, item, path, tokenizer, context, error));
        }
        add_item_bytes(is_first ? &same : &others, item);
        contexts += (double)item->context_bytes;
    }
    const double each = same.tokens > 0 ? tokenized.tokens / same.tokens : 1;
    const double each_scored = same.scored > 0 ? tokenized.scored / same.scored : 1;
    const double choices = (double)tasks->choices;
    *out = (ingot_tasks_size){.items = tasks->count,
                              .choices = tasks->choices,
                              .text_bytes = (uint64_t)(contexts + same.scored + others.scored),
                              .tokens = (tokenized.tokens + each * others.tokens) / choices,
                              .scored = (tokenized.scored + each_scored * others.scored) / choices,
                              .longest = fmax(tokenized.longest, each * others.longest)};
    return INGOT_OK;
}

/* Longest first, so that too little memory shows at once; equal lengths side by side. */
static int compare_lengths(const void *a, const void *b) {
    const choice_tokens *x = a, *y = b;
    const uint64_t m = x->count - x->skip, n = y->count - y->skip;
    return m != n ? (m < n) - (m > n) : (x->index > y->index) - (x->index < y->index);
}

/* ---- answers ------------------------------------------------------------------------------- */

/* Everything between items and their answers. */
typedef struct task_scorer {
    choice_tokens *tokens; /* [choices], longest first once encoded */
    uint32_t *ids;         /* of all, one after the other */
    ingot_sequence *sequences;
    uint64_t scored;       /* tokens */
    double *nll[2];        /* [scored], candidate and source; source may be NULL */
    double *likelihood[2]; /* [choices], in the order of the file */
} task_scorer;

static void close_task_scorer(task_scorer *s, uint64_t choices) {
    for (uint64_t i = 0; s->tokens != NULL && i < choices; i++) {
        ingot_free(s->tokens[i].ids);
    }
    ingot_free(s->tokens);
    ingot_free(s->ids);
    ingot_free(s->sequences);
    for (unsigned side = 0; side < 2; side++) {
        ingot_free(s->nll[side]);
        ingot_free(s->likelihood[side]);
    }
}

static ingot_status encode_all(task_scorer *s, const ingot_tasks *tasks, const char *path,
                               const ingot_tokenizer *tokenizer, uint64_t limit,
                               ingot_error *error) {
    void *memory;
    uint64_t at = 0, count = 0;
    INGOT_TRY(ingot_alloc_zero(&memory, tasks->choices, sizeof *s->tokens));
    s->tokens = memory;
    for (uint64_t i = 0; i < tasks->count; i++) {
        INGOT_TRY(encode_item(s->tokens + at, &tasks->items[i], path, tokenizer, limit, error));
        at += tasks->items[i].choice_count;
    }
    for (uint64_t i = 0; i < tasks->choices; i++) {
        choice_tokens *one = &s->tokens[i];
        one->index = i;
        count += one->count - one->skip;
        s->scored += one->count - one->first;
    }
    qsort(s->tokens, tasks->choices, sizeof *s->tokens, compare_lengths);
    INGOT_TRY(ingot_alloc_zero(&memory, count, sizeof *s->ids));
    s->ids = memory;
    INGOT_TRY(ingot_alloc_zero(&memory, tasks->choices, sizeof *s->sequences));
    s->sequences = memory;
    at = 0;
    for (uint64_t i = 0; i < tasks->choices; i++) {
        const choice_tokens *one = &s->tokens[i];
        const uint64_t length = one->count - one->skip;
        s->sequences[i] = (ingot_sequence){length, one->first - one->skip};
        memcpy(s->ids + at, one->ids + one->skip, length * sizeof *s->ids);
        at += length;
    }
    return INGOT_OK;
}

static ingot_status add_side(task_scorer *s, unsigned side, uint64_t choices) {
    void *memory;
    INGOT_TRY(ingot_alloc_zero(&memory, s->scored, sizeof(double)));
    s->nll[side] = memory;
    INGOT_TRY(ingot_alloc_zero(&memory, choices, sizeof(double)));
    s->likelihood[side] = memory;
    return INGOT_OK;
}

/* Log-likelihoods of the choices, from those of their tokens. */
static void sum_choices(task_scorer *s, unsigned side, uint64_t choices) {
    const double *nll = s->nll[side];
    for (uint64_t i = 0; i < choices; i++) {
        double total = 0;
        for (uint64_t k = s->sequences[i].first; k < s->sequences[i].length; k++) {
            total -= *nll++;
        }
        s->likelihood[side][s->tokens[i].index] = total;
    }
}

uint64_t ingot_tasks_bytes(uint64_t *read, const ingot_tasks_size *size) {
    const uint64_t held =
        size->items * ITEM_BYTES + size->choices * CHOICE_BYTES + size->text_bytes;
    /* likelihoods by both; ids of all, and before in buffers that grow by doubling */
    const uint64_t choice =
        sizeof(choice_tokens) + sizeof(ingot_sequence) + 2 * sizeof(double) + 2 * sizeof(void *);
    const double tokens = (double)size->choices *
                          (size->tokens * 3 * sizeof(uint32_t) + size->scored * 2 * sizeof(double));
    if (read != NULL) {
        *read = held;
    }
    return held + size->choices * choice + size->items * sizeof(ingot_task_answer) +
           (uint64_t)tokens;
}

/* The choice with the largest likelihood per byte, the first on ties. */
static uint32_t best_choice(const ingot_item *item, const double *likelihood) {
    uint32_t best = 0;
    double best_score = -INFINITY;
    for (uint32_t i = 0; i < item->choice_count; i++) {
        const double score = likelihood[i] / (double)json_string_length(choice_at(item, i));
        if (score > best_score) {
            best = i;
            best_score = score;
        }
    }
    return best;
}

void ingot_paired_interval(double *low, double *high, uint64_t items, uint64_t lost,
                           uint64_t gained) {
    const double n = (double)items + 2;
    const double p = ((double)lost + 1) / n, q = ((double)gained + 1) / n;
    const double half = NORMAL_975 * sqrt((p + q - (p - q) * (p - q)) / n);
    *low = p - q - half;
    *high = p - q + half;
}

static void count_answers(ingot_task_score *out, const ingot_tasks *tasks, const task_scorer *s) {
    const bool has_source = s->likelihood[1] != NULL;
    uint64_t at = 0;
    out->items = tasks->count;
    for (uint64_t i = 0; i < tasks->count; i++) {
        const ingot_item *item = &tasks->items[i];
        ingot_task_answer *answer = &out->answers[i];
        answer->candidate = best_choice(item, s->likelihood[0] + at);
        answer->source = has_source ? best_choice(item, s->likelihood[1] + at) : UINT32_MAX;
        const bool is_right = answer->candidate == item->answer;
        const bool was_right = answer->source == item->answer;
        out->correct += is_right;
        out->source_correct += was_right;
        if (has_source) {
            out->lost += was_right && !is_right;
            out->gained += is_right && !was_right;
            out->changed += answer->candidate != answer->source;
        }
        at += item->choice_count;
    }
    const double n = (double)out->items;
    out->accuracy = (double)out->correct / n;
    if (has_source) {
        out->source_accuracy = (double)out->source_correct / n;
        out->drop = ((double)out->lost - (double)out->gained) / n;
        ingot_paired_interval(&out->drop_low, &out->drop_high, out->items, out->lost, out->gained);
    }
}

void ingot_task_score_init(ingot_task_score *out) {
    *out = (ingot_task_score){
        .accuracy = NAN, .source_accuracy = NAN, .drop = NAN, .drop_low = NAN, .drop_high = NAN};
}

ingot_status ingot_tasks_score(ingot_task_score *out, const ingot_tasks *tasks, const char *path,
                               const ingot_tokenizer *tokenizer, uint64_t context,
                               const ingot_model *model, const ingot_weight_source *candidate,
                               const ingot_weight_source *source, const ingot_backend *backend,
                               uint64_t batch_bytes, ingot_progress *progress, ingot_error *error) {
    task_scorer s = {0};
    void *answers = NULL;
    ingot_error local;
    memset(&local, 0, sizeof local);
    ingot_task_score_init(out);
    ingot_status status = INGOT_OK;
    INGOT_GO(encode_all(&s, tasks, path, tokenizer, context, &local));
    INGOT_GO(add_side(&s, 0, tasks->choices));
    if (source != NULL) {
        INGOT_GO(add_side(&s, 1, tasks->choices));
    }
    INGOT_GO(ingot_alloc_zero(&answers, tasks->count, sizeof *out->answers));
    const ingot_sequences sequences = {s.ids, s.sequences, tasks->choices};
    INGOT_GO(ingot_score_sequences(s.nll[0], s.nll[1], model, candidate, source, &sequences,
                                   backend, batch_bytes, progress, &local));
    sum_choices(&s, 0, tasks->choices);
    if (source != NULL) {
        sum_choices(&s, 1, tasks->choices);
    }
    out->answers = answers;
    answers = NULL;
    count_answers(out, tasks, &s);
done:
    ingot_free(answers);
    close_task_scorer(&s, tasks->choices);
    if (status != INGOT_OK && error != NULL) {
        if (local.status != status) {
            (void)no_memory(path, &local);
            local.status = status;
        }
        *error = local;
    }
    return status;
}

void ingot_task_score_free(ingot_task_score *score) {
    ingot_free(score->answers);
    ingot_task_score_init(score);
}
