/* convert/prefetch.h: what was read ahead is what the checkpoint has, in whatever order blocks are
 * begun, and a table or head that was asked for once stays. */
#include "convert/prefetch.h"
#include "format/digest.h"
#include "suite.h"

#include <string.h>
#include <unistd.h>

/* Matrices of one piece each; of two; of six (a shared model). */
enum { MODELS = 3 };
static const char *model_at(unsigned i) {
    static const char *const own[] = {"tests/fixtures/tiny-llama", "examples/demo-4m"};
    static char shared[4096];
    (void)snprintf(shared, sizeof shared, "%s/models/books-28m",
                   suite_shared() != NULL ? suite_shared() : "no");
    return i < 2 ? own[i] : shared;
}

typedef struct setup {
    ingot_checkpoint *checkpoint;
    ingot_weight_source source;
    ingot_model model;
    ingot_plan plan;
    ingot_backend backend;
    ingot_arena *arena;
    ingot_loop_job job;
} setup;

static ingot_status no_host_alloc(void *context, void **out, uint64_t bytes) {
    (void)context;
    (void)bytes;
    *out = NULL;
    return INGOT_ERR_NO_MEMORY;
}

/* false: there is no such device or model.  is_short: no memory can be pinned. */
static bool begin(setup *s, const char *model, const char *device, bool is_short) {
    static ingot_backend_ops short_ops;
    ingot_recipe recipe;
    memset(s, 0, sizeof *s);
    if (access(model, R_OK) != 0) {
        fprintf(stderr, "SKIPPED: no %s\n", model);
        return false;
    }
    if (ingot_backend_open(&s->backend, device, 3, NULL) != INGOT_OK) {
        fprintf(stderr, "SKIPPED: %s cannot be opened here\n", device);
        return false;
    }
    if (is_short) {
        short_ops = *s->backend.ops;
        short_ops.host_alloc = no_host_alloc;
        s->backend.ops = &short_ops;
        s->backend.has_own_memory = true;
    }
    CU_ASSERT_FATAL(ingot_checkpoint_open(&s->checkpoint, model, NULL) == INGOT_OK);
    ingot_weight_source_from_checkpoint(&s->source, s->checkpoint);
    CU_ASSERT_FATAL(ingot_model_open(&s->model, &s->source, NULL) == INGOT_OK);
    ingot_recipe_init(&recipe);
    CU_ASSERT_FATAL(ingot_plan_create(&s->plan, s->checkpoint, &s->model, &recipe, false, NULL) ==
                    INGOT_OK);
    ingot_recipe_free(&recipe);
    CU_ASSERT_FATAL(ingot_arena_create(&s->arena) == INGOT_OK);
    s->job = (ingot_loop_job){.checkpoint = s->checkpoint,
                              .source = &s->source,
                              .model = &s->model,
                              .backend = &s->backend,
                              .plan = &s->plan};
    return true;
}

static void end(setup *s) {
    ingot_arena_destroy(s->arena);
    ingot_plan_free(&s->plan);
    ingot_model_close(&s->model);
    ingot_weight_source_close(&s->source);
    ingot_checkpoint_close(s->checkpoint);
    ingot_backend_close(&s->backend);
}

/* The view of a tensor that the prefetch hands out has the bytes of the source. */
static const void *check_view(setup *s, const ingot_prefetch *p, const char *name) {
    const ingot_weight_source *ahead = ingot_prefetch_source(p);
    ingot_weight_view got, wanted;
    CU_ASSERT_FATAL(ahead->load(ahead->self, name, s->arena, &got, NULL) == INGOT_OK);
    CU_ASSERT_FATAL(s->source.load(s->source.self, name, s->arena, &wanted, NULL) == INGOT_OK);
    CU_ASSERT(got.rows == wanted.rows && got.cols == wanted.cols && got.dtype == wanted.dtype);
    CU_ASSERT(got.data != wanted.data);
    CU_ASSERT(memcmp(got.data, wanted.data,
                     wanted.rows * wanted.cols * ingot_dtype_bytes(wanted.dtype)) == 0);
    return got.data;
}

static void check_block(setup *s, const ingot_prefetch *p, uint64_t layer, bool repeats) {
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        char name[INGOT_NAME_SIZE];
        uint64_t index;
        uint8_t digest[16], wanted[16];
        if (!s->model.linear[role].is_present) {
            continue;
        }
        ingot_model_linear_name(&s->model, layer, (ingot_role)role, name);
        const ingot_st_tensor *t = ingot_checkpoint_find(s->checkpoint, name, &index);
        CU_ASSERT_FATAL(t != NULL);
        const void *bytes = check_view(s, p, name);
        if (repeats) {
            continue;
        }
        CU_ASSERT(ingot_prefetch_bytes(p, index, digest) == bytes);
        ingot_digest128(wanted, bytes, t->bytes);
        CU_ASSERT(memcmp(digest, wanted, sizeof digest) == 0);
    }
}

static void check_order(const char *model, const char *device, bool repeats, bool is_short) {
    setup s;
    ingot_prefetch *p;
    if (!begin(&s, model, device, is_short)) {
        return;
    }
    CU_ASSERT_FATAL(s.model.layers >= 2);
    CU_ASSERT_FATAL(ingot_prefetch_create(&p, &s.job, repeats ? s.model.layers : 0, repeats) ==
                    INGOT_OK);
    const void *head = repeats ? check_view(&s, p, s.model.embed_name) : NULL;
    for (uint64_t first = 0; first <= s.model.layers; first++) {
        if (repeats || first != 0) {
            CU_ASSERT(ingot_prefetch_begin(p, first, NULL) == INGOT_OK);
        }
        /* the second round is left half way: what is being read then was not asked for */
        for (uint64_t layer = first; layer + (first == 1) < s.model.layers; layer++) {
            CU_ASSERT(ingot_prefetch_take(p, layer, NULL) == INGOT_OK);
            check_block(&s, p, layer, repeats);
        }
        CU_ASSERT(!repeats || check_view(&s, p, s.model.embed_name) == head);
    }
    ingot_prefetch_destroy(p);
    end(&s);
}

static void test_order(void) {
    static const char *const names[] = {"cpu", "cuda"};
    for (unsigned i = 0; i < 2 * MODELS; i++) {
        check_order(model_at(i / 2), names[i % 2], false, false);
        check_order(model_at(i / 2), names[i % 2], true, false);
    }
}

/* Reading ahead goes on in memory that is not pinned. */
static void test_no_pinned(void) {
    static const char *const names[] = {"cpu", "cuda"};
    for (unsigned i = 0; i < 2 * MODELS; i++) {
        check_order(model_at(i / 2), names[i % 2], false, true);
        check_order(model_at(i / 2), names[i % 2], true, true);
    }
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"blocks in any order, table and head kept", test_order},
        {"no memory can be pinned", test_no_pinned},
        CU_TEST_INFO_NULL,
    };
    return suite_run("prefetch", tests);
}
