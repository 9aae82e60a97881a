// Operands of Winograd's product.
#pragma once
#include <cmath>

#include "products.h"

namespace bfmpipe::BFMPIPE_INSTRUCTION_SET {
namespace {

// Winograd's product in float32, of activations that tanh bounds. Its errors are relative to
// squares of activations and weights instead of their products, and to partial sums of a b, along a
// row, and of c d. So powers of two make activations of a unit as large as its weights, and columns
// as large as each other; and b and d are negated in half of the pairs, neighbours among them, lest
// sums grow where activations share a sign.
struct Winograd {
  using Real = float;
  using Kept = float;
  using Thread = Full<float>::Thread;
  static constexpr int64_t strip = 12;
  static constexpr bool precise = true, scaled = false, balanced = true;
  static int64_t kept_size(int64_t width) { return tile * (width + 1); }
  static int64_t packed_size(int64_t depth, int64_t columns) { return columns * (depth + 2); }
  static int64_t chunk(int64_t depth) { return depth; }

  // In each block of 32 number k goes with k + 16, which is negated if k and block are odd or even.
  static bool negated(int64_t k) { return k % 32 >= 16 && (k + k / 32) % 2 == 1; }

  // the power of two nearest to x, 1 if that is not a number
  static double power(double x) {
    if (std::isnan(x)) return 1;
    int exponent = 0;
    std::frexp(std::fmin(std::fmax(x, 0x1p-120), 0x1p120) * std::sqrt(0.5), &exponent);
    return std::ldexp(1.0, exponent);
  }

  // First come the activations' powers of two, in whose place are the sizes typical of them. Behind
  // each panel: what its sums start with, and what they are multiplied by.
  static void pack(Matrix<float> matrix, int64_t depth, int64_t columns, Kept* to) {
    Kept *balance = to, *panels = to + depth;
    constexpr int64_t of_panel = panel<float>;
    const auto factors = [&](int64_t first) {
      return panels + packed_size(depth, first) + (depth + 1) * of_panel;
    };
    for (int64_t first = 0; first < columns; first += of_panel) {
      double squares[of_panel] = {};
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t j = 0; j < of_panel; ++j) {
          const double x = static_cast<double>(matrix.at(k, first + j)) * balance[k];
          squares[j] += x * x;
        }
      for (int64_t j = 0; j < of_panel; ++j)  // columns that give 0 give it exactly
        factors(first)[j] = squares[j] == 0 ? 0 : power(std::sqrt(squares[j] / depth));
    }
    for (int64_t k = 0; k < depth; ++k) {
      double squares = 0;
      for (int64_t first = 0; first < columns; first += of_panel)
        for (int64_t j = 0; j < of_panel; ++j) {
          const double x = matrix.at(k, first + j), factor = factors(first)[j];
          squares += factor > 0 && std::isfinite(x) ? (x / factor) * (x / factor) : 0;
        }
      balance[k] = power(std::sqrt(std::sqrt(squares / columns) / balance[k]));
    }
    for (int64_t first = 0; first < columns; first += of_panel) {
      Kept* at = panels + packed_size(depth, first);
      double inverse[of_panel], paired[of_panel] = {};
      for (int64_t j = 0; j < of_panel; ++j)
        inverse[j] = factors(first)[j] > 0 ? 1 / factors(first)[j] : 0;
      for (int64_t k = 0; k < depth; ++k) {
        const double of_row = (negated(k) ? -1.0 : 1.0) / balance[k];
        for (int64_t j = 0; j < of_panel; ++j)
          at[k * of_panel + j] = static_cast<float>(matrix.at(k, first + j) * inverse[j] * of_row);
      }
      for (int64_t k = 0; k < depth; k += k % 32 == 15 ? 17 : 1)
        for (int64_t j = 0; j < of_panel; ++j)
          paired[j] += static_cast<double>(at[k * of_panel + j]) * at[(k + 16) * of_panel + j];
      for (int64_t j = 0; j < of_panel; ++j)
        at[depth * of_panel + j] = static_cast<float>(-paired[j]);
    }
  }

  struct Row {
    Kept *to, *paired_to;
    Vector<float> paired{};
    Row(Kept* x, int64_t row, int64_t width, float)
        : to(x + row * width), paired_to(x + tile * width + row) {}
    void keep(int64_t column, Vector<float> left, Vector<float> right) {
      const int64_t signs = column / panel<float> % 2 ? 1ll << 31 : INT64_MIN;  // of two lanes
      right = reinterpret_cast<Vector<float>>(
          _mm512_xor_si512(reinterpret_cast<__m512i>(right), _mm512_set1_epi64(signs)));
      store(to + column, left);
      store(to + column + lanes<float>, right);
      paired += left * right;
    }
    void end() { *paired_to = sum<float>(paired); }
  };

  __attribute__((noinline)) static void multiply(const Kept* x, int64_t first, int64_t depth,
                                                 int64_t, int64_t, const Kept* packed,
                                                 Vector<float> (*result)[2]) {
    const Kept* of_row = x + tile * depth + first;
    const Kept* of_column = packed + depth * panel<float>;
    x += first * depth;
    Vector<float> sums[strip][2];
#pragma GCC unroll 12
    for (int64_t row = 0; row < strip; ++row)
      for (int64_t half = 0; half < 2; ++half)
        sums[row][half] = load(of_column + half * lanes<float>) - of_row[row];
    Vector<float> one = broadcast(1.0f);
    asm("" : "+v"(one));  // the compiler must not see through add
    for (int64_t k = 0; k < depth; k += k % 32 == 15 ? 17 : 1) {
      const Kept* with = packed + k * panel<float>;
      const Vector<float> left = load(with), right = load(with + lanes<float>);
      with += 16 * panel<float>;
      const Vector<float> other_left = load(with), other_right = load(with + lanes<float>);
#pragma GCC unroll 12
      for (int64_t row = 0; row < strip; ++row) {
        const Vector<float> factor = broadcast(x[row * depth + k]);
        const Vector<float> other = broadcast(x[row * depth + k + 16]);
        sums[row][0] += (factor + other_left) * (other + left);
        sums[row][1] += add(factor, one, other_right) * (other + right);
      }
    }
#pragma GCC unroll 12
    for (int64_t row = 0; row < strip; ++row)
      for (int64_t half = 0; half < 2; ++half)
        result[row][half] = sums[row][half] * load(of_column + (2 + half) * lanes<float>);
  }

  // x * one + y: of four additions one is for a unit that multiplies, else that one would wait
  static Vector<float> add(Vector<float> x, Vector<float> one, Vector<float> y) {
    asm("vfmadd132ps %2, %1, %0" : "+v"(x) : "v"(y), "v"(one));
    return x;
  }
};

}  // namespace
}  // namespace bfmpipe::BFMPIPE_INSTRUCTION_SET
