#include <cmath>
#include <vector>

#include "bindings/bindings.h"

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

py::tuple sample(BackendHandle& device, const py::object& logits, const py::array& rows, const py::object& bias_token,
                 const py::object& bias_value, const py::object& history, const py::object& allowed, int logprobs) {
  Argument l("logits", logits), bt("bias_token", bias_token), bv("bias_value", bias_value), h("history", history);
  const int count = l.size(0), vocab = l.size(1);
  const int biases = bt.size(0), tokens = h.size(0);
  CHECK(vocab > 0, "logits has no columns, expected one for each token of the vocabulary");
  l.shape({count, vocab});
  bt.shape({biases});
  bv.shape({biases});
  h.shape({tokens});
  CHECK(py::isinstance<py::array_t<SampleRow>>(rows), "rows has dtype ", std::string(py::str(rows.dtype())),
        ", expected _native.sample_row_dtype");
  const Argument row_argument("rows", rows);
  row_argument.shape({count});
  CHECK(logprobs >= 0 && logprobs <= vocab, "logprobs is ", logprobs, ", expected 0 to the vocabulary's ", vocab);

  int masks = 0;
  const uint32_t* mask = nullptr;
  if (!allowed.is_none()) {
    Argument m("allowed", allowed);
    masks = m.size(0);
    mask = m.shape({masks, (vocab + 31) / 32}).read<uint32_t>();
  }
  const auto* given = static_cast<const SampleRow*>(rows.data());
  const std::vector<SampleRow> settings(given, given + count);  // a copy, as every index below: see indices()
  for (int i = 0; i < count; ++i) check_row(settings[i], i, biases, tokens, masks);
  check_masks(mask, masks, vocab);
  const std::vector<int32_t> bias_tokens = bt.indices(0, vocab);
  for (int i = 0; i < biases; ++i)
    CHECK(std::isfinite(bv.read<float>()[i]), "bias_value[", i, "] is ", bv.read<float>()[i],
          ", expected a finite number; use `allowed` to forbid tokens");
  const std::vector<int32_t> seen = h.indices(0, vocab);

  static_assert(sizeof(SampleStatus) == sizeof(int32_t));
  py::array_t<int32_t> status(count), token(count), rank(count), top_token({count, logprobs});
  py::array_t<float> logprob(count), top_logprob({count, logprobs});
  const auto *from = l.read<float>(), *values = bv.read<float>();
  auto* statuses = reinterpret_cast<SampleStatus*>(status.mutable_data());
  int32_t *tokens_out = token.mutable_data(), *ranks = rank.mutable_data(), *tops = top_token.mutable_data();
  float *logprobs_out = logprob.mutable_data(), *top_logprobs = top_logprob.mutable_data();
  const size_t likeliest = size_t(count) * logprobs, mask_words = size_t(masks) * ((size_t(vocab) + 31) / 32);
  device.run([&] {
    Staging stage(*device.backend);
    device.backend->sample({stage.in(from, size_t(count) * vocab), count, vocab, stage.in(settings.data(), count),
                            stage.in(bias_tokens.data(), biases), stage.in(values, biases),
                            stage.in(seen.data(), tokens), stage.in(mask, mask_words), logprobs,
                            stage.out(statuses, count), stage.out(tokens_out, count), stage.out(logprobs_out, count),
                            stage.out(ranks, count), stage.out(tops, likeliest), stage.out(top_logprobs, likeliest)});
    stage.finish();
  });
  return py::make_tuple(token, logprob, rank, top_token, top_logprob, status);
}

}  // namespace

void bind_sample(py::module_& m, BackendClass& backend) {
  PYBIND11_NUMPY_DTYPE(SampleRow, temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty,
                       top_k, seed, position, bias_start, bias_end, prompt_start, prompt_end, output_start, output_end,
                       mask_row, skip_report);
  m.attr("sample_row_dtype") = py::dtype::of<SampleRow>();
  backend.def("sample", &sample, py::arg("logits"), py::arg("rows"), py::arg("bias_token"), py::arg("bias_value"),
              py::arg("history"), py::arg("allowed"), py::arg("logprobs"));
}

}  // namespace gptoss::bindings
