// What stands around the matrix products of sf_evaluate, which are the library's: joining the
// halves of the first layer, the activations between layers, the last dot product. Pairs
// [first, first + rows) pass the layers together. A warp sums a row in an order that the width
// fixes: no atomics, so two runs give the same bits.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

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
         tanh((state[j] + latent[j]) * factor * args.scale[j] + args.shift[j]));
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

unsigned blocks(int64_t count, int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

const char* queued() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename Kept, typename Real>
const char* run_join(const SfJoin<Real>& args, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  join<<<blocks(args.rows, block / warp), block, 0, queue>>>(args, static_cast<Kept*>(args.x));
  return queued();
}

template <typename Kept, typename Real>
const char* run_layer(const SfLayer<Real>& args, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  Kept* y = static_cast<Kept*>(args.y);
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
