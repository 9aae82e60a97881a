#pragma once

namespace bfmpipe::cuda {

// why no GPU can be used here, or null
const char* unavailable();

}  // namespace bfmpipe::cuda
