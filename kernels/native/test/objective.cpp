// Q's log-likelihood and D's losses against their formulas in double precision.
#include "check.h"

namespace fastinfogan::test {
namespace {

struct Likelihood {
  std::vector<double> values;    // (rows, codes)
  std::vector<double> terms;     // (rows, codes): the largest term of the value
  std::vector<double> gradient;  // (rows, width)
};

Likelihood expected_likelihood(const LikelihoodTask& task, const Tensor& output) {
  const std::size_t values = task.rows * task.codes;
  Likelihood result{std::vector<double>(values), std::vector<double>(values, 1.0),
                    std::vector<double>(task.rows * task.width)};
  for (Index row = 0; row < task.rows; ++row) {
    const auto x = [&](Index c) { return output[row * task.width + c]; };
    for (Index i = 0; i < task.codes; ++i) {
      const Code& code = task.table[i];
      const double scale = task.scales[i];
      double* g = result.gradient.data() + row * task.width;
      double& value = result.values[row * task.codes + i];
      if (code.kind == Code::categorical) {
        double largest = -INFINITY, total = 0;
        for (int j = 0; j < code.width; ++j) largest = std::max(largest, x(code.column + j));
        for (int j = 0; j < code.width; ++j) total += std::exp(x(code.column + j) - largest);
        const std::int64_t k = task.classes[row * task.categorical + code.index];
        const bool bad = k < 0 || k >= code.width;
        value = bad ? NAN : x(code.column + k) - largest - std::log(total);
        for (int j = 0; j < code.width; ++j) {
          g[code.column + j] =
              bad ? NAN : scale * ((j == k) - std::exp(x(code.column + j) - largest) / total);
        }
      } else {
        const bool unit = code.kind == Code::unit_deviation;
        const double raw = unit ? 0 : x(code.width), low = task.bounds[2 * i],
                     high = task.bounds[2 * i + 1];
        const double s = unit ? 0 : std::fmax(low, std::fmin(high, raw));
        const double c = task.continuous_codes[row * task.continuous + code.index];
        const double d = (c - x(code.column)) / std::exp(s);
        value = -0.5 * std::log(2 * std::acos(-1.0)) - s - 0.5 * d * d;
        result.terms[row * task.codes + i] = 1 + std::abs(s) + 0.5 * d * d;
        g[code.column] = scale * d / std::exp(s);
        if (!unit) g[code.width] = raw < low || raw > high ? 0 : scale * (d * d - 1);
      }
    }
  }
  return result;
}

struct Case {
  Index rows;
  std::vector<int> classes;
  std::vector<std::int32_t> kinds;  // of the continuous codes
  double logits, deviations;        // how large
};

void check_likelihood(const Case& c, Dtype dtype, bool invalid) {
  Random random(17);
  std::vector<Code> table;
  std::vector<float> bounds, scales;
  std::int32_t width = 0;
  const auto continuous = static_cast<std::int32_t>(c.kinds.size());
  const auto categorical = static_cast<std::int32_t>(c.classes.size());
  for (std::int32_t i = 0; i < categorical; ++i) {
    table.push_back({Code::categorical, width, c.classes[i], i});
    width += c.classes[i];
  }
  for (std::int32_t i = 0; i < continuous; ++i) {
    table.push_back({c.kinds[i], width + i, width + continuous + i, i});
  }
  for (std::size_t i = 0; i < table.size(); ++i) {
    const bool clipped = i % 2 == 1;
    bounds.insert(bounds.end(), {clipped ? -1.5f : -INFINITY, clipped ? 0.5f : INFINITY});
    scales.push_back(0.25f + static_cast<float>(i));
  }
  std::vector<double> x;
  std::vector<std::int64_t> classes;
  std::vector<float> codes;
  for (Index row = 0; row < c.rows; ++row) {
    for (int i = 0; i < width; ++i) x.push_back(random.normal() * c.logits);
    for (int i = 0; i < continuous; ++i) x.push_back(random.uniform());
    for (int i = 0; i < continuous; ++i) x.push_back(random.uniform() * c.deviations);
    for (int count : c.classes) classes.push_back(random.below(count));
    for (int i = 0; i < continuous; ++i) codes.push_back(random.uniform());
  }
  width += 2 * continuous;
  std::int32_t bad_classes = 0, bad_rows = 0;
  if (invalid) {
    for (std::size_t i = 0; i < classes.size(); i += 3, ++bad_classes) {
      classes[i] = i % 2 ? -1 : std::int64_t{1} << 40;
    }
    for (Index row = 1; row < c.rows; row += 5, ++bad_rows) {
      x[row * width + row % width] = row % 2 ? NAN : INFINITY;
    }
  }
  Tensor output(dtype, x), gradient(dtype, x.size());
  const auto n = static_cast<Index>(table.size());
  std::vector<float> rows(c.rows * n), values(n);
  std::int32_t counters[2] = {5, 7};
  const LikelihoodTask task{c.rows,        width,         n,
                            output.data(), dtype,         classes.data(),
                            categorical,   codes.data(),  continuous,
                            table.data(),  bounds.data(), scales.data(),
                            rows.data(),   values.data(), gradient.data(),
                            counters};
  q_head_log_likelihood(task);
  const std::string name = "likelihood " + std::to_string(c.rows) + " " + std::to_string(width) +
                           " " + std::to_string(static_cast<int>(dtype)) + (invalid ? "i" : "");
  same_bits(name, gradient.bytes());
  same_bits(name + " values", values);
  CHECK(counters[0] == 5 + bad_classes && counters[1] == 7 + bad_rows);
  const Likelihood expected = expected_likelihood(task, output);
  for (Index row = 0; row < c.rows; ++row) {
    bool finite = true;
    for (Index i = 0; i < width; ++i) finite = finite && std::isfinite(output[row * width + i]);
    if (!finite) {
      // Not a number in any code that the bad element belongs to.
      for (Index i = 0; i < n; ++i) {
        const double value = expected.values[row * n + i];
        if (std::isnan(value)) CHECK(std::isnan(rows[row * n + i]));
      }
      continue;
    }
    for (Index i = 0; i < n; ++i) {
      CLOSE(rows[row * n + i], expected.values[row * n + i], 5e-7 * expected.terms[row * n + i]);
    }
    for (Index i = 0; i < width; ++i) {
      const double g = expected.gradient[row * width + i];
      if (dtype == Dtype::float16 && std::abs(g) > 6e4) continue;
      CLOSE(gradient[row * width + i], g, gradient.tolerance() + 1e-6);
    }
  }
  for (Index i = 0; i < n; ++i) {
    double mean = 0;
    for (Index row = 0; row < c.rows; ++row)
      mean += static_cast<double>(rows[row * n + i]) / c.rows;
    CLOSE(values[i], mean, 2e-7);
  }
}

}  // namespace

TEST(likelihood_of_any_mix_of_codes) {
  const Case cases[] = {
      {128, {10}, {1, 2}, 3.0, 2.0},
      {1, {2}, {1}, 1.0, 1.0},
      {17, {10, 10, 10}, {}, 1e4, 0.0},
      {67, {}, {1, 1, 2, 1, 1}, 0.0, 13.8},  // deviations from 1e-6 to 1e6
      {33, {1000}, {1}, 5.0, 1.0},
      {700, {3, 10, 5, 20, 7, 13}, {2, 1}, 2.0, 3.0},
  };
  for (const Case& c : cases) {
    for (Dtype dtype : kDtypes) {
      check_likelihood(c, dtype, false);
      check_likelihood(c, dtype, true);
    }
  }
}

TEST(adversarial_losses_of_any_logits) {
  for (Index group_rows : {1, 5, 128, 20000}) {
    Random random(3);
    const Index groups = 3, rows = groups * group_rows;
    std::vector<float> logits(rows), gradient(rows);
    for (Index i = 0; i < rows; ++i) {
      logits[i] = i % 11 == 0 ? 1e4f * random.uniform() : random.normal(0, 8);
    }
    const std::int32_t targets[] = {1, 0, 1};
    float losses[3];
    std::int32_t counters = 2;
    adversarial_losses(
        {rows, groups, logits.data(), gradient.data(), targets, 3.0f, losses, &counters});
    CHECK(counters == 2);
    same_bits("adversarial " + std::to_string(rows), losses, sizeof losses);
    for (Index group = 0; group < groups; ++group) {
      double loss = 0;
      for (Index i = group * group_rows; i < (group + 1) * group_rows; ++i) {
        const double sign = targets[group] ? -1 : 1, z = sign * static_cast<double>(logits[i]);
        loss += (std::fmax(z, 0) + std::log1p(std::exp(-std::fabs(z)))) / group_rows;
        CLOSE(gradient[i], sign * 3 / group_rows / (1 + std::exp(-z)), 2e-6);
      }
      CLOSE(losses[group], loss, 1e-6);
    }
  }
}

TEST(non_finite_logits_are_counted_and_propagate) {
  std::vector<float> logits(40, 1.0f), gradient(40);
  logits[3] = NAN;
  logits[22] = INFINITY;
  logits[39] = -INFINITY;
  const std::int32_t targets[] = {1, 0};
  float losses[2];
  std::int32_t counters = 0;
  adversarial_losses({40, 2, logits.data(), gradient.data(), targets, 1.0f, losses, &counters});
  CHECK(counters == 3);
  CHECK(std::isnan(losses[0]) && losses[1] == INFINITY && std::isnan(gradient[3]));
  CHECK(gradient[39] == 0 && std::isfinite(gradient[38]));
}

TEST(head_is_a_product_and_the_losses_of_it) {
  for (Index features : {1, 7, 64, 1024, 1031}) {
    for (Dtype dtype : kDtypes) {
      for (bool single : {false, true}) {
        Random random(9);
        const Index rows = 250;
        std::vector<double> x, w;
        for (Index i = 0; i < rows * features; ++i) x.push_back(random.normal());
        for (Index i = 0; i < features; ++i) w.push_back(random.normal(0, 0.1f));
        Tensor input(dtype, x), weight(single ? Dtype::float32 : dtype, w);
        std::vector<float> logits(rows), gradient(rows), alone(rows);
        const std::int32_t targets[] = {1, 0};
        float losses[2], losses_alone[2];
        std::int32_t counters = 0;
        d_head_objective(
            {rows, features, input.data(), dtype, weight.data(), weight.dtype(), 0.25f,
             logits.data()},
            {rows, 2, logits.data(), gradient.data(), targets, 1.0f, losses, &counters});
        same_bits("head " + std::to_string(features) + std::to_string(static_cast<int>(dtype)) +
                      (single ? "f" : ""),
                  logits);
        for (Index row = 0; row < rows; ++row) {
          double dot = 0.25, size = 1;
          for (Index k = 0; k < features; ++k) {
            dot += input[row * features + k] * weight[k];
            size += std::abs(input[row * features + k] * weight[k]);
          }
          CLOSE(logits[row] / size, dot / size, 1e-6);
        }
        adversarial_losses(
            {rows, 2, logits.data(), alone.data(), targets, 1.0f, losses_alone, &counters});
        CHECK(alone == gradient && losses[0] == losses_alone[0] && losses[1] == losses_alone[1]);
        CHECK(counters == 0);
      }
    }
  }
}

}  // namespace fastinfogan::test
