// Stands in for the CUDA runtime, so that csrc/cuda runs where there is no GPU: the threads of a
// block are fibers, which take turns between their synchronisations. A round of turns goes in the
// order that CUDA_ON_CPU_ORDER names (forward, backward, or shuffled): threads that race give
// results that depend on it. Blocks run one after the other.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __shared__ static

using std::sqrt;
using std::tanh;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 blockIdx, threadIdx;

namespace cuda_on_cpu {

constexpr size_t stack_size = 64 * 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[stack_size]};
  dim3 index;
  bool done;
  alignas(8) char shuffled[8];  // what it offers the others of its warp
};

inline std::vector<Fiber> fibers;
inline size_t running;
inline ucontext_t scheduler;
inline std::function<void()> kernel;

inline void yield() { swapcontext(&fibers[running].context, &scheduler); }

inline void enter() {
  kernel();
  fibers[running].done = true;
}

inline void run_block(size_t threads, dim3 shape, const std::string& order) {
  if (fibers.size() < threads) fibers.resize(threads);
  for (size_t i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.done = false;
    fiber.index = dim3(i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_size;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  std::vector<size_t> turns(threads);
  std::iota(turns.begin(), turns.end(), 0);
  if (order == "backward") std::reverse(turns.begin(), turns.end());
  std::mt19937 random(7);
  for (bool any = true; any;) {
    any = false;
    if (order == "shuffled") std::shuffle(turns.begin(), turns.end(), random);
    for (size_t i : turns) {
      if (fibers[i].done) continue;
      any = true;
      running = i;
      threadIdx = fibers[i].index;
      swapcontext(&scheduler, &fibers[i].context);
    }
  }
}

inline void launch(std::function<void()> body, dim3 grid, dim3 shape, int, cudaStream_t) {
  // as on a GPU
  if (grid.x == 0 || grid.y == 0 || grid.y > 65535 || shape.x * shape.y * shape.z > 1024)
    std::abort();
  kernel = std::move(body);
  const char* order = std::getenv("CUDA_ON_CPU_ORDER");
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = dim3(x, y);
      run_block(shape.x * shape.y * shape.z, shape, order ? order : "forward");
    }
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::yield(); }

template <typename T>
T __shfl_xor_sync(unsigned, T x, int distance) {
  using namespace cuda_on_cpu;
  std::memcpy(fibers[running].shuffled, &x, sizeof x);
  yield();  // until the others have offered theirs
  const Fiber& other = fibers[running ^ distance];
  if (other.done) std::abort();  // undefined on a GPU
  std::memcpy(&x, other.shuffled, sizeof x);
  yield();  // until the others have taken theirs
  return x;
}
