#include "parallel.h"

#include <system_error>
#include <thread>
#include <vector>

namespace bfmpipe {

void run_on_threads(int threads, void (*work)(void* context), void* context) {
  std::vector<std::thread> others;
  others.reserve(threads > 1 ? threads - 1 : 0);
  try {
    while (static_cast<int>(others.size()) + 1 < threads) others.emplace_back(work, context);
  } catch (const std::system_error&) {
    // no more threads to be had: those that run share the work
  }
  work(context);
  for (std::thread& other : others) other.join();
}

}  // namespace bfmpipe
