// Compiled once an instruction set, into the namespace of that name. No standard-library templates
// here: the linker keeps one copy of each, which could be the one for a newer processor.
#include "../leave_one_out.h"

#include <cstdint>

namespace bfmpipe::BFMPIPE_INSTRUCTION_SET {
namespace {

constexpr int64_t tile = 2048;  // columns or dimensions whose doubles stay in L1

int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// returns of columns [begin, end) of the (tasks * states * k) columns: backwards over time,
// value = reward[t] + discount * value, where a termination at t drops what follows
template <typename Real>
void returns(const LeaveOneOut<Real>& args, int64_t begin, int64_t end) {
  const int64_t columns = args.tasks * args.states * args.k;
  const double discount = args.discount;
  double value[tile];
  for (int64_t first = begin; first < end; first += tile) {
    const int64_t width = min(tile, end - first);
    const Real* bootstrap = args.bootstrap + first;
    for (int64_t c = 0; c < width; ++c) value[c] = bootstrap[c];

    for (int64_t t = args.nstep - 1; t >= 0; --t) {
      const Real* reward = args.reward + t * columns + first;
      if (args.terminated) {
        const uint8_t* terminated = args.terminated + t * columns + first;
        for (int64_t c = 0; c < width; ++c)
          value[c] = reward[c] + discount * (terminated[c] ? 0.0 : value[c]);
      } else {
        for (int64_t c = 0; c < width; ++c) value[c] = reward[c] + discount * value[c];
      }
    }

    Real* out = args.returns + first;
    for (int64_t c = 0; c < width; ++c) out[c] = static_cast<Real>(value[c]);
  }
}

// advantages of groups [begin, end) of the (tasks * states) groups of k:
// A_i = R_i - (sum_j R_j - R_i) / (k - 1)
template <typename Real>
void advantages(const LeaveOneOut<Real>& args, int64_t begin, int64_t end) {
  constexpr int64_t lanes = 8;  // partial sums in a fixed order, so that the sum vectorises
  const int64_t k = args.k;
  const double scale = 1.0 / static_cast<double>(k - 1);
  for (int64_t group = begin; group < end; ++group) {
    const Real* returns = args.returns + group * k;
    double partial[lanes] = {};
    int64_t i = 0;
    for (; i + lanes <= k; i += lanes)
      for (int64_t lane = 0; lane < lanes; ++lane) partial[lane] += returns[i + lane];
    for (int64_t lane = 0; i < k; ++i, ++lane) partial[lane] += returns[i];
    double sum = 0;
    for (double part : partial) sum += part;

    Real* out = args.advantages + group * k;
    for (i = 0; i < k; ++i) out[i] = static_cast<Real>(returns[i] - (sum - returns[i]) * scale);
  }
}

// score gradients of tasks [begin, end): the mean of A_i (z_i - mu) / sigma^2 over states and i
template <typename Real>
void score_gradient(const LeaveOneOut<Real>& args, int64_t begin, int64_t end) {
  const int64_t rows = args.states * args.k, d = args.d;
  const double scale =
      rows ? 1.0 / (args.sigma * args.sigma * static_cast<double>(rows)) : 0.0;
  double mu[tile], sum[tile];
  for (int64_t task = begin; task < end; ++task) {
    const Real* advantages = args.advantages + task * rows;
    for (int64_t first = 0; first < d; first += tile) {
      const int64_t width = min(tile, d - first);
      for (int64_t j = 0; j < width; ++j) {
        mu[j] = args.mu[task * d + first + j];
        sum[j] = 0;
      }

      for (int64_t row = 0; row < rows; ++row) {
        const double advantage = advantages[row];
        const Real* z = args.z + (task * rows + row) * d + first;
        for (int64_t j = 0; j < width; ++j) sum[j] += advantage * (z[j] - mu[j]);
      }

      Real* out = args.score_gradient + task * d + first;
      for (int64_t j = 0; j < width; ++j) out[j] = static_cast<Real>(sum[j] * scale);
    }
  }
}

// the three passes; within each, ranges are independent and can go to threads
template <typename Real>
void run(const LeaveOneOut<Real>& args) {
  const int64_t groups = args.tasks * args.states;
  returns(args, 0, groups * args.k);
  advantages(args, 0, groups);
  score_gradient(args, 0, args.tasks);
}

}  // namespace

void leave_one_out(const LeaveOneOut<float>& args) { run(args); }
void leave_one_out(const LeaveOneOut<double>& args) { run(args); }

}  // namespace bfmpipe::BFMPIPE_INSTRUCTION_SET
