/* tokenizer.json -> the parts of the tokenizer.  Sequences are flattened; a component that is not
 * known is refused by name.  Truncation, padding and the post-processor do not apply: whole texts
 * are encoded, without special tokens. */
#include "calib/tokenizer_parts.h"
#include "common/json.h"
#include "common/sizes.h"

#include <string.h>

#define SEQUENCE_DEPTH_MAX 8u

typedef struct loader {
    ingot_tokenizer *t;
    ingot_error *error;
} loader;

static ingot_status unsupported(loader *l, const char *what, const char *name) {
    return ingot_error_set(l->error, INGOT_ERR_UNSUPPORTED, l->t->path, NULL, NULL,
                           "the tokenizer's %s \"%.100s\" is not supported", what, name);
}

static ingot_status malformed(loader *l, const char *what) {
    return ingot_error_set(l->error, INGOT_ERR_INPUT, l->t->path, NULL,
                           "check that the file is whole", "the tokenizer's %s is malformed", what);
}

/* *is_set with its value in *out when the key holds a boolean; missing and null leave *out. */
static ingot_status get_bool(loader *l, const json_t *object, const char *key, bool *out) {
    return ingot_json_get_bool(object, key, out, l->t->path, l->error);
}

/* A text that must be there. */
static ingot_status get_text(loader *l, const json_t *object, const char *key, char **out,
                             uint64_t *size) {
    const json_t *value = json_object_get(object, key);
    if (!json_is_string(value)) {
        return malformed(l, key);
    }
    *size = json_string_length(value);
    return ingot_tok_copy(out, json_string_value(value), *size);
}

/* The same, exactly one character. */
static ingot_status get_char(loader *l, const json_t *object, const char *key, char **out,
                             uint64_t *size) {
    INGOT_TRY(get_text(l, object, key, out, size));
    uint64_t at = 0;
    if (*size != 0) {
        (void)ingot_tok_next(*out, &at);
    }
    return *size != 0 && at == *size ? INGOT_OK : malformed(l, key);
}

/* {"String": text} or {"Regex": expression}. */
static ingot_status get_pattern(loader *l, const json_t *object, ingot_tok_pattern *out) {
    const json_t *pattern = json_object_get(object, "pattern");
    const json_t *literal = json_object_get(pattern, "String");
    const json_t *regex = json_object_get(pattern, "Regex");
    if (json_is_string(literal)) {
        return ingot_tok_pattern_literal(out, json_string_value(literal),
                                         json_string_length(literal), l->t->path, l->error);
    }
    if (json_is_string(regex)) {
        return ingot_tok_pattern_regex(out, json_string_value(regex), json_string_length(regex),
                                       l->t->path, l->error);
    }
    return malformed(l, "pattern");
}

static const char *get_type(const json_t *object) {
    const char *type = json_string_value(json_object_get(object, "type"));
    return type == NULL ? "(no type)" : type;
}

static bool is_null(const json_t *value) {
    return value == NULL || json_is_null(value);
}

typedef ingot_status (*load_component)(loader *l, const json_t *object, const char *type);

/* Calls load for a component, or for each of a sequence whose members are under `key`. */
static ingot_status load_sequence(loader *l, const json_t *object, const char *key,
                                  load_component load, unsigned depth) {
    if (!json_is_object(object)) {
        return malformed(l, key);
    }
    const char *type = get_type(object);
    if (strcmp(type, "Sequence") != 0) {
        return load(l, object, type);
    }
    const json_t *members = json_object_get(object, key);
    if (!json_is_array(members) || depth >= SEQUENCE_DEPTH_MAX) {
        return malformed(l, key);
    }
    for (size_t i = 0; i < json_array_size(members); i++) {
        INGOT_TRY(load_sequence(l, json_array_get(members, i), key, load, depth + 1));
    }
    return INGOT_OK;
}

/* ---- Normalizers ---- */

static ingot_status load_normalizer(loader *l, const json_t *object, const char *type) {
    static const struct {
        const char *name;
        ingot_tok_normalizer_kind kind;
    } kinds[] = {
        {"NFC", INGOT_TOK_NFC},         {"NFD", INGOT_TOK_NFD},
        {"NFKC", INGOT_TOK_NFKC},       {"NFKD", INGOT_TOK_NFKD},
        {"Strip", INGOT_TOK_STRIP},     {"Lowercase", INGOT_TOK_LOWERCASE},
        {"Prepend", INGOT_TOK_PREPEND}, {"ByteLevel", INGOT_TOK_NORMALIZE_BYTES},
        {"Replace", INGOT_TOK_REPLACE},
    };
    size_t k = 0;
    while (k < sizeof(kinds) / sizeof(kinds[0]) && strcmp(type, kinds[k].name) != 0) {
        k++;
    }
    if (k == sizeof(kinds) / sizeof(kinds[0])) {
        return unsupported(l, "normalizer", type);
    }
    if (l->t->normalizer_count == INGOT_TOK_STEPS_MAX) {
        return unsupported(l, "list of normalizers", "longer than 32");
    }
    ingot_tok_normalizer *step = &l->t->normalizers[l->t->normalizer_count++];
    step->kind = kinds[k].kind;
    if (step->kind == INGOT_TOK_STRIP) {
        INGOT_TRY(get_bool(l, object, "strip_left", &step->left));
        return get_bool(l, object, "strip_right", &step->right);
    }
    if (step->kind == INGOT_TOK_PREPEND) {
        return get_text(l, object, "prepend", &step->content, &step->content_size);
    }
    if (step->kind == INGOT_TOK_REPLACE) {
        INGOT_TRY(get_pattern(l, object, &step->pattern));
        return get_text(l, object, "content", &step->content, &step->content_size);
    }
    return INGOT_OK;
}

/* ---- Pre-tokenizers ---- */

static ingot_status add_stage(loader *l, ingot_tok_stage_kind kind, ingot_tok_stage **out) {
    if (l->t->stage_count == INGOT_TOK_STEPS_MAX) {
        return unsupported(l, "list of pre-tokenizers", "longer than 32 steps");
    }
    *out = &l->t->stages[l->t->stage_count++];
    (*out)->kind = kind;
    (*out)->behavior = INGOT_TOK_ISOLATED;
    return INGOT_OK;
}

static ingot_status get_behavior(loader *l, const json_t *object, ingot_tok_behavior *out) {
    static const char *const names[] = {
        [INGOT_TOK_REMOVED] = "Removed",
        [INGOT_TOK_ISOLATED] = "Isolated",
        [INGOT_TOK_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [INGOT_TOK_MERGED_WITH_NEXT] = "MergedWithNext",
        [INGOT_TOK_CONTIGUOUS] = "Contiguous",
    };
    const char *name = json_string_value(json_object_get(object, "behavior"));
    for (unsigned i = 0; name != NULL && i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = (ingot_tok_behavior)i;
            return INGOT_OK;
        }
    }
    return malformed(l, "behavior");
}

static ingot_status load_split(loader *l, const json_t *object) {
    ingot_tok_stage *stage = NULL;
    INGOT_TRY(add_stage(l, INGOT_TOK_SPLIT_PATTERN, &stage));
    INGOT_TRY(get_behavior(l, object, &stage->behavior));
    INGOT_TRY(get_bool(l, object, "invert", &stage->is_inverted));
    return get_pattern(l, object, &stage->pattern);
}

static ingot_status add_regex(loader *l, const char *regex, ingot_tok_behavior behavior,
                              bool is_inverted) {
    ingot_tok_stage *stage = NULL;
    INGOT_TRY(add_stage(l, INGOT_TOK_SPLIT_PATTERN, &stage));
    stage->behavior = behavior;
    stage->is_inverted = is_inverted;
    return ingot_tok_pattern_regex(&stage->pattern, regex, strlen(regex), l->t->path, l->error);
}

static ingot_status add_prefix(loader *l, const char *content, uint64_t size, bool is_first_only) {
    ingot_tok_stage *stage = NULL;
    INGOT_TRY(add_stage(l, INGOT_TOK_PREFIX, &stage));
    stage->is_first_only = is_first_only;
    stage->content_size = size;
    return ingot_tok_copy(&stage->content, content, size);
}

/* GPT-2's expression, which ByteLevel applies on its own. */
static const char gpt2_regex[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+"
                                 "|\\s+(?!\\S)|\\s+";

/* Whitespace's words: Unicode's definition (UTS #18, annex C), which is not Oniguruma's \w. */
#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\u200c\\u200d"
static const char whitespace_regex[] = "[" WORD "]+|[^" WORD "\\s]+";

static ingot_status load_byte_level(loader *l, const json_t *object) {
    bool has_prefix = true, uses_regex = true;
    ingot_tok_stage *stage = NULL;
    INGOT_TRY(get_bool(l, object, "add_prefix_space", &has_prefix));
    INGOT_TRY(get_bool(l, object, "use_regex", &uses_regex));
    if (has_prefix) {
        INGOT_TRY(add_prefix(l, " ", 1, false));
    }
    if (uses_regex) {
        INGOT_TRY(add_regex(l, gpt2_regex, INGOT_TOK_ISOLATED, false));
    }
    return add_stage(l, INGOT_TOK_BYTES, &stage);
}

/* The prepend scheme of a Metaspace: "always" (the default), "first" or "never"; older files say
 * add_prefix_space. */
static ingot_status get_scheme(loader *l, const json_t *object, bool *prepends,
                               bool *is_first_only) {
    const char *scheme = "always";
    bool has_prefix = true;
    INGOT_TRY(ingot_json_get_string(object, "prepend_scheme", &scheme, l->t->path, l->error));
    INGOT_TRY(get_bool(l, object, "add_prefix_space", &has_prefix));
    *is_first_only = strcmp(scheme, "first") == 0;
    *prepends = *is_first_only || strcmp(scheme, "always") == 0;
    if (!*prepends && strcmp(scheme, "never") != 0) {
        return unsupported(l, "prepend scheme", scheme);
    }
    if (!has_prefix) {
        *prepends = false;
    }
    return INGOT_OK;
}

static ingot_status load_metaspace(loader *l, const json_t *object) {
    bool prepends, is_first_only, splits = true;
    ingot_tok_stage *spaces = NULL;
    INGOT_TRY(get_scheme(l, object, &prepends, &is_first_only));
    INGOT_TRY(get_bool(l, object, "split", &splits));
    INGOT_TRY(add_stage(l, INGOT_TOK_SPACES, &spaces));
    INGOT_TRY(get_char(l, object, "replacement", &spaces->content, &spaces->content_size));
    if (prepends) {
        INGOT_TRY(add_prefix(l, spaces->content, spaces->content_size, is_first_only));
    }
    if (!splits) {
        return INGOT_OK;
    }
    ingot_tok_stage *stage = NULL;
    INGOT_TRY(add_stage(l, INGOT_TOK_SPLIT_PATTERN, &stage));
    stage->behavior = INGOT_TOK_MERGED_WITH_NEXT;
    return ingot_tok_pattern_literal(&stage->pattern, spaces->content, spaces->content_size,
                                     l->t->path, l->error);
}

static ingot_status load_class(loader *l, const json_t *object, const char *type) {
    ingot_tok_stage *stage = NULL;
    INGOT_TRY(add_stage(l, INGOT_TOK_SPLIT_CLASS, &stage));
    if (strcmp(type, "Digits") == 0) {
        bool is_individual = false;
        INGOT_TRY(get_bool(l, object, "individual_digits", &is_individual));
        stage->is_class = ingot_tok_is_numeric;
        stage->behavior = is_individual ? INGOT_TOK_ISOLATED : INGOT_TOK_CONTIGUOUS;
        return INGOT_OK;
    }
    if (strcmp(type, "WhitespaceSplit") == 0) {
        stage->is_class = ingot_tok_is_space;
        stage->behavior = INGOT_TOK_REMOVED;
        return INGOT_OK;
    }
    stage->is_class = ingot_tok_is_punctuation;
    return is_null(json_object_get(object, "behavior")) ? INGOT_OK
                                                        : get_behavior(l, object, &stage->behavior);
}

static ingot_status load_pre_tokenizer(loader *l, const json_t *object, const char *type) {
    if (strcmp(type, "Split") == 0) {
        return load_split(l, object);
    }
    if (strcmp(type, "ByteLevel") == 0) {
        return load_byte_level(l, object);
    }
    if (strcmp(type, "Metaspace") == 0) {
        return load_metaspace(l, object);
    }
    if (strcmp(type, "Digits") == 0 || strcmp(type, "Punctuation") == 0 ||
        strcmp(type, "WhitespaceSplit") == 0) {
        return load_class(l, object, type);
    }
    if (strcmp(type, "Whitespace") == 0) {
        return add_regex(l, whitespace_regex, INGOT_TOK_REMOVED, true);
    }
    return unsupported(l, "pre-tokenizer", type);
}

/* ---- Decoders ---- */

static ingot_status load_decoder(loader *l, const json_t *object, const char *type) {
    static const struct {
        const char *name;
        ingot_tok_decoder_kind kind;
    } kinds[] = {
        {"ByteLevel", INGOT_TOK_DECODE_BYTE_LEVEL},
        {"Metaspace", INGOT_TOK_DECODE_METASPACE},
        {"Replace", INGOT_TOK_DECODE_REPLACE},
        {"ByteFallback", INGOT_TOK_DECODE_BYTE_FALLBACK},
        {"Fuse", INGOT_TOK_DECODE_FUSE},
        {"Strip", INGOT_TOK_DECODE_STRIP},
    };
    size_t k = 0;
    while (k < sizeof(kinds) / sizeof(kinds[0]) && strcmp(type, kinds[k].name) != 0) {
        k++;
    }
    if (k == sizeof(kinds) / sizeof(kinds[0])) {
        return unsupported(l, "decoder", type);
    }
    if (l->t->decoder_count == INGOT_TOK_STEPS_MAX) {
        return unsupported(l, "list of decoders", "longer than 32");
    }
    ingot_tok_decoder *step = &l->t->decoders[l->t->decoder_count++];
    step->kind = kinds[k].kind;
    if (step->kind == INGOT_TOK_DECODE_REPLACE) {
        INGOT_TRY(get_pattern(l, object, &step->pattern));
        return get_text(l, object, "content", &step->content, &step->content_size);
    }
    if (step->kind == INGOT_TOK_DECODE_STRIP) {
        INGOT_TRY(ingot_json_get_u64(object, "start", &step->start, l->t->path, l->error));
        INGOT_TRY(ingot_json_get_u64(object, "stop", &step->stop, l->t->path, l->error));
        return get_char(l, object, "content", &step->content, &step->content_size);
    }
    if (step->kind == INGOT_TOK_DECODE_METASPACE) {
        bool is_first_only;
        INGOT_TRY(get_scheme(l, object, &step->drops_first_prefix, &is_first_only));
        return get_char(l, object, "replacement", &step->content, &step->content_size);
    }
    return INGOT_OK;
}

/* ---- Model and added tokens ---- */

static ingot_status get_optional_text(loader *l, const json_t *object, const char *key,
                                      char **out) {
    const char *text = NULL;
    INGOT_TRY(ingot_json_get_string(object, key, &text, l->t->path, l->error));
    return text == NULL || *text == '\0' ? INGOT_OK : ingot_tok_copy(out, text, strlen(text));
}

static ingot_status load_model(loader *l, const json_t *model) {
    ingot_tok_bpe *bpe = &l->t->bpe;
    if (!json_is_object(model)) {
        return malformed(l, "model");
    }
    const json_t *type = json_object_get(model, "type");
    if (type != NULL && strcmp(get_type(model), "BPE") != 0) {
        return unsupported(l, "model", get_type(model));
    }
    double dropout = 0;
    INGOT_TRY(ingot_json_get_double(model, "dropout", &dropout, l->t->path, l->error));
    if (dropout != 0) {
        return unsupported(l, "model option", "dropout");
    }
    INGOT_TRY(get_bool(l, model, "fuse_unk", &bpe->fuse_unk));
    INGOT_TRY(get_bool(l, model, "byte_fallback", &bpe->byte_fallback));
    INGOT_TRY(get_bool(l, model, "ignore_merges", &bpe->ignore_merges));
    INGOT_TRY(get_optional_text(l, model, "unk_token", &bpe->unk));
    INGOT_TRY(get_optional_text(l, model, "continuing_subword_prefix", &bpe->prefix));
    INGOT_TRY(get_optional_text(l, model, "end_of_word_suffix", &bpe->suffix));
    return ingot_tok_bpe_load(bpe, model, l->t->path, l->error);
}

/* The index of the added token of this content, or added_count. */
static uint64_t find_added(const ingot_tokenizer *t, const ingot_tok_trie *contents,
                           const char *content, uint64_t size) {
    uint32_t node = 0;
    for (uint64_t i = 0; i < size; i++) {
        uint32_t next = contents->first[(uint8_t)content[i]];
        if (node != 0) {
            next = contents->nodes[node].child;
            while (next != 0 && contents->nodes[next].byte != (uint8_t)content[i]) {
                next = contents->nodes[next].sibling;
            }
        }
        if (next == 0) {
            return t->added_count;
        }
        node = next;
    }
    const uint32_t index = node == 0 ? INGOT_TOK_NONE : contents->nodes[node].token;
    return index == INGOT_TOK_NONE ? t->added_count : index;
}

/* Ids are given as the library gives them: the model's where it knows the content, else the next
 * free one; the id the file states plays no part. A later token of the same content replaces the
 * earlier one. */
static ingot_status load_added(loader *l, const json_t *object, ingot_tok_trie *contents,
                               uint64_t *next_id) {
    ingot_tokenizer *t = l->t;
    ingot_tok_added token = {.normalized = true};
    INGOT_TRY(get_bool(l, object, "special", &token.special));
    INGOT_TRY(get_bool(l, object, "single_word", &token.single_word));
    INGOT_TRY(get_bool(l, object, "lstrip", &token.lstrip));
    INGOT_TRY(get_bool(l, object, "rstrip", &token.rstrip));
    token.normalized = !token.special;
    INGOT_TRY(get_bool(l, object, "normalized", &token.normalized));
    INGOT_TRY(get_text(l, object, "content", &token.content, &token.size));
    if (token.size == 0) {
        ingot_free(token.content);
        return INGOT_OK;
    }
    const uint64_t index = find_added(t, contents, token.content, token.size);
    token.id = ingot_tok_bpe_find(&t->bpe, token.content, token.size);
    if (index < t->added_count) {
        token.id = t->added[index].id;
        token.special |= t->added[index].special;
        ingot_free(t->added[index].content);
    } else if (token.id == INGOT_TOK_NONE) {
        token.id = (uint32_t)(*next_id)++;
    }
    t->added[index] = token;
    t->added_count += index == t->added_count;
    return ingot_tok_trie_insert(contents, token.content, token.size, (uint32_t)index);
}

static ingot_status load_added_tokens(loader *l, const json_t *list) {
    ingot_tokenizer *t = l->t;
    ingot_tok_trie contents = {0};
    ingot_status status = INGOT_OK;
    void *memory;
    if (is_null(list)) {
        return INGOT_OK;
    }
    if (!json_is_array(list) || json_array_size(list) >= INGOT_TOK_ID_LIMIT) {
        return malformed(l, "list of added tokens");
    }
    INGOT_TRY(ingot_alloc_zero(&memory, json_array_size(list), sizeof(*t->added)));
    t->added = memory;
    uint64_t next_id = t->bpe.entry_count;
    for (size_t i = 0; i < json_array_size(list); i++) {
        INGOT_GO(load_added(l, json_array_get(list, i), &contents, &next_id));
    }
done:
    ingot_tok_trie_free(&contents);
    return status;
}

/* Normalizes the contents that ask for it, builds the tries and the table by id. */
static ingot_status index_added(loader *l) {
    ingot_tokenizer *t = l->t;
    ingot_tok_matcher matcher = {0};
    ingot_tok_bytes buffers[2] = {{0}};
    ingot_status status;
    t->vocab = t->bpe.token_count;
    for (uint64_t i = 0; i < t->added_count; i++) {
        t->vocab = ingot_max_u64(t->vocab, (uint64_t)t->added[i].id + 1);
    }
    void *memory;
    INGOT_TRY(ingot_alloc(&memory, t->vocab * sizeof(*t->added_by_id)));
    t->added_by_id = memory;
    memset(t->added_by_id, 0xFF, t->vocab * sizeof(*t->added_by_id));
    INGOT_GO(ingot_tok_matcher_create(&matcher, 0, t->path));
    for (uint64_t i = 0; i < t->added_count; i++) {
        ingot_tok_added *token = &t->added[i];
        t->added_by_id[token->id] = (uint32_t)i;
        if (!token->normalized) {
            INGOT_GO(ingot_tok_trie_insert(&t->raw, token->content, token->size, (uint32_t)i));
            continue;
        }
        const char *text;
        uint64_t size;
        INGOT_GO(ingot_tok_normalize(t->normalizers, t->normalizer_count, &matcher, buffers, &text,
                                     &size, token->content, token->size, l->error));
        if (size != token->size || memcmp(text, token->content, size) != 0) {
            char *content;
            INGOT_GO(ingot_tok_copy(&content, text == NULL ? "" : text, size));
            ingot_free(token->content);
            token->content = content;
            token->size = size;
            token->special = false; /* decoding knows special tokens by their content */
        }
        INGOT_GO(ingot_tok_trie_insert(&t->normalized, token->content, token->size, (uint32_t)i));
    }
done:
    ingot_tok_matcher_destroy(&matcher);
    ingot_tok_bytes_free(&buffers[0]);
    ingot_tok_bytes_free(&buffers[1]);
    return status;
}

ingot_status ingot_tok_load(ingot_tokenizer *tokenizer, const json_t *root, ingot_error *error) {
    loader l = {tokenizer, error};
    if (!json_is_object(root)) {
        return malformed(&l, "file");
    }
    const char *version = "1.0";
    INGOT_TRY(ingot_json_get_string(root, "version", &version, tokenizer->path, error));
    if (strcmp(version, "1.0") != 0) {
        return unsupported(&l, "version", version);
    }
    const json_t *normalizer = json_object_get(root, "normalizer");
    const json_t *pre_tokenizer = json_object_get(root, "pre_tokenizer");
    const json_t *decoder = json_object_get(root, "decoder");
    if (!is_null(normalizer)) {
        INGOT_TRY(load_sequence(&l, normalizer, "normalizers", load_normalizer, 0));
    }
    if (!is_null(pre_tokenizer)) {
        INGOT_TRY(load_sequence(&l, pre_tokenizer, "pretokenizers", load_pre_tokenizer, 0));
    }
    if (!is_null(decoder)) {
        tokenizer->has_decoder = true;
        INGOT_TRY(load_sequence(&l, decoder, "decoders", load_decoder, 0));
    }
    INGOT_TRY(load_model(&l, json_object_get(root, "model")));
    INGOT_TRY(load_added_tokens(&l, json_object_get(root, "added_tokens")));
    return index_added(&l);
}
