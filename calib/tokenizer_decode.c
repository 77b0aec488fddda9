/* Decoders: from the texts of tokens to text. */
#include "calib/tokenizer_parts.h"

#include <string.h>

void ingot_tok_decoder_free(ingot_tok_decoder *decoder) {
    ingot_tok_pattern_free(&decoder->pattern);
    ingot_free(decoder->content);
    *decoder = (ingot_tok_decoder){0};
}

ingot_status ingot_tok_list_close(ingot_tok_list *list) {
    return ingot_tok_append(&list->ends, (const char *)&list->text.size, sizeof(uint64_t));
}

uint64_t ingot_tok_list_count(const ingot_tok_list *list) {
    return list->ends.size / sizeof(uint64_t);
}

void ingot_tok_list_free(ingot_tok_list *list) {
    ingot_tok_bytes_free(&list->text);
    ingot_tok_bytes_free(&list->ends);
}

static const char *list_item(const ingot_tok_list *list, uint64_t index, uint64_t *size) {
    uint64_t range[2] = {0, 0}; /* where the previous item and this one end */
    if (index != 0) {
        memcpy(range, list->ends.data + (index - 1) * sizeof(uint64_t), sizeof(range));
    } else {
        memcpy(&range[1], list->ends.data, sizeof(uint64_t));
    }
    *size = range[1] - range[0];
    return *size == 0 ? "" : list->text.data + range[0];
}

/* The bytes of a token in the byte-level alphabet; a token that is not in it stands for itself. */
static ingot_status append_bytes(ingot_tok_bytes *out, const char *text, uint64_t size) {
    const uint64_t start = out->size;
    INGOT_TRY(ingot_tok_reserve(out, size));
    for (uint64_t at = 0; at < size;) {
        uint8_t byte;
        if (!ingot_tok_char_byte(ingot_tok_next(text, &at), &byte)) {
            out->size = start;
            return ingot_tok_append(out, text, size);
        }
        out->data[out->size++] = (char)byte;
    }
    return INGOT_OK;
}

static ingot_status decode_byte_level(ingot_tok_list *out, const ingot_tok_list *in) {
    ingot_tok_bytes bytes = {0};
    ingot_status status = INGOT_OK;
    for (uint64_t i = 0; i < ingot_tok_list_count(in); i++) {
        uint64_t size;
        const char *text = list_item(in, i, &size);
        INGOT_GO(append_bytes(&bytes, text, size));
    }
    bool is_valid;
    INGOT_GO(ingot_tok_sanitize(&out->text, &is_valid, bytes.data, bytes.size));
    if (is_valid) {
        INGOT_GO(ingot_tok_append(&out->text, bytes.data, bytes.size));
    }
    status = ingot_tok_list_close(out);
done:
    ingot_tok_bytes_free(&bytes);
    return status;
}

/* True for "<0xHH>". */
static bool is_byte_token(const char *text, uint64_t size, uint8_t *byte) {
    if (size != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') {
        return false;
    }
    unsigned value = 0;
    for (unsigned i = 3; i < 5; i++) {
        const char c = text[i];
        if (c >= '0' && c <= '9') {
            value = value * 16 + (unsigned)(c - '0');
        } else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f') {
            value = value * 16 + (unsigned)((c | 0x20) - 'a') + 10;
        } else if (c == '+' && i == 3) {
            value = 0; /* the library's number parser takes a sign */
        } else {
            return false;
        }
    }
    *byte = (uint8_t)value;
    return true;
}

/* A run of byte tokens becomes its text, or as many U+FFFD as it has bytes when it is no UTF-8. */
static ingot_status close_run(ingot_tok_list *out, ingot_tok_bytes *run) {
    if (run->size == 0) {
        return INGOT_OK;
    }
    bool is_valid;
    ingot_tok_bytes repaired = {0};
    const ingot_status status = ingot_tok_sanitize(&repaired, &is_valid, run->data, run->size);
    ingot_tok_bytes_free(&repaired);
    INGOT_TRY(status);
    const uint64_t count = is_valid ? 1 : run->size;
    for (uint64_t i = 0; i < count; i++) {
        if (is_valid) {
            INGOT_TRY(ingot_tok_append(&out->text, run->data, run->size));
        } else {
            INGOT_TRY(ingot_tok_append_char(&out->text, 0xFFFD));
        }
        INGOT_TRY(ingot_tok_list_close(out));
    }
    run->size = 0;
    return INGOT_OK;
}

static ingot_status decode_byte_fallback(ingot_tok_list *out, const ingot_tok_list *in) {
    ingot_tok_bytes run = {0};
    ingot_status status = INGOT_OK;
    for (uint64_t i = 0; i < ingot_tok_list_count(in); i++) {
        uint64_t size;
        const char *text = list_item(in, i, &size);
        uint8_t byte;
        if (is_byte_token(text, size, &byte)) {
            INGOT_GO(ingot_tok_append(&run, (const char *)&byte, 1));
            continue;
        }
        INGOT_GO(close_run(out, &run));
        INGOT_GO(ingot_tok_append(&out->text, text, size));
        INGOT_GO(ingot_tok_list_close(out));
    }
    status = close_run(out, &run);
done:
    ingot_tok_bytes_free(&run);
    return status;
}

/* Every replacement character becomes a space; those of the first token vanish where the
 * pre-tokenizer prepends one. */
static ingot_status decode_metaspace(const ingot_tok_decoder *step, ingot_tok_bytes *out,
                                     const char *text, uint64_t size, bool is_first) {
    for (uint64_t at = 0; at < size;) {
        const uint64_t start = at;
        (void)ingot_tok_next(text, &at);
        if (at - start != step->content_size ||
            memcmp(text + start, step->content, at - start) != 0) {
            INGOT_TRY(ingot_tok_append(out, text + start, at - start));
        } else if (!is_first || !step->drops_first_prefix) {
            INGOT_TRY(ingot_tok_append(out, " ", 1));
        }
    }
    return INGOT_OK;
}

static ingot_status decode_strip(const ingot_tok_decoder *step, ingot_tok_bytes *out,
                                 const char *text, uint64_t size) {
    const uint64_t length = step->content_size;
    uint64_t start = 0, end = size;
    for (uint64_t i = 0; i < step->start && size - start >= length; i++) {
        if (memcmp(text + start, step->content, length) != 0) {
            break;
        }
        start += length;
    }
    for (uint64_t i = 0; i < step->stop && end - start >= length; i++) {
        if (memcmp(text + end - length, step->content, length) != 0) {
            break;
        }
        end -= length;
    }
    return ingot_tok_append(out, text + start, end - start);
}

static ingot_status decode_each(const ingot_tok_decoder *step, ingot_tok_matcher *matcher,
                                ingot_tok_list *out, const ingot_tok_list *in, ingot_error *error) {
    for (uint64_t i = 0; i < ingot_tok_list_count(in); i++) {
        uint64_t size;
        const char *text = list_item(in, i, &size);
        if (step->kind == INGOT_TOK_DECODE_METASPACE) {
            INGOT_TRY(decode_metaspace(step, &out->text, text, size, i == 0));
        } else if (step->kind == INGOT_TOK_DECODE_STRIP) {
            INGOT_TRY(decode_strip(step, &out->text, text, size));
        } else {
            INGOT_TRY(ingot_tok_pattern_replace(&step->pattern, matcher, &out->text, text, size,
                                                step->content, step->content_size, error));
        }
        INGOT_TRY(ingot_tok_list_close(out));
    }
    return INGOT_OK;
}

ingot_status ingot_tok_decode(const ingot_tok_decoder *steps, uint64_t count,
                              ingot_tok_matcher *matcher, ingot_tok_list *list,
                              ingot_error *error) {
    for (uint64_t i = 0; i < count; i++) {
        if (steps[i].kind == INGOT_TOK_DECODE_FUSE) {
            list->ends.size = 0;
            INGOT_TRY(ingot_tok_list_close(list));
            continue;
        }
        ingot_tok_list out = {0};
        ingot_status status;
        if (steps[i].kind == INGOT_TOK_DECODE_BYTE_LEVEL) {
            status = decode_byte_level(&out, list);
        } else if (steps[i].kind == INGOT_TOK_DECODE_BYTE_FALLBACK) {
            status = decode_byte_fallback(&out, list);
        } else {
            status = decode_each(&steps[i], matcher, &out, list, error);
        }
        ingot_tok_list_free(list);
        *list = out;
        INGOT_TRY(status);
    }
    return INGOT_OK;
}
