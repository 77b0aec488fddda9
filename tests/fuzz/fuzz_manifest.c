/* Fuzz target: manifests of a zoo.  What is accepted has products with names and outputs of their
 * own, that stay on the shelf, and indices that point somewhere; what is refused names a reason. */
#include "zoo/manifest.h"

#include <stdlib.h>
#include <string.h>

#define require(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static void check(const ingot_manifest *m) {
    require(m->product_count > 0 && m->device_count > 0 && m->shelf[0] != '\0');
    for (uint64_t i = 0; i < m->product_count; i++) {
        const ingot_zoo_product *p = &m->products[i];
        require(p->model < m->model_count && p->recipe < m->recipe_count);
        require(p->calibration == INGOT_ZOO_NONE || p->calibration < m->text_count);
        require(p->evaluation == INGOT_ZOO_NONE || p->evaluation < m->text_count);
        require(p->output[0] != '/' && p->output[0] != '.' && strstr(p->output, "/.") == NULL);
        for (uint64_t k = 0; k < i && i < 64; k++) {
            require(strcmp(p->name, m->products[k].name) != 0);
            require(strcmp(p->output, m->products[k].output) != 0);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ingot_manifest manifest;
    ingot_error error = {0};
    const ingot_status status =
        ingot_manifest_parse(&manifest, (const char *)data, size, "zoo.json", &error);
    if (status == INGOT_OK) {
        check(&manifest);
    } else {
        require(error.status == status && error.reason[0] != '\0');
    }
    ingot_manifest_free(&manifest);
    return 0;
}
