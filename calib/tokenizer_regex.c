/* Patterns: literals, and regular expressions on PCRE2 (UTF, UCP, JIT).
 *
 * The `tokenizers` library runs expressions with Oniguruma in its Ruby syntax; tokenizer_syntax.c
 * writes them for PCRE2.  Every match runs under a limit: running into it is an error status,
 * never a silent difference in the tokens. */
#include "calib/tokenizer_parts.h"
#include "common/sizes.h"

#include <string.h>

#define JIT_STACK_START_BYTES (32u << 10)
#define JIT_STACK_MAX_BYTES   (64u << 20)
#define HEAP_LIMIT_KIB        (512u << 10)
/* Expressions of real tokenizers back up over a piece once or twice; an expression that needs more
 * than some steps a byte is exponential. */
#define MATCH_STEPS_MIN      1000000u
#define MATCH_STEPS_PER_BYTE 16u
#define PATTERN_BYTES_MAX    (32u << 10)

ingot_status ingot_tok_pattern_literal(ingot_tok_pattern *out, const char *text, uint64_t size,
                                       const char *path, ingot_error *error) {
    *out = (ingot_tok_pattern){0};
    if (size == 0) {
        return ingot_error_set(error, INGOT_ERR_UNSUPPORTED, path, NULL, NULL,
                               "a component of the tokenizer has an empty pattern");
    }
    INGOT_TRY(ingot_tok_copy(&out->source, text, size));
    out->source_size = size;
    return INGOT_OK;
}

static ingot_status regex_refuse(ingot_error *error, const char *path, const char *source,
                                 const char *reason) {
    return ingot_error_set(error, INGOT_ERR_UNSUPPORTED, path, NULL, NULL,
                           "the tokenizer's regular expression \"%.200s\" is not supported: %s",
                           source, reason);
}

ingot_status ingot_tok_pattern_regex(ingot_tok_pattern *out, const char *text, uint64_t size,
                                     const char *path, ingot_error *error) {
    ingot_tok_bytes translated = {0};
    pcre2_compile_context *context = NULL;
    ingot_status status;
    INGOT_TRY(ingot_tok_pattern_literal(out, text, size, path, error));
    const char *reason = NULL;
    status = size > PATTERN_BYTES_MAX ? INGOT_ERR_UNSUPPORTED
                                      : ingot_tok_regex_translate(&translated, text, size, &reason);
    if (status == INGOT_ERR_UNSUPPORTED) {
        status = regex_refuse(error, path, out->source, reason == NULL ? "too long" : reason);
    }
    if (status != INGOT_OK) {
        goto done;
    }
    context = pcre2_compile_context_create(NULL);
    if (context == NULL) {
        status = INGOT_ERR_NO_MEMORY;
        goto done;
    }
    (void)pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int code;
    PCRE2_SIZE offset;
    out->code = pcre2_compile((PCRE2_SPTR)translated.data, translated.size,
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                              &code, &offset, context);
    if (out->code == NULL) {
        char message[128];
        (void)pcre2_get_error_message(code, (PCRE2_UCHAR *)message, sizeof(message));
        status = regex_refuse(error, path, out->source, message);
        goto done;
    }
    out->has_jit = pcre2_jit_compile(out->code, PCRE2_JIT_COMPLETE) == 0;
done:
    pcre2_compile_context_free(context);
    ingot_tok_bytes_free(&translated);
    if (status != INGOT_OK) {
        ingot_tok_pattern_free(out);
    }
    return status;
}

void ingot_tok_pattern_free(ingot_tok_pattern *pattern) {
    ingot_free(pattern->source);
    pcre2_code_free(pattern->code);
    *pattern = (ingot_tok_pattern){0};
}

ingot_status ingot_tok_matcher_create(ingot_tok_matcher *out, uint64_t text_size,
                                      const char *path) {
    *out = (ingot_tok_matcher){.path = path};
    out->data = pcre2_match_data_create(1, NULL);
    out->context = pcre2_match_context_create(NULL);
    out->stack = pcre2_jit_stack_create(JIT_STACK_START_BYTES, JIT_STACK_MAX_BYTES, NULL);
    if (out->data == NULL || out->context == NULL) {
        ingot_tok_matcher_destroy(out);
        return INGOT_ERR_NO_MEMORY;
    }
    /* Without a stack of our own the JIT uses the 32 KiB of the machine stack. */
    if (out->stack != NULL) {
        pcre2_jit_stack_assign(out->context, NULL, out->stack);
    }
    const uint64_t steps =
        MATCH_STEPS_MIN + MATCH_STEPS_PER_BYTE * ingot_min_u64(text_size, UINT32_MAX);
    (void)pcre2_set_match_limit(out->context, (uint32_t)ingot_min_u64(steps, UINT32_MAX));
    (void)pcre2_set_heap_limit(out->context, HEAP_LIMIT_KIB);
    return INGOT_OK;
}

void ingot_tok_matcher_destroy(ingot_tok_matcher *matcher) {
    pcre2_match_data_free(matcher->data);
    pcre2_match_context_free(matcher->context);
    pcre2_jit_stack_free(matcher->stack);
    *matcher = (ingot_tok_matcher){0};
}

/* *start = size + 1 when there is no match. */
static ingot_status find_regex(const ingot_tok_pattern *pattern, ingot_tok_matcher *matcher,
                               const char *text, uint64_t size, uint64_t from, uint64_t *start,
                               uint64_t *end, ingot_error *error) {
    int code = PCRE2_ERROR_JIT_STACKLIMIT;
    if (pattern->has_jit) {
        code = pcre2_jit_match(pattern->code, (PCRE2_SPTR)text, size, from, PCRE2_NO_UTF_CHECK,
                               matcher->data, matcher->context);
    }
    if (code == PCRE2_ERROR_JIT_STACKLIMIT) { /* the interpreter keeps its stack on the heap */
        code = pcre2_match(pattern->code, (PCRE2_SPTR)text, size, from,
                           PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, matcher->data, matcher->context);
    }
    if (code == PCRE2_ERROR_NOMATCH) {
        *start = *end = size + 1;
        return INGOT_OK;
    }
    if (code < 0) {
        char message[128];
        (void)pcre2_get_error_message(code, (PCRE2_UCHAR *)message, sizeof(message));
        return ingot_error_set(
            error, INGOT_ERR_INPUT, matcher->path, NULL, "break very long lines of the text",
            "the regular expression \"%.200s\" gave up at byte %llu of a piece "
            "of %llu: %s",
            pattern->source, (unsigned long long)from, (unsigned long long)size, message);
    }
    const PCRE2_SIZE *range = pcre2_get_ovector_pointer(matcher->data);
    /* \K inside a lookaround can set a start before `from` or beyond the end. */
    if (range[0] < from || range[1] < range[0]) {
        return regex_refuse(error, matcher->path, pattern->source, "a match moves backwards");
    }
    *start = range[0];
    *end = range[1];
    return INGOT_OK;
}

static ingot_status find(const ingot_tok_pattern *pattern, ingot_tok_matcher *matcher,
                         const char *text, uint64_t size, uint64_t from, uint64_t *start,
                         uint64_t *end, ingot_error *error) {
    if (pattern->code != NULL) {
        return find_regex(pattern, matcher, text, size, from, start, end, error);
    }
    const char *hit = memmem(text + from, size - from, pattern->source, pattern->source_size);
    *start = hit == NULL ? size + 1 : (uint64_t)(hit - text);
    *end = *start + pattern->source_size;
    return INGOT_OK;
}

ingot_status ingot_tok_pattern_segments(const ingot_tok_pattern *pattern,
                                        ingot_tok_matcher *matcher, const char *text, uint64_t size,
                                        ingot_tok_segment segment, void *context,
                                        ingot_error *error) {
    uint64_t covered = 0, from = 0;
    bool has_match = false;
    while (from <= size && size != 0) {
        uint64_t start = 0, end = 0;
        INGOT_TRY(find(pattern, matcher, text, size, from, &start, &end, error));
        if (start > size) {
            break;
        }
        if (start == end && has_match && end == covered) {
            /* An empty match right after a match does not count; look one character further. */
            if (from >= size) {
                break;
            }
            (void)ingot_tok_next(text, &from);
            continue;
        }
        if (covered != start) {
            INGOT_TRY(segment(context, covered, start, false, error));
        }
        INGOT_TRY(segment(context, start, end, true, error));
        covered = from = end;
        has_match = true;
    }
    return covered == size ? INGOT_OK : segment(context, covered, size, false, error);
}

typedef struct replacing {
    ingot_tok_bytes *out;
    const char *text, *content;
    uint64_t content_size;
} replacing;

static ingot_status replace_segment(void *context, uint64_t start, uint64_t end, bool is_match,
                                    ingot_error *error) {
    const replacing *r = context;
    (void)error;
    return is_match ? ingot_tok_append(r->out, r->content, r->content_size)
                    : ingot_tok_append(r->out, r->text + start, end - start);
}

ingot_status ingot_tok_pattern_replace(const ingot_tok_pattern *pattern, ingot_tok_matcher *matcher,
                                       ingot_tok_bytes *out, const char *text, uint64_t size,
                                       const char *content, uint64_t content_size,
                                       ingot_error *error) {
    replacing context = {out, text, content, content_size};
    return ingot_tok_pattern_segments(pattern, matcher, text, size, replace_segment, &context,
                                      error);
}
