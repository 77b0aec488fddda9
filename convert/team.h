/* Several devices on one conversion.
 *
 * Every device runs the whole loop in a thread of its own, in step with the others (ranks 0 ..
 * size-1): the same blocks, each on its share of the calibration windows.  They meet where what one
 * device has is needed by all: sums of statistics, made in the order of the ranks, so that every
 * rank has the same bits and decides alike; and quantized matrices, whose rows are shared out.
 * Only rank 0 writes (spec/decisions/0015). */
#ifndef INGOT_CONVERT_TEAM_H
#define INGOT_CONVERT_TEAM_H

#include "calib/dataset.h"
#include "calib/model.h"

#define INGOT_MAX_DEVICES 16u

typedef struct ingot_team ingot_team;

ingot_status ingot_team_create(ingot_team **out, unsigned size) INGOT_MUST_CHECK;
void ingot_team_destroy(ingot_team *team); /* NULL is fine */

/* One rank's view of a team.  team NULL: a device on its own, for which everything below does
 * nothing. */
typedef struct ingot_rank {
    ingot_team *team;
    unsigned number, size;
    const ingot_backend *backend;
} ingot_rank;

/* Returns when all ranks are here.  INGOT_ERR_INTERRUPTED, without a text, once a rank has left. */
ingot_status ingot_team_meet(const ingot_rank *rank) INGOT_MUST_CHECK;
/* This rank will not come any more: all who meet, or wait, fail.  Only the first call counts. */
void ingot_team_leave(const ingot_rank *rank);
/* The rank that left first; -1: none. */
int ingot_team_left(const ingot_team *team);

/* values[count] of every rank (device memory; for each the same count) become their sum.  Each rank
 * adds up a piece and gives it to the others; scratch (device) is not reset. */
ingot_status ingot_team_sum(const ingot_rank *rank, float *values, uint64_t count,
                            ingot_arena *scratch) INGOT_MUST_CHECK;
/* The same in host memory. */
ingot_status ingot_team_sum_host(const ingot_rank *rank, double *values,
                                 uint64_t count) INGOT_MUST_CHECK;

/* Rows first .. first + count - 1 of a matrix are this rank's to quantize; false: all of them,
 * since they are too few to be shared. */
bool ingot_team_rows(uint64_t *first, uint64_t *count, const ingot_rank *rank, uint64_t rows);
/* *whole = all rows of a matrix of which each rank has packed its own (device memory, without
 * outliers), in memory from rank 0's arena (host), for every rank; it stays for as long as that
 * arena is not reset. */
ingot_status ingot_team_gather(ingot_weight_view *whole, const ingot_rank *rank, uint64_t rows,
                               uint64_t first_row, const ingot_weight_view *own,
                               ingot_arena *arena) INGOT_MUST_CHECK;

/* The windows of a rank: its share of those before the last `judges`, and these, which every rank
 * has.  ids are a copy, released with ingot_windows_free. */
ingot_status ingot_team_windows(ingot_windows *out, const ingot_rank *rank,
                                const ingot_windows *all, uint64_t judges) INGOT_MUST_CHECK;

#endif
