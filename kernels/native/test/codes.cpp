// Noise and codes against Philox and the distributions' formulas written out.
#include "check.h"

namespace fastinfogan::test {
namespace {

// Philox4x32-10 as in Salmon et al. 2011, one counter at a time.
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> c, std::uint32_t k0,
                                    std::uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

std::uint32_t word(std::uint64_t seed, std::uint32_t step, std::uint32_t stream, std::uint32_t row,
                   std::uint32_t column) {
  return philox({column / 4, row, step, stream}, static_cast<std::uint32_t>(seed),
                static_cast<std::uint32_t>(seed >> 32))[column % 4];
}

double uniform(std::uint32_t word) { return (2.0 * (word >> 8) + 1 - 0x1p24) * 0x1p-24; }

// Solves erf(x / sqrt 2) = u by Newton's iteration.
double normal(double u) {
  double x = 0;
  for (double step = 1; std::abs(step) > 1e-9;) {
    step = (std::erf(x / std::sqrt(2.0)) - u) /
           (std::sqrt(2 / std::acos(-1.0)) * std::exp(-x * x / 2));
    step = std::fmax(-0.5, std::fmin(0.5, step));
    x -= step;
  }
  return x;
}

}  // namespace

TEST(codes_are_laid_out_as_drawn) {
  struct Spec {
    Index noise;
    std::vector<std::uint32_t> counts;
    Index continuous;
  };
  const Spec specs[] = {{62, {10}, 2}, {0, {2, 1000, 3}, 0}, {128, {}, 5},
                        {1, {7}, 33},  {0, {}, 1},           {2000, {10, 10}, 1}};
  for (const Spec& spec : specs) {
    for (Index rows : {1, 21}) {
      for (Dtype dtype : kDtypes) {
        const auto categorical = static_cast<Index>(spec.counts.size());
        Index width = spec.noise + spec.continuous;
        for (std::uint32_t count : spec.counts) width += count;
        for (bool gaussian : {false, true}) {
          Tensor input(dtype, rows * width);
          std::vector<std::int64_t> classes(rows * categorical);
          std::vector<float> continuous(rows * spec.continuous);
          draw_codes({7, 3, 1, 40, rows, spec.noise, gaussian, categorical, spec.continuous,
                      spec.counts.data(), width, input.data(), dtype, classes.data(),
                      continuous.data()});
          same_bits("codes " + std::to_string(width) + " " + std::to_string(rows) +
                        std::to_string(static_cast<int>(dtype)) + (gaussian ? "n" : "u"),
                    input.bytes());
          for (Index row = 0; row < rows; ++row) {
            const auto at = [&](Index column) {
              return word(7, 3, 1, 40 + static_cast<std::uint32_t>(row),
                          static_cast<std::uint32_t>(column));
            };
            Index place = row * width;
            for (Index i = 0; i < spec.noise; ++i, ++place) {
              const double u = uniform(at(i));
              CLOSE(input[place], gaussian ? normal(u) : u, input.tolerance());
            }
            for (Index k = 0; k < categorical; ++k) {
              const auto chosen =
                  static_cast<Index>((std::uint64_t{at(spec.noise + k)} * spec.counts[k]) >> 32);
              CHECK(classes[row * categorical + k] == chosen);
              for (Index j = 0; j < spec.counts[k]; ++j, ++place) {
                CHECK(input[place] == (j == chosen ? 1.0 : 0.0));
              }
            }
            for (Index i = 0; i < spec.continuous; ++i, ++place) {
              const double u = uniform(at(spec.noise + categorical + i));
              CHECK(continuous[row * spec.continuous + i] == u);
              CLOSE(input[place], u, input.tolerance());
            }
          }
        }
      }
    }
  }
}

}  // namespace fastinfogan::test
