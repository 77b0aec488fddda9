/* Lines of values in a JSON text that jansson has accepted: a scanner that skips, and compares
 * decoded keys.  Only errors come here, so it starts from the front each time. */
#include "common/json_line.h"

#include <ctype.h>
#include <jansson.h>
#include <stdbool.h>
#include <string.h>

#define DEPTH_MAX 64u /* of common/json.c */

typedef struct scanner {
    const char *at, *end;
} scanner;

static void skip_space(scanner *s) {
    while (s->at < s->end && isspace((unsigned char)*s->at)) {
        s->at++;
    }
}

static void skip_string(scanner *s) {
    s->at++;
    while (s->at < s->end && *s->at != '"') {
        s->at += *s->at == '\\' ? 2 : 1;
    }
    s->at = s->at < s->end ? s->at + 1 : s->end;
}

/* Any value: brackets are counted, strings skipped. */
static void skip_value(scanner *s) {
    unsigned depth = 0;
    do {
        skip_space(s);
        if (s->at >= s->end) {
            return;
        }
        if (*s->at == '"') {
            skip_string(s);
        } else if (*s->at == '{' || *s->at == '[') {
            depth++;
            s->at++;
        } else if (*s->at == '}' || *s->at == ']') {
            depth -= depth > 0;
            s->at++;
        } else if (depth > 0 && (*s->at == ',' || *s->at == ':')) {
            s->at++;
        } else { /* a number or a word: one byte at least, whatever it is */
            do {
                s->at++;
            } while (s->at < s->end && strchr(",:]}", *s->at) == NULL &&
                     !isspace((unsigned char)*s->at));
        }
    } while (depth > 0);
}

static bool is_key(const char *from, const char *to, const char *key) {
    json_t *value = json_loadb(from, (size_t)(to - from), JSON_DECODE_ANY, NULL);
    const bool is_equal = json_is_string(value) && strcmp(json_string_value(value), key) == 0;
    json_decref(value);
    return is_equal;
}

/* Moves to the member or element; false, with the scanner anywhere, when there is none. *name is
 * where its key, or it itself, begins. */
static bool descend(scanner *s, const ingot_json_place *step, const char **name) {
    const char open = step->key != NULL ? '{' : '[';
    skip_space(s);
    if (s->at >= s->end || *s->at != open) {
        return false;
    }
    s->at++;
    for (size_t i = 0;; i++) {
        skip_space(s);
        if (s->at >= s->end || *s->at == '}' || *s->at == ']') {
            return false;
        }
        *name = s->at;
        bool is_wanted = i == step->index;
        if (step->key != NULL) {
            skip_string(s);
            is_wanted = is_key(*name, s->at, step->key);
            skip_space(s);
            s->at += s->at < s->end; /* the colon */
        }
        if (is_wanted) {
            return true;
        }
        skip_value(s);
        skip_space(s);
        s->at += s->at < s->end && *s->at == ',';
    }
}

unsigned ingot_json_line(const char *text, uint64_t size, const ingot_json_place *place) {
    const ingot_json_place *steps[DEPTH_MAX];
    unsigned count = 0, line = 1;
    for (; place != NULL && count < DEPTH_MAX; place = place->parent) {
        steps[count++] = place;
    }
    scanner s = {.at = text, .end = text + size};
    skip_space(&s);
    const char *found = s.at, *name = s.at;
    while (count > 0 && descend(&s, steps[count - 1], &name)) {
        found = name;
        count--;
    }
    for (const char *c = text; c < found && c < s.end; c++) {
        line += *c == '\n';
    }
    return line;
}
