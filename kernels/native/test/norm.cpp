// Batch norm and activations against their formulas in double precision.
#include <algorithm>

#include "check.h"

namespace fastinfogan::test {
namespace {

double act(Activation activation, double slope, double z) {
  switch (activation) {
    case Activation::leaky_relu: return z > 0 ? z : slope * z;
    case Activation::sigmoid: return 1 / (1 + std::exp(-z));
    case Activation::tanh: return std::tanh(z);
    default: return z;
  }
}
double derivative(Activation activation, double slope, double z) {
  const double out = act(activation, slope, z);
  switch (activation) {
    case Activation::leaky_relu: return z > 0 ? 1 : slope;
    case Activation::sigmoid: return out * (1 - out);
    case Activation::tanh: return 1 - out * out;
    default: return 1;
  }
}

struct Shape {
  Index groups, rows, channels;
};
constexpr Shape kShapes[] = {{1, 1, 1},   {2, 130, 3},  {1, 257, 16},
                             {3, 9, 100}, {2, 260, 70}, {1, 40, 850}};
struct Kind {
  Activation activation;
  float slope;
};
constexpr Kind kKinds[] = {{Activation::none, 0},
                           {Activation::leaky_relu, 0},
                           {Activation::leaky_relu, 0.1f},
                           {Activation::sigmoid, 0},
                           {Activation::tanh, 0}};

std::vector<double> numbers(unsigned seed, Index size, float mean, float deviation) {
  Random random(seed);
  std::vector<double> x(size);
  for (double& value : x) value = static_cast<double>(random.normal(mean, deviation));
  return x;
}

std::string name_of(const char* what, const Shape& s, Dtype dtype, int kind) {
  return std::string(what) + std::to_string(s.rows) + " " + std::to_string(s.channels) + " " +
         std::to_string(static_cast<int>(dtype)) + std::to_string(kind);
}

struct Statistics {
  std::vector<float> mean, rstd, variance;
};
Statistics statistics(const Shape& s, Tensor& y) {
  const std::size_t n = s.groups * s.channels;
  Statistics result{std::vector<float>(n), std::vector<float>(n), std::vector<float>(n)};
  norm_statistics({s.groups, s.rows, s.channels, y.data(), y.dtype(), 1e-5, result.mean.data(),
                   result.rstd.data(), result.variance.data()});
  return result;
}

}  // namespace

TEST(statistics_of_a_mean_300_times_the_deviation) {
  for (const Shape& s : kShapes) {
    for (Dtype dtype : kDtypes) {
      // In low precision, numbers 300 deviations from 0 are all but equal.
      const float mean = dtype == Dtype::float32 ? 300.0f : 3.0f;
      Tensor y(dtype, numbers(1, s.groups * s.rows * s.channels, mean, 1.0f));
      const Statistics actual = statistics(s, y);
      same_bits(name_of("mean", s, dtype, 0), actual.mean);
      same_bits(name_of("variance", s, dtype, 0), actual.variance);
      for (Index group = 0; group < s.groups; ++group) {
        for (Index c = 0; c < s.channels; ++c) {
          const auto at = [&](Index row) { return y[(group * s.rows + row) * s.channels + c]; };
          double average = 0, variance = 0;
          for (Index row = 0; row < s.rows; ++row) average += at(row) / s.rows;
          for (Index row = 0; row < s.rows; ++row) {
            variance += (at(row) - average) * (at(row) - average) / s.rows;
          }
          const Index place = group * s.channels + c;
          CLOSE(actual.mean[place], average, 1e-6);
          CLOSE(actual.variance[place] / (variance + 1e-12), variance / (variance + 1e-12), 1e-5);
          CLOSE(actual.rstd[place] * std::sqrt(variance + 1e-5), 1.0, 1e-5);
        }
      }
    }
  }
}

TEST(norm_forward_and_backward) {
  for (const Shape& s : kShapes) {
    for (Dtype dtype : kDtypes) {
      for (int k = 0; k < 5; ++k) {
        const Kind kind = kKinds[k];
        const Index size = s.groups * s.rows * s.channels, plane = s.groups * s.channels;
        Tensor y(dtype, numbers(1, size, 0.5f, 1.0f)), dout(dtype, numbers(2, size, 0.1f, 1.0f));
        Tensor out(dtype, size), dy(dtype, size);
        const Statistics stats = statistics(s, y);
        std::vector<float> gamma(s.channels), scale(plane), shift(plane), dgamma(s.channels),
            dbeta(s.channels), dgamma_alone(s.channels), dbeta_alone(s.channels);
        for (Index c = 0; c < s.channels; ++c) gamma[c] = 0.5f + static_cast<float>(c % 5);
        for (Index i = 0; i < plane; ++i) {
          scale[i] = gamma[i % s.channels] * stats.rstd[i];
          shift[i] = 0.1f - stats.mean[i] * scale[i];
        }
        norm_apply({s.groups, s.rows, s.channels, y.data(), out.data(), dtype, scale.data(),
                    shift.data(), kind.activation, kind.slope});
        NormGradientTask task{
            s.groups,          s.rows,       s.channels,      dout.data(),  y.data(),
            dy.data(),         dtype,        scale.data(),    shift.data(), stats.mean.data(),
            stats.rstd.data(), gamma.data(), kind.activation, kind.slope,   dgamma.data(),
            dbeta.data()};
        norm_gradient(task);
        task.dy = nullptr;
        task.dgamma = dgamma_alone.data();
        task.dbeta = dbeta_alone.data();
        norm_gradient(task);
        CHECK(dgamma == dgamma_alone && dbeta == dbeta_alone);
        same_bits(name_of("dy", s, dtype, k), dy.bytes());
        same_bits(name_of("dgamma", s, dtype, k), dgamma);

        std::vector<double> expected_dgamma(s.channels), expected_dbeta(s.channels);
        for (Index i = 0; i < plane; ++i) {
          const Index group = i / s.channels, c = i % s.channels;
          const double a = scale[i], b = shift[i], mean = stats.mean[i], rstd = stats.rstd[i];
          double sum_g = 0, sum_gy = 0;
          const auto at = [&](Index row) { return (group * s.rows + row) * s.channels + c; };
          std::vector<double> g(s.rows);
          for (Index row = 0; row < s.rows; ++row) {
            const float z = std::fma(scale[i], static_cast<float>(y[at(row)]), shift[i]);
            g[row] =
                dout[at(row)] * derivative(kind.activation, kind.slope, static_cast<double>(z));
            sum_g += g[row];
            sum_gy += g[row] * (y[at(row)] - mean);
          }
          expected_dbeta[c] += sum_g;
          expected_dgamma[c] += sum_gy * rstd;
          for (Index row = 0; row < s.rows; ++row) {
            const double x = y[at(row)];
            CLOSE(out[at(row)], act(kind.activation, kind.slope, a * x + b),
                  out.tolerance() + 2e-6);
            const double expected =
                gamma[c] * rstd *
                (g[row] - sum_g / s.rows - (x - mean) * rstd * rstd * sum_gy / s.rows);
            CLOSE(dy[at(row)], expected, dy.tolerance() + 2e-5 * gamma[c] * rstd);
          }
        }
        for (Index c = 0; c < s.channels; ++c) {
          CLOSE(dbeta[c], expected_dbeta[c], 1e-5 * std::sqrt(s.rows * s.groups));
          CLOSE(dgamma[c], expected_dgamma[c], 1e-5 * std::sqrt(s.rows * s.groups));
        }
      }
    }
  }
}

TEST(activations_alone) {
  for (const Shape& s : {Shape{1, 1, 1}, {1, 50000, 1}, {1, 333, 3}, {1, 100, 37}, {1, 9, 600}}) {
    for (Dtype dtype : kDtypes) {
      for (int k = 0; k < 5; ++k) {
        const Kind kind = kKinds[k];
        const Index size = s.rows * s.channels;
        Tensor z(dtype, numbers(3, size, 0, 2)), dout(dtype, numbers(4, size, 0, 1));
        Tensor out(dtype, size), dz(dtype, size), dz_alone(dtype, size), dz_out(dtype, size);
        std::vector<float> dbias(s.channels);
        norm_apply({1, s.rows, s.channels, z.data(), out.data(), dtype, nullptr, nullptr,
                    kind.activation, kind.slope});
        const auto gradient = [&](Tensor& saved, bool from_output, Tensor& result, float* sums) {
          activation_gradient({s.rows, s.channels, dout.data(), saved.data(), result.data(), dtype,
                               from_output, kind.activation, kind.slope, sums});
        };
        gradient(z, false, dz, dbias.data());
        gradient(z, false, dz_alone, nullptr);
        gradient(out, true, dz_out, nullptr);
        CHECK(dz.bytes() == dz_alone.bytes());
        same_bits(name_of("dbias", s, dtype, k), dbias);
        std::vector<double> expected_bias(s.channels);
        for (Index i = 0; i < size; ++i) {
          const double expected = dout[i] * derivative(kind.activation, kind.slope, z[i]);
          CLOSE(out[i], act(kind.activation, kind.slope, z[i]), out.tolerance());
          CLOSE(dz[i], expected, dz.tolerance());
          CLOSE(dz_out[i], expected, 8 * dz.tolerance());  // the output was rounded
          expected_bias[i % s.channels] += expected;
        }
        for (Index c = 0; c < s.channels; ++c) {
          CLOSE(dbias[c], expected_bias[c], 1e-6 * std::sqrt(s.rows));
        }
        gradient(z, false, dout, nullptr);  // in place
        CHECK(dout.bytes() == dz.bytes());
        norm_apply({1, s.rows, s.channels, z.data(), z.data(), dtype, nullptr, nullptr,
                    kind.activation, kind.slope});
        CHECK(z.bytes() == out.bytes());
      }
    }
  }
}

}  // namespace fastinfogan::test
