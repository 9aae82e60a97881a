// bfmpipe.kernels._cpu: the kernels of the best instruction set that this processor has.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#ifdef BFMPIPE_HAVE_zen5
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../bindings.h"
#include "../leave_one_out.h"
#include "../sf_evaluate.h"

namespace bfmpipe {
namespace {

struct Kernels {
  const char* instruction_set;
  void (*leave_one_out_float32)(const LeaveOneOut<float>&);
  void (*leave_one_out_float64)(const LeaveOneOut<double>&);
  bool (*sf_evaluate_float32)(const SfEvaluate<float>&, bool, int);
  bool (*sf_evaluate_float64)(const SfEvaluate<double>&, bool, int);
  bool (*sf_evaluate_grad_float32)(const SfEvaluate<float>&, int);
  bool (*sf_evaluate_grad_float64)(const SfEvaluate<double>&, int);
};

#define BFMPIPE_KERNELS(name)                                                             \
  Kernels {                                                                               \
    #name, &name::leave_one_out, &name::leave_one_out, &name::sf_evaluate,                \
        &name::sf_evaluate, &name::sf_evaluate_grad, &name::sf_evaluate_grad              \
  }

#ifdef BFMPIPE_HAVE_amx
// whether the processor has the matrix unit, and the system lets this process use its registers
bool may_use_amx() {
#ifdef __linux__
  constexpr long request_permission = 0x1023, tile_data = 18;  // of arch_prctl
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         __builtin_cpu_supports("avx512bf16") &&
         syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

#ifdef BFMPIPE_HAVE_zen5
// or a later one that AMD counts to its family
bool is_zen5() {
  unsigned signature, ebx, ecx, edx;
  if (!__builtin_cpu_is("amd") || !__get_cpuid(1, &signature, &ebx, &ecx, &edx)) return false;
  const unsigned family = (signature >> 8 & 0xf) + (signature >> 20 & 0xff);
  return family == 0x1a;
}
#endif

// what was compiled and this processor runs, the fastest last
std::vector<Kernels> find_kernels() {
  __builtin_cpu_init();  // before main they ask on their own authority
  std::vector<Kernels> found{BFMPIPE_KERNELS(generic)};
#ifdef BFMPIPE_HAVE_avx2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back(BFMPIPE_KERNELS(avx2));
#endif
#ifdef BFMPIPE_HAVE_avx512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("fma")) {
    found.push_back(BFMPIPE_KERNELS(avx512));
#ifdef BFMPIPE_HAVE_vnni
    if (__builtin_cpu_supports("avx512vnni")) {
      // each runs on the other's processors
      const bool zen5 = is_zen5();
      found.push_back(zen5 ? BFMPIPE_KERNELS(vnni) : BFMPIPE_KERNELS(zen5));
      found.push_back(zen5 ? BFMPIPE_KERNELS(zen5) : BFMPIPE_KERNELS(vnni));
    }
#endif
#ifdef BFMPIPE_HAVE_amx
    if (may_use_amx()) found.push_back(BFMPIPE_KERNELS(amx));
#endif
  }
#endif
  return found;
}

const std::vector<Kernels> supported = find_kernels();
Kernels current = supported.back();

// the same, whether this processor runs them or not
std::vector<std::string> compiled_instruction_sets() {
  return {
    "generic",
#ifdef BFMPIPE_HAVE_avx2
        "avx2",
#endif
#ifdef BFMPIPE_HAVE_avx512
        "avx512",
#endif
#ifdef BFMPIPE_HAVE_vnni
        "vnni", "zen5",
#endif
#ifdef BFMPIPE_HAVE_amx
        "amx",
#endif
  };
}

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

template <typename Real>
void sf_evaluate(const SfEvaluate<Real>& args, bool gradient, bool half, int threads) {
  bool done;
  if constexpr (sizeof(Real) == sizeof(float))
    done = gradient ? current.sf_evaluate_grad_float32(args, threads)
                    : current.sf_evaluate_float32(args, half, threads);
  else
    done = gradient ? current.sf_evaluate_grad_float64(args, threads)
                    : current.sf_evaluate_float64(args, half, threads);
  if (!done) throw std::bad_alloc();
}

// layers: (weight, addend, in, out, by_state); sizes: (groups, B, K); gradients: none, or of q,
// state, latent, readout, each head's value, and each addend (anything where it is not by state)
template <typename Real>
void bind_sf_evaluate(pybind11::module_& module, const char* name) {
  using Address = uintptr_t;
  using Layers = std::vector<std::tuple<Address, Address, int64_t, int64_t, bool>>;
  module.def(name, [](Address state, Address latent, Address scale, Address shift,
                      const Layers& layers, Address readout, Address offset, bool offset_by_pair,
                      Address q, const std::vector<Address>& gradients,
                      std::tuple<int64_t, int64_t, int64_t> sizes, int64_t heads, int64_t hidden,
                      int64_t hidden_used, double pessimism, bool half, int64_t splits,
                      int threads, Address) {
    SfEvaluate<Real> args{};
    args.pairs = {std::get<0>(sizes), std::get<1>(sizes), std::get<2>(sizes)};
    args.heads = heads;
    args.hidden = hidden;
    args.hidden_used = hidden_used;
    args.layers = static_cast<int64_t>(layers.size());
    args.state = pointer<const Real>(state);
    args.latent = pointer<const Real>(latent);
    args.scale = pointer<const Real>(scale);
    args.shift = pointer<const Real>(shift);
    for (size_t l = 0; l < layers.size(); ++l) {
      const auto& [weight, addend, in, out, by_state] = layers[l];
      const Address grad_addend = gradients.empty() ? 0 : gradients[5 + l];
      args.layer[l] = {pointer<const Real>(weight), pointer<const Real>(addend),
                       pointer<Real>(grad_addend), in, out, by_state};
    }
    args.readout = pointer<const Real>(readout);
    args.offset = pointer<const Real>(offset);
    args.offset_by_pair = offset_by_pair;
    args.pessimism = pessimism;
    args.q = pointer<Real>(q);
    args.splits = splits;
    if (!gradients.empty()) {
      args.grad_q = pointer<const Real>(gradients[0]);
      args.grad_state = pointer<Real>(gradients[1]);
      args.grad_latent = pointer<Real>(gradients[2]);
      args.grad_readout = pointer<Real>(gradients[3]);
      args.grad_head = pointer<Real>(gradients[4]);
    }
    pybind11::gil_scoped_release release;
    sf_evaluate(args, !gradients.empty(), half, threads);
  });
}

}  // namespace
}  // namespace bfmpipe

PYBIND11_MODULE(_cpu, module) {
  using namespace bfmpipe;
  module.attr("sf_width") = sf_width;
  module.attr("sf_max_layers") = sf_max_layers;
  module.attr("sf_max_heads") = sf_max_heads;
  bind_sf_evaluate<float>(module, "sf_evaluate_float32");
  bind_sf_evaluate<double>(module, "sf_evaluate_float64");
  module.attr("compiler") = BFMPIPE_COMPILER;
  module.attr("compiled_instruction_sets") = compiled_instruction_sets();
  module.attr("cuda_build") = BFMPIPE_CUDA_BUILD;
  module.attr("sanitized") = static_cast<bool>(BFMPIPE_SANITIZED);
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
