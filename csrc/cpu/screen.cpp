#include "cpu/screen.h"

#include <cmath>

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
    kernels_.matmul_bf16({x_, size_t(layer_.in)}, 1, layer_.weight + size_t(token) * layer_.in, 1, layer_.in,
                         logits_ + token, layer_.out);
    return logits_[token];
  }

  // Returns the smallest of them.
  float make_candidates_exact() {
    float least = -kLowest;
    for (uint64_t candidate : row_.candidates) least = std::min(least, make_exact(candidate_token(candidate)));
    return least;
  }

  // False: they are so many that they were left. So below.
  bool make_exact_at_least(float least) {
    if (row_.kernels.count_at_least(logits_, layer_.out, least) > most()) return false;
    collect(row_, least);
    make_candidates_exact();
    return true;
  }

  // Those whose score in the race is at least `least`.
  bool make_rivals_exact(const Softmax& softmax, float least, const SampleRow& settings) {
    row_.candidates.resize(most());
    const int found = row_.kernels.rivals(logits_, layer_.out, softmax, least, settings.seed, settings.position, most(),
                                          row_.candidates.data());
    if (found > most()) return false;
    row_.candidates.resize(found);
    make_candidates_exact();
    return true;
  }

  int most() const { return layer_.out / 16; }  // single rows, before all in order are cheaper

 private:
  const Kernels& kernels_;
  const Linear& layer_;
  const float* x_;
  TokenRow& row_;
  float* logits_;
};

}  // namespace

bool settle(const Kernels& kernels, const ScreenedLogits& from, int index, const SampleRow& settings, TokenRow& row,
            float* logits) {
  Bounds bounds(kernels, from, index, row, logits);
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
    const float last = bounds.make_candidates_exact();
    if (row.candidates.size() == size_t(settings.top_k)) least = std::max(least, last);
  }
  if (top_k || has_min_p(settings)) return bounds.make_exact_at_least(least);

  const auto score = [&](int token) {
    return race_score(row.logits[token], token, softmax, settings.seed, settings.position);
  };
  const int ahead =
      row.kernels.race(row.logits, row.vocab, softmax, kNoCut, settings.seed, settings.position, peak.token);
  bounds.make_exact(ahead);
  return bounds.make_rivals_exact(softmax, std::max(score(ahead), score(peak.token)), settings);
}

std::pair<float, float> CpuBackend::norms_of_copy(const float* x, int row, int width) const {
  const int8_t* bytes = dense_bytes_.data() + size_t(row) * width;
  const float* scale = dense_scale_.data() + size_t(row) * (width / kMxfp4Block);
  double squares = 0, lost = 0;
  for (int i = 0; i < width; ++i) {
    const double loss = x[i] - double{scale[i / kMxfp4Block]} * bytes[i];
    squares += double{x[i]} * x[i];
    lost += loss * loss;
  }
  return {static_cast<float>(std::sqrt(squares)), static_cast<float>(std::sqrt(lost))};
}

void CpuBackend::settle_rows(const SampleParams& p) {
  const ScreenedLogits& from = p.screened;
  const auto logits = [&](int row) { return from.logits + size_t(row) * p.vocab; };
  settled_.assign(p.count, 0);
  pool_.parallel_for(p.count, [&](int i, int worker) {
    TokenRow row = token_row(logits(i), p.vocab, worker);
    settled_[i] = settle(kernels_, from, i, p.rows[i], row, logits(i));
  });
  if (std::find(settled_.begin(), settled_.end(), 0) == settled_.end()) return;
  constexpr int kTile = 64;
  const int hidden = from.lm_head.in;
  pool_.parallel_for((p.vocab + kTile - 1) / kTile, [&](int tile, int) {
    const int first = tile * kTile, columns = std::min(kTile, p.vocab - first);
    for (int i = 0; i < p.count; ++i)
      if (!settled_[i])
        dense_matmul(from.normed + size_t(i) * hidden, 1, from.lm_head, first, columns, logits(i) + first, p.vocab);
  });
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
  auto* all_bytes = const_cast<int8_t*>(screen.q8);
  auto* all_scales = const_cast<bf16*>(screen.scale);
  auto* errors = const_cast<float*>(screen.error);
  // Sums of so many products, in floats, of both sides; and a little for the roundings here.
  const float rounding = 2.0f * static_cast<float>(width + 512) * 0x1p-24f;
  constexpr float kMore = 1.001f;
  // Of numbers below 2^-63 the squares are lost, and blocks of them become zeros.
  const float lost_at_most = std::sqrt(static_cast<float>(width)) * 0x1p-62f;
  pool_.parallel_for(static_cast<int>(count), [&](int index, int) {
    const int64_t row = first + index;
    const RowLoss found =
        kernels_.quantize_weights(layer.weight + row * width, width, all_bytes + row * q8_row_bytes(width),
                                  all_scales + row * q8_row_scales(width));
    const float norm = kMore * std::sqrt(found.squares) + lost_at_most;
    const float loss = kMore * std::sqrt(found.lost_squares) + lost_at_most;
    float* error = errors + row * kScreenErrors;
    error[0] = loss + rounding * norm;
    error[1] = norm + loss;
  });
}

}  // namespace gptoss::cpu
