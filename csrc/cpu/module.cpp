// bfmpipe.kernels._cpu: the kernels of the best instruction set that this processor has.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "../bindings.h"
#include "../leave_one_out.h"

namespace bfmpipe {
namespace {

struct Kernels {
  const char* instruction_set;
  void (*leave_one_out_float32)(const LeaveOneOut<float>&);
  void (*leave_one_out_float64)(const LeaveOneOut<double>&);
};

#define BFMPIPE_KERNELS(name) \
  Kernels { #name, &name::leave_one_out, &name::leave_one_out }

// what was compiled and this processor runs, the fastest last
std::vector<Kernels> find_kernels() {
  std::vector<Kernels> found{BFMPIPE_KERNELS(generic)};
#ifdef BFMPIPE_HAVE_avx2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back(BFMPIPE_KERNELS(avx2));
#endif
#ifdef BFMPIPE_HAVE_avx512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("fma"))
    found.push_back(BFMPIPE_KERNELS(avx512));
#endif
  return found;
}

const std::vector<Kernels> supported = find_kernels();
Kernels current = supported.back();

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels& kernels : supported) names.push_back(kernels.instruction_set);
  return names;
}

void use_instruction_set(const std::string& name) {
  for (const Kernels& kernels : supported)
    if (kernels.instruction_set == name) {
      current = kernels;
      return;
    }
  throw std::invalid_argument("no instruction set '" + name + "' on this processor");
}

}  // namespace
}  // namespace bfmpipe

PYBIND11_MODULE(_cpu, module) {
  using namespace bfmpipe;
  module.def("source_digest", [] { return BFMPIPE_SOURCE_DIGEST; });
  module.def("instruction_set", [] { return current.instruction_set; });
  module.def("instruction_sets", &instruction_sets);
  module.def("use_instruction_set", &use_instruction_set);
  module.def("leave_one_out_float32",
             bind_leave_one_out<float>([](const LeaveOneOut<float>& args, void*) {
               current.leave_one_out_float32(args);
             }));
  module.def("leave_one_out_float64",
             bind_leave_one_out<double>([](const LeaveOneOut<double>& args, void*) {
               current.leave_one_out_float64(args);
             }));
}
