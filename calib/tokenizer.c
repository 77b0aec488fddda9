/* The public functions of the tokenizer; what they are made of is in tokenizer_parts.h. */
#include "calib/tokenizer_parts.h"
#include "common/json.h"

#include <string.h>

/* Allocations deep inside return a bare status; the report is made here, once. */
static ingot_status report(ingot_status status, const char *path, ingot_error *error) {
    if (status == INGOT_ERR_NO_MEMORY) {
        return ingot_error_set(error, status, path, NULL, "free some memory or use less text",
                               "out of memory in the tokenizer");
    }
    if (status == INGOT_ERR_INTERNAL) {
        return ingot_error_set(error, status, path, NULL, NULL, "text could not be normalized");
    }
    return status;
}

ingot_status ingot_tokenizer_create(ingot_tokenizer **out, const char *bytes, uint64_t size,
                                    const char *path, ingot_error *error) {
    *out = NULL;
    json_t *root = NULL;
    ingot_tokenizer *tokenizer = NULL;
    void *memory;
    ingot_status status = ingot_alloc_zero(&memory, 1, sizeof(*tokenizer));
    if (status != INGOT_OK) {
        return report(status, path, error);
    }
    tokenizer = memory;
    INGOT_GO(ingot_tok_copy(&tokenizer->path, path, strlen(path)));
    INGOT_GO(ingot_json_parse(&root, bytes, size, path, error));
    INGOT_GO(ingot_tok_load(tokenizer, root, error));
    *out = tokenizer;
    tokenizer = NULL;
done:
    json_decref(root);
    ingot_tokenizer_destroy(tokenizer);
    return report(status, path, error);
}

void ingot_tokenizer_destroy(ingot_tokenizer *tokenizer) {
    if (tokenizer == NULL) {
        return;
    }
    for (uint64_t i = 0; i < tokenizer->normalizer_count; i++) {
        ingot_tok_normalizer_free(&tokenizer->normalizers[i]);
    }
    for (uint64_t i = 0; i < tokenizer->stage_count; i++) {
        ingot_tok_stage_free(&tokenizer->stages[i]);
    }
    for (uint64_t i = 0; i < tokenizer->decoder_count; i++) {
        ingot_tok_decoder_free(&tokenizer->decoders[i]);
    }
    for (uint64_t i = 0; i < tokenizer->added_count; i++) {
        ingot_free(tokenizer->added[i].content);
    }
    ingot_tok_bpe_free(&tokenizer->bpe);
    ingot_tok_trie_free(&tokenizer->raw);
    ingot_tok_trie_free(&tokenizer->normalized);
    ingot_free(tokenizer->added);
    ingot_free(tokenizer->added_by_id);
    ingot_free(tokenizer->path);
    ingot_free(tokenizer);
}

uint64_t ingot_tokenizer_vocab(const ingot_tokenizer *tokenizer) {
    return tokenizer->vocab;
}

uint64_t ingot_tokenizer_base_vocab(const ingot_tokenizer *tokenizer) {
    return tokenizer->bpe.token_count;
}

void ingot_tokenizer_set_rows(ingot_tokenizer *tokenizer, uint64_t rows) {
    tokenizer->rows = rows;
}

/* ---- Encoding ---- */

/* Where a piece comes from while it is searched for added tokens. */
typedef struct piece {
    ingot_tok_run *run;
    const char *text;
    bool is_start; /* at the start of the whole text */
} piece;

static ingot_status put_id(ingot_tok_run *run, uint32_t id) {
    return ingot_tok_append(&run->words.ids, (const char *)&id, sizeof(id));
}

static ingot_status take_normalized(void *context, uint32_t id, uint64_t start, uint64_t end,
                                    ingot_error *error) {
    const piece *p = context;
    if (id != INGOT_TOK_NONE) {
        return put_id(p->run, id);
    }
    return ingot_tok_split(p->run, 0, p->text + start, end - start, p->is_start && start == 0,
                           error);
}

static ingot_status take_raw(void *context, uint32_t id, uint64_t start, uint64_t end,
                             ingot_error *error) {
    const piece *raw = context;
    ingot_tok_run *run = raw->run;
    const ingot_tokenizer *t = run->tokenizer;
    if (id != INGOT_TOK_NONE) {
        return put_id(run, id);
    }
    piece normalized = {run, NULL, start == 0};
    uint64_t size;
    INGOT_TRY(ingot_tok_normalize(t->normalizers, t->normalizer_count, &run->matcher,
                                  run->normalized, &normalized.text, &size, raw->text + start,
                                  end - start, error));
    return ingot_tok_added_split(&t->normalized, t->added, normalized.text, size, take_normalized,
                                 &normalized, error);
}

static void run_free(ingot_tok_run *run) {
    ingot_tok_matcher_destroy(&run->matcher);
    ingot_tok_bytes_free(&run->normalized[0]);
    ingot_tok_bytes_free(&run->normalized[1]);
    for (unsigned i = 0; i < INGOT_TOK_STEPS_MAX; i++) {
        ingot_tok_bytes_free(&run->stage[i]);
    }
    ingot_tok_words_free(&run->words);
}

/* Whether the embedding has a row for each id. */
static ingot_status check_rows(const ingot_tokenizer *t, const uint32_t *ids, uint64_t count,
                               ingot_error *error) {
    for (uint64_t i = 0; i < count && t->rows != 0; i++) {
        if (ids[i] >= t->rows) {
            const uint32_t index = t->added_by_id[ids[i]];
            return ingot_error_set(error, INGOT_ERR_INPUT, t->path, NULL,
                                   "use a text without it, or the tokenizer that belongs to the "
                                   "model",
                                   "the text has token %u%s%.60s, the embedding %llu rows", ids[i],
                                   index != INGOT_TOK_NONE ? ", " : "",
                                   index != INGOT_TOK_NONE ? t->added[index].content : "",
                                   (unsigned long long)t->rows);
        }
    }
    return INGOT_OK;
}

ingot_status ingot_tokenizer_encode(const ingot_tokenizer *tokenizer, const char *text,
                                    uint64_t size, uint32_t **ids, uint64_t *count,
                                    ingot_error *error) {
    *ids = NULL;
    *count = 0;
    ingot_tok_run run = {.tokenizer = tokenizer};
    ingot_tok_bytes repaired = {0};
    bool is_valid;
    ingot_status status;
    INGOT_GO(ingot_tok_sanitize(&repaired, &is_valid, text, size));
    if (!is_valid) {
        text = repaired.data;
        size = repaired.size;
    }
    INGOT_GO(ingot_tok_matcher_create(&run.matcher, size, tokenizer->path));
    piece whole = {&run, text, true};
    INGOT_GO(ingot_tok_added_split(&tokenizer->raw, tokenizer->added, text, size, take_raw, &whole,
                                   error));
    INGOT_GO(ingot_tok_reserve(&run.words.ids, 1)); /* so that no ids is not a null pointer */
    INGOT_GO(check_rows(tokenizer, (const uint32_t *)(const void *)run.words.ids.data,
                        run.words.ids.size / sizeof(uint32_t), error));
    *ids = (uint32_t *)(void *)run.words.ids.data;
    *count = run.words.ids.size / sizeof(uint32_t);
    run.words.ids = (ingot_tok_bytes){0};
done:
    run_free(&run);
    ingot_tok_bytes_free(&repaired);
    return report(status, tokenizer->path, error);
}

/* ---- Decoding ---- */

/* An id that no token has gives no text: a model may have more rows than its tokenizer has tokens,
 * and may choose one of them. */
static ingot_status list_token(const ingot_tokenizer *t, ingot_tok_list *list, uint32_t id,
                               bool skip_special) {
    const uint32_t index = id < t->vocab ? t->added_by_id[id] : INGOT_TOK_NONE;
    if (index != INGOT_TOK_NONE) {
        const ingot_tok_added *added = &t->added[index];
        if (skip_special && added->special) {
            return INGOT_OK;
        }
        INGOT_TRY(ingot_tok_append(&list->text, added->content, added->size));
        return ingot_tok_list_close(list);
    }
    if (id >= t->bpe.token_count || !t->bpe.tokens[id].exists) {
        return INGOT_OK;
    }
    const ingot_tok_token *token = &t->bpe.tokens[id];
    INGOT_TRY(ingot_tok_append(&list->text, t->bpe.blob.data + token->offset, token->size));
    return ingot_tok_list_close(list);
}

ingot_status ingot_tokenizer_decode(const ingot_tokenizer *tokenizer, const uint32_t *ids,
                                    uint64_t count, bool skip_special, char **text, uint64_t *size,
                                    ingot_error *error) {
    *text = NULL;
    *size = 0;
    ingot_tok_list list = {0};
    ingot_tok_matcher matcher = {0};
    ingot_status status = INGOT_OK;
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t before = ingot_tok_list_count(&list);
        INGOT_GO(list_token(tokenizer, &list, ids[i], skip_special));
        /* Without a decoder the library joins tokens by spaces. */
        if (!tokenizer->has_decoder && before != 0 && ingot_tok_list_count(&list) != before) {
            uint64_t end;
            memcpy(&end, list.ends.data + (before - 1) * sizeof(end), sizeof(end));
            INGOT_GO(ingot_tok_append(&list.text, " ", 1));
            memmove(list.text.data + end + 1, list.text.data + end, list.text.size - end - 1);
            list.text.data[end] = ' ';
            memcpy(list.ends.data + before * sizeof(end), &list.text.size, sizeof(end));
        }
    }
    INGOT_GO(ingot_tok_matcher_create(&matcher, list.text.size, tokenizer->path));
    INGOT_GO(
        ingot_tok_decode(tokenizer->decoders, tokenizer->decoder_count, &matcher, &list, error));
    *size = list.text.size;
    INGOT_GO(ingot_tok_append(&list.text, "", 1));
    *text = list.text.data;
    list.text = (ingot_tok_bytes){0};
done:
    ingot_tok_matcher_destroy(&matcher);
    ingot_tok_list_free(&list);
    return report(status, tokenizer->path, error);
}
