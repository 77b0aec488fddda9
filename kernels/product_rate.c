/* How fast products are here (kernels/product_rate.h). */
#include "kernels/product_rate.h"

#include "common/memory.h"
#include "common/progress.h"
#include "common/random.h"

#include <math.h>

/* A product of x[m][width] with w[width][width], operands random. */
typedef struct product {
    uint64_t m, width;
    ingot_arena *arena;  /* of the weights on the host, which a view on the cpu shares */
    ingot_weight_view w; /* device */
    float *x, *y;        /* device */
} product;

static ingot_status fill_product(product *p, const ingot_backend *backend) {
    const ingot_backend_ops *ops = backend->ops;
    const uint64_t weight_count = p->width * p->width, bytes = p->m * p->width * sizeof(float);
    uint16_t *weights;
    float *x;
    uint64_t state = 1;
    INGOT_TRY(ingot_arena_create(&p->arena));
    INGOT_TRY(ingot_arena_array(p->arena, (void **)&weights, weight_count, sizeof *weights));
    INGOT_TRY(ingot_arena_alloc(p->arena, (void **)&x, bytes));
    for (uint64_t i = 0; i < weight_count; i++) { /* BF16 of either sign, 2^-7 to 2^-3 */
        const uint64_t r = ingot_random_bits(&state);
        weights[i] = (uint16_t)((r & 0x8000) | ((120 + (r & 3)) << 7) | ((r >> 4) & 0x7f));
    }
    for (uint64_t i = 0; i < p->m * p->width; i++) {
        x[i] = ingot_random_signed(&state);
    }
    const ingot_weight_view host = {.kind = INGOT_DENSE,
                                    .rows = p->width,
                                    .cols = p->width,
                                    .dtype = INGOT_BF16,
                                    .data = weights};
    INGOT_TRY(ops->alloc(backend->context, (void **)&p->x, bytes));
    INGOT_TRY(ops->alloc(backend->context, (void **)&p->y, bytes));
    INGOT_TRY(ops->upload(backend->context, p->x, x, bytes));
    return ops->upload_view(backend->context, &p->w, &host);
}

static ingot_status run_product(const product *p, const ingot_backend *backend, unsigned calls) {
    for (unsigned i = 0; i < calls; i++) {
        INGOT_TRY(backend->ops->linear(backend->context, p->y, &p->w, NULL, p->x, p->m));
    }
    return backend->ops->wait(backend->context);
}

double ingot_product_rate(const ingot_backend *backend, unsigned runs) {
    const ingot_backend_ops *ops = backend->ops;
    const unsigned calls = backend->has_own_memory ? 10 : 1;
    product p = {.m = backend->has_own_memory ? 16384 : 256,
                 .width = backend->has_own_memory ? 8192 : 1024};
    double best = NAN;
    ingot_status status = fill_product(&p, backend);
    for (unsigned i = 0; status == INGOT_OK && i <= runs; i++) { /* the first warms up */
        const double start = ingot_clock_seconds();
        status = run_product(&p, backend, calls);
        if (status == INGOT_OK && i != 0) {
            best = fmax(best, 2.0 * calls * (double)(p.m * p.width * p.width) /
                                  (ingot_clock_seconds() - start));
        }
    }
    ops->release_view(backend->context, &p.w);
    ops->release(backend->context, p.x);
    ops->release(backend->context, p.y);
    ingot_arena_destroy(p.arena);
    return best;
}
