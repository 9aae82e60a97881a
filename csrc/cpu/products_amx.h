// Operands of the matrix unit.
#pragma once
#include "products.h"

namespace bfmpipe::BFMPIPE_INSTRUCTION_SET {
namespace {

// A float is a sum of bfloat16 parts of 8 bits each: 3 hold all of it. The matrix unit multiplies
// part i of an activation with part j of a weight, 16 times as fast as float32 is multiplied
// elsewhere; the products of i + j >= most, each smaller than the rounding of the parts that are
// kept, are left out (Henry, Tang & Heinecke 2019). Sums are float32.
template <int64_t x_parts_, int64_t weight_parts_>
struct Parts {
  using Real = float;
  using Kept = uint16_t;
  static constexpr int64_t strip = 32, x_parts = x_parts_, weight_parts = weight_parts_;
  static constexpr int64_t most = x_parts > weight_parts ? x_parts : weight_parts;
  static constexpr bool precise = x_parts > 1, scaled = false, balanced = false;
  static constexpr int64_t side = 16, step = 32;  // a tile: rows, and bfloat16 numbers a row
  static_assert(panel<float> == 2 * side && step == sf_width);

  struct Thread {
    Thread() {
      struct {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes_a_row[16] = {};
        uint8_t rows[16] = {};
      } shape;
      for (int64_t i = 0; i < 8; ++i) {
        shape.bytes_a_row[i] = 64;
        shape.rows[i] = side;
      }
      _tile_loadconfig(&shape);
    }
    ~Thread() { _tile_release(); }
  };

  // The next part of x, of which the rest stays. It is cut off, which is exact, or rounded if it
  // is the last.
  static __m512 split(__m512& x) {
    const __m512 part = _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0xffff0000)));
    x = _mm512_sub_ps(x, part);
    return part;
  }

  static int64_t kept_size(int64_t width) { return tile * width * x_parts; }
  static int64_t packed_size(int64_t depth, int64_t columns) {
    return depth * columns * weight_parts;
  }

  static void keep_part(Kept* to, __m512 left, __m512 right) {
    const auto bits = _mm512_cvtne2ps_pbh(right, left);
    std::memcpy(to, &bits, sizeof bits);
  }

  // A panel's steps along the depth, in each the parts, in each two tiles. A tile's row has two
  // rows of the matrix side by side, as the unit takes them. Columns are neighbours: the gradient,
  // which packs the transposed, has no use for this kind.
  static void pack(Matrix<float> matrix, int64_t depth, int64_t columns, Kept* to) {
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (int64_t first = 0; first < columns; first += panel<float>)
      for (int64_t k = 0; k < depth; k += 2)
        for (int64_t half = 0; half < 2; ++half) {
          const float* pair = matrix.data + k * matrix.row_stride + first + half * side;
          const __m512 even = _mm512_loadu_ps(pair);
          const __m512 odd = _mm512_loadu_ps(pair + matrix.row_stride);
          __m512 left = _mm512_permutex2var_ps(even, low, odd);
          __m512 right = _mm512_permutex2var_ps(even, high, odd);
          const int64_t at = first / panel<float> * (depth / step) + k / step;
#pragma GCC unroll 4
          for (int64_t part = 0; part < weight_parts; ++part) {
            Kept* row = to + (((at * weight_parts + part) * 2 + half) * side + k % step / 2) * step;
            if (part + 1 < weight_parts)
              keep_part(row, split(left), split(right));
            else
              keep_part(row, left, right);
          }
        }
  }

  // tiles of step columns and all rows, in each step the parts
  static int64_t place(int64_t row, int64_t column, int64_t part) {
    return ((column / step * x_parts + part) * tile + row) * step + column % step;
  }

  struct Row {
    Kept* x;
    int64_t row;
    Row(Kept* x_, int64_t row_, int64_t, float) : x(x_), row(row_) {}
    void keep(int64_t column, Vector<float> left_value, Vector<float> right_value) {
      __m512 left = reinterpret_cast<__m512>(left_value);
      __m512 right = reinterpret_cast<__m512>(right_value);
#pragma GCC unroll 4
      for (int64_t part = 0; part + 1 < x_parts; ++part)
        keep_part(x + place(row, column, part), split(left), split(right));
      keep_part(x + place(row, column, x_parts - 1), left, right);
    }
    void end() {}
  };

  // as much of the depth as leaves the panel's weights in L1
  static int64_t chunk(int64_t depth) {
    constexpr int64_t most_in_l1 = 32 * 1024 / (weight_parts * panel<float> * sizeof(Kept));
    return blocks(blocks(depth, blocks(depth, most_in_l1)), step) * step;
  }

  // tiles 0-3: sums, 4-5: x, 6-7: weights
  __attribute__((noinline)) static void multiply(const Kept* x, int64_t first, int64_t,
                                                 int64_t begin, int64_t end, const Kept* packed,
                                                 Vector<float> (*result)[2]) {
    constexpr int64_t tile_size = side * step;
    packed += packed_size(begin, panel<float>);
    if (begin == 0) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      _tile_loadd(0, &result[0][0], sizeof result[0]);
      _tile_loadd(1, &result[0][1], sizeof result[0]);
      _tile_loadd(2, &result[side][0], sizeof result[0]);
      _tile_loadd(3, &result[side][1], sizeof result[0]);
    }
    for (int64_t k = begin; k < end; k += step) {
#pragma GCC unroll 4
      for (int64_t part = 0; part < x_parts; ++part) {
        const Kept* rows = x + place(first, k, part);
        _tile_loadd(4, rows, 2 * step);
        _tile_loadd(5, rows + tile_size, 2 * step);
#pragma GCC unroll 4
        for (int64_t of_weight = 0; of_weight < weight_parts; ++of_weight)
          if (part + of_weight < most) {
            const Kept* columns = packed + of_weight * 2 * tile_size;
            _tile_loadd(6, columns, 2 * step);
            _tile_loadd(7, columns + tile_size, 2 * step);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
          }
      }
      packed += weight_parts * 2 * tile_size;
    }
    _tile_stored(0, &result[0][0], sizeof result[0]);
    _tile_stored(1, &result[0][1], sizeof result[0]);
    _tile_stored(2, &result[side][0], sizeof result[0]);
    _tile_stored(3, &result[side][1], sizeof result[0]);
  }
};

}  // namespace
}  // namespace bfmpipe::BFMPIPE_INSTRUCTION_SET
