/* The devices a test of kernels/backend.h runs on, and how a case runs on all of them: results lie
 * between guards in poisoned memory, are compared with FP64 on every device, and have the same bits
 * for every number of threads. */
#ifndef INGOT_BACKEND_DEVICES_H
#define INGOT_BACKEND_DEVICES_H

#include "kernels/backend.h"
#include "suite.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DEVICE_THREADS 3u /* every case runs with 1, 2 and 3 threads */
#define GUARD_BYTES    256u
#define POISON         0xff /* floats and doubles of these bytes are NaN */

typedef struct device {
    const char *name; /* of ingot_backend_open */
    const char *isa;  /* INGOT_CPU_ISA, or NULL */
    double epsilon;   /* unit roundoff of sums and elements */
    /* what linear, attention and gram lose by rounding the factors of products, relative to the
     * products: nothing, or two factors of binary16 */
    double product_epsilon;
    /* and what products of packed weights with few rows lose by rounding those rows to 16 bits,
     * relative to the products with the largest of their neighbours (spec/decisions/0020) */
    double word_epsilon;
    bool keeps_upper; /* gram leaves the upper triangle as it was; else it is undefined */
    ingot_backend backend[DEVICE_THREADS];
    bool is_open;
} device;

static device devices[] = {
    {.name = "cpu", .isa = "v2", .epsilon = 0x1p-24, .word_epsilon = 1.54e-5, .keeps_upper = true},
    {.name = "cpu", .isa = "v3", .epsilon = 0x1p-24, .word_epsilon = 1.54e-5, .keeps_upper = true},
    {.name = "cpu", .isa = "v4", .epsilon = 0x1p-24, .word_epsilon = 1.54e-5, .keeps_upper = true},
    {.name = "cuda", .isa = NULL, .epsilon = 0x1p-23, .product_epsilon = 0x1p-10},
};
#define DEVICES (sizeof devices / sizeof devices[0])

/* False, with a line that says why, when this machine or this build lacks the device. */
static inline bool device_open(device *d) {
    ingot_error error;
    for (unsigned i = 0; i < DEVICE_THREADS; i++) {
        if (d->isa != NULL) {
            (void)setenv("INGOT_CPU_ISA", d->isa, 1);
        }
        const ingot_status status = ingot_backend_open(&d->backend[i], d->name, i + 1, &error);
        (void)unsetenv("INGOT_CPU_ISA");
        if (status == INGOT_ERR_DEVICE) {
            printf("\nSKIP: %s %s: %s\n", d->name, d->isa != NULL ? d->isa : "", error.reason);
            return false;
        }
        CU_ASSERT_FATAL(status == INGOT_OK);
    }
    printf("%s, ", d->backend[0].path);
    return true;
}

static inline void devices_open(void) {
    unsigned count = 0;
    const bool is_small =
        getenv("INGOT_TEST_SMALL") != NULL; /* the device alone, if there is one */
    for (unsigned d = DEVICES; d-- > 0;) {
        devices[d].is_open = !(is_small && count != 0) && device_open(&devices[d]);
        count += devices[d].is_open;
    }
    CU_ASSERT_FATAL(count > 0);
}

static inline void devices_close(void) {
    for (unsigned d = 0; d < DEVICES; d++) {
        for (unsigned i = 0; devices[d].is_open && i < DEVICE_THREADS; i++) {
            ingot_backend_close(&devices[d].backend[i]);
        }
    }
}

/* ---- memory of a device ------------------------------------------------------------------------
 */

/* host[bytes] (NULL: poison) on the device, with a guard behind it. */
static inline void *device_put(const ingot_backend *b, const void *host, uint64_t bytes) {
    void *memory = NULL;
    uint8_t *image = malloc(bytes + GUARD_BYTES);
    memset(image, POISON, bytes + GUARD_BYTES);
    if (host != NULL) {
        memcpy(image, host, bytes);
    }
    CU_ASSERT_FATAL(b->ops->alloc(b->context, &memory, bytes + GUARD_BYTES) == INGOT_OK);
    CU_ASSERT_FATAL(b->ops->upload(b->context, memory, image, bytes + GUARD_BYTES) == INGOT_OK);
    free(image);
    return memory;
}

/* The same as floats; NULL stays NULL. */
static inline float *device_put_floats(const ingot_backend *b, const float *host, uint64_t count) {
    return host != NULL ? device_put(b, host, count * sizeof *host) : NULL;
}

static inline void device_release(const ingot_backend *b, const void *memory) {
    if (memory != NULL) {
        b->ops->release(b->context, (void *)(uintptr_t)memory);
    }
}

/* host[bytes] (NULL: nothing) = what lies there now; the guard must be whole.  Releases it. */
static inline void device_take(const ingot_backend *b, void *host, void *memory, uint64_t bytes) {
    uint8_t *image = malloc(bytes + GUARD_BYTES);
    CU_ASSERT_FATAL(b->ops->download(b->context, image, memory, bytes + GUARD_BYTES) == INGOT_OK);
    unsigned touched = 0;
    for (unsigned i = 0; i < GUARD_BYTES; i++) {
        touched += image[bytes + i] != POISON;
    }
    CU_ASSERT(touched == 0);
    if (host != NULL) {
        memcpy(host, image, bytes);
    }
    free(image);
    device_release(b, memory);
}

/* ---- running a case
 * ------------------------------------------------------------------------------ */

/* Runs a case on one backend; out is host memory. */
typedef void (*device_run)(const ingot_backend *b, const void *c, float *out);

/* What is to come out: |out - value| <= tolerance * epsilon * size + floor; size NULL: exactly. */
typedef struct expected {
    const char *what;
    const double *value, *size;
    const double *word_size; /* of the products that word_epsilon is about; NULL: none */
    uint64_t count;
    double tolerance; /* in units of roundoff */
    double floor;     /* what is lost at the low end of the range of FP32 */
    bool is_product;  /* linear, attention or gram */
} expected;

static const device *device_now; /* the one a case runs on */
static double largest_share;     /* of the tolerance that was used up, since it was last reset */

static inline void device_compare(const device *d, const expected *e, const float *out) {
    const double rounding = e->is_product ? d->product_epsilon : 0.0;
    const double epsilon = e->tolerance * d->epsilon + rounding;
    /* a factor below the normal numbers of binary16 loses an absolute amount */
    const double absolute = e->floor + rounding * 0x1p-13;
    for (uint64_t i = 0; i < e->count; i++) {
        const double got = (double)out[i];
        double bound = e->size != NULL ? epsilon * e->size[i] + absolute : 0.0;
        bound += e->word_size != NULL ? d->word_epsilon * e->word_size[i] : 0.0;
        const double error = fabs(got - e->value[i]);
        if (!(error <= bound)) {
            printf("\n    %s on %s: element %llu of %llu is %.9g, not %.9g (bound %.3g)", e->what,
                   d->backend[0].path, (unsigned long long)i, (unsigned long long)e->count, got,
                   e->value[i], bound);
            CU_FAIL("a value is wrong");
            return;
        }
        largest_share = bound > 0 ? fmax(largest_share, error / bound) : largest_share;
    }
}

static inline void device_check_bits(const char *what, const char *where, const float *a,
                                     const float *b, uint64_t count) {
    if (count != 0 && memcmp(a, b, count * sizeof *a) != 0) {
        printf("\n    %s: other bits %s", what, where);
        CU_FAIL("bits differ");
    }
}

static inline void device_check(device_run run, const void *c, const expected *e) {
    const uint64_t bytes = e->count * sizeof(float);
    float *first = malloc(bytes + 1), *again = malloc(bytes + 1), *v3 = malloc(bytes + 1);
    bool has_v3 = false;
    for (unsigned d = 0; d < DEVICES; d++) {
        if (!devices[d].is_open) {
            continue;
        }
        device_now = &devices[d];
        for (unsigned i = 0; i < DEVICE_THREADS; i++) {
            float *out = i == 0 ? first : again;
            memset(out, POISON, bytes);
            run(&devices[d].backend[i], c, out);
            if (i == 0) {
                device_compare(&devices[d], e, first);
            } else {
                device_check_bits(e->what, "with more threads", first, again, e->count);
            }
        }
        /* levels v3 and v4 round alike (kernels/cpu/isa_lanes.h) */
        const char *isa = devices[d].isa != NULL ? devices[d].isa : "";
        if (strcmp(isa, "v4") == 0 && has_v3) {
            device_check_bits(e->what, "than level v3", v3, first, e->count);
        }
        if (strcmp(isa, "v3") == 0) {
            memcpy(v3, first, bytes);
            has_v3 = true;
        }
    }
    free(v3);
    free(first);
    free(again);
}

/* ---- what suites share -------------------------------------------------------------------- */

static inline double *doubles(uint64_t count) {
    return calloc(count + 1, sizeof(double));
}

/* Of the tolerance of the test that just ran. */
static inline void report_share(void) {
    printf("largest error %.2f of the bound ", largest_share);
    largest_share = 0;
}

/* A sum of n rounded terms in FP32, in units of roundoff relative to the sum of magnitudes: errors
 * are of either sign and grow with the square root; a constant for what surrounds the sum. */
static inline double sum_tolerance(uint64_t n) {
    return 8 + sqrt((double)n);
}

#endif
