#pragma once
#include <cstdint>

// always inlined: the linker would keep one copy for all instruction sets
#ifdef __CUDACC__
#define BFMPIPE_INLINE __host__ __device__ __forceinline__
#else
#define BFMPIPE_INLINE inline __attribute__((always_inline))
#endif

namespace bfmpipe {

// The pairs of one call: every state b with every latent k of its group. Pair p counts latents
// fastest: p = (group * B + b) * K + k.
struct Pairs {
  int64_t groups, B, K;

  BFMPIPE_INLINE int64_t count() const { return groups * B * K; }
  BFMPIPE_INLINE int64_t states() const { return groups * B; }
  BFMPIPE_INLINE int64_t latents() const { return groups * K; }
  // the row of what depends on the state, and of what depends on the latent
  BFMPIPE_INLINE int64_t state(int64_t pair) const { return pair / K; }
  BFMPIPE_INLINE int64_t latent(int64_t pair) const {
    return pair / (B * K) * K + pair % K;
  }
};

}  // namespace bfmpipe
