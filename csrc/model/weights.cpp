#include "model/weights.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace gptoss {
namespace {

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

const char* text_of(Tensor::Kind kind) { return kind == Tensor::Kind::bf16 ? "BF16 (uint16)" : "U8 (uint8)"; }

class Binder {
 public:
  explicit Binder(const TensorMap& tensors) : tensors_(tensors) {}

  const bf16* dense(const std::string& name, const std::vector<int64_t>& shape) const {
    return static_cast<const bf16*>(find(name, Tensor::Kind::bf16, shape));
  }

  const uint8_t* packed(const std::string& name, const std::vector<int64_t>& shape) const {
    return static_cast<const uint8_t*>(find(name, Tensor::Kind::u8, shape));
  }

  Linear linear(const std::string& name, int out, int in) const {
    return {dense(name + ".weight", {out, in}), dense(name + ".bias", {out}), out, in};
  }

  ExpertLinear experts(const std::string& name, int experts, int out, int in) const {
    const int blocks = in / kMxfp4Block;
    return {packed(name + "_blocks", {experts, out, blocks, kMxfp4BlockBytes}),
            scales(name + "_scales", experts, out, blocks),
            dense(name + "_bias", {experts, out}),
            experts,
            out,
            in};
  }

  // Scales without the byte that stands for NaN, which kernels take for infinity. Refused here rather than minded
  // in the innermost loops: a scale is a seventeenth of the weights and memchr reads as fast as memory delivers.
  const uint8_t* scales(const std::string& name, int experts, int out, int blocks) const {
    const uint8_t* data = packed(name, {experts, out, blocks});
    const size_t size = size_t(experts) * out * blocks;
    const void* found = std::memchr(data, kE8m0Nan, size);
    if (found == nullptr) return data;
    const size_t first = static_cast<const uint8_t*>(found) - data;
    const auto count = std::count(data + first, data + size, kE8m0Nan);
    fail<CheckpointError>(__FILE__, __LINE__, "tensor ", name, ": ", count, " of ", size,
                          " scales are 255, NaN in MXFP4, the first at expert ", first / blocks / out, ", row ",
                          first / blocks % out, ", block ", first % blocks,
                          "; expected 0 to 254; download the weights again or quantise them anew");
  }

 private:
  const void* find(const std::string& name, Tensor::Kind kind, const std::vector<int64_t>& shape) const {
    const auto found = tensors_.find(name);
    CHECK(found != tensors_.end(), "tensor ", name, " is missing; open the checkpoint with open_checkpoint");
    const Tensor& tensor = found->second;
    CHECK(tensor.kind == kind, "tensor ", name, " is ", text_of(tensor.kind), ", expected ", text_of(kind),
          "; open the checkpoint with open_checkpoint");
    CHECK(tensor.shape == shape, "tensor ", name, " has shape ", text_of(tensor.shape), ", the config asks for ",
          text_of(shape), "; use config and tensors of one model");
    return tensor.data;
  }

  const TensorMap& tensors_;
};

}  // namespace

Weights Weights::bind(const Config& config, const TensorMap& tensors) {
  const Binder at(tensors);
  const int q_width = config.heads * kHeadDim;
  const int kv_width = config.kv_heads * kHeadDim;

  Weights weights;
  weights.embedding = at.dense("model.embed_tokens.weight", {config.vocab, config.hidden});
  for (int layer = 0; layer < config.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    const std::string attention = prefix + "self_attn.";
    const std::string mlp = prefix + "mlp.";
    weights.layers.push_back({
        .attention_norm = at.dense(prefix + "input_layernorm.weight", {config.hidden}),
        .q = at.linear(attention + "q_proj", q_width, config.hidden),
        .k = at.linear(attention + "k_proj", kv_width, config.hidden),
        .v = at.linear(attention + "v_proj", kv_width, config.hidden),
        .sinks = at.dense(attention + "sinks", {config.heads}),
        .attention_out = at.linear(attention + "o_proj", config.hidden, q_width),
        .moe_norm = at.dense(prefix + "post_attention_layernorm.weight", {config.hidden}),
        .router = at.linear(mlp + "router", config.experts, config.hidden),
        .gate_up = at.experts(mlp + "experts.gate_up_proj", config.experts, 2 * config.inner, config.hidden),
        .down = at.experts(mlp + "experts.down_proj", config.experts, config.hidden, config.inner),
    });
  }
  weights.final_norm = at.dense("model.norm.weight", {config.hidden});
  weights.lm_head = {at.dense("lm_head.weight", {config.vocab, config.hidden}), nullptr, config.vocab, config.hidden};
  return weights;
}

Weights Weights::prepare(Backend& backend, const Config& config) const {
  Weights to;
  const size_t hidden = config.hidden;
  const auto vector = [&](const bf16* from, size_t count) { return upload(backend, from, count, to.storage); };
  const auto matrix = [&](const Linear& from, MatrixUse use) { return backend.prepare(from, use, to.storage); };
  to.embedding = vector(embedding, config.vocab * hidden);
  for (const LayerWeights& from : layers)
    to.layers.push_back({
        .attention_norm = vector(from.attention_norm, hidden),
        .q = matrix(from.q, MatrixUse::rotary_product),
        .k = matrix(from.k, MatrixUse::rotary_product),
        .v = matrix(from.v, MatrixUse::product),
        .sinks = vector(from.sinks, config.heads),
        .attention_out = matrix(from.attention_out, MatrixUse::product),
        .moe_norm = vector(from.moe_norm, hidden),
        .router = matrix(from.router, MatrixUse::rows),
        .gate_up = backend.prepare(from.gate_up, to.storage),
        .down = backend.prepare(from.down, to.storage),
    });
  to.final_norm = vector(final_norm, hidden);
  to.lm_head = matrix(lm_head, MatrixUse::product);
  to.screen = backend.prepare_screen(lm_head, to.storage);
  return to;
}

}  // namespace gptoss
