// One run of one op of the driver: random inputs from a seed, and the outputs it leaves.
#pragma once

#include <algorithm>
#include <cmath>
#include <list>
#include <numeric>
#include <random>
#include <vector>

#include "model/backend.h"

namespace gptoss {

class Trial {
 public:
  Trial(Backend& backend, uint64_t seed) : backend(backend), stage_(backend), generator_(seed) {}

  int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator_); }
  float normal() { return std::normal_distribution<float>()(generator_); }
  bool chance(double p) { return std::bernoulli_distribution(p)(generator_); }

  // How many rows: every number of token tiles, full and not.
  int rows() { return chance(0.7) ? between(1, 12) : between(13, 40); }
  // Of products, whose tiles have up to 128 tokens.
  int product_rows() { return chance(0.8) ? rows() : between(41, 220); }

  template <typename T>
  const T* in(const std::vector<T>& host) {
    return stage_.in(host.data(), host.size());
  }
  const float* floats(size_t count) {
    std::vector<float> values(count);
    for (float& v : values) v = normal();
    return in(values);
  }
  std::vector<bf16> host_bf16(size_t count) {
    std::vector<bf16> values(count);
    for (bf16& v : values) v = to_bf16(normal());
    return values;
  }
  const bf16* bf16s(size_t count) { return in(host_bf16(count)); }

  // Compared from schedule to schedule; `start` is what it holds before.
  template <typename T>
  T* out(const std::vector<T>& start) {
    auto& bytes = outputs.emplace_back(start.size() * sizeof(T));
    if (!start.empty()) std::memcpy(bytes.data(), start.data(), bytes.size());
    return stage_.in_out(reinterpret_cast<T*>(bytes.data()), start.size());
  }
  template <typename T>
  T* out(size_t count) {
    std::vector<T> poison(count);
    if (count > 0) std::memset(static_cast<void*>(poison.data()), 0xff, count * sizeof(T));
    return out(poison);
  }

  Linear linear(int out, int in, MatrixUse use, bool with_bias = true) {
    const auto weight = host_bf16(size_t(out) * in), bias = host_bf16(out);
    return backend.prepare({weight.data(), with_bias ? bias.data() : nullptr, out, in}, use, weights_);
  }

  ExpertLinear experts(int experts, int out, int in) {
    std::vector<uint8_t> blocks(size_t(experts) * out * in / 2), scales(size_t(experts) * out * in / kMxfp4Block);
    for (uint8_t& v : blocks) v = static_cast<uint8_t>(between(0, 255));
    for (uint8_t& v : scales) v = static_cast<uint8_t>(between(118, 126));
    const auto bias = host_bf16(size_t(experts) * out);
    return backend.prepare({blocks.data(), scales.data(), bias.data(), experts, out, in}, weights_);
  }

  // Adapters of some rows, or none; `owner(n)` is the row of product n. B and A are of each expert's own.
  template <typename Owner>
  Lora lora(int rows, int products, int experts, int in, int out, Owner&& owner) {
    if (chance(0.5)) return {};
    const int slots = between(1, 3), stride = between(1, 9);
    std::vector<LoraMatrix> matrices;
    for (int i = 0; i < slots; ++i) {
      const int rank = between(0, stride);
      const auto factor = [&](int width) { return floats(size_t(experts) * std::max(rank, 1) * width); };
      matrices.push_back({factor(in), factor(out), rank});
    }
    std::vector<int32_t> slot(rows);
    for (int32_t& v : slot) v = between(-1, slots - 1);
    // What has no business to be read is NaN.
    std::vector<float> product(size_t(products) * stride, NAN);
    for (int n = 0; n < products; ++n)
      if (const int of = slot[owner(n)]; of >= 0)
        for (int k = 0; k < matrices[of].rank; ++k) product[size_t(n) * stride + k] = normal();
    return {this->in(matrices), this->in(slot), const_cast<float*>(this->in(product)), stride};
  }

  // Each row's assignments go to different experts.
  ExpertGroups groups(int rows, int chosen, int experts) {
    std::vector<std::vector<int32_t>> of(experts);
    std::vector<int32_t> all(experts), start{0}, order;
    std::iota(all.begin(), all.end(), 0);
    for (int row = 0; row < rows; ++row) {
      std::shuffle(all.begin(), all.end(), generator_);
      for (int slot = 0; slot < chosen; ++slot) of[all[slot]].push_back(row * chosen + slot);
    }
    for (const auto& assignments : of) {
      order.insert(order.end(), assignments.begin(), assignments.end());
      start.push_back(static_cast<int32_t>(order.size()));
    }
    return {const_cast<int32_t*>(in(start)), const_cast<int32_t*>(in(order))};
  }

  void finish() { stage_.finish(); }

  Backend& backend;
  std::list<std::vector<unsigned char>> outputs;
  std::mt19937_64& generator() { return generator_; }

 private:
  Staging stage_;
  DeviceStorage weights_;
  std::mt19937_64 generator_;
};

}  // namespace gptoss
