// Philox4x32-10 and the three shapes its words take: the C++ twin of fastinfogan/philox.py, where the
// layout of key and counter is told. Both agree bit for bit, so every operation here stands in the
// order of the NumPy one and this code is compiled without fused multiply-adds.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fastinfogan::philox {

using Block = std::array<std::uint32_t, 4>;

inline Block encrypt(Block c, std::uint32_t k0, std::uint32_t k1, int rounds = 10) {
  for (int round = 0; round < rounds; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// out: uint32 (rows, columns), row-major.
inline void words(std::uint64_t seed, std::uint32_t step, std::uint32_t stream,
                  std::uint32_t first_row, std::size_t rows, std::size_t columns,
                  std::uint32_t* out) {
  const auto low = static_cast<std::uint32_t>(seed);
  const auto high = static_cast<std::uint32_t>(seed >> 32);
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t column = 0; column < columns; column += 4) {
      const Block block = encrypt({static_cast<std::uint32_t>(column / 4),
                                   static_cast<std::uint32_t>(first_row + row), step, stream},
                                  low, high);
      const std::size_t left = columns - column;
      std::memcpy(out + row * columns + column, block.data(),
                  sizeof(std::uint32_t) * (left < 4 ? left : 4));
    }
  }
}

// U(-1, 1): the odd multiples of 2^-24.
inline float uniform(std::uint32_t word) {
  const auto odd = static_cast<std::int32_t>((word >> 8) << 1) + (1 - (1 << 24));
  return static_cast<float>(odd) * 0x1p-24f;
}

// An integer in [0, bound).
inline std::int64_t below(std::uint32_t word, std::uint32_t bound) {
  return static_cast<std::int64_t>((std::uint64_t{word} * bound) >> 32);
}

namespace detail {

template <std::size_t N>
inline float polynomial(const float (&coefficients)[N], float x) {
  float value = coefficients[0];
  for (std::size_t i = 1; i < N; ++i) value = value * x + coefficients[i];
  return value;
}

inline float log(float x) {
  constexpr float series[] = {7.0376836292e-2f, -1.1514610310e-1f, 1.1676998740e-1f,
                              -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                              2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f};
  std::int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const std::int32_t mantissa_bits = (bits & 0x007FFFFF) | 0x3F000000;
  float mantissa;
  std::memcpy(&mantissa, &mantissa_bits, sizeof mantissa);
  const bool small = mantissa < 0.707106781f;
  const auto exponent = static_cast<float>((bits >> 23) - 126 - (small ? 1 : 0));
  const float m = (small ? mantissa + mantissa : mantissa) - 1.0f;
  const float square = m * m;
  float value = polynomial(series, m) * m * square;
  value = value + -2.12194440e-4f * exponent;
  value = value + -0.5f * square;
  return (m + value) + 0.693359375f * exponent;
}

}  // namespace detail

// N(0, 1) by inversion of uniform().
inline float normal(std::uint32_t word) {
  constexpr float centre[] = {2.81022636e-08f, 3.43273939e-07f, -3.5233877e-06f,
                              -4.39150654e-06f, 0.00021858087f, -0.00125372503f,
                              -0.00417768164f, 0.246640727f, 1.50140941f};
  constexpr float tail[] = {-0.000200214257f, 0.000100950558f, 0.00134934322f,
                            -0.00367342844f, 0.00573950773f, -0.0076224613f,
                            0.00943887047f, 1.00167406f, 2.83297682f};
  const float x = uniform(word);
  const float w = -detail::log((1.0f - x) * (1.0f + x));
  const float erfinv =
      (w < 5.0f ? detail::polynomial(centre, w - 2.5f) : detail::polynomial(tail, std::sqrt(w) - 3.0f)) *
      x;
  return erfinv * 1.41421356f;
}

}  // namespace fastinfogan::philox
