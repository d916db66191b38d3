// float32 functions within units in the last place, and rounding to bfloat16 and float16.
#include "check.h"

namespace fastinfogan::test {
namespace {

float from_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The distance of neighbouring float32 at `expected`.
double unit(double expected) {
  int exponent;
  std::frexp(expected, &exponent);
  return std::ldexp(1.0, std::max(exponent - 24, -149));
}

template <typename Truth>
void check_accuracy(const char* name, Function function, float low, float high, double units,
                    Truth truth) {
  std::vector<float> x, y;
  double worst = 0.0;
  float where = 0.0f;
  const auto flush = [&] {
    y.resize(x.size());
    function(x.data(), static_cast<Index>(x.size()), y.data());
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double expected = truth(static_cast<double>(x[i]));
      if (static_cast<double>(y[i]) == expected) continue;
      const double error = std::abs(static_cast<double>(y[i]) - expected) / unit(expected);
      if (!(error <= worst)) {
        worst = error;
        where = x[i];
      }
    }
    x.clear();
  };
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += float_step()) {
    const float candidate = from_bits(static_cast<std::uint32_t>(bits));
    if (!(candidate >= low && candidate <= high)) continue;
    x.push_back(candidate);
    if (x.size() == 65536) flush();
  }
  flush();
  if (!(worst <= units)) {
    fail(__FILE__, __LINE__,
         std::string(name) + " is off by " + std::to_string(worst) + " units at " +
             std::to_string(where));
  }
}

}  // namespace

TEST_ONE_THREAD(functions_are_accurate) {
  const Functions& f = functions();
  check_accuracy("exp", f.exp, -103.9f, 88.72f, 1.1, [](double x) { return std::exp(x); });
  check_accuracy("log", f.log, 1.1754944e-38f, 3.4e38f, 2.0, [](double x) { return std::log(x); });
  check_accuracy("log1p", f.log1p_unit, 0.0f, 1.0f, 2.0, [](double x) { return std::log1p(x); });
  const auto softplus = [](double x) {
    return std::fmax(x, 0) + std::log1p(std::exp(-std::fabs(x)));
  };
  const auto sigmoid = [](double x) {
    return x > 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
  };
  check_accuracy("softplus", f.softplus, -1e4f, 1e4f, 3.0, softplus);
  check_accuracy("softplus'", f.softplus_derivative, -1e4f, 1e4f, 3.0, sigmoid);
  check_accuracy("sigmoid", f.sigmoid, -1e4f, 1e4f, 3.0, sigmoid);
  check_accuracy("tanh", f.tanh, -1e4f, 1e4f, 2.0, [](double x) { return std::tanh(x); });
}

TEST_ONE_THREAD(functions_at_their_ends) {
  const Functions& f = functions();
  const float x[] = {NAN, INFINITY, -INFINITY, 0.0f, 1e30f, -1e30f};
  float y[6];
  f.exp(x, 6, y);
  CHECK(std::isnan(y[0]) && y[1] == INFINITY && y[2] == 0 && y[3] == 1 && y[4] == INFINITY &&
        y[5] == 0);
  f.log(x, 2, y);
  CHECK(std::isnan(y[0]) && y[1] == INFINITY);
  f.softplus(x, 6, y);
  CHECK(std::isnan(y[0]) && y[1] == INFINITY && y[2] == 0 && y[4] == 1e30f && y[5] == 0);
  f.sigmoid(x, 6, y);
  CHECK(std::isnan(y[0]) && y[1] == 1 && y[2] == 0 && y[3] == 0.5f && y[4] == 1 && y[5] == 0);
  f.tanh(x, 6, y);
  CHECK(std::isnan(y[0]) && y[1] == 1 && y[2] == -1 && y[3] == 0 && y[4] == 1 && y[5] == -1);
}

TEST_ONE_THREAD(low_precision_rounds_to_nearest_even) {
  for (Dtype dtype : {Dtype::bfloat16, Dtype::float16}) {
    const bool brain = dtype == Dtype::bfloat16;
    const int digits = brain ? 8 : 11, lowest = brain ? -125 : -13;
    const double largest = brain ? 0x1.FEp127 : 65504.0;
    std::vector<float> x;
    // Every number of the type, halfway to the next, and the floats next to that.
    for (std::uint32_t half = 0; half < 0x10000; half += 3) {
      Tensor one(dtype, 1);
      const auto bits = static_cast<std::uint16_t>(half);
      std::memcpy(one.data(), &bits, 2);
      const auto value = static_cast<float>(one[0]);
      float back = 0.0f;
      functions().convert(one.data(), dtype, 1, &back, Dtype::float32);
      CHECK(back == value || (std::isnan(back) && std::isnan(value)));
      if (!std::isfinite(value)) continue;
      const auto middle = static_cast<float>(
          value + 0.5 * (round_to(value, digits, lowest, INFINITY) == 0
                             ? std::ldexp(1.0, lowest - digits)
                             : std::ldexp(1.0, std::max(std::ilogb(value) + 1, lowest) - digits)));
      x.insert(x.end(), {value, middle, std::nextafter(middle, INFINITY),
                         std::nextafter(middle, -INFINITY), -middle});
    }
    x.insert(x.end(), {INFINITY, -INFINITY, NAN, 3.4e38f, -3.4e38f, 65519.0f, 65520.0f, 1e-45f});
    Tensor out(dtype, x.size());
    functions().convert(x.data(), Dtype::float32, static_cast<Index>(x.size()), out.data(), dtype);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double expected = round_to(static_cast<double>(x[i]), digits, lowest, largest);
      CHECK(out[i] == expected || (std::isnan(out[i]) && std::isnan(expected)));
    }
  }
}

}  // namespace fastinfogan::test
