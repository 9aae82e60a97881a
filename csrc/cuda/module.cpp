// bfmpipe.kernels._cuda: imports on any machine; unavailable() says whether a GPU can be used.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "../bindings.h"
#include "../leave_one_out.h"
#include "device.h"
#include "sf_evaluate.h"

namespace bfmpipe {
namespace {

void check(const char* error) {
  if (error) throw std::runtime_error(std::string("CUDA: ") + error);
}

template <typename Real>
void bind_sf_evaluate(pybind11::module_& module, const std::string& suffix) {
  using Address = uintptr_t;
  module.def(
      ("sf_join_" + suffix).c_str(),
      [](Address state, Address latent, Address scale, Address shift, Address x, int64_t groups,
         int64_t B, int64_t K, int64_t hidden, int64_t first, int64_t rows, bool half,
         Address stream) {
        const cuda::SfJoin<Real> args{{groups, B, K},
                                      hidden,
                                      first,
                                      rows,
                                      pointer<const Real>(state),
                                      pointer<const Real>(latent),
                                      pointer<const Real>(scale),
                                      pointer<const Real>(shift),
                                      pointer<void>(x)};
        pybind11::gil_scoped_release release;
        check(cuda::sf_join(args, half, pointer<void>(stream)));
      });
  module.def(
      ("sf_layer_" + suffix).c_str(),
      [](Address y, Address addend, bool by_state, Address readout, Address q, int64_t groups,
         int64_t B, int64_t K, int64_t width, int64_t first, int64_t rows, bool half,
         Address stream) {
        const cuda::SfLayer<Real> args{{groups, B, K},
                                       width,
                                       first,
                                       rows,
                                       by_state,
                                       pointer<void>(y),
                                       pointer<const Real>(addend),
                                       pointer<const Real>(readout),
                                       pointer<Real>(q)};
        pybind11::gil_scoped_release release;
        check(cuda::sf_layer(args, half, pointer<void>(stream)));
      });
}

}  // namespace
}  // namespace bfmpipe

PYBIND11_MODULE(_cuda, module) {
  using namespace bfmpipe;
  module.def("unavailable", &cuda::unavailable);
  bind_sf_evaluate<float>(module, "float32");
  bind_sf_evaluate<double>(module, "float64");
  module.def("leave_one_out_float32",
             bind_leave_one_out<float>([](const LeaveOneOut<float>& args, void* stream) {
               check(cuda::leave_one_out(args, stream));
             }));
  module.def("leave_one_out_float64",
             bind_leave_one_out<double>([](const LeaveOneOut<double>& args, void* stream) {
               check(cuda::leave_one_out(args, stream));
             }));
}
