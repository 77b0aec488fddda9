/* Activations that are not finite: dropped, counted and reported, alike on every device.
 *
 * A checkpoint whose norms have no epsilon makes NaN of a token whose embedding is zero: at that
 * token in the input of the first block's attention, and from it on, to the end of the window, in
 * everything behind. */
#include "calib/dataset.h"
#include "calib/text_model.h"
#include "checkpoint_folder.h"
#include "common/memory.h"
#include "convert/convert.h"

#include <math.h>

#define MODEL   "examples/demo-4m/"
#define SAMPLES 9u
#define LENGTH  48u

static char text_path[512], output[512];

/* *bytes[*size] = a file of the model; ends in a zero.  free() */
static void take_file(const char *name, char **bytes, size_t *size) {
    char path[256];
    (void)snprintf(path, sizeof path, MODEL "%s", name);
    FILE *file = fopen(path, "rb");
    CU_ASSERT_PTR_NOT_NULL_FATAL(file);
    CU_ASSERT_FATAL(fseek(file, 0, SEEK_END) == 0);
    *size = (size_t)ftell(file);
    rewind(file);
    *bytes = calloc(*size + 1, 1);
    CU_ASSERT_FATAL(fread(*bytes, 1, *size, file) == *size);
    (void)fclose(file);
}

/* What is expected of the windows: tokens dropped at the token itself, and from it on. */
typedef struct expectation {
    uint64_t tokens, alone, behind;
} expectation;

/* A token that comes up a few times. */
static uint32_t choose_token(const ingot_windows *w) {
    static unsigned counts[65536];
    const uint64_t tokens = w->count * w->length;
    for (uint64_t i = 0; i < tokens; i++) {
        counts[w->ids[i] % 65536]++;
    }
    for (uint64_t i = tokens; i-- > 0;) {
        if (counts[w->ids[i] % 65536] == 3) {
            return w->ids[i];
        }
    }
    CU_FAIL_FATAL("no token comes up three times");
    return 0;
}

static expectation expect(const ingot_windows *w, uint32_t token) {
    expectation e = {.tokens = w->count * w->length};
    for (uint64_t i = 0; i < w->count; i++) {
        bool is_behind = false;
        for (uint64_t k = 0; k < w->length; k++) {
            const bool is_it = w->ids[i * w->length + k] == token;
            is_behind = is_behind || is_it;
            e.alone += is_it;
            e.behind += is_behind;
        }
    }
    return e;
}

/* The checkpoint in the folder: without epsilon, and with a zero for the token. */
static void make_checkpoint(uint32_t token) {
    static const char *const copied[] = {"tokenizer.json", "tokenizer_config.json"};
    char *bytes;
    size_t size;
    for (unsigned i = 0; i < 2; i++) {
        take_file(copied[i], &bytes, &size);
        put_bytes(copied[i], bytes, size);
        free(bytes);
    }
    take_file("config.json", &bytes, &size);
    char *epsilon = strstr(bytes, "1e-05");
    CU_ASSERT_PTR_NOT_NULL_FATAL(epsilon);
    memcpy(epsilon, "0.000", 5);
    put_bytes("config.json", bytes, size);
    free(bytes);
    take_file("model.safetensors", &bytes, &size);
    uint64_t header, offset = 0;
    memcpy(&header, bytes, sizeof header);
    const char *entry = strstr(bytes + 8, "\"model.embed_tokens.weight\"");
    const char *offsets = entry != NULL ? strstr(entry, "\"data_offsets\":[") : NULL;
    CU_ASSERT_FATAL(offsets != NULL && sscanf(offsets, "\"data_offsets\":[%lu", &offset) == 1);
    memset(bytes + 8 + header + offset + (size_t)token * 256 * 2, 0, 256 * 2);
    put_bytes("model.safetensors", bytes, size);
    free(bytes);
}

static ingot_status convert(const char *device) {
    ingot_convert_options options = {.model_dir = folder,
                                     .output = output,
                                     .device = device,
                                     .texts = {text_path},
                                     .text_count = 1,
                                     .threads = 2,
                                     .force = true};
    ingot_convert_result result = {.bits_per_weight = (double)NAN};
    char samples[8], length[8];
    (void)snprintf(samples, sizeof samples, "%u", SAMPLES);
    (void)snprintf(length, sizeof length, "%u", LENGTH);
    ingot_recipe_init(&options.recipe);
    CU_ASSERT_FATAL(ingot_convert_option(&options, "samples", samples, &error) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_convert_option(&options, "seq-len", length, &error) == INGOT_OK);
    const ingot_status status = ingot_convert_run(&result, &options, &error);
    ingot_recipe_free(&options.recipe);
    json_decref(result.tensors);
    ingot_free(result.tunings);
    return status;
}

static void check_ledger(const expectation *e) {
    ingot_container *container;
    unsigned quantized = 0;
    CU_ASSERT_FATAL(ingot_open(&container, output, &error) == INGOT_OK);
    for (uint64_t i = 0; i < ingot_tensor_count(container); i++) {
        const ingot_tensor *t = ingot_tensor_at(container, i);
        ingot_ledger ledger;
        ingot_ledger_at(container, i, &ledger);
        if (t->kind != INGOT_GROUPED) {
            continue;
        }
        const bool is_first =
            strstr(t->name, "layers.0.") != NULL &&
            (strstr(t->name, "q_proj") != NULL || strstr(t->name, "k_proj") != NULL ||
             strstr(t->name, "v_proj") != NULL);
        const uint64_t expected = e->tokens - (is_first ? e->alone : e->behind);
        if (ledger.tokens_seen != expected) {
            printf("\n    %s saw %llu tokens, not %llu", t->name,
                   (unsigned long long)ledger.tokens_seen, (unsigned long long)expected);
        }
        CU_ASSERT(ledger.tokens_seen == expected);
        CU_ASSERT(ledger.fallback == INGOT_FALLBACK_NONE && isfinite(ledger.output_error));
        quantized++;
    }
    CU_ASSERT(quantized == 28);
    ingot_close(container);
}

static void test_dropped(void) {
    static const char *const devices[] = {"cpu", "cuda"};
    ingot_text_model model;
    ingot_text text;
    ingot_windows windows;
    char *bytes;
    size_t size;
    take_file("calibration.txt", &bytes, &size);
    (void)snprintf(text_path, sizeof text_path, "%s", in_folder("text.txt"));
    (void)snprintf(output, sizeof output, "%s", in_folder("out.ingot"));
    put_bytes("text.txt", bytes, size < 3000 ? size : 3000);
    free(bytes);
    CU_ASSERT_FATAL(ingot_text_model_open(&model, "examples/demo-4m", false, &error) == INGOT_OK);
    const char *const paths[] = {text_path};
    CU_ASSERT_FATAL(ingot_text_load(&text, paths, 1, model.tokenizer, &error) == INGOT_OK);
    CU_ASSERT_FATAL(
        ingot_windows_calibration(&windows, &text, SAMPLES, LENGTH, text_path, &error) == INGOT_OK);
    const uint32_t token = choose_token(&windows);
    const expectation e = expect(&windows, token);
    CU_ASSERT(windows.count == SAMPLES && e.alone < e.behind && e.behind < e.tokens);
    make_checkpoint(token);
    for (unsigned i = 0; i < 2; i++) {
        ingot_backend backend;
        if (ingot_backend_open(&backend, devices[i], 2, &error) != INGOT_OK) {
            printf("SKIP: %s: %s\n", devices[i], error.reason);
            memset(&error, 0, sizeof error);
            continue;
        }
        ingot_backend_close(&backend);
        CU_ASSERT_FATAL(convert(devices[i]) == INGOT_OK);
        check_ledger(&e);
    }
    ingot_windows_free(&windows);
    ingot_text_free(&text);
    ingot_text_model_close(&model);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"rows that are not finite", test_dropped},
        CU_TEST_INFO_NULL,
    };
    folder_make();
    const int result = suite_run("dropped", tests);
    folder_remove();
    return result;
}
