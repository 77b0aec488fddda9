/* Tells OpenBLAS which of its kernels to use, and to start no threads, before it looks for itself.
 *
 * OpenBLAS picks its kernels by CPU model when it is loaded, and a release older than the CPU does
 * not know the model: Debian 12's 0.3.21 takes an Emerald Rapids Xeon for a "Prescott" and runs
 * SSE3 code, several times slower.  What counts is the instruction set, so that is what this goes
 * by.  Its threads are never used (spec/architecture.md, "Same bytes"), but it makes them when it
 * is loaded, and where memory is short its shutdown waits for one that cannot start.  The choice
 * must stand in the environment when OpenBLAS's constructor runs, and the C library resets the
 * environment between .preinit_array and the constructors: so the program starts itself once more
 * with the variables set (about a millisecond).  A value the user set is left alone; where starting
 * again is not possible, OpenBLAS's own choice stands. */
#include "kernels/cpu/cpu.h"

#include <string.h>
#include <unistd.h>

#define CORE         "OPENBLAS_CORETYPE="
#define THREADS      "OPENBLAS_NUM_THREADS="
#define MOST_ENTRIES 4096u

static const char *best_core(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return CORE "SkylakeX";
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return CORE "Haswell";
    }
    return NULL;
}

static bool begins_with(const char *text, const char *start) {
    return strncmp(text, start, strlen(start)) == 0;
}

static void choose_core(int argc, char **argv, char **environment) {
    static const char *changed[MOST_ENTRIES + 3];
    const char *core = best_core();
    bool has_core = core == NULL, has_threads = false;
    unsigned count = 0, kept = 0;
    (void)argc;
    for (; count < MOST_ENTRIES && environment[count] != NULL; count++) {
        has_core = has_core || begins_with(environment[count], CORE);
        if (begins_with(environment[count], THREADS)) {
            has_threads = strcmp(environment[count], THREADS "1") == 0;
            continue; /* another number is not kept */
        }
        changed[kept++] = environment[count];
    }
    if (environment[count] != NULL || (has_core && has_threads)) {
        return;
    }
    changed[kept++] = THREADS "1";
    if (!has_core) {
        changed[kept++] = core;
    }
    changed[kept] = NULL;
    (void)execve("/proc/self/exe", argv, (char *const *)(uintptr_t)changed);
}

__attribute__((section(".preinit_array"),
               used)) static void (*const choose_core_early)(int, char **, char **) = choose_core;

const bool ingot_cpu_chooses_core = true;
