/* Pre-tokenizers: from a normalized piece of text to words.
 *
 * The `tokenizers` library applies one pre-tokenizer to all pieces, then the next.  Here a piece
 * goes through all of them before the next piece is cut; pre-tokenizers do not look beyond a piece,
 * so the words are the same and no list of pieces is kept. */
#include "calib/tokenizer_parts.h"
#include "common/files.h"

#include <string.h>

void ingot_tok_stage_free(ingot_tok_stage *stage) {
    ingot_tok_pattern_free(&stage->pattern);
    ingot_free(stage->content);
    *stage = (ingot_tok_stage){0};
}

/* Segments of one piece on their way to the next stage; `pending` waits for its neighbour where
 * the behavior merges segments. */
typedef struct splitter {
    ingot_tok_run *run;
    uint64_t index; /* of the stage */
    const char *text;
    bool is_start;
    bool has_pending, is_pending_match, is_previous_match;
    uint64_t pending_start, pending_end;
} splitter;

static ingot_status emit(splitter *s, uint64_t start, uint64_t end, ingot_error *error) {
    return ingot_tok_split(s->run, s->index + 1, s->text + start, end - start,
                           s->is_start && start == 0, error);
}

static ingot_status flush(splitter *s, ingot_error *error) {
    if (!s->has_pending) {
        return INGOT_OK;
    }
    s->has_pending = false;
    return emit(s, s->pending_start, s->pending_end, error);
}

static ingot_status take_segment(void *context, uint64_t start, uint64_t end, bool is_match,
                                 ingot_error *error) {
    splitter *s = context;
    const ingot_tok_stage *stage = &s->run->tokenizer->stages[s->index];
    is_match = is_match != stage->is_inverted;
    bool merges = false;
    switch (stage->behavior) {
    case INGOT_TOK_REMOVED:
        return is_match ? INGOT_OK : emit(s, start, end, error);
    case INGOT_TOK_ISOLATED:
        return emit(s, start, end, error);
    case INGOT_TOK_CONTIGUOUS:
        merges = is_match == s->is_previous_match;
        break;
    case INGOT_TOK_MERGED_WITH_PREVIOUS:
        merges = is_match && !s->is_previous_match;
        break;
    case INGOT_TOK_MERGED_WITH_NEXT:
        merges = s->is_pending_match && !is_match;
        break;
    }
    s->is_previous_match = is_match;
    if (s->has_pending && merges) {
        s->pending_end = end;
        s->is_pending_match = false;
        return INGOT_OK;
    }
    INGOT_TRY(flush(s, error));
    s->has_pending = true;
    s->is_pending_match = is_match;
    s->pending_start = start;
    s->pending_end = end;
    return INGOT_OK;
}

static ingot_status class_segments(splitter *s, const ingot_tok_stage *stage, uint64_t size,
                                   ingot_error *error) {
    uint64_t covered = 0;
    for (uint64_t at = 0; at < size;) {
        const uint64_t start = at;
        if (!stage->is_class(ingot_tok_next(s->text, &at))) {
            continue;
        }
        if (covered < start) {
            INGOT_TRY(take_segment(s, covered, start, false, error));
        }
        INGOT_TRY(take_segment(s, start, at, true, error));
        covered = at;
    }
    return covered < size ? take_segment(s, covered, size, false, error) : INGOT_OK;
}

static ingot_status replace_spaces(ingot_tok_bytes *out, const ingot_tok_stage *stage,
                                   const char *text, uint64_t size) {
    while (size != 0) {
        const char *space = memchr(text, ' ', size);
        const uint64_t before = space == NULL ? size : (uint64_t)(space - text);
        INGOT_TRY(ingot_tok_append(out, text, before));
        if (space == NULL) {
            break;
        }
        INGOT_TRY(ingot_tok_append(out, stage->content, stage->content_size));
        text += before + 1;
        size -= before + 1;
    }
    return INGOT_OK;
}

static bool begins_with(const char *text, uint64_t size, const ingot_tok_stage *stage) {
    return size >= stage->content_size && memcmp(text, stage->content, stage->content_size) == 0;
}

/* Stages that rewrite the piece; buffer is the stage's own. */
static ingot_status rewrite(const ingot_tok_stage *stage, ingot_tok_bytes *buffer,
                            const char **text, uint64_t *size, bool is_start) {
    buffer->size = 0;
    switch (stage->kind) {
    case INGOT_TOK_PREFIX:
        if (begins_with(*text, *size, stage) || (stage->is_first_only && !is_start)) {
            return INGOT_OK;
        }
        INGOT_TRY(ingot_tok_append(buffer, stage->content, stage->content_size));
        INGOT_TRY(ingot_tok_append(buffer, *text, *size));
        break;
    case INGOT_TOK_SPACES:
        INGOT_TRY(replace_spaces(buffer, stage, *text, *size));
        break;
    default:
        INGOT_TRY(ingot_tok_append_byte_level(buffer, *text, *size));
        break;
    }
    *text = buffer->data;
    *size = buffer->size;
    return INGOT_OK;
}

ingot_status ingot_tok_split(ingot_tok_run *run, uint64_t index, const char *text, uint64_t size,
                             bool is_start, ingot_error *error) {
    const ingot_tokenizer *t = run->tokenizer;
    if (size == 0) {
        return INGOT_OK;
    }
    const ingot_tok_stage *stage = &t->stages[index];
    /* A byte-level alphabet at the end is left to the model, whose word cache is asked first. */
    const bool is_last_bytes = index + 1 == t->stage_count && stage->kind == INGOT_TOK_BYTES;
    if (index == t->stage_count || is_last_bytes) {
        INGOT_TRY(ingot_interrupt_check(error)); /* a gigabyte of text takes half a minute */
        return ingot_tok_bpe_word(&t->bpe, &run->words, text, size, is_last_bytes, t->path, error);
    }
    if (stage->kind != INGOT_TOK_SPLIT_PATTERN && stage->kind != INGOT_TOK_SPLIT_CLASS) {
        INGOT_TRY(rewrite(stage, &run->stage[index], &text, &size, is_start));
        return ingot_tok_split(run, index + 1, text, size, is_start, error);
    }
    splitter s = {.run = run, .index = index, .text = text, .is_start = is_start};
    if (stage->kind == INGOT_TOK_SPLIT_CLASS) {
        INGOT_TRY(class_segments(&s, stage, size, error));
    } else {
        INGOT_TRY(ingot_tok_pattern_segments(&stage->pattern, &run->matcher, text, size,
                                             take_segment, &s, error));
    }
    return flush(&s, error);
}
