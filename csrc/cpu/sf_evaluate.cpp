// Compiled once an instruction set, into the namespace of that name; see leave_one_out.cpp.
//
// Pairs go in tiles through all layers, so that nothing of a pair but its value leaves the cache:
// join the state's and the latent's half of the first layer, normalise, tanh; then each layer as a
// product with weights packed into panels; the last one ends in the dot product with the readout.
// A row's sums do not depend on its place in a tile: a pair has the same value in any batch.
#include "../sf_evaluate.h"
#include "parallel.h"
#include "sf_values.h"
#if defined(__AMX_BF16__)
#include "products_amx.h"
#elif defined(__AVX512VNNI__)
#include "products_vnni.h"
#ifdef BFMPIPE_UNITS_THAT_ADD
#include "products_winograd.h"
#endif
#endif

namespace bfmpipe::BFMPIPE_INSTRUCTION_SET {
namespace {

// What float32 is multiplied as, and the same at half precision.
#if defined(__AMX_BF16__)
using Single = Same<Parts<3, 3>>;
using Half = Same<Parts<1, 2>>;
#elif defined(BFMPIPE_UNITS_THAT_ADD)
using Single = Kinds<Winograd, Full<float>>;
using Half = Same<Words>;
#elif defined(__AVX512VNNI__)
using Single = Same<Full<float>>;
using Half = Same<Words>;
#else
using Single = Same<Full<float>>;
using Half = Single;  // nothing is faster
#endif

// the mean of the heads less pessimism times the distance of the first two
template <typename Real>
Real reduce(const SfEvaluate<Real>& args, const Real (*q)[tile], int64_t row) {
  Real total = 0;
  for (int64_t head = 0; head < args.heads; ++head) total += q[head][row];
  total /= static_cast<Real>(args.heads);
  if (args.heads == 2)
    total -= static_cast<Real>(args.pessimism) * std::fabs(q[0][row] - q[1][row]);
  return total;
}

template <typename Kinds>
bool evaluate(const SfEvaluate<typename Kinds::Real>& args, int threads) {
  using Real = typename Kinds::Real;
  using Kept = typename Kinds::Kept;
  const int64_t count = args.pairs.count(), tiles = blocks(count, tile);
  threads = static_cast<int>(max(1, min(threads, tiles)));
  const int64_t weights_of_head = weights_size<Kinds>(args),
                scratch_size = activations_size<Kinds>(args);
  Buffer<Kept> weights(args.heads * weights_of_head), scratch(threads * scratch_size);
  if (!weights.data || !scratch.data) return false;
  pack_weights<Kinds>(args, false, weights.data);

  int64_t next_tile = 0, next_scratch = 0;
  auto work = [&] {
    const typename Kinds::Thread thread;
    Kept* mine = scratch.data +
                 __atomic_fetch_add(&next_scratch, 1, __ATOMIC_RELAXED) * scratch_size;
    const Activations<Kept> kept = place_activations<Kinds>(args, mine);
    Real q[sf_max_heads][tile], inverse_norm[tile];
    for (;;) {
      const int64_t index = __atomic_fetch_add(&next_tile, 1, __ATOMIC_RELAXED);
      if (index >= tiles) return;
      const Tile t(args.pairs, index * tile, count, Kinds::strip);
      for (int64_t head = 0; head < args.heads; ++head)
        forward<Kinds, false>(args, weights.data + head * weights_of_head, head, t, kept,
                                 inverse_norm, q[head]);
      for (int64_t row = 0; row < t.rows; ++row) args.q[t.first + row] = reduce(args, q, row);
    }
  };
  run_on_threads(threads, work);
  return true;
}

}  // namespace

bool sf_evaluate(const SfEvaluate<float>& args, bool half, int threads) {
  if (half) return evaluate<Half>(args, threads);
  return evaluate<Single>(args, threads);
}
bool sf_evaluate(const SfEvaluate<double>& args, bool, int threads) {
  return evaluate<Same<Full<double>>>(args, threads);
}

}  // namespace bfmpipe::BFMPIPE_INSTRUCTION_SET
