/* Host memory: aligned allocations that report failure, and arenas that are reset, not freed. */
#ifndef INGOT_MEMORY_H
#define INGOT_MEMORY_H

#include "ingot_status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define INGOT_ALIGNMENT 64u /* bytes; one cache line, one AVX-512 register */

/* *out = size_bytes of uninitialised memory aligned to INGOT_ALIGNMENT (size 0 gives a valid
 * pointer).  INGOT_ERR_NO_MEMORY on failure, *out is then NULL.  Release with ingot_free. */
ingot_status ingot_alloc(void **out, uint64_t size_bytes) INGOT_MUST_CHECK;
/* The same, zeroed; count * size_bytes is overflow-checked. */
ingot_status ingot_alloc_zero(void **out, uint64_t count, uint64_t size_bytes) INGOT_MUST_CHECK;
void ingot_free(void *memory); /* NULL is fine */

/* Fault injection for tests: the n-th ingot allocation from now fails (and all that follow);
 * 0 turns it off.  Also set at start-up by the environment variable INGOT_TEST_FAIL_ALLOC. */
void ingot_memory_fail_after(uint64_t n);

/* The same for allocations of device memory, of which the n-th alone fails: a backend that opens
 * calls _arm, which takes n from INGOT_TEST_FAIL_DEVICE_ALLOC, and asks _is_due at each. */
void ingot_device_fault_arm(void);
bool ingot_device_fault_is_due(void);

/* Peak resident size of this process in bytes (VmHWM of /proc/self/status); 0 if not known. */
uint64_t ingot_memory_peak_bytes(void);

/* An arena: many allocations with one lifetime.  Grows in chunks, keeps them over a reset. */
typedef struct ingot_arena ingot_arena;

/* Where the chunks of an arena come from. */
typedef struct ingot_allocator {
    ingot_status (*alloc)(void *context, void **out, uint64_t size_bytes);
    void (*release)(void *context, void *memory);
    void *context;
    bool is_slow;         /* chunks are dear: a reset gives none back */
    bool is_quick;        /* chunks cost nothing: a reset gives back all but small ones, so that
                             arenas filled in turn need no more than the fullest of them */
    bool may_be_plain;    /* when `alloc` is out of memory the chunk is plain host memory: what
                             is pinned for speed alone */
    uint64_t chunk_bytes; /* the least of a chunk; 0: 1 MiB */
} ingot_allocator;
/* Host memory in pages of 2 MiB where the system has them, for what is read again and again:
 * weights of a decoder, which are read twice as fast. */
extern const ingot_allocator ingot_large_pages;

ingot_status ingot_arena_create(ingot_arena **out) INGOT_MUST_CHECK;
/* An arena over memory of another kind (a device's, pinned), which it never touches itself; the
 * allocator is copied.  Its alignment must be a multiple of INGOT_ALIGNMENT. */
ingot_status ingot_arena_create_from(ingot_arena **out,
                                     const ingot_allocator *allocator) INGOT_MUST_CHECK;
/* Aligned to INGOT_ALIGNMENT, valid until reset or destroy. */
ingot_status ingot_arena_alloc(ingot_arena *arena, void **out,
                               uint64_t size_bytes) INGOT_MUST_CHECK;
/* The same for count * size_bytes, overflow-checked. */
ingot_status ingot_arena_array(ingot_arena *arena, void **out, uint64_t count,
                               uint64_t size_bytes) INGOT_MUST_CHECK;
/* Forgets all allocations; chunks that were larger than needed are given back to the system. */
void ingot_arena_reset(ingot_arena *arena);
/* The same, and gives everything back. */
void ingot_arena_clear(ingot_arena *arena);
void ingot_arena_destroy(ingot_arena *arena); /* NULL is fine */

#endif
