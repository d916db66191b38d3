// native_test [N]: all tests for every instruction set, with 1 and with 3 threads. The accuracy of
// exp, log and so on is measured on every Nth float32 (default 20011; 1 takes minutes).
#include <cstdio>
#include <cstdlib>
#include <map>

#include "check.h"
#include "parallel.h"

namespace fastinfogan {
namespace plain {
extern const test::Functions functions;
}
#if FASTINFOGAN_X86
namespace avx2 {
extern const test::Functions functions;
}
namespace avx512 {
extern const test::Functions functions;
}
#endif

namespace test {
namespace {

struct Named {
  const char* name;
  int most_threads;
  void (*run)();
};
std::vector<Named>& registered() {
  static std::vector<Named> tests;
  return tests;
}

std::string context;  // instruction set, threads and test
std::string instruction_set;
std::map<std::string, std::vector<char>> first_results;
int failures = 0;
std::uint64_t step = 20011;

}  // namespace

Registration::Registration(const char* name, int most_threads, void (*run)()) {
  registered().push_back({name, most_threads, run});
}

void fail(const char* file, int line, const std::string& what) {
  if (++failures <= 50) {
    std::printf("%s:%d: [%s] %s\n", file, line, context.c_str(), what.c_str());
  }
}

void close(const char* file, int line, const char* what, double actual, double expected,
           double tolerance) {
  if (std::isnan(actual) && std::isnan(expected)) return;
  if (actual == expected) return;
  if (std::abs(actual - expected) <= tolerance * std::max(1.0, std::abs(expected))) return;
  char text[200];
  std::snprintf(text, sizeof text, "%s is %.9g, not %.9g (tolerance %.2g)", what, actual, expected,
                tolerance);
  fail(file, line, text);
}

void same_bits(const std::string& name, const void* data, std::size_t bytes) {
  const auto* begin = static_cast<const char*>(data);
  const std::vector<char> now(begin, begin + bytes);
  const auto [entry, is_new] = first_results.try_emplace(instruction_set + " " + name, now);
  if (!is_new && entry->second != now) {
    fail(__FILE__, __LINE__, name + " changes with the number of threads");
  }
}

std::uint64_t float_step() { return step; }

const Functions& functions() {
#if FASTINFOGAN_X86
  if (instruction_set == "avx512") return avx512::functions;
  if (instruction_set == "avx2") return avx2::functions;
#endif
  return plain::functions;
}

double round_to(double x, int digits, int lowest, double largest) {
  if (std::isnan(x) || std::isinf(x) || x == 0) return x;
  int exponent;
  std::frexp(x, &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent, lowest) - digits);
  const double rounded = std::nearbyint(x / unit) * unit;
  return std::abs(rounded) > largest ? std::copysign(INFINITY, x) : rounded;
}

Tensor::Tensor(Dtype dtype, const std::vector<double>& values) : Tensor(dtype, values.size()) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto single = static_cast<float>(values[i]);
    std::uint32_t bits;
    std::memcpy(&bits, &single, 4);
    std::uint16_t half = 0;
    if (dtype == Dtype::float32) {
      std::memcpy(bytes_.data() + 4 * i, &single, 4);
      continue;
    }
    if (dtype == Dtype::bfloat16) {
      half = static_cast<std::uint16_t>(bits >> 16);  // truncated: any value of the type will do
    } else {
      const double r = round_to(single, 11, -13, 65504);
      const std::uint16_t sign = std::signbit(r) ? 0x8000 : 0;
      const double a = std::abs(r);
      if (std::isnan(r)) {
        half = 0x7E00;
      } else if (std::isinf(r)) {
        half = sign | 0x7C00;
      } else if (a < 0x1p-14) {
        half = static_cast<std::uint16_t>(sign | static_cast<int>(a * 0x1p24));
      } else {
        int exponent;
        const double fraction = std::frexp(a, &exponent);  // in [0.5, 1)
        half = static_cast<std::uint16_t>(sign | (exponent + 14) << 10 |
                                          (static_cast<int>(fraction * 2048) & 0x3FF));
      }
    }
    std::memcpy(bytes_.data() + 2 * i, &half, 2);
  }
}

double Tensor::operator[](std::size_t i) const {
  if (dtype_ == Dtype::float32) {
    float x;
    std::memcpy(&x, bytes_.data() + 4 * i, 4);
    return static_cast<double>(x);
  }
  std::uint16_t half;
  std::memcpy(&half, bytes_.data() + 2 * i, 2);
  const int fraction_bits = dtype_ == Dtype::bfloat16 ? 7 : 10;
  const int bias = dtype_ == Dtype::bfloat16 ? 127 : 15;
  const int fraction = half & ((1 << fraction_bits) - 1);
  const int exponent = (half & 0x7FFF) >> fraction_bits;
  double value = std::ldexp(fraction, 1 - bias - fraction_bits);
  if (exponent == 2 * bias + 1) {
    value = fraction ? NAN : INFINITY;
  } else if (exponent > 0) {
    value = std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
  }
  return half & 0x8000 ? -value : value;
}

double Tensor::tolerance() const {
  return dtype_ == Dtype::bfloat16 ? 0x1p-8 : dtype_ == Dtype::float16 ? 0x1p-11 : 2e-6;
}

}  // namespace test
}  // namespace fastinfogan

int main(int count, char** arguments) {
  using namespace fastinfogan;
  if (count > 1) test::step = std::strtoull(arguments[1], nullptr, 10);
  int runs = 0;
  for (const std::string& name : instruction_sets()) {
    test::instruction_set = name;
    use_instruction_set(name);
    for (int threads : {1, 3}) {
#ifdef _OPENMP
      omp_set_num_threads(threads);
#endif
      for (const auto& test : test::registered()) {
        if (threads > test.most_threads) continue;
        test::context = name + ", " + std::to_string(threads) + " threads, " + test.name;
        test.run();
        ++runs;
      }
    }
  }
  std::printf("%d runs, %d failures\n", runs, test::failures);
  return test::failures == 0 ? 0 : 1;
}
