// `lora` alone on NumPy arrays, and adapters that stay on the device. Shapes: csrc/model/ops.h.
#include "bindings/lora.h"

#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/bindings.h"
#include "bindings/model.h"
#include "bindings/run_op.h"

namespace gptoss::bindings {
namespace {

using Object = py::object;

// One of an adapter's two matrices: [rank, width], of experts [experts, rank, width]. Returns the rank.
int check_factor(const Argument& factor, const std::string& name, int experts, int width) {
  const int rank = factor.size(experts > 0 ? 1 : 0);
  CHECK(rank > 0, name, " has rank 0, expected at least 1");
  if (experts > 0)
    factor.shape({experts, rank, width});
  else
    factor.shape({rank, width});
  return rank;
}

constexpr const char* kNames[kAdapted] = {"q", "k", "v", "attention_out", "router", "gate_up", "down", "lm_head"};

Adapted adapted_named(const std::string& name) {
  const auto found = std::find(std::begin(kNames), std::end(kNames), name);
  CHECK(found != std::end(kNames), "'", name,
        "' cannot be adapted; expected q, k, v, attention_out, router, gate_up, down or lm_head");
  return static_cast<Adapted>(found - std::begin(kNames));
}

// A target of the op `lora`: (of each slot float32 a or None, product float32 [count, stride]).
struct Target {
  std::vector<const float*> a;
  std::vector<int> rank;
  float* product;
  int stride;
};

Target target_of(const std::string& name, const Object& given, int slots, int count, int experts, int width) {
  const auto [matrices, array] = given.cast<std::tuple<std::vector<Object>, Object>>();
  CHECK(static_cast<int>(matrices.size()) == slots, name, " has ", matrices.size(), " matrices, expected ", slots,
        ", one a slot");
  Argument product("product", array);
  Target target{{}, {}, nullptr, product.size(1)};
  product.shape({count, target.stride});
  target.product = product.write<float>();
  for (const Object& each : matrices) {
    if (each.is_none()) {
      target.a.push_back(nullptr), target.rank.push_back(0);
      continue;
    }
    const Argument a("a", each);
    target.rank.push_back(check_factor(a, name, experts, width));
    target.a.push_back(a.read<float>());
    CHECK(target.rank.back() <= target.stride, name, " has rank ", target.rank.back(), ", product has room for ",
          target.stride);
  }
  return target;
}

void lora(BackendHandle& device, const Object& input, const Object& input_q8, const Object& input_scale,
          const Object& norm_weight, float eps, const Object& slot, const std::vector<Object>& targets,
          const Object& rows_of, const Object& expert, int experts, bool by_assignment) {
  CHECK(!targets.empty() && targets.size() <= LoraParams::kMaxTargets, "there are ", targets.size(),
        " targets, expected 1 to ", LoraParams::kMaxTargets);
  const Argument s("slot", slot);
  const int rows = s.size(0);
  const std::vector<int32_t> slots = s.shape({rows}).indices(-1, INT32_MAX);
  int count = rows, chosen = 1;
  std::vector<int32_t> owners, choices;
  if (!rows_of.is_none()) {
    const Argument r("rows", rows_of);
    count = r.size(0);
    owners = r.shape({count}).indices(0, rows);
  }
  CHECK(experts >= 0 && experts <= 128, "experts is ", experts, ", expected 0 (none) to 128");
  CHECK((experts > 0) == !expert.is_none(), "experts is ", experts, ", expert is ",
        expert.is_none() ? "None" : "given");
  if (!expert.is_none()) {
    const Argument e("expert", expert);
    chosen = e.size(1);
    choices = e.shape({rows, chosen}).indices(0, experts);
    CHECK(owners.empty() && chosen > 0, "expert is given with rows, or for no expert; give one of the two");
    count = rows * chosen;
  }
  const Argument x(input.is_none() ? "input_q8" : "input", input.is_none() ? input_q8 : input);
  const int width = x.size(1), inputs = by_assignment ? count : rows;
  check_width("input", width);
  const ExpertInput from = expert_rows(device, "input", input, input_q8, input_scale, inputs, width,
                                       /*takes_float=*/!norm_weight.is_none() || !by_assignment);
  const bf16* norm = nullptr;
  if (!norm_weight.is_none()) {
    norm = Argument("norm_weight", norm_weight).shape({width}).read_bf16();
    CHECK(from.f32 != nullptr, "norm_weight is given, and the input is not float rows; pass those");
  }
  const auto most = slots.empty() ? -1 : *std::max_element(slots.begin(), slots.end());
  std::vector<Target> found;
  for (size_t i = 0; i < targets.size(); ++i) {
    const std::string name = "targets[" + std::to_string(i) + "]";
    const int of = static_cast<int>(py::len(targets[i].cast<py::tuple>()[0]));
    CHECK(most < of, "slot ", most, " is named, ", name, " has matrices of ", of, " slots");
    found.push_back(target_of(name, targets[i], of, count, experts, width));
  }
  run_op(device, &Backend::lora, [&](OpArguments& stage) {
    const auto in = [&]<typename T>(T* host, size_t size) { return const_cast<T*>(stage.in(host, size)); };
    const size_t size = size_t(inputs) * width;
    LoraParams params;
    params.input = {in(from.f32, size), in(from.q8, size), in(from.scale, size / kMxfp4Block), in(from.b16, size)};
    params.norm_weight = stage.in(norm, width);
    params.norm_eps = eps;
    params.width = width;
    params.count = count;
    params.rows = owners.empty() ? nullptr : stage.in(owners.data(), owners.size());
    params.chosen = chosen;
    params.expert = choices.empty() ? nullptr : stage.in(choices.data(), choices.size());
    params.by_assignment = by_assignment;
    const int32_t* of = stage.in(slots.data(), slots.size());
    for (size_t i = 0; i < found.size(); ++i) {
      const Target& target = found[i];
      std::vector<LoraMatrix> table;
      for (size_t m = 0; m < target.a.size(); ++m)
        table.push_back(
            {stage.in(target.a[m], size_t(std::max(experts, 1)) * target.rank[m] * width), nullptr, target.rank[m]});
      params.target[i] = {stage.keep(table), of, stage.in_out(target.product, size_t(count) * target.stride),
                          target.stride};
    }
    return params;
  });
}

}  // namespace

LoraArgument::LoraArgument(const std::string& name, const py::object& given, int rows, int products, int experts,
                           int out)
    : products_(products) {
  if (given.is_none()) return;
  const auto [slot, product, matrices] = given.cast<std::tuple<Object, Object, std::vector<Object>>>();
  const std::string slot_name = name + "'s slot", product_name = name + "'s product", b_name = name + "'s b";
  const Argument s(slot_name.c_str(), slot), p(product_name.c_str(), product);
  slots_ = s.shape({rows}).indices(-1, static_cast<int>(matrices.size()));
  stride_ = p.size(1);
  product_ = p.shape({products, stride_}).read<float>();
  for (const Object& each : matrices) {
    if (each.is_none()) {
      b_.emplace_back(nullptr, 0), rank_.push_back(0);
      continue;
    }
    const Argument b(b_name.c_str(), each);
    rank_.push_back(check_factor(b, b_name, experts, out));
    CHECK(rank_.back() <= stride_, b_name, " has rank ", rank_.back(), ", product has room for ", stride_);
    b_.emplace_back(b.read<float>(), size_t(std::max(experts, 1)) * rank_.back() * out);
  }
}

Lora LoraArgument::stage(Staging& stage) const {
  if (product_ == nullptr) return {};
  std::vector<LoraMatrix> table;
  for (size_t i = 0; i < b_.size(); ++i) table.push_back({nullptr, stage.in(b_[i].first, b_[i].second), rank_[i]});
  return {stage.keep(table), stage.in(slots_.data(), slots_.size()),
          const_cast<float*>(stage.in(product_, size_t(products_) * stride_)), stride_};
}

LoadedAdapter::LoadedAdapter(std::shared_ptr<BackendHandle> device, const Config& config,
                             const std::vector<Matrix>& matrices)
    : backend(std::move(device)), adapter(*backend->backend) {
  for (const auto& [name, layer, a_object, b_object] : matrices) {
    const Adapted matrix = adapted_named(name);
    const int first = matrix == Adapted::lm_head ? config.layers : 0;
    const int last = matrix == Adapted::lm_head ? config.layers : config.layers - 1;
    CHECK(layer >= first && layer <= last, name, ": layer is ", layer, ", expected ", first, " to ", last);
    const AdaptedShape shape = adapted_shape(config, matrix);
    const int experts = matrix == Adapted::gate_up || matrix == Adapted::down ? shape.experts : 0;
    const std::string a_name = name + "'s a", b_name = name + "'s b";
    const Argument a(a_name.c_str(), a_object), b(b_name.c_str(), b_object);
    const int rank = check_factor(a, a_name, experts, shape.in);
    CHECK(check_factor(b, b_name, experts, shape.out) == rank, a_name, " has rank ", rank, ", ", b_name,
          " has another; expected the same");
    const float *from_a = a.read<float>(), *from_b = b.read<float>();
    backend->run([&] { adapter.add(matrix, layer, shape, rank, from_a, from_b); });
  }
}

LoadedAdapter::~LoadedAdapter() {
  if (backend->lost_its_threads()) return;
  try {
    backend->run([&] {
      backend->backend->wait_for(backend->backend->mark());
      adapter.clear();
    });
  } catch (const Error&) {
    // The device is lost, and its memory with it.
  }
}

void bind_lora(py::module_& m, BackendClass& backend) {
  backend.def("lora", &lora, py::arg("input"), py::arg("input_q8"), py::arg("input_scale"), py::arg("norm_weight"),
              py::arg("eps"), py::arg("slot"), py::arg("targets"), py::arg("rows") = py::none(),
              py::arg("expert") = py::none(), py::arg("experts") = 0, py::arg("by_assignment") = false);
  py::class_<LoadedAdapter, std::shared_ptr<LoadedAdapter>>(m, "Adapter", "A LoRA adapter on a model's device.")
      .def(py::init([](Model& model, const std::vector<LoadedAdapter::Matrix>& matrices) {
             auto loaded = std::make_shared<LoadedAdapter>(model.backend, model.config, matrices);
             // Here, where one who lacks the memory is told, and not in a step of others.
             model.backend->run([&] { model.interventions.reserve(loaded->adapter.rank()); });
             return loaded;
           }),
           py::arg("model"), py::arg("matrices"),
           "matrices: (q, k, v, attention_out, router, gate_up, down or lm_head; layer, for lm_head the number of "
           "layers; float32 a [rank, in], of gate_up and down [experts, rank, in]; float32 b [rank, out], of those "
           "[experts, rank, out], times the scale).")
      .def_property_readonly("nbytes", [](const LoadedAdapter& each) { return each.adapter.bytes(); })
      .def_property_readonly("rank", [](const LoadedAdapter& each) { return each.adapter.rank(); });
}

}  // namespace gptoss::bindings
