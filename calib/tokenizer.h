/* tokenizer.json of the `tokenizers` library: byte-level BPE and SentencePiece-style BPE.  Ids are
 * identical to that library's (add_special_tokens = false).  Time is linear in the text.
 *
 * Known differences, all outside what tokenizers in use do with ordinary text: characters take the
 * properties of the Unicode version of PCRE2 and utf8proc (14 in Debian 12, a newer or, for
 * Punctuation and normalization, an older one in the library); a caseless expression never matches
 * one character with two ("ss" with U+00DF); Metaspace's "first" looks at the start of the text,
 * whatever a normalizer put there. */
#ifndef INGOT_TOKENIZER_H
#define INGOT_TOKENIZER_H

#include "common/ingot_status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct ingot_tokenizer ingot_tokenizer;

/* bytes[size] is the text of tokenizer.json (path for errors).  INGOT_ERR_UNSUPPORTED names a
 * component this version does not know; INGOT_ERR_INPUT a malformed file. */
ingot_status ingot_tokenizer_create(ingot_tokenizer **out, const char *bytes, uint64_t size,
                                    const char *path, ingot_error *error) INGOT_MUST_CHECK;
void ingot_tokenizer_destroy(ingot_tokenizer *tokenizer); /* NULL is fine */
/* Largest id + 1, added tokens included, and that of the model's vocabulary alone. */
uint64_t ingot_tokenizer_vocab(const ingot_tokenizer *tokenizer);
uint64_t ingot_tokenizer_base_vocab(const ingot_tokenizer *tokenizer);
/* From now on a text with an id of `rows` or more is refused: an embedding has no row for it. */
void ingot_tokenizer_set_rows(ingot_tokenizer *tokenizer, uint64_t rows);

/* *ids[*count] = tokens of text[size] (any bytes; invalid UTF-8 is read as U+FFFD, as `tokenizers`
 * reads a file decoded with errors="replace").  Released with ingot_free.  INGOT_ERR_INPUT: see
 * ingot_tokenizer_set_rows. */
ingot_status ingot_tokenizer_encode(const ingot_tokenizer *tokenizer, const char *text,
                                    uint64_t size, uint32_t **ids, uint64_t *count,
                                    ingot_error *error) INGOT_MUST_CHECK;
/* *text (NUL-terminated beyond *size, ingot_free) = the text of ids[count], as decode(ids,
 * skip_special_tokens) gives it: an id that does not exist gives nothing. */
ingot_status ingot_tokenizer_decode(const ingot_tokenizer *tokenizer, const uint32_t *ids,
                                    uint64_t count, bool skip_special, char **text, uint64_t *size,
                                    ingot_error *error) INGOT_MUST_CHECK;

#endif
