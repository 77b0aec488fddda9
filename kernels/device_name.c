/* Names of devices (kernels/device_name.h). */
#include "kernels/device_name.h"

#include <stdlib.h>
#include <string.h>

bool ingot_device_ordinal(int *ordinal, const char *device) {
    *ordinal = -1;
    if (strncmp(device, "cuda:", 5) != 0) {
        return strcmp(device, "cuda") == 0;
    }
    const size_t digits = strspn(device + 5, "0123456789");
    *ordinal = (int)strtol(device + 5, NULL, 10);
    return digits > 0 && digits <= 3 && device[5 + digits] == '\0';
}

ingot_status ingot_device_check_name(const char *device, ingot_error *error) {
    int ignored;
    return strcmp(device, "auto") == 0 || strcmp(device, "cpu") == 0 ||
                   ingot_device_ordinal(&ignored, device)
               ? INGOT_OK
               : ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL,
                                 "use auto, cpu, cuda or cuda:N", "unknown device '%s'", device);
}
