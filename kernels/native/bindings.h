// The bindings, one file for each part: a function checks its arguments, makes a task of them and
// gives it to an operation, without the GIL.
#pragma once

#include <nanobind/nanobind.h>

namespace fastinfogan {

namespace nb = nanobind;
using namespace nb::literals;

// An argument that may be None as far as nanobind is concerned: Arguments complains better.
inline auto operator""_any(const char* name, std::size_t) { return nb::arg(name).none(); }

template <typename Operation>
void without_gil(Operation operation) {
  nb::gil_scoped_release released;
  operation();
}

void bind_random(nb::module_&);
void bind_objective(nb::module_&);
void bind_optimizer(nb::module_&);
void bind_norm(nb::module_&);

}  // namespace fastinfogan
