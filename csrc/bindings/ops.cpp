// The ops, each callable alone on NumPy arrays (sample.cpp has the ninth). Shapes: csrc/model/ops.h.
#include <algorithm>
#include <vector>

#include "bindings/batch.h"
#include "bindings/bindings.h"

namespace gptoss::bindings {
namespace {

using Object = py::object;

Linear linear(const char* name, const Object& weight, const Object* bias, int in) {
  Argument w(name, weight);
  const int out = w.size(0);
  w.shape({out, in});
  const bf16* bias_data = nullptr;
  if (bias) {
    Argument b("bias", *bias);
    bias_data = b.shape({out}).read_bf16();
  }
  return {w.read_bf16(), bias_data, out, in};
}

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

// Float rows, or the pair of 8-bit rows and scales.
ExpertInput expert_rows(const char* name, Object f32, Object q8, Object scale, int rows, int width) {
  ExpertInput result{};
  if (!f32.is_none()) {
    Argument a(name, f32);
    a.shape({rows, width});
    result.f32 = a.write<float>();
  }
  CHECK(q8.is_none() == scale.is_none(), name, ": give both q8 and scale, or neither");
  if (!q8.is_none()) {
    Argument a("q8", q8), s("scale", scale);
    a.shape({rows, width});
    s.shape({rows, width / kMxfp4Block});
    result.q8 = a.write<int8_t>();
    result.scale = s.write<float>();
  }
  CHECK(result.f32 || result.q8, name, " is None, expected float rows or q8 with scale");
  return result;
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

KvLayer kv_layer(const Object& keys, const Object& values, BatchArguments& batch, const Object& pages, int window) {
  Argument k("keys", keys), v("values", values), table("pages", pages);
  const int count = k.size(0), kv_heads = k.size(1), page_size = k.size(3);
  CHECK(page_size > 0 && page_size % 16 == 0 && page_size <= kMaxPageSize, "keys has a page size of ", page_size,
        ", expected a multiple of 16 up to ", kMaxPageSize);
  k.shape({count, kv_heads, kHeadDim, page_size});
  v.shape({count, kv_heads, page_size, kHeadDim});
  const int32_t* ids = batch.check_pages("pages", pages, count, page_size, window);
  if (k.is<float>()) return {k.write<float>(), v.write<float>(), DType::f32, page_size, kv_heads, ids, table.size(1)};
  return {k.write<uint16_t>(), v.write<uint16_t>(), DType::bf16, page_size, kv_heads, ids, table.size(1)};
}

void embed(BackendHandle& device, const Object& token_ids, const Object& weight, const Object& residual) {
  Argument ids("token_ids", token_ids), w("weight", weight), out("residual", residual);
  const int rows = ids.size(0), vocab = w.size(0), hidden = w.size(1);
  ids.shape({rows});
  w.shape({vocab, hidden});
  out.shape({rows, hidden});
  const std::vector<int32_t> tokens = ids.indices(0, vocab);
  const EmbedParams params{tokens.data(), w.read_bf16(), out.write<float>(), rows, hidden};
  device.run([&] { device.backend->embed(params); });
}

void attention_in(BackendHandle& device, const Object& residual, const Object& norm_weight, float eps,
                  const Object& q_weight, const Object& q_bias, const Object& k_weight, const Object& k_bias,
                  const Object& v_weight, const Object& v_bias, const Object& inv_freq, float rope_scale,
                  const Object& row_start, const Object& context, const Object& pages, const Object& keys,
                  const Object& values, const Object& queries) {
  Argument x("residual", residual), norm("norm_weight", norm_weight), freq("inv_freq", inv_freq), q("queries", queries);
  BatchArguments batch(row_start, context, x.size(0));
  const int hidden = x.size(1);
  check_width("residual", hidden);
  x.shape({batch.rows(), hidden});
  norm.shape({hidden});
  freq.shape({kHeadDim / 2});
  const KvLayer cache = kv_layer(keys, values, batch, pages, /*window=*/1);
  const Linear wq = linear("q_weight", q_weight, &q_bias, hidden);
  const Linear wk = linear("k_weight", k_weight, &k_bias, hidden);
  const Linear wv = linear("v_weight", v_weight, &v_bias, hidden);
  CHECK(wq.out % kHeadDim == 0, "q_weight has ", wq.out, " rows, expected a multiple of ", kHeadDim);
  CHECK(wk.out == cache.kv_heads * kHeadDim && wv.out == wk.out, "k_weight and v_weight have ", wk.out, " and ", wv.out,
        " rows, the cache has ", cache.kv_heads, " heads of ", kHeadDim);
  q.shape({batch.rows(), wq.out / kHeadDim, kHeadDim});
  std::vector<float> normed(size_t(batch.rows()) * hidden);
  const AttentionInParams params{
      batch.view(), x.read<float>(), norm.read_bf16(), eps, wq, wk, wv, freq.read<float>(), rope_scale,
      cache,        normed.data(),   q.write<float>()};
  device.run([&] { device.backend->attention_in(params); });
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
  const KvLayer cache = kv_layer(keys, values, batch, pages, window);
  CHECK(cache.kv_heads > 0 && heads % cache.kv_heads == 0, "queries has ", heads,
        " heads, expected a multiple of the cache's ", cache.kv_heads);
  const PagedAttentionParams params{batch.view(), q.read<float>(),   cache, s.read_bf16(), heads,
                                    window,       out.write<float>()};
  device.run([&] { device.backend->paged_attention(params); });
}

void attention_out(BackendHandle& device, const Object& input, const Object& weight, const Object& bias,
                   const Object& residual) {
  Argument x("input", input), out("residual", residual);
  const int rows = x.size(0);
  x.shape({rows, x.size(1)});
  check_width("input", x.size(1));
  const Linear projection = linear("weight", weight, &bias, x.size(1));
  out.shape({rows, projection.out});
  const AttentionOutParams params{x.read<float>(), projection, out.write<float>(), rows};
  device.run([&] { device.backend->attention_out(params); });
}

void moe_gate(BackendHandle& device, const Object& residual, const Object& norm_weight, float eps,
              const Object& router_weight, const Object& router_bias, int chosen, const Object& normed,
              const Object& normed_q8, const Object& normed_scale, const Object& expert, const Object& routing_weight,
              const Object& group_start, const Object& group_order) {
  Argument x("residual", residual), norm("norm_weight", norm_weight), e("expert", expert),
      w("routing_weight", routing_weight);
  Argument start("group_start", group_start), order("group_order", group_order);
  const int rows = x.size(0), hidden = x.size(1);
  x.shape({rows, hidden});
  check_width("residual", hidden);
  norm.shape({hidden});
  const Linear router = linear("router_weight", router_weight, &router_bias, hidden);
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
  const MoeGateParams params{x.read<float>(),
                             norm.read_bf16(),
                             eps,
                             router,
                             chosen,
                             expert_rows("normed", normed, normed_q8, normed_scale, rows, hidden),
                             experts.data(),
                             w.write<float>(),
                             groups.view(),
                             rows};
  int32_t* const out[] = {e.write<int32_t>(), start.write<int32_t>(), order.write<int32_t>()};
  device.run([&] { device.backend->moe_gate(params); });
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
            const Object& output_scale) {
  const ExpertLinear layer = expert_linear(blocks, scales, bias);
  CHECK(layer.out % (2 * kMxfp4Block) == 0, "blocks has ", layer.out, " rows, expected a multiple of 64");
  const int assignments = assignments_of(group_order, chosen);
  const int rows = assignments / chosen;
  Groups groups = checked_groups(group_start, group_order, layer.experts, assignments);
  const MoeUpParams params{expert_rows("input", input, input_q8, input_scale, rows, layer.in),
                           groups.view(),
                           layer,
                           limit,
                           chosen,
                           expert_rows("output", output, output_q8, output_scale, assignments, layer.out / 2),
                           rows};
  device.run([&] { device.backend->moe_up(params); });
}

void moe_down(BackendHandle& device, const Object& input, const Object& input_q8, const Object& input_scale,
              const Object& group_start, const Object& group_order, const Object& blocks, const Object& scales,
              const Object& bias, const Object& routing_weight, const Object& residual) {
  const ExpertLinear layer = expert_linear(blocks, scales, bias);
  CHECK(layer.out % kMxfp4Block == 0, "blocks has ", layer.out, " rows, expected a multiple of 32");
  Argument weight("routing_weight", routing_weight), out("residual", residual);
  const int rows = weight.size(0), chosen = weight.size(1);
  weight.shape({rows, chosen});
  out.shape({rows, layer.out});
  const int assignments = assignments_of(group_order, chosen);
  CHECK(assignments == int64_t{rows} * chosen, "group_order has ", assignments, " entries, expected ",
        int64_t{rows} * chosen);
  Groups groups = checked_groups(group_start, group_order, layer.experts, assignments);
  const MoeDownParams params{expert_rows("input", input, input_q8, input_scale, assignments, layer.in),
                             groups.view(),
                             layer,
                             weight.read<float>(),
                             chosen,
                             out.write<float>(),
                             rows};
  device.run([&] { device.backend->moe_down(params); });
}

void unembed(BackendHandle& device, const Object& residual, const Object& logit_rows, const Object& norm_weight,
             float eps, const Object& lm_head, const Object& logits) {
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
  std::vector<float> normed(size_t(count) * hidden);
  const UnembedParams params{x.read<float>(), wanted.data(),     count, norm.read_bf16(), eps, head,
                             normed.data(),   out.write<float>()};
  device.run([&] { device.backend->unembed(params); });
}

}  // namespace

void bind_ops(BackendClass& backend) {
  backend.def("embed", &embed, py::arg("token_ids"), py::arg("weight"), py::arg("residual"))
      .def("attention_in", &attention_in, py::arg("residual"), py::arg("norm_weight"), py::arg("eps"),
           py::arg("q_weight"), py::arg("q_bias"), py::arg("k_weight"), py::arg("k_bias"), py::arg("v_weight"),
           py::arg("v_bias"), py::arg("inv_freq"), py::arg("rope_scale"), py::arg("row_start"), py::arg("context"),
           py::arg("pages"), py::arg("keys"), py::arg("values"), py::arg("queries"))
      .def("paged_attention", &paged_attention, py::arg("queries"), py::arg("keys"), py::arg("values"),
           py::arg("sinks"), py::arg("row_start"), py::arg("context"), py::arg("pages"), py::arg("window"),
           py::arg("output"))
      .def("attention_out", &attention_out, py::arg("input"), py::arg("weight"), py::arg("bias"), py::arg("residual"))
      .def("moe_gate", &moe_gate, py::arg("residual"), py::arg("norm_weight"), py::arg("eps"), py::arg("router_weight"),
           py::arg("router_bias"), py::arg("chosen"), py::arg("normed"), py::arg("normed_q8"), py::arg("normed_scale"),
           py::arg("expert"), py::arg("routing_weight"), py::arg("group_start"), py::arg("group_order"))
      .def("moe_up", &moe_up, py::arg("input"), py::arg("input_q8"), py::arg("input_scale"), py::arg("group_start"),
           py::arg("group_order"), py::arg("blocks"), py::arg("scales"), py::arg("bias"), py::arg("limit"),
           py::arg("chosen"), py::arg("output"), py::arg("output_q8"), py::arg("output_scale"))
      .def("moe_down", &moe_down, py::arg("input"), py::arg("input_q8"), py::arg("input_scale"), py::arg("group_start"),
           py::arg("group_order"), py::arg("blocks"), py::arg("scales"), py::arg("bias"), py::arg("routing_weight"),
           py::arg("residual"))
      .def("unembed", &unembed, py::arg("residual"), py::arg("logit_rows"), py::arg("norm_weight"), py::arg("eps"),
           py::arg("lm_head"), py::arg("logits"));
}

}  // namespace gptoss::bindings
