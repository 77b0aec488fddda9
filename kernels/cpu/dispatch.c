/* Chooses the instruction-set level of the vector routines at run time. */
#include "kernels/cpu/cpu.h"

#include <cpuid.h>
#include <stdlib.h>
#include <string.h>

static const ingot_cpu_isa levels[] = {
    {"v2", &ingot_cpu_weight_v2, &ingot_cpu_product_v2, &ingot_cpu_math_v2, &ingot_cpu_backward_v2},
    {"v3", &ingot_cpu_weight_v3, &ingot_cpu_product_v3, &ingot_cpu_math_v3, &ingot_cpu_backward_v3},
    {"v4", &ingot_cpu_weight_v4, &ingot_cpu_product_v4, &ingot_cpu_math_v4, &ingot_cpu_backward_v4},
};
#define LEVELS (sizeof levels / sizeof levels[0])

/* Not every compiler's __builtin_cpu_supports knows this one. */
static bool has_f16c(void) {
    unsigned eax;
    unsigned ebx;
    unsigned ecx;
    unsigned edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

/* The features a level adds; the psABI's lists, less those no vector loop uses.
 * __builtin_cpu_supports looks at what the operating system saves as well. */
static bool is_supported(unsigned index) {
    switch (index) {
    case 0:
        return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt") &&
               __builtin_cpu_supports("ssse3");
    case 1:
        return is_supported(0) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && has_f16c();
    case 2:
        return is_supported(1) && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    default:
        return false;
    }
}

/* How many levels the processor has.  Asked once: a virtual machine leaves the guest for every
 * CPUID, and this is asked for single rows. */
static unsigned level_count(void) {
    static _Atomic unsigned known; /* the count + 1; threads that meet here store the same */
    unsigned count = known;
    if (count == 0) {
        __builtin_cpu_init();
        for (count = 1; count <= LEVELS && is_supported(count - 1); count++) {
        }
        known = count;
    }
    return count - 1;
}

const ingot_cpu_isa *ingot_cpu_isa_at(unsigned index) {
    return index < level_count() ? &levels[index] : NULL;
}

const ingot_cpu_isa *ingot_cpu_isa_select(void) {
    const char *forced = getenv("INGOT_CPU_ISA");
    for (unsigned i = LEVELS; i-- > 0;) {
        if (forced != NULL && forced[0] != '\0' && strcmp(forced, levels[i].name) != 0) {
            continue;
        }
        const ingot_cpu_isa *isa = ingot_cpu_isa_at(i);
        if (isa != NULL) {
            return isa;
        }
    }
    return NULL;
}
