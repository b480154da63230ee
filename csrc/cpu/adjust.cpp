#include "cpu/adjust.h"

#include <algorithm>
#include <unordered_map>

namespace gptoss::cpu {
namespace {

const uint32_t* mask_of(const SampleParams& p, const SampleRow& row) {
  return p.allowed + size_t(row.mask_row) * ((p.vocab + 31) / 32);
}

void apply_mask(const uint32_t* allowed, int vocab, float* logits) {
  for (int first = 0; first < vocab; first += 32) {
    const uint32_t bits = allowed[first / 32];
    if (bits == ~0u) continue;  // masks mostly allow nearly everything or next to nothing
    const int count = std::min(32, vocab - first);
    for (int i = 0; i < count; ++i)
      if (!(bits >> i & 1)) logits[first + i] = kForbidden;
  }
}

bool has_penalties(const SampleRow& row) {
  return row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f || row.frequency_penalty != 0.0f;
}

}  // namespace

bool adjusts(const SampleRow& row) {
  const bool history = row.prompt_start < row.prompt_end || row.output_start < row.output_end;
  return row.mask_row >= 0 || row.bias_start < row.bias_end || (has_penalties(row) && history);
}

std::vector<int32_t> adjusted_tokens(const SampleParams& p, const SampleRow& row) {
  std::vector<int32_t> found(p.bias_token + row.bias_start, p.bias_token + row.bias_end);
  if (has_penalties(row)) {
    if (row.repetition_penalty != 1.0f)
      found.insert(found.end(), p.history + row.prompt_start, p.history + row.prompt_end);
    found.insert(found.end(), p.history + row.output_start, p.history + row.output_end);
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  if (row.mask_row >= 0) {
    const uint32_t* allowed = mask_of(p, row);
    std::erase_if(found, [&](int32_t token) { return !(allowed[token / 32] >> (token % 32) & 1); });
  }
  return found;
}

void adjust(const SampleParams& p, const SampleRow& row, float* logits) {
  auto set = [&](int token, float value) {
    if (logits[token] != kForbidden) logits[token] = std::clamp(value, kLowest, -kLowest);
  };
  if (row.mask_row >= 0) apply_mask(mask_of(p, row), p.vocab, logits);
  for (int i = row.bias_start; i < row.bias_end; ++i) set(p.bias_token[i], logits[p.bias_token[i]] + p.bias_value[i]);

  const bool repetition = row.repetition_penalty != 1.0f;
  std::unordered_map<int32_t, int> generated;  // occurrences among the generated tokens; 0 = in the prompt only
  if (repetition)
    for (int i = row.prompt_start; i < row.prompt_end; ++i) generated.try_emplace(p.history[i], 0);
  for (int i = row.output_start; i < row.output_end; ++i) ++generated[p.history[i]];
  for (const auto& [token, count] : generated) {
    const float logit = logits[token];
    if (repetition) set(token, logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty);
    if (count > 0)
      set(token, logits[token] - (row.presence_penalty + row.frequency_penalty * static_cast<float>(count)));
  }
}

}  // namespace gptoss::cpu
