/* Fuzz target: tokenizer.json and text.  The input is the file, a NUL, and the text; a file that is
 * refused must say why, ids must lie in the vocabulary and decode, and the same text must give the
 * same ids again. */
#include "calib/tokenizer.h"
#include "common/memory.h"

#include <stdlib.h>
#include <string.h>

#define FILE_BYTES_MAX 65536u
#define TEXT_BYTES_MAX 512u /* an expression may take its whole limit at every byte */

static void check_text(const ingot_tokenizer *tokenizer, const char *text, uint64_t size) {
    ingot_error error = {0};
    uint32_t *ids = NULL, *again = NULL;
    uint64_t count = 0, count_again = 0, decoded_size;
    if (ingot_tokenizer_encode(tokenizer, text, size, &ids, &count, &error) != INGOT_OK) {
        if (ids != NULL || error.reason[0] == '\0') {
            abort();
        }
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        if (ids[i] >= ingot_tokenizer_vocab(tokenizer)) {
            abort();
        }
    }
    if (ingot_tokenizer_encode(tokenizer, text, size, &again, &count_again, &error) != INGOT_OK ||
        count_again != count || memcmp(ids, again, count * sizeof *ids) != 0) {
        abort();
    }
    char *decoded = NULL;
    if (ingot_tokenizer_decode(tokenizer, ids, count, count % 2 == 0, &decoded, &decoded_size,
                               &error) != INGOT_OK) {
        if (decoded != NULL || error.reason[0] == '\0') {
            abort();
        }
    } else if (decoded[decoded_size] != '\0') {
        abort();
    }
    ingot_free(decoded);
    ingot_free(again);
    ingot_free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *end = memchr(data, '\0', size);
    const size_t file_size = end == NULL ? size : (size_t)(end - data);
    if (file_size > FILE_BYTES_MAX) {
        return 0;
    }
    ingot_tokenizer *tokenizer = NULL;
    ingot_error error = {0};
    if (ingot_tokenizer_create(&tokenizer, (const char *)data, file_size, "tokenizer.json",
                               &error) != INGOT_OK) {
        if (tokenizer != NULL || error.reason[0] == '\0') {
            abort();
        }
        return 0;
    }
    const size_t rest = end == NULL ? 0 : size - file_size - 1;
    check_text(tokenizer, end == NULL ? "" : (const char *)end + 1,
               rest < TEXT_BYTES_MAX ? rest : TEXT_BYTES_MAX);
    ingot_tokenizer_destroy(tokenizer);
    return 0;
}
