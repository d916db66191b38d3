// Vectors as wide as the instruction set that this file is compiled for, and float32 functions on
// them. Everything is in a namespace named after the instruction set. Nothing here may call a
// function template or an inline function of the standard library: of their copies the linker keeps
// one, perhaps one that this processor cannot run.
//
// Errors, measured on float32 of the whole range against float64 (test/simd.cpp): exp is
// within 1.1 units in the last place, log, log1p_unit and tanh within 2, softplus and sigmoid
// within 3.
#pragma once

#include <cstdint>

#include "tasks.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef FASTINFOGAN_ISA
#error "FASTINFOGAN_ISA names the namespace; CMakeLists.txt compiles kernels.cpp once for each"
#endif

namespace fastinfogan::FASTINFOGAN_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef std::uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef std::uint16_t Halves __attribute__((vector_size(2 * kLanes)));

// A size known at compile time: loops over it are unrolled, and whole vectors need no checks.
template <int size>
struct Fixed {
  constexpr operator Index() const { return size; }
};

inline Floats broadcast(float x) { return Floats{} + x; }
inline Words broadcast(std::uint32_t x) { return Words{} + x; }

template <typename V, typename T>
inline V read(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <typename V, typename T>
inline void write(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// a * b + c, rounded once where the processor has it. Not for results that must have NumPy's bits.
inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

inline Floats sqrt(Floats x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// Whether a comparison holds in every lane.
inline bool all(Ints mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask) == 0xFFFF;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) == 0xFF;
#else
  return (mask[0] & mask[1] & mask[2] & mask[3]) != 0;
#endif
}

inline Words widen(Halves h) {
#if defined(__AVX512F__)
  return (Words)_mm512_cvtepu16_epi32((__m256i)h);
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu16_epi32((__m128i)h);
#else
  return __builtin_convertvector(h, Words);
#endif
}

inline Halves narrow(Words w) {
#if defined(__AVX512F__)
  return (Halves)_mm512_cvtepi32_epi16((__m512i)w);
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32((__m256i)w, (__m256i)w);
  return (Halves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
  return __builtin_convertvector(w, Halves);
#endif
}

// ---- float32, bfloat16 and float16 in memory, float32 in registers; stores round to nearest even.

inline Floats load(const float* p) { return read<Floats>(p); }
inline void store(float* p, Floats x) { write(p, x); }

inline Floats load(const BFloat16* p) { return (Floats)(widen(read<Halves>(p)) << 16); }
inline Halves rounded(BFloat16, Floats x) {
  const Words bits = (Words)x;
  const Words nearest = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return narrow(x == x ? nearest : broadcast(0x7FC0u));
}

#if defined(__AVX512F__)
inline Floats load(const Float16* p) { return _mm512_cvtph_ps((__m256i)read<Halves>(p)); }
inline Halves rounded(Float16, Floats x) {
  return (Halves)_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(__F16C__)
inline Floats load(const Float16* p) { return _mm256_cvtph_ps((__m128i)read<Halves>(p)); }
inline Halves rounded(Float16, Floats x) {
  return (Halves)_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#else
inline Floats load(const Float16* p) {
  const Words half = widen(read<Halves>(p));
  const Words magnitude = half & 0x7FFFu;
  const Words normal = (magnitude << 13) + (112u << 23);
  const Words subnormal = (Words)(__builtin_convertvector((Ints)magnitude, Floats) * 0x1p-24f);
  const Words special = (magnitude << 13) | 0x7F800000u;
  const Words bits = magnitude < 0x0400u ? subnormal : (magnitude < 0x7C00u ? normal : special);
  return (Floats)(bits | ((half & 0x8000u) << 16));
}
inline Halves rounded(Float16, Floats x) {
  const Words sign = ((Words)x >> 16) & 0x8000u;
  const Words bits = (Words)x & 0x7FFFFFFFu;
  const Words normal = (bits + 0xFFFu + ((bits >> 13) & 1u) - (112u << 23)) >> 13;
  // Next to 0.5 the spacing of float32 is that of float16's subnormals: the sum rounds.
  const Words subnormal = (Words)((Floats)bits + 0.5f) - 0x3F000000u;
  const Words finite = bits < 0x38800000u ? subnormal : normal;
  const Words special = bits > 0x7F800000u ? broadcast(0x7E00u) : broadcast(0x7C00u);
  return narrow((bits >= 0x477FF000u ? special : finite) | sign);
}
#endif
inline void store(BFloat16* p, Floats x) { write(p, rounded(BFloat16{}, x)); }
inline void store(Float16* p, Floats x) { write(p, rounded(Float16{}, x)); }

// Writes past the caches, for what is not read soon, to a multiple of the vector's size. To be
// followed by end_stream() before other threads may read.
template <typename T>
inline void stream(T* p, Floats x) {
#if defined(__AVX512F__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)rounded(T{}, x));
#elif defined(__AVX2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)rounded(T{}, x));
#else
  store(p, x);
#endif
}
template <typename T>
inline bool can_stream(const T* p) {
  return reinterpret_cast<std::uintptr_t>(p) % sizeof(Halves) == 0;
}
inline void end_stream() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// The first n of a vector's lanes; the others read as 0 and are not written.
template <typename T>
inline Floats load(const T* p, Index n) {
  if (n >= kLanes) return load(p);
  T lanes[kLanes] = {};
  __builtin_memcpy(lanes, p, static_cast<std::size_t>(n) * sizeof(T));
  return load(lanes);
}
template <typename T>
inline void store(T* p, Floats x, Index n) {
  if (n >= kLanes) return store(p, x);
  T lanes[kLanes];
  store(lanes, x);
  __builtin_memcpy(p, lanes, static_cast<std::size_t>(n) * sizeof(T));
}

inline float sum(Floats x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// ---- Functions. All of them give NaN for NaN.

template <int N>
inline Floats polynomial(const float (&coefficients)[N], Floats x) {
  Floats value = broadcast(coefficients[0]);
  for (int i = 1; i < N; ++i) value = fma(value, x, broadcast(coefficients[i]));
  return value;
}

inline Floats abs(Floats x) { return (Floats)((Words)x & 0x7FFFFFFFu); }
inline Floats power_of_two(Words n) { return (Floats)((n + 127u) << 23); }

// e^x, subnormal results included. x = n ln 2 + r, |r| <= ln(2) / 2; the polynomial is the minimax
// one of (e^r - 1 - r) / r^2.
inline Floats exp(Floats x) {
  constexpr float series[] = {0.00138144777f, 0.00836878084f, 0.0416683927f, 0.166665196f,
                              0.49999994f};
  x = x < -104.0f ? broadcast(-104.0f) : x;
  x = x > 89.0f ? broadcast(89.0f) : x;
  // Adding 1.5 * 2^23 leaves the nearest integer in the lowest bits.
  const Floats magic = broadcast(0x1.8p23f);
  const Floats shifted = fma(x, broadcast(1.44269504f), magic);
  const Floats n = shifted - magic;
  Floats r = fma(n, broadcast(-0x1.62e4p-1f), x);  // ln 2 = 0x1.62e4p-1 + 1.42860677e-6
  r = fma(n, broadcast(-1.42860677e-6f), r);
  const Floats value = fma(polynomial(series, r) * r, r, r) + 1.0f;
  // In two steps: 2^n alone can be too large or too small for a float.
  const Words exponent = (Words)shifted - (Words)magic;
  const Words half = (Words)((Ints)exponent >> 1);
  return value * power_of_two(half) * power_of_two(exponent - half);
}

// ln(1 + t) as 2 atanh(t / (2 + t)), for t in [sqrt(1/2) - 1, 1]; the polynomial is the minimax one
// of (atanh(s) - s) / s^3 in s^2 up to 1/9.
inline Floats log1p_unit(Floats t) {
  constexpr float series[] = {0.121508352f, 0.107137389f, 0.143084496f, 0.199994385f, 0.333333373f};
  const Floats s = t / (t + 2.0f);
  const Floats square = s * s;
  return 2.0f * fma(polynomial(series, square) * square, s, s);
}

// ln x for normal, positive x and infinity.
inline Floats log(Floats x) {
  const Words bits = (Words)x - 0x3F3504F3u;  // the bits of sqrt(1/2)
  const Floats n = __builtin_convertvector((Ints)bits >> 23, Floats);
  const Floats m = (Floats)((bits & 0x007FFFFFu) + 0x3F3504F3u);
  const Floats value = log1p_unit(m - 1.0f);
  const Floats finite = fma(n, broadcast(0x1.62e4p-1f), fma(n, broadcast(1.42860677e-6f), value));
  return x < __builtin_inff() ? finite : x;
}

// ln(1 + e^x), and its derivative 1 / (1 + e^-x).
struct Softplus {
  Floats value, derivative;
};
inline Softplus softplus(Floats x) {
  const Floats e = exp(-abs(x));
  const Floats positive = x > 0.0f ? x : Floats{};
  return {positive + log1p_unit(e), (x > 0.0f ? broadcast(1.0f) : e) / (e + 1.0f)};
}

inline Floats sigmoid(Floats x) {
  const Floats e = exp(-abs(x));
  return (x > 0.0f ? broadcast(1.0f) : e) / (e + 1.0f);
}

// The polynomial is the minimax one of (tanh(x) - x) / x^3 in x^2 up to 0.625^2.
inline Floats tanh(Floats x) {
  constexpr float series[] = {-0.00570498547f, 0.0206390861f, -0.0537397154f, 0.133314416f,
                              -0.333332807f};
  const Floats square = x * x;
  const Floats near_zero = fma(polynomial(series, square) * square, x, x);
  const Floats e = exp(-2.0f * abs(x));
  const Floats far = (1.0f - e) / (1.0f + e);
  const Floats signed_far = (Floats)((Words)far | ((Words)x & 0x80000000u));
  return abs(x) < 0.625f ? near_zero : signed_far;
}

}  // namespace fastinfogan::FASTINFOGAN_ISA
