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
             const std::string& numerics_name, int max_rows)
    : backend(std::move(device)),
      tensors(py::reinterpret_steal<py::dict>(PyDict_Copy(arrays.ptr()))),
      config(config_of(fields)),
      numerics(numerics_of(numerics_name)),
      weights(bind(*backend->backend, config, tensors)),
      places(gptoss::places(config, weights)),
      activations(*backend->backend, config, numerics, max_rows),
      arguments(*backend->backend) {}

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

void bind_model(py::module_& m) {
  ModelClass model(m, "Model", "A model on a backend; the arrays are used in place, and written by write_rows.");
  model
      .def(py::init<std::shared_ptr<BackendHandle>, const py::dict&, const py::dict&, const std::string&, int>(),
           py::arg("backend"), py::arg("config"), py::arg("arrays"), py::arg("numerics"), py::arg("max_rows"))
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
           "One step of a ragged batch; returns Logits [len(logit_rows), vocab]. A token id of -1 - i stands for token "
           "i "
           "of the backend's latest draw. The first `decoding` sequences, one row each, are decoded (-1: as many as "
           "have one row); the others are prompts.");
  bind_numbers(m, model);
  py::class_<Logits>(m, "Logits", "float32 [rows, vocab] of one step, on the device until the model's next step.")
      .def("__len__", [](const Logits& logits) { return logits.count; })
      .def(
          "numpy", [](const Logits& logits) { return to_numpy(logits, 0, logits.count); }, "A copy, as NumPy array.")
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
      .def_property_readonly("nbytes", [](const Cache& cache) { return cache.pages.bytes(); });
}

}  // namespace gptoss::bindings
