// Vectors of the instruction set that this file is compiled for, inside its namespace.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace bfmpipe::BFMPIPE_INSTRUCTION_SET {
namespace {

#if defined(__AVX512F__)
constexpr int64_t vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int64_t vector_bytes = 32;
#else
constexpr int64_t vector_bytes = 16;
#endif

template <typename Real>
struct VectorOf {
  typedef Real type __attribute__((vector_size(vector_bytes)));
  typedef Real unaligned __attribute__((vector_size(vector_bytes), aligned(alignof(Real)), may_alias));
};
template <typename Real>
using Vector = typename VectorOf<Real>::type;
template <typename Real>
constexpr int64_t lanes = vector_bytes / static_cast<int64_t>(sizeof(Real));

template <typename Real>
inline Vector<Real> load(const Real* from) {
  return *reinterpret_cast<const typename VectorOf<Real>::unaligned*>(from);
}

template <typename Real>
inline void store(Real* to, Vector<Real> x) {
  *reinterpret_cast<typename VectorOf<Real>::unaligned*>(to) = x;
}

template <typename Real>
inline Vector<Real> broadcast(Real x) {
  return x - Vector<Real>{};
}

// b where either is NaN, as the instructions have it
template <typename V>
inline V larger(V a, V b) {
#if defined(__AVX512F__)  // which the compiler does not find
  if constexpr (sizeof(a[0]) == sizeof(float))
    return reinterpret_cast<V>(
        _mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#endif
  return a > b ? a : b;
}

template <typename V>
inline V smaller(V a, V b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(a[0]) == sizeof(float))
    return reinterpret_cast<V>(
        _mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#endif
  return a < b ? a : b;
}

// NaN stays NaN, as in torch
template <typename V>
inline V positive(V x) {
  return larger(V{}, x);
}

// one integer a lane of Vector<Real>
template <typename Real>
using Integers = decltype(Vector<Real>{} == Vector<Real>{});

// bytes, one a lane; written out where the compiler would go lane by lane
template <typename Real>
inline Integers<Real> load_bytes(const uint8_t* from) {
#if defined(__AVX2__)
  __m128i bytes{};
  std::memcpy(&bytes, from, lanes<Real>);
#if defined(__AVX512F__)
  if constexpr (sizeof(Real) == 4)
    return reinterpret_cast<Integers<Real>>(_mm512_cvtepu8_epi32(bytes));
  else
    return reinterpret_cast<Integers<Real>>(_mm512_cvtepu8_epi64(bytes));
#else
  if constexpr (sizeof(Real) == 4)
    return reinterpret_cast<Integers<Real>>(_mm256_cvtepu8_epi32(bytes));
  else
    return reinterpret_cast<Integers<Real>>(_mm256_cvtepu8_epi64(bytes));
#endif
#else
  Integers<Real> x{};
  for (int64_t lane = 0; lane < lanes<Real>; ++lane) x[lane] = from[lane];
  return x;
#endif
}

// the lanes, in a fixed order
template <typename Real>
inline Real sum(Vector<Real> x) {
#if defined(__AVX512F__)  // the same order
  if constexpr (sizeof(Real) == 4) return _mm512_reduce_add_ps(reinterpret_cast<__m512>(x));
#endif
  Real parts[lanes<Real>];
  std::memcpy(parts, &x, sizeof x);
  for (int64_t half = lanes<Real> / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) parts[i] += parts[i + half];
  return parts[0];
}

}  // namespace
}  // namespace bfmpipe::BFMPIPE_INSTRUCTION_SET
