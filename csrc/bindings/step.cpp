// forward: one checked step, whose logits stay on the device.
#include <algorithm>
#include <bit>

#include "bindings/batch.h"
#include "bindings/model.h"
#include "bindings/watch.h"

namespace gptoss::bindings {
namespace {

constexpr int kMaxRecordedRows = 64;

// The step's pages for layers of one kind, checked against their pool; a model without such layers needs none.
const int32_t* pages_for(const char* name, const py::object& table, BatchArguments& batch, int pool, int page_size,
                         const std::vector<int>& windows, bool full) {
  int widest = -1;
  for (int window : windows)
    if ((window == 0) == full) widest = std::max(widest, window);
  if (widest < 0) return nullptr;
  return batch.check_pages(name, table, pool, page_size, widest);
}

// Makes room for `count` rows of logits.
float* reserve_logits(Model& model, Backend& device, int count) {
  const size_t size = size_t(count) * model.config.vocab;
  if (model.logits.size() < size) {
    device.wait_for(device.mark());
    model.logits = {};
    model.logits = DeviceBuffer<float>(device, size);
  }
  return model.logits.data();
}

}  // namespace

const float* Logits::rows(int first) const {
  CHECK(step == model->steps, "these logits are of step ", step, ", the model has gone on to step ", model->steps,
        "; take what you need before the next forward or edit");
  return model->logits.data() + size_t(first) * model->config.vocab;
}

ScreenedLogits Model::screened_logits() {
  if (!screened) return {};
  return {logits.data(), activations.normed.data(), weights.lm_head};
}

void Model::complete_logits() {
  if (!screened) return;
  screened->screen = false;
  unembed(*backend->backend, config, weights, activations, *screened);
  screened.reset();
}

py::array_t<float> to_numpy(const Logits& logits, int first, int count) {
  const int vocab = logits.model->config.vocab;
  CHECK(first >= 0 && count >= 0 && first <= logits.count - count, "rows ", first, " to ", first + count,
        " are asked for, the step has ", logits.count, " rows of logits");
  py::array_t<float> to({count, vocab});
  float* memory = to.mutable_data();
  Model& model = *logits.model;
  BackendHandle& backend = *model.backend;
  backend.run([&] {
    const float* from = logits.rows(first);
    model.complete_logits();
    if (count > 0) backend.backend->copy_out(memory, from, sizeof(float) * count * vocab);
  });
  return to;
}

Logits run_forward(const std::shared_ptr<Model>& owner, Cache& cache, const py::object& token_ids,
                   const py::object& row_start, const py::object& context, const py::object& full_pages,
                   const py::object& window_pages, const py::object& logit_rows, int decoding, const py::object& slots,
                   const py::object& watch, bool screen) {
  Model& model = *owner;
  CHECK(cache.model == owner, "the cache belongs to another model; make one with KvCache(model, ...)");
  Argument ids("token_ids", token_ids), rows("logit_rows", logit_rows), full("full_pages", full_pages),
      window("window_pages", window_pages);
  BatchArguments batch(row_start, context, ids.size(0), decoding);
  const int count = rows.size(0), given_stride = full.size(1);
  ids.shape({batch.rows()});
  rows.shape({count});
  window.shape({batch.sequences(), given_stride});
  CHECK(batch.rows() <= model.activations.max_rows(), "the step has ", batch.rows(), " rows, the model was made for ",
        model.activations.max_rows(), "; split the prompt or raise max_rows");
  CHECK(count <= batch.rows(), "logit_rows has ", count, " entries, the step has ", batch.rows(), " rows");
  CHECK(batch.longest() <= model.config.max_positions, "a sequence has ", batch.longest(),
        " tokens, the model's max_position_embeddings is ", model.config.max_positions);
  const Sampler& sampler = *model.backend->sampler;
  const std::vector<int32_t> tokens = ids.indices(-sampler.count(), model.config.vocab);
  const std::vector<int32_t> wanted = rows.indices(0, batch.rows());
  std::vector<int32_t> slot;  // of each row
  if (!slots.is_none()) {
    const Argument of("slots", slots);
    of.shape({batch.rows()});
    slot = of.indices(-1, model.interventions.slots());
  }

  Watch watcher(model, batch.rows(), watch);
  KvCache& pages = cache.pages;
  const auto& windows = model.config.windows;
  const int32_t* full_table =
      pages_for("full_pages", full_pages, batch, pages.full_pages(), pages.page_size(), windows, true);
  const int32_t* window_table =
      pages_for("window_pages", window_pages, batch, pages.window_pages(), pages.page_size(), windows, false);
  // Tables of few different widths, so that steps have few different shapes and their records are used again.
  const int stride = static_cast<int>(std::bit_ceil(static_cast<unsigned>(given_stride)));
  std::vector<int32_t> full_wide, window_wide;
  const auto wide = [&](const int32_t* table, std::vector<int32_t>& to) {
    if (table == nullptr || stride == given_stride) return table;
    to.assign(size_t(batch.sequences()) * stride, -1);
    for (int s = 0; s < batch.sequences(); ++s)
      std::copy_n(table + size_t(s) * given_stride, given_stride, to.data() + size_t(s) * stride);
    return static_cast<const int32_t*>(to.data());
  };
  uint64_t made = 0;
  model.backend->run([&] {
    Backend& backend = *model.backend->backend;
    model.screened.reset();  // it points into what changes now
    made = ++model.steps;
    Parcel& to = model.arguments;
    const Batch host = batch.view();
    const size_t table_size = size_t(host.sequences) * stride;
    const size_t starts = to.add(host.row_start, size_t(host.sequences) + 1);
    const size_t sequence = to.add(host.sequence, host.rows), position = to.add(host.position, host.rows);
    const size_t token = to.add(tokens.data(), tokens.size()), logit = to.add(wanted.data(), wanted.size());
    const size_t full_place = to.add(wide(full_table, full_wide), table_size);
    const size_t window_place = to.add(wide(window_table, window_wide), table_size);
    const size_t slot_place = to.add(slot.empty() ? nullptr : slot.data(), slot.size());
    to.send();
    const Step step{
        {host.rows, host.sequences, to.at<int32_t>(starts), to.at<int32_t>(sequence), to.at<int32_t>(position),
         host.decode_rows},
        to.at<int32_t>(token),
        sampler.tokens(),
        to.at<int32_t>(full_place),
        to.at<int32_t>(window_place),
        stride,
        to.at<int32_t>(logit),
        count,
        reserve_logits(model, backend, count),
        to.at<int32_t>(slot_place),
        &model.interventions,
        watcher.watches() ? &watcher : nullptr,
        screen,
    };
    const auto work = [&] { forward(backend, model.config, model.weights, model.activations, pages, step); };
    // Decoding comes in the same shapes again and again; prompts hardly ever do.
    if (host.decode_rows == host.rows && host.rows <= kMaxRecordedRows && !watcher.watches()) {
      const auto address = [](const void* p) { return reinterpret_cast<uint64_t>(p); };
      backend.repeat({uint64_t(host.rows), uint64_t(stride), uint64_t(count), pages.id(), address(step.token_ids),
                      address(step.drawn), address(step.logits), address(model.activations.residual.data()),
                      step.slots ? 1 + model.interventions.version() : 0},
                     work);
    } else {
      work();
    }
    if (is_screened(model.config, model.weights, step)) {
      model.screened = step;
      model.screened->slots = nullptr;  // none has a LoRA for lm_head, and one may get it meanwhile
    }
  });
  return {owner, count, made, watcher.results()};
}

}  // namespace gptoss::bindings
