#include <cmath>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/model.h"
#include "bindings/run_op.h"

namespace gptoss::bindings {
namespace {

void check_row(const SampleRow& row, int index, int biases, int history, int masks) {
  auto at_least = [&](const char* field, float value, float low) {
    CHECK(value >= low && std::isfinite(value), field, " of row ", index, " is ", value, ", expected at least ", low);
  };
  auto slice = [&](const char* field, int start, int end, int size) {
    CHECK(start >= 0 && start <= end && end <= size, field, " of row ", index, " is [", start, ", ", end,
          "), expected a slice of ", size, " entries");
  };
  at_least("temperature", row.temperature, 0.0f);
  at_least("min_p", row.min_p, 0.0f);
  CHECK(row.min_p <= 1.0f, "min_p of row ", index, " is ", row.min_p, ", expected at most 1");
  CHECK(row.top_p > 0.0f && row.top_p <= 1.0f, "top_p of row ", index, " is ", row.top_p, ", expected (0, 1]");
  CHECK(row.repetition_penalty > 0.0f && std::isfinite(row.repetition_penalty), "repetition_penalty of row ", index,
        " is ", row.repetition_penalty, ", expected more than 0");
  CHECK(std::isfinite(row.presence_penalty) && std::isfinite(row.frequency_penalty), "penalties of row ", index,
        " are ", row.presence_penalty, " and ", row.frequency_penalty, ", expected finite numbers");
  CHECK(row.top_k >= 0, "top_k of row ", index, " is ", row.top_k, ", expected 0 (off) or more");
  slice("bias", row.bias_start, row.bias_end, biases);
  slice("prompt", row.prompt_start, row.prompt_end, history);
  slice("output", row.output_start, row.output_end, history);
  CHECK(row.mask_row >= -1 && row.mask_row < masks, "mask_row of row ", index, " is ", row.mask_row,
        ", expected -1 (none) to ", masks - 1);
  CHECK(row.skip_report == 0 || row.skip_report == 1, "skip_report of row ", index, " is ", row.skip_report,
        ", expected 0 or 1");
}

// Every mask must leave something to draw. Bits past the vocabulary mean nothing.
void check_masks(const uint32_t* masks, int count, int vocab) {
  const int words = (vocab + 31) / 32;
  const uint32_t tail = vocab % 32 == 0 ? ~0u : (1u << vocab % 32) - 1;
  for (int i = 0; i < count; ++i) {
    const uint32_t* mask = masks + size_t(i) * words;
    bool any = (mask[words - 1] & tail) != 0;
    for (int w = 0; w < words - 1 && !any; ++w) any = mask[w] != 0;
    CHECK(any, "allowed row ", i, " allows none of the ", vocab, " tokens, expected at least one");
  }
}

// Rows of logits: an array of the host, or those that a step has left on the device.
struct Source {
  Source(const BackendHandle& device, const py::object& logits) {
    if (!py::isinstance<Logits>(logits)) {
      Argument argument("logits", logits);
      rows = argument.size(0);
      vocab = argument.size(1);
      argument.shape({rows, vocab});
      host = argument.read<float>();
      return;
    }
    step = logits.cast<const Logits*>();
    CHECK(step->model->backend.get() == &device, "the logits are of another backend; sample on the one of their model");
    rows = step->count;
    vocab = step->model->config.vocab;
  }

  const Logits* step = nullptr;
  const float* host = nullptr;
  int rows, vocab;
};

// Keeps a draw for a recording: its results stay on the device, unread.
void keep(BackendHandle& device, const SampleRequest& r, const float* logits) {
  const size_t count = r.count, tops = count * r.logprobs, words = (size_t(r.vocab) + 31) / 32;
  std::vector<int32_t> integers(3 * count + tops);
  std::vector<float> numbers(count + tops);
  run_op(device, &Backend::sample, [&](OpArguments& stage) {
    return SampleParams{stage.in(logits, count * r.vocab),
                        r.count,
                        r.vocab,
                        stage.in(r.rows.data(), count),
                        stage.in(r.bias_token.data(), r.bias_token.size()),
                        stage.in(r.bias_value, r.bias_token.size()),
                        stage.in(r.history.data(), r.history.size()),
                        stage.in(r.allowed, r.masks * words),
                        r.logprobs,
                        reinterpret_cast<SampleStatus*>(stage.out(integers.data(), count)),
                        stage.out(integers.data() + count, count),
                        stage.out(numbers.data(), count),
                        stage.out(integers.data() + 2 * count, count),
                        stage.out(integers.data() + 3 * count, tops),
                        stage.out(numbers.data() + count, tops),
                        r.any_cuts(),
                        r.any_reports()};
  });
}

// A draw whose results are on their way.
struct Draws {
  std::shared_ptr<BackendHandle> device;
  uint64_t number;
  int count, logprobs;
};

Draws enqueue(const std::shared_ptr<BackendHandle>& owner, const py::object& logits, const py::array& rows,
              const py::object& bias_token, const py::object& bias_value, const py::object& history,
              const py::object& allowed, int logprobs) {
  BackendHandle& device = *owner;
  const Source source(device, logits);
  Argument bt("bias_token", bias_token), bv("bias_value", bias_value), h("history", history);
  const int vocab = source.vocab, biases = bt.size(0), tokens = h.size(0);
  CHECK(vocab > 0, "logits has no columns, expected one for each token of the vocabulary");
  bt.shape({biases});
  bv.shape({biases});
  h.shape({tokens});
  CHECK(py::isinstance<py::array_t<SampleRow>>(rows), "rows has dtype ", std::string(py::str(rows.dtype())),
        ", expected _native.sample_row_dtype");
  const Argument row_argument("rows", rows);
  const int count = row_argument.size(0);
  row_argument.shape({count});
  CHECK(count <= source.rows, count, " rows are asked for, the logits have ", source.rows);
  CHECK(source.step || count == source.rows, count, " rows are asked for, the array has ", source.rows,
        "; pass a slice of it");
  CHECK(logprobs >= 0 && logprobs <= vocab, "logprobs is ", logprobs, ", expected 0 to the vocabulary's ", vocab);

  int masks = 0;
  const uint32_t* mask = nullptr;
  if (!allowed.is_none()) {
    Argument m("allowed", allowed);
    masks = m.size(0);
    mask = m.shape({masks, (vocab + 31) / 32}).read<uint32_t>();
  }
  const auto* given = static_cast<const SampleRow*>(rows.data());
  // Copies, as every index below: see indices().
  SampleRequest request{
      count, vocab,   {given, given + count}, bt.indices(0, vocab), bv.read<float>(), h.indices(0, vocab), mask,
      masks, logprobs};
  for (int i = 0; i < count; ++i) check_row(request.rows[i], i, biases, tokens, masks);
  check_masks(mask, masks, vocab);
  for (int i = 0; i < biases; ++i)
    CHECK(std::isfinite(request.bias_value[i]), "bias_value[", i, "] is ", request.bias_value[i],
          ", expected a finite number; use `allowed` to forbid tokens");

  Draws draws{owner, 0, count, logprobs};
  if (device.recording != nullptr && source.host != nullptr) {
    keep(device, request, source.host);
    return Draws{owner, 0, 0, 0};
  }
  if (count == 0) return draws;
  device.run([&] {
    DeviceStorage storage;
    if (source.step) {
      const float* from = source.step->rows(0);
      request.screened = source.step->model->screened_logits();
      device.sampler->enqueue(request, from);
    } else {
      device.sampler->enqueue(request, upload(*device.backend, source.host, size_t(count) * vocab, storage));
      device.backend->wait_for(device.backend->mark());  // the copy of the array lives no longer than this
    }
    draws.number = device.sampler->draws();
  });
  return draws;
}

py::tuple collect(const Draws& draws) {
  static_assert(sizeof(SampleStatus) == sizeof(int32_t));
  const int count = draws.count;
  py::array_t<int32_t> status(count), token(count), rank(count), top_token({count, draws.logprobs});
  py::array_t<float> logprob(count), top_logprob({count, draws.logprobs});
  const SampleResult result{reinterpret_cast<SampleStatus*>(status.mutable_data()),
                            token.mutable_data(),
                            logprob.mutable_data(),
                            rank.mutable_data(),
                            top_token.mutable_data(),
                            top_logprob.mutable_data()};
  if (count > 0)
    draws.device->run([&] {
      Sampler& sampler = *draws.device->sampler;
      CHECK(draws.number == sampler.draws(), "these are the results of draw ", draws.number, ", the latest is draw ",
            sampler.draws(), "; collect each before the next");
      sampler.collect(result);
    });
  return py::make_tuple(token, logprob, rank, top_token, top_logprob, status);
}

}  // namespace

void bind_sample(py::module_& m, BackendClass& backend) {
  PYBIND11_NUMPY_DTYPE(SampleRow, temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty,
                       top_k, seed, position, bias_start, bias_end, prompt_start, prompt_end, output_start, output_end,
                       mask_row, skip_report);
  m.attr("sample_row_dtype") = py::dtype::of<SampleRow>();
  py::class_<Draws>(m, "Draws", "Tokens drawn on the device, until its next draw.")
      .def("collect", &collect,
           "(token, logprob, rank, top_token, top_logprob, status) of each row, once they are there.");
  const auto arguments = [&](const char* name, auto function, const char* text) {
    backend.def(name, function, py::arg("logits"), py::arg("rows"), py::arg("bias_token"), py::arg("bias_value"),
                py::arg("history"), py::arg("allowed"), py::arg("logprobs"), text);
  };
  arguments("enqueue_sample", &enqueue,
            "Draws a token from each row of an array of logits, or from a step's first rows, without waiting.");
  using Handle = std::shared_ptr<BackendHandle>;
  using Object = py::object;
  arguments(
      "sample",
      [](const Handle& device, const Object& logits, const py::array& rows, const Object& bias_token,
         const Object& bias_value, const Object& history, const Object& allowed, int logprobs) {
        return collect(enqueue(device, logits, rows, bias_token, bias_value, history, allowed, logprobs));
      },
      "enqueue_sample(...).collect()");
}

}  // namespace gptoss::bindings
