// The bindings, one file for each part: a function checks its arguments, makes a task of them and
// gives it to an operation, without the GIL.
#pragma once

#include <nanobind/nanobind.h>

namespace fastinfogan {

namespace nb = nanobind;
using namespace nb::literals;

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
