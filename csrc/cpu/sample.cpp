// One task samples one row. Filters work on a list of candidates that shrinks, so that the usual settings
// never sort the vocabulary.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_map>

#include "core/philox.h"
#include "cpu/backend.h"

namespace gptoss::cpu {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

// Mask, logit bias and penalties, in place.
void adjust(const SampleParams& p, const SampleRow& row, float* logits) {
  if (row.mask_row >= 0) {
    const uint32_t* allowed = p.allowed + size_t(row.mask_row) * ((p.vocab + 31) / 32);
    for (int t = 0; t < p.vocab; ++t)
      if (!(allowed[t / 32] >> (t % 32) & 1)) logits[t] = kForbidden;
  }
  for (int i = row.bias_start; i < row.bias_end; ++i) logits[p.bias_token[i]] += p.bias_value[i];

  const bool repetition = row.repetition_penalty != 1.0f;
  if (!repetition && row.presence_penalty == 0.0f && row.frequency_penalty == 0.0f) return;
  std::unordered_map<int32_t, int> generated;  // occurrences among the generated tokens; 0 = in the prompt only
  if (repetition)
    for (int i = row.prompt_start; i < row.prompt_end; ++i) generated.try_emplace(p.history[i], 0);
  for (int i = row.output_start; i < row.output_end; ++i) ++generated[p.history[i]];
  for (const auto& [token, count] : generated) {
    float& logit = logits[token];
    if (repetition) logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
    if (count > 0) logit -= row.presence_penalty + row.frequency_penalty * static_cast<float>(count);
  }
}

// Likelier first; equal ones by id, so that every choice is defined.
struct Likelier {
  const float* logits;
  bool operator()(int a, int b) const { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); }
};

int argmax(const float* logits, int vocab) {
  int best = 0;
  for (int t = 1; t < vocab; ++t)
    if (logits[t] > logits[best]) best = t;
  return best;
}

// Keeps the smallest set of likeliest candidates whose probability reaches top_p. The largest logit is 0.
void keep_nucleus(const float* logits, float top_p, std::vector<int>& candidates) {
  double total = 0;
  for (int t : candidates) total += std::exp(double{logits[t]});
  const Likelier likelier{logits};
  double reached = 0;
  size_t sorted = 0;
  for (size_t step = 64; sorted < candidates.size(); step *= 4) {
    const size_t end = std::min(candidates.size(), sorted + step);
    if (end < candidates.size())
      std::nth_element(candidates.begin() + sorted, candidates.begin() + end, candidates.end(), likelier);
    std::sort(candidates.begin() + sorted, candidates.begin() + end, likelier);
    for (; sorted < end; ++sorted) {
      reached += std::exp(double{logits[candidates[sorted]]});
      if (reached >= top_p * total) {
        candidates.resize(sorted + 1);
        return;
      }
    }
  }
}

int draw(const SampleRow& row, int vocab, float* logits, std::vector<int>& candidates) {
  const int best = argmax(logits, vocab);
  if (row.temperature == 0.0f || logits[best] == kForbidden) return best;
  const float largest = logits[best];
  const float threshold = row.min_p > 0.0f ? std::log(row.min_p) : kForbidden;
  candidates.clear();
  for (int t = 0; t < vocab; ++t) {
    logits[t] = (logits[t] - largest) / row.temperature;  // the best stays 0 however small the temperature
    if (logits[t] >= threshold && logits[t] != kForbidden) candidates.push_back(t);
  }
  if (row.top_k > 0 && size_t(row.top_k) < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + row.top_k, candidates.end(), Likelier{logits});
    candidates.resize(row.top_k);
  }
  if (row.top_p < 1.0f) keep_nucleus(logits, row.top_p, candidates);

  int chosen = best;
  float highest = kForbidden;
  for (int t : candidates) {
    const float score = logits[t] + gumbel(row.seed, row.position, static_cast<uint32_t>(t));
    if (score > highest || (score == highest && t < chosen)) highest = score, chosen = t;
  }
  return chosen;
}

// Log-probability and rank of the chosen token and the `logprobs` likeliest ones, from untouched logits.
void report(const SampleParams& p, int index, const float* logits, std::vector<int>& order) {
  const float largest = logits[argmax(logits, p.vocab)];
  double total = 0;
  for (int t = 0; t < p.vocab; ++t) total += std::exp(double{logits[t]} - largest);
  const double log_total = largest + std::log(total);

  const int token = p.token[index];
  const Likelier likelier{logits};
  int rank = 1;
  for (int t = 0; t < p.vocab; ++t) rank += likelier(t, token);
  p.token_logprob[index] = static_cast<float>(logits[token] - log_total);
  p.token_rank[index] = rank;
  if (p.logprobs == 0) return;

  order.resize(p.vocab);
  std::iota(order.begin(), order.end(), 0);
  const int count = std::min(p.logprobs, p.vocab);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), likelier);
  for (int i = 0; i < count; ++i) {
    p.top_token[size_t(index) * p.logprobs + i] = order[i];
    p.top_logprob[size_t(index) * p.logprobs + i] = static_cast<float>(logits[order[i]] - log_total);
  }
}

bool all_finite(const float* logits, int vocab) {
  float sum = 0.0f;
  for (int t = 0; t < vocab; ++t) sum += logits[t] - logits[t];  // NaN for NaN and infinity
  return sum == 0.0f;
}

void fail_row(const SampleParams& p, int index) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  p.status[index] = SampleStatus::not_finite;
  p.token[index] = 0;
  p.token_logprob[index] = kNan;
  p.token_rank[index] = 0;
  std::fill_n(p.top_token + size_t(index) * p.logprobs, p.logprobs, 0);
  std::fill_n(p.top_logprob + size_t(index) * p.logprobs, p.logprobs, kNan);
}

}  // namespace

void CpuBackend::sample(const SampleParams& p) {
  reserve_scratch(p.vocab);
  pool_.parallel_for(p.count, [&](int i, int worker) {
    const float* logits = p.logits + size_t(i) * p.vocab;
    if (!all_finite(logits, p.vocab)) {
      fail_row(p, i);
      return;
    }
    p.status[i] = SampleStatus::drawn;
    float* adjusted = scratch(worker);
    std::copy(logits, logits + p.vocab, adjusted);
    adjust(p, p.rows[i], adjusted);
    std::vector<int>& list = candidates_[worker];
    p.token[i] = draw(p.rows[i], p.vocab, adjusted, list);
    report(p, i, logits, list);
  });
}

}  // namespace gptoss::cpu
