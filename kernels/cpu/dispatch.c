/* Chooses the instruction-set level of the vector routines at run time. */
#include "kernels/cpu/cpu.h"

#include <cpuid.h>
#include <stdlib.h>
#include <string.h>

/* Each level, and what it is where the processor has the dot products of bytes (VNNI) that go with
 * it: the same results in fewer instructions, hence the same name. */
typedef struct isa_level {
    ingot_cpu_isa plain, vnni;
} isa_level;

#define LEVEL(name, product)                                                                       \
    {                                                                                              \
#name, &ingot_cpu_weight_##name, &ingot_cpu_product_##product, &ingot_cpu_math_##name,     \
            &ingot_cpu_backward_##name                                                             \
    }

static const isa_level levels[] = {
    {LEVEL(v2, v2), LEVEL(v2, v2)},
    {LEVEL(v3, v3), LEVEL(v3, v3n)},
    {LEVEL(v4, v4), LEVEL(v4, v4n)},
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

/* Nor this one, whose registers are those of AVX2. */
static bool has_avx_vnni(void) {
    unsigned eax;
    unsigned ebx;
    unsigned ecx;
    unsigned edx;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & bit_AVXVNNI) != 0;
}

static bool has_vnni(unsigned index) {
    return index == 1 ? has_avx_vnni() : index == 2 && __builtin_cpu_supports("avx512vnni");
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

/* The levels the processor has, two bits each: 0 no, 1 plain, 2 with VNNI.  Asked once: a virtual
 * machine leaves the guest for every CPUID, and this is asked for single rows. */
static unsigned known_levels(void) {
    static _Atomic unsigned known; /* threads that meet here store the same */
    unsigned found = known;
    if (found == 0) {
        __builtin_cpu_init();
        for (unsigned i = 0; i < LEVELS && is_supported(i); i++) {
            found |= (has_vnni(i) ? 2u : 1u) << (2 * i);
        }
        known = found;
    }
    return found;
}

const ingot_cpu_isa *ingot_cpu_isa_at(unsigned index) {
    const unsigned kind = index < LEVELS ? known_levels() >> (2 * index) & 3u : 0;
    return kind == 0 ? NULL : kind == 1 ? &levels[index].plain : &levels[index].vnni;
}

const ingot_cpu_isa *ingot_cpu_isa_select(void) {
    const char *forced = getenv("INGOT_CPU_ISA");
    for (unsigned i = LEVELS; i-- > 0;) {
        if (forced != NULL && forced[0] != '\0' && strcmp(forced, levels[i].plain.name) != 0) {
            continue;
        }
        const ingot_cpu_isa *isa = ingot_cpu_isa_at(i);
        if (isa != NULL) {
            return isa;
        }
    }
    return NULL;
}
