#include <cuda_runtime.h>

#include "device.h"

namespace bfmpipe::cuda {

const char* unavailable() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return count > 0 ? nullptr : "no CUDA-capable device is detected";
}

}  // namespace bfmpipe::cuda
