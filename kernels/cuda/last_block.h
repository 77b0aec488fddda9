/* Internal to kernels/cuda: blocks that share a piece of work, of which the last to end goes on. */
#ifndef INGOT_CUDA_LAST_BLOCK_H
#define INGOT_CUDA_LAST_BLOCK_H

/* Whether this block is the last of `blocks` to get here; called by all of its threads.  What the
 * others wrote to device memory before is there for it.  `shared`: in shared memory; `done`: in
 * device memory, 0 before the first, and again behind the last. */
__device__ static inline bool cuda_block_ends_last(bool *shared, unsigned *done, unsigned blocks) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        *shared = atomicAdd(done, 1u) == blocks - 1;
        if (*shared) {
            *done = 0;
        }
    }
    __syncthreads();
    __threadfence();
    return *shared;
}

#endif
