// Adam over a few steps against its formula in double precision.
#include "check.h"

namespace fastinfogan::test {

TEST(adam_follows_its_formula) {
  const double lr = 2e-3, b1 = 0.5, b2 = 0.999, eps = 1e-8;
  for (Dtype gradients : kDtypes) {
    for (int copies = 0; copies < 3; ++copies) {  // none, bfloat16, float16
      for (double divisor : {1.0, 3.0}) {
        Random random(5);
        const Index sizes[] = {1, 15, 16, 17, 33000};
        std::vector<std::vector<float>> p, m, v;
        std::vector<std::vector<double>> expected_p, expected_m, expected_v;
        std::vector<Tensor> copy;
        for (Index size : sizes) {
          p.emplace_back(size);
          for (float& x : p.back()) x = random.normal();
          m.emplace_back(size);
          v.emplace_back(size);
          expected_p.emplace_back(p.back().begin(), p.back().end());
          expected_m.emplace_back(size);
          expected_v.emplace_back(size);
          copy.emplace_back(copies == 2 ? Dtype::float16 : Dtype::bfloat16, size);
        }
        for (int t = 1; t <= 3; ++t) {
          std::vector<Tensor> g;
          std::vector<AdamTask> tasks;
          for (std::size_t i = 0; i < p.size(); ++i) {
            std::vector<double> x;
            for (Index k = 0; k < sizes[i]; ++k)
              x.push_back(k % 7 == 0 ? 0 : random.normal(0, 0.1f));
            g.emplace_back(gradients, x);
          }
          for (std::size_t i = 0; i < p.size(); ++i) {
            tasks.push_back({sizes[i], p[i].data(), g[i].data(), gradients, m[i].data(),
                             v[i].data(), copies ? copy[i].data() : nullptr, copy[i].dtype()});
          }
          adam(tasks, {static_cast<float>(lr / (1 - std::pow(b1, t))), static_cast<float>(1 - b1),
                       static_cast<float>(1 - b2), static_cast<float>(b2),
                       static_cast<float>(1 / std::sqrt(1 - std::pow(b2, t))),
                       static_cast<float>(eps), static_cast<float>(divisor), false});
          const double step_size = lr / (1 - std::pow(b1, t)),
                       root = std::sqrt(1 - std::pow(b2, t));
          for (std::size_t i = 0; i < p.size(); ++i) {
            for (Index k = 0; k < sizes[i]; ++k) {
              const double x = g[i][k] / divisor;
              double &tm = expected_m[i][k], &tv = expected_v[i][k];
              tm = b1 * tm + (1 - b1) * x;
              tv = b2 * tv + (1 - b2) * x * x;
              expected_p[i][k] -= step_size * tm / (std::sqrt(tv) / root + eps);
            }
          }
        }
        const std::string name = "adam " + std::to_string(static_cast<int>(gradients)) +
                                 std::to_string(copies) + std::to_string(divisor);
        for (std::size_t i = 0; i < p.size(); ++i) {
          same_bits(name + std::to_string(i), p[i]);
          same_bits(name + std::to_string(i) + "v", v[i]);
          for (Index k = 0; k < sizes[i]; ++k) {
            CLOSE(p[i][k], expected_p[i][k], 1e-6);
            CLOSE(m[i][k], expected_m[i][k], 1e-7);
            CLOSE(v[i][k], expected_v[i][k], 1e-7);
            if (!copies) continue;
            const double expected = copies == 2 ? round_to(p[i][k], 11, -13, 65504)
                                                : round_to(p[i][k], 8, -125, INFINITY);
            CHECK(copy[i][k] == expected);
          }
        }
      }
    }
  }
}

// Large networks write their working copies past the caches, where they are aligned.
TEST(streamed_copies_are_the_same) {
  const Index size = (Index{1} << 20) + 5;
  std::vector<float> p(size, 1.0f), m(size), v(size), g(size);
  for (Index i = 0; i < size; ++i) g[i] = static_cast<float>(i % 1000) - 500;
  for (int offset : {0, 1}) {
    std::vector<BFloat16> copy(size + 16);
    adam({{size, p.data(), g.data(), Dtype::float32, m.data(), v.data(), copy.data() + offset,
           Dtype::bfloat16}},
         {0.1f, 0.5f, 0.001f, 0.999f, 1.0f, 1e-8f, 1.0f, false});
    for (Index i = 0; i < size; ++i) {
      const std::uint32_t bits = std::uint32_t{copy[i + offset].bits} << 16;
      float value;
      std::memcpy(&value, &bits, 4);
      if (value != round_to(p[i], 8, -125, INFINITY)) return fail(__FILE__, __LINE__, "a copy");
    }
  }
}

}  // namespace fastinfogan::test
