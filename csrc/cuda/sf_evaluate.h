#pragma once
#include <cstdint>

#include "../pairs.h"

namespace bfmpipe::cuda {

// What the kernels around the products of one head read and write: contiguous arrays, last axis
// fastest, for pairs [first, first + rows), rows > 0. Kept is Real, or float16.
template <typename Real>
struct SfJoin {
  Pairs pairs;
  int64_t hidden, first, rows;
  const Real* state;   // (states, hidden), centred
  const Real* latent;  // (latents, hidden), centred
  const Real* scale;   // (hidden)
  const Real* shift;   // (hidden)
  void* x;             // (rows, hidden) of Kept: the input of the first product
};

template <typename Real>
struct SfLayer {
  Pairs pairs;
  int64_t width, first, rows;
  bool by_state;        // whether each state has an addend of its own
  void* y;              // (rows, width) of Kept: a product, activated in place if readout is null
  const Real* addend;   // (states or 1, width)
  const Real* readout;  // (latents, width), or null
  Real* q;              // (rows), of the last layer
};

// each queues one kernel on a cudaStream_t; returns what went wrong, or null
const char* sf_join(const SfJoin<float>& args, bool half, void* stream);
const char* sf_join(const SfJoin<double>& args, bool half, void* stream);
const char* sf_layer(const SfLayer<float>& args, bool half, void* stream);
const char* sf_layer(const SfLayer<double>& args, bool half, void* stream);

}  // namespace bfmpipe::cuda
