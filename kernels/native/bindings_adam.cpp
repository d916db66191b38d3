// Binding of Adam.
#include <cmath>

#include "arguments.h"
#include "operations.h"

namespace fastinfogan {
namespace {

void run_adam(nb::handle parameters, nb::handle gradients, nb::handle exp_avgs,
              nb::handle exp_avg_sqs, nb::handle working_copies, nb::handle lr, nb::handle beta1,
              nb::handle beta2, nb::handle eps, nb::handle step, nb::handle grad_scale) {
  const Arguments check("adam");
  const auto p = check.list(parameters, "parameters"), g = check.list(gradients, "gradients"),
             m = check.list(exp_avgs, "exp_avgs"), v = check.list(exp_avg_sqs, "exp_avg_sqs"),
             c = check.list(working_copies, "working_copies");
  if (g.size() != p.size() || m.size() != p.size() || v.size() != p.size() ||
      c.size() != p.size()) {
    check.value_error(
        "parameters, gradients, exp_avgs, exp_avg_sqs and working_copies must be of equal length");
  }
  const double b1 = check.number(beta1, "beta1"), b2 = check.number(beta2, "beta2"),
               t = check.number(step, "step"), divisor = check.number(grad_scale, "grad_scale");
  if (!(b1 >= 0 && b1 < 1)) check.value_error("beta1 must be from 0 to less than 1");
  if (!(b2 >= 0 && b2 < 1)) check.value_error("beta2 must be from 0 to less than 1");
  if (!(t >= 1)) check.value_error("step must be 1 or more");
  if (divisor == 0) check.value_error("grad_scale must not be 0");
  const AdamStep update{static_cast<float>(check.number(lr, "lr") / (1 - std::pow(b1, t))),
                        static_cast<float>(1 - b1),
                        static_cast<float>(1 - b2),
                        static_cast<float>(b2),
                        static_cast<float>(1 / std::sqrt(1 - std::pow(b2, t))),
                        static_cast<float>(check.number(eps, "eps")),
                        static_cast<float>(divisor),
                        false};
  std::vector<AdamTask> tasks;
  for (std::size_t i = 0; i < p.size(); ++i) {
    const std::string index = "[" + std::to_string(i) + "]";
    const Tensor parameter = check.dense(p[i], "parameters" + index, kFloat32, true);
    const auto like = [&](nb::handle object, const std::string& name, unsigned types,
                          bool written) {
      const Tensor other = check.dense(object, name + index, types, written);
      bool same = other.shape == parameter.shape;
      for (std::size_t d = 0; same && d < other.shape.size(); ++d) {
        same = other.shape[d] == 1 || other.strides[d] == parameter.strides[d];
      }
      if (!same) {
        check.value_error(name + index + " must have the shape and strides of parameters" + index);
      }
      return other;
    };
    const Tensor gradient = like(g[i], "gradients", kFloating, false);
    AdamTask task{parameter.size(),
                  parameter.as<float>(),
                  gradient.data,
                  gradient.dtype(),
                  like(m[i], "exp_avgs", kFloat32, true).as<float>(),
                  like(v[i], "exp_avg_sqs", kFloat32, true).as<float>(),
                  nullptr,
                  Dtype::float32};
    if (!c[i].is_none()) {
      const Tensor copy = like(c[i], "working_copies", kBFloat16 | kFloat16, true);
      task.working_copy = copy.data;
      task.copy_dtype = copy.dtype();
    }
    tasks.push_back(task);
  }
  without_gil([&] { adam(tasks, update); });
}

}  // namespace

void bind_adam(nb::module_& m) {
  m.def("adam", &run_adam, "parameters"_any, "gradients"_any, "exp_avgs"_any, "exp_avg_sqs"_any,
        "working_copies"_any, "lr"_any, "beta1"_any, "beta2"_any, "eps"_any, "step"_any,
        "grad_scale"_any);
}

}  // namespace fastinfogan
