// A model as Python holds it: weights, activations, and the arguments and results of its steps.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "bindings/handles.h"
#include "bindings/lora.h"
#include "model/forward.h"
#include "model/parcel.h"

namespace gptoss::bindings {

// Holds the arrays alive, in a dict of its own that nobody else can empty: the weights look into them.
struct Model {
  Model(std::shared_ptr<BackendHandle> device, const py::dict& fields, const py::dict& arrays,
        const std::string& numerics_name, int max_rows, int slots);

  void reserve(int sequences, int positions, int logit_rows);  // see StepLimits

  // Where the latest step's logits are bounds, what of; and makes them all exact.
  ScreenedLogits screened_logits();
  void complete_logits();

  std::shared_ptr<BackendHandle> backend;
  py::dict tensors;
  Config config;
  Numerics numerics;
  Weights weights;
  const Places places;
  Activations activations;
  Parcel arguments;
  Interventions interventions;
  std::map<int, std::shared_ptr<LoadedAdapter>> adapters;  // of the slots that have one
  DeviceBuffer<float> logits;                              // [rows that a step wanted, vocab], of the latest step
  uint64_t steps = 0;
  // The latest step, where its logits are upper bounds: whoever reads them completes them before.
  std::optional<Step> screened;
};

// Logits of one step, on the device until the next.
struct Logits {
  // Rows `first` and on; throws Error when a later step has overwritten them.
  const float* rows(int first) const;

  std::shared_ptr<Model> model;
  int count;
  uint64_t step;
  py::dict watched;  // (what, layer) -> array of all rows, where something was watched
};

struct Cache {
  Cache(std::shared_ptr<Model> owner, int page_size, int full_pages, int window_pages);

  std::shared_ptr<Model> model;
  KvCache pages;
};

// One checked step of a ragged batch.
Logits run_forward(const std::shared_ptr<Model>& model, Cache& cache, const py::object& token_ids,
                   const py::object& row_start, const py::object& context, const py::object& full_pages,
                   const py::object& window_pages, const py::object& logit_rows, int decoding, const py::object& slots,
                   const py::object& watch, bool screen);

// Copies of rows [first, first + count) for NumPy.
py::array_t<float> to_numpy(const Logits& logits, int first, int count);

}  // namespace gptoss::bindings
