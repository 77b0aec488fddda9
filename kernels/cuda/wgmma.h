/* Internal to kernels/cuda: the instructions of Hopper (sm_90a) that product_wgmma.h,
 * product_cluster.h and product_pairs.h need: products of a warpgroup, copies of many bytes at
 * once, and the barriers that count them. */
#ifndef INGOT_CUDA_WGMMA_H
#define INGOT_CUDA_WGMMA_H

#include "kernels/cuda/async_copy.h"
#include "kernels/cuda/element.h"

#include <cuda.h>
#include <type_traits>

#define WGMMA_SWIZZLE 128 /* bytes of a row of codes whose units of 16 trade places */

/* The map of a matrix of packed codes, by boxes of `columns` columns of `rows` rows; what lies
 * behind it reads as zero.  Rows of WGMMA_SWIZZLE bytes: unit i of row r comes as unit i ^ r % 8.
 */
ingot_status wgmma_map(CUtensorMap *map, const ingot_weight_view *w, unsigned columns,
                       unsigned rows);
/* The same of its scales of 16 bits, by boxes of `groups` groups of `rows` rows. */
ingot_status wgmma_map_scales(CUtensorMap *map, const ingot_weight_view *w, unsigned groups,
                              unsigned rows);

/* Other targets compile the kernels without a body: the host chooses them for none. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define INGOT_SM90A 1
#else
#define INGOT_SM90A 0
#endif

#if INGOT_SM90A

/* ---- barriers in shared memory -----------------------------------------------------------------
 */

__device__ static inline void barrier_set(unsigned barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}

/* Makes barriers just set known to the copies that count on them. */
__device__ static inline void barrier_publish(void) {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ static inline void barrier_arrive(unsigned barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* At the barrier that is at this place of block `rank` of the cluster.  It orders nothing that this
 * block wrote before what the other one reads: good for saying that reads are done. */
__device__ static inline void barrier_arrive_at(unsigned barrier, unsigned rank) {
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}" ::"r"(barrier),
                 "r"(rank)
                 : "memory");
}

/* An instruction that one thread does, of a warp that is all there. */
#define WGMMA_ELECTED(text)                                                                        \
    "{\n"                                                                                          \
    ".reg .pred chosen;\n"                                                                         \
    "elect.sync _|chosen, 0xffffffff;\n"                                                           \
    "@chosen " text "\n"                                                                           \
    "}"

/* barrier_arrive by one thread of a warp that is all there. */
__device__ static inline void barrier_arrive_once(unsigned barrier) {
    asm volatile(WGMMA_ELECTED("mbarrier.arrive.shared::cta.b64 _, [%0];")::"r"(barrier)
                 : "memory");
}

/* Whether this is the one thread, of a warp that is all there, that does something for all. */
__device__ static inline bool warp_elect(void) {
    unsigned chosen;
    asm volatile("{\n"
                 ".reg .pred chosen;\n"
                 "elect.sync _|chosen, 0xffffffff;\n"
                 "selp.u32 %0, 1, 0, chosen;\n"
                 "}"
                 : "=r"(chosen));
    return chosen != 0;
}

/* Waits for the end of the phase whose number is odd or even. */
__device__ static inline void barrier_wait(unsigned barrier, unsigned odd) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra over;\n"
                 "bra again;\n"
                 "over:\n"
                 "}" ::"r"(barrier),
                 "r"(odd)
                 : "memory");
}

#define BARRIER_EXPECT_TEXT "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
#define BULK_COPY_TEXT                                                                             \
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
#define BULK_COPY_BOX_TEXT                                                                         \
    "cp.async.bulk.tensor.2d.shared::cluster.global.tile"                                          \
    ".mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], once;"
/* With the policy of what is read once. */
#define BULK_COPY_ONCE(text)                                                                       \
    "{\n"                                                                                          \
    ".reg .b64 once;\n"                                                                            \
    "createpolicy.fractional.L2::evict_first.b64 once, 1.0;\n" text "\n"                           \
    "}"

/* Adds `bytes` that are on their way to the barrier's phase, which then ends with the last of them.
 */
__device__ static inline void barrier_expect(unsigned barrier, unsigned bytes) {
    asm volatile(BARRIER_EXPECT_TEXT ::"r"(barrier), "r"(bytes) : "memory");
}

/* Starts a copy of `bytes`, a multiple of 16, both sides aligned to 16.  One thread. */
__device__ static inline void bulk_copy(unsigned to, const void *from, unsigned bytes,
                                        unsigned barrier) {
    asm volatile(BULK_COPY_TEXT ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

/* Starts a copy of the box of a map whose first element is at (column, row); what is read once, and
 * leaves the L2 cache before all else.  One thread. */
__device__ static inline void bulk_copy_box(unsigned to, const CUtensorMap *map, unsigned column,
                                            unsigned row, unsigned barrier) {
    asm volatile(BULK_COPY_ONCE(BULK_COPY_BOX_TEXT)::"r"(to), "l"(map), "r"(column), "r"(row),
                 "r"(barrier)
                 : "memory");
}

/* The same three by one thread of a warp that is all there, all of whose lanes have the same
 * operands: these then go to uniform registers without a loop over the lanes. */

__device__ static inline void barrier_expect_by_warp(unsigned barrier, unsigned bytes) {
    asm volatile(WGMMA_ELECTED(BARRIER_EXPECT_TEXT)::"r"(barrier), "r"(bytes) : "memory");
}

__device__ static inline void bulk_copy_by_warp(unsigned to, const void *from, unsigned bytes,
                                                unsigned barrier) {
    asm volatile(WGMMA_ELECTED(BULK_COPY_TEXT)::"r"(to), "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

__device__ static inline void bulk_copy_box_by_warp(unsigned to, const CUtensorMap *map,
                                                    unsigned column, unsigned row,
                                                    unsigned barrier) {
    asm volatile(BULK_COPY_ONCE(WGMMA_ELECTED(BULK_COPY_BOX_TEXT))::"r"(to), "l"(map), "r"(column),
                 "r"(row), "r"(barrier)
                 : "memory");
}

/* Starts a store of four sums to an address of this block's shared memory in that of block `rank`
 * of the cluster, whose barrier at that place counts its bytes. */
__device__ static inline void cluster_store_four(unsigned to, unsigned barrier, unsigned rank,
                                                 const float4 &v) {
    asm volatile("{\n"
                 ".reg .b32 there, counts;\n"
                 "mapa.shared::cluster.u32 there, %0, %2;\n"
                 "mapa.shared::cluster.u32 counts, %1, %2;\n"
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [there], "
                 "{%3,%4,%5,%6}, [counts];\n"
                 "}" ::"r"(to),
                 "r"(barrier), "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
}

/* ---- registers ---------------------------------------------------------------------------------
 *
 * Of the threads of a warpgroup, from here on; a multiple of 8. */

template <int COUNT> __device__ static inline void warpgroup_keep(void) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> __device__ static inline void warpgroup_claim(void) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

/* ---- products of a warpgroup -------------------------------------------------------------------
 */

/* Eight values that are in their registers from here on: not made between products. */
__device__ static inline void wgmma_hold(unsigned (&v)[16], unsigned first) {
#pragma unroll
    for (unsigned i = first; i < first + 8; i++) {
        asm volatile("" : "+r"(v[i]));
    }
}

/* In front of the first product behind writes to its registers. */
__device__ static inline void wgmma_fence(void) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ static inline void wgmma_commit(void) {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Waits for all but the last PENDING groups of products. */
template <int PENDING> __device__ static inline void wgmma_wait(void) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/* b[16][N] at an address in shared memory, aligned to 128 bytes, as [2 halves of 8 rows][N][8]:
 * no swizzle, cores of eight columns of 16 bytes lie one behind the other. */
template <int N> __device__ static inline uint64_t wgmma_matrix(unsigned address) {
    constexpr uint64_t LEADING = N * 16, STRIDE = 128; /* bytes to the other half, to 8 columns */
    return (uint64_t)(address >> 4 & 0x3fff) | LEADING >> 4 << 16 | STRIDE >> 4 << 32;
}

/* The same so many units of 16 bytes behind it: as an addition of 64 bits it would cost four. */
__device__ static inline uint64_t wgmma_behind(uint64_t matrix, unsigned units) {
    return (matrix & ~(uint64_t)0xffffffffu) | ((unsigned)matrix + units);
}

#define WGMMA_FOUR(d, c) "+f"(d[c][0]), "+f"(d[c][1]), "+f"(d[c][2]), "+f"(d[c][3])
#define WGMMA_16(d)      WGMMA_FOUR(d, 0), WGMMA_FOUR(d, 1)
#define WGMMA_32(d)      WGMMA_16(d), WGMMA_FOUR(d, 2), WGMMA_FOUR(d, 3)
#define WGMMA_64(d)                                                                                \
    WGMMA_32(d), WGMMA_FOUR(d, 4), WGMMA_FOUR(d, 5), WGMMA_FOUR(d, 6), WGMMA_FOUR(d, 7)
#define WGMMA_TEXT(type, adds, columns, sums, inputs)                                              \
    "{\n"                                                                                          \
    ".reg .pred adds;\n"                                                                           \
    "setp.ne.b32 adds, " adds ", 0;\n"                                                             \
    "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type " {" sums "}, " inputs    \
    ", adds, 1, 1, 0;\n"                                                                           \
    "}"
#define WGMMA_NAMES_16 "%0,%1,%2,%3,%4,%5,%6,%7"
#define WGMMA_NAMES_32 WGMMA_NAMES_16 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define WGMMA_NAMES_64                                                                             \
    WGMMA_NAMES_32 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_INPUTS(a0, a1, a2, a3, b, adds)                                                      \
    "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"((int)(adds))

#define WGMMA_16_TEXT(type) WGMMA_TEXT(type, "%13", "16", WGMMA_NAMES_16, "{%8,%9,%10,%11}, %12")
#define WGMMA_32_TEXT(type) WGMMA_TEXT(type, "%21", "32", WGMMA_NAMES_32, "{%16,%17,%18,%19}, %20")
#define WGMMA_64_TEXT(type) WGMMA_TEXT(type, "%37", "64", WGMMA_NAMES_64, "{%32,%33,%34,%35}, %36")

/* sums[64][8 COLUMNS] = (adds ? sums : 0) + a[64][16] b[16][8 COLUMNS]; each of the four warps
 * has 16 rows, a lane's share of a and of sums is as in product_mma. */
template <typename T, int COLUMNS>
__device__ static inline void wgmma(float (&sums)[COLUMNS][4], unsigned a0, unsigned a1,
                                    unsigned a2, unsigned a3, uint64_t b, bool adds) {
    constexpr bool IS_HALF = std::is_same<T, __half>::value;
    static_assert(COLUMNS == 2 || COLUMNS == 4 || COLUMNS == 8, "");
    if constexpr (IS_HALF && COLUMNS == 2) {
        asm volatile(WGMMA_16_TEXT("f16") : WGMMA_16(sums) : WGMMA_INPUTS(a0, a1, a2, a3, b, adds));
    } else if constexpr (COLUMNS == 2) {
        asm volatile(WGMMA_16_TEXT("bf16")
                     : WGMMA_16(sums)
                     : WGMMA_INPUTS(a0, a1, a2, a3, b, adds));
    } else if constexpr (IS_HALF && COLUMNS == 4) {
        asm volatile(WGMMA_32_TEXT("f16") : WGMMA_32(sums) : WGMMA_INPUTS(a0, a1, a2, a3, b, adds));
    } else if constexpr (COLUMNS == 4) {
        asm volatile(WGMMA_32_TEXT("bf16")
                     : WGMMA_32(sums)
                     : WGMMA_INPUTS(a0, a1, a2, a3, b, adds));
    } else if constexpr (IS_HALF) {
        asm volatile(WGMMA_64_TEXT("f16") : WGMMA_64(sums) : WGMMA_INPUTS(a0, a1, a2, a3, b, adds));
    } else {
        asm volatile(WGMMA_64_TEXT("bf16")
                     : WGMMA_64(sums)
                     : WGMMA_INPUTS(a0, a1, a2, a3, b, adds));
    }
}

/* The row, of eight, of a lane.  Eight lanes, which have two rows, read shared memory at once and
 * meet all banks: where they read one of two halves of rows of WGMMA_SWIZZLE bytes, the units of
 * one row trade places with those of the other half. */
template <int HALVES> __device__ static inline unsigned wgmma_lane_row(void) {
    const unsigned eighth = threadIdx.x % 32 / 4;
    return HALVES == 2 ? eighth % 2 * 4 + eighth / 2 : eighth;
}

/* sums = the products of the 128 columns that a chunk of each lane has, from b on; in GROUPS
 * groups: with two, one half is multiplied while the other is unpacked. */
template <typename T, int COLUMNS, int GROUPS>
__device__ static inline void wgmma_products(float (&sums)[COLUMNS][4], unsigned (&pair)[2][16],
                                             uint64_t b) {
    constexpr unsigned SIZE = 8 / GROUPS;
#pragma unroll
    for (unsigned k = 0; k < 8; k++) {
        if (k % SIZE == 0) {
            if (GROUPS != 1) {
                wgmma_hold(pair[0], 2 * k);
                wgmma_hold(pair[1], 2 * k);
            }
            wgmma_fence();
        }
        wgmma<T, COLUMNS>(sums, pair[0][2 * k], pair[1][2 * k], pair[0][2 * k + 1],
                          pair[1][2 * k + 1], wgmma_behind(b, k * (COLUMNS * 16)), k != 0);
        if (k % SIZE == SIZE - 1) {
            wgmma_commit();
        }
    }
}

#endif
#endif
