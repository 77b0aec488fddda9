/* The engine's choice of tokens, with the meaning of ingot_sampler_next (calib/decode.h). */
#include "kernels/cuda/draw_rows.h"
#include "kernels/cuda/engine_parts.h"

#include "common/random.h"

static_assert(ENGINE_BLOCKS == DRAW_BLOCKS_MOST, "the engine has room for what a row may take");

/* Tokens go to the host through a ring, and on to the next pass. */
struct engine_sink {
    engine_choice *choice;
    uint32_t *ring;
    unsigned sequences, capacity;
    bool is_greedy, advances;

    __device__ void begin() const {
        engine_chain();
    }
    __device__ double temperature() const {
        return choice->temperature;
    }
    __device__ double unit(unsigned row) const {
        return ingot_random_unit(&choice->random[row]);
    }
    __device__ void best(unsigned row, uint32_t id) const {
        if (is_greedy) {
            drawn(row, id, __ldcg(&choice->not_finite[row]) == 0);
        }
    }
    __device__ void drawn(unsigned row, uint32_t id, bool is_finite) const {
        const unsigned at = choice->made[row]++ % ENGINE_RING;
        choice->id[row] = id;
        if (advances && choice->length[row] < capacity) {
            choice->length[row]++;
        }
        ring[at * sequences + row] = is_finite ? id : UINT32_MAX;
        __threadfence_system();
    }
};

ingot_status engine_sample(const ingot_engine *e, bool is_greedy, bool advances) {
    draw_job<engine_sink> job = {};
    engine_choice *choice = e->choice;
    const dim3 grid = draw_grid(&job.piece, e->model.vocab, e->sequences);
    job.logits = e->logits;
    job.best_part = e->best_part;
    job.sum_part = e->sum_part;
    job.done = choice->done;
    job.best = choice->best;
    job.peak = choice->peak;
    job.not_finite = choice->not_finite;
    job.vocab = (unsigned)e->model.vocab;
    job.sink.choice = choice;
    job.sink.ring = e->ring;
    job.sink.sequences = (unsigned)e->sequences;
    job.sink.capacity = (unsigned)e->capacity;
    job.sink.is_greedy = is_greedy;
    job.sink.advances = advances;
    const engine_shape shape = {grid, DRAW_THREADS};
    INGOT_TRY(engine_launch(e, draw_best_kernel<engine_sink>, shape, job, true));
    return is_greedy ? INGOT_OK : engine_launch(e, draw_kernel<engine_sink>, shape, job, true);
}
