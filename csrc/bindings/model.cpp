// Model: weights in place, activations of its own. KvCache: pages of one model. Logits: of one step.
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/model.h"
#include "cuda/workspace.h"

namespace gptoss::bindings {
namespace {

template <typename T>
T field(const py::dict& config, const char* name) {
  CHECK(config.contains(name), "config has no ", name, "; expected the fields of ModelConfig");
  try {
    return config[name].cast<T>();
  } catch (const py::cast_error&) {
    CHECK(false, "config's ", name, " is ", std::string(py::str(config[name])), ", expected a number that fits");
  }
}

Config config_of(const py::dict& d) {
  const int head_dim = field<int>(d, "head_dim");
  CHECK(head_dim == kHeadDim, "head_dim is ", head_dim, ", expected ", kHeadDim);
  Config config{
      .hidden = field<int>(d, "hidden_size"),
      .inner = field<int>(d, "intermediate_size"),
      .layers = field<int>(d, "num_hidden_layers"),
      .heads = field<int>(d, "num_attention_heads"),
      .kv_heads = field<int>(d, "num_key_value_heads"),
      .experts = field<int>(d, "num_local_experts"),
      .chosen = field<int>(d, "num_experts_per_tok"),
      .vocab = field<int>(d, "vocab_size"),
      .max_positions = field<int>(d, "max_position_embeddings"),
      .original_positions = field<int>(d, "initial_context_length"),
      .rope_theta = field<float>(d, "rope_theta"),
      .rope_factor = field<float>(d, "rope_factor"),
      .rope_beta_fast = field<float>(d, "rope_beta_fast"),
      .rope_beta_slow = field<float>(d, "rope_beta_slow"),
      .norm_eps = field<float>(d, "rms_norm_eps"),
      .swiglu_limit = field<float>(d, "swiglu_limit"),
      .windows = field<std::vector<int>>(d, "windows"),
  };
  config.validate();
  return config;
}

Numerics numerics_of(const std::string& name) {
  CHECK(name == "exact" || name == "fast", "numerics is '", name, "', expected 'exact' or 'fast'");
  return name == "exact" ? Numerics::exact : Numerics::fast;
}

TensorMap tensors_of(const py::dict& arrays) {
  TensorMap tensors;
  for (const auto& [key, value] : arrays) {
    const std::string name = py::str(key);
    const py::object object = py::reinterpret_borrow<py::object>(value);
    const Argument argument(name.c_str(), object);
    CHECK(argument.is<uint16_t>() || argument.is<uint8_t>(), "tensor ", name, " has dtype ", argument.dtype(),
          ", expected uint16 (bf16 bits) or uint8 (MXFP4); pass the arrays of open_checkpoint");
    Tensor tensor;
    for (int axis = 0; axis < argument.dims(); ++axis) tensor.shape.push_back(argument.size(axis));
    if (argument.is<uint16_t>()) {
      tensor.kind = Tensor::Kind::bf16;
      tensor.data = argument.read<uint16_t>();
    } else {
      tensor.kind = Tensor::Kind::u8;
      tensor.data = argument.read<uint8_t>();
    }
    tensors.emplace(name, std::move(tensor));
  }
  return tensors;
}

Weights bind(Backend& backend, const Config& config, const py::dict& arrays) {
  const TensorMap tensors = tensors_of(arrays);
  py::gil_scoped_release release;  // it reads through the scales, and a device's copy takes a while
  return Weights::bind(config, tensors).prepare(backend, config);
}

}  // namespace

Model::Model(std::shared_ptr<BackendHandle> device, const py::dict& fields, const py::dict& arrays,
             const std::string& numerics_name, int max_rows, int slots)
    : backend(std::move(device)),
      tensors(py::reinterpret_steal<py::dict>(PyDict_Copy(arrays.ptr()))),
      config(config_of(fields)),
      numerics(numerics_of(numerics_name)),
      weights(bind(*backend->backend, config, tensors)),
      places(gptoss::places(config, weights)),
      activations(*backend->backend, config, numerics, max_rows),
      arguments(*backend->backend),
      interventions(*backend->backend, config, slots, max_rows) {}

Cache::Cache(std::shared_ptr<Model> owner, int page_size, int full_pages, int window_pages)
    : model(std::move(owner)),
      pages(*model->backend->backend, model->config, model->numerics == Numerics::exact ? DType::f32 : DType::bf16,
            page_size, full_pages, window_pages) {}

void Model::reserve(int sequences, int positions, int logit_rows) {
  Backend& device = *backend->backend;
  CHECK(sequences > 0 && positions > 0 && logit_rows > 0, "the limits are ", sequences, " sequences, ", positions,
        " positions and ", logit_rows, " rows of logits, expected at least 1 of each");
  if (device.is_host()) return;
  backend->run([&] {
    device.reserve(config, {activations.max_rows(), sequences, positions, logit_rows});
    logits = {};
    logits = DeviceBuffer<float>(device, size_t(logit_rows) * config.vocab);
  });
}

namespace {

using LayerArguments = std::tuple<int, py::object, py::object, py::object>;

void set_intervention(Model& model, int slot, const std::vector<LayerArguments>& layers,
                      const std::shared_ptr<LoadedAdapter>& adapter) {
  const Config& config = model.config;
  CHECK(slot >= 0 && slot < model.interventions.slots(), "slot is ", slot, ", expected 0 to ",
        model.interventions.slots() - 1);
  std::vector<LayerIntervention> found;
  std::vector<std::vector<ExpertControl>> controls;
  controls.reserve(layers.size());
  for (const auto& [layer, steering, boost, rank] : layers) {
    CHECK(layer >= 0 && layer < config.layers, "layer is ", layer, ", expected 0 to ", config.layers - 1);
    CHECK(boost.is_none() == rank.is_none(), "boost and rank: one is None, give both or neither");
    LayerIntervention each{layer, nullptr, nullptr};
    if (!steering.is_none()) each.steering = Argument("steering", steering).shape({config.hidden}).read<float>();
    if (!boost.is_none()) {
      const float* amount = Argument("boost", boost).shape({config.experts}).read<float>();
      const std::vector<int32_t> ranks = Argument("rank", rank).shape({config.experts}).indices(-1, 2);
      std::vector<ExpertControl>& of = controls.emplace_back(config.experts);
      for (int e = 0; e < config.experts; ++e) of[e] = {amount[e], ranks[e]};
      each.controls = of.data();
    }
    found.push_back(each);
  }
  CHECK(!adapter || adapter->backend == model.backend,
        "the adapter was loaded on another backend; load it on this one");
  model.backend->run([&] { model.interventions.set(slot, found, adapter ? &adapter->adapter : nullptr); });
  if (adapter)
    model.adapters[slot] = adapter;
  else
    model.adapters.erase(slot);
}

void check_pages(const Cache& cache, int layer, const std::vector<int>& pages) {
  const Config& config = cache.model->config;
  CHECK(layer >= 0 && layer < config.layers, "layer is ", layer, ", expected 0 to ", config.layers - 1);
  const int pool = config.windows[layer] == 0 ? cache.pages.full_pages() : cache.pages.window_pages();
  for (int page : pages) CHECK(page >= 0 && page < pool, "page is ", page, ", expected 0 to ", pool - 1);
}

}  // namespace

void bind_model(py::module_& m) {
  ModelClass bound(m, "Model", "A model on a backend; the arrays are used in place, and written by write_rows.");
  bound
      .def(py::init([](std::shared_ptr<BackendHandle> backend, const py::dict& config, const py::dict& arrays,
                       const std::string& numerics, int max_rows, std::optional<int> slots) {
             CHECK(slots.value_or(1) > 0, "slots is ", *slots, ", expected at least 1");
             return std::make_shared<Model>(std::move(backend), config, arrays, numerics, max_rows,
                                            slots.value_or(max_rows));
           }),
           py::arg("backend"), py::arg("config"), py::arg("arrays"), py::arg("numerics"), py::arg("max_rows"),
           py::arg("slots") = py::none(),
           "slots: how many different interventions a step may have; None: as many as rows.")
      .def_property_readonly("activation_bytes", [](const Model& model) { return model.activations.bytes(); })
      .def(
          "reserve",
          [](Model& model, int sequences, int positions, int logits) { model.reserve(sequences, positions, logits); },
          py::arg("sequences"), py::arg("positions"), py::arg("logits"),
          "Take what the largest steps need on a device of its own memory: of so many sequences, positions and rows of "
          "logits.")
      .def_property_readonly("backend", [](const Model& model) { return model.backend; })
      .def_property_readonly("max_rows", [](const Model& model) { return model.activations.max_rows(); })
      .def("forward", &run_forward, py::arg("cache"), py::arg("token_ids"), py::arg("row_start"), py::arg("context"),
           py::arg("full_pages"), py::arg("window_pages"), py::arg("logit_rows"), py::arg("decoding") = -1,
           py::arg("slots") = py::none(), py::arg("watch") = py::none(), py::arg("screen") = false,
           "One step of a ragged batch; returns Logits [len(logit_rows), vocab]. A token id of -1 - i stands for token "
           "i "
           "of the backend's latest draw. The first `decoding` sequences, one row each, are decoded (-1: as many as "
           "have one row); the others are prompts. slots: of each row, -1 or what set_intervention has filled. watch: "
           "layers whose residual stream, router's choice and queries are wanted, three lists; see Logits.watched. "
           "screen: logits may be upper bounds until they are read; sampling makes exact what it depends on.")
      .def(
          "set_intervention",
          [](Model& held, int slot, const std::vector<std::tuple<int, py::object, py::object, py::object>>& layers,
             const std::shared_ptr<LoadedAdapter>& adapter) { set_intervention(held, slot, layers, adapter); },
          py::arg("slot"), py::arg("layers"), py::arg("adapter") = py::none(),
          "What rows with this slot undergo from now on: (layer, float32 [hidden] added to the residual stream after "
          "it "
          "or None, float32 [experts] added to router logits, int32 [experts] ranks 1, 0 or -1; both or None). "
          "adapter: an "
          "Adapter of this model, or None.");
  bind_numbers(m, bound);
  py::class_<Logits>(m, "Logits", "float32 [rows, vocab] of one step, on the device until the model's next step.")
      .def("__len__", [](const Logits& logits) { return logits.count; })
      .def(
          "numpy", [](const Logits& logits) { return to_numpy(logits, 0, logits.count); }, "A copy, as NumPy array.")
      .def_readonly(
          "watched", &Logits::watched,
          "(\"residual\", \"expert\", \"routing_weight\" or \"queries\", layer) -> array [rows of the step, ...].")
      .def("rows", &to_numpy, py::arg("first"), py::arg("count"), "A copy of some rows, as NumPy array.");
  m.def(
      "gpu_bytes",
      [](const py::dict& fields, int rows, int sequences, int positions, int logit_rows) {
        const Config config = config_of(fields);
        const workspace::Sizes sizes = workspace::sizes(config, {rows, sequences, positions, logit_rows});
        return py::make_tuple(workspace::weight_bytes(config), sizes.partial + sizes.counters + sizes.staging);
      },
      py::arg("config"), py::arg("rows"), py::arg("sequences"), py::arg("positions"), py::arg("logits"),
      "Bytes that a GPU needs for the weights, and for work within these limits, beside activations and cache.");
  py::class_<Cache, std::shared_ptr<Cache>>(m, "KvCache", "Two pools of KV pages for one model.")
      .def(py::init<std::shared_ptr<Model>, int, int, int>(), py::arg("model"), py::arg("page_size"),
           py::arg("full_pages"), py::arg("window_pages"))
      .def_property_readonly("page_size", [](const Cache& cache) { return cache.pages.page_size(); })
      .def_property_readonly("full_pages", [](const Cache& cache) { return cache.pages.full_pages(); })
      .def_property_readonly("window_pages", [](const Cache& cache) { return cache.pages.window_pages(); })
      .def_property_readonly("nbytes", [](const Cache& cache) { return cache.pages.bytes(); })
      .def(
          "read_keys",
          [](const Cache& cache, int layer, const std::vector<int>& pages) {
            check_pages(cache, layer, pages);
            const Config& config = cache.model->config;
            const KvCache& kv = cache.pages;
            py::array_t<float> keys({static_cast<int>(pages.size()), config.kv_heads, kv.page_size(), kHeadDim});
            float* to = keys.mutable_data();
            const size_t size = size_t{1} * config.kv_heads * kv.page_size() * kHeadDim;
            BackendHandle& device = *cache.model->backend;
            device.run([&] {
              for (size_t i = 0; i < pages.size(); ++i)
                kv.read_keys(*device.backend, device.backend->keys_are_transposed(), layer, pages[i], to + i * size);
            });
            return keys;
          },
          py::arg("layer"), py::arg("pages"), "float32 [pages, kv_heads, page_size, 64]: the keys in some pages.")
      .def(
          "fill",
          [](Cache& cache, int layer, const std::vector<int>& pages, uint64_t seed) {
            check_pages(cache, layer, pages);
            BackendHandle& device = *cache.model->backend;
            device.run([&] {
              for (int page : pages) cache.pages.fill(*device.backend, layer, page, seed);
            });
          },
          py::arg("layer"), py::arg("pages"), py::arg("seed"),
          "Random keys and values in some pages, for benches that need a long context and not its text.");
}

}  // namespace gptoss::bindings
