/* Internal to kernels/cuda: copies from device memory to shared memory that take no registers on
 * their way (cp.async). */
#ifndef INGOT_CUDA_ASYNC_COPY_H
#define INGOT_CUDA_ASYNC_COPY_H

#include <cstdint>

/* Starts a copy of SIZE (4, 8 or 16) bytes; of those only `bytes`, zeros behind them.  Both sides
 * are aligned to SIZE.  `to` is an address in shared memory as __cvta_generic_to_shared gives it.
 */
template <int SIZE>
__device__ static inline void async_copy(unsigned to, const void *from, unsigned bytes) {
    if constexpr (SIZE == 16) {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                     "r"(bytes)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to), "l"(from),
                     "r"(bytes), "n"(SIZE)
                     : "memory");
    }
}

__device__ static inline unsigned async_address(const void *shared) {
    return (unsigned)__cvta_generic_to_shared(shared);
}

/* Closes a group of copies of this thread. */
__device__ static inline void async_commit(void) {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

#if __CUDA_ARCH__ >= 800 /* for the host's pass, too, it is not there */
/* Arrives at a barrier in shared memory when all copies that this thread has started are there. */
__device__ static inline void async_arrive(unsigned barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
#endif

/* Waits for all copies of this thread but those of its last PENDING groups. */
template <int PENDING> __device__ static inline void async_arrived(void) {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

#define ASYNC_MOST 6 /* groups that async_arrived_first tells apart */

/* Waits for the first of `groups` groups of copies of this thread, 2 to ASYNC_MOST. */
__device__ static inline void async_arrived_first(unsigned groups) {
    if (groups == ASYNC_MOST) {
        async_arrived<ASYNC_MOST - 1>();
    } else if (groups == 5) {
        async_arrived<4>();
    } else if (groups == 4) {
        async_arrived<3>();
    } else if (groups == 3) {
        async_arrived<2>();
    } else {
        async_arrived<1>();
    }
}

/* What shared memory holds at an address as async_address gives it, which takes one register. */
__device__ static inline uint4 shared_read16(unsigned at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(at)
                 : "memory");
    return v;
}

__device__ static inline uint2 shared_read8(unsigned at) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at) : "memory");
    return v;
}

__device__ static inline longlong2 shared_read_two(unsigned at) {
    longlong2 v;
    asm volatile("ld.shared.v2.s64 {%0,%1}, [%2];" : "=l"(v.x), "=l"(v.y) : "r"(at) : "memory");
    return v;
}

__device__ static inline long long shared_read_one(unsigned at) {
    long long v;
    asm volatile("ld.shared.s64 %0, [%1];" : "=l"(v) : "r"(at) : "memory");
    return v;
}

__device__ static inline void shared_write_one(unsigned at, long long value) {
    asm volatile("st.shared.s64 [%0], %1;" ::"r"(at), "l"(value) : "memory");
}

__device__ static inline void shared_write_two(unsigned at, long long first, long long second) {
    asm volatile("st.shared.v2.s64 [%0], {%1,%2};" ::"r"(at), "l"(first), "l"(second) : "memory");
}

__device__ static inline unsigned shared_read4(unsigned at) {
    unsigned v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    return v;
}

__device__ static inline unsigned short shared_read2(unsigned at) {
    unsigned short v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at) : "memory");
    return v;
}

#endif
