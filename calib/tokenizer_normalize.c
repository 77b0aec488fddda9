/* Normalizers: what happens to a piece of text before it is split.
 * Unicode normalization follows UAX #15 with utf8proc's data. */
#include "calib/tokenizer_parts.h"
#include "common/sizes.h"

#include <string.h>
#include <utf8proc.h>

/* No character below this one combines with a character before it, changes under NFC or has a
 * combining class: text can be cut before each of them. */
#define FIRST_COMBINING 0x300u
#define RUN_BYTES_MAX   (1ull << 28)

void ingot_tok_normalizer_free(ingot_tok_normalizer *normalizer) {
    ingot_tok_pattern_free(&normalizer->pattern);
    ingot_free(normalizer->content);
    *normalizer = (ingot_tok_normalizer){0};
}

static utf8proc_propval_t combining_class(int32_t c) {
    return utf8proc_get_property(c)->combining_class;
}

/* Stable counting sort of marks[count] by combining class: linear, where a sort by exchange is
 * quadratic in a long run of marks. */
static ingot_status sort_marks(int32_t *marks, uint64_t count) {
    bool is_sorted = true;
    for (uint64_t i = 1; i < count && is_sorted; i++) {
        is_sorted = combining_class(marks[i - 1]) <= combining_class(marks[i]);
    }
    if (is_sorted) {
        return INGOT_OK;
    }
    void *copy;
    INGOT_TRY(ingot_alloc(&copy, count * sizeof(*marks)));
    memcpy(copy, marks, count * sizeof(*marks));
    uint64_t place[257] = {0};
    for (uint64_t i = 0; i < count; i++) {
        place[(combining_class(marks[i]) & 0xFF) + 1]++;
    }
    for (unsigned c = 1; c < 257; c++) {
        place[c] += place[c - 1];
    }
    for (uint64_t i = 0; i < count; i++) {
        const int32_t c = ((const int32_t *)copy)[i];
        marks[place[combining_class(c) & 0xFF]++] = c;
    }
    ingot_free(copy);
    return INGOT_OK;
}

/* Decomposes, orders and (where asked) composes text, and appends it. */
static ingot_status normalize_run(ingot_tok_bytes *out, const char *text, uint64_t size,
                                  int options) {
    if (size > RUN_BYTES_MAX) {
        return INGOT_ERR_NO_MEMORY;
    }
    ingot_status status = INGOT_OK;
    ingot_tok_bytes points = {0}; /* int32_t; a character decomposes into 18 at most */
    for (uint64_t at = 0; at < size;) {
        const int32_t c = (int32_t)ingot_tok_next(text, &at);
        INGOT_GO(ingot_tok_reserve(&points, 32 * sizeof(int32_t)));
        int boundary = 0;
        const utf8proc_ssize_t n =
            utf8proc_decompose_char(c, (int32_t *)(void *)(points.data + points.size), 32,
                                    (utf8proc_option_t)options, &boundary);
        if (n < 0 || n > 32) {
            status = INGOT_ERR_INTERNAL;
            goto done;
        }
        points.size += (uint64_t)n * sizeof(int32_t);
    }
    int32_t *p = (int32_t *)(void *)points.data;
    uint64_t count = points.size / sizeof(int32_t);
    for (uint64_t i = 0; i < count;) {
        uint64_t end = i;
        while (end < count && combining_class(p[end]) != 0) {
            end++;
        }
        INGOT_GO(sort_marks(p + i, end - i));
        i = end + 1;
    }
    if ((options & UTF8PROC_COMPOSE) != 0 && count != 0) {
        const utf8proc_ssize_t n = utf8proc_normalize_utf32(
            p, (utf8proc_ssize_t)count, (utf8proc_option_t)(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
        if (n < 0) {
            status = INGOT_ERR_INTERNAL;
            goto done;
        }
        count = (uint64_t)n;
    }
    for (uint64_t i = 0; i < count; i++) {
        INGOT_GO(ingot_tok_append_char(out, (uint32_t)p[i]));
    }
done:
    ingot_tok_bytes_free(&points);
    return status;
}

/* Runs that contain nothing at or above FIRST_COMBINING are copied; NFC leaves them alone. */
static ingot_status normalize_nfc(ingot_tok_bytes *out, const char *text, uint64_t size) {
    uint64_t copied = 0, previous = 0;
    for (uint64_t at = 0; at < size;) {
        const uint64_t start = at;
        if (ingot_tok_next(text, &at) < FIRST_COMBINING) {
            previous = start;
            continue;
        }
        /* The character before may compose with this one, so the run begins with it. */
        const uint64_t run = previous > copied ? previous : copied;
        uint64_t end = at;
        while (end < size) {
            uint64_t next = end;
            if (ingot_tok_next(text, &next) < FIRST_COMBINING) {
                break;
            }
            end = next;
        }
        INGOT_TRY(ingot_tok_append(out, text + copied, run - copied));
        INGOT_TRY(normalize_run(out, text + run, end - run, UTF8PROC_COMPOSE | UTF8PROC_STABLE));
        copied = previous = at = end;
    }
    return ingot_tok_append(out, text + copied, size - copied);
}

static ingot_status lowercase(ingot_tok_bytes *out, const char *text, uint64_t size) {
    for (uint64_t at = 0; at < size;) {
        const uint32_t c = ingot_tok_next(text, &at);
        INGOT_TRY(ingot_tok_append_char(out, (uint32_t)utf8proc_tolower((int32_t)c)));
        if (c == 0x130) { /* the one character whose lower case is two: i and a dot above */
            out->size -= 1;
            INGOT_TRY(ingot_tok_append(out, "i\xCC\x87", 3));
        }
    }
    return INGOT_OK;
}

static void strip(const ingot_tok_normalizer *step, const char **text, uint64_t *size) {
    uint64_t start = 0, end = *size;
    for (uint64_t at = 0; step->left && at < end; start = at) {
        if (!ingot_tok_is_space(ingot_tok_next(*text, &at))) {
            break;
        }
    }
    while (step->right && end > start) {
        const uint64_t before = ingot_tok_previous(*text, end);
        uint64_t at = before;
        if (!ingot_tok_is_space(ingot_tok_next(*text, &at))) {
            break;
        }
        end = before;
    }
    *text += start;
    *size = end - start;
}

static ingot_status normalize_step(const ingot_tok_normalizer *step, ingot_tok_matcher *matcher,
                                   ingot_tok_bytes *out, const char *text, uint64_t size,
                                   ingot_error *error) {
    const int compatible = UTF8PROC_COMPAT | UTF8PROC_STABLE;
    switch (step->kind) {
    case INGOT_TOK_NFC:
        return normalize_nfc(out, text, size);
    case INGOT_TOK_NFD:
        return normalize_run(out, text, size, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE);
    case INGOT_TOK_NFKC:
        return normalize_run(out, text, size, UTF8PROC_COMPOSE | compatible);
    case INGOT_TOK_NFKD:
        return normalize_run(out, text, size, UTF8PROC_DECOMPOSE | compatible);
    case INGOT_TOK_LOWERCASE:
        return lowercase(out, text, size);
    case INGOT_TOK_PREPEND:
        INGOT_TRY(ingot_tok_append(out, step->content, size == 0 ? 0 : step->content_size));
        return ingot_tok_append(out, text, size);
    case INGOT_TOK_REPLACE:
        return ingot_tok_pattern_replace(&step->pattern, matcher, out, text, size, step->content,
                                         step->content_size, error);
    case INGOT_TOK_NORMALIZE_BYTES:
        return ingot_tok_append_byte_level(out, text, size);
    case INGOT_TOK_STRIP:
        break;
    }
    return INGOT_ERR_INTERNAL;
}

ingot_status ingot_tok_normalize(const ingot_tok_normalizer *steps, uint64_t count,
                                 ingot_tok_matcher *matcher, ingot_tok_bytes buffers[2],
                                 const char **out, uint64_t *out_size, const char *text,
                                 uint64_t size, ingot_error *error) {
    ingot_tok_bytes *next = &buffers[0];
    for (uint64_t i = 0; i < count; i++) {
        if (steps[i].kind == INGOT_TOK_STRIP) {
            strip(&steps[i], &text, &size);
            continue;
        }
        if (steps[i].kind <= INGOT_TOK_NFKD && ingot_tok_is_ascii(text, size)) {
            continue; /* ASCII is in every normal form */
        }
        next->size = 0;
        INGOT_TRY(normalize_step(&steps[i], matcher, next, text, size, error));
        text = next->size == 0 ? "" : next->data;
        size = next->size;
        next = next == &buffers[0] ? &buffers[1] : &buffers[0];
    }
    *out = text;
    *out_size = size;
    return INGOT_OK;
}
