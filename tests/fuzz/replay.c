/* Runs a fuzz target without libFuzzer: every file of the folders and files named, and small random
 * mutations of each, so that the corpus works for every compiler and sanitizer in every test run.
 * `make fuzz` is the real search.
 *
 *   INGOT_FUZZ_MUTATIONS=N   mutations per file (default 200)
 *   INGOT_FUZZ_SEED=N        seed (default: from the clock, printed)
 *   INGOT_FUZZ_VERBOSE=1     names every run first: finds the one that crashes */
#include <dirent.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* Where the target has one, every second mutation is its own. */
__attribute__((weak)) size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size,
                                                     unsigned seed);

#define GROWTH_BYTES 16384u /* room for a mutation that makes the input longer */

static uint64_t random_state;
static unsigned long long mutations_per_file = 200;
static unsigned long long runs;
static bool is_verbose;

static uint64_t random_u64(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* A copy of exactly size bytes, so that a sanitizer sees a read past the end. */
static void run_once(const uint8_t *bytes, size_t size) {
    uint8_t *copy = malloc(size == 0 ? 1 : size);
    if (copy == NULL) {
        (void)fprintf(stderr, "replay: out of memory\n");
        exit(2);
    }
    if (size > 0) {
        memcpy(copy, bytes, size);
    }
    (void)LLVMFuzzerTestOneInput(copy, size);
    free(copy);
    runs++;
}

/* Changes a few bytes, or cuts, or repeats a piece, in a buffer with GROWTH_BYTES to spare; returns
 * the new size. */
static size_t mutate(uint8_t *bytes, size_t size) {
    if (LLVMFuzzerCustomMutator != NULL && random_u64() % 2 == 0) {
        return LLVMFuzzerCustomMutator(bytes, size, size + GROWTH_BYTES, (unsigned)random_u64());
    }
    if (size == 0) {
        return 0;
    }
    const unsigned count = 1 + (unsigned)(random_u64() % 4);
    for (unsigned i = 0; i < count; i++) {
        const size_t at = (size_t)(random_u64() % size);
        switch (random_u64() % 6) {
        case 0:
            bytes[at] ^= (uint8_t)(1u << (random_u64() % 8));
            break;
        case 1:
            bytes[at] = (uint8_t)random_u64();
            break;
        case 2:
            bytes[at] = random_u64() % 2 != 0 ? 0xff : 0x00;
            break;
        case 3: { /* a large or small integer where one may be */
            const uint64_t value = random_u64() >> (random_u64() % 64);
            memcpy(bytes + at, &value, size - at < sizeof value ? size - at : sizeof value);
            break;
        }
        case 4: { /* a piece from elsewhere */
            const size_t from = (size_t)(random_u64() % size);
            const size_t room = size - (from > at ? from : at);
            memmove(bytes + at, bytes + from, (size_t)(random_u64() % (room + 1)));
            break;
        }
        default:
            if (random_u64() % 3 == 0) {
                return at;
            }
            break;
        }
    }
    return size;
}

static int run_file(const char *path) {
    FILE *file = fopen(path, "rb");
    struct stat info;
    if (file == NULL || fstat(fileno(file), &info) != 0 || info.st_size > (1 << 26)) {
        (void)fprintf(stderr, "replay: cannot read %s (or it is too large)\n", path);
        if (file != NULL) {
            (void)fclose(file);
        }
        return 2;
    }
    const size_t size = (size_t)info.st_size;
    uint8_t *bytes = malloc(size + 1);
    uint8_t *changed = malloc(size + GROWTH_BYTES);
    int result = 2;
    if (bytes != NULL && changed != NULL && fread(bytes, 1, size, file) == size) {
        result = 0;
        printf("%s (%zu bytes)\n", path, size);
        (void)fflush(stdout);
        run_once(bytes, size);
        for (unsigned long long i = 0; i < mutations_per_file; i++) {
            memcpy(changed, bytes, size);
            const size_t changed_size = mutate(changed, size);
            if (is_verbose) {
                printf("  mutation %llu (%zu bytes)\n", i, changed_size);
                (void)fflush(stdout);
            }
            run_once(changed, changed_size);
        }
    } else {
        (void)fprintf(stderr, "replay: cannot read %s\n", path);
    }
    free(changed);
    free(bytes);
    (void)fclose(file);
    return result;
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int run_path(const char *path) {
    struct stat info;
    if (stat(path, &info) != 0) {
        (void)fprintf(stderr, "replay: %s is missing\n", path);
        return 2;
    }
    if (!S_ISDIR(info.st_mode)) {
        return run_file(path);
    }
    struct dirent **entries = NULL;
    const int count = scandir(path, &entries, NULL, by_name);
    int result = count < 0 ? 2 : 0;
    for (int i = 0; i < count; i++) {
        char name[4096];
        if (entries[i]->d_name[0] != '.') {
            (void)snprintf(name, sizeof name, "%s/%s", path, entries[i]->d_name);
            const int one = run_file(name);
            result = one != 0 ? one : result;
        }
        free(entries[i]);
    }
    free(entries);
    return result;
}

static unsigned long long number_from(const char *variable, unsigned long long otherwise) {
    const char *value = getenv(variable);
    return value == NULL || value[0] == '\0' ? otherwise : strtoull(value, NULL, 10);
}

int main(int argc, char **argv) {
    mutations_per_file = number_from("INGOT_FUZZ_MUTATIONS", mutations_per_file);
    is_verbose = number_from("INGOT_FUZZ_VERBOSE", 0) != 0;
    random_state = number_from("INGOT_FUZZ_SEED", (unsigned long long)time(NULL));
    random_state += random_state == 0; /* the generator would stay at 0 */
    printf("INGOT_FUZZ_SEED=%llu\n", (unsigned long long)random_state);
    int result = 0;
    for (int i = 1; i < argc; i++) {
        const int one = run_path(argv[i]);
        result = one != 0 ? one : result;
    }
    printf("%llu runs\n", runs);
    if (runs == 0) {
        (void)fprintf(stderr, "replay: nothing was run\n");
        return 2;
    }
    return result;
}
