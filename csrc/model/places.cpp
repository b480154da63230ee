#include "model/places.h"

#include "model/weights.h"

namespace gptoss {
namespace {

// The weights are const to everybody else: only the owner of their memory writes them, and this is its map.
unsigned char* bytes(const void* data) { return static_cast<unsigned char*>(const_cast<void*>(data)); }

class Map {
 public:
  void numbers(const std::string& name, const bf16* data, int64_t count) {
    places_[name] = {bytes(data), Place::Form::rows, count, sizeof(bf16), 0, 0};
  }

  void matrix(const std::string& name, const Linear& layer, Place::Form form, const Screen& screen = {}) {
    places_[name] = {bytes(layer.weight), form, layer.out, sizeof(bf16) * layer.in, layer.out, layer.in, layer, screen};
  }

  void linear(const std::string& name, const Linear& layer, Place::Form form) {
    matrix(name + ".weight", layer, form);
    numbers(name + ".bias", layer.bias, layer.out);
  }

  void experts(const std::string& name, const ExpertLinear& layer) {
    const int64_t rows = int64_t{layer.experts} * layer.out;
    const size_t blocks = layer.in / kMxfp4Block;
    places_[name + "_blocks"] = {bytes(layer.blocks),       Place::Form::codes, rows,
                                 blocks * kMxfp4BlockBytes, layer.out,          layer.in};
    places_[name + "_scales"] = {bytes(layer.scales), Place::Form::scales, rows, blocks, layer.out, layer.in};
    numbers(name + "_bias", layer.bias, rows);
  }

  Places take() { return std::move(places_); }

 private:
  Places places_;
};

}  // namespace

Places places(const Config& config, const Weights& weights) {
  Map map;
  map.matrix("model.embed_tokens.weight", {weights.embedding, nullptr, config.vocab, config.hidden}, Place::Form::rows);
  for (int index = 0; index < config.layers; ++index) {
    const LayerWeights& layer = weights.layers[index];
    const std::string prefix = "model.layers." + std::to_string(index) + ".";
    map.numbers(prefix + "input_layernorm.weight", layer.attention_norm, config.hidden);
    map.linear(prefix + "self_attn.q_proj", layer.q, Place::Form::rotary);
    map.linear(prefix + "self_attn.k_proj", layer.k, Place::Form::rotary);
    map.linear(prefix + "self_attn.v_proj", layer.v, Place::Form::dense);
    map.numbers(prefix + "self_attn.sinks", layer.sinks, config.heads);
    map.linear(prefix + "self_attn.o_proj", layer.attention_out, Place::Form::dense);
    map.numbers(prefix + "post_attention_layernorm.weight", layer.moe_norm, config.hidden);
    map.linear(prefix + "mlp.router", layer.router, Place::Form::rows);
    map.experts(prefix + "mlp.experts.gate_up_proj", layer.gate_up);
    map.experts(prefix + "mlp.experts.down_proj", layer.down);
  }
  map.numbers("model.norm.weight", weights.final_norm, config.hidden);
  map.matrix("lm_head.weight", weights.lm_head, Place::Form::dense, weights.screen);
  return map.take();
}

}  // namespace gptoss
