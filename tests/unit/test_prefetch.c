/* Blocks read ahead, by one thread and by several: the bytes and digests of the checkpoint; a
 * checkpoint that ends too early is an error of the block that misses them. */
#include "common/memory.h"
#include "convert/prefetch.h"
#include "format/digest.h"
#include "suite.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define MODEL "examples/demo-4m"

typedef struct fixture {
    ingot_checkpoint *checkpoint;
    ingot_weight_source source;
    ingot_model model;
    ingot_plan plan;
    ingot_backend backend;
    ingot_loop_job job;
    ingot_error error;
} fixture;

static void open_fixture(fixture *f, const char *folder, bool is_device) {
    ingot_recipe recipe;
    *f = (fixture){0};
    ingot_recipe_init(&recipe);
    ingot_recipe_settle(&recipe, false);
    CU_ASSERT_FATAL(ingot_checkpoint_open(&f->checkpoint, folder, &f->error) == INGOT_OK);
    ingot_weight_source_from_checkpoint(&f->source, f->checkpoint);
    CU_ASSERT_FATAL(ingot_model_open(&f->model, &f->source, &f->error) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_plan_create(&f->plan, f->checkpoint, &f->model, &recipe, false,
                                      &f->error) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_backend_open(&f->backend, "cpu", 5, &f->error) == INGOT_OK);
    f->backend.has_own_memory = is_device; /* several threads read */
    f->job = (ingot_loop_job){.checkpoint = f->checkpoint,
                              .source = &f->source,
                              .model = &f->model,
                              .backend = &f->backend,
                              .plan = &f->plan};
    ingot_recipe_free(&recipe);
}

static void close_fixture(fixture *f) {
    ingot_plan_free(&f->plan);
    ingot_backend_close(&f->backend);
    ingot_model_close(&f->model);
    ingot_weight_source_close(&f->source);
    ingot_checkpoint_close(f->checkpoint);
}

/* Matrices of a block as they are read ahead, against plain reads; their number. */
static unsigned check_block(const fixture *f, const ingot_prefetch *prefetch, uint64_t layer) {
    unsigned checked = 0;
    for (uint64_t i = 0; i < f->plan.count; i++) {
        const ingot_plan_tensor *t = &f->plan.tensors[i];
        uint8_t digest[16], expected[16];
        void *bytes;
        if (t->layer != layer || t->origin != INGOT_ORIGIN_QUANTIZE) {
            continue;
        }
        const uint64_t size = ingot_checkpoint_at(f->checkpoint, t->source_index)->bytes;
        CU_ASSERT_FATAL(ingot_alloc(&bytes, size) == INGOT_OK);
        CU_ASSERT(ingot_checkpoint_read(f->checkpoint, t->source_index, 0, size, bytes, NULL) ==
                  INGOT_OK);
        ingot_digest128(expected, bytes, size);
        const void *ahead = ingot_prefetch_bytes(prefetch, t->source_index, digest);
        CU_ASSERT(ahead != NULL && memcmp(ahead, bytes, size) == 0);
        CU_ASSERT(memcmp(digest, expected, sizeof digest) == 0);
        ingot_free(bytes);
        checked++;
    }
    return checked;
}

static void test_bytes(void) {
    for (unsigned is_device = 0; is_device < 2; is_device++) {
        fixture f;
        ingot_prefetch *prefetch;
        open_fixture(&f, MODEL, is_device != 0);
        CU_ASSERT_FATAL(ingot_prefetch_create(&prefetch, &f.job, 0, true) == INGOT_OK);
        for (uint64_t layer = 0; layer < f.model.layers; layer++) {
            CU_ASSERT(ingot_prefetch_take(prefetch, layer, &f.error) == INGOT_OK);
            CU_ASSERT(check_block(&f, prefetch, layer) == 7);
        }
        ingot_prefetch_destroy(prefetch);
        close_fixture(&f);
    }
}

static void copy_file(const char *folder, const char *name) {
    char from[256], to[256], bytes[65536];
    ssize_t n;
    (void)snprintf(from, sizeof from, MODEL "/%s", name);
    (void)snprintf(to, sizeof to, "%s/%s", folder, name);
    const int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CU_ASSERT_FATAL(in >= 0 && out >= 0);
    while ((n = read(in, bytes, sizeof bytes)) > 0) {
        CU_ASSERT_FATAL(write(out, bytes, (size_t)n) == n);
    }
    (void)close(in);
    (void)close(out);
}

static void test_short_file(void) {
    static const char *const names[] = {"config.json", "model.safetensors"};
    char folder[] = "/tmp/ingot-prefetch-XXXXXX", path[256];
    CU_ASSERT_FATAL(mkdtemp(folder) != NULL);
    for (unsigned i = 0; i < 2; i++) {
        copy_file(folder, names[i]);
    }
    for (unsigned is_device = 0; is_device < 2; is_device++) {
        fixture f;
        ingot_prefetch *prefetch;
        unsigned failed = 0;
        copy_file(folder, names[1]);
        open_fixture(&f, folder, is_device != 0);
        (void)snprintf(path, sizeof path, "%s/%s", folder, names[1]);
        CU_ASSERT_FATAL(truncate(path, 4000000) == 0); /* behind our back */
        CU_ASSERT_FATAL(ingot_prefetch_create(&prefetch, &f.job, 0, true) == INGOT_OK);
        for (uint64_t layer = 0; layer < f.model.layers; layer++) {
            ingot_error error = {0};
            const ingot_status status = ingot_prefetch_take(prefetch, layer, &error);
            CU_ASSERT(status == error.status);
            failed += status != INGOT_OK;
        }
        CU_ASSERT(failed > 0 && failed <= f.model.layers);
        ingot_prefetch_destroy(prefetch);
        close_fixture(&f);
    }
    for (unsigned i = 0; i < 2; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        (void)unlink(path);
    }
    (void)rmdir(folder);
}

int main(void) {
    const CU_TestInfo tests[] = {
        {"bytes", test_bytes}, {"short file", test_short_file}, CU_TEST_INFO_NULL};
    return suite_run("prefetch", tests);
}
