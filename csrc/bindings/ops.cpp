// The dense ops, each callable alone on NumPy arrays. Shapes: csrc/model/ops.h.
#include <pybind11/stl.h>

#include <vector>

#include "bindings/batch.h"
#include "bindings/bindings.h"
#include "bindings/lora.h"
#include "bindings/run_op.h"

namespace gptoss::bindings {

Linear linear(const std::string& name, const py::object& weight, const py::object* bias, int in) {
  const std::string weight_name = bias ? name + "weight" : name, bias_name = name + "bias";
  Argument w(weight_name.c_str(), weight);
  const int out = w.size(0);
  w.shape({out, in});
  const bf16* bias_data = nullptr;
  if (bias) {
    Argument b(bias_name.c_str(), *bias);
    bias_data = b.shape({out}).read_bf16();
  }
  return {w.read_bf16(), bias_data, out, in};
}

namespace {

using Object = py::object;

// A layer's pages in host memory. Which of keys and values is transposed is the backend's choice.
struct HostPages {
  KvLayer layer;
  int pages;
  int sequences;

  // Copies on the device; ops change both keys and values only in attention_in.
  KvLayer stage(Staging& stage) const {
    const size_t bytes = size_t(pages) * layer.kv_heads * kHeadDim * layer.page_size * bytes_of(layer.dtype);
    KvLayer copy = layer;
    copy.keys = stage.in_out(static_cast<uint8_t*>(layer.keys), bytes);
    copy.values = stage.in_out(static_cast<uint8_t*>(layer.values), bytes);
    copy.table = stage.in(layer.table, size_t(sequences) * layer.table_stride);
    return copy;
  }
};

HostPages host_pages(const BackendHandle& device, const Object& keys, const Object& values, BatchArguments& batch,
                     const Object& pages, int window) {
  Argument k("keys", keys), v("values", values), table("pages", pages);
  const bool transposed = device.backend->keys_are_transposed();
  const int count = k.size(0), kv_heads = k.size(1), page_size = k.size(transposed ? 3 : 2);
  CHECK(page_size > 0 && page_size % 16 == 0 && page_size <= kMaxPageSize, "keys has a page size of ", page_size,
        ", expected a multiple of 16 up to ", kMaxPageSize);
  (transposed ? k : v).shape({count, kv_heads, kHeadDim, page_size});
  (transposed ? v : k).shape({count, kv_heads, page_size, kHeadDim});
  const int32_t* ids = batch.check_pages("pages", pages, count, page_size, window);
  const int stride = table.size(1);
  KvLayer layer{nullptr, nullptr, DType::bf16, page_size, kv_heads, ids, stride};
  if (device.backend->has_exact() && k.is<float>())
    layer.keys = k.write<float>(), layer.values = v.write<float>(), layer.dtype = DType::f32;
  else
    layer.keys = k.write<uint16_t>(), layer.values = v.write<uint16_t>();
  return {layer, count, batch.sequences()};
}

void embed(BackendHandle& device, const Object& token_ids, const Object& weight, const Object& residual,
           const Object& drawn) {
  Argument ids("token_ids", token_ids), w("weight", weight), out("residual", residual), d("drawn", drawn);
  const int rows = ids.size(0), vocab = w.size(0), hidden = w.size(1);
  ids.shape({rows});
  w.shape({vocab, hidden});
  out.shape({rows, hidden});
  const int draws = d.size(0);
  d.shape({draws});
  const std::vector<int32_t> tokens = ids.indices(-draws, vocab), earlier = d.indices(0, vocab);
  const bf16* table = w.read_bf16();
  float* to = out.write<float>();
  run_op(device, &Backend::embed, [&](OpArguments& stage) {
    return EmbedParams{stage.in(tokens.data(), rows),
                       stage.in(table, size_t(vocab) * hidden),
                       stage.out(to, size_t(rows) * hidden),
                       rows,
                       hidden,
                       stage.in(earlier.data(), draws)};
  });
}

void attention_in(BackendHandle& device, const Object& residual, const Object& norm_weight, float eps,
                  const Object& q_weight, const Object& q_bias, const Object& k_weight, const Object& k_bias,
                  const Object& v_weight, const Object& v_bias, const Object& inv_freq, float rope_scale,
                  const Object& row_start, const Object& context, const Object& pages, const Object& keys,
                  const Object& values, const Object& queries, const Object& q_lora, const Object& k_lora,
                  const Object& v_lora) {
  Argument x("residual", residual), norm("norm_weight", norm_weight), freq("inv_freq", inv_freq), q("queries", queries);
  BatchArguments batch(row_start, context, x.size(0));
  const int hidden = x.size(1);
  check_width("residual", hidden);
  x.shape({batch.rows(), hidden});
  norm.shape({hidden});
  freq.shape({kHeadDim / 2});
  const HostPages cache = host_pages(device, keys, values, batch, pages, /*window=*/1);
  const Linear wq = linear("q_", q_weight, &q_bias, hidden);
  const Linear wk = linear("k_", k_weight, &k_bias, hidden);
  const Linear wv = linear("v_", v_weight, &v_bias, hidden);
  CHECK(wq.out % kHeadDim == 0, "q_weight has ", wq.out, " rows, expected a multiple of ", kHeadDim);
  CHECK(wk.out == cache.layer.kv_heads * kHeadDim && wv.out == wk.out, "k_weight and v_weight have ", wk.out, " and ",
        wv.out, " rows, the cache has ", cache.layer.kv_heads, " heads of ", kHeadDim);
  q.shape({batch.rows(), wq.out / kHeadDim, kHeadDim});
  const int rows = batch.rows();
  const LoraArgument q_adapters("q_lora", q_lora, rows, rows, 0, wq.out),
      k_adapters("k_lora", k_lora, rows, rows, 0, wk.out), v_adapters("v_lora", v_lora, rows, rows, 0, wv.out);
  std::vector<float> normed(size_t(rows) * hidden);
  const auto *from = x.read<float>(), *frequencies = freq.read<float>();
  const bf16* norm_data = norm.read_bf16();
  float* to = q.write<float>();
  run_op(device, &Backend::attention_in, [&](OpArguments& stage) {
    return AttentionInParams{stage_batch(stage, batch.view()),
                             stage.in(from, normed.size()),
                             stage.in(norm_data, hidden),
                             eps,
                             stage.prepare(wq, MatrixUse::rotary_product),
                             stage.prepare(wk, MatrixUse::rotary_product),
                             stage.prepare(wv, MatrixUse::product),
                             stage.in(frequencies, kHeadDim / 2),
                             rope_scale,
                             cache.stage(stage),
                             stage.out(normed.data(), normed.size()),
                             stage.out(to, size_t(rows) * wq.out),
                             q_adapters.stage(stage),
                             k_adapters.stage(stage),
                             v_adapters.stage(stage)};
  });
}

void paged_attention(BackendHandle& device, const Object& queries, const Object& keys, const Object& values,
                     const Object& sinks, const Object& row_start, const Object& context, const Object& pages,
                     int window, const Object& output) {
  CHECK(window >= 0, "window is ", window, ", expected 0 (full) or more");
  Argument q("queries", queries), s("sinks", sinks), out("output", output);
  BatchArguments batch(row_start, context, q.size(0));
  const int heads = q.size(1);
  q.shape({batch.rows(), heads, kHeadDim});
  s.shape({heads});
  out.shape({batch.rows(), heads, kHeadDim});
  const HostPages cache = host_pages(device, keys, values, batch, pages, window);
  const int kv_heads = cache.layer.kv_heads;
  CHECK(kv_heads > 0 && heads % kv_heads == 0, "queries has ", heads, " heads, expected a multiple of the cache's ",
        kv_heads);
  const size_t size = size_t(batch.rows()) * heads * kHeadDim;
  const auto* from = q.read<float>();
  const bf16* sink_data = s.read_bf16();
  float* to = out.write<float>();
  run_op(device, &Backend::paged_attention, [&](OpArguments& stage) {
    return PagedAttentionParams{stage_batch(stage, batch.view()),
                                stage.in(from, size),
                                cache.stage(stage),
                                stage.in(sink_data, heads),
                                heads,
                                window,
                                stage.out(to, size)};
  });
}

void attention_out(BackendHandle& device, const Object& input, const Object& weight, const Object& bias,
                   const Object& residual, std::optional<int> decode_rows, const Object& lora) {
  Argument x("input", input), out("residual", residual);
  const int rows = x.size(0);
  x.shape({rows, x.size(1)});
  check_width("input", x.size(1));
  const Linear projection = linear("", weight, &bias, x.size(1));
  out.shape({rows, projection.out});
  const auto* from = x.read<float>();
  float* to = out.write<float>();
  const int decoded = checked_decode_rows(decode_rows, rows);
  const LoraArgument adapters("lora", lora, rows, rows, 0, projection.out);
  run_op(device, &Backend::attention_out, [&](OpArguments& stage) {
    return AttentionOutParams{stage.in(from, size_t(rows) * projection.in),
                              stage.prepare(projection, MatrixUse::product),
                              stage.in_out(to, size_t(rows) * projection.out),
                              rows,
                              decoded,
                              adapters.stage(stage)};
  });
}

void unembed(BackendHandle& device, const Object& residual, const Object& logit_rows, const Object& norm_weight,
             float eps, const Object& lm_head, const Object& logits, const Object& lora, bool screen) {
  Argument x("residual", residual), rows("logit_rows", logit_rows), norm("norm_weight", norm_weight),
      out("logits", logits);
  const int hidden = x.size(1), count = rows.size(0);
  x.shape({x.size(0), hidden});
  check_width("residual", hidden);
  rows.shape({count});
  norm.shape({hidden});
  const std::vector<int32_t> wanted = rows.indices(0, x.size(0));
  const Linear head = linear("lm_head", lm_head, nullptr, hidden);
  out.shape({count, head.out});
  const LoraArgument adapters("lora", lora, x.size(0), count, 0, head.out);
  CHECK(!screen || lora.is_none(), "screen is true and there is a lora, which bounds do not include; leave out one");
  std::vector<float> normed(size_t(count) * hidden);
  const auto* from = x.read<float>();
  const bf16* norm_data = norm.read_bf16();
  float* to = out.write<float>();
  const size_t size = size_t(x.size(0)) * hidden;
  run_op(device, &Backend::unembed, [&](OpArguments& stage) {
    return UnembedParams{stage.in(from, size),
                         stage.in(wanted.data(), count),
                         count,
                         stage.in(norm_data, hidden),
                         eps,
                         stage.prepare(head, MatrixUse::product),
                         stage.out(normed.data(), normed.size()),
                         stage.out(to, size_t(count) * head.out),
                         adapters.stage(stage),
                         screen ? stage.prepare_screen(head) : Screen{}};
  });
}

}  // namespace

int checked_decode_rows(std::optional<int> decode_rows, int rows) {
  const int decoded = decode_rows.value_or(rows);
  CHECK(decoded >= 0 && decoded <= rows, "decode_rows is ", decoded, ", expected 0 to ", rows, ", the rows");
  return decoded;
}

void bind_ops(BackendClass& backend) {
  backend
      .def("embed", &embed, py::arg("token_ids"), py::arg("weight"), py::arg("residual"),
           py::arg("drawn") = py::array_t<int32_t>(0))
      .def("attention_in", &attention_in, py::arg("residual"), py::arg("norm_weight"), py::arg("eps"),
           py::arg("q_weight"), py::arg("q_bias"), py::arg("k_weight"), py::arg("k_bias"), py::arg("v_weight"),
           py::arg("v_bias"), py::arg("inv_freq"), py::arg("rope_scale"), py::arg("row_start"), py::arg("context"),
           py::arg("pages"), py::arg("keys"), py::arg("values"), py::arg("queries"), py::arg("q_lora") = py::none(),
           py::arg("k_lora") = py::none(), py::arg("v_lora") = py::none())
      .def("paged_attention", &paged_attention, py::arg("queries"), py::arg("keys"), py::arg("values"),
           py::arg("sinks"), py::arg("row_start"), py::arg("context"), py::arg("pages"), py::arg("window"),
           py::arg("output"))
      .def("attention_out", &attention_out, py::arg("input"), py::arg("weight"), py::arg("bias"), py::arg("residual"),
           py::arg("decode_rows") = py::none(), py::arg("lora") = py::none())
      .def("unembed", &unembed, py::arg("residual"), py::arg("logit_rows"), py::arg("norm_weight"), py::arg("eps"),
           py::arg("lm_head"), py::arg("logits"), py::arg("lora") = py::none(), py::arg("screen") = false,
           "screen: upper bounds of the logits, where the backend has such a thing; see csrc/cpu/screen.h.");
}

}  // namespace gptoss::bindings
