/* The parts of the tokenizer, one file each, in the order in which text passes through them:
 *
 *   tokenizer_unicode.c    UTF-8, character classes, growable bytes
 *   tokenizer_regex.c      Oniguruma expressions on PCRE2; literal patterns
 *   tokenizer_added.c      added tokens, found before anything else
 *   tokenizer_normalize.c  normalizers
 *   tokenizer_split.c      pre-tokenizers
 *   tokenizer_bpe.c        vocabulary, merges, word cache
 *   tokenizer_decode.c     decoders
 *   tokenizer_load.c       tokenizer.json -> all of the above
 *   tokenizer.c            the public functions
 *
 * Private to calib/tokenizer*.c.  A loaded tokenizer is read-only: whatever a call changes (match
 * data, buffers, the word cache) lives in that call's ingot_tok_run, so one tokenizer may be used
 * by many threads.
 *
 * Invariant: text that has passed ingot_tok_sanitize is valid UTF-8, and every later part keeps it
 * so; that is what allows PCRE2_NO_UTF_CHECK. */
#ifndef INGOT_TOKENIZER_PARTS_H
#define INGOT_TOKENIZER_PARTS_H

#include "calib/tokenizer.h"
#include "common/memory.h"

#include <jansson.h>
#include <pcre2.h>

#define INGOT_TOK_STEPS_MAX 32u        /* components of a sequence, nested ones counted */
#define INGOT_TOK_ID_LIMIT  (1u << 24) /* ids are table indices; the largest known is 2^18 */
#define INGOT_TOK_NONE      UINT32_MAX /* no id */

/* ---- Growable bytes ---- */

typedef struct ingot_tok_bytes {
    char *data; /* owned; NULL while empty */
    uint64_t size, capacity;
} ingot_tok_bytes;

ingot_status ingot_tok_reserve(ingot_tok_bytes *bytes, uint64_t extra) INGOT_MUST_CHECK;
ingot_status ingot_tok_append(ingot_tok_bytes *bytes, const char *data,
                              uint64_t size) INGOT_MUST_CHECK;
ingot_status ingot_tok_append_char(ingot_tok_bytes *bytes, uint32_t c) INGOT_MUST_CHECK;
void ingot_tok_bytes_free(ingot_tok_bytes *bytes);
/* A NUL-terminated copy, released with ingot_free. */
ingot_status ingot_tok_copy(char **out, const char *data, uint64_t size) INGOT_MUST_CHECK;

/* ---- Unicode ---- */

/* Decodes the character at text[*at] and moves *at beyond it; text is valid UTF-8. */
uint32_t ingot_tok_next(const char *text, uint64_t *at);
/* Start of the character that ends at text[at]; at > 0. */
uint64_t ingot_tok_previous(const char *text, uint64_t at);
/* Writes c as UTF-8 into text and returns its length, 1..4. */
unsigned ingot_tok_encode_char(char text[4], uint32_t c);
/* *is_valid = text is valid UTF-8; if it is not, repaired receives a copy with one U+FFFD for each
 * maximal subpart of an ill-formed sequence (Unicode, section 3.9). */
ingot_status ingot_tok_sanitize(ingot_tok_bytes *repaired, bool *is_valid, const char *text,
                                uint64_t size) INGOT_MUST_CHECK;
bool ingot_tok_is_ascii(const char *text, uint64_t size);
bool ingot_tok_is_space(uint32_t c);       /* White_Space */
bool ingot_tok_is_numeric(uint32_t c);     /* Nd, Nl, No */
bool ingot_tok_is_punctuation(uint32_t c); /* P*, and the symbols among ASCII punctuation */
bool ingot_tok_is_word(uint32_t c);        /* Alphabetic, M, Nd, Pc, Join_Control */
/* The byte-level alphabet of GPT-2: every byte as a printable character. */
uint32_t ingot_tok_byte_char(uint8_t byte);
bool ingot_tok_char_byte(uint32_t c, uint8_t *byte);
ingot_status ingot_tok_append_byte_level(ingot_tok_bytes *out, const char *text,
                                         uint64_t size) INGOT_MUST_CHECK;

/* ---- Patterns ---- */

typedef struct ingot_tok_pattern {
    char *source;         /* owned: the literal, or the expression as the file spells it */
    uint64_t source_size; /* bytes, > 0 */
    pcre2_code *code;     /* NULL for a literal */
    bool has_jit;
} ingot_tok_pattern;

/* What matching needs beside the pattern: one per call. */
typedef struct ingot_tok_matcher {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    const char *path; /* for errors */
} ingot_tok_matcher;

ingot_status ingot_tok_pattern_literal(ingot_tok_pattern *out, const char *text, uint64_t size,
                                       const char *path, ingot_error *error) INGOT_MUST_CHECK;
/* INGOT_ERR_UNSUPPORTED for an expression that cannot be carried over to PCRE2 faithfully. */
ingot_status ingot_tok_pattern_regex(ingot_tok_pattern *out, const char *text, uint64_t size,
                                     const char *path, ingot_error *error) INGOT_MUST_CHECK;
void ingot_tok_pattern_free(ingot_tok_pattern *pattern);
/* text_size bounds the work: the match limit grows with it. */
ingot_status ingot_tok_matcher_create(ingot_tok_matcher *out, uint64_t text_size,
                                      const char *path) INGOT_MUST_CHECK;
void ingot_tok_matcher_destroy(ingot_tok_matcher *matcher);

/* Receives the segments of a text in order; they cover it without gaps. */
typedef ingot_status (*ingot_tok_segment)(void *context, uint64_t start, uint64_t end,
                                          bool is_match, ingot_error *error);
ingot_status ingot_tok_pattern_segments(const ingot_tok_pattern *pattern,
                                        ingot_tok_matcher *matcher, const char *text, uint64_t size,
                                        ingot_tok_segment segment, void *context,
                                        ingot_error *error) INGOT_MUST_CHECK;
/* Appends text with every match replaced by content. */
ingot_status ingot_tok_pattern_replace(const ingot_tok_pattern *pattern, ingot_tok_matcher *matcher,
                                       ingot_tok_bytes *out, const char *text, uint64_t size,
                                       const char *content, uint64_t content_size,
                                       ingot_error *error) INGOT_MUST_CHECK;

/* Oniguruma (Ruby syntax) -> PCRE2; *reason is a static text when it cannot be done. */
ingot_status ingot_tok_regex_translate(ingot_tok_bytes *out, const char *text, uint64_t size,
                                       const char **reason) INGOT_MUST_CHECK;

/* ---- Added tokens ---- */

typedef struct ingot_tok_added {
    char *content; /* owned; normalized where the token asks for it */
    uint64_t size;
    uint32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
} ingot_tok_added;

/* A byte trie; node 0 is the root, children are linked lists. */
typedef struct ingot_tok_node {
    uint32_t child, sibling; /* 0: none */
    uint32_t token;          /* index of the added token, or INGOT_TOK_NONE */
    uint8_t byte;
} ingot_tok_node;
typedef struct ingot_tok_trie {
    ingot_tok_node *nodes; /* owned */
    uint32_t count, capacity;
    uint32_t first[256]; /* children of the root */
} ingot_tok_trie;

ingot_status ingot_tok_trie_insert(ingot_tok_trie *trie, const char *content, uint64_t size,
                                   uint32_t token) INGOT_MUST_CHECK;
void ingot_tok_trie_free(ingot_tok_trie *trie);
/* id: INGOT_TOK_NONE for text between added tokens. */
typedef ingot_status (*ingot_tok_added_piece)(void *context, uint32_t id, uint64_t start,
                                              uint64_t end, ingot_error *error);
ingot_status ingot_tok_added_split(const ingot_tok_trie *trie, const ingot_tok_added *tokens,
                                   const char *text, uint64_t size, ingot_tok_added_piece piece,
                                   void *context, ingot_error *error) INGOT_MUST_CHECK;

/* ---- Normalizers ---- */

typedef enum ingot_tok_normalizer_kind {
    INGOT_TOK_NFC,
    INGOT_TOK_NFD,
    INGOT_TOK_NFKC,
    INGOT_TOK_NFKD,
    INGOT_TOK_LOWERCASE,
    INGOT_TOK_PREPEND,
    INGOT_TOK_REPLACE,
    INGOT_TOK_STRIP,
    INGOT_TOK_NORMALIZE_BYTES,
} ingot_tok_normalizer_kind;

typedef struct ingot_tok_normalizer {
    ingot_tok_normalizer_kind kind;
    ingot_tok_pattern pattern; /* REPLACE */
    char *content;             /* REPLACE, PREPEND; owned */
    uint64_t content_size;
    bool left, right; /* STRIP */
} ingot_tok_normalizer;

void ingot_tok_normalizer_free(ingot_tok_normalizer *normalizer);
/* Passes text through steps[count]; *out points to text itself or into one of the two buffers. */
ingot_status ingot_tok_normalize(const ingot_tok_normalizer *steps, uint64_t count,
                                 ingot_tok_matcher *matcher, ingot_tok_bytes buffers[2],
                                 const char **out, uint64_t *out_size, const char *text,
                                 uint64_t size, ingot_error *error) INGOT_MUST_CHECK;

/* ---- Pre-tokenizers ---- */

typedef enum ingot_tok_behavior {
    INGOT_TOK_REMOVED,
    INGOT_TOK_ISOLATED,
    INGOT_TOK_MERGED_WITH_PREVIOUS,
    INGOT_TOK_MERGED_WITH_NEXT,
    INGOT_TOK_CONTIGUOUS,
} ingot_tok_behavior;

typedef enum ingot_tok_stage_kind {
    INGOT_TOK_SPLIT_PATTERN,
    INGOT_TOK_SPLIT_CLASS, /* on characters for which is_class holds */
    INGOT_TOK_PREFIX,      /* prepend content unless the text begins with it */
    INGOT_TOK_SPACES,      /* replace every U+0020 by content */
    INGOT_TOK_BYTES,       /* every byte as a character of the byte-level alphabet */
} ingot_tok_stage_kind;

/* Pre-tokenizers are reduced to a list of these. */
typedef struct ingot_tok_stage {
    ingot_tok_stage_kind kind;
    ingot_tok_behavior behavior;
    bool is_inverted;
    bool is_first_only; /* PREFIX: only at the start of the whole text */
    ingot_tok_pattern pattern;
    bool (*is_class)(uint32_t c);
    char *content; /* owned */
    uint64_t content_size;
} ingot_tok_stage;

void ingot_tok_stage_free(ingot_tok_stage *stage);

/* ---- Model ---- */

typedef struct ingot_tok_token {
    uint64_t offset; /* in the blob */
    uint32_t size;   /* bytes */
    bool exists;
} ingot_tok_token;

typedef struct ingot_tok_merge {
    uint32_t left, right; /* left = INGOT_TOK_NONE: empty slot */
    uint32_t rank, id;
} ingot_tok_merge;

typedef struct ingot_tok_bpe {
    ingot_tok_bytes blob;    /* the tokens' texts */
    ingot_tok_token *tokens; /* [token_count], by id */
    uint64_t token_count, entry_count;
    uint32_t *slots; /* [slot_count] ids, open addressing by text */
    uint64_t slot_count;
    ingot_tok_merge *merges; /* [merge_slot_count], open addressing by pair */
    uint64_t merge_slot_count;
    uint64_t *adjacent; /* [adjacent_count] pairs of characters that some merge joins; 0: empty */
    uint64_t adjacent_count;
    uint32_t char_ids[0x800]; /* id of each short character's token, or INGOT_TOK_NONE */
    uint32_t byte_ids[256];   /* ids of "<0x00>".."<0xFF>" */
    uint64_t longest;         /* bytes of the longest token */
    char *unk;                /* or NULL */
    uint32_t unk_id;
    char *prefix, *suffix; /* of continuing subwords and of the last one; NULL when empty */
    bool fuse_unk, byte_fallback, ignore_merges;
} ingot_tok_bpe;

ingot_status ingot_tok_bpe_load(ingot_tok_bpe *bpe, const json_t *model, const char *path,
                                ingot_error *error) INGOT_MUST_CHECK;
void ingot_tok_bpe_free(ingot_tok_bpe *bpe);
/* INGOT_TOK_NONE when there is no such token. */
uint32_t ingot_tok_bpe_find(const ingot_tok_bpe *bpe, const char *text, uint64_t size);

typedef struct ingot_tok_cached {
    uint64_t hash;
    uint64_t key; /* offset in keys */
    uint64_t ids; /* offset in values */
    uint32_t key_size, id_count;
} ingot_tok_cached;

/* What tokenizing words needs beside the model: one per call. */
typedef struct ingot_tok_words {
    ingot_tok_cached *slots; /* owned; empty when key_size is 0 */
    uint64_t slot_count, used;
    ingot_tok_bytes keys, values;
    ingot_tok_bytes mapped;  /* a word in the byte-level alphabet */
    ingot_tok_bytes symbols; /* scratch of one merge */
    ingot_tok_bytes queue;
    ingot_tok_bytes ids; /* the result: uint32_t */
} ingot_tok_words;

void ingot_tok_words_free(ingot_tok_words *words);
/* Appends the tokens of one word to words->ids; is_bytes: the word is still to be written in the
 * byte-level alphabet. */
ingot_status ingot_tok_bpe_word(const ingot_tok_bpe *bpe, ingot_tok_words *words, const char *text,
                                uint64_t size, bool is_bytes, const char *path,
                                ingot_error *error) INGOT_MUST_CHECK;

/* ---- Decoders ---- */

typedef enum ingot_tok_decoder_kind {
    INGOT_TOK_DECODE_BYTE_LEVEL,
    INGOT_TOK_DECODE_METASPACE,
    INGOT_TOK_DECODE_REPLACE,
    INGOT_TOK_DECODE_BYTE_FALLBACK,
    INGOT_TOK_DECODE_FUSE,
    INGOT_TOK_DECODE_STRIP,
} ingot_tok_decoder_kind;

typedef struct ingot_tok_decoder {
    ingot_tok_decoder_kind kind;
    ingot_tok_pattern pattern; /* REPLACE */
    char *content;             /* REPLACE: text; METASPACE, STRIP: one character; owned */
    uint64_t content_size;
    uint64_t start, stop;    /* STRIP, characters */
    bool drops_first_prefix; /* METASPACE */
} ingot_tok_decoder;

void ingot_tok_decoder_free(ingot_tok_decoder *decoder);

/* Texts of tokens, one after the other. */
typedef struct ingot_tok_list {
    ingot_tok_bytes text;
    ingot_tok_bytes ends; /* uint64_t: where each text ends */
} ingot_tok_list;

ingot_status ingot_tok_list_close(ingot_tok_list *list) INGOT_MUST_CHECK; /* ends an item */
uint64_t ingot_tok_list_count(const ingot_tok_list *list);
void ingot_tok_list_free(ingot_tok_list *list);
/* Passes the list through steps[count], in place. */
ingot_status ingot_tok_decode(const ingot_tok_decoder *steps, uint64_t count,
                              ingot_tok_matcher *matcher, ingot_tok_list *list,
                              ingot_error *error) INGOT_MUST_CHECK;

/* ---- The whole ---- */

struct ingot_tokenizer {
    char *path; /* for errors */
    ingot_tok_normalizer normalizers[INGOT_TOK_STEPS_MAX];
    uint64_t normalizer_count;
    ingot_tok_stage stages[INGOT_TOK_STEPS_MAX];
    uint64_t stage_count;
    ingot_tok_decoder decoders[INGOT_TOK_STEPS_MAX];
    uint64_t decoder_count;
    bool has_decoder;
    ingot_tok_bpe bpe;
    ingot_tok_added *added; /* [added_count], owned */
    uint64_t added_count;
    ingot_tok_trie raw, normalized;
    uint32_t *added_by_id; /* [vocab] index into added, or INGOT_TOK_NONE; owned */
    uint64_t vocab;
    uint64_t rows; /* ingot_tokenizer_set_rows; 0: any */
};

ingot_status ingot_tok_load(ingot_tokenizer *tokenizer, const json_t *root,
                            ingot_error *error) INGOT_MUST_CHECK;

typedef struct ingot_tok_run {
    const ingot_tokenizer *tokenizer;
    ingot_tok_matcher matcher;
    ingot_tok_bytes normalized[2];
    ingot_tok_bytes stage[INGOT_TOK_STEPS_MAX]; /* what each stage wrote */
    ingot_tok_words words;
} ingot_tok_run;

/* Passes a normalized piece through stages[index..] to the model; is_start: it stands at the start
 * of the whole text. */
ingot_status ingot_tok_split(ingot_tok_run *run, uint64_t index, const char *text, uint64_t size,
                             bool is_start, ingot_error *error) INGOT_MUST_CHECK;

#endif
