// Model: weights in place, activations of its own. KvCache: pages of one model. forward: one checked step.
#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/batch.h"
#include "bindings/bindings.h"
#include "model/forward.h"

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

Weights bind(const Config& config, const py::dict& arrays) {
  const TensorMap tensors = tensors_of(arrays);
  py::gil_scoped_release release;  // it reads through the scales
  return Weights::bind(config, tensors);
}

// Holds the arrays alive, in a dict of its own that nobody else can empty: the weights look into them.
struct Model {
  Model(std::shared_ptr<BackendHandle> device, const py::dict& fields, const py::dict& arrays,
        const std::string& numerics_name, int max_rows)
      : backend(std::move(device)),
        tensors(py::reinterpret_steal<py::dict>(PyDict_Copy(arrays.ptr()))),
        config(config_of(fields)),
        numerics(numerics_of(numerics_name)),
        weights(bind(config, tensors).prepare(*backend->backend, config)),
        activations(*backend->backend, config, numerics, max_rows) {}

  std::shared_ptr<BackendHandle> backend;
  py::dict tensors;
  Config config;
  Numerics numerics;
  Weights weights;
  Activations activations;
};

struct Cache {
  Cache(std::shared_ptr<Model> owner, int page_size, int full_pages, int window_pages)
      : model(std::move(owner)),
        pages(*model->backend->backend, model->config, model->numerics == Numerics::exact ? DType::f32 : DType::bf16,
              page_size, full_pages, window_pages) {}

  std::shared_ptr<Model> model;
  KvCache pages;
};

// The step's pages for layers of one kind, checked against their pool; a model without such layers needs none.
const int32_t* pages_for(const char* name, const py::object& table, BatchArguments& batch, int pool, int page_size,
                         const std::vector<int>& windows, bool full) {
  int widest = -1;
  for (int window : windows)
    if ((window == 0) == full) widest = std::max(widest, window);
  if (widest < 0) return nullptr;
  return batch.check_pages(name, table, pool, page_size, widest);
}

py::array_t<float> run_forward(Model& model, Cache& cache, const py::object& token_ids, const py::object& row_start,
                               const py::object& context, const py::object& full_pages, const py::object& window_pages,
                               const py::object& logit_rows) {
  CHECK(cache.model.get() == &model, "the cache belongs to another model; make one with KvCache(model, ...)");
  Argument ids("token_ids", token_ids), rows("logit_rows", logit_rows), full("full_pages", full_pages),
      window("window_pages", window_pages);
  BatchArguments batch(row_start, context, ids.size(0));
  const int count = rows.size(0), stride = full.size(1);
  ids.shape({batch.rows()});
  rows.shape({count});
  window.shape({batch.sequences(), stride});
  CHECK(batch.rows() <= model.activations.max_rows(), "the step has ", batch.rows(), " rows, the model was made for ",
        model.activations.max_rows(), "; split the prompt or raise max_rows");
  CHECK(count <= batch.rows(), "logit_rows has ", count, " entries, the step has ", batch.rows(), " rows");
  CHECK(batch.longest() <= model.config.max_positions, "a sequence has ", batch.longest(),
        " tokens, the model's max_position_embeddings is ", model.config.max_positions);
  const std::vector<int32_t> tokens = ids.indices(0, model.config.vocab);
  const std::vector<int32_t> wanted = rows.indices(0, batch.rows());

  KvCache& pages = cache.pages;
  const auto& windows = model.config.windows;
  py::array_t<float> logits({count, model.config.vocab});
  float* to = logits.mutable_data();
  const int32_t* full_table =
      pages_for("full_pages", full_pages, batch, pages.full_pages(), pages.page_size(), windows, true);
  const int32_t* window_table =
      pages_for("window_pages", window_pages, batch, pages.window_pages(), pages.page_size(), windows, false);
  const size_t table_size = size_t(batch.sequences()) * stride;
  model.backend->run([&] {
    Backend& backend = *model.backend->backend;
    Staging stage(backend);
    const Step step{
        stage_batch(stage, batch.view()),
        stage.in(tokens.data(), tokens.size()),
        stage.in(full_table, table_size),
        stage.in(window_table, table_size),
        stride,
        stage.in(wanted.data(), wanted.size()),
        count,
        stage.out(to, size_t(count) * model.config.vocab),
    };
    forward(backend, model.config, model.weights, model.activations, pages, step);
    stage.finish();
  });
  return logits;
}

}  // namespace

void bind_model(py::module_& m) {
  py::class_<Model, std::shared_ptr<Model>>(m, "Model", "A model on a backend; the arrays are used in place.")
      .def(py::init<std::shared_ptr<BackendHandle>, const py::dict&, const py::dict&, const std::string&, int>(),
           py::arg("backend"), py::arg("config"), py::arg("arrays"), py::arg("numerics"), py::arg("max_rows"))
      .def_property_readonly("activation_bytes", [](const Model& model) { return model.activations.bytes(); })
      .def_property_readonly("max_rows", [](const Model& model) { return model.activations.max_rows(); })
      .def("forward", &run_forward, py::arg("cache"), py::arg("token_ids"), py::arg("row_start"), py::arg("context"),
           py::arg("full_pages"), py::arg("window_pages"), py::arg("logit_rows"),
           "One step of a ragged batch; returns float32 logits [len(logit_rows), vocab].");
  py::class_<Cache, std::shared_ptr<Cache>>(m, "KvCache", "Two pools of KV pages for one model.")
      .def(py::init<std::shared_ptr<Model>, int, int, int>(), py::arg("model"), py::arg("page_size"),
           py::arg("full_pages"), py::arg("window_pages"))
      .def_property_readonly("page_size", [](const Cache& cache) { return cache.pages.page_size(); })
      .def_property_readonly("full_pages", [](const Cache& cache) { return cache.pages.full_pages(); })
      .def_property_readonly("window_pages", [](const Cache& cache) { return cache.pages.window_pages(); })
      .def_property_readonly("nbytes", [](const Cache& cache) { return cache.pages.bytes(); });
}

}  // namespace gptoss::bindings
