// What stands around the matrix products of sf_evaluate, which are the library's: joining the
// halves of the first layer, the activations between layers, the last dot product. Pairs
// [first, first + rows) pass the layers together. A warp sums a row in an order that the width
// fixes: no atomics, so two runs give the same bits.
//
// Between the products memory is the limit. Where the width is one of many in use, a warp keeps
// what belongs to a latent in registers and goes through the pairs of several states with it.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "sf_evaluate.h"

namespace bfmpipe::cuda {
namespace {

constexpr int warp = 32, block = 256;
constexpr double epsilon = 1e-5;  // of torch's layer_norm

__device__ float as_real(float x) { return x; }
__device__ double as_real(double x) { return x; }
__device__ float as_real(__half x) { return __half2float(x); }

__device__ void keep(float* to, float x) { *to = x; }
__device__ void keep(double* to, double x) { *to = x; }
__device__ void keep(__half* to, float x) { *to = __float2half_rn(x); }

// of what is kept in float16 no more digits than that has
template <typename Kept, typename Real>
__device__ Real squash(Real x) {
  return tanh(x);
}
#ifdef __CUDA_ARCH__
template <>
__device__ float squash<__half, float>(float x) {
  asm("tanh.approx.f32 %0, %0;" : "+f"(x));
  return x;
}
#endif

// four columns, which go through memory at once
struct alignas(16) Float4 {
  float x[4];
};
struct alignas(8) Half4 {
  __half x[4];
};
template <typename Kept>
struct FourOf;
template <>
struct FourOf<float> {
  using type = Float4;
};
template <>
struct FourOf<__half> {
  using type = Half4;
};

// NaN stays NaN
template <typename Real>
__device__ Real positive(Real x) {
  return x < 0 ? 0 : x;
}

template <typename Real>
__device__ Real sum_over_warp(Real x) {
  for (int distance = warp / 2; distance > 0; distance /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

// one warp a row
__device__ int64_t row_of_warp() {
  return blockIdx.x * static_cast<int64_t>(block / warp) + threadIdx.x / warp;
}

// x = tanh(y / sqrt(mean y^2 + epsilon) * scale + shift), y = state + latent, both centred
template <typename Real, typename Kept>
__global__ void join(SfJoin<Real> args, Kept* out) {
  const int64_t row = row_of_warp(), hidden = args.hidden;
  if (row >= args.rows) return;
  const Real* state = args.state + args.pairs.state(args.first + row) * hidden;
  const Real* latent = args.latent + args.pairs.latent(args.first + row) * hidden;
  const int lane = threadIdx.x % warp;

  Real squares = 0;
  for (int64_t j = lane; j < hidden; j += warp) {
    const Real y = state[j] + latent[j];
    squares += y * y;
  }
  const Real mean = sum_over_warp(squares) / static_cast<Real>(hidden);
  const Real factor = 1 / sqrt(mean + static_cast<Real>(epsilon));

  for (int64_t j = lane; j < hidden; j += warp)
    keep(out + row * hidden + j,
         squash<Kept>((state[j] + latent[j]) * factor * args.scale[j] + args.shift[j]));
}

// y <- max(y + addend, 0), in place
template <typename Real, typename Kept>
__global__ void activate(SfLayer<Real> args, Kept* y) {
  const int64_t at = blockIdx.x * static_cast<int64_t>(block) + threadIdx.x;
  if (at >= args.rows * args.width) return;
  const int64_t row = at / args.width, j = at % args.width;
  const int64_t of = args.by_state ? args.pairs.state(args.first + row) : 0;
  keep(y + at, positive(as_real(y[at]) + args.addend[of * args.width + j]));
}

// q = max(y + addend, 0)^T readout
template <typename Real, typename Kept>
__global__ void read_out(SfLayer<Real> args, const Kept* y) {
  const int64_t row = row_of_warp(), width = args.width;
  if (row >= args.rows) return;
  const int64_t of = args.by_state ? args.pairs.state(args.first + row) : 0;
  const Real* addend = args.addend + of * width;
  const Real* readout = args.readout + args.pairs.latent(args.first + row) * width;
  const int lane = threadIdx.x % warp;
  Real dot = 0;
  for (int64_t j = lane; j < width; j += warp)
    dot += positive(as_real(y[row * width + j]) + addend[j]) * readout[j];
  dot = sum_over_warp(dot);
  if (lane == 0) args.q[row] = dot;
}

// ---- The same for rows of fours * 4 * 32 columns. Warp (i, k) has the pairs of latent k among
// K * stack neighbours, those of `stack` states.

constexpr int stack = 4;

__device__ int64_t first_of_stack(const Pairs& pairs, int64_t first, int64_t warp_index) {
  const int64_t run = pairs.K * stack;
  return (first / run + warp_index / pairs.K) * run + warp_index % pairs.K;
}

template <int fours>
__device__ void load(Float4 (&to)[fours], const float* row, int lane) {
#pragma unroll
  for (int i = 0; i < fours; ++i) to[i] = reinterpret_cast<const Float4*>(row)[i * warp + lane];
}

template <typename Kept, int fours>
__global__ void join_stacks(SfJoin<float> args, Kept* out) {
  using Four = typename FourOf<Kept>::type;
  const int64_t first = first_of_stack(args.pairs, args.first, row_of_warp());
  const int64_t hidden = args.hidden;
  const int lane = threadIdx.x % warp;
  const Float4* scale = reinterpret_cast<const Float4*>(args.scale);
  const Float4* shift = reinterpret_cast<const Float4*>(args.shift);
  Float4 latent[fours];
  int64_t loaded = -1;
  for (int i = 0; i < stack; ++i) {
    const int64_t pair = first + i * args.pairs.K, row = pair - args.first;
    if (row < 0) continue;
    if (row >= args.rows) return;
    if (args.pairs.latent(pair) != loaded) {
      loaded = args.pairs.latent(pair);
      load(latent, args.latent + loaded * hidden, lane);
    }
    Float4 y[fours];
    load(y, args.state + args.pairs.state(pair) * hidden, lane);
    float squares = 0;
#pragma unroll
    for (int j = 0; j < fours; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        y[j].x[c] += latent[j].x[c];
        squares += y[j].x[c] * y[j].x[c];
      }
    const float mean = sum_over_warp(squares) / static_cast<float>(hidden);
    const float factor = 1 / sqrt(mean + static_cast<float>(epsilon));
#pragma unroll
    for (int j = 0; j < fours; ++j) {
      const Float4 by = scale[j * warp + lane], plus = shift[j * warp + lane];
      Four x;
#pragma unroll
      for (int c = 0; c < 4; ++c)
        keep(&x.x[c], squash<Kept>(y[j].x[c] * factor * by.x[c] + plus.x[c]));
      reinterpret_cast<Four*>(out + row * hidden)[j * warp + lane] = x;
    }
  }
}

template <typename Kept, int fours>
__global__ void read_out_stacks(SfLayer<float> args, const Kept* y) {
  using Four = typename FourOf<Kept>::type;
  const int64_t first = first_of_stack(args.pairs, args.first, row_of_warp());
  const int64_t width = args.width;
  const int lane = threadIdx.x % warp;
  Float4 readout[fours], addend[fours];
  if (!args.by_state) load(addend, args.addend, lane);
  int64_t loaded = -1;
  for (int i = 0; i < stack; ++i) {
    const int64_t pair = first + i * args.pairs.K, row = pair - args.first;
    if (row < 0) continue;
    if (row >= args.rows) return;
    if (args.pairs.latent(pair) != loaded) {
      loaded = args.pairs.latent(pair);
      load(readout, args.readout + loaded * width, lane);
    }
    if (args.by_state) load(addend, args.addend + args.pairs.state(pair) * width, lane);
    float dot = 0;
#pragma unroll
    for (int j = 0; j < fours; ++j) {
      const Four x = reinterpret_cast<const Four*>(y + row * width)[j * warp + lane];
#pragma unroll
      for (int c = 0; c < 4; ++c)
        dot += positive(as_real(x.x[c]) + addend[j].x[c]) * readout[j].x[c];
    }
    dot = sum_over_warp(dot);
    if (lane == 0) args.q[row] = dot;
  }
}

// How many warps the pairs [first, first + rows) are shared among.
int64_t stacks(const Pairs& pairs, int64_t first, int64_t rows) {
  const int64_t run = pairs.K * stack;
  return ((first + rows - 1) / run - first / run + 1) * pairs.K;
}

unsigned blocks(int64_t count, int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

const char* queued() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// The kernel for rows of so many columns, or null. Few states leave too few warps to share.
template <typename Kernel>
Kernel of_width(int64_t width, const Pairs& pairs, Kernel of_1024, Kernel of_512, Kernel of_256,
                Kernel of_128) {
  if (pairs.B < stack) return nullptr;
  switch (width) {
    case 1024: return of_1024;
    case 512: return of_512;
    case 256: return of_256;
    case 128: return of_128;
    default: return nullptr;
  }
}

template <typename Kept, typename Real>
const char* run_join(const SfJoin<Real>& args, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  if constexpr (std::is_same_v<Real, float>) {
    const auto kernel = of_width(args.hidden, args.pairs, &join_stacks<Kept, 8>,
                                 &join_stacks<Kept, 4>, &join_stacks<Kept, 2>,
                                 &join_stacks<Kept, 1>);
    if (kernel) {
      const unsigned grid = blocks(stacks(args.pairs, args.first, args.rows), block / warp);
      kernel<<<grid, block, 0, queue>>>(args, static_cast<Kept*>(args.x));
      return queued();
    }
  }
  join<<<blocks(args.rows, block / warp), block, 0, queue>>>(args, static_cast<Kept*>(args.x));
  return queued();
}

template <typename Kept, typename Real>
const char* run_layer(const SfLayer<Real>& args, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  Kept* y = static_cast<Kept*>(args.y);
  if constexpr (std::is_same_v<Real, float>) {
    const auto kernel = of_width(args.width, args.pairs, &read_out_stacks<Kept, 8>,
                                 &read_out_stacks<Kept, 4>, &read_out_stacks<Kept, 2>,
                                 &read_out_stacks<Kept, 1>);
    if (args.readout && kernel) {
      const unsigned grid = blocks(stacks(args.pairs, args.first, args.rows), block / warp);
      kernel<<<grid, block, 0, queue>>>(args, y);
      return queued();
    }
  }
  if (args.readout)
    read_out<<<blocks(args.rows, block / warp), block, 0, queue>>>(args, y);
  else
    activate<<<blocks(args.rows * args.width, block), block, 0, queue>>>(args, y);
  return queued();
}

}  // namespace

const char* sf_join(const SfJoin<float>& args, bool half, void* stream) {
  return half ? run_join<__half>(args, stream) : run_join<float>(args, stream);
}
const char* sf_join(const SfJoin<double>& args, bool, void* stream) {
  return run_join<double>(args, stream);
}
const char* sf_layer(const SfLayer<float>& args, bool half, void* stream) {
  return half ? run_layer<__half>(args, stream) : run_layer<float>(args, stream);
}
const char* sf_layer(const SfLayer<double>& args, bool, void* stream) {
  return run_layer<double>(args, stream);
}

}  // namespace bfmpipe::cuda
