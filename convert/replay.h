/* Hidden states after blocks that an interrupted conversion finished: the same forward passes over
 * what it wrote, and over the checkpoint for the full-precision stream, so the same bits. */
#ifndef INGOT_REPLAY_H
#define INGOT_REPLAY_H

#include "convert/loop_internal.h"

/* Advances the states of l->batch over blocks 0 .. l->job->first_block - 1; resets the memory of
 * blocks. */
ingot_status ingot_replay(ingot_loop *l) INGOT_MUST_CHECK;

#endif
