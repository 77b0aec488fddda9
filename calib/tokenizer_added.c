/* Added tokens: cut out of the text before it is normalized (or, where the token asks for it,
 * after), the longest of those that begin first, as the `tokenizers` library does. */
#include "calib/tokenizer_parts.h"
#include "common/sizes.h"

#include <string.h>

/* Index of the child of `parent` for `byte`, 0 if there is none.  Nodes start at 1. */
static uint32_t find_child(const ingot_tok_trie *trie, uint32_t parent, uint8_t byte) {
    if (parent == 0) {
        return trie->first[byte];
    }
    uint32_t child = trie->nodes[parent].child;
    while (child != 0 && trie->nodes[child].byte != byte) {
        child = trie->nodes[child].sibling;
    }
    return child;
}

static ingot_status add_child(ingot_tok_trie *trie, uint32_t parent, uint8_t byte, uint32_t *out) {
    if (trie->count + 1 >= trie->capacity) {
        const uint32_t capacity = trie->capacity == 0 ? 256 : trie->capacity * 2;
        if (capacity > INGOT_TOK_ID_LIMIT) {
            return INGOT_ERR_NO_MEMORY;
        }
        void *nodes;
        INGOT_TRY(ingot_alloc(&nodes, (uint64_t)capacity * sizeof(*trie->nodes)));
        if (trie->nodes != NULL) {
            memcpy(nodes, trie->nodes, (uint64_t)(trie->count + 1) * sizeof(*trie->nodes));
        }
        ingot_free(trie->nodes);
        trie->nodes = nodes;
        trie->capacity = capacity;
    }
    const uint32_t index = ++trie->count;
    trie->nodes[index] = (ingot_tok_node){.token = INGOT_TOK_NONE, .byte = byte};
    if (parent == 0) {
        trie->first[byte] = index;
    } else {
        trie->nodes[index].sibling = trie->nodes[parent].child;
        trie->nodes[parent].child = index;
    }
    *out = index;
    return INGOT_OK;
}

ingot_status ingot_tok_trie_insert(ingot_tok_trie *trie, const char *content, uint64_t size,
                                   uint32_t token) {
    uint32_t node = 0;
    for (uint64_t i = 0; i < size; i++) {
        uint32_t next = find_child(trie, node, (uint8_t)content[i]);
        if (next == 0) {
            INGOT_TRY(add_child(trie, node, (uint8_t)content[i], &next));
        }
        node = next;
    }
    if (node != 0) {
        trie->nodes[node].token = token;
    }
    return INGOT_OK;
}

void ingot_tok_trie_free(ingot_tok_trie *trie) {
    ingot_free(trie->nodes);
    *trie = (ingot_tok_trie){0};
}

/* The longest token that begins at text[start], or INGOT_TOK_NONE. */
static uint32_t longest_at(const ingot_tok_trie *trie, const char *text, uint64_t size,
                           uint64_t start, uint64_t *end) {
    uint32_t found = INGOT_TOK_NONE;
    uint32_t node = 0;
    for (uint64_t i = start; i < size; i++) {
        node = find_child(trie, node, (uint8_t)text[i]);
        if (node == 0) {
            break;
        }
        if (trie->nodes[node].token != INGOT_TOK_NONE) {
            found = trie->nodes[node].token;
            *end = i + 1;
        }
    }
    return found;
}

static bool is_single_word(const char *text, uint64_t size, uint64_t start, uint64_t end) {
    uint64_t at = start == 0 ? 0 : ingot_tok_previous(text, start);
    if (start != 0 && ingot_tok_is_word(ingot_tok_next(text, &at))) {
        return false;
    }
    at = end;
    return end == size || !ingot_tok_is_word(ingot_tok_next(text, &at));
}

ingot_status ingot_tok_added_split(const ingot_tok_trie *trie, const ingot_tok_added *tokens,
                                   const char *text, uint64_t size, ingot_tok_added_piece piece,
                                   void *context, ingot_error *error) {
    uint64_t covered = 0;
    for (uint64_t at = 0; trie->count != 0 && at < size;) {
        uint64_t start = at, end = at;
        if (trie->first[(uint8_t)text[at]] == 0) {
            at++;
            continue;
        }
        const uint32_t index = longest_at(trie, text, size, at, &end);
        if (index == INGOT_TOK_NONE) {
            at++;
            continue;
        }
        at = end; /* the search goes on behind the token even if it is discarded */
        const ingot_tok_added *token = &tokens[index];
        if (token->single_word && !is_single_word(text, size, start, end)) {
            continue;
        }
        for (uint64_t before = start; token->lstrip && before > covered; start = before) {
            before = ingot_tok_previous(text, before);
            uint64_t next = before;
            if (!ingot_tok_is_space(ingot_tok_next(text, &next))) {
                break;
            }
        }
        for (uint64_t after = end; token->rstrip && after < size; end = after) {
            if (!ingot_tok_is_space(ingot_tok_next(text, &after))) {
                break;
            }
        }
        if (token->lstrip && start < covered) {
            start = covered; /* a token before this one has taken its space */
        }
        if (start >= end) {
            continue;
        }
        if (covered < start) {
            INGOT_TRY(piece(context, INGOT_TOK_NONE, covered, start, error));
        }
        INGOT_TRY(piece(context, token->id, start, end, error));
        covered = end;
    }
    return covered >= size ? INGOT_OK : piece(context, INGOT_TOK_NONE, covered, size, error);
}
