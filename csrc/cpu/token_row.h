// A row of logits with its worker's scratch memory, its likeliest tokens, and which settings leave tokens out.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "cpu/kernels.h"

namespace gptoss::cpu {

inline constexpr float kForbidden = -std::numeric_limits<float>::infinity();
inline constexpr float kLowest = std::numeric_limits<float>::lowest();
inline constexpr int kMaximaGroup = 64;  // of SamplingKernels::group_maxima

struct TokenRow {
  const SamplingKernels& kernels;
  const float* logits;
  int vocab;
  float* floats;                      // as many as there are tokens
  float* maxima;                      // as many as there are groups
  std::vector<uint64_t>& candidates;  // see candidate()
};

// Candidates: the tokens >= least.
inline void collect(const TokenRow& row, float least) {
  row.candidates.resize(row.kernels.count_at_least(row.logits, row.vocab, least));
  row.kernels.collect(row.logits, row.vocab, least, row.candidates.data());
}

// Candidates: the `count` likeliest tokens among those >= least, all of them when there are no more; unsorted.
inline void collect_likeliest(const TokenRow& row, int count, float least) {
  const int groups = (row.vocab + kMaximaGroup - 1) / kMaximaGroup;
  if (count <= groups) {
    // `count` groups have a maximum of at least this, so at least `count` tokens do.
    row.kernels.group_maxima(row.logits, row.vocab, row.maxima);
    std::nth_element(row.maxima, row.maxima + count - 1, row.maxima + groups, std::greater<>());
    least = std::max(least, row.maxima[count - 1]);
  }
  collect(row, least);
  if (size_t(count) >= row.candidates.size()) return;
  std::nth_element(row.candidates.begin(), row.candidates.begin() + count, row.candidates.end(), std::greater<>());
  row.candidates.resize(count);
}

// The least logit of those that weigh `share` of the likeliest, which weighs 1.
inline float logit_of(double share, const Softmax& softmax) {
  return static_cast<float>(std::max(double{kLowest}, softmax.largest + softmax.temperature * std::log(share)));
}

// Whether min-p and top-k leave tokens out.
inline bool has_min_p(const SampleRow& row) { return row.min_p > 0.0f; }
inline bool has_top_k(const SampleRow& row, int vocab) { return row.top_k > 0 && row.top_k < vocab; }

}  // namespace gptoss::cpu
