/* How long a conversion will take, from a short measurement of the device it will run on. */
#ifndef INGOT_PLAN_MEASURE_H
#define INGOT_PLAN_MEASURE_H

#include "convert/plan_forecast.h"
#include "kernels/backend.h"

/* What was measured of one device.  Every figure is taken when a forecast first needs it, in a
 * fraction of a second, on random matrices, and serves all later ones. */
typedef struct ingot_speeds ingot_speeds;

/* A reference to the backend; open_seconds: what opening it took, a good part of a second where a
 * driver starts. */
ingot_status ingot_speeds_create(ingot_speeds **out, const ingot_backend *backend,
                                 double open_seconds) INGOT_MUST_CHECK;
void ingot_speeds_destroy(ingot_speeds *speeds); /* NULL is fine */

/* *seconds of the conversion on that device, --effort best and a target of bits per weight
 * included; what quantizing a weight takes is measured for each method at the bits and the group of
 * the first forecast that has it.  Of a GPU the start is counted too: opening it, and what the
 * first calls of what was measured took.  Writing is not counted.  INGOT_ERR_NO_MEMORY where the
 * device has none left. */
ingot_status ingot_forecast_seconds(double *seconds, const ingot_forecast_job *job,
                                    ingot_speeds *speeds, ingot_error *error) INGOT_MUST_CHECK;
/* The same of ingot-calib for the job's windows. */
ingot_status ingot_forecast_statistics(double *seconds, const ingot_forecast_job *job,
                                       ingot_speeds *speeds, ingot_error *error) INGOT_MUST_CHECK;
/* What scoring a container and its source takes (ingot-verify). */
ingot_status ingot_forecast_scoring(ingot_scoring_pace *out, const ingot_forecast_job *job,
                                    ingot_speeds *speeds, ingot_error *error) INGOT_MUST_CHECK;
/* Operations per second of large products, a multiply and an add being two; NaN: no forecast needed
 * it. */
double ingot_speeds_products(const ingot_speeds *speeds);

#endif
