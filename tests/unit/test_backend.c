/* kernels/backend.h: memory, views and what every device refuses.  The operations have
 * test_kernels; cuda is skipped, loudly, where it is not there. */
#include "backend_devices.h"
#include "backend_inputs.h"
#include "backend_reference.h"

/* ---- memory and views -------------------------------------------------------------------------
 */

/* Memory that came and went counts once, in the call that follows. */
static void check_peak(const ingot_backend *b) {
    const uint64_t bytes = UINT64_C(3) << 20;
    void *memory = NULL;
    CU_ASSERT(b->ops->wait(b->context) == INGOT_OK); /* until then what was released counts */
    const uint64_t begin = b->ops->peak_bytes(b->context);
    const uint64_t base = b->ops->peak_bytes(b->context);
    CU_ASSERT(base <= begin);
    CU_ASSERT_FATAL(b->ops->alloc(b->context, &memory, bytes) == INGOT_OK);
    b->ops->release(b->context, memory);
    CU_ASSERT(b->ops->wait(b->context) == INGOT_OK);
    const uint64_t with = b->ops->peak_bytes(b->context);
    CU_ASSERT(b->has_own_memory ? with >= base + bytes : with == 0);
    CU_ASSERT(b->ops->peak_bytes(b->context) == base);
}

/* Two contexts of one device: each sees the device's peak since its own last call. */
static void check_shared_peak(const ingot_backend *b) {
    const uint64_t bytes = UINT64_C(5) << 20;
    ingot_backend other;
    void *memory = NULL;
    if (!b->has_own_memory) {
        return;
    }
    CU_ASSERT_FATAL(ingot_backend_open(&other, "cuda", 1, NULL) == INGOT_OK);
    CU_ASSERT(b->ops->wait(b->context) == INGOT_OK);
    (void)b->ops->peak_bytes(b->context);
    (void)other.ops->peak_bytes(other.context);
    const uint64_t base = b->ops->peak_bytes(b->context);
    CU_ASSERT_FATAL(b->ops->alloc(b->context, &memory, bytes) == INGOT_OK);
    b->ops->release(b->context, memory);
    CU_ASSERT(b->ops->wait(b->context) == INGOT_OK);
    CU_ASSERT(other.ops->peak_bytes(other.context) >= base + bytes);
    CU_ASSERT(other.ops->peak_bytes(other.context) == base);
    CU_ASSERT(b->ops->peak_bytes(b->context) >= base + bytes);
    CU_ASSERT(b->ops->peak_bytes(b->context) == base);
    ingot_backend_close(&other);
}

static void check_memory(const ingot_backend *b) {
    const ingot_backend_ops *ops = b->ops;
    const uint64_t bytes = 4 * input_size(300);
    float *host = input_floats(bytes / 4, 1.0), *got = malloc(bytes);
    void *pinned = NULL;
    CU_ASSERT_FATAL(ops->host_alloc(b->context, &pinned, bytes) == INGOT_OK);
    void *from = device_put(b, host, bytes), *to = device_put(b, NULL, bytes);
    CU_ASSERT(ops->copy(b->context, to, from, bytes) == INGOT_OK);
    CU_ASSERT(ops->zero(b->context, from, bytes) == INGOT_OK);
    CU_ASSERT(ops->download(b->context, pinned, to, bytes) == INGOT_OK);
    CU_ASSERT(ops->wait(b->context) == INGOT_OK);
    CU_ASSERT(memcmp(pinned, host, bytes) == 0);
    device_take(b, got, to, bytes);
    CU_ASSERT(memcmp(got, host, bytes) == 0);
    device_take(b, got, from, bytes);
    memset(host, 0, bytes);
    CU_ASSERT(memcmp(got, host, bytes) == 0);
    CU_ASSERT(b->has_own_memory == (ops->peak_bytes(b->context) != 0));
    check_peak(b);
    check_shared_peak(b);
    CU_ASSERT(b->batch_tokens > 0 && b->path[0] != '\0');
    ops->host_release(b->context, pinned);
    free(host);
    free(got);
}

/* A view that went to the device and came back has the same weights. */
static void check_view(const ingot_backend *b, unsigned kind) {
    const uint64_t rows = input_size(33), cols = input_size(129);
    input_weights w = input_kind(kind, rows, cols);
    ingot_weight_view there, back;
    ingot_arena *arena = NULL;
    CU_ASSERT_FATAL(ingot_backend_host_arena_create(&arena, b) == INGOT_OK);
    CU_ASSERT_FATAL(b->ops->upload_view(b->context, &there, &w.view) == INGOT_OK);
    CU_ASSERT_FATAL(b->ops->download_view(b->context, &back, &there, arena) == INGOT_OK);
    CU_ASSERT(back.rows == rows && back.cols == cols);
    unsigned wrong = 0;
    for (uint64_t i = 0; i < rows * cols; i++) {
        wrong += ref_weight(&back, i / cols, i % cols) != ref_weight(&w.view, i / cols, i % cols);
    }
    CU_ASSERT(wrong == 0);
    b->ops->release_view(b->context, &there);
    ingot_arena_destroy(arena);
    input_weights_free(&w);
}

/* Chunks of pinned memory for a while, then none. */
typedef struct short_memory {
    const ingot_backend *b;
    unsigned left;
    uint8_t *first;
} short_memory;

static ingot_status short_alloc(void *context, void **out, uint64_t bytes) {
    short_memory *m = context;
    *out = NULL;
    if (m->left == 0) {
        return INGOT_ERR_NO_MEMORY;
    }
    m->left--;
    INGOT_TRY(m->b->ops->host_alloc(m->b->context, out, bytes));
    memset(*out, POISON, bytes);
    m->first = m->first == NULL ? *out : m->first;
    return INGOT_OK;
}

static void short_release(void *context, void *memory) {
    const short_memory *m = context;
    m->b->ops->host_release(m->b->context, memory);
}

/* A view that comes back where memory ends behind its first parts: by the time that is said nothing
 * is on its way any more, for the memory that was had may be given back.  Codes of so many bytes
 * that a copy takes longer than to come to the next part. */
static void check_short_download(const ingot_backend *b) {
    const uint64_t rows = 4096, cols = 8192, groups = cols / 128, bytes = rows * cols / 2;
    uint8_t *codes = malloc(bytes);
    uint16_t *scales = calloc(rows * groups, sizeof *scales);
    uint8_t *zeros = calloc(rows * groups, 1);
    memset(codes, 0x5a, bytes);
    const ingot_weight_view view = {.kind = INGOT_GROUPED,
                                    .rows = rows,
                                    .cols = cols,
                                    .dtype = INGOT_F16,
                                    .bits = 4,
                                    .group = 128,
                                    .groups_per_row = groups,
                                    .row_stride_bytes = cols / 2,
                                    .scale_dtype = INGOT_F16,
                                    .codes = codes,
                                    .scales = scales,
                                    .zeros = zeros};
    ingot_weight_view there, back;
    CU_ASSERT_FATAL(b->ops->upload_view(b->context, &there, &view) == INGOT_OK);
    for (unsigned parts = 1; parts <= 3; parts++) {
        short_memory memory = {b, parts, NULL};
        const ingot_allocator allocator = {
            .alloc = short_alloc, .release = short_release, .context = &memory, .chunk_bytes = 1};
        ingot_arena *arena = NULL;
        CU_ASSERT_FATAL(ingot_arena_create_from(&arena, &allocator) == INGOT_OK);
        const ingot_status status = b->ops->download_view(b->context, &back, &there, arena);
        CU_ASSERT_FATAL(memory.first != NULL);
        CU_ASSERT(memory.first[bytes - 1] == 0x5a); /* looked at before anything else */
        CU_ASSERT(memcmp(memory.first, codes, bytes) == 0);
        CU_ASSERT(status == (parts < 3 ? INGOT_ERR_NO_MEMORY : INGOT_OK));
        ingot_arena_destroy(arena);
    }
    b->ops->release_view(b->context, &there);
    free(codes);
    free(scales);
    free(zeros);
}

static void test_memory(void) {
    for (unsigned d = 0; d < DEVICES; d++) {
        for (unsigned kind = 0; devices[d].is_open && kind < INPUT_KINDS; kind++) {
            check_memory(&devices[d].backend[kind % DEVICE_THREADS]);
            check_view(&devices[d].backend[kind % DEVICE_THREADS], kind);
        }
        if (devices[d].is_open && devices[d].backend[0].has_own_memory) {
            check_short_download(&devices[d].backend[0]);
        }
    }
}

/* ---- what is refused
 * ------------------------------------------------------------------------------------------ */

static void check_refused(const ingot_backend *b) {
    const ingot_backend_ops *ops = b->ops;
    const float x[64] = {0};
    const uint32_t ids[2] = {0, 4};
    double nll[2];
    uint32_t best[2];
    input_weights w = input_grouped(4, 16, 4, 8, INGOT_ZERO_SYMMETRIC, INGOT_F16, false);
    ingot_weight_view view;
    CU_ASSERT_FATAL(ops->upload_view(b->context, &view, &w.view) == INGOT_OK);
    float *in = device_put(b, x, sizeof x), *out = device_put(b, NULL, sizeof x);
    CU_ASSERT(ops->embed(b->context, out, &view, ids, 2, 1.0f) == INGOT_ERR_INPUT);
    CU_ASSERT(ops->score(b->context, nll, best, in, ids, 2, 4) == INGOT_ERR_INPUT);
    ingot_attention s = {1, 2, 2, 2, 3, 2, 4, 0, 1.0f, 0.0f};
    CU_ASSERT(ops->attention(b->context, out, in, in, in, &s) == INGOT_ERR_USAGE);
    s = (ingot_attention){1, 3, 2, 3, 2, 1, 4, 0, 1.0f, 0.0f};
    CU_ASSERT(ops->attention(b->context, out, in, in, in, &s) == INGOT_ERR_USAGE);
    s = (ingot_attention){1, 2, 3, 2, 2, 1, 4, 0, 1.0f, 0.0f};
    CU_ASSERT(ops->attention(b->context, out, in, in, in, &s) == INGOT_ERR_USAGE);
    const double frequency[8] = {1};
    CU_ASSERT(ops->rotary(b->context, out, 0, 1, frequency, 1.0f, 1, 1, 8, 10) == INGOT_ERR_USAGE);
    CU_ASSERT(ops->rotary(b->context, out, 0, 1, frequency, 1.0f, 1, 1, 8, 3) == INGOT_ERR_USAGE);
    CU_ASSERT(ops->linear(b->context, out, &view, NULL, in, 0) == INGOT_OK); /* nothing to do */
    uint8_t untouched[sizeof x], bytes[sizeof x];
    memset(untouched, POISON, sizeof untouched);
    device_take(b, bytes, out, sizeof x);
    CU_ASSERT(memcmp(bytes, untouched, sizeof x) == 0);
    device_release(b, in);
    ops->release_view(b->context, &view);
    input_weights_free(&w);
}

static void test_refused(void) {
    for (unsigned d = 0; d < DEVICES; d++) {
        if (devices[d].is_open) {
            check_refused(&devices[d].backend[0]);
        }
    }
    ingot_backend backend;
    ingot_error error;
    CU_ASSERT(ingot_backend_open(&backend, "abacus", 1, &error) == INGOT_ERR_USAGE);
    (void)setenv("INGOT_CPU_ISA", "v9", 1);
    CU_ASSERT(ingot_backend_open(&backend, "cpu", 1, &error) == INGOT_ERR_DEVICE);
    (void)unsetenv("INGOT_CPU_ISA");
}

int main(void) {
    input_start("backend");
    const CU_TestInfo tests[] = {
        {"devices", devices_open}, /* first: the others use them */
        {"memory and views", test_memory},
        {"what is refused", test_refused},
        CU_TEST_INFO_NULL,
    };
    const int result = suite_run("backend", tests);
    devices_close();
    return result;
}
