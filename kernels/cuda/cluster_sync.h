/* Internal to kernels/cuda: how the blocks of a cluster wait for each other (Hopper and later; of
 * no effect before).  All threads of all blocks call these. */
#ifndef INGOT_CUDA_CLUSTER_SYNC_H
#define INGOT_CUDA_CLUSTER_SYNC_H

/* This block is here.  Says nothing of what it wrote. */
__device__ static inline void cluster_arrive(void) {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

/* All blocks are here. */
__device__ static inline void cluster_wait(void) {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/* All blocks are here, and what they wrote to their own shared memory is there for the others; of
 * other memory it says nothing: a fence for all of it, as cooperative groups have, waits for the L2
 * cache, 0.2 to 0.5 us (decision 0054). */
__device__ static inline void cluster_meet(void) {
#if __CUDA_ARCH__ >= 900
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1208
    asm volatile("fence.release.sync_restrict::shared::cta.cluster;" ::: "memory");
    cluster_arrive();
#else /* PTX before 8.6 has that fence alone */
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
    cluster_wait();
#endif
}

#endif
