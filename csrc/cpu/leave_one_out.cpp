// Compiled once an instruction set, into the namespace of that name. No standard-library templates
// here: the linker keeps one copy of each, which could be the one for a newer processor.
#include "../leave_one_out.h"

#include <cstdint>
#include <cstring>

#include "vector.h"

namespace bfmpipe::BFMPIPE_INSTRUCTION_SET {
namespace {

constexpr int64_t tile = 1024;  // columns or dimensions whose sums stay in L1
// Terms summed in the inputs' type before the sum goes on in double: twice the lanes, for an error
// of the size of the final rounding.
constexpr int64_t run_length = 8;

int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// body(j, V) for a row of `width`: V a vector, and a single number for what is left. Both do the
// same operations in the same order, so a column has the same bits in either.
template <typename Real, typename Body>
inline void for_lanes(int64_t width, Body body) {
  int64_t j = 0;
  for (; j + lanes<Real> <= width; j += lanes<Real>) body(j, Vector<Real>{});
  for (; j < width; ++j) body(j, Real{});
}

template <typename V>
inline V load_as(const void* from) {
  V x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

// x where bytes of 0 and 1 say 0, and zero elsewhere, whatever x is
inline float unless(const uint8_t* bytes, float x) { return *bytes ? 0 : x; }
inline double unless(const uint8_t* bytes, double x) { return *bytes ? 0 : x; }
template <typename V>
inline V unless(const uint8_t* bytes, V x) {
  using Real = decltype(+x[0]);
  const Integers<Real> all_ones_or_none = load_bytes<Real>(bytes) - 1;
  return reinterpret_cast<V>(reinterpret_cast<Integers<Real>>(x) & all_ones_or_none);
}

template <typename V, typename Real>
inline void store_as(Real* to, V x) {
  std::memcpy(to, &x, sizeof x);
}

// returns of all (tasks * states * k) columns, backwards over time:
// value = reward[t] + discount * value, where a termination at t drops what follows
template <typename Real>
void returns(const LeaveOneOut<Real>& args) {
  const int64_t columns = args.tasks * args.states * args.k;
  const Real discount = static_cast<Real>(args.discount);
  double value[tile];
  Real sums[tile], goes_on[tile];
  for (int64_t first = 0; first < columns; first += tile) {
    const int64_t width = min(tile, columns - first);
    for (int64_t c = 0; c < width; ++c) value[c] = args.bootstrap[first + c];

    for (int64_t last = args.nstep; last > 0; last -= run_length) {
      const int64_t steps = min(run_length, last);
      const int64_t offset = (last - 1) * columns + first;
      double later = 1;  // discount^steps
      for (int64_t step = 0; step < steps; ++step) later *= args.discount;

      for_lanes<Real>(width, [&](int64_t c, auto zero) {
        using V = decltype(zero);
        const Real* reward = args.reward + offset + c;
        V sum = zero, going_on = zero + 1;
        if (args.terminated) {
          const uint8_t* terminated = args.terminated + offset + c;
          for (int64_t step = 0; step < steps; ++step) {
            const uint8_t* ends = terminated - step * columns;
            sum = load_as<V>(reward - step * columns) + unless(ends, discount * sum);
            going_on = unless(ends, going_on);
          }
        } else {
          for (int64_t step = 0; step < steps; ++step)
            sum = load_as<V>(reward - step * columns) + discount * sum;
        }
        store_as(sums + c, sum);
        store_as(goes_on + c, going_on);
      });
      for (int64_t c = 0; c < width; ++c)
        value[c] = sums[c] + (goes_on[c] != 0 ? later * value[c] : 0.0);
    }

    Real* out = args.returns + first;
    for (int64_t c = 0; c < width; ++c) out[c] = static_cast<Real>(value[c]);
  }
}

// advantages of the (tasks * states) groups of k:
// A_i = R_i - (sum_j R_j - R_i) / (k - 1)
template <typename Real>
void advantages(const LeaveOneOut<Real>& args) {
  constexpr int64_t parts = 8;  // sums in a fixed order, so that they vectorise
  const int64_t k = args.k;
  const double scale = 1.0 / static_cast<double>(k - 1);
  for (int64_t group = 0; group < args.tasks * args.states; ++group) {
    const Real* returns = args.returns + group * k;
    double partial[parts] = {};
    int64_t i = 0;
    for (; i + parts <= k; i += parts)
      for (int64_t part = 0; part < parts; ++part) partial[part] += returns[i + part];
    for (int64_t part = 0; i < k; ++i, ++part) partial[part] += returns[i];
    double sum = 0;
    for (double x : partial) sum += x;

    Real* out = args.advantages + group * k;
    for (i = 0; i < k; ++i) out[i] = static_cast<Real>(returns[i] - (sum - returns[i]) * scale);
  }
}

// score gradient of each task: the mean of A_i (z_i - mu) / sigma^2 over states and i
template <typename Real>
void score_gradient(const LeaveOneOut<Real>& args) {
  const int64_t rows = args.states * args.k, d = args.d;
  const double scale =
      rows ? 1.0 / (args.sigma * args.sigma * static_cast<double>(rows)) : 0.0;
  double total[tile];
  Real sums[tile];
  for (int64_t task = 0; task < args.tasks; ++task) {
    for (int64_t first = 0; first < d; first += tile) {
      const int64_t width = min(tile, d - first);
      const Real* mu = args.mu + task * d + first;
      for (int64_t j = 0; j < width; ++j) total[j] = 0;

      for (int64_t row = 0; row < rows; row += run_length) {
        const int64_t count = min(run_length, rows - row);
        const Real* advantages = args.advantages + task * rows + row;
        const Real* z = args.z + (task * rows + row) * d + first;
        for_lanes<Real>(width, [&](int64_t j, auto zero) {
          using V = decltype(zero);
          const V centre = load_as<V>(mu + j);
          V sum = zero;
          for (int64_t i = 0; i < count; ++i)
            sum = sum + advantages[i] * (load_as<V>(z + i * d + j) - centre);
          store_as(sums + j, sum);
        });
        for (int64_t j = 0; j < width; ++j) total[j] += sums[j];
      }

      Real* out = args.score_gradient + task * d + first;
      for (int64_t j = 0; j < width; ++j) out[j] = static_cast<Real>(total[j] * scale);
    }
  }
}

// One thread: small calls are over before another one has started, and large ones wait for memory.
template <typename Real>
void run(const LeaveOneOut<Real>& args) {
  returns(args);
  advantages(args);
  score_gradient(args);
}

}  // namespace

void leave_one_out(const LeaveOneOut<float>& args) { run(args); }
void leave_one_out(const LeaveOneOut<double>& args) { run(args); }

}  // namespace bfmpipe::BFMPIPE_INSTRUCTION_SET
