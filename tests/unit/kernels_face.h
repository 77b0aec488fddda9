/* What the public face of the kernels (kernels/ingot_kernels.h) does with single tensors, on
 * whatever device an ingot_kernels stands for. */
#ifndef INGOT_KERNELS_FACE_H
#define INGOT_KERNELS_FACE_H

#include "packed_model.h"

#include "suite.h"

#include <unistd.h>

static ingot_kernels *kernels;
/* Of the sum of magnitudes, for fewer than 16 rows of x. */
static double face_tolerance;

#define FACE_Q "model.layers.1.self_attn.q_proj.weight"

static inline ingot_container *face_container(packed_model *p, char path[64]) {
    ingot_container *container;
    ingot_error error;
    snprintf(path, 64, "/tmp/ingot-face-%d.ingot", (int)getpid());
    write_container(p, path, false);
    CU_ASSERT_EQUAL_FATAL(ingot_open(&container, path, &error), INGOT_OK);
    return container;
}

static inline void test_memory(void) {
    uint8_t from[1001], to[1001] = {0};
    void *memory = NULL;
    for (unsigned i = 0; i < sizeof from; i++) {
        from[i] = (uint8_t)(i * 7);
    }
    CU_ASSERT_EQUAL_FATAL(ingot_kernels_alloc(kernels, &memory, sizeof from), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_kernels_to_device(kernels, memory, from, sizeof from), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_kernels_to_host(kernels, to, memory, sizeof to), INGOT_OK);
    CU_ASSERT_EQUAL(memcmp(from, to, sizeof to), 0);
    ingot_kernels_free(kernels, memory);
    ingot_kernels_free(kernels, NULL);
}

/* y of the device against a sum in FP64 over ingot_weight_row. */
static inline double face_distance(const ingot_weight_view *host, const float *x, const float *y,
                                   uint64_t m) {
    double worst = 0;
    float *row = malloc(host->cols * sizeof *row);
    for (uint64_t r = 0; r < host->rows; r++) {
        ingot_weight_row(row, host, r, host->cols);
        for (uint64_t i = 0; i < m; i++) {
            double sum = 0, size = 0;
            for (uint64_t k = 0; k < host->cols; k++) {
                const double one = (double)row[k] * (double)x[i * host->cols + k];
                sum += one;
                size += fabs(one);
            }
            const double off = fabs((double)y[i * host->rows + r] - sum) / size;
            worst = off <= worst ? worst : off; /* NaN counts */
        }
    }
    free(row);
    return worst;
}

static inline void check_product(tiny_model *t, const ingot_container *container, const char *name,
                                 uint64_t m) {
    ingot_weight_view view, host;
    ingot_error error;
    uint64_t index;
    void *device_x, *device_y;
    const ingot_tensor *tensor = ingot_tensor_find(container, name, &index);
    CU_ASSERT_FATAL(tensor != NULL);
    const uint64_t x_count = m * tensor->cols, y_count = m * tensor->rows;
    float *x = malloc(x_count * sizeof *x), *y = malloc(y_count * sizeof *y);
    void *bytes = aligned_alloc(64, (ingot_tensor_load_bytes(container, index) + 64) / 64 * 64);
    CU_ASSERT_EQUAL_FATAL(ingot_tensor_load(container, index, true, bytes, &host, &error),
                          INGOT_OK);
    for (uint64_t i = 0; i < x_count; i++) {
        x[i] = tiny_value(t);
    }
    memset(y, 0xff, y_count * sizeof *y);
    CU_ASSERT_EQUAL_FATAL(
        ingot_kernels_upload(kernels, &view, container, index, m % 2 == 1, &error), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_kernels_alloc(kernels, &device_x, x_count * sizeof *x), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_kernels_alloc(kernels, &device_y, y_count * sizeof *y), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_kernels_to_device(kernels, device_x, x, x_count * sizeof *x), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_kernels_product(kernels, device_y, &view, device_x, m), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_kernels_to_host(kernels, y, device_y, y_count * sizeof *y), INGOT_OK);
    const double off = face_distance(&host, x, y, m);
    const double most = m < 16 ? face_tolerance : 0x1p-10;
    if (!(off <= most)) {
        printf("\n    %s, %llu rows: %g\n", name, (unsigned long long)m, off);
    }
    CU_ASSERT(off <= most);
    ingot_kernels_release(kernels, &view);
    ingot_kernels_free(kernels, device_x);
    ingot_kernels_free(kernels, device_y);
    free(bytes);
    free(x);
    free(y);
}

static inline void test_products(void) {
    static const tiny_shape shape = {64, 96, 6, 2, 16, 203};
    static const uint64_t rows[] = {1, 3, 15, 16, 40};
    char path[64];
    for (int storage = DENSE; storage < STORAGES; storage++) {
        packed_model p = pack_model(0, &shape, storage);
        bind(&p);
        ingot_container *container = face_container(&p, path);
        for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++) {
            check_product(p.tiny, container, FACE_Q, rows[i]);
            check_product(p.tiny, container, "model.embed_tokens.weight", rows[i]);
            check_product(p.tiny, container, "model.norm.weight", rows[i]);
        }
        ingot_close(container);
        CU_ASSERT_EQUAL(unlink(path), 0);
        packed_destroy(&p);
    }
}

static inline void test_uploads(void) {
    static const tiny_shape shape = {64, 96, 6, 2, 16, 203};
    char path[64];
    ingot_error error = {0};
    ingot_weight_view view;
    uint64_t index;
    packed_model p = pack_model(0, &shape, W4);
    bind(&p);
    ingot_close(face_container(&p, path));
    damage(path, FACE_Q);
    ingot_container *container;
    CU_ASSERT_EQUAL_FATAL(ingot_open(&container, path, &error), INGOT_OK);
    CU_ASSERT_FATAL(ingot_tensor_find(container, FACE_Q, &index) != NULL);
    CU_ASSERT_EQUAL(ingot_kernels_upload(kernels, &view, container, index, true, &error),
                    INGOT_BAD_CHUNK_DIGEST);
    CU_ASSERT_STRING_EQUAL(error.tensor, FACE_Q);
    CU_ASSERT_EQUAL(ingot_kernels_upload(kernels, &view, container, index, false, &error),
                    INGOT_OK);
    CU_ASSERT_EQUAL(view.rows, 96);
    CU_ASSERT_EQUAL(view.bits, 4);
    ingot_kernels_release(kernels, &view);
    const uint64_t count = ingot_tensor_count(container);
    CU_ASSERT_EQUAL(ingot_kernels_upload(kernels, &view, container, count, true, &error),
                    INGOT_ERR_USAGE);
    CU_ASSERT_EQUAL(ingot_kernels_upload(kernels, &view, container, UINT64_MAX, true, NULL),
                    INGOT_ERR_USAGE);
    ingot_close(container);
    CU_ASSERT_EQUAL(unlink(path), 0);
    packed_destroy(&p);
}

static inline void test_names(void) {
    ingot_kernels *none = kernels;
    ingot_error error = {0};
    CU_ASSERT_EQUAL(ingot_kernels_open(&none, "abacus", 1, &error), INGOT_ERR_USAGE);
    CU_ASSERT_PTR_NULL(none);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "abacus"));
    CU_ASSERT_EQUAL(ingot_kernels_open(&none, "cuda:", 1, NULL), INGOT_ERR_USAGE);
    ingot_kernels_close(NULL);
}

static inline int face_run(const char *name) {
    const CU_TestInfo tests[] = {
        {"memory", test_memory},          {"products", test_products}, {"uploads", test_uploads},
        {"names of devices", test_names}, CU_TEST_INFO_NULL,
    };
    seed = tiny_seed();
    return suite_run(name, tests);
}

#endif
