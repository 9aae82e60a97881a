// The three passes of cpu/leave_one_out.cpp. Sums run in double, in an order that the shapes fix:
// no atomics, so two runs give the same bits.
#include <cuda_runtime.h>

#include <cstdint>

#include "../leave_one_out.h"

namespace bfmpipe::cuda {
namespace {

constexpr int block = 256;  // threads of the first two passes
constexpr int warp = 32;    // side of the square block of the third

// one thread a column: neighbours read neighbouring rewards at every step
template <typename Real>
__global__ void returns(LeaveOneOut<Real> args, int64_t columns) {
  const int64_t c = blockIdx.x * static_cast<int64_t>(block) + threadIdx.x;
  if (c >= columns) return;
  double value = args.bootstrap[c];
#pragma unroll 8
  for (int64_t t = args.nstep - 1; t >= 0; --t) {
    const int64_t at = t * columns + c;
    const bool terminated = args.terminated && args.terminated[at];
    value = args.reward[at] + args.discount * (terminated ? 0.0 : value);
  }
  args.returns[c] = static_cast<Real>(value);
}

// one block a group of k
template <typename Real>
__global__ void advantages(LeaveOneOut<Real> args) {
  const int64_t k = args.k, group = blockIdx.x;
  const Real* returns = args.returns + group * k;

  __shared__ double sum[block];
  double partial = 0;
  for (int64_t i = threadIdx.x; i < k; i += block) partial += returns[i];
  sum[threadIdx.x] = partial;
  __syncthreads();
  for (int half = block / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) sum[threadIdx.x] += sum[threadIdx.x + half];
    __syncthreads();
  }

  const double scale = 1.0 / static_cast<double>(k - 1);
  for (int64_t i = threadIdx.x; i < k; i += block)
    args.advantages[group * k + i] = static_cast<Real>(returns[i] - (sum[0] - returns[i]) * scale);
}

// one block a task and 32 dimensions: x walks the dimensions, y shares out the rows
template <typename Real>
__global__ void score_gradient(LeaveOneOut<Real> args) {
  const int64_t rows = args.states * args.k, d = args.d, task = blockIdx.x;
  const int64_t j = blockIdx.y * static_cast<int64_t>(warp) + threadIdx.x;

  __shared__ double sum[warp][warp];
  double partial = 0;
  if (j < d) {
    const double mu = args.mu[task * d + j];
    for (int64_t row = task * rows + threadIdx.y; row < (task + 1) * rows; row += warp)
      partial += args.advantages[row] * (args.z[row * d + j] - mu);
  }
  sum[threadIdx.y][threadIdx.x] = partial;
  __syncthreads();

  if (threadIdx.y == 0 && j < d) {
    double total = 0;
    for (int y = 0; y < warp; ++y) total += sum[y][threadIdx.x];
    const double scale =
        rows ? 1.0 / (args.sigma * args.sigma * static_cast<double>(rows)) : 0.0;
    args.score_gradient[task * d + j] = static_cast<Real>(total * scale);
  }
}

unsigned blocks(int64_t count, int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

template <typename Real>
const char* run(const LeaveOneOut<Real>& args, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  const int64_t groups = args.tasks * args.states, columns = groups * args.k;
  // a grid of no blocks is an error to CUDA: skip the passes that have nothing to write
  if (columns > 0) {
    returns<<<blocks(columns, block), block, 0, queue>>>(args, columns);
    advantages<<<static_cast<unsigned>(groups), block, 0, queue>>>(args);
  }
  if (args.tasks > 0 && args.d > 0) {
    const dim3 grid(static_cast<unsigned>(args.tasks), blocks(args.d, warp));
    score_gradient<<<grid, dim3(warp, warp), 0, queue>>>(args);
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* leave_one_out(const LeaveOneOut<float>& args, void* stream) {
  return run(args, stream);
}
const char* leave_one_out(const LeaveOneOut<double>& args, void* stream) {
  return run(args, stream);
}

}  // namespace bfmpipe::cuda
