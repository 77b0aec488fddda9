/* Fuzz target: kept tables of sensitivities (spec/recipe.md, "The sensitivity table").  Each input
 * is tried as it is and, where it is a JSON object, as one whose format, key and digest are right,
 * so that the numbers are reached.  What is read must be finite and not negative. */
#include "common/json.h"
#include "convert/sensitivity_table.h"
#include "format/digest.h"
#include "input_file.h"

#include <math.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define TENSORS   2u
#define NO_DIGEST "00000000000000000000000000000000"

#define require(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static const ingot_sensitivity_job job = {.count = TENSORS};
static const ingot_sensitivity_key key;

static void use(const void *bytes, size_t size) {
    ingot_sensitivity out[TENSORS];
    ingot_table_state state;
    ingot_error error = {0};
    const ingot_status status =
        ingot_sensitivity_read(out, &state, input_file(bytes, size), &job, &key, &error);
    require(status == INGOT_OK || (error.status == status && error.reason[0] != '\0'));
    require(status != INGOT_OK || state != INGOT_TABLE_ABSENT);
    for (unsigned i = 0; i < TENSORS && status == INGOT_OK && state == INGOT_TABLE_READ; i++) {
        for (unsigned w = 0; w < INGOT_MEASURED_COUNT; w++) {
            require(isfinite(out[i].kl[w]) && out[i].kl[w] >= 0);
        }
    }
}

/* The same table with what guards it made right; NULL where it is no object. */
static char *repair(const uint8_t *data, size_t size) {
    json_t *root = NULL;
    char *text = NULL, hex[33];
    uint8_t digest[16];
    if (ingot_json_parse(&root, (const char *)data, size, "input", NULL) == INGOT_OK &&
        json_is_object(root)) {
        (void)json_object_set_new(root, "format", json_string("ingot-sensitivity"));
        (void)json_object_set_new(root, "version", json_integer(1));
        (void)json_object_set_new(root, "source", json_string(NO_DIGEST));
        (void)json_object_set_new(root, "text", json_string(NO_DIGEST));
        (void)json_object_set_new(root, "setting", json_string(NO_DIGEST));
        (void)json_object_del(root, "digest");
        text = ingot_json_canonical(root);
        require(text != NULL);
        ingot_digest128(digest, text, strlen(text));
        free(text);
        ingot_digest_hex(hex, digest);
        (void)json_object_set_new(root, "digest", json_string(hex));
        text = ingot_json_canonical(root);
    }
    json_decref(root);
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    use(data, size);
    char *repaired = repair(data, size);
    if (repaired != NULL) {
        use(repaired, strlen(repaired));
    }
    free(repaired);
    return 0;
}
