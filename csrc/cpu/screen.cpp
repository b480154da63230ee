#include "cpu/screen.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/adjust.h"
#include "cpu/backend.h"
#include "cpu/screen_weights.h"

namespace gptoss::cpu {
namespace {

// Tokens of each of so many rows whose logits are computed one by one, before all in order are cheaper: several rows
// share their reading of lm_head.
int most_single(int vocab, int rows) { return vocab / (16 * std::min(rows, 4)); }

// One row's logits: bounds at first.
class Bounds {
 public:
  Bounds(const std::function<void(int)>& exact, TokenRow& row, int most) : exact_(exact), row_(row), most_(most) {}

  float make_exact(int token) {
    exact_(token);
    return row_.logits[token];
  }

  // Returns the smallest of them.
  float make_candidates_exact() {
    float least = -kLowest;
    for (uint64_t candidate : row_.candidates) least = std::min(least, make_exact(candidate_token(candidate)));
    return least;
  }

  // False: they are so many that they were left. So below.
  bool make_exact_at_least(float least) {
    if (row_.kernels.count_at_least(row_.logits, row_.vocab, least) > most_) return false;
    collect(row_, least);
    make_candidates_exact();
    return true;
  }

  // Those whose score in the race is at least `least`.
  bool make_rivals_exact(const Softmax& softmax, float least, const SampleRow& settings) {
    row_.candidates.resize(most_);
    const int found = row_.kernels.rivals(row_.logits, row_.vocab, softmax, least, settings.seed, settings.position,
                                          most_, row_.candidates.data());
    if (found > most_) return false;
    row_.candidates.resize(found);
    make_candidates_exact();
    return true;
  }

 private:
  const std::function<void(int)>& exact_;
  TokenRow& row_;
  const int most_;
};

}  // namespace

bool settle(const std::function<void(int)>& exact, const SampleRow& settings, TokenRow& row, int likely, int most) {
  Bounds bounds(exact, row, most);
  const bool top_k = has_top_k(settings, row.vocab), draws = settings.temperature != 0.0f;
  if (!settings.skip_report || (draws && settings.top_p < 1.0f && !top_k)) return false;
  if (!bounds.make_exact_at_least(bounds.make_exact(likely))) return false;
  if (!draws) return true;

  // Now the largest is the largest of all.
  const Peak peak = row.kernels.peak(row.logits, row.vocab);
  const Softmax softmax{peak.largest, settings.temperature};
  float least = has_min_p(settings) ? logit_of(settings.min_p, softmax) : kLowest;
  if (top_k) {
    if (settings.top_k > most) return false;
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
    const double used = dense_form_ == DenseForm::q8 ? x[i] - loss : x[i];
    squares += used * used;
    lost += dense_form_ == DenseForm::q8 ? 0 : loss * loss;
  }
  return {static_cast<float>(std::sqrt(squares)), static_cast<float>(std::sqrt(lost))};
}

void CpuBackend::bound_logits(const UnembedParams& p, int first, int columns) {
  constexpr float kUnderflow = 1e-35f;  // what products of tiny scales may lose
  // Beyond it sums may overflow on the way, here or there, to what is no number.
  constexpr float kMost = std::numeric_limits<float>::max() / 4;
  const int width = p.lm_head.in, vocab = p.lm_head.out;
  const ScreenTile weight{p.screen.codes + first * screen_row_bytes(width),
                          p.screen.scale + first * q8_row_scales(width)};
  const float* error = p.screen.error + size_t(first) * kScreenErrors;
  kernels_.matmul_screen({laid_out_.data(), kernels_.laid_out_bytes(width)}, p.count, weight, columns, width,
                         p.logits + first, vocab);
  for (int i = 0; i < p.count; ++i) {
    float* logits = p.logits + size_t(i) * vocab + first;
    const auto [size, lost] = norms_[i];
    for (int c = 0; c < columns; ++c) {
      const float loss = error[kScreenErrors * c], norm = error[kScreenErrors * c + 1];
      const float bound = logits[c] + size * loss + lost * norm + kUnderflow;
      logits[c] = size * norm < kMost ? bound : std::numeric_limits<float>::infinity();
    }
  }
}

void CpuBackend::settle_rows(const SampleParams& p) {
  const ScreenedLogits& from = p.screened;
  const int hidden = from.lm_head.in;
  const auto exact = [&](int row, int rows, int first, int columns) {
    dense_matmul(from.normed, row, rows, from.lm_head, first, columns, from.logits + size_t(row) * p.vocab + first,
                 p.vocab);
  };
  const int most = most_single(p.vocab, p.count);
  settled_.assign(p.count, 0);
  reserve_dense(from.lm_head, p.count);
  pool_.parallel_for(p.count, [&](int i, int worker) {
    quantize_dense(from.lm_head, from.normed + size_t(i) * hidden, i);
    const float* logits = from.logits + size_t(i) * p.vocab;
    TokenRow row = token_row(logits, p.vocab, worker);
    const SampleRow& settings = p.rows[i];
    const Peak peak = row.kernels.peak(logits, p.vocab);
    if (!peak.finite) return;
    if (!adjusts(settings)) {
      settled_[i] = settle([&](int token) { exact(i, 1, token, 1); }, settings, row, peak.token, most);
      return;
    }
    const std::vector<int32_t> changed = adjusted_tokens(p, settings);
    if (changed.size() > size_t(most)) return;
    for (int32_t token : changed) exact(i, 1, token, 1);
    float* adjusted = scratch(worker);
    std::copy_n(logits, p.vocab, adjusted);
    adjust(p, settings, adjusted);
    row.logits = adjusted;
    const auto unchanged = [&](int token) {
      if (std::binary_search(changed.begin(), changed.end(), token)) return;
      exact(i, 1, token, 1);
      adjusted[token] = logits[token];
    };
    const Peak left = row.kernels.peak(adjusted, p.vocab);
    settled_[i] = left.largest != kForbidden && settle(unchanged, settings, row, left.token, most);
  });
  const auto settled = std::count(settled_.begin(), settled_.end(), 1);
  rows_settled_ += settled;
  if (settled == p.count) return;
  constexpr int kTile = 64;
  pool_.parallel_for((p.vocab + kTile - 1) / kTile, [&](int tile, int) {
    const int first = tile * kTile, columns = std::min(kTile, p.vocab - first);
    for (int i = 0, end; i < p.count; i = end) {  // neighbours together
      for (end = i + 1; end < p.count && settled_[end] == settled_[i];) ++end;
      if (!settled_[i]) exact(i, end - i, first, columns);
    }
  });
}

Screen CpuBackend::prepare_screen(const Linear& lm_head, DeviceStorage& storage) {
  const size_t rows = lm_head.out;
  const Screen screen{.codes = storage.take_beside<uint8_t>(*this, rows * screen_row_bytes(lm_head.in)),
                      .scale = storage.take_beside<bf16>(*this, rows * q8_row_scales(lm_head.in)),
                      .error = storage.take_beside<float>(*this, rows * kScreenErrors)};
  fill_screen(lm_head, screen, 0, lm_head.out);
  return screen;
}

void CpuBackend::fill_screen(const Linear& layer, const Screen& screen, int64_t first, int64_t count) {
  const int width = layer.in;
  auto* all_codes = const_cast<uint8_t*>(screen.codes);
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
        kernels_.quantize_screen(layer.weight + row * width, width, dense_form_ == DenseForm::q8,
                                 all_codes + row * screen_row_bytes(width), all_scales + row * q8_row_scales(width));
    const float norm = kMore * std::sqrt(found.squares) + lost_at_most;
    const float loss = kMore * std::sqrt(found.lost_squares) + lost_at_most;
    float* error = errors + row * kScreenErrors;
    error[0] = loss + rounding * norm;
    error[1] = norm + loss;
  });
}

}  // namespace gptoss::cpu
