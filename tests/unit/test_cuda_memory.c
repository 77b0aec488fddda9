/* Conversions on a device whose memory is nearly full, or of whose allocations one fails: they go
 * on with smaller batches and come to a whole file; what cannot go on ends with a status and a
 * remedy, and leaves no file.  Skipped, loudly, where there is no device. */
#include "backend_inputs.h"
#include "convert/convert.h"
#include "suite.h"

#include <sys/stat.h>

#define CHUNKS_MOST 4096u
#define MODEL       "examples/demo-4m"

static char output[64], partial[80];
static bool
    is_small; /* INGOT_TEST_SMALL: few of the allocations and windows, for compute-sanitizer */

static bool exists(const char *path) {
    struct stat state;
    return stat(path, &state) == 0;
}

/* Returns the status of a small conversion; whatever it is, the file is there or is not.
 * *shortages (may be NULL): times memory was short. */
static ingot_status convert(const char *method, unsigned *shortages) {
    ingot_convert_options options = {.model_dir = MODEL,
                                     .output = output,
                                     .device = "cuda",
                                     .texts = {MODEL "/calibration.txt"},
                                     .text_count = 1,
                                     .threads = 2,
                                     .force = true};
    ingot_convert_result result = {.bits_per_weight = (double)NAN};
    ingot_error error = {0};
    const char *samples = is_small ? "6" : "24", *length = is_small ? "64" : "256";
    ingot_recipe_init(&options.recipe);
    CU_ASSERT_FATAL(ingot_convert_option(&options, "method", method, &error) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_convert_option(&options, "samples", samples, &error) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_convert_option(&options, "seq-len", length, &error) == INGOT_OK);
    const ingot_status status = ingot_convert_run(&result, &options, &error);
    ingot_recipe_free(&options.recipe);
    json_decref(result.tensors);
    if (shortages != NULL) {
        *shortages = result.memory_shortages;
    }
    CU_ASSERT(exists(output) == (status == INGOT_OK));
    CU_ASSERT(!exists(partial));
    CU_ASSERT(status == INGOT_OK || status == INGOT_ERR_NO_MEMORY || status == INGOT_ERR_DEVICE);
    if (status != INGOT_OK && error.status != INGOT_OK && error.remedy[0] == '\0') {
        printf("\n    no remedy: %s", error.reason);
        CU_FAIL("an error names no remedy");
    }
    (void)unlink(output);
    return status;
}

/* Whether a conversion in which the n-th allocation fails came to its end; *is_reached: there is
 * one of that number. */
static bool survives(const char *method, uint64_t n, bool *is_reached) {
    char text[24];
    unsigned shortages = 0;
    (void)snprintf(text, sizeof text, "%llu", (unsigned long long)n);
    (void)setenv("INGOT_TEST_FAIL_DEVICE_ALLOC", text, 1);
    const bool is_good = convert(method, &shortages) == INGOT_OK;
    (void)unsetenv("INGOT_TEST_FAIL_DEVICE_ALLOC");
    if (!is_good) {
        printf("\n    %s: allocation %s was not made up for", method, text);
    }
    *is_reached = !is_good || shortages != 0;
    return is_good;
}

/* The first allocations, then one at random of each range that is twice (in a small run, eight
 * times) as far, until there is none of that number: each is made up for. */
static void test_failed_allocations(const char *method) {
    const uint64_t first = is_small ? 1 : 3, factor = is_small ? 8 : 2;
    unsigned failed = 0, mended = 0;
    uint64_t n = 0;
    CU_ASSERT_FATAL(convert(method, NULL) == INGOT_OK); /* or no number would be the last */
    for (bool is_reached = true; is_reached;) {
        n = n < first ? n + 1 : n + 1 + input_below(n * (factor - 1));
        const bool is_good = survives(method, n, &is_reached);
        failed += !is_good;
        mended += is_good && is_reached;
    }
    printf("%s: %u made up for, the last not of %llu ", method, mended, (unsigned long long)n);
    CU_ASSERT(failed == 0 && mended > (is_small ? 1 : 5));
}

static void test_failed_gptq(void) {
    test_failed_allocations("gptq");
}

static void test_failed_awq(void) {
    test_failed_allocations("awq+gptq");
}

/* Takes the device's memory in ever smaller pieces until `left` bytes of it are free. */
static void test_full_device(void) {
    static const uint64_t left[] = {4000, 1000, 400, 250, 150, 100, 60, 20, 0}; /* MiB */
    static void *chunks[CHUNKS_MOST];
    if (is_small) {
        return; /* what a sanitizer takes of the memory for itself is not known */
    }
    ingot_backend hog;
    ingot_error error = {0};
    CU_ASSERT_FATAL(ingot_backend_open(&hog, "cuda", 1, &error) == INGOT_OK);
    unsigned good = 0, ended = 0;
    for (unsigned i = 0; i < sizeof left / sizeof *left; i++) {
        void *room = NULL;
        unsigned count = 0;
        if (left[i] != 0) {
            CU_ASSERT_FATAL(hog.ops->alloc(hog.context, &room, left[i] << 20) == INGOT_OK);
        }
        for (uint64_t piece = UINT64_C(1) << 33; piece >= UINT64_C(1) << 21; piece /= 2) {
            while (count < CHUNKS_MOST &&
                   hog.ops->alloc(hog.context, &chunks[count], piece) == INGOT_OK) {
                count++;
            }
        }
        hog.ops->release(hog.context, room);
        CU_ASSERT(hog.ops->wait(hog.context) == INGOT_OK);
        const ingot_status status = convert(i % 2 ? "awq+gptq" : "gptq", NULL);
        printf("\n    %llu MiB left: %s", (unsigned long long)left[i], ingot_status_text(status));
        good += status == INGOT_OK;
        ended += status != INGOT_OK;
        while (count != 0) {
            hog.ops->release(hog.context, chunks[--count]);
        }
        CU_ASSERT(hog.ops->wait(hog.context) == INGOT_OK);
    }
    ingot_backend_close(&hog);
    CU_ASSERT(good > 0 && ended > 0);
    CU_ASSERT(convert("gptq", NULL) == INGOT_OK);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"failed allocations", test_failed_gptq},
        {"failed allocations with folds", test_failed_awq},
        {"a full device", test_full_device},
        CU_TEST_INFO_NULL,
    };
    ingot_backend cuda;
    ingot_error error = {0};
    if (ingot_backend_open(&cuda, "cuda", 1, &error) != INGOT_OK) {
        printf("SKIP: no CUDA device: %s\n", error.reason);
        return 77;
    }
    ingot_backend_close(&cuda);
    if (!exists(MODEL "/model.safetensors")) {
        printf("SKIP: %s is missing: run it from the root of the tree\n", MODEL);
        return 77;
    }
    is_small = input_is_small();
    input_start("cuda_memory");
    (void)snprintf(output, sizeof output, "/tmp/ingot-memory-%ld.ingot", (long)getpid());
    (void)snprintf(partial, sizeof partial, "%s.partial", output);
    return suite_run("cuda_memory", tests);
}
