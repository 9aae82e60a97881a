// Products of activations with weights packed into panels, by kinds of operands.
//
// A kind of operands, how weights are packed and activations kept, has
//   Real, Kept       the type of sums, and of what is stored
//   strip            rows that one multiplication takes, of one panel's columns
//   precise          whether float32's precision is kept
//   scaled           whether a row of activations is kept relative to its largest number
//   balanced         whether activations are multiplied by powers of two that pack(...) chooses
//   kept_size(...)   of what is stored of a tile of rows, packed_size(...) of a matrix
//   Row              stores a row of activations (tile, width), a panel's columns at a time
//   pack(...)        stores a matrix, panel by panel
//   chunk(...)       rows of a matrix that one multiplication goes through
//   multiply(...)    strip rows of activations times one panel, of the matrix's rows begin to end;
//                    added to the result if begin is not the first
//   Thread           what a thread that multiplies holds
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vector.h"

namespace bfmpipe::BFMPIPE_INSTRUCTION_SET {
namespace {

constexpr int64_t tile = 96;  // rows at a time; a multiple of every kind's strip

template <typename Real>
constexpr int64_t panel = 2 * lanes<Real>;

int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t blocks(int64_t count, int64_t size) { return (count + size - 1) / size; }

// element (k, j) of a matrix, depth x columns
template <typename Real>
struct Matrix {
  const Real* data;
  int64_t row_stride, column_stride;
  Real at(int64_t k, int64_t j) const { return data[k * row_stride + j * column_stride]; }
};

template <typename Real_>
struct Full {
  using Real = Real_;
  using Kept = Real;
  struct Thread {
    Thread() {}
  };
#if defined(__AVX512F__)
  static constexpr int64_t strip = 12;  // rows whose sums, two vectors each, fill the registers
#else
  static constexpr int64_t strip = 6;
#endif
  static constexpr bool precise = true, scaled = false, balanced = false;
  static int64_t kept_size(int64_t width) { return tile * width; }
  static int64_t packed_size(int64_t depth, int64_t columns) { return depth * columns; }
  static int64_t chunk(int64_t depth) { return depth; }

  static void pack(Matrix<Real> matrix, int64_t depth, int64_t columns, Kept* to) {
    for (int64_t first = 0; first < columns; first += panel<Real>)
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t j = 0; j < panel<Real>; ++j) *to++ = matrix.at(k, first + j);
  }

  struct Row {
    Kept* to;
    Row(Kept* x, int64_t row, int64_t width, Real) : to(x + row * width) {}
    void keep(int64_t column, Vector<Real> left, Vector<Real> right) {
      store(to + column, left);
      store(to + column + lanes<Real>, right);
    }
    void end() {}
  };

  // a function of its own, so that its addresses fit in registers
  __attribute__((noinline)) static void multiply(const Kept* x, int64_t first, int64_t depth,
                                                 int64_t, int64_t, const Kept* packed,
                                                 Vector<Real> (*result)[2]) {
    x += first * depth;
    Vector<Real> sums[strip][2] = {};
    for (int64_t k = 0; k < depth; ++k) {
      const Vector<Real> left = load(packed), right = load(packed + lanes<Real>);
      packed += panel<Real>;
#pragma GCC unroll 12
      for (int64_t row = 0; row < strip; ++row) {
        const Vector<Real> factor = broadcast(x[row * depth + k]);
        sums[row][0] += factor * left;
        sums[row][1] += factor * right;
      }
    }
    std::memcpy(result, sums, sizeof sums);
  }
};

// of the product that takes the joined activations, and of those after a rectifier
template <typename First_, typename Rest_>
struct Kinds {
  using First = First_;
  using Rest = Rest_;
  using Real = typename First::Real;
  using Kept = typename First::Kept;
  using Thread = typename First::Thread;
  static constexpr int64_t strip = First::strip;
  static constexpr bool scaled = First::scaled;
  static_assert(strip == Rest::strip && scaled == Rest::scaled);
  static_assert(std::is_same_v<Kept, typename Rest::Kept>);

  static int64_t kept_size(int64_t l, int64_t width) {
    return l == 0 ? First::kept_size(width) : Rest::kept_size(width);
  }
  // before the first matrix: the powers of two of its activations
  static int64_t balance_size(int64_t depth) { return First::balanced ? depth : 0; }
  static int64_t packed_size(int64_t l, int64_t depth, int64_t columns) {
    return l == 0 ? balance_size(depth) + First::packed_size(depth, columns)
                  : Rest::packed_size(depth, columns);
  }
  static void pack(int64_t l, Matrix<Real> matrix, int64_t depth, int64_t columns, Kept* to) {
    return (l == 0 ? First::pack : Rest::pack)(matrix, depth, columns, to);
  }
};
template <typename Kind>
using Same = Kinds<Kind, Kind>;

// x (rows, depth) times a packed matrix, rows a multiple of strip;
// each(row, column, left, right) takes two vectors at a time
template <typename Operands, typename Each>
void product(const typename Operands::Kept* x, int64_t rows, int64_t depth, int64_t columns,
             const typename Operands::Kept* packed, Each each) {
  using Real = typename Operands::Real;
  const int64_t chunk = Operands::chunk(depth);
  Vector<Real> sums[tile][2];
  for (int64_t column = 0; column < columns; column += panel<Real>) {
    for (int64_t begin = 0; begin < depth; begin += chunk)
      for (int64_t first = 0; first < rows; first += Operands::strip)
        Operands::multiply(x, first, depth, begin, min(begin + chunk, depth), packed,
                           sums + first);
    packed += Operands::packed_size(depth, panel<Real>);
    for (int64_t row = 0; row < rows; ++row) each(row, column, sums[row][0], sums[row][1]);
  }
}

// the same, of layer l
template <typename Kinds, typename Each>
void product(int64_t l, const typename Kinds::Kept* x, int64_t rows, int64_t depth,
             int64_t columns, const typename Kinds::Kept* packed, Each each) {
  if (std::is_same_v<typename Kinds::First, typename Kinds::Rest> || l > 0)
    product<typename Kinds::Rest>(x, rows, depth, columns, packed, each);
  else
    product<typename Kinds::First>(x, rows, depth, columns, packed, each);
}

}  // namespace
}  // namespace bfmpipe::BFMPIPE_INSTRUCTION_SET
