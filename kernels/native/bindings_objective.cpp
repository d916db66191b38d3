// Bindings of the codes and of the objective.
#include "arguments.h"
#include "operations.h"

namespace fastinfogan {
namespace {

void run_draw_codes(nb::handle seed, nb::handle step, nb::handle stream, nb::handle first_row,
                    nb::handle noise_size, nb::handle normal, nb::handle class_counts,
                    nb::handle generator_input, nb::handle classes, nb::handle continuous) {
  const Arguments check("draw_codes");
  std::vector<std::uint32_t> counts;
  Index width = 0;
  for (nb::handle count : check.list(class_counts, "class_counts")) {
    counts.push_back(static_cast<std::uint32_t>(check.integer(count, "class_counts", 1, 1 << 30)));
    width += counts.back();
  }
  const auto categorical = static_cast<Index>(counts.size());
  const Index noise = check.integer(noise_size, "noise_size", 0, 1 << 30);
  const Tensor codes = check.output(continuous, "continuous", kFloat32, {kAny, kAny});
  width += noise + codes.shape[1];
  const Tensor input =
      check.output(generator_input, "generator_input", kFloating, {codes.shape[0], width});
  const Tensor targets = check.output(classes, "classes", kInt64, {codes.shape[0], categorical});
  const CodesTask task{check.seed(seed),
                       check.uint32(step, "step"),
                       check.uint32(stream, "stream"),
                       check.uint32(first_row, "first_row"),
                       codes.shape[0],
                       noise,
                       check.flag(normal, "normal"),
                       categorical,
                       codes.shape[1],
                       counts.data(),
                       width,
                       input.data,
                       input.dtype(),
                       targets.as<std::int64_t>(),
                       codes.as<float>()};
  without_gil([&] { draw_codes(task); });
}

void run_likelihood(nb::handle output, nb::handle classes, nb::handle continuous, nb::handle table,
                    nb::handle bounds, nb::handle scales, nb::handle rows, nb::handle values,
                    nb::handle gradient, nb::handle counters) {
  const Arguments check("q_head_log_likelihood");
  const Tensor x = check.input(output, "output", kFloating, {kAny, kAny});
  const Index batch = x.shape[0], width = x.shape[1];
  if (batch == 0) check.value_error("output must have one row or more");
  const Tensor k = check.input(classes, "classes", kInt64, {batch, kAny});
  const Tensor c = check.input(continuous, "continuous", kFloat32, {batch, kAny});
  const Tensor codes = check.input(table, "table", kInt32, {kAny, 4});
  const Index n = codes.shape[0];
  const Tensor limits = check.input(bounds, "bounds", kFloat32, {n, 2});
  const Tensor factors = check.input(scales, "scales", kFloat32, {n});
  Tensor row_values;
  if (!rows.is_none()) row_values = check.output(rows, "rows", kFloat32, {batch, n});
  const Tensor means = check.output(values, "values", kFloat32, {n});
  const Tensor g = check.output(gradient, "gradient", x.type, {batch, width});
  const Tensor counts = check.output(counters, "counters", kInt32, {2});
  static_assert(sizeof(Code) == 16, "a row of the table");
  for (Index i = 0; i < n; ++i) {
    const Code& code = codes.as<Code>()[i];
    const bool categorical = code.kind == Code::categorical;
    const Index last = categorical ? Index{code.column} + code.width : width;
    const Index columns = categorical ? k.shape[1] : c.shape[1];
    if (code.kind < 0 || code.kind > 2 || code.column < 0 || code.column >= width ||
        code.width < (categorical ? 1 : 0) || code.width > width - (categorical ? 0 : 1) ||
        last > width || code.index < 0 || code.index >= columns) {
      check.value_error("table's row " + std::to_string(i) +
                        " does not fit output, classes and continuous");
    }
  }
  const LikelihoodTask task{batch,
                            width,
                            n,
                            x.data,
                            x.dtype(),
                            k.as<std::int64_t>(),
                            k.shape[1],
                            c.as<float>(),
                            c.shape[1],
                            codes.as<Code>(),
                            limits.as<float>(),
                            factors.as<float>(),
                            row_values.as<float>(),
                            means.as<float>(),
                            g.data,
                            counts.as<std::int32_t>()};
  without_gil([&] { q_head_log_likelihood(task); });
}

void run_d_head(nb::handle features, nb::handle weight, nb::handle bias, nb::handle targets,
                nb::handle scale, nb::handle logits, nb::handle losses, nb::handle gradient,
                nb::handle counters) {
  const Arguments check("d_head_objective");
  const Tensor x = check.input(features, "features", kFloating, {kAny, kAny});
  const Index rows = x.shape[0];
  const Tensor w = check.input(weight, "weight", x.type | kFloat32, {x.shape[1]});
  const float b = bias.is_none() ? 0.0f : *check.input(bias, "bias", kFloat32, {1}).as<float>();
  const Tensor out = check.output(logits, "logits", kFloat32, {rows});
  const Tensor target = check.input(targets, "targets", kInt32, {kAny});
  const Index groups = target.shape[0];
  if (groups == 0 || rows == 0 || rows % groups != 0) {
    check.value_error("targets must have a length that divides the " + std::to_string(rows) +
                      " rows");
  }
  for (Index i = 0; i < groups; ++i) {
    if ((target.as<std::int32_t>()[i] & ~1) != 0) check.value_error("targets must be 0 or 1");
  }
  const HeadTask head{rows, x.shape[1], x.data, x.dtype(), w.data, w.dtype(), b, out.as<float>()};
  const AdversarialTask adversarial{
      rows,
      groups,
      out.as<float>(),
      check.output(gradient, "gradient", kFloat32, {rows}).as<float>(),
      target.as<std::int32_t>(),
      static_cast<float>(check.number(scale, "scale")),
      check.output(losses, "losses", kFloat32, {groups}).as<float>(),
      check.output(counters, "counters", kInt32, {1}).as<std::int32_t>()};
  without_gil([&] { d_head_objective(head, adversarial); });
}

}  // namespace

void bind_objective(nb::module_& m) {
  m.def("draw_codes", &run_draw_codes, "seed"_any, "step"_any, "stream"_any, "first_row"_any,
        "noise_size"_any, "normal"_any, "class_counts"_any, "generator_input"_any, "classes"_any,
        "continuous"_any);
  m.def("q_head_log_likelihood", &run_likelihood, "output"_any, "classes"_any, "continuous"_any,
        "table"_any, "bounds"_any, "scales"_any, "rows"_any, "values"_any, "gradient"_any,
        "counters"_any);
  m.def("d_head_objective", &run_d_head, "features"_any, "weight"_any, "bias"_any, "targets"_any,
        "scale"_any, "logits"_any, "losses"_any, "gradient"_any, "counters"_any);
}

}  // namespace fastinfogan
