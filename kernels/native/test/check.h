// The test's harness. Each TEST runs for every instruction set with 1 and with 3 threads, and what
// it passes to same_bits() must not depend on the number of threads; TEST_ONE_THREAD is for
// functions without threads. Expected values are plain formulas in double precision, not shared
// with the kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "instruction_sets.h"
#include "operations.h"

namespace fastinfogan::test {

void fail(const char* file, int line, const std::string& what);
#define CHECK(condition) \
  if (!(condition)) ::fastinfogan::test::fail(__FILE__, __LINE__, #condition)

// |actual - expected| <= tolerance * max(1, |expected|), or both NaN.
void close(const char* file, int line, const char* what, double actual, double expected,
           double tolerance);
#define CLOSE(actual, expected, tolerance) \
  ::fastinfogan::test::close(__FILE__, __LINE__, #actual, actual, expected, tolerance)

void same_bits(const std::string& name, const void* data, std::size_t bytes);
template <typename T>
void same_bits(const std::string& name, const std::vector<T>& values) {
  same_bits(name, values.data(), values.size() * sizeof(T));
}

struct Registration {
  Registration(const char* name, int most_threads, void (*run)());
};
#define TEST_WITH(name, most_threads)                                                  \
  static void name();                                                                  \
  static ::fastinfogan::test::Registration register_##name(#name, most_threads, name); \
  static void name()
#define TEST(name) TEST_WITH(name, 3)
#define TEST_ONE_THREAD(name) TEST_WITH(name, 1)

// The accuracy test takes every float_step()-th float32: the program's argument.
std::uint64_t float_step();

// ---- Numbers

// Random numbers; normal: approximately, the sum of four uniform ones.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 2 + 1) {}
  float uniform() { return static_cast<float>(next() >> 8) * 0x1p-23f - 1.0f; }
  float normal(float mean = 0.0f, float deviation = 1.0f) {
    const float sum = uniform() + uniform() + uniform() + uniform();
    return mean + deviation * 0.866025f * sum;
  }
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(next() % n); }

 private:
  std::uint32_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>(state_ >> 32);
  }
  std::uint64_t state_;
};

// Rounds to nearest even in a format of `digits` significant bits, exponents of `lowest` or more,
// and the largest finite number.
double round_to(double x, int digits, int lowest, double largest);

// A tensor of one of the three types; its elements are read as double.
class Tensor {
 public:
  Tensor(Dtype dtype, std::size_t size) : dtype_(dtype), bytes_(size * size_of(dtype)) {}
  Tensor(Dtype dtype, const std::vector<double>& values);
  void* data() { return bytes_.data(); }
  Dtype dtype() const { return dtype_; }
  double operator[](std::size_t i) const;
  const std::vector<char>& bytes() const { return bytes_; }
  // Half a unit in the last place relative to a number of this type, or the error of float32.
  double tolerance() const;

 private:
  Dtype dtype_;
  std::vector<char> bytes_;
};
constexpr Dtype kDtypes[] = {Dtype::float32, Dtype::bfloat16, Dtype::float16};

// The functions of simd.h for one instruction set; per_instruction_set.cpp defines them.
using Function = void (*)(const float* in, Index size, float* out);
struct Functions {
  const char* name;
  Function exp, log, log1p_unit, softplus, softplus_derivative, sigmoid, tanh;
  void (*convert)(const void* in, Dtype from, Index size, void* out, Dtype to);
};
const Functions& functions();  // of the instruction set in use

}  // namespace fastinfogan::test
