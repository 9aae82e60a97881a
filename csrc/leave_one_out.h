#pragma once
#include <cstdint>

namespace bfmpipe {

// what one call reads and writes: contiguous arrays, last axis fastest
template <typename Real>
struct LeaveOneOut {
  const Real* reward;         // (nstep, tasks, states, k)
  const uint8_t* terminated;  // (nstep, tasks, states, k) of 0 and 1; null: nothing terminates
  const Real* bootstrap;      // (tasks, states, k)
  const Real* z;              // (tasks, states, k, d)
  const Real* mu;             // (tasks, d)
  Real* returns;              // (tasks, states, k)
  Real* advantages;           // (tasks, states, k)
  Real* score_gradient;       // (tasks, d)
  int64_t nstep, tasks, states, k, d;
  double sigma, discount;
};

// one definition an instruction set, of cpu/leave_one_out.cpp
#define BFMPIPE_DECLARE(instruction_set)               \
  namespace instruction_set {                          \
  void leave_one_out(const LeaveOneOut<float>& args);  \
  void leave_one_out(const LeaveOneOut<double>& args); \
  }
BFMPIPE_DECLARE(generic)
BFMPIPE_DECLARE(avx2)
BFMPIPE_DECLARE(avx512)
BFMPIPE_DECLARE(vnni)
BFMPIPE_DECLARE(zen5)
BFMPIPE_DECLARE(amx)
#undef BFMPIPE_DECLARE

// queues the kernels on a cudaStream_t; returns what went wrong, or null
namespace cuda {
const char* leave_one_out(const LeaveOneOut<float>& args, void* stream);
const char* leave_one_out(const LeaveOneOut<double>& args, void* stream);
}  // namespace cuda

}  // namespace bfmpipe
