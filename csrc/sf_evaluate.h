#pragma once
#include <cstdint>

#include "pairs.h"

namespace bfmpipe {

constexpr int64_t sf_width = 32;  // widths are multiples of this
constexpr int64_t sf_max_layers = 8, sf_max_heads = 8;

// a layer y = max(x weight + addend, 0) of every head
template <typename Real>
struct Layer {
  const Real* weight;  // (heads, in, out)
  const Real* addend;  // (heads, states or 1, out)
  Real* grad_addend;   // like addend
  int64_t in, out;
  bool by_state;  // whether each state has an addend of its own
};

// What one call of the CPU kernel reads and writes: contiguous arrays, last axis fastest. Every
// width but `hidden_used` is a multiple of sf_width, padded with zeros.
template <typename Real>
struct SfEvaluate {
  Pairs pairs;
  int64_t heads, hidden, hidden_used, layers;
  const Real* state;   // (heads, states, hidden), centred
  const Real* latent;  // (heads, latents, hidden), centred
  const Real* scale;   // (heads, hidden)
  const Real* shift;   // (heads, hidden)
  Layer<Real> layer[sf_max_layers];
  const Real* readout;  // (heads, latents, out of the last layer)
  const Real* offset;   // (heads, pairs) or (heads, latents)
  bool offset_by_pair;
  double pessimism;

  Real* q;  // (pairs)

  // of the gradient only
  const Real* grad_q;       // (pairs)
  Real* grad_state;         // (heads, states, hidden)
  Real* grad_latent;        // (splits, heads, latents, hidden), to be summed over splits
  Real* grad_readout;       // (splits, heads, latents, out)
  Real* grad_head;          // (heads, pairs): of each head's value
  int64_t splits;           // blocks of states that a group is cut into
};

// one definition an instruction set, of cpu/sf_evaluate*.cpp; false where memory ran out
// half: the operands of the products in 16 bits, where that is faster
#define BFMPIPE_DECLARE(instruction_set)                                     \
  namespace instruction_set {                                                \
  bool sf_evaluate(const SfEvaluate<float>& args, bool half, int threads);   \
  bool sf_evaluate(const SfEvaluate<double>& args, bool half, int threads);  \
  bool sf_evaluate_grad(const SfEvaluate<float>& args, int threads);         \
  bool sf_evaluate_grad(const SfEvaluate<double>& args, int threads);        \
  }
BFMPIPE_DECLARE(generic)
BFMPIPE_DECLARE(avx2)
BFMPIPE_DECLARE(avx512)
BFMPIPE_DECLARE(vnni)
BFMPIPE_DECLARE(zen5)
BFMPIPE_DECLARE(amx)
#undef BFMPIPE_DECLARE

}  // namespace bfmpipe
