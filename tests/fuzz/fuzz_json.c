/* Fuzz target: the JSON reader of the tools (common/json.h), and that what it accepts survives a
 * round trip through canonical text. */
#include "common/json.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    json_t *value = NULL;
    ingot_error error;
    if (ingot_json_parse(&value, (const char *)data, size, "input", &error) != INGOT_OK) {
        if (value != NULL || error.reason[0] == '\0') {
            abort();
        }
        return 0;
    }
    char *text = ingot_json_canonical(value);
    json_t *again = NULL;
    if (text == NULL ||
        ingot_json_parse(&again, text, strlen(text), "canonical", &error) != INGOT_OK) {
        abort();
    }
    char *text_again = ingot_json_canonical(again);
    if (text_again == NULL || strcmp(text, text_again) != 0) {
        abort();
    }
    free(text_again);
    free(text);
    json_decref(again);
    json_decref(value);
    return 0;
}
