// Bindings of batch norm and activations, on feature maps of (images, pixels, channels).
#include <limits>

#include "arguments.h"
#include "operations.h"

namespace fastinfogan {
namespace {

struct FeatureMap {
  Tensor tensor;
  Index groups, rows, channels;  // rows: of one statistics group
};

FeatureMap feature_map(const Arguments& check, nb::handle y, Index groups) {
  FeatureMap map{check.input(y, "y", kFloating, {kAny, kAny, kAny}), groups, 0, 0};
  const std::vector<Index>& shape = map.tensor.shape;
  if (map.tensor.size() == 0) check.value_error("y must not be empty");
  if (shape[0] % groups != 0) {
    check.value_error("y's " + std::to_string(shape[0]) + " images must be a multiple of the " +
                      std::to_string(groups) + " statistics groups");
  }
  map.rows = shape[0] / groups * shape[1];
  map.channels = shape[2];
  return map;
}

// The number of statistics groups: the first size of a tensor of (groups, channels).
Index groups_of(const Arguments& check, nb::handle object, const char* name) {
  const Index groups = check.input(object, name, kFloat32, {kAny, kAny}).shape[0];
  if (groups == 0) check.value_error(std::string(name) + " must have one statistics group or more");
  return groups;
}

void run_norm_statistics(nb::handle y, nb::handle groups, nb::handle mean, nb::handle rstd,
                         nb::handle variance, nb::handle eps) {
  const Arguments check("norm_statistics");
  const FeatureMap map =
      feature_map(check, y, check.integer(groups, "groups", 1, std::numeric_limits<Index>::max()));
  const auto per_channel = [&](nb::handle object, const char* name) {
    return check.output(object, name, kFloat32, {map.groups, map.channels}).as<float>();
  };
  const StatisticsTask task{map.groups,
                            map.rows,
                            map.channels,
                            map.tensor.data,
                            map.tensor.dtype(),
                            check.number(eps, "eps"),
                            per_channel(mean, "mean"),
                            per_channel(rstd, "rstd"),
                            per_channel(variance, "variance")};
  without_gil([&] { norm_statistics(task); });
}

void run_norm_apply(nb::handle y, nb::handle scale, nb::handle shift, nb::handle activation,
                    nb::handle slope, nb::handle out) {
  const Arguments check("norm_apply");
  if (scale.is_none() != shift.is_none())
    check.value_error("scale and shift must both be given or None");
  const FeatureMap map =
      feature_map(check, y, scale.is_none() ? 1 : groups_of(check, scale, "scale"));
  const std::vector<Index>& shape = map.tensor.shape;
  ApplyTask task{map.groups,
                 map.rows,
                 map.channels,
                 map.tensor.data,
                 check.output(out, "out", map.tensor.type, {shape[0], shape[1], shape[2]}).data,
                 map.tensor.dtype(),
                 nullptr,
                 nullptr,
                 check.activation(activation),
                 static_cast<float>(check.number(slope, "slope"))};
  Tensor a, b;
  if (!scale.is_none()) {
    a = check.input(scale, "scale", kFloat32, {map.groups, map.channels});
    b = check.input(shift, "shift", kFloat32, {map.groups, map.channels});
  }
  task.scale = a.as<float>();
  task.shift = b.as<float>();
  without_gil([&] { norm_apply(task); });
}

void run_norm_gradient(nb::handle dout, nb::handle y, nb::handle scale, nb::handle shift,
                       nb::handle mean, nb::handle rstd, nb::handle gamma, nb::handle activation,
                       nb::handle slope, nb::handle dy, nb::handle dgamma, nb::handle dbeta) {
  const Arguments check("norm_gradient");
  const FeatureMap map = feature_map(check, y, groups_of(check, mean, "mean"));
  const std::vector<Index>& shape = map.tensor.shape;
  const auto like_y = [&](nb::handle object, const char* name, bool written) {
    return written ? check.output(object, name, map.tensor.type, {shape[0], shape[1], shape[2]})
                   : check.input(object, name, map.tensor.type, {shape[0], shape[1], shape[2]});
  };
  const auto per_group = [&](nb::handle object, const char* name) {
    return check.input(object, name, kFloat32, {map.groups, map.channels});
  };
  const Tensor given = like_y(dout, "dout", false), a = per_group(scale, "scale"),
               b = per_group(shift, "shift"), mu = per_group(mean, "mean"),
               r = per_group(rstd, "rstd"),
               weight = check.input(gamma, "gamma", kFloat32, {map.channels});
  Tensor dy_tensor;
  if (!dy.is_none()) dy_tensor = like_y(dy, "dy", true);
  const NormGradientTask task{map.groups,
                              map.rows,
                              map.channels,
                              given.data,
                              map.tensor.data,
                              dy_tensor.data,
                              map.tensor.dtype(),
                              a.as<float>(),
                              b.as<float>(),
                              mu.as<float>(),
                              r.as<float>(),
                              weight.as<float>(),
                              check.activation(activation),
                              static_cast<float>(check.number(slope, "slope")),
                              check.output(dgamma, "dgamma", kFloat32, {map.channels}).as<float>(),
                              check.output(dbeta, "dbeta", kFloat32, {map.channels}).as<float>()};
  without_gil([&] { norm_gradient(task); });
}

void run_activation_gradient(nb::handle dout, nb::handle saved, nb::handle from_output,
                             nb::handle activation, nb::handle slope, nb::handle dz,
                             nb::handle dbias) {
  const Arguments check("activation_gradient");
  const Tensor given = check.input(dout, "dout", kFloating, {kAny, kAny, kAny});
  const Index n = given.shape[0], pixels = given.shape[1], channels = given.shape[2];
  if (given.size() == 0) check.value_error("dout must not be empty");
  const Tensor x = check.input(saved, "out_or_z", given.type, {n, pixels, channels});
  const Tensor out = check.output(dz, "dz", given.type, {n, pixels, channels});
  Tensor sums;
  if (!dbias.is_none()) sums = check.output(dbias, "dbias", kFloat32, {channels});
  const ActivationGradientTask task{n * pixels,
                                    channels,
                                    given.data,
                                    x.data,
                                    out.data,
                                    given.dtype(),
                                    check.flag(from_output, "from_output"),
                                    check.activation(activation),
                                    static_cast<float>(check.number(slope, "slope")),
                                    sums.as<float>()};
  if (task.from_output && task.activation == Activation::leaky_relu && !(task.slope >= 0)) {
    check.value_error("slope must be 0 or more where the output alone is known");
  }
  without_gil([&] { activation_gradient(task); });
}

}  // namespace

void bind_norm(nb::module_& m) {
  m.def("norm_statistics", &run_norm_statistics, "y"_any, "groups"_any, "mean"_any, "rstd"_any,
        "variance"_any, "eps"_any);
  m.def("norm_apply", &run_norm_apply, "y"_any, "scale"_any, "shift"_any, "activation"_any,
        "slope"_any, "out"_any);
  m.def("norm_gradient", &run_norm_gradient, "dout"_any, "y"_any, "scale"_any, "shift"_any,
        "mean"_any, "rstd"_any, "gamma"_any, "activation"_any, "slope"_any, "dy"_any, "dgamma"_any,
        "dbeta"_any);
  m.def("activation_gradient", &run_activation_gradient, "dout"_any, "out_or_z"_any,
        "from_output"_any, "activation"_any, "slope"_any, "dz"_any, "dbias"_any);
}

}  // namespace fastinfogan
