/* Internal to kernels/cuda: products of tiles of attention on tensor cores (mma.sync m16n8k16),
 * from shared memory whose rows start 4 banks apart.  A thread block has TILE_WARPS warps. */
#ifndef INGOT_CUDA_ATTENTION_TILE_H
#define INGOT_CUDA_ATTENTION_TILE_H

#include "kernels/cuda/async_copy.h"

#include <cuda_fp16.h>

#define TILE_WARPS 4
#define TILE_PAD   8 /* halves behind a row in shared memory */

/* Starts copies to to[rows][WIDTH + TILE_PAD] of rows first .. of a head, `row_stride` apart, of
 * `padded` values each; rows at or behind `end` and columns behind a row become zero. */
template <int WIDTH>
__device__ static inline void copy_rows(__half *to, const __half *from, uint64_t row_stride,
                                        uint64_t first, uint64_t end, int rows, unsigned padded) {
    constexpr int PIECES = WIDTH / 8;
    for (int i = threadIdx.x; i < rows * PIECES; i += TILE_WARPS * 32) {
        const int row = i / PIECES, piece = i % PIECES;
        const bool is_there = first + row < end && piece * 8 < padded;
        async_copy<16>(async_address(to + row * (WIDTH + TILE_PAD) + piece * 8),
                       is_there ? from + (first + row) * row_stride + piece * 8 : from,
                       is_there ? 16 : 0);
    }
}

__device__ static inline void load_matrices(unsigned (&r)[4], const __half *row) {
    const unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

__device__ static inline void load_matrices_transposed(unsigned (&r)[4], const __half *row) {
    const unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

__device__ static inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                           unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ static inline unsigned pack_halves(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned *>(&pair);
}

/* 2^x, relative error 2^-22; 0 for minus infinity. */
__device__ static inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
