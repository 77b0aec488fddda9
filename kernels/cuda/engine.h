/* Internal to kernels/cuda: the engine as the backend offers it. */
#ifndef INGOT_CUDA_ENGINE_H
#define INGOT_CUDA_ENGINE_H

#include "kernels/cuda/cuda.h"

extern "C" {
#include "kernels/engine.h"
}

const ingot_engine_ops *ingot_cuda_engine(void);

#endif
