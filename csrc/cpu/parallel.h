#pragma once

namespace bfmpipe {

// Runs work(context) on `threads` threads, this one among them, and waits for all. The work takes
// its share from a counter, so that fewer threads (where the system gives no more) do all of it.
void run_on_threads(int threads, void (*work)(void* context), void* context);

// the same for a callable; no standard-library template, see leave_one_out.cpp
template <typename Work>
void run_on_threads(int threads, Work& work) {
  run_on_threads(threads, [](void* context) { (*static_cast<Work*>(context))(); }, &work);
}

}  // namespace bfmpipe
