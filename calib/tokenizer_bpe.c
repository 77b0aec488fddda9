/* Byte pair encoding of one word, with a cache of the words seen in this call.
 *
 * Merges are applied lowest rank first, leftmost first among equals (Sennrich et al. 2016, as the
 * `tokenizers` library orders them).  Short words do that by scanning; long ones with a heap over a
 * linked list of symbols, n log n.  A word is first cut between two characters that no merge joins:
 * nothing can ever merge across such a place, so the pieces are independent.  That turns a text
 * without pre-tokenizer (one word of megabytes) into short words for the cache. */
#include "calib/tokenizer_parts.h"
#include "common/sizes.h"

#include <string.h>
#include <xxhash.h>

#define CACHED_KEY_BYTES_MAX 64u
#define CACHED_WORDS_MAX     (1u << 20)
#define SCAN_SYMBOLS_MAX     32u /* above this the heap is faster than scanning */
#define PIECE_BYTES_MAX      (1ull << 30)

uint32_t ingot_tok_bpe_find(const ingot_tok_bpe *bpe, const char *text, uint64_t size) {
    if (size > bpe->longest || bpe->slot_count == 0) {
        return INGOT_TOK_NONE;
    }
    const uint64_t mask = bpe->slot_count - 1;
    for (uint64_t at = XXH3_64bits(text, size) & mask;; at = (at + 1) & mask) {
        const uint32_t id = bpe->slots[at];
        if (id == INGOT_TOK_NONE) {
            return id;
        }
        const ingot_tok_token *token = &bpe->tokens[id];
        if (token->size == size && memcmp(bpe->blob.data + token->offset, text, size) == 0) {
            return id;
        }
    }
}

static uint64_t mix(uint64_t key) {
    key = (key ^ key >> 32) * 0x9E3779B97F4A7C15ull;
    return key ^ key >> 29;
}

static const ingot_tok_merge *find_merge(const ingot_tok_bpe *bpe, uint32_t left, uint32_t right) {
    const uint64_t mask = bpe->merge_slot_count - 1;
    for (uint64_t at = mix((uint64_t)left << 32 | right) & mask;; at = (at + 1) & mask) {
        const ingot_tok_merge *merge = &bpe->merges[at];
        if (merge->left == INGOT_TOK_NONE) {
            return NULL;
        }
        if (merge->left == left && merge->right == right) {
            return merge;
        }
    }
}

/* ---- Building the tables ---- */

static ingot_status insert_merge(ingot_tok_bpe *bpe, uint32_t left, uint32_t right, uint32_t rank,
                                 uint32_t id) {
    const uint64_t mask = bpe->merge_slot_count - 1;
    uint64_t at = mix((uint64_t)left << 32 | right) & mask;
    while (bpe->merges[at].left != INGOT_TOK_NONE &&
           (bpe->merges[at].left != left || bpe->merges[at].right != right)) {
        at = (at + 1) & mask;
    }
    bpe->merges[at] = (ingot_tok_merge){left, right, rank, id}; /* of equals, the last counts */
    return INGOT_OK;
}

/* Adding 1 keeps 0 for an empty slot. */
static uint64_t adjacent_key(uint32_t before, uint32_t after) {
    return ((uint64_t)before << 32 | after) + 1;
}

static bool can_join(const ingot_tok_bpe *bpe, uint32_t before, uint32_t after) {
    const uint64_t key = adjacent_key(before, after), mask = bpe->adjacent_count - 1;
    uint64_t at = mix(key) & mask;
    while (bpe->adjacent[at] != 0 && bpe->adjacent[at] != key) {
        at = (at + 1) & mask;
    }
    return bpe->adjacent[at] == key;
}

static void insert_adjacent(ingot_tok_bpe *bpe, const char *left, uint64_t left_size,
                            const char *right) {
    uint64_t last = ingot_tok_previous(left, left_size), first = 0;
    const uint32_t before = ingot_tok_next(left, &last);
    const uint64_t key = adjacent_key(before, ingot_tok_next(right, &first));
    const uint64_t mask = bpe->adjacent_count - 1;
    uint64_t at = mix(key) & mask;
    while (bpe->adjacent[at] != 0 && bpe->adjacent[at] != key) {
        at = (at + 1) & mask;
    }
    bpe->adjacent[at] = key;
}

static uint64_t table_size(uint64_t entries) {
    uint64_t size = 16;
    while (size < entries * 2) {
        size *= 2;
    }
    return size;
}

static ingot_status bad_model(ingot_error *error, const char *path, const char *what,
                              const char *token) {
    return ingot_error_set(error, INGOT_ERR_INPUT, path, NULL, "check that the file is whole",
                           "%s \"%.100s\"", what, token);
}

static ingot_status load_vocab(ingot_tok_bpe *bpe, const json_t *vocab, const char *path,
                               ingot_error *error) {
    const char *text;
    const json_t *value;
    uint64_t count = 0;
    json_object_foreach((json_t *)(uintptr_t)vocab, text, value) {
        const json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id >= (json_int_t)INGOT_TOK_ID_LIMIT) {
            return bad_model(error, path, "the vocabulary gives no usable id to token", text);
        }
        count = ingot_max_u64(count, (uint64_t)id + 1);
    }
    bpe->entry_count = json_object_size(vocab);
    bpe->token_count = count;
    bpe->slot_count = table_size(bpe->entry_count);
    void *memory;
    INGOT_TRY(ingot_alloc_zero(&memory, count, sizeof(*bpe->tokens)));
    bpe->tokens = memory;
    INGOT_TRY(ingot_alloc(&memory, bpe->slot_count * sizeof(*bpe->slots)));
    bpe->slots = memory;
    memset(bpe->slots, 0xFF, bpe->slot_count * sizeof(*bpe->slots));
    json_object_foreach((json_t *)(uintptr_t)vocab, text, value) {
        const uint32_t id = (uint32_t)json_integer_value(value);
        const uint64_t size = strlen(text);
        if (bpe->tokens[id].exists) {
            return bad_model(error, path, "two tokens of the vocabulary share an id, one is", text);
        }
        if (size > UINT32_MAX) {
            return bad_model(error, path, "the vocabulary has too long a token", text);
        }
        bpe->tokens[id] = (ingot_tok_token){bpe->blob.size, (uint32_t)size, true};
        bpe->longest = ingot_max_u64(bpe->longest, size);
        INGOT_TRY(ingot_tok_append(&bpe->blob, text, size));
        uint64_t at = XXH3_64bits(text, size) & (bpe->slot_count - 1);
        while (bpe->slots[at] != INGOT_TOK_NONE) {
            at = (at + 1) & (bpe->slot_count - 1);
        }
        bpe->slots[at] = id;
    }
    return INGOT_OK;
}

/* The two halves of a merge, written "a b" or ["a", "b"]; buffer holds the first of the former. */
static ingot_status read_merge(const json_t *merge, ingot_tok_bytes *buffer, const char **left,
                               const char **right, const char *path, ingot_error *error) {
    if (json_is_array(merge) && json_array_size(merge) == 2) {
        *left = json_string_value(json_array_get(merge, 0));
        *right = json_string_value(json_array_get(merge, 1));
        if (*left != NULL && *right != NULL) {
            return INGOT_OK;
        }
    }
    const char *text = json_string_value(merge);
    const char *space = text == NULL ? NULL : strchr(text, ' ');
    if (space == NULL || strchr(space + 1, ' ') != NULL) {
        return bad_model(error, path,
                         "a merge is not a pair of tokens:", text == NULL ? "(not a text)" : text);
    }
    buffer->size = 0;
    INGOT_TRY(ingot_tok_append(buffer, text, (uint64_t)(space - text)));
    INGOT_TRY(ingot_tok_append(buffer, "", 1));
    *left = buffer->data;
    *right = space + 1;
    return INGOT_OK;
}

static ingot_status add_merge(ingot_tok_bpe *bpe, ingot_tok_bytes *joined, const char *left,
                              const char *right, uint32_t rank, const char *path,
                              ingot_error *error) {
    const uint64_t left_size = strlen(left), right_size = strlen(right);
    const uint64_t skip = bpe->prefix == NULL ? 0 : strlen(bpe->prefix);
    const uint32_t left_id = ingot_tok_bpe_find(bpe, left, left_size);
    const uint32_t right_id = ingot_tok_bpe_find(bpe, right, right_size);
    if (left_id == INGOT_TOK_NONE || right_id == INGOT_TOK_NONE) {
        return bad_model(error, path, "a merge names a token that is not in the vocabulary,",
                         left_id == INGOT_TOK_NONE ? left : right);
    }
    if (left_size == 0 || right_size <= skip) {
        return bad_model(error, path, "a merge joins nothing to", left_size == 0 ? right : left);
    }
    joined->size = 0;
    INGOT_TRY(ingot_tok_append(joined, left, left_size));
    INGOT_TRY(ingot_tok_append(joined, right + skip, right_size - skip));
    INGOT_TRY(ingot_tok_append(joined, "", 1));
    const uint32_t id = ingot_tok_bpe_find(bpe, joined->data, joined->size - 1);
    if (id == INGOT_TOK_NONE) {
        return bad_model(error, path, "a merge makes a token that is not in the vocabulary,",
                         joined->data);
    }
    insert_adjacent(bpe, left, left_size, right);
    return insert_merge(bpe, left_id, right_id, rank, id);
}

static ingot_status load_merges(ingot_tok_bpe *bpe, const json_t *merges, const char *path,
                                ingot_error *error) {
    ingot_tok_bytes first = {0}, joined = {0};
    ingot_status status;
    const uint64_t count = json_array_size(merges);
    if (count >= INGOT_TOK_ID_LIMIT) {
        return bad_model(error, path, "too many merges", "");
    }
    void *memory;
    bpe->merge_slot_count = bpe->adjacent_count = table_size(count);
    INGOT_TRY(ingot_alloc(&memory, bpe->merge_slot_count * sizeof(*bpe->merges)));
    bpe->merges = memory;
    memset(bpe->merges, 0xFF, bpe->merge_slot_count * sizeof(*bpe->merges));
    INGOT_TRY(ingot_alloc_zero(&memory, bpe->adjacent_count, sizeof(*bpe->adjacent)));
    bpe->adjacent = memory;
    status = INGOT_OK;
    uint32_t rank = 0;
    for (uint64_t i = 0; i < count; i++) {
        const json_t *merge = json_array_get(merges, i);
        const char *text = json_string_value(merge), *left = NULL, *right = NULL;
        if (text != NULL && strncmp(text, "#version", 8) == 0) {
            continue;
        }
        INGOT_GO(read_merge(merge, &first, &left, &right, path, error));
        INGOT_GO(add_merge(bpe, &joined, left, right, rank++, path, error));
    }
done:
    ingot_tok_bytes_free(&first);
    ingot_tok_bytes_free(&joined);
    return status;
}

ingot_status ingot_tok_bpe_load(ingot_tok_bpe *bpe, const json_t *model, const char *path,
                                ingot_error *error) {
    const json_t *vocab = json_object_get(model, "vocab");
    const json_t *merges = json_object_get(model, "merges");
    if (!json_is_object(vocab) || !json_is_array(merges)) {
        return ingot_error_set(error, INGOT_ERR_INPUT, path, NULL, "check that the file is whole",
                               "the tokenizer's model has no vocabulary or no merges");
    }
    INGOT_TRY(load_vocab(bpe, vocab, path, error));
    INGOT_TRY(load_merges(bpe, merges, path, error));
    for (uint32_t c = 0; c < 0x800; c++) {
        char text[4];
        bpe->char_ids[c] = ingot_tok_bpe_find(bpe, text, ingot_tok_encode_char(text, c));
    }
    for (unsigned b = 0; b < 256; b++) {
        char text[8];
        (void)snprintf(text, sizeof(text), "<0x%02X>", b);
        bpe->byte_ids[b] = ingot_tok_bpe_find(bpe, text, 6);
    }
    bpe->unk_id =
        bpe->unk == NULL ? INGOT_TOK_NONE : ingot_tok_bpe_find(bpe, bpe->unk, strlen(bpe->unk));
    return INGOT_OK;
}

void ingot_tok_bpe_free(ingot_tok_bpe *bpe) {
    ingot_tok_bytes_free(&bpe->blob);
    ingot_free(bpe->tokens);
    ingot_free(bpe->slots);
    ingot_free(bpe->merges);
    ingot_free(bpe->adjacent);
    ingot_free(bpe->unk);
    ingot_free(bpe->prefix);
    ingot_free(bpe->suffix);
    *bpe = (ingot_tok_bpe){0};
}

/* ---- One word ---- */

static ingot_status append_u32(ingot_tok_bytes *bytes, uint32_t value) {
    INGOT_TRY(ingot_tok_reserve(bytes, sizeof(value)));
    memcpy(bytes->data + bytes->size, &value, sizeof(value));
    bytes->size += sizeof(value);
    return INGOT_OK;
}

/* Id of the character text[start..end), dressed with prefix and suffix where it has them. *dressed
 * is what was looked up. */
static ingot_status char_id(const ingot_tok_bpe *bpe, ingot_tok_bytes *scratch, const char *text,
                            uint64_t size, uint64_t start, uint64_t end, uint32_t *id,
                            const char **dressed, uint64_t *dressed_size) {
    *dressed = text + start;
    *dressed_size = end - start;
    const bool has_prefix = bpe->prefix != NULL && start != 0;
    const bool has_suffix = bpe->suffix != NULL && end == size;
    if (has_prefix || has_suffix) {
        scratch->size = 0;
        if (has_prefix) {
            INGOT_TRY(ingot_tok_append(scratch, bpe->prefix, strlen(bpe->prefix)));
        }
        INGOT_TRY(ingot_tok_append(scratch, text + start, end - start));
        if (has_suffix) {
            INGOT_TRY(ingot_tok_append(scratch, bpe->suffix, strlen(bpe->suffix)));
        }
        *dressed = scratch->data;
        *dressed_size = scratch->size;
    }
    uint64_t at = 0;
    const bool is_short = *dressed_size <= 2 && !has_prefix && !has_suffix;
    *id = is_short ? bpe->char_ids[ingot_tok_next(*dressed, &at)]
                   : ingot_tok_bpe_find(bpe, *dressed, *dressed_size);
    return INGOT_OK;
}

/* Appends the ids of the bytes, if every byte has one. */
static ingot_status fall_back(const ingot_tok_bpe *bpe, ingot_tok_bytes *symbols, const char *text,
                              uint64_t size, bool *is_done) {
    *is_done = false;
    for (uint64_t i = 0; i < size; i++) {
        if (bpe->byte_ids[(uint8_t)text[i]] == INGOT_TOK_NONE) {
            return INGOT_OK;
        }
    }
    *is_done = true;
    for (uint64_t i = 0; i < size; i++) {
        INGOT_TRY(append_u32(symbols, bpe->byte_ids[(uint8_t)text[i]]));
    }
    return INGOT_OK;
}

/* words->symbols = ids of the word's characters before any merge. An unknown character becomes the
 * unknown token, nothing if the model has none.  Like the library, a pending unknown token is
 * written when the next known character comes, after the bytes of a fallback in between. */
static ingot_status first_symbols(const ingot_tok_bpe *bpe, ingot_tok_words *words,
                                  const char *text, uint64_t size, const char *path,
                                  ingot_error *error) {
    ingot_tok_bytes *symbols = &words->symbols;
    symbols->size = 0;
    INGOT_TRY(ingot_tok_reserve(symbols, size * sizeof(uint32_t)));
    bool has_unknown = false;
    for (uint64_t at = 0; at < size;) {
        const uint64_t start = at;
        (void)ingot_tok_next(text, &at);
        uint32_t id;
        const char *dressed;
        uint64_t dressed_size;
        INGOT_TRY(char_id(bpe, &words->queue, text, size, start, at, &id, &dressed, &dressed_size));
        bool is_done = false;
        if (id == INGOT_TOK_NONE && bpe->byte_fallback) {
            INGOT_TRY(fall_back(bpe, symbols, dressed, dressed_size, &is_done));
        }
        if (is_done || (id == INGOT_TOK_NONE && bpe->unk == NULL)) {
            continue;
        }
        if (id == INGOT_TOK_NONE && bpe->unk_id == INGOT_TOK_NONE) {
            return bad_model(error, path, "the vocabulary lacks its own unknown token", bpe->unk);
        }
        if (has_unknown && (id != INGOT_TOK_NONE || !bpe->fuse_unk)) {
            INGOT_TRY(append_u32(symbols, bpe->unk_id));
        }
        has_unknown = id == INGOT_TOK_NONE;
        if (!has_unknown) {
            INGOT_TRY(append_u32(symbols, id));
        }
    }
    return has_unknown ? append_u32(symbols, bpe->unk_id) : INGOT_OK;
}

/* Merges symbols[*count] in place by scanning for the best pair each time. */
static void merge_by_scan(const ingot_tok_bpe *bpe, uint32_t *symbols, uint64_t *count) {
    const ingot_tok_merge *pairs[SCAN_SYMBOLS_MAX];
    uint64_t n = *count;
    for (uint64_t i = 0; i + 1 < n; i++) {
        pairs[i] = find_merge(bpe, symbols[i], symbols[i + 1]);
    }
    for (;;) {
        uint64_t best = n;
        for (uint64_t i = 0; i + 1 < n; i++) {
            if (pairs[i] != NULL && (best == n || pairs[i]->rank < pairs[best]->rank)) {
                best = i;
            }
        }
        if (best == n) {
            *count = n;
            return;
        }
        symbols[best] = pairs[best]->id;
        n--;
        memmove(symbols + best + 1, symbols + best + 2, (n - best - 1) * sizeof(*symbols));
        memmove(pairs + best, pairs + best + 1, (n - best - 1) * sizeof(*pairs));
        if (best > 0) {
            pairs[best - 1] = find_merge(bpe, symbols[best - 1], symbols[best]);
        }
        if (best + 1 < n) {
            pairs[best] = find_merge(bpe, symbols[best], symbols[best + 1]);
        }
    }
}

typedef struct link {
    uint32_t id; /* INGOT_TOK_NONE: merged into its left neighbour */
    uint32_t previous, next;
} link;
#define NO_LINK UINT32_MAX

/* A candidate is rank << 32 | position, so that plain order is the order of merging. */
static void sift_up(uint64_t *heap, uint64_t at) {
    const uint64_t value = heap[at];
    while (at > 0 && heap[(at - 1) / 4] > value) {
        heap[at] = heap[(at - 1) / 4];
        at = (at - 1) / 4;
    }
    heap[at] = value;
}

static void sift_down(uint64_t *heap, uint64_t count, uint64_t at) {
    const uint64_t value = heap[at];
    for (;;) {
        uint64_t best = at, least = value;
        for (uint64_t child = at * 4 + 1; child <= at * 4 + 4 && child < count; child++) {
            if (heap[child] < least) {
                least = heap[child];
                best = child;
            }
        }
        if (best == at) {
            break;
        }
        heap[at] = least;
        at = best;
    }
    heap[at] = value;
}

static void push_pair(const ingot_tok_bpe *bpe, const link *links, uint32_t left, uint64_t *heap,
                      uint64_t *count) {
    if (left == NO_LINK || links[left].next == NO_LINK) {
        return;
    }
    const ingot_tok_merge *merge = find_merge(bpe, links[left].id, links[links[left].next].id);
    if (merge != NULL) {
        heap[*count] = (uint64_t)merge->rank << 32 | left;
        sift_up(heap, (*count)++);
    }
}

/* The same with a heap.  A merge takes one candidate and adds at most two, and there are at most
 * n - 1 merges and n - 1 first candidates, so 3 n entries suffice. */
static ingot_status merge_by_heap(const ingot_tok_bpe *bpe, ingot_tok_words *words,
                                  uint32_t *symbols, uint64_t *count) {
    const uint64_t n = *count;
    ingot_tok_bytes *scratch = &words->queue;
    scratch->size = 0;
    INGOT_TRY(ingot_tok_reserve(scratch, n * (3 * sizeof(uint64_t) + sizeof(link))));
    uint64_t *heap = (uint64_t *)(void *)scratch->data;
    link *links = (link *)(void *)(heap + 3 * n);
    uint64_t queued = 0;
    for (uint64_t i = 0; i < n; i++) {
        links[i] = (link){symbols[i], i == 0 ? NO_LINK : (uint32_t)(i - 1),
                          i + 1 == n ? NO_LINK : (uint32_t)(i + 1)};
    }
    for (uint64_t i = 0; i < n; i++) {
        push_pair(bpe, links, (uint32_t)i, heap, &queued);
    }
    while (queued != 0) {
        const uint64_t top = heap[0];
        heap[0] = heap[--queued];
        if (queued != 0) {
            sift_down(heap, queued, 0);
        }
        link *left = &links[(uint32_t)top];
        if (left->id == INGOT_TOK_NONE || left->next == NO_LINK) {
            continue;
        }
        link *right = &links[left->next];
        const ingot_tok_merge *merge = find_merge(bpe, left->id, right->id);
        if (merge == NULL || merge->rank != top >> 32) {
            continue; /* a neighbour has changed since this was queued */
        }
        left->id = merge->id;
        left->next = right->next;
        right->id = INGOT_TOK_NONE;
        if (left->next != NO_LINK) {
            links[left->next].previous = (uint32_t)top;
        }
        push_pair(bpe, links, left->previous, heap, &queued);
        push_pair(bpe, links, (uint32_t)top, heap, &queued);
    }
    uint64_t kept = 0;
    for (uint64_t i = 0; i < n; i++) {
        if (links[i].id != INGOT_TOK_NONE) {
            symbols[kept++] = links[i].id;
        }
    }
    *count = kept;
    return INGOT_OK;
}

/* Appends the tokens of text[size], which is in the model's alphabet. */
static ingot_status merge_word(const ingot_tok_bpe *bpe, ingot_tok_words *words, const char *text,
                               uint64_t size, const char *path, ingot_error *error) {
    if (size > PIECE_BYTES_MAX) {
        return ingot_error_set(error, INGOT_ERR_INPUT, path, NULL, "break its lines",
                               "the text has a word of more than a gigabyte");
    }
    INGOT_TRY(first_symbols(bpe, words, text, size, path, error));
    uint32_t *symbols = (uint32_t *)(void *)words->symbols.data;
    uint64_t count = words->symbols.size / sizeof(uint32_t);
    if (count > SCAN_SYMBOLS_MAX) {
        INGOT_TRY(merge_by_heap(bpe, words, symbols, &count));
    } else if (count > 1) {
        merge_by_scan(bpe, symbols, &count);
    }
    return ingot_tok_append(&words->ids, words->symbols.data, count * sizeof(uint32_t));
}

/* ---- The cache ---- */

void ingot_tok_words_free(ingot_tok_words *words) {
    ingot_free(words->slots);
    ingot_tok_bytes_free(&words->keys);
    ingot_tok_bytes_free(&words->values);
    ingot_tok_bytes_free(&words->mapped);
    ingot_tok_bytes_free(&words->symbols);
    ingot_tok_bytes_free(&words->queue);
    ingot_tok_bytes_free(&words->ids);
    *words = (ingot_tok_words){0};
}

/* The slot of a key, or the empty one where it belongs. */
static ingot_tok_cached *find_slot(ingot_tok_words *words, uint64_t hash, const char *key,
                                   uint64_t key_size) {
    const uint64_t mask = words->slot_count - 1;
    for (uint64_t at = hash & mask;; at = (at + 1) & mask) {
        ingot_tok_cached *slot = &words->slots[at];
        if (slot->key_size == 0 || (slot->hash == hash && slot->key_size == key_size &&
                                    memcmp(words->keys.data + slot->key, key, key_size) == 0)) {
            return slot;
        }
    }
}

/* Keeps the table at most half full. */
static ingot_status grow_cache(ingot_tok_words *words) {
    if (words->used * 2 < words->slot_count) {
        return INGOT_OK;
    }
    ingot_tok_cached *old = words->slots;
    const uint64_t old_count = words->slot_count;
    const uint64_t count = old_count == 0 ? 256 : old_count * 4;
    void *slots;
    INGOT_TRY(ingot_alloc_zero(&slots, count, sizeof(*words->slots)));
    words->slots = slots;
    words->slot_count = count;
    for (uint64_t i = 0; i < old_count; i++) {
        if (old[i].key_size != 0) {
            uint64_t at = old[i].hash & (count - 1);
            while (words->slots[at].key_size != 0) {
                at = (at + 1) & (count - 1);
            }
            words->slots[at] = old[i];
        }
    }
    ingot_free(old);
    return INGOT_OK;
}

static ingot_status remember(ingot_tok_words *words, uint64_t hash, const char *key,
                             uint64_t key_size, uint64_t first_id) {
    if (words->used >= CACHED_WORDS_MAX) {
        return INGOT_OK;
    }
    INGOT_TRY(grow_cache(words));
    ingot_tok_cached *slot = find_slot(words, hash, key, key_size);
    const uint64_t bytes = words->ids.size - first_id;
    *slot = (ingot_tok_cached){hash, words->keys.size, words->values.size, (uint32_t)key_size,
                               (uint32_t)(bytes / sizeof(uint32_t))};
    words->used++;
    INGOT_TRY(ingot_tok_append(&words->keys, key, key_size));
    return bytes == 0 ? INGOT_OK
                      : ingot_tok_append(&words->values, words->ids.data + first_id, bytes);
}

/* Appends the tokens the cache knows for a key. */
static ingot_status recall(ingot_tok_words *words, uint64_t hash, const char *key,
                           uint64_t key_size, bool *is_known) {
    *is_known = false;
    if (words->slot_count == 0) {
        return INGOT_OK;
    }
    const ingot_tok_cached *slot = find_slot(words, hash, key, key_size);
    if (slot->key_size == 0) {
        return INGOT_OK;
    }
    *is_known = true;
    if (slot->id_count == 0) { /* the values may be none at all, with no address to add to */
        return INGOT_OK;
    }
    return ingot_tok_append(&words->ids, words->values.data + slot->ids,
                            slot->id_count * sizeof(uint32_t));
}

/* Cuts a long word where no merge can reach across, and merges the pieces.  An unknown character
 * ends no piece: it may fuse with its neighbours or fall back to bytes. */
static ingot_status cut_word(const ingot_tok_bpe *bpe, ingot_tok_words *words, const char *text,
                             uint64_t size, const char *path, ingot_error *error) {
    uint64_t piece = 0;
    uint32_t before = 0;
    bool is_known_before = false;
    for (uint64_t at = 0; at <= size;) {
        const uint64_t start = at;
        uint32_t c = 0;
        bool is_known = false;
        if (start < size) {
            c = ingot_tok_next(text, &at);
            is_known = c < 0x800
                           ? bpe->char_ids[c] != INGOT_TOK_NONE
                           : ingot_tok_bpe_find(bpe, text + start, at - start) != INGOT_TOK_NONE;
            if (start == 0 || !is_known || !is_known_before || can_join(bpe, before, c)) {
                before = c;
                is_known_before = is_known;
                continue;
            }
        }
        const uint64_t length = start - piece;
        /* Seeded apart from whole words, which the cache knows under their own spelling. */
        const uint64_t hash = XXH3_64bits_withSeed(text + piece, length, 1);
        const uint64_t first_id = words->ids.size;
        bool is_done = false;
        if (length <= CACHED_KEY_BYTES_MAX) {
            INGOT_TRY(recall(words, hash, text + piece, length, &is_done));
        }
        if (!is_done) {
            INGOT_TRY(merge_word(bpe, words, text + piece, length, path, error));
            if (length <= CACHED_KEY_BYTES_MAX) {
                INGOT_TRY(remember(words, hash, text + piece, length, first_id));
            }
        }
        if (start >= size) {
            break;
        }
        piece = start;
        before = c;
        is_known_before = is_known;
    }
    return INGOT_OK;
}

static ingot_status new_word(const ingot_tok_bpe *bpe, ingot_tok_words *words, const char *text,
                             uint64_t size, bool is_bytes, const char *path, ingot_error *error) {
    if (is_bytes) {
        words->mapped.size = 0;
        INGOT_TRY(ingot_tok_append_byte_level(&words->mapped, text, size));
        text = words->mapped.data;
        size = words->mapped.size;
    }
    if (bpe->ignore_merges) {
        const uint32_t id = ingot_tok_bpe_find(bpe, text, size);
        if (id != INGOT_TOK_NONE) {
            return append_u32(&words->ids, id);
        }
    }
    if (size > CACHED_KEY_BYTES_MAX && bpe->prefix == NULL && bpe->suffix == NULL) {
        return cut_word(bpe, words, text, size, path, error);
    }
    return merge_word(bpe, words, text, size, path, error);
}

ingot_status ingot_tok_bpe_word(const ingot_tok_bpe *bpe, ingot_tok_words *words, const char *text,
                                uint64_t size, bool is_bytes, const char *path,
                                ingot_error *error) {
    if (size > CACHED_KEY_BYTES_MAX) {
        return new_word(bpe, words, text, size, is_bytes, path, error);
    }
    const uint64_t hash = XXH3_64bits(text, size);
    const uint64_t first_id = words->ids.size;
    bool is_known;
    INGOT_TRY(recall(words, hash, text, size, &is_known));
    if (is_known) {
        return INGOT_OK;
    }
    INGOT_TRY(new_word(bpe, words, text, size, is_bytes, path, error));
    return remember(words, hash, text, size, first_id);
}
