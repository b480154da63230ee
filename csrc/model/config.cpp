#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "model/ops.h"

namespace gptoss {
namespace {

// Far beyond any gpt-oss, and low enough that a size times 64 (a head, a tile) or 128 (experts) fits an int.
constexpr int kMaxSize = 1 << 22;

void check_size(const char* field, int value) {
  CHECK(value > 0 && value <= kMaxSize, field, " is ", value, ", expected 1 to ", kMaxSize);
}

void check_multiple(const char* field, int value, int of) {
  check_size(field, value);
  CHECK(value % of == 0, field, " is ", value, ", expected a positive multiple of ", of,
        "; this model shape is not supported");
}

void check_positive(const char* field, double value) {
  CHECK(value > 0 && std::isfinite(value), field, " is ", value, ", expected a positive finite number");
}

}  // namespace

void Config::validate() const {
  constexpr int kMaxExperts = 128;
  check_multiple("hidden_size", hidden, kMxfp4Block);
  check_multiple("intermediate_size", inner, kMxfp4Block);
  check_size("num_hidden_layers", layers);
  check_size("num_attention_heads", heads);
  check_size("num_key_value_heads", kv_heads);
  CHECK(heads % kv_heads == 0, "num_attention_heads is ", heads, ", expected a multiple of num_key_value_heads ",
        kv_heads);
  CHECK(experts >= 1 && experts <= kMaxExperts, "num_local_experts is ", experts, ", expected 1 to ", kMaxExperts);
  CHECK(chosen >= 1 && chosen <= experts, "num_experts_per_tok is ", chosen, ", expected 1 to num_local_experts ",
        experts);
  check_size("vocab_size", vocab);
  check_positive("max_position_embeddings", max_positions);
  check_positive("initial_context_length", original_positions);
  check_positive("rope_theta", rope_theta);
  check_positive("rope_scaling.factor", rope_factor);
  check_positive("rope_scaling.beta_fast", rope_beta_fast);
  check_positive("rope_scaling.beta_slow", rope_beta_slow);
  check_positive("rms_norm_eps", norm_eps);
  check_positive("swiglu_limit", swiglu_limit);
  CHECK(static_cast<int>(windows.size()) == layers, "windows has ", windows.size(),
        " entries, expected one for each of ", layers, " layers");
  for (int window : windows) CHECK(window >= 0, "a window is ", window, ", expected 0 (full) or more");
}

std::vector<float> yarn_inv_freq(const Config& config) {
  constexpr int half = kHeadDim / 2;
  // The dimension whose wavelength makes `rotations` turns over the original context.
  auto dimension_of = [&](double rotations) {
    return kHeadDim * std::log(config.original_positions / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(double{config.rope_theta}));
  };
  const double low = std::max(dimension_of(config.rope_beta_fast), 0.0);
  double high = std::min(dimension_of(config.rope_beta_slow), double{kHeadDim - 1});
  if (low == high) high += 0.001;  // an empty ramp would divide by zero

  std::vector<float> inv_freq(half);
  for (int i = 0; i < half; ++i) {
    const float wavelength = std::pow(config.rope_theta, static_cast<float>(2 * i) / kHeadDim);
    const float extrapolated = 1.0f / wavelength;
    const float interpolated = 1.0f / (config.rope_factor * wavelength);
    const float ramp =
        std::clamp((static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f, 1.0f);
    inv_freq[i] = interpolated * ramp + extrapolated * (1.0f - ramp);
  }
  return inv_freq;
}

float yarn_scale(const Config& config) {
  return config.rope_factor <= 1.0f ? 1.0f : static_cast<float>(0.1 * std::log(double{config.rope_factor}) + 1.0);
}

}  // namespace gptoss
