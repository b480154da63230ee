#include "cpu/screen.h"

#include <cmath>

#include "core/philox.h"
#include "cpu/backend.h"
#include "cpu/q8_weights.h"

namespace gptoss::cpu {
namespace {

// One row's logits: bounds at first.
class Bounds {
 public:
  Bounds(const Kernels& kernels, const ScreenedLogits& from, int index, TokenRow& row, float* logits)
      : kernels_(kernels),
        layer_(from.lm_head),
        x_(from.normed + size_t(index) * layer_.in),
        row_(row),
        logits_(logits) {}

  float make_exact(int token) {
    multiply(token, 1);
    return logits_[token];
  }

  // False: they are so many that they were left.
  bool make_exact_at_least(float least) {
    if (row_.kernels.count_at_least(logits_, layer_.out, least) > most()) return false;
    collect(row_, least);
    make_candidates_exact();
    return true;
  }

  void make_candidates_exact() {
    for (uint64_t candidate : row_.candidates) make_exact(candidate_token(candidate));
  }

  bool make_rivals_exact(const Softmax& softmax, float least, const SampleRow& settings) {
    rivals_.resize(most());
    const int found = kernels_.sampling.rivals(logits_, layer_.out, softmax, least, settings.seed, settings.position,
                                               most(), rivals_.data());
    if (found > most()) return false;
    for (int i = 0; i < found; ++i) make_exact(rivals_[i]);
    return true;
  }

  void make_all_exact() { multiply(0, layer_.out); }

  int most() const { return layer_.out / 16; }  // single rows, before all in order are cheaper
  const float* logits() const { return logits_; }

 private:
  void multiply(int first, int columns) {
    kernels_.matmul_bf16({x_, size_t(layer_.in)}, 1, layer_.weight + size_t(first) * layer_.in, columns, layer_.in,
                         logits_ + first, layer_.out);
  }

  const Kernels& kernels_;
  const Linear& layer_;
  const float* x_;
  TokenRow& row_;
  float* logits_;
  std::vector<int32_t> rivals_;
};

// False: more logits are needed than it pays to find one by one.
bool settle(Bounds& bounds, const SampleRow& settings, TokenRow& row) {
  const bool top_k = has_top_k(settings, row.vocab), draws = settings.temperature != 0.0f;
  if (!settings.skip_report || adjusts(settings) || (draws && settings.top_p < 1.0f && !top_k)) return false;
  Peak peak = row.kernels.peak(row.logits, row.vocab);
  if (!peak.finite || !bounds.make_exact_at_least(bounds.make_exact(peak.token))) return false;
  if (!draws) return true;

  // Now the largest is the largest of all.
  peak = row.kernels.peak(row.logits, row.vocab);
  const Softmax softmax{peak.largest, settings.temperature};
  float least = has_min_p(settings) ? logit_of(settings.min_p, softmax) : kLowest;
  if (top_k) {
    if (settings.top_k > bounds.most()) return false;
    collect_likeliest(row, settings.top_k, least);
    bounds.make_candidates_exact();
    float last = row.candidates.empty() ? least : row.logits[candidate_token(row.candidates[0])];
    for (uint64_t candidate : row.candidates) last = std::min(last, row.logits[candidate_token(candidate)]);
    if (row.candidates.size() == size_t(settings.top_k)) least = std::max(least, last);
  }
  if (top_k || has_min_p(settings)) return bounds.make_exact_at_least(least);

  const auto score = [&](int token) {
    return (row.logits[token] - softmax.largest) / softmax.temperature +
           gumbel(settings.seed, settings.position, static_cast<uint32_t>(token));
  };
  const Cut none{kLowest, std::numeric_limits<int>::max()};
  const int ahead =
      row.kernels.race(row.logits, row.vocab, softmax, none, settings.seed, settings.position, peak.token);
  bounds.make_exact(ahead);
  return bounds.make_rivals_exact(softmax, score(ahead), settings);
}

}  // namespace

void settle(const Kernels& kernels, const ScreenedLogits& from, int index, const SampleRow& settings, TokenRow& row,
            float* logits) {
  Bounds bounds(kernels, from, index, row, logits);
  if (!settle(bounds, settings, row)) bounds.make_all_exact();
}

Screen CpuBackend::prepare_screen(const Linear& lm_head, DeviceStorage& storage) {
  if (dense_form_ == DenseForm::q8) return {};  // its logits are products of bytes
  const auto take = [&](size_t bytes) { return storage.emplace_back(*this, bytes).data(); };
  const size_t rows = lm_head.out;
  const Screen screen{.q8 = reinterpret_cast<const int8_t*>(take(rows * q8_row_bytes(lm_head.in))),
                      .scale = reinterpret_cast<const bf16*>(take(rows * q8_row_scales(lm_head.in) * sizeof(bf16))),
                      .error = reinterpret_cast<const float*>(take(rows * kScreenErrors * sizeof(float)))};
  fill_screen(lm_head, screen, 0, lm_head.out);
  return screen;
}

void CpuBackend::fill_screen(const Linear& layer, const Screen& screen, int64_t first, int64_t count) {
  const int width = layer.in;
  // Sums of so many products, in floats, of both sides; and a little for the roundings here.
  const float rounding = 2.0f * static_cast<float>(width + 512) * 0x1p-24f;
  constexpr float kMore = 1.001f, kLostZeros = 1e-28f;  // blocks below 1e-30 became zeros
  reserve_scratch(width);
  pool_.parallel_for(static_cast<int>(count), [&](int index, int worker) {
    const int64_t row = first + index;
    const bf16* weight = layer.weight + row * width;
    float* values = scratch(worker);
    for (int i = 0; i < width; ++i) values[i] = to_float(weight[i]);
    float squares;
    kernels_.matmul_bf16({values, size_t(width)}, 1, weight, 1, width, &squares, 1);
    const float lost =
        kernels_.quantize_weights(weight, width, const_cast<int8_t*>(screen.q8) + row * q8_row_bytes(width),
                                  const_cast<bf16*>(screen.scale) + row * q8_row_scales(width));
    const float norm = kMore * std::sqrt(squares), loss = kMore * std::sqrt(lost) + kLostZeros;
    float* error = const_cast<float*>(screen.error) + row * kScreenErrors;
    error[0] = loss + rounding * norm;
    error[1] = norm + loss;
  });
}

}  // namespace gptoss::cpu
