// Operands of the instructions that multiply integers.
#pragma once
#include <cmath>

#include "products.h"

namespace bfmpipe::BFMPIPE_INSTRUCTION_SET {
namespace {

// Whether there are units that add beside those that multiply, as fast and no use to a product.
// Then Winograd's inner product (1968) takes three quarters of the time:
//   a c + b d = (a + d) (b + c) - a b - c d
// with (a, b) of a row and (c, d) of a column; what is subtracted is summed once a row and column.
#ifdef BFMPIPE_UNITS_THAT_ADD
[[maybe_unused]] constexpr bool units_that_add = true;
#else
[[maybe_unused]] constexpr bool units_that_add = false;
#endif

// Numbers as integers, relative to the largest of their row (activations) or column (weights).
// Their products have twice float32's rate, and sums that are exact: 32 bits hold those of
// `longest` products of numbers up to `most`; with Winograd's product they wrap on the way, the
// total does not.
struct Words {
  using Real = float;
  using Kept = int16_t;
  struct Thread {
    Thread() {}
  };
  static constexpr int64_t strip = 12;
  static constexpr bool precise = false, scaled = true, balanced = false;
  static constexpr float most = 2895, smallest = 1e-30f;
  static constexpr int64_t longest = 256;
  typedef float Scale __attribute__((may_alias));  // what they are relative to, behind all of them
  static constexpr int64_t of_scale = sizeof(float) / sizeof(Kept);
  // of each chunk, behind the scales: the sum of products of its first and its second half of words
  typedef int32_t Paired __attribute__((may_alias));
  static int64_t paired_size(int64_t depth) {
    return units_that_add * blocks(depth, longest) * (sizeof(int32_t) / sizeof(Kept));
  }
  static int64_t kept_size(int64_t width) {
    return tile * (width + of_scale + paired_size(width));
  }
  static int64_t packed_size(int64_t depth, int64_t columns) {
    return columns * (depth + of_scale + paired_size(depth));
  }
  static int64_t chunk(int64_t depth) { return min(depth, longest); }

  // 32 numbers are packed from two vectors of 16, quarter by quarter: where number `at` goes
  static constexpr int64_t place(int64_t at) { return at % 16 / 4 * 8 + at / 16 * 4 + at % 4; }

  static void pack(Matrix<float> matrix, int64_t depth, int64_t columns, Kept* to) {
    for (int64_t first = 0; first < columns; first += panel<float>) {
      for (int64_t j = 0; j < panel<float>; ++j) {
        float largest = smallest, poison = 0;
        for (int64_t k = 0; k < depth; ++k) {
          const float x = matrix.at(k, first + j);
          largest = std::fmax(largest, std::fabs(x));
          poison += x - x;  // not 0 where x is not finite
        }
        const float factor = poison == 0 ? most / largest : 0, scale = largest / most + poison;
        for (int64_t k = 0; k < depth; ++k) {
          const int64_t at = k / 32 * 32 + place(k % 32);
          const float x = poison == 0 ? matrix.at(k, first + j) * factor : 0;
          to[(at / 2 * panel<float> + j) * 2 + at % 2] = static_cast<Kept>(std::lrint(x));
        }
        std::memcpy(to + depth * panel<float> + j * of_scale, &scale, sizeof scale);
      }
      if constexpr (units_that_add) {
        Paired* paired = reinterpret_cast<Paired*>(to + (depth + of_scale) * panel<float>);
        for (int64_t begin = 0; begin < depth; begin += longest, paired += panel<float>) {
          int32_t total[panel<float>] = {};
          for (int64_t at = begin; at < min(begin + longest, depth); at += at % 32 == 14 ? 18 : 2) {
            const Kept *words = to + at * panel<float>, *others = words + 16 * panel<float>;
            for (int64_t j = 0; j < panel<float>; ++j)
              total[j] += words[2 * j] * others[2 * j] + words[2 * j + 1] * others[2 * j + 1];
          }
          std::memcpy(paired, total, sizeof total);
        }
      }
      to += packed_size(depth, panel<float>);
    }
  }

  struct Row {
    Kept *to, *scale_to;
    Paired* paired_to;
    int64_t width;
    float scale;
    __m512 factor;
    __mmask16 none = 0;  // where something was not a number
    __m256i paired = _mm256_setzero_si256();

    Row(Kept* x, int64_t row, int64_t width_, float largest)
        : to(x + row * width_),
          scale_to(x + tile * width_ + row * of_scale),
          paired_to(reinterpret_cast<Paired*>(x + tile * (width_ + of_scale)) + row),
          width(width_),
          scale(largest / most + (largest - largest)),  // NaN where something is infinite
          factor(_mm512_set1_ps(most / largest)) {}
    void keep(int64_t column, Vector<float> left_value, Vector<float> right_value) {
      const __m512 left = reinterpret_cast<__m512>(left_value);
      const __m512 right = reinterpret_cast<__m512>(right_value);
      none |= _mm512_cmp_ps_mask(left, right, _CMP_UNORD_Q);
      const __m512i words = _mm512_packs_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(left, factor)),
                                               _mm512_cvtps_epi32(_mm512_mul_ps(right, factor)));
      _mm512_storeu_si512(to + column, words);
      if constexpr (units_that_add) {
        paired = _mm256_add_epi32(paired, _mm256_madd_epi16(_mm512_castsi512_si256(words),
                                                            _mm512_extracti64x4_epi64(words, 1)));
        const int64_t end = column + panel<float>;
        if (end % longest == 0 || end == width) {
          paired_to[(end - 1) / longest * tile] = sum(paired);
          paired = _mm256_setzero_si256();
        }
      }
    }
    static int32_t sum(__m256i x) {
      __m128i half = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
      half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
      return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
    }
    void end() {
      if (none) scale = NAN;
      std::memcpy(scale_to, &scale, sizeof scale);
    }
  };

  __attribute__((noinline)) static void multiply(const Kept* x, int64_t first, int64_t depth,
                                                 int64_t begin, int64_t end, const Kept* packed,
                                                 Vector<float> (*result)[2]) {
    typedef int32_t Pair __attribute__((may_alias));  // of neighbours along the depth
    const Pair* factors = reinterpret_cast<const Pair*>(x + first * depth);
    const Pair* columns = reinterpret_cast<const Pair*>(packed);
    Vector<int32_t> sums[strip][2] = {};
    if constexpr (units_that_add) {
      const Paired* of_row = reinterpret_cast<const Paired*>(x + tile * (depth + of_scale)) +
                             begin / longest * tile + first;
      const Paired* of_column =
          reinterpret_cast<const Paired*>(packed + (depth + of_scale) * panel<float>) +
          begin / longest * panel<float>;
#pragma GCC unroll 12
      for (int64_t row = 0; row < strip; ++row)
        for (int64_t half = 0; half < 2; ++half)
          sums[row][half] -=
              broadcast<int32_t>(of_row[row]) + load(of_column + half * lanes<float>);
      for (int64_t at = begin / 2; at < end / 2; at += at % 16 == 7 ? 9 : 1) {
        const Pair* with = columns + at * panel<float>;
        const auto left = load(with), right = load(with + lanes<float>);
        with += 8 * panel<float>;
        const auto other_left = load(with), other_right = load(with + lanes<float>);
#pragma GCC unroll 12
        for (int64_t row = 0; row < strip; ++row) {
          const Vector<int32_t> factor = broadcast<int32_t>(factors[row * (depth / 2) + at]);
          const Vector<int32_t> other = broadcast<int32_t>(factors[row * (depth / 2) + at + 8]);
          add_products(sums[row][0], add(factor, other_left), add(other, left));
          add_products(sums[row][1], add(factor, other_right), add(other, right));
        }
      }
    } else {
      for (int64_t k = begin / 2; k < end / 2; ++k) {
        const auto left = load(columns + k * panel<float>);
        const auto right = load(columns + k * panel<float> + lanes<float>);
#pragma GCC unroll 12
        for (int64_t row = 0; row < strip; ++row) {
          const Vector<int32_t> factor = broadcast<int32_t>(factors[row * (depth / 2) + k]);
          add_products(sums[row][0], factor, left);
          add_products(sums[row][1], factor, right);
        }
      }
    }
    const Scale* row_scale = reinterpret_cast<const Scale*>(x + tile * depth) + first;
    const Scale* column_scale = reinterpret_cast<const Scale*>(packed + depth * panel<float>);
    const Vector<float> of_columns[2] = {load(column_scale), load(column_scale + lanes<float>)};
#pragma GCC unroll 12
    for (int64_t row = 0; row < strip; ++row)
      for (int64_t half = 0; half < 2; ++half) {
        const auto sum = __builtin_convertvector(sums[row][half], Vector<float>);
        const Vector<float> scale = broadcast<float>(row_scale[row]) * of_columns[half];
        // written out, lest the compiler contracts some rows' and not others'
        result[row][half] = begin > 0 ? multiply_add(sum, scale, result[row][half]) : sum * scale;
      }
  }

  static Vector<float> multiply_add(Vector<float> x, Vector<float> y, Vector<float> z) {
    return reinterpret_cast<Vector<float>>(
        _mm512_fmadd_ps(reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(y),
                        reinterpret_cast<__m512>(z)));
  }

  // The compiler would copy the sums that its own function for this takes.
  static void add_products(Vector<int32_t>& sums, Vector<int32_t> x, Vector<int32_t> y) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(y));
  }

  static Vector<int32_t> add(Vector<int32_t> x, Vector<int32_t> y) {
    return reinterpret_cast<Vector<int32_t>>(_mm512_add_epi16(reinterpret_cast<__m512i>(x),
                                                              reinterpret_cast<__m512i>(y)));
  }
};

}  // namespace
}  // namespace bfmpipe::BFMPIPE_INSTRUCTION_SET
