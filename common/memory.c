/* Aligned allocations, fault injection, and arenas.
 *
 * An arena is a list of chunks.  Allocation bumps a pointer in the current chunk and moves on to
 * the next one that is large enough; a reset keeps the chunks that the last round used
 * and releases those it left untouched or half empty, so that an arena follows the size of its
 * work. */
#include "common/memory.h"

#include "common/sizes.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ARENA_CHUNK_BYTES (UINT64_C(1) << 20)
#define LARGE_PAGE_BYTES  (UINT64_C(2) << 20)

/* Allocations left before the injected failure; negative: injection is off. */
static atomic_llong allocations_left = -1;

__attribute__((constructor)) static void read_fault_environment(void) {
    const char *value = getenv("INGOT_TEST_FAIL_ALLOC");
    if (value != NULL) {
        ingot_memory_fail_after(strtoull(value, NULL, 10));
    }
}

void ingot_memory_fail_after(uint64_t n) {
    const bool is_on = n != 0 && n <= (uint64_t)INT64_MAX;
    atomic_store(&allocations_left, is_on ? (long long)(n - 1) : -1);
}

/* Counts down to zero and stays there: the n-th allocation fails, and all that follow. */
static bool is_injected_failure(void) {
    long long left = atomic_load_explicit(&allocations_left, memory_order_relaxed);
    while (left > 0) {
        if (atomic_compare_exchange_weak(&allocations_left, &left, left - 1)) {
            return false;
        }
    }
    return left == 0;
}

/* Allocations of device memory until one fails; 0: none. */
static atomic_llong device_allocations_left;

void ingot_device_fault_arm(void) {
    const char *value = getenv("INGOT_TEST_FAIL_DEVICE_ALLOC");
    atomic_store(&device_allocations_left,
                 value != NULL ? (long long)strtoull(value, NULL, 10) : 0);
}

bool ingot_device_fault_is_due(void) {
    long long left = atomic_load_explicit(&device_allocations_left, memory_order_relaxed);
    while (left > 0) {
        if (atomic_compare_exchange_weak(&device_allocations_left, &left, left - 1)) {
            return left == 1;
        }
    }
    return false;
}

static ingot_status alloc_aligned(void **out, uint64_t size_bytes, uint64_t alignment_bytes) {
    *out = NULL;
    uint64_t padded_bytes;
    if (!ingot_size_align(&padded_bytes, ingot_max_u64(size_bytes, 1), alignment_bytes) ||
        padded_bytes > PTRDIFF_MAX || is_injected_failure()) {
        return INGOT_ERR_NO_MEMORY;
    }
    *out = aligned_alloc((size_t)alignment_bytes, (size_t)padded_bytes);
    return *out == NULL ? INGOT_ERR_NO_MEMORY : INGOT_OK;
}

ingot_status ingot_alloc(void **out, uint64_t size_bytes) {
    return alloc_aligned(out, size_bytes, INGOT_ALIGNMENT);
}

ingot_status ingot_alloc_zero(void **out, uint64_t count, uint64_t size_bytes) {
    *out = NULL;
    uint64_t total_bytes;
    if (!ingot_size_mul(&total_bytes, count, size_bytes)) {
        return INGOT_ERR_NO_MEMORY;
    }
    INGOT_TRY(ingot_alloc(out, total_bytes));
    memset(*out, 0, (size_t)total_bytes);
    return INGOT_OK;
}

void ingot_free(void *memory) {
    free(memory);
}

uint64_t ingot_memory_peak_bytes(void) {
    FILE *file = fopen("/proc/self/status", "r");
    if (file == NULL) {
        return 0;
    }
    unsigned long long peak_kib = 0;
    char line[256];
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "VmHWM:", 6) == 0) {
            peak_kib = strtoull(line + 6, NULL, 10);
            break;
        }
    }
    (void)fclose(file);
    return (uint64_t)peak_kib * 1024;
}

typedef struct arena_chunk {
    struct arena_chunk *next;
    unsigned char *payload;
    uint64_t capacity_bytes;
    uint64_t used_bytes;
    bool is_plain; /* not from the arena's allocator */
} arena_chunk;

struct ingot_arena {
    ingot_allocator allocator;
    arena_chunk *first;
    arena_chunk *current;
};

static ingot_status host_alloc(void *context, void **out, uint64_t size_bytes) {
    (void)context;
    return ingot_alloc(out, size_bytes);
}

static void host_release(void *context, void *memory) {
    (void)context;
    ingot_free(memory);
}

/* Asking for large pages may fail: then the memory has small ones. */
static ingot_status large_alloc(void *context, void **out, uint64_t size_bytes) {
    (void)context;
    INGOT_TRY(alloc_aligned(out, size_bytes, LARGE_PAGE_BYTES));
    (void)madvise(*out, (size_t)size_bytes, MADV_HUGEPAGE);
    return INGOT_OK;
}

const ingot_allocator ingot_large_pages = {
    .alloc = large_alloc, .release = host_release, .chunk_bytes = 4 * LARGE_PAGE_BYTES};

ingot_status ingot_arena_create(ingot_arena **out) {
    const ingot_allocator host = {.alloc = host_alloc, .release = host_release};
    return ingot_arena_create_from(out, &host);
}

ingot_status ingot_arena_create_from(ingot_arena **out, const ingot_allocator *allocator) {
    void *memory;
    *out = NULL;
    INGOT_TRY(ingot_alloc_zero(&memory, 1, sizeof(ingot_arena)));
    *out = memory;
    (*out)->allocator = *allocator;
    return INGOT_OK;
}

static void chunk_release(const ingot_arena *arena, arena_chunk *chunk) {
    if (chunk->is_plain) {
        ingot_free(chunk->payload);
    } else {
        arena->allocator.release(arena->allocator.context, chunk->payload);
    }
    ingot_free(chunk);
}

/* Puts a new chunk of at least size_bytes right after the current one. */
static ingot_status arena_grow(ingot_arena *arena, uint64_t size_bytes) {
    const uint64_t least_bytes =
        arena->allocator.chunk_bytes != 0 ? arena->allocator.chunk_bytes : ARENA_CHUNK_BYTES;
    const uint64_t capacity_bytes = ingot_max_u64(size_bytes, least_bytes);
    void *memory, *payload;
    INGOT_TRY(ingot_alloc(&memory, sizeof(arena_chunk)));
    ingot_status status =
        arena->allocator.alloc(arena->allocator.context, &payload, capacity_bytes);
    const bool is_plain = status == INGOT_ERR_NO_MEMORY && arena->allocator.may_be_plain;
    if (is_plain) {
        status = ingot_alloc(&payload, capacity_bytes);
    }
    if (status != INGOT_OK) {
        ingot_free(memory);
        return status;
    }
    arena_chunk *chunk = memory;
    *chunk =
        (arena_chunk){.payload = payload, .capacity_bytes = capacity_bytes, .is_plain = is_plain};
    if (arena->current == NULL) {
        chunk->next = arena->first;
        arena->first = chunk;
    } else {
        chunk->next = arena->current->next;
        arena->current->next = chunk;
    }
    arena->current = chunk;
    return INGOT_OK;
}

ingot_status ingot_arena_alloc(ingot_arena *arena, void **out, uint64_t size_bytes) {
    *out = NULL;
    uint64_t padded_bytes;
    if (!ingot_size_align(&padded_bytes, ingot_max_u64(size_bytes, 1), INGOT_ALIGNMENT)) {
        return INGOT_ERR_NO_MEMORY;
    }
    /* Walk over kept chunks only when one ahead can take the request: others stay for later. */
    arena_chunk *chunk = arena->current != NULL ? arena->current : arena->first;
    while (chunk != NULL && chunk->capacity_bytes - chunk->used_bytes < padded_bytes) {
        chunk = chunk->next;
    }
    if (chunk == NULL) {
        INGOT_TRY(arena_grow(arena, padded_bytes));
        chunk = arena->current;
    }
    *out = chunk->payload + chunk->used_bytes;
    chunk->used_bytes += padded_bytes;
    arena->current = chunk;
    return INGOT_OK;
}

ingot_status ingot_arena_array(ingot_arena *arena, void **out, uint64_t count,
                               uint64_t size_bytes) {
    uint64_t total_bytes;
    *out = NULL;
    if (!ingot_size_mul(&total_bytes, count, size_bytes)) {
        return INGOT_ERR_NO_MEMORY;
    }
    return ingot_arena_alloc(arena, out, total_bytes);
}

void ingot_arena_reset(ingot_arena *arena) {
    arena_chunk **link = &arena->first;
    while (*link != NULL) {
        arena_chunk *chunk = *link;
        const bool is_oversized =
            chunk->capacity_bytes > ARENA_CHUNK_BYTES &&
            (arena->allocator.is_quick || chunk->used_bytes <= chunk->capacity_bytes / 2);
        if (!arena->allocator.is_slow && (chunk->used_bytes == 0 || is_oversized)) {
            *link = chunk->next;
            chunk_release(arena, chunk);
        } else {
            chunk->used_bytes = 0;
            link = &chunk->next;
        }
    }
    arena->current = NULL;
}

void ingot_arena_clear(ingot_arena *arena) {
    arena_chunk *chunk = arena->first;
    while (chunk != NULL) {
        arena_chunk *next = chunk->next;
        chunk_release(arena, chunk);
        chunk = next;
    }
    arena->first = arena->current = NULL;
}

void ingot_arena_destroy(ingot_arena *arena) {
    if (arena != NULL) {
        ingot_arena_clear(arena);
        ingot_free(arena);
    }
}
