/* UTF-8, the character classes the tokenizer's components name, and growable bytes.
 * Classes come from utf8proc; nothing here depends on the locale. */
#include "calib/tokenizer_parts.h"
#include "common/sizes.h"

#include <string.h>
#include <utf8proc.h>

ingot_status ingot_tok_reserve(ingot_tok_bytes *bytes, uint64_t extra) {
    uint64_t needed;
    if (!ingot_size_add(&needed, bytes->size, extra)) {
        return INGOT_ERR_NO_MEMORY;
    }
    if (needed <= bytes->capacity) {
        return INGOT_OK;
    }
    uint64_t capacity = ingot_max_u64(needed, 64);
    if (bytes->capacity <= UINT64_MAX / 2) {
        capacity = ingot_max_u64(capacity, bytes->capacity * 2);
    }
    void *data;
    INGOT_TRY(ingot_alloc(&data, capacity));
    if (bytes->size != 0) {
        memcpy(data, bytes->data, bytes->size);
    }
    ingot_free(bytes->data);
    bytes->data = data;
    bytes->capacity = capacity;
    return INGOT_OK;
}

ingot_status ingot_tok_append(ingot_tok_bytes *bytes, const char *data, uint64_t size) {
    INGOT_TRY(ingot_tok_reserve(bytes, size));
    if (size != 0) {
        memcpy(bytes->data + bytes->size, data, size);
    }
    bytes->size += size;
    return INGOT_OK;
}

ingot_status ingot_tok_append_char(ingot_tok_bytes *bytes, uint32_t c) {
    INGOT_TRY(ingot_tok_reserve(bytes, 4));
    bytes->size += ingot_tok_encode_char(bytes->data + bytes->size, c);
    return INGOT_OK;
}

void ingot_tok_bytes_free(ingot_tok_bytes *bytes) {
    ingot_free(bytes->data);
    *bytes = (ingot_tok_bytes){0};
}

ingot_status ingot_tok_copy(char **out, const char *data, uint64_t size) {
    *out = NULL;
    uint64_t total;
    if (!ingot_size_add(&total, size, 1)) {
        return INGOT_ERR_NO_MEMORY;
    }
    void *copy;
    INGOT_TRY(ingot_alloc(&copy, total));
    memcpy(copy, data, size);
    ((char *)copy)[size] = '\0';
    *out = copy;
    return INGOT_OK;
}

uint32_t ingot_tok_next(const char *text, uint64_t *at) {
    const uint8_t *p = (const uint8_t *)text + *at;
    if (p[0] < 0x80) {
        *at += 1;
        return p[0];
    }
    if (p[0] < 0xE0) {
        *at += 2;
        return (uint32_t)(p[0] & 0x1F) << 6 | (p[1] & 0x3F);
    }
    if (p[0] < 0xF0) {
        *at += 3;
        return (uint32_t)(p[0] & 0x0F) << 12 | (uint32_t)(p[1] & 0x3F) << 6 | (p[2] & 0x3F);
    }
    *at += 4;
    return (uint32_t)(p[0] & 0x07) << 18 | (uint32_t)(p[1] & 0x3F) << 12 |
           (uint32_t)(p[2] & 0x3F) << 6 | (p[3] & 0x3F);
}

uint64_t ingot_tok_previous(const char *text, uint64_t at) {
    do {
        at--;
    } while (at > 0 && ((uint8_t)text[at] & 0xC0) == 0x80);
    return at;
}

unsigned ingot_tok_encode_char(char text[4], uint32_t c) {
    if (c < 0x80) {
        text[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        text[0] = (char)(0xC0 | c >> 6);
        text[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        text[0] = (char)(0xE0 | c >> 12);
        text[1] = (char)(0x80 | (c >> 6 & 0x3F));
        text[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    text[0] = (char)(0xF0 | c >> 18);
    text[1] = (char)(0x80 | (c >> 12 & 0x3F));
    text[2] = (char)(0x80 | (c >> 6 & 0x3F));
    text[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

/* Length of the well-formed character at p (0 if there is none); *bad is then the length of the
 * maximal subpart to be replaced, at least 1.  Table 3-7 of the Unicode standard. */
static unsigned char_length(const uint8_t *p, uint64_t left, unsigned *bad) {
    *bad = 1;
    if (p[0] < 0x80) {
        return 1;
    }
    unsigned length = 0;
    uint8_t low = 0x80, high = 0xBF;
    if (p[0] >= 0xC2 && p[0] <= 0xDF) {
        length = 2;
    } else if (p[0] >= 0xE0 && p[0] <= 0xEF) {
        length = 3;
        low = p[0] == 0xE0 ? 0xA0 : 0x80;
        high = p[0] == 0xED ? 0x9F : 0xBF;
    } else if (p[0] >= 0xF0 && p[0] <= 0xF4) {
        length = 4;
        low = p[0] == 0xF0 ? 0x90 : 0x80;
        high = p[0] == 0xF4 ? 0x8F : 0xBF;
    }
    for (unsigned i = 1; i < length; i++) {
        if (i >= left || p[i] < low || p[i] > high) {
            *bad = i;
            return 0;
        }
        low = 0x80;
        high = 0xBF;
    }
    return length;
}

ingot_status ingot_tok_sanitize(ingot_tok_bytes *repaired, bool *is_valid, const char *text,
                                uint64_t size) {
    const uint8_t *bytes = (const uint8_t *)text;
    uint64_t copied = 0; /* text[0..copied) is in repaired */
    *is_valid = true;
    for (uint64_t at = 0; at < size;) {
        unsigned bad;
        const unsigned length = char_length(bytes + at, size - at, &bad);
        if (length != 0) {
            at += length;
            continue;
        }
        *is_valid = false;
        INGOT_TRY(ingot_tok_append(repaired, text + copied, at - copied));
        INGOT_TRY(ingot_tok_append_char(repaired, 0xFFFD));
        at += bad;
        copied = at;
    }
    return *is_valid ? INGOT_OK : ingot_tok_append(repaired, text + copied, size - copied);
}

bool ingot_tok_is_ascii(const char *text, uint64_t size) {
    uint8_t all = 0;
    for (uint64_t i = 0; i < size; i++) {
        all |= (uint8_t)text[i];
    }
    return all < 0x80;
}

bool ingot_tok_is_space(uint32_t c) {
    if (c < 0x80) {
        return c == ' ' || (c >= '\t' && c <= '\r');
    }
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool ingot_tok_is_numeric(uint32_t c) {
    if (c < 0x80) {
        return c >= '0' && c <= '9';
    }
    const utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
           category == UTF8PROC_CATEGORY_NO;
}

bool ingot_tok_is_punctuation(uint32_t c) {
    if (c < 0x80) {
        return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
               (c >= '{' && c <= '~');
    }
    const utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

bool ingot_tok_is_word(uint32_t c) {
    if (c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
        (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
        (c >= 0x1F170 && c <= 0x1F189)) {
        return true; /* join controls, and the symbols that are alphabetic */
    }
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return false;
    }
}

/* Printable bytes stand for themselves; the other 68 take U+0100 onwards in their order. */
uint32_t ingot_tok_byte_char(uint8_t byte) {
    if (byte <= 0x20) {
        return 0x100u + byte;
    }
    if (byte >= 0x7F && byte <= 0xA0) {
        return 0x100u + 33u + (byte - 0x7Fu);
    }
    return byte == 0xAD ? 0x143u : byte;
}

bool ingot_tok_char_byte(uint32_t c, uint8_t *byte) {
    if (c >= 0x100) {
        if (c > 0x143) {
            return false;
        }
        *byte = (uint8_t)(c <= 0x120 ? c - 0x100 : c == 0x143 ? 0xAD : c - 0x121 + 0x7F);
        return true;
    }
    *byte = (uint8_t)c;
    return ingot_tok_byte_char((uint8_t)c) == c;
}

ingot_status ingot_tok_append_byte_level(ingot_tok_bytes *out, const char *text, uint64_t size) {
    uint64_t most; /* two bytes a character */
    if (!ingot_size_mul(&most, size, 2)) {
        return INGOT_ERR_NO_MEMORY;
    }
    INGOT_TRY(ingot_tok_reserve(out, most));
    for (uint64_t i = 0; i < size; i++) {
        out->size +=
            ingot_tok_encode_char(out->data + out->size, ingot_tok_byte_char((uint8_t)text[i]));
    }
    return INGOT_OK;
}
