// The mixture-of-experts ops, each callable alone on NumPy arrays. Shapes: csrc/model/ops.h.
#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/lora.h"
#include "bindings/run_op.h"

namespace gptoss::bindings {
namespace {

using Object = py::object;

ExpertLinear expert_linear(const Object& blocks, const Object& scales, const Object& bias) {
  Argument b("blocks", blocks), s("scales", scales), c("bias", bias);
  const int experts = b.size(0), out = b.size(1), width = b.size(2);
  // A shape with a 0 in it can claim any other length without holding memory.
  CHECK(experts >= 1 && experts <= 128, "blocks has ", experts, " experts, expected 1 to 128");
  CHECK(width >= 1 && width <= INT32_MAX / kMxfp4Block, "blocks has ", width, " blocks a row, expected 1 to ",
        INT32_MAX / kMxfp4Block);
  b.shape({experts, out, width, kMxfp4BlockBytes});
  s.shape({experts, out, width});
  c.shape({experts, out});
  return {b.read<uint8_t>(), s.read<uint8_t>(), c.read_bf16(), experts, out, width * kMxfp4Block};
}

}  // namespace

ExpertInput expert_rows(const BackendHandle& device, const char* name, const Object& rows_f32_b16, const Object& q8,
                        const Object& scale, int rows, int width, bool takes_float) {
  ExpertInput result{};
  const bool takes_bf16 = !device.backend->has_exact() && !takes_float;
  if (!rows_f32_b16.is_none()) {
    Argument a(name, rows_f32_b16);
    a.shape({rows, width});
    if (takes_bf16)
      result.b16 = reinterpret_cast<bf16*>(a.write<uint16_t>());
    else
      result.f32 = a.write<float>();
  }
  CHECK(q8.is_none() == scale.is_none(), name, "_q8 and ", name, "_scale: one is None, give both or neither");
  if (!q8.is_none()) {
    const std::string q8_name = std::string(name) + "_q8", scale_name = std::string(name) + "_scale";
    Argument a(q8_name.c_str(), q8), s(scale_name.c_str(), scale);
    a.shape({rows, width});
    s.shape({rows, width / kMxfp4Block});
    result.q8 = a.write<int8_t>();
    result.scale = s.write<float>();
  }
  CHECK(result.f32 || result.q8 || result.b16, name, " is None, expected float rows or q8 with scale");
  CHECK(!takes_bf16 || !result.q8, name, ": q8 is given, the ", device.device, " backend takes bf16 rows");
  return result;
}

namespace {

// The rows on the device, read or written there.
ExpertInput stage_in(Staging& stage, const ExpertInput& x, size_t rows, size_t width) {
  const auto in = [&]<typename T>(T* host, size_t count) { return const_cast<T*>(stage.in(host, count)); };
  return {in(x.f32, rows * width), in(x.q8, rows * width), in(x.scale, rows * width / kMxfp4Block),
          in(x.b16, rows * width)};
}
ExpertInput stage_out(Staging& stage, const ExpertInput& x, size_t rows, size_t width) {
  return {stage.out(x.f32, rows * width), stage.out(x.q8, rows * width), stage.out(x.scale, rows * width / kMxfp4Block),
          stage.out(x.b16, rows * width)};
}
ExpertGroups stage_in(Staging& stage, const ExpertGroups& g, int experts, int assignments) {
  return {const_cast<int32_t*>(stage.in(g.start, size_t(experts) + 1)),
          const_cast<int32_t*>(stage.in(g.order, assignments))};
}

// ExpertGroups in memory of our own.
struct Groups {
  std::vector<int32_t> start, order;
  ExpertGroups view() { return {start.data(), order.data()}; }
};

Groups checked_groups(const Object& start, const Object& order, int experts, int assignments) {
  Argument s("group_start", start), o("group_order", order);
  s.shape({experts + 1});
  o.shape({assignments});
  const Groups result{s.indices(0, assignments + 1), o.indices(0, assignments)};
  for (int e = 0; e < experts; ++e)
    CHECK(result.start[e] <= result.start[e + 1], "group_start[", e + 1, "] is ", result.start[e + 1],
          ", expected at least group_start[", e, "] = ", result.start[e]);
  CHECK(result.start[0] == 0 && result.start[experts] == assignments, "group_start runs from ", result.start[0], " to ",
        result.start[experts], ", expected 0 to ", assignments, ": every assignment has its expert");
  // Two experts that work on one assignment would write the same output row at once.
  std::vector<bool> seen(assignments);
  for (int a : result.order) {
    CHECK(!seen[a], "group_order names assignment ", a, " twice, expected each of ", assignments, " once");
    seen[a] = true;
  }
  return result;
}

void moe_gate(BackendHandle& device, const Object& residual, const Object& norm_weight, float eps,
              const Object& router_weight, const Object& router_bias, int chosen, const Object& normed,
              const Object& normed_q8, const Object& normed_scale, const Object& expert, const Object& routing_weight,
              const Object& group_start, const Object& group_order, const Object& slot, const Object& boost,
              const Object& rank, const Object& lora) {
  Argument x("residual", residual), norm("norm_weight", norm_weight), e("expert", expert),
      w("routing_weight", routing_weight);
  Argument start("group_start", group_start), order("group_order", group_order);
  const int rows = x.size(0), hidden = x.size(1);
  x.shape({rows, hidden});
  check_width("residual", hidden);
  norm.shape({hidden});
  const Linear router = linear("router_", router_weight, &router_bias, hidden);
  CHECK(router.out <= 128, "router_weight has ", router.out, " experts, expected at most 128");
  CHECK(chosen >= 1 && chosen <= router.out, "chosen is ", chosen, ", expected 1 to ", router.out, " experts");
  CHECK(!normed.is_none(), "normed is None, expected float rows");
  CHECK(rows <= INT32_MAX / chosen, "residual has ", rows, " rows, expected at most ", INT32_MAX / chosen);
  const int assignments = rows * chosen;
  e.shape({rows, chosen});
  w.shape({rows, chosen});
  start.shape({router.out + 1});
  order.shape({assignments});
  // Grouping indexes by what it wrote before, so it works on memory that nobody else can write.
  std::vector<int32_t> experts(assignments);
  Groups groups{std::vector<int32_t>(router.out + 1), std::vector<int32_t>(assignments)};
  const ExpertInput to = expert_rows(device, "normed", normed, normed_q8, normed_scale, rows, hidden);
  std::vector<int32_t> slots;
  std::vector<ExpertControl> controls;
  if (!slot.is_none()) {
    Argument s("slot", slot), b("boost", boost), k("rank", rank);
    const int count = b.size(0);
    b.shape({count, router.out});
    k.shape({count, router.out});
    s.shape({rows});
    slots = s.indices(-1, count);
    const std::vector<int32_t> ranks = k.indices(-1, 2);
    const float* amounts = b.read<float>();
    for (size_t i = 0; i < ranks.size(); ++i) controls.push_back({amounts[i], ranks[i]});
  }
  const LoraArgument adapters("lora", lora, rows, rows, 0, router.out);
  const auto* from = x.read<float>();
  const bf16* norm_data = norm.read_bf16();
  float* weights = w.write<float>();
  int32_t* const out[] = {e.write<int32_t>(), start.write<int32_t>(), order.write<int32_t>()};
  run_op(device, &Backend::moe_gate, [&](OpArguments& stage) {
    return MoeGateParams{
        stage.in(from, size_t(rows) * hidden),
        stage.in(norm_data, hidden),
        eps,
        stage.prepare(router, MatrixUse::rows),
        chosen,
        stage_out(stage, to, rows, hidden),
        stage.out(experts.data(), assignments),
        stage.out(weights, assignments),
        {stage.out(groups.start.data(), groups.start.size()), stage.out(groups.order.data(), groups.order.size())},
        rows,
        slot.is_none() ? nullptr : stage.in(slots.data(), slots.size()),
        slot.is_none() ? nullptr : stage.in(controls.data(), controls.size()),
        adapters.stage(stage)};
  });
  std::copy(experts.begin(), experts.end(), out[0]);
  std::copy(groups.start.begin(), groups.start.end(), out[1]);
  std::copy(groups.order.begin(), groups.order.end(), out[2]);
}

int assignments_of(const Object& group_order, int chosen) {
  const int assignments = Argument("group_order", group_order).size(0);
  CHECK(chosen >= 1 && assignments % chosen == 0, "group_order has ", assignments,
        " entries, expected a multiple of chosen = ", chosen);
  return assignments;
}

void moe_up(BackendHandle& device, const Object& input, const Object& input_q8, const Object& input_scale,
            const Object& group_start, const Object& group_order, const Object& blocks, const Object& scales,
            const Object& bias, float limit, int chosen, const Object& output, const Object& output_q8,
            const Object& output_scale, std::optional<int> decode_rows, const Object& lora) {
  const ExpertLinear layer = expert_linear(blocks, scales, bias);
  CHECK(layer.out > 0 && layer.out % (2 * kMxfp4Block) == 0, "blocks has ", layer.out,
        " rows, expected a positive multiple of 64");
  const int assignments = assignments_of(group_order, chosen);
  const int rows = assignments / chosen;
  Groups groups = checked_groups(group_start, group_order, layer.experts, assignments);
  const ExpertInput from = expert_rows(device, "input", input, input_q8, input_scale, rows, layer.in);
  const ExpertInput to = expert_rows(device, "output", output, output_q8, output_scale, assignments, layer.out / 2);
  const LoraArgument adapters("lora", lora, rows, assignments, layer.experts, layer.out);
  run_op(device, &Backend::moe_up, [&](OpArguments& stage) {
    return MoeUpParams{stage_in(stage, from, rows, layer.in),
                       stage_in(stage, groups.view(), layer.experts, assignments),
                       stage.prepare(layer),
                       limit,
                       chosen,
                       stage_out(stage, to, assignments, layer.out / 2),
                       rows,
                       checked_decode_rows(decode_rows, rows),
                       adapters.stage(stage)};
  });
}

void moe_down(BackendHandle& device, const Object& input, const Object& input_q8, const Object& input_scale,
              const Object& group_start, const Object& group_order, const Object& blocks, const Object& scales,
              const Object& bias, const Object& routing_weight, const Object& residual, std::optional<int> decode_rows,
              const Object& slot, const Object& steering, const Object& lora) {
  const ExpertLinear layer = expert_linear(blocks, scales, bias);
  CHECK(layer.out > 0 && layer.out % kMxfp4Block == 0, "blocks has ", layer.out,
        " rows, expected a positive multiple of 32");
  Argument weight("routing_weight", routing_weight), out("residual", residual);
  const int rows = weight.size(0), chosen = weight.size(1);
  weight.shape({rows, chosen});
  out.shape({rows, layer.out});
  const int assignments = assignments_of(group_order, chosen);
  CHECK(assignments == int64_t{rows} * chosen, "group_order has ", assignments, " entries, expected ",
        int64_t{rows} * chosen);
  Groups groups = checked_groups(group_start, group_order, layer.experts, assignments);
  const ExpertInput from = expert_rows(device, "input", input, input_q8, input_scale, assignments, layer.in);
  const auto* routing = weight.read<float>();
  std::vector<int32_t> slots;
  const float* vectors = nullptr;
  size_t vector_count = 0;
  if (!slot.is_none()) {
    Argument s("slot", slot), v("steering", steering);
    const int count = v.size(0);
    v.shape({count, layer.out});
    s.shape({rows});
    slots = s.indices(-1, count);
    vectors = v.read<float>();
    vector_count = count;
  }
  const LoraArgument adapters("lora", lora, rows, assignments, layer.experts, layer.out);
  float* to = out.write<float>();
  run_op(device, &Backend::moe_down, [&](OpArguments& stage) {
    return MoeDownParams{stage_in(stage, from, assignments, layer.in),
                         stage_in(stage, groups.view(), layer.experts, assignments),
                         stage.prepare(layer),
                         stage.in(routing, assignments),
                         chosen,
                         stage.in_out(to, size_t(rows) * layer.out),
                         rows,
                         checked_decode_rows(decode_rows, rows),
                         vectors ? stage.in(slots.data(), slots.size()) : nullptr,
                         stage.in(vectors, vector_count * layer.out),
                         adapters.stage(stage)};
  });
}

}  // namespace

void bind_expert_ops(BackendClass& backend) {
  backend
      .def("moe_gate", &moe_gate, py::arg("residual"), py::arg("norm_weight"), py::arg("eps"), py::arg("router_weight"),
           py::arg("router_bias"), py::arg("chosen"), py::arg("normed"), py::arg("normed_q8"), py::arg("normed_scale"),
           py::arg("expert"), py::arg("routing_weight"), py::arg("group_start"), py::arg("group_order"),
           py::arg("slot") = py::none(), py::arg("boost") = py::none(), py::arg("rank") = py::none(),
           py::arg("lora") = py::none())
      .def("moe_up", &moe_up, py::arg("input"), py::arg("input_q8"), py::arg("input_scale"), py::arg("group_start"),
           py::arg("group_order"), py::arg("blocks"), py::arg("scales"), py::arg("bias"), py::arg("limit"),
           py::arg("chosen"), py::arg("output"), py::arg("output_q8"), py::arg("output_scale"),
           py::arg("decode_rows") = py::none(), py::arg("lora") = py::none())
      .def("moe_down", &moe_down, py::arg("input"), py::arg("input_q8"), py::arg("input_scale"), py::arg("group_start"),
           py::arg("group_order"), py::arg("blocks"), py::arg("scales"), py::arg("bias"), py::arg("routing_weight"),
           py::arg("residual"), py::arg("decode_rows") = py::none(), py::arg("slot") = py::none(),
           py::arg("steering") = py::none(), py::arg("lora") = py::none());
}

}  // namespace gptoss::bindings
