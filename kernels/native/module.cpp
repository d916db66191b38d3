// fastinfogan._native: the CPU kernels in C++.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "arguments.h"
#include "instruction_sets.h"
#include "parallel.h"

using namespace fastinfogan;

NB_MODULE(_native, m) {
  m.doc() = "The CPU kernels in C++; _native.pyi has types, shapes and meanings.";

  m.def("instruction_sets", &instruction_sets);
  m.def("instruction_set", [] { return std::string(kernels().name); });
  m.def(
      "use_instruction_set",
      [](const std::string& name) {
        if (!use_instruction_set(name)) {
          throw nb::value_error(
              ("use_instruction_set: this processor cannot run '" + name + "'").c_str());
        }
      },
      "name"_a);
  m.def("threads", &max_threads);

  bind_random(m);
  bind_objective(m);
  bind_adam(m);
  bind_norm(m);
}
