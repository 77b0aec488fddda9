/* How long a conversion will take, from a short measurement of the device it will run on. */
#ifndef INGOT_PLAN_MEASURE_H
#define INGOT_PLAN_MEASURE_H

#include "convert/plan_forecast.h"
#include "kernels/backend.h"

/* What was measured of a device, and of the disk that the checkpoint is on. */
typedef struct ingot_speed {
    double product_flops; /* of large products per second, a multiply and an add being two */
    double gram_flops;    /* of H, whose lower triangle counts */
    double read_bytes;    /* per second; 0: there are no weights */
    double factor;        /* seconds per n^3 of factorizing H */
    double weight;        /* seconds per weight of quantizing a matrix, */
    double weight_column; /* and per weight and column */
    double searched;      /* seconds per weight of searching scales */
} ingot_speed;

/* Measures, in a second or two, what the plan's most frequent method needs, on random matrices.
 * INGOT_ERR_NO_MEMORY where the device has none left. */
ingot_status ingot_speed_measure(ingot_speed *out, const ingot_forecast_job *job,
                                 const ingot_backend *backend, ingot_error *error) INGOT_MUST_CHECK;

/* Seconds of the conversion on one such device; NaN for --effort best, whose tuning is not
 * estimated.  Writing, and measuring sensitivities, are not counted. */
double ingot_forecast_seconds(const ingot_forecast_job *job, const ingot_speed *speed);

#endif
