/* Fuzz target: statistics files, which are containers with rules of their own on top
 * (spec/statistics.md).  The model and its checkpoint are fixed and tiny.  Each input is tried as
 * it is and with its digests repaired; of what opens every input is loaded, and must be sound. */
#include "calib/stats.h"
#include "container_mutate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

static void require(bool holds, const char *what) {
    if (!holds) {
        (void)fprintf(stderr, "fuzz_stats: %s\n", what);
        abort();
    }
}

/* ---- a model of two blocks and its checkpoint, which holds no tensors ------------------------ */

static const ingot_model model = {
    .layers = 2,
    .hidden = 4,
    .ffn = 6,
    .heads = 2,
    .head_dim = 2,
    .linear = {
        [INGOT_ROLE_Q] = {.is_present = true, .rows = 4, .cols = 4, .input = INGOT_INPUT_ATTENTION},
        [INGOT_ROLE_O] = {.is_present = true, .rows = 4, .cols = 4, .input = INGOT_INPUT_OUTPUT},
        [INGOT_ROLE_UP] = {.is_present = true, .rows = 6, .cols = 4, .input = INGOT_INPUT_MLP},
        [INGOT_ROLE_DOWN] = {.is_present = true, .rows = 4, .cols = 6, .input = INGOT_INPUT_DOWN}}};

static const char *no_name(void *self, uint64_t index) {
    (void)self;
    (void)index;
    return NULL;
}

static const char *the_config(void *self, const char *name, uint64_t *size) {
    (void)self;
    (void)name;
    *size = 2;
    return "{}";
}

static const ingot_weight_source source = {.path = "model", .file = the_config, .name_at = no_name};

/* ---- use ------------------------------------------------------------------------------------- */

static void check(const ingot_stats *stats) {
    ingot_arena *arena = NULL;
    if (ingot_arena_create(&arena) != INGOT_OK) {
        return;
    }
    for (uint64_t layer = 0; layer < model.layers; layer++) {
        for (int input = 0; input < INGOT_INPUT_COUNT; input++) {
            ingot_stats_input got;
            ingot_error error = {0};
            const ingot_status status =
                ingot_stats_load(stats, layer, (ingot_input)input, arena, &got, &error);
            require(status == INGOT_OK || error.reason[0] != '\0', "an error without a reason");
            for (uint64_t i = 0; status == INGOT_OK && i < got.width; i++) {
                require(isfinite(got.magnitude[i]) && got.gram[i * got.width + i] >= 0,
                        "statistics that are not sound were accepted");
            }
        }
    }
    ingot_arena_destroy(arena);
}

static void use_path(const char *path) {
    ingot_stats *stats = NULL;
    ingot_error error = {0};
    const ingot_status status = ingot_stats_open(&stats, path, &model, &source, &error);
    if (status != INGOT_OK) {
        require(stats == NULL && error.status == status && error.reason[0] != '\0',
                "an error without a reason");
        return;
    }
    ingot_stats_info info;
    ingot_stats_get_info(stats, &info);
    require(memchr(info.backend, '\0', sizeof info.backend) != NULL, "a text without an end");
    check(stats);
    ingot_stats_close(stats);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int fd = -1;
    static char path[64];
    if (fd < 0) {
        fd = memfd_create("fuzz_stats", MFD_CLOEXEC);
        require(fd >= 0, "no memory file");
        (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    uint8_t *copy = malloc(size + 1);
    if (copy == NULL) {
        return 0;
    }
    memcpy(copy, data, size);
    for (int pass = 0; pass < 2; pass++) {
        require(ftruncate(fd, (off_t)size) == 0 && pwrite(fd, copy, size, 0) == (ssize_t)size,
                "the memory file cannot be written");
        use_path(path);
        if (pass == 0) {
            repair(copy, size);
        }
    }
    free(copy);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    return container_mutate(data, size, max_size, seed);
}
