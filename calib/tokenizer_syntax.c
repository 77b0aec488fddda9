/* Regular expressions from Oniguruma's Ruby syntax to PCRE2's.
 *
 * Most of an expression is the same in both and is copied.  Written anew is what reads alike and
 * means something else: \h (a hexadecimal digit), \v, \s and \w (other Unicode sets), (?m) (dot
 * matches newline), an isolated (?i), {n,m}+ and {n}? (not possessive, not lazy), {,m}, scripts.
 * What has no faithful counterpart (class intersection, POSIX brackets, callouts, \W in a class)
 * is refused by name; PCRE2 refuses the rest.
 * Reference: Oniguruma's doc/RE and doc/SYNTAX.md; pcre2pattern(3). */
#include "calib/tokenizer_parts.h"

#include <string.h>
#include <strings.h>

#define GROUPS_MAX      100u
#define CLASS_DEPTH_MAX 8u
#define NO_ATOM         UINT64_MAX

/* The inside of a class.  Each ends with a property, so that a hyphen after it stays literal. */
#define CLASS_SPACE "\\t-\\r\\x{85}\\p{Z}"
#define CLASS_NOT_SPACE                                                                            \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-"         \
    "\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}"        \
    "\\x{3001}-\\x{10ffff}\\p{L}"
#define CLASS_WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
/* Outside a class, \w and \b go by another table, with the superscripts and fractions of Latin-1.
 */
#define WORD      "[\\xb2\\xb3\\xb9\\xbc-\\xbe" CLASS_WORD "]"
#define NOT_WORD  "[^\\xb2\\xb3\\xb9\\xbc-\\xbe" CLASS_WORD "]"
#define CLASS_HEX "a-fA-F0-9"

typedef struct group {
    uint64_t start;   /* in the output */
    unsigned closing; /* parentheses opened on behalf of an isolated option */
} group;

typedef struct translator {
    const char *text;
    uint64_t size, at;
    ingot_tok_bytes *out;
    uint64_t atom; /* where the last repeatable item begins in the output, or NO_ATOM */
    group groups[GROUPS_MAX];
    unsigned depth;
    const char *reason;
} translator;

static ingot_status refuse(translator *t, const char *reason) {
    t->reason = reason;
    return INGOT_ERR_UNSUPPORTED;
}

static ingot_status put(translator *t, const char *text) {
    return ingot_tok_append(t->out, text, strlen(text));
}

static int peek(const translator *t, uint64_t ahead) {
    return t->size - t->at > ahead ? (uint8_t)t->text[t->at + ahead] : -1;
}

static bool is_letter(int c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_digit(int c) {
    return c >= '0' && c <= '9';
}

static bool is_hex(int c) {
    return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* Copies the character at t->at, whatever its length. */
static ingot_status put_char(translator *t) {
    const uint64_t start = t->at;
    (void)ingot_tok_next(t->text, &t->at);
    return ingot_tok_append(t->out, t->text + start, t->at - start);
}

/* {NAME} of \p or \P, at the brace. */
static ingot_status put_property(translator *t, bool is_negated) {
    static const struct {
        const char *name, *pcre2;
    } names[] = {
        {"Letter", "L"},
        {"Mark", "M"},
        {"Number", "N"},
        {"Punctuation", "P"},
        {"Symbol", "S"},
        {"Separator", "Z"},
        {"Other", "C"},
        {"Digit", "Nd"},
        {"Alpha", "Alphabetic"},
        {"Alphabetic", "Alphabetic"},
        {"Upper", "Uppercase"},
        {"Uppercase", "Uppercase"},
        {"Lower", "Lowercase"},
        {"Lowercase", "Lowercase"},
        {"Space", "White_Space"},
        {"White_Space", "White_Space"},
        {"Any", "Any"},
        {"Emoji", "Emoji"},
        {"Ideographic", "Ideographic"},
    };
    const char *end = memchr(t->text + t->at, '}', t->size - t->at);
    if (peek(t, 0) != '{' || end == NULL) {
        return refuse(t, "\\p without a name in braces");
    }
    t->at++;
    if (peek(t, 0) == '^') {
        is_negated = !is_negated;
        t->at++;
    }
    char name[48];
    const uint64_t length = (uint64_t)(end - (t->text + t->at));
    if (length == 0 || length >= sizeof(name)) {
        return refuse(t, "a property of unknown name");
    }
    memcpy(name, t->text + t->at, length);
    name[length] = '\0';
    t->at += length + 1;
    for (uint64_t i = 0; i < length; i++) {
        if (!is_letter(name[i]) && name[i] != '_') {
            return refuse(t, "a property of unknown name");
        }
    }
    INGOT_TRY(put(t, is_negated ? "\\P{" : "\\p{"));
    const char *known = length <= 2 ? name : NULL; /* a general category */
    for (size_t i = 0; known == NULL && i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcasecmp(name, names[i].name) == 0) {
            known = names[i].pcre2;
        }
    }
    if (known == NULL) { /* a script; without "sc:" PCRE2 would read script extensions */
        INGOT_TRY(put(t, "sc:"));
        known = name;
    }
    INGOT_TRY(put(t, known));
    return put(t, "}");
}

/* \xHH, \x{H...} and \uHHHH, at the letter. */
static ingot_status put_code_point(translator *t) {
    const bool is_x = t->text[t->at++] == 'x';
    uint32_t value = 0;
    unsigned digits = 0;
    const bool has_brace = is_x && peek(t, 0) == '{';
    t->at += has_brace;
    const unsigned most = has_brace ? 8 : is_x ? 2 : 4;
    while (digits < most && is_hex(peek(t, 0))) {
        const int c = peek(t, 0);
        value = value * 16 + (uint32_t)(is_digit(c) ? c - '0' : (c | 0x20) - 'a' + 10);
        digits++;
        t->at++;
    }
    if (digits == 0 || (!is_x && digits != 4) || (has_brace && peek(t, 0) != '}') ||
        (is_x && !has_brace && value > 0x7F) || value > 0x10FFFF) {
        return refuse(t, "a code point written in a form that is not known");
    }
    t->at += has_brace;
    char text[24];
    (void)snprintf(text, sizeof(text), "\\x{%x}", value);
    return put(t, text);
}

/* A backslash that means the same inside and outside a class.  *is_done is false when it is none
 * of these; t->at stands on the character after the backslash. */
static ingot_status common_escape(translator *t, bool *is_done) {
    const int c = peek(t, 0);
    *is_done = true;
    if (c < 0) {
        return refuse(t, "a backslash at the end");
    }
    if (c >= 0x80) {
        return put_char(t);
    }
    switch (c) {
    case 'p':
    case 'P':
        t->at++;
        return put_property(t, c == 'P');
    case 'x':
    case 'u':
        return put_code_point(t);
    case 'v':
        t->at++;
        return put(t, "\\x{b}");
    case 'd':
    case 'D':
    case 't':
    case 'n':
    case 'r':
    case 'f':
    case 'e':
    case 'a':
        break;
    default:
        if (is_letter(c) || is_digit(c)) {
            *is_done = false;
            return INGOT_OK;
        }
    }
    INGOT_TRY(put(t, "\\"));
    return put_char(t);
}

static ingot_status class_escape(translator *t) {
    t->at++;
    bool is_done;
    INGOT_TRY(common_escape(t, &is_done));
    if (is_done) {
        return INGOT_OK;
    }
    switch (t->text[t->at++]) {
    case 's':
        return put(t, CLASS_SPACE);
    case 'S':
        return put(t, CLASS_NOT_SPACE);
    case 'w':
        return put(t, CLASS_WORD);
    case 'h':
        return put(t, CLASS_HEX);
    case 'b':
        return put(t, "\\x{8}");
    case '0':
        if (!is_digit(peek(t, 0))) {
            return put(t, "\\x{0}");
        }
        return refuse(t, "an octal escape");
    default:
        return refuse(t, "this escape inside a character class");
    }
}

/* The items of a class up to its bracket, which is consumed; t->at is beyond the opening one. A
 * class nested in it is a union: its items are written in place. */
static ingot_status class_items(translator *t, unsigned depth) {
    for (bool is_first = true;; is_first = false) {
        const int c = peek(t, 0);
        if (c < 0) {
            return refuse(t, "a character class that does not end");
        }
        if (c == ']' && is_first) {
            return refuse(t, "a character class that begins with a bracket");
        }
        if (c == ']') {
            t->at++;
            return INGOT_OK;
        }
        if (c == '\\') {
            INGOT_TRY(class_escape(t));
        } else if (c == '&' && peek(t, 1) == '&') {
            return refuse(t, "an intersection of character classes");
        } else if (c == '[') {
            t->at++;
            if (peek(t, 0) == ':' || peek(t, 0) == '^' || depth >= CLASS_DEPTH_MAX) {
                return refuse(t, "a POSIX bracket or a nested negated class");
            }
            INGOT_TRY(class_items(t, depth + 1));
        } else {
            INGOT_TRY(put_char(t));
        }
    }
}

static ingot_status put_class(translator *t) {
    t->at++;
    INGOT_TRY(put(t, "["));
    if (peek(t, 0) == '^') {
        t->at++;
        INGOT_TRY(put(t, "^"));
    }
    INGOT_TRY(class_items(t, 0));
    return put(t, "]");
}

static ingot_status put_escape(translator *t) {
    t->at++;
    bool is_done;
    INGOT_TRY(common_escape(t, &is_done));
    if (is_done) {
        return INGOT_OK;
    }
    const int c = (uint8_t)t->text[t->at++];
    switch (c) {
    case 's':
        return put(t, "[" CLASS_SPACE "]");
    case 'S':
        return put(t, "[^" CLASS_SPACE "]");
    case 'w':
        return put(t, WORD);
    case 'W':
        return put(t, NOT_WORD);
    case 'h':
        return put(t, "[" CLASS_HEX "]");
    case 'H':
        return put(t, "[^" CLASS_HEX "]");
    case 'b':
        return put(t, "(?:(?<=" WORD ")(?!" WORD ")|(?<!" WORD ")(?=" WORD "))");
    case 'B':
        return put(t, "(?:(?<=" WORD ")(?=" WORD ")|(?<!" WORD ")(?!" WORD "))");
    case 'A':
        return put(t, "\\A");
    case 'z':
        return put(t, "\\z");
    case 'Z':
        return put(t, "\\Z");
    case 'R':
        return put(t, "\\R");
    default:
        break;
    }
    if (c >= '1' && c <= '9' && !is_digit(peek(t, 0))) { /* a back reference */
        const char text[] = {'\\', 'g', '{', (char)c, '}', '\0'};
        return put(t, text);
    }
    return refuse(t, "this escape");
}

/* "(?imx-imx)" or "(?imx-imx:", at the first letter.  An isolated option holds to the end of the
 * enclosing group in one alternative with what follows, hence the group opened for it. */
static ingot_status put_options(translator *t) {
    for (;;) {
        const int c = peek(t, 0);
        if (c == ':' || c == ')') {
            break;
        }
        if (c != 'i' && c != 'm' && c != '-') {
            return refuse(t, "a group of this kind");
        }
        INGOT_TRY(put(t, c == 'i' ? "i" : c == 'm' ? "s" : "-"));
        t->at++;
    }
    INGOT_TRY(put(t, ":"));
    if (t->text[t->at++] == ')') {
        t->depth--;
        t->groups[t->depth].closing++;
        t->atom = NO_ATOM;
    }
    return INGOT_OK;
}

static ingot_status open_group(translator *t) {
    if (t->depth + 1 >= GROUPS_MAX) {
        return refuse(t, "too many nested groups");
    }
    t->groups[++t->depth] = (group){t->out->size, 0};
    t->at++;
    t->atom = NO_ATOM;
    if (peek(t, 0) == '*') {
        return refuse(t, "a callout");
    }
    if (peek(t, 0) != '?') {
        return put(t, "(");
    }
    t->at++;
    INGOT_TRY(put(t, "(?"));
    const int c = peek(t, 0);
    if (c == ':' || c == '=' || c == '!' || c == '>') {
        return put_char(t);
    }
    if (c != '<') {
        return put_options(t);
    }
    INGOT_TRY(put_char(t));
    if (peek(t, 0) == '=' || peek(t, 0) == '!') {
        return put_char(t);
    }
    for (int n = peek(t, 0); n != '>'; n = peek(t, 0)) {
        if (!is_letter(n) && n != '_' && !is_digit(n)) {
            return refuse(t, "a group of this kind");
        }
        INGOT_TRY(put_char(t));
    }
    return put_char(t);
}

static ingot_status close_options(translator *t) {
    for (group *g = &t->groups[t->depth]; g->closing != 0; g->closing--) {
        INGOT_TRY(put(t, ")"));
    }
    return INGOT_OK;
}

static ingot_status close_group(translator *t) {
    if (t->depth == 0) {
        return refuse(t, "a parenthesis that was not opened");
    }
    INGOT_TRY(close_options(t));
    t->atom = t->groups[t->depth--].start;
    t->at++;
    return put(t, ")");
}

/* The item the next quantifier repeats becomes a group. */
static ingot_status wrap_atom(translator *t) {
    static const char open[] = "(?:";
    INGOT_TRY(ingot_tok_reserve(t->out, 3));
    char *atom = t->out->data + t->atom;
    memmove(atom + 3, atom, t->out->size - t->atom);
    memcpy(atom, open, 3);
    t->out->size += 3;
    return put(t, ")");
}

/* {n}, {n,}, {,m} or {n,m}; a brace that is none of these is an ordinary character. */
static ingot_status put_interval(translator *t) {
    uint64_t at = t->at + 1;
    char low[8] = "", high[8] = "";
    unsigned low_size = 0, high_size = 0;
    while (at < t->size && is_digit(t->text[at]) && low_size < 6) {
        low[low_size++] = t->text[at++];
    }
    const bool has_comma = at < t->size && t->text[at] == ',';
    at += has_comma;
    while (has_comma && at < t->size && is_digit(t->text[at]) && high_size < 6) {
        high[high_size++] = t->text[at++];
    }
    if (at >= t->size || t->text[at] != '}' || low_size + high_size == 0) {
        t->atom = t->out->size;
        t->at++;
        return put(t, "\\{");
    }
    if (t->atom == NO_ATOM) {
        return refuse(t, "a quantifier without anything to repeat");
    }
    t->at = at + 1;
    INGOT_TRY(put(t, "{"));
    INGOT_TRY(put(t, low_size == 0 ? "0" : low));
    INGOT_TRY(put(t, has_comma ? "," : ""));
    INGOT_TRY(put(t, high));
    INGOT_TRY(put(t, "}"));
    const int next = peek(t, 0);
    if (next == '+' || next == '*' || (next == '?' && !has_comma)) {
        return wrap_atom(t); /* the quantifier that follows repeats the repetition */
    }
    if (next == '?') {
        t->at++;
        INGOT_TRY(put(t, "?"));
    }
    t->atom = NO_ATOM;
    return INGOT_OK;
}

static ingot_status put_item(translator *t) {
    const int c = peek(t, 0);
    switch (c) {
    case '(':
        return open_group(t);
    case ')':
        return close_group(t);
    case '{':
        return put_interval(t);
    case '*':
    case '+':
    case '?':
        if (t->atom == NO_ATOM) {
            return refuse(t, "a quantifier without anything to repeat");
        }
        t->atom = NO_ATOM;
        INGOT_TRY(put_char(t));
        return peek(t, 0) == '?' || peek(t, 0) == '+' ? put_char(t) : INGOT_OK;
    case '|':
    case '^':
    case '$':
        t->atom = NO_ATOM;
        return put_char(t);
    default:
        t->atom = t->out->size;
        return c == '[' ? put_class(t) : c == '\\' ? put_escape(t) : put_char(t);
    }
}

ingot_status ingot_tok_regex_translate(ingot_tok_bytes *out, const char *text, uint64_t size,
                                       const char **reason) {
    translator t = {.text = text, .size = size, .out = out, .atom = NO_ATOM};
    ingot_status status = INGOT_OK;
    while (status == INGOT_OK && t.at < t.size) {
        status = put_item(&t);
    }
    if (status == INGOT_OK && t.depth != 0) {
        status = refuse(&t, "a group that does not end");
    }
    if (status == INGOT_OK) {
        status = close_options(&t);
    }
    *reason = t.reason;
    return status;
}
