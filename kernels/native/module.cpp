// fastinfogan._native: the CPU kernels in C++.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "instruction_sets.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace nb::literals;

NB_MODULE(_native, m) {
  m.doc() = "The CPU kernels in C++; _native.pyi tells types, shapes and meanings.";

  m.def("instruction_sets", &fastinfogan::instruction_sets);
  m.def("instruction_set", [] { return std::string(fastinfogan::leaves().name); });
  m.def(
      "use_instruction_set",
      [](const std::string& name) {
        if (!fastinfogan::use_instruction_set(name)) {
          throw nb::value_error(
              ("use_instruction_set: this processor cannot run '" + name + "'").c_str());
        }
      },
      "name"_a);
  m.def("threads", &fastinfogan::threads);

  fastinfogan::bind_random(m);
  fastinfogan::bind_objective(m);
  fastinfogan::bind_optimizer(m);
  fastinfogan::bind_norm(m);
}
