// Philox4x32-10 and the three kinds of numbers made of its words: fastinfogan_kernels/philox.py in
// C++, where the layout of key and counter is described. Both give the same bits: operations are in
// the order of the NumPy ones, and all C++ of this project is compiled without contraction of
// a * b + c.
#pragma once

#include "simd.h"

namespace fastinfogan::FASTINFOGAN_ISA::philox {

// The four words of one counter in each lane.
struct Block {
  Words word[4];
};

struct Product {
  Words high, low;
};

// The 64-bit product of every lane with b.
inline Product multiply(Words a, std::uint32_t b) {
#if defined(__AVX512F__)
  const __m512i factor = _mm512_set1_epi32(static_cast<int>(b));
  const __m512i even = _mm512_mul_epu32((__m512i)a, factor);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), factor);
  return {(Words)_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd),
          (Words)_mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32))};
#elif defined(__AVX2__)
  const __m256i factor = _mm256_set1_epi32(static_cast<int>(b));
  const __m256i even = _mm256_mul_epu32((__m256i)a, factor);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), factor);
  return {(Words)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA),
          (Words)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA)};
#else
  Product product;
  for (int i = 0; i < kLanes; ++i) {
    const std::uint64_t wide = std::uint64_t{a[i]} * b;
    product.high[i] = static_cast<std::uint32_t>(wide >> 32);
    product.low[i] = static_cast<std::uint32_t>(wide);
  }
  return product;
#endif
}

inline Block encrypt(Block c, std::uint32_t k0, std::uint32_t k1, int rounds = 10) {
  for (int round = 0; round < rounds; ++round) {
    const Product p0 = multiply(c.word[0], 0xD2511F53u);
    const Product p1 = multiply(c.word[2], 0xCD9E8D57u);
    c = {{p1.high ^ c.word[1] ^ k0, p1.low, p0.high ^ c.word[3] ^ k1, p0.low}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// Which of kLanes consecutive counters is in each lane, such that store_blocks() writes the words
// in the order of the counters.
struct CounterOfLane {
  std::uint32_t at[kLanes];
  constexpr CounterOfLane() : at() {
    for (int i = 0; i < kLanes; ++i) {
      at[i] = static_cast<std::uint32_t>(kLanes / 4 * (i % 4) + i / 4);
    }
  }
};
constexpr CounterOfLane counter_of_lane;

// Transposes (word, lane) within each 128 bits: 4 * kLanes words.
inline void store_blocks(const Block& block, std::uint32_t* out) {
#if defined(__AVX512F__)
  const __m512i a = (__m512i)block.word[0], b = (__m512i)block.word[1], c = (__m512i)block.word[2],
                d = (__m512i)block.word[3];
  const __m512i ab_low = _mm512_unpacklo_epi32(a, b), ab_high = _mm512_unpackhi_epi32(a, b);
  const __m512i cd_low = _mm512_unpacklo_epi32(c, d), cd_high = _mm512_unpackhi_epi32(c, d);
  write(out, _mm512_unpacklo_epi64(ab_low, cd_low));
  write(out + 16, _mm512_unpackhi_epi64(ab_low, cd_low));
  write(out + 32, _mm512_unpacklo_epi64(ab_high, cd_high));
  write(out + 48, _mm512_unpackhi_epi64(ab_high, cd_high));
#elif defined(__AVX2__)
  const __m256i a = (__m256i)block.word[0], b = (__m256i)block.word[1], c = (__m256i)block.word[2],
                d = (__m256i)block.word[3];
  const __m256i ab_low = _mm256_unpacklo_epi32(a, b), ab_high = _mm256_unpackhi_epi32(a, b);
  const __m256i cd_low = _mm256_unpacklo_epi32(c, d), cd_high = _mm256_unpackhi_epi32(c, d);
  write(out, _mm256_unpacklo_epi64(ab_low, cd_low));
  write(out + 8, _mm256_unpackhi_epi64(ab_low, cd_low));
  write(out + 16, _mm256_unpacklo_epi64(ab_high, cd_high));
  write(out + 24, _mm256_unpackhi_epi64(ab_high, cd_high));
#else
  for (int i = 0; i < kLanes; ++i) {
    for (int w = 0; w < 4; ++w) out[4 * i + w] = block.word[w][i];
  }
#endif
}

// The words of `blocks` counters per row, of rows first_row .. first_row + rows - 1.
// out: uint32 (rows, 4 * blocks) and space for 4 * kLanes more.
inline void fill(std::uint64_t seed, std::uint32_t step, std::uint32_t stream,
                 std::uint32_t first_row, Index rows, Index blocks, std::uint32_t* out) {
  const auto low = static_cast<std::uint32_t>(seed);
  const auto high = static_cast<std::uint32_t>(seed >> 32);
  const auto per_row = static_cast<std::uint32_t>(blocks);
  Words block = read<Words>(counter_of_lane.at);
  Words row = broadcast(first_row);
  for (Index done = 0; done < rows * blocks; done += kLanes) {
    for (Index wrapped = 0; wrapped < kLanes; wrapped += blocks) {
      const Words past = (Words)(block >= per_row);  // all ones where true
      block -= past & per_row;
      row -= past;
    }
    store_blocks(encrypt({{block, row, broadcast(step), broadcast(stream)}}, low, high),
                 out + 4 * done);
    block += static_cast<std::uint32_t>(kLanes);
  }
}

// U(-1, 1): the odd multiples of 2^-24.
inline Floats uniform(Words word) {
  const Ints odd = (Ints)((word >> 8) << 1) + (1 - (1 << 24));
  return __builtin_convertvector(odd, Floats) * 0x1p-24f;
}

// An integer in [0, bound).
inline std::uint32_t below(std::uint32_t word, std::uint32_t bound) {
  return static_cast<std::uint32_t>((std::uint64_t{word} * bound) >> 32);
}

namespace detail {

// Rounded after every operation, unlike fastinfogan's own polynomial() for the other functions.
template <int N>
inline Floats horner(const float (&coefficients)[N], Floats x) {
  Floats value = broadcast(coefficients[0]);
  for (int i = 1; i < N; ++i) value = value * x + coefficients[i];
  return value;
}

inline Floats log(Floats x) {
  constexpr float series[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                              -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                              2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  const Words bits = (Words)x;
  const Floats mantissa = (Floats)((bits & 0x007FFFFFu) | 0x3F000000u);
  const auto small = mantissa < 0.707106781f;
  const Ints power = (Ints)(bits >> 23) - 126;
  const Floats exponent = __builtin_convertvector(small ? power - 1 : power, Floats);
  const Floats m = (small ? mantissa + mantissa : mantissa) - 1.0f;
  const Floats square = m * m;
  Floats value = horner(series, m) * m * square;
  value = value + -2.12194440e-4f * exponent;
  value = value + -0.5f * square;
  return (m + value) + 0.693359375f * exponent;
}

}  // namespace detail

// N(0, 1) by inversion of uniform().
inline Floats normal(Words word) {
  constexpr float centre[] = {2.81022636e-08f,  3.43273939e-07f, -3.5233877e-06f,
                              -4.39150654e-06f, 0.00021858087f,  -0.00125372503f,
                              -0.00417768164f,  0.246640727f,    1.50140941f};
  constexpr float tail[] = {-0.000200214257f, 0.000100950558f, 0.00134934322f,
                            -0.00367342844f,  0.00573950773f,  -0.0076224613f,
                            0.00943887047f,   1.00167406f,     2.83297682f};
  const Floats x = uniform(word);
  const Floats w = -detail::log((1.0f - x) * (1.0f + x));
  Floats erfinv = detail::horner(centre, w - 2.5f);
  const auto central = w < 5.0f;
  if (!all(central)) {  // one lane in 300
    erfinv = central ? erfinv : detail::horner(tail, sqrt(w) - 3.0f);
  }
  return erfinv * x * 1.41421356f;
}

}  // namespace fastinfogan::FASTINFOGAN_ISA::philox
