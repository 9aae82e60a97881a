// bfmpipe.kernels._cuda: imports on any machine; unavailable() says whether a GPU can be used.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "../bindings.h"
#include "../leave_one_out.h"
#include "device.h"

namespace bfmpipe {
namespace {

void check(const char* error) {
  if (error) throw std::runtime_error(std::string("CUDA: ") + error);
}

}  // namespace
}  // namespace bfmpipe

PYBIND11_MODULE(_cuda, module) {
  using namespace bfmpipe;
  module.def("unavailable", &cuda::unavailable);
  module.def("leave_one_out_float32",
             bind_leave_one_out<float>([](const LeaveOneOut<float>& args, void* stream) {
               check(cuda::leave_one_out(args, stream));
             }));
  module.def("leave_one_out_float64",
             bind_leave_one_out<double>([](const LeaveOneOut<double>& args, void* stream) {
               check(cuda::leave_one_out(args, stream));
             }));
}
