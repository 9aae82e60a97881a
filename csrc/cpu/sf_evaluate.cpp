// Compiled once an instruction set, into the namespace of that name; see leave_one_out.cpp.
//
// Pairs go in tiles through all layers, so that nothing of a pair but its value leaves the cache:
// join the state's and the latent's half of the first layer, normalise, tanh; then each layer as a
// product with weights packed into panels; the last one ends in the dot product with the readout.
// A row's sums do not depend on its place in a tile: a pair has the same value in any batch.
#include "../sf_evaluate.h"

#include <cmath>
#include <cstdlib>
#include <type_traits>

#include "parallel.h"
#include "vector.h"

namespace bfmpipe::BFMPIPE_INSTRUCTION_SET {
namespace {

constexpr int64_t tile = 96;  // a multiple of every kind's strip
constexpr double epsilon = 1e-5;  // of torch's layer_norm

// Whether there are units that add beside those that multiply, as fast and no use to a product.
// Then Winograd's inner product (1968) takes three quarters of the time:
//   a c + b d = (a + d) (b + c) - a b - c d
// with (a, b) of a row and (c, d) of a column; what is subtracted is summed once a row and column.
#ifdef BFMPIPE_UNITS_THAT_ADD
[[maybe_unused]] constexpr bool units_that_add = true;
#else
[[maybe_unused]] constexpr bool units_that_add = false;
#endif

template <typename Real>
constexpr int64_t panel = 2 * lanes<Real>;

int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t blocks(int64_t count, int64_t size) { return (count + size - 1) / size; }

template <typename T>
struct Buffer {
  T* data;
  explicit Buffer(int64_t count)
      : data(static_cast<T*>(std::aligned_alloc(64, blocks(count * sizeof(T) + 1, 64) * 64))) {}
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

// ---- operands of the products: how weights are packed and activations kept
//
// A kind of operands has
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

#if defined(__AMX_BF16__)

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

using Single = Same<Parts<3, 3>>;
using Half = Same<Parts<1, 2>>;

#elif defined(__AVX512VNNI__)

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

#ifdef BFMPIPE_UNITS_THAT_ADD

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

using Single = Kinds<Winograd, Full<float>>;

#else

using Single = Same<Full<float>>;

#endif

using Half = Same<Words>;

#else

using Single = Same<Full<float>>;
using Half = Single;  // nothing is faster

#endif

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

// ---- tanh

template <typename Operands>
inline Vector<double> tanh(Vector<double> x) {
  for (int64_t lane = 0; lane < lanes<double>; ++lane) x[lane] = std::tanh(x[lane]);
  return x;
}

// x P(x^2) / Q(x^2), fitted up to where tanh is 1 in the precision that is kept: to a relative
// error of 2e-8, or of 5e-5 where 16 bits are kept
template <typename Operands>
inline Vector<float> tanh(Vector<float> x) {
  constexpr float end = Operands::precise ? 9.02f : 4.97f;
  x = larger(broadcast(-end), smaller(broadcast(end), x));
  const Vector<float> y = x * x;
  Vector<float> p, q;
  if constexpr (Operands::precise) {
    p = y * 1.3319546067328676e-08f + 2.0583866105979795e-05f;
    p = p * y + 0.003494059874218238f;
    p = p * y + 0.13379739918259563f;
    p = p * y + 0.999999979105738f;
    q = y * 7.762225965499151e-07f + 0.0003283132867235353f;
    q = q * y + 0.02587117155526924f;
    q = q * y + 0.46713055191761066f;
  } else {
    p = y * 0.0006735088165640727f + 0.10251211970132648f;
    p = p * y + 0.9999498227679534f;
    q = y * 0.01284894554095614f + 0.4355362577882904f;
  }
  q = q * y + 1.0f;
#if defined(__AVX512F__)
  // an approximate inverse, and a Newton step where 14 bits do not do: a third of a division's time
  Vector<float> inverse = reinterpret_cast<Vector<float>>(
      _mm512_maskz_rcp14_ps(0xffff, reinterpret_cast<__m512>(q)));
  if constexpr (Operands::precise) inverse += inverse * (1.0f - q * inverse);
  return x * p * inverse;
#else
  return x * p / q;
#endif
}

// ---- a tile of pairs

struct Tile {
  int64_t first, rows, padded;
  int64_t state[tile], latent[tile];  // rows past the end repeat the first pair

  Tile(const Pairs& pairs, int64_t begin, int64_t end, int64_t strip)
      : first(begin), rows(min(tile, end - begin)), padded(blocks(rows, strip) * strip) {
    for (int64_t row = 0; row < padded; ++row) {
      const int64_t pair = row < rows ? first + row : first;
      state[row] = pairs.state(pair);
      latent[row] = pairs.latent(pair);
    }
  }
};

// kept activations of one head: input of each layer and, for the gradient, output of the last
template <typename Kept>
struct Activations {
  Kept* at[sf_max_layers + 1];
  Kept* wide;  // a layer's output as it is, where rows are kept relative to their largest number
};

template <typename Kinds, typename Real>
int64_t activations_size(const SfEvaluate<Real>& args) {
  int64_t size = Kinds::kept_size(0, args.hidden), widest = 0;
  for (int64_t l = 0; l < args.layers; ++l) {
    size += Kinds::kept_size(l + 1, args.layer[l].out);
    widest = max(widest, args.layer[l].out);
  }
  constexpr int64_t of_real = sizeof(Real) / sizeof(typename Kinds::Kept);
  return size + Kinds::scaled * tile * widest * of_real;
}

template <typename Kinds, typename Real>
Activations<typename Kinds::Kept> place_activations(const SfEvaluate<Real>& args,
                                                       typename Kinds::Kept* at) {
  Activations<typename Kinds::Kept> kept{};
  kept.at[0] = at;
  at += Kinds::kept_size(0, args.hidden);
  for (int64_t l = 0; l < args.layers; ++l) {
    kept.at[l + 1] = at;
    at += Kinds::kept_size(l + 1, args.layer[l].out);
  }
  kept.wide = at;
  return kept;
}

template <typename Kinds, typename Real>
int64_t weights_size(const SfEvaluate<Real>& args) {
  int64_t size = 0;
  for (int64_t l = 0; l < args.layers; ++l)
    size += Kinds::packed_size(l, args.layer[l].in, args.layer[l].out);
  return size;
}

// about the root of the mean square of each unit's tanh(g scale + shift), with g of mean square 1
template <typename Real>
void typical_activations(const SfEvaluate<Real>& args, int64_t head, Real* to) {
  for (int64_t j = head * args.hidden; j < (head + 1) * args.hidden; ++j) {
    const double scale = args.scale[j], shift = args.shift[j];
    const double square = scale * scale + shift * shift;
    *to++ = std::isfinite(square) ? std::sqrt(square / (1 + square)) : 1;
  }
}

// Packs the weights of all heads, transposed for the gradient. Those of (head, l) are at
// head * weights_size + the sizes of the layers before l.
template <typename Kinds, typename Real>
void pack_weights(const SfEvaluate<Real>& args, bool transposed, typename Kinds::Kept* to) {
  for (int64_t head = 0; head < args.heads; ++head)
    for (int64_t l = 0; l < args.layers; ++l) {
      const int64_t in = args.layer[l].in, out = args.layer[l].out;
      const Real* weight = args.layer[l].weight + head * in * out;
      if constexpr (Kinds::First::balanced)
        if (l == 0) typical_activations(args, head, to);
      if (transposed)
        Kinds::pack(l, Matrix<Real>{weight, 1, out}, out, in, to);
      else
        Kinds::pack(l, Matrix<Real>{weight, out, 1}, in, out, to);
      to += Kinds::packed_size(l, in, out);
    }
}

// tanh(x / sqrt(mean x^2 + epsilon) * scale + shift) with x = state + latent, both centred; that is
// LayerNorm, without its mean. inverse_norm: 1 / sqrt(...) of each row. balance: what activations
// are multiplied by, if the kind has that.
template <typename Operands>
__attribute__((noinline)) void join(const SfEvaluate<typename Operands::Real>& args, int64_t head,
                                    const Tile& t, const typename Operands::Kept* balance,
                                    typename Operands::Kept* out,
                                    typename Operands::Real* inverse_norm) {
  using Real = typename Operands::Real;
  const int64_t hidden = args.hidden;
  const Real* scale = args.scale + head * hidden;
  const Real* shift = args.shift + head * hidden;
  const Real* states = args.state + head * args.pairs.states() * hidden;
  const Real* latents = args.latent + head * args.pairs.latents() * hidden;
  for (int64_t row = 0; row < t.padded; ++row) {
    const Real* state = states + t.state[row] * hidden;
    const Real* latent = latents + t.latent[row] * hidden;
    Vector<Real> squares[2] = {};
    for (int64_t j = 0; j < hidden; j += panel<Real>)
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t at = j + half * lanes<Real>;
        const Vector<Real> x = load(state + at) + load(latent + at);
        squares[half] += x * x;
      }
    inverse_norm[row] = sum<Real>(squares[0] + squares[1]);
  }
  for (int64_t row = 0; row < t.padded; ++row) {
    const Real mean = inverse_norm[row] / static_cast<Real>(args.hidden_used);
    inverse_norm[row] = 1 / std::sqrt(mean + static_cast<Real>(epsilon));
  }
  // a loop of its own: the sums of one row would wait for the activations of the row before
  for (int64_t row = 0; row < t.padded; ++row) {
    const Real* state = states + t.state[row] * hidden;
    const Real* latent = latents + t.latent[row] * hidden;
    const Real factor = inverse_norm[row];
    const auto activation = [&](int64_t j) {
      const Vector<Real> x = (load(state + j) + load(latent + j)) * factor;
      const Vector<Real> y = tanh<Operands>(x * load(scale + j) + load(shift + j));
      if constexpr (Operands::balanced) return y * load(balance + j);
      return y;
    };
    typename Operands::Row kept(out, row, hidden, 1);
    for (int64_t j = 0; j < hidden; j += panel<Real>)
      kept.keep(j, activation(j), activation(j + lanes<Real>));
    kept.end();
  }
}

// of the lanes and `least`
template <typename Real>
inline Real greatest(Vector<Real> x, Real least) {
  for (int64_t lane = 0; lane < lanes<Real>; ++lane) least = x[lane] > least ? x[lane] : least;
  return least;
}

// values of one head (rows), the last layer's output kept where the gradient needs it
template <typename Kinds, bool keep_last>
void forward(const SfEvaluate<typename Kinds::Real>& args, const typename Kinds::Kept* weights,
             int64_t head, const Tile& t, const Activations<typename Kinds::Kept>& kept,
             typename Kinds::Real* inverse_norm, typename Kinds::Real* q) {
  using Real = typename Kinds::Real;
  using Rest = typename Kinds::Rest;
  const int64_t states = args.pairs.states(), latents = args.pairs.latents();
  join<typename Kinds::First>(args, head, t, weights, kept.at[0], inverse_norm);
  for (int64_t l = 0; l < args.layers; ++l) {
    const Layer<Real>& layer = args.layer[l];
    const int64_t out = layer.out;
    const typename Kinds::Kept* packed = weights + (l == 0 ? Kinds::balance_size(layer.in) : 0);
    const Real* addend = layer.addend + head * (layer.by_state ? states : 1) * out;
    const int64_t stride = layer.by_state ? out : 0;
    auto* next = kept.at[l + 1];
    if (l + 1 < args.layers) {
      Real* wide = reinterpret_cast<Real*>(kept.wide);
      Vector<Real> largest[tile] = {};
      product<Kinds>(l, kept.at[l], t.padded, layer.in, out, packed,
                     [&](int64_t row, int64_t column, Vector<Real> left, Vector<Real> right) {
                       const Real* add = addend + t.state[row] * stride + column;
                       left = positive(left + load(add));
                       right = positive(right + load(add + lanes<Real>));
                       if constexpr (Kinds::scaled) {
                         largest[row] = larger(larger(left, right), largest[row]);
                         typename Full<Real>::Row(wide, row, out, 0).keep(column, left, right);
                       } else {
                         typename Rest::Row(next, row, out, 0).keep(column, left, right);
                       }
                     });
      if constexpr (Kinds::scaled)
        for (int64_t row = 0; row < t.padded; ++row) {
          typename Rest::Row to(next, row, out, greatest(largest[row], Rest::smallest));
          for (int64_t column = 0; column < out; column += panel<Real>) {
            const Real* from = wide + row * out + column;
            to.keep(column, load(from), load(from + lanes<Real>));
          }
          to.end();
        }
    } else {
      const Real *add_to[tile], *read_by[tile];
      for (int64_t row = 0; row < t.padded; ++row) {
        add_to[row] = addend + t.state[row] * stride;
        read_by[row] = args.readout + (head * latents + t.latent[row]) * out;
      }
      Vector<Real> dot[tile] = {};
      product<Kinds>(l, kept.at[l], t.padded, layer.in, out, packed,
                     [&](int64_t row, int64_t column, Vector<Real> left, Vector<Real> right) {
                       const Real* add = add_to[row] + column;
                       const Real* read = read_by[row] + column;
                       left = positive(left + load(add));
                       right = positive(right + load(add + lanes<Real>));
                       dot[row] += left * load(read);
                       dot[row] += right * load(read + lanes<Real>);
                       if constexpr (keep_last)
                         typename Rest::Row(next, row, out, 0).keep(column, left, right);
                     });
      const Real* offset =
          args.offset + head * (args.offset_by_pair ? args.pairs.count() : latents);
      for (int64_t row = 0; row < t.rows; ++row)
        q[row] = sum<Real>(dot[row]) +
                 offset[args.offset_by_pair ? t.first + row : t.latent[row]];
    }
    weights += Kinds::packed_size(l, layer.in, layer.out);
  }
}

// the mean of the heads less pessimism times the distance of the first two
template <typename Real>
Real reduce(const SfEvaluate<Real>& args, const Real (*q)[tile], int64_t row) {
  Real total = 0;
  for (int64_t head = 0; head < args.heads; ++head) total += q[head][row];
  total /= static_cast<Real>(args.heads);
  if (args.heads == 2)
    total -= static_cast<Real>(args.pessimism) * std::fabs(q[0][row] - q[1][row]);
  return total;
}

template <typename Kinds>
bool evaluate(const SfEvaluate<typename Kinds::Real>& args, int threads) {
  using Real = typename Kinds::Real;
  using Kept = typename Kinds::Kept;
  const int64_t count = args.pairs.count(), tiles = blocks(count, tile);
  threads = static_cast<int>(max(1, min(threads, tiles)));
  const int64_t weights_of_head = weights_size<Kinds>(args),
                scratch_size = activations_size<Kinds>(args);
  Buffer<Kept> weights(args.heads * weights_of_head), scratch(threads * scratch_size);
  if (!weights.data || !scratch.data) return false;
  pack_weights<Kinds>(args, false, weights.data);

  int64_t next_tile = 0, next_scratch = 0;
  auto work = [&] {
    const typename Kinds::Thread thread;
    Kept* mine = scratch.data +
                 __atomic_fetch_add(&next_scratch, 1, __ATOMIC_RELAXED) * scratch_size;
    const Activations<Kept> kept = place_activations<Kinds>(args, mine);
    Real q[sf_max_heads][tile], inverse_norm[tile];
    for (;;) {
      const int64_t index = __atomic_fetch_add(&next_tile, 1, __ATOMIC_RELAXED);
      if (index >= tiles) return;
      const Tile t(args.pairs, index * tile, count, Kinds::strip);
      for (int64_t head = 0; head < args.heads; ++head)
        forward<Kinds, false>(args, weights.data + head * weights_of_head, head, t, kept,
                                 inverse_norm, q[head]);
      for (int64_t row = 0; row < t.rows; ++row) args.q[t.first + row] = reduce(args, q, row);
    }
  };
  run_on_threads(threads, work);
  return true;
}

// ---- gradient

template <typename Real>
void add_row(Real* to, const Real* row, int64_t width) {
  for (int64_t j = 0; j < width; ++j) to[j] += row[j];
}

// pairs [begin, end), which this thread alone writes the gradients of
template <typename Real>
struct GradScratch {
  Activations<Real> kept[sf_max_heads];
  Real inverse_norm[sf_max_heads][tile];
  Real* delta[2];
};

template <typename Real>
void backward(const SfEvaluate<Real>& args, const Real* weights, const Real* transposed,
              int64_t begin, int64_t end, int64_t split, GradScratch<Real>& scratch) {
  const int64_t states = args.pairs.states(), latents = args.pairs.latents();
  const int64_t hidden = args.hidden, weights_of_head = weights_size<Same<Full<Real>>>(args);
  for (int64_t first = begin; first < end; first += tile) {
    const Tile t(args.pairs, first, end, Full<Real>::strip);
    Real q[sf_max_heads][tile];
    for (int64_t head = 0; head < args.heads; ++head)
      forward<Same<Full<Real>>, true>(args, weights + head * weights_of_head, head, t,
                                scratch.kept[head], scratch.inverse_norm[head], q[head]);

    for (int64_t head = 0; head < args.heads; ++head) {
      const Activations<Real>& kept = scratch.kept[head];
      Real *delta = scratch.delta[0], *before = scratch.delta[1];
      const int64_t last = args.layers - 1, read = args.layer[last].out;
      for (int64_t row = 0; row < t.padded; ++row) {
        Real grad = 0;  // of rows past the end
        if (row < t.rows) {
          Real share = 1 / static_cast<Real>(args.heads);
          if (args.heads == 2) {
            const Real gap = q[head][row] - q[1 - head][row];
            share -= static_cast<Real>(args.pessimism) * static_cast<Real>((gap > 0) - (gap < 0));
          }
          grad = args.grad_q[t.first + row] * share;
          args.grad_head[head * args.pairs.count() + t.first + row] = grad;
        }
        const Real* y = kept.at[last + 1] + row * read;
        const Real* readout = args.readout + (head * latents + t.latent[row]) * read;
        for (int64_t j = 0; j < read; ++j) delta[row * read + j] = y[j] > 0 ? grad * readout[j] : 0;
        if (row < t.rows) {
          Real* to = args.grad_readout +
                     ((split * args.heads + head) * latents + t.latent[row]) * read;
          for (int64_t j = 0; j < read; ++j) to[j] += grad * y[j];
        }
      }

      const Real* weight = transposed + (head + 1) * weights_of_head;
      for (int64_t l = last; l >= 0; --l) {
        const Layer<Real>& layer = args.layer[l];
        if (layer.by_state)
          for (int64_t row = 0; row < t.rows; ++row)
            add_row(layer.grad_addend + (head * states + t.state[row]) * layer.out,
                    delta + row * layer.out, layer.out);
        weight -= layer.in * layer.out;
        const Real* input = kept.at[l];
        product<Full<Real>>(
            delta, t.padded, layer.out, layer.in, weight,
            [&](int64_t row, int64_t column, Vector<Real> left, Vector<Real> right) {
              const int64_t at = row * layer.in + column;
              if (l > 0) {  // through the rectifier that made the input
                left = load(input + at) > 0 ? left : Vector<Real>{};
                right = load(input + at + lanes<Real>) > 0 ? right : Vector<Real>{};
              }
              store(before + at, left);
              store(before + at + lanes<Real>, right);
            });
        Real* swap = delta;
        delta = before;
        before = swap;
      }

      // through tanh and the normalisation
      for (int64_t row = 0; row < t.rows; ++row) {
        const Real factor = scratch.inverse_norm[head][row];
        const Real* a = kept.at[0] + row * hidden;
        const Real* scale = args.scale + head * hidden;
        const Real* state = args.state + (head * states + t.state[row]) * hidden;
        const Real* latent = args.latent + (head * latents + t.latent[row]) * hidden;
        Real* grad = delta + row * hidden;
        Vector<Real> along{};
        for (int64_t j = 0; j < hidden; j += lanes<Real>) {
          const Vector<Real> y = load(a + j);
          const Vector<Real> g = load(grad + j) * (1 - y * y) * load(scale + j);
          store(grad + j, g);
          along += g * (load(state + j) + load(latent + j));
        }
        const Real slope =
            sum<Real>(along) * factor * factor / static_cast<Real>(args.hidden_used);
        for (int64_t j = 0; j < hidden; j += lanes<Real>) {
          const Vector<Real> x = load(state + j) + load(latent + j);
          store(grad + j, (load(grad + j) - x * slope) * factor);
        }
        add_row(args.grad_state + (head * states + t.state[row]) * hidden, grad, hidden);
        add_row(args.grad_latent +
                    ((split * args.heads + head) * latents + t.latent[row]) * hidden,
                grad, hidden);
      }
    }
  }
}

template <typename Real>
bool gradient(const SfEvaluate<Real>& args, int threads) {
  const Pairs& pairs = args.pairs;
  // a job: some whole groups, or one of the blocks of states that a group is cut into
  const int64_t of_group = pairs.B * pairs.K;
  const int64_t groups_of_job = args.splits > 1 ? 1 : max(1, tile / max(1, of_group));
  const int64_t block = blocks(pairs.B, args.splits) * pairs.K;
  const int64_t jobs = blocks(pairs.groups, groups_of_job) * args.splits;
  threads = static_cast<int>(max(1, min(threads, jobs)));

  int64_t widest = args.hidden;
  for (int64_t l = 0; l < args.layers; ++l) widest = max(widest, args.layer[l].out);
  const int64_t kept_size = activations_size<Same<Full<Real>>>(args);
  const int64_t scratch_size = args.heads * kept_size + 2 * tile * widest;
  const int64_t all_weights = args.heads * weights_size<Same<Full<Real>>>(args);
  Buffer<Real> weights(all_weights), transposed(all_weights), buffer(threads * scratch_size);
  if (!weights.data || !transposed.data || !buffer.data) return false;
  pack_weights<Same<Full<Real>>>(args, false, weights.data);
  pack_weights<Same<Full<Real>>>(args, true, transposed.data);

  int64_t next_job = 0, next_scratch = 0;
  auto work = [&] {
    Real* mine = buffer.data +
                 __atomic_fetch_add(&next_scratch, 1, __ATOMIC_RELAXED) * scratch_size;
    GradScratch<Real> scratch;
    for (int64_t head = 0; head < args.heads; ++head)
      scratch.kept[head] = place_activations<Same<Full<Real>>>(args, mine + head * kept_size);
    for (int64_t i = 0; i < 2; ++i)
      scratch.delta[i] = mine + args.heads * kept_size + i * tile * widest;
    for (;;) {
      const int64_t job = __atomic_fetch_add(&next_job, 1, __ATOMIC_RELAXED);
      if (job >= jobs) return;
      const int64_t split = job % args.splits, group = job / args.splits * groups_of_job;
      const int64_t begin = group * of_group + split * block;
      const int64_t groups = min(groups_of_job, pairs.groups - group);
      const int64_t end = args.splits > 1 ? min(begin + block, (group + 1) * of_group)
                                          : begin + groups * of_group;
      backward(args, weights.data, transposed.data, begin, end, split, scratch);
    }
  };
  run_on_threads(threads, work);
  return true;
}

}  // namespace

bool sf_evaluate(const SfEvaluate<float>& args, bool half, int threads) {
  if (half) return evaluate<Half>(args, threads);
  return evaluate<Single>(args, threads);
}
bool sf_evaluate(const SfEvaluate<double>& args, bool, int threads) {
  return evaluate<Same<Full<double>>>(args, threads);
}
bool sf_evaluate_grad(const SfEvaluate<float>& args, int threads) {
  return gradient(args, threads);
}
bool sf_evaluate_grad(const SfEvaluate<double>& args, int threads) {
  return gradient(args, threads);
}

}  // namespace bfmpipe::BFMPIPE_INSTRUCTION_SET
