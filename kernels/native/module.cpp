// fastinfogan._native: the CPU kernels in C++, on NumPy arrays.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "philox.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <typename T>
using Output = nb::ndarray<nb::numpy, T>;
using Words = nb::ndarray<const std::uint32_t, nb::c_contig, nb::device::cpu>;

template <typename T>
Output<T> own(std::unique_ptr<T[]> values, std::size_t ndim, const std::size_t* shape) {
  T* data = values.release();
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return Output<T>(data, ndim, shape, owner);
}

template <typename T, typename Function>
Output<T> map(const Words& drawn, Function&& function) {
  std::unique_ptr<T[]> values(new T[drawn.size()]);
  const std::uint32_t* in = drawn.data();
  for (std::size_t i = 0; i < drawn.size(); ++i) values[i] = function(in[i]);
  std::size_t shape[8];
  if (drawn.ndim() > 8) throw nb::value_error("at most 8 dimensions");
  for (std::size_t i = 0; i < drawn.ndim(); ++i) shape[i] = drawn.shape(i);
  return own(std::move(values), drawn.ndim(), shape);
}

}  // namespace

NB_MODULE(_native, m) {
  namespace philox = fastinfogan::philox;
  m.doc() = "C++ twins of the NumPy definitions in fastinfogan.philox, bit for bit.";

  m.def(
      "encrypt",
      [](philox::Block counter, std::uint32_t k0, std::uint32_t k1, int rounds) {
        return philox::encrypt(counter, k0, k1, rounds);
      },
      "counter"_a, "k0"_a, "k1"_a, "rounds"_a = 10);
  m.def(
      "words",
      [](std::uint64_t seed, std::uint32_t step, std::uint32_t stream, std::size_t rows,
         std::size_t columns, std::uint32_t first_row) {
        std::unique_ptr<std::uint32_t[]> values(new std::uint32_t[rows * columns]);
        philox::words(seed, step, stream, first_row, rows, columns, values.get());
        const std::size_t shape[] = {rows, columns};
        return own(std::move(values), 2, shape);
      },
      "seed"_a, "step"_a, "stream"_a, "rows"_a, "columns"_a, "first_row"_a = 0);
  m.def("uniform", [](Words drawn) { return map<float>(drawn, philox::uniform); }, "drawn"_a);
  m.def("normal", [](Words drawn) { return map<float>(drawn, philox::normal); }, "drawn"_a);
  m.def(
      "below",
      [](Words drawn, std::uint32_t bound) {
        return map<std::int64_t>(drawn, [bound](std::uint32_t w) { return philox::below(w, bound); });
      },
      "drawn"_a, "bound"_a);
}
