/* Tells OpenBLAS which of its kernels to use, before it looks for itself.
 *
 * OpenBLAS picks its kernels by CPU model when it is loaded, and a release older than the CPU does
 * not know the model: Debian 12's 0.3.21 takes an Emerald Rapids Xeon for a "Prescott" and runs
 * SSE3 code, several times slower.  What counts is the instruction set, so that is what this goes
 * by.  The choice must stand in the environment when OpenBLAS's constructor runs, and the C library
 * resets the environment between .preinit_array and the constructors: so the program starts itself
 * once more with the variable set (about a millisecond).  A value the user set is left alone; where
 * starting again is not possible, OpenBLAS's own choice stands. */
#include "kernels/cpu/cpu.h"

#include <string.h>
#include <unistd.h>

#define KEY          "OPENBLAS_CORETYPE="
#define MOST_ENTRIES 4096u

static const char *best_core(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return KEY "SkylakeX";
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return KEY "Haswell";
    }
    return NULL;
}

static void choose_core(int argc, char **argv, char **environment) {
    static const char *changed[MOST_ENTRIES + 2];
    const char *choice = best_core();
    unsigned count = 0;
    (void)argc;
    for (; count < MOST_ENTRIES && environment[count] != NULL; count++) {
        if (strncmp(environment[count], KEY, sizeof KEY - 1) == 0) {
            return;
        }
        changed[count] = environment[count];
    }
    if (choice != NULL && environment[count] == NULL) {
        changed[count] = choice;
        (void)execve("/proc/self/exe", argv, (char *const *)(uintptr_t)changed);
    }
}

__attribute__((section(".preinit_array"),
               used)) static void (*const choose_core_early)(int, char **, char **) = choose_core;

const bool ingot_cpu_chooses_core = true;
