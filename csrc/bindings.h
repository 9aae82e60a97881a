#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

#include "leave_one_out.h"

// _cpu and _cuda bind each operation with the same signature: addresses (tensor.data_ptr()), sizes
// and a stream. Python has checked what lies behind the addresses; nothing is checked here.
namespace bfmpipe {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// run(args, stream) as a function for Python, without the GIL
template <typename Real, typename Run>
auto bind_leave_one_out(Run run) {
  return [run](uintptr_t reward, uintptr_t terminated, uintptr_t bootstrap, uintptr_t z,
               uintptr_t mu, uintptr_t returns, uintptr_t advantages, uintptr_t score_gradient,
               int64_t nstep, int64_t tasks, int64_t states, int64_t k, int64_t d, double sigma,
               double discount, uintptr_t stream) {
    LeaveOneOut<Real> args;
    args.reward = pointer<const Real>(reward);
    args.terminated = pointer<const uint8_t>(terminated);
    args.bootstrap = pointer<const Real>(bootstrap);
    args.z = pointer<const Real>(z);
    args.mu = pointer<const Real>(mu);
    args.returns = pointer<Real>(returns);
    args.advantages = pointer<Real>(advantages);
    args.score_gradient = pointer<Real>(score_gradient);
    args.nstep = nstep;
    args.tasks = tasks;
    args.states = states;
    args.k = k;
    args.d = d;
    args.sigma = sigma;
    args.discount = discount;
    pybind11::gil_scoped_release release;
    run(args, pointer<void>(stream));
  };
}

}  // namespace bfmpipe
