/* Names of devices, as --device and manifests give them; whether there is such a device is another
 * matter. */
#ifndef INGOT_DEVICE_NAME_H
#define INGOT_DEVICE_NAME_H

#include "common/ingot_status.h"

#include <stdbool.h>

/* INGOT_ERR_USAGE for a name that is none of "auto", "cpu", "cuda" and "cuda:N". */
ingot_status ingot_device_check_name(const char *device, ingot_error *error) INGOT_MUST_CHECK;

/* *ordinal = the number of a CUDA device: -1 of "cuda", the first, or N of "cuda:N", up to 999;
 * false: it is no such name. */
bool ingot_device_ordinal(int *ordinal, const char *device);

#endif
