/* A short measurement of a backend: what limits a conversion, for benches and forecasts. */
#ifndef INGOT_PRODUCT_RATE_H
#define INGOT_PRODUCT_RATE_H

#include "kernels/backend.h"

/* Operations per second (a multiply and an add are two) of the backend's own product of dense BF16
 * weights with activations, on random data, at sizes that keep the device busy: the best of the
 * runs, after one that warms up; NAN where it failed. */
double ingot_product_rate(const ingot_backend *backend, unsigned runs);

#endif
