// Bindings of the random words, as NumPy arrays.
#include <nanobind/stl/array.h>

#include <memory>
#include <utility>

#include "arguments.h"
#include "instruction_sets.h"
#include "operations.h"

namespace fastinfogan {
namespace {

template <typename T>
using Array = nb::ndarray<nb::numpy, T>;
using Words = nb::ndarray<const std::uint32_t, nb::c_contig, nb::device::cpu>;

template <typename T>
Array<T> own(std::unique_ptr<T[]> values, std::size_t ndim, const std::size_t* shape) {
  T* data = values.get();
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  values.release();
  return Array<T>(data, ndim, shape, owner);
}

template <typename T, typename Function>
Array<T> map(const Words& drawn, Function function) {
  if (drawn.ndim() > 8) throw nb::value_error("drawn: at most 8 dimensions");
  std::size_t shape[8];
  for (std::size_t i = 0; i < drawn.ndim(); ++i) shape[i] = drawn.shape(i);
  std::unique_ptr<T[]> values(new T[drawn.size()]);
  without_gil([&] { function(drawn.data(), static_cast<Index>(drawn.size()), values.get()); });
  return own(std::move(values), drawn.ndim(), shape);
}

Array<std::uint32_t> run_words(nb::handle seed, nb::handle step, nb::handle stream, nb::handle rows,
                               nb::handle columns, nb::handle first_row) {
  const Arguments check("words");
  const std::uint64_t key = check.seed(seed);
  const std::uint32_t t = check.uint32(step, "step"), s = check.uint32(stream, "stream"),
                      first = check.uint32(first_row, "first_row");
  const Index r = check.integer(rows, "rows", 0, 0xFFFFFFFF);
  const Index c = check.integer(columns, "columns", 0, 0x7FFFFFFF);
  std::unique_ptr<std::uint32_t[]> values(
      new std::uint32_t[static_cast<std::size_t>(r) * static_cast<std::size_t>(c)]);
  without_gil([&] { words(key, t, s, first, r, c, values.get()); });
  const std::size_t shape[] = {static_cast<std::size_t>(r), static_cast<std::size_t>(c)};
  return own(std::move(values), 2, shape);
}

}  // namespace

void bind_random(nb::module_& m) {
  m.def(
      "encrypt",
      [](std::array<std::uint32_t, 4> counter, std::uint32_t k0, std::uint32_t k1, int rounds) {
        return encrypt(counter, k0, k1, rounds);
      },
      "counter"_a, "k0"_a, "k1"_a, "rounds"_a = 10);
  m.def("words", &run_words, "seed"_any, "step"_any, "stream"_any, "rows"_any, "columns"_any,
        "first_row"_a = 0);
  m.def("uniform", [](Words drawn) { return map<float>(drawn, kernels().uniform); }, "drawn"_a);
  m.def("normal", [](Words drawn) { return map<float>(drawn, kernels().normal); }, "drawn"_a);
  m.def(
      "below",
      [](Words drawn, std::uint32_t bound) {
        return map<std::int64_t>(drawn,
                                 [bound](const std::uint32_t* in, Index size, std::int64_t* out) {
                                   kernels().below(in, size, bound, out);
                                 });
      },
      "drawn"_a, "bound"_a);
}

}  // namespace fastinfogan
