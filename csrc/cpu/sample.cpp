// One task samples one row. Every filter keeps a prefix of the tokens in the order of their likelihood, so the
// filters find where that prefix ends and the draw runs over the row as it lies: nothing is sorted or copied
// that is not close to the cut.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/adjust.h"
#include "cpu/backend.h"
#include "cpu/token_row.h"

namespace gptoss::cpu {
namespace {

double mass_of(const TokenRow& row, size_t begin, size_t end, Softmax softmax) {
  for (size_t i = begin; i < end; ++i) row.floats[i] = candidate_logit(row.candidates[i]);
  return row.kernels.mass(row.floats + begin, static_cast<int>(end - begin), kLowest, softmax);
}

Cut cut_at(uint64_t candidate) { return {candidate_logit(candidate), candidate_token(candidate)}; }

// Where the smallest set of likeliest candidates ends whose weights reach `wanted`.
Cut nucleus_end(const TokenRow& row, Softmax softmax, double wanted) {
  constexpr size_t kFew = 128;
  auto& c = row.candidates;
  size_t begin = 0, end = c.size();  // the end of the set lies in [begin, end)
  double reached = 0;                // by what lies before
  while (end - begin > kFew) {
    const size_t middle = begin + (end - begin) / 2;
    std::nth_element(c.begin() + begin, c.begin() + middle, c.begin() + end, std::greater<>());
    const double more = mass_of(row, begin, middle, softmax);
    if (reached + more >= wanted)
      end = middle;
    else
      reached += more, begin = middle;
  }
  std::sort(c.begin() + begin, c.begin() + end, std::greater<>());
  for (; begin + 1 < end; ++begin) {
    reached += std::exp((double{candidate_logit(c[begin])} - softmax.largest) / softmax.temperature);
    if (reached >= wanted) break;
  }
  return cut_at(c[begin]);
}

// The last token that min-p, top-k and top-p keep, each seeing what the one before left.
Cut find_cut(const TokenRow& row, const SampleRow& settings, Softmax softmax) {
  Cut cut = kNoCut;
  if (has_min_p(settings)) cut.logit = logit_of(settings.min_p, softmax);

  const bool top_k = has_top_k(settings, row.vocab);
  if (top_k) {
    collect_likeliest(row, settings.top_k, cut.logit);
    cut = cut_at(*std::min_element(row.candidates.begin(), row.candidates.end()));
  }
  if (settings.top_p >= 1.0f) return cut;
  // Sums of weights have an order that depends on these tokens alone.
  if (top_k) std::sort(row.candidates.begin(), row.candidates.end(), std::greater<>());

  double total;
  if (top_k) {
    total = mass_of(row, 0, row.candidates.size(), softmax);
  } else {
    total = row.kernels.mass(row.logits, row.vocab, cut.logit, softmax);
    // All tokens below this share together weigh less than the 1 - top_p that may be left out.
    const double share = 0.999 * (1.0 - settings.top_p) * total / row.vocab;
    collect(row, std::max(cut.logit, logit_of(share, softmax)));
  }
  return nucleus_end(row, softmax, settings.top_p * total);
}

int draw(const TokenRow& row, const SampleRow& settings, const Peak& peak) {
  if (settings.temperature == 0.0f) return peak.token;
  const Softmax softmax{peak.largest, settings.temperature};
  const Cut cut = find_cut(row, settings, softmax);
  return row.kernels.race(row.logits, row.vocab, softmax, cut, settings.seed, settings.position, peak.token);
}

// What the row does not report, or reports no more.
void clear_report(const SampleParams& p, int index) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  p.token_logprob[index] = kNan;
  p.token_rank[index] = 0;
  std::fill_n(p.top_token + size_t(index) * p.logprobs, p.logprobs, 0);
  std::fill_n(p.top_logprob + size_t(index) * p.logprobs, p.logprobs, kNan);
}

// Log-probability and rank of the drawn token and the likeliest ones, from untouched logits.
void report(const SampleParams& p, int index, const TokenRow& row, float largest) {
  const double log_total = largest + std::log(row.kernels.mass(row.logits, row.vocab, kLowest, {largest, 1.0f}));
  auto logprob = [&](float logit) { return static_cast<float>(logit - log_total); };
  const int token = p.token[index];
  const float logit = row.logits[token];
  // Likelier are larger logits, and equal ones before it.
  const float larger = std::nextafter(logit, -kForbidden);
  p.token_logprob[index] = logprob(logit);
  p.token_rank[index] = 1 + row.kernels.count_at_least(row.logits, row.vocab, larger);
  for (int t = 0; t < token; ++t) p.token_rank[index] += row.logits[t] == logit;

  if (p.logprobs == 0) return;
  const int count = std::min(p.logprobs, p.vocab);
  collect_likeliest(row, count, kLowest);
  std::sort(row.candidates.begin(), row.candidates.end(), std::greater<>());
  for (int i = 0; i < count; ++i) {
    p.top_token[size_t(index) * p.logprobs + i] = candidate_token(row.candidates[i]);
    p.top_logprob[size_t(index) * p.logprobs + i] = logprob(candidate_logit(row.candidates[i]));
  }
}

}  // namespace

// Behind as many floats as there are tokens.
TokenRow CpuBackend::token_row(const float* logits, int vocab, int worker) {
  float* floats = scratch(worker) + vocab;
  return {kernels_.sampling, logits, vocab, floats, floats + vocab, candidates_[worker]};
}

void CpuBackend::sample(const SampleParams& p) {
  const size_t groups = (size_t(p.vocab) + kMaximaGroup - 1) / kMaximaGroup;
  reserve_scratch(2 * size_t(p.vocab) + groups);
  if (p.screened.logits) settle_rows(p);
  pool_.parallel_for(p.count, [&](int i, int worker) {
    const SampleRow& settings = p.rows[i];
    float* adjusted = scratch(worker);
    const float* logits = p.logits + size_t(i) * p.vocab;
    TokenRow row = token_row(logits, p.vocab, worker);

    clear_report(p, i);
    const Peak untouched = row.kernels.peak(logits, p.vocab);
    p.status[i] = untouched.finite ? SampleStatus::drawn : SampleStatus::not_finite;
    p.token[i] = 0;
    if (!untouched.finite) return;
    Peak peak = untouched;
    if (adjusts(settings)) {
      std::copy(logits, logits + p.vocab, adjusted);
      adjust(p, settings, adjusted);
      row.logits = adjusted;
      peak = row.kernels.peak(adjusted, p.vocab);
    }
    p.token[i] = draw(row, settings, peak);
    if (settings.skip_report) return;
    row.logits = logits;
    report(p, i, row, untouched.largest);
  });
}

}  // namespace gptoss::cpu
