#include "cuda/workspace.h"

#include <algorithm>

namespace gptoss::workspace {

int staged_rows(int out, size_t row_bytes) {
  constexpr int kTogether = 64;
  const size_t rows = kStagingBytes / row_bytes / kTogether * kTogether;
  return static_cast<int>(std::min<size_t>(out, std::max<size_t>(rows, kTogether)));
}

Sizes sizes(const Config& c, const StepLimits& limits) {
  const int decoded = std::min(limits.rows, limits.sequences);
  const int head_tiles = c.kv_heads * layout::tiles(c.heads / c.kv_heads, kHeadTile);
  int chunks = 0;
  for (int window : c.windows) chunks = std::max(chunks, most_chunks(limits.positions, window));
  const int q_width = c.heads * kHeadDim, kv_width = c.kv_heads * kHeadDim;

  const int drawn = std::min(limits.logits, limits.sequences);

  Sizes found{};
  found.partial = std::max({
      attention(decoded, head_tiles, chunks),
      attention_out(limits.rows, q_width),
      moe_down_decoded(c.hidden, decoded * c.chosen),
      moe_down_prompt(c.hidden, limits.rows * c.chosen),
      gate_logits(limits.rows, c.experts),
      sample(drawn, c.vocab),
  });
  found.counters = std::max({gate_counters(limits.rows), sizeof(uint32_t) * decoded * head_tiles,
                             sizeof(uint32_t) * layout::tiles(c.hidden, layout::kMxfp4Rows), sizeof(uint32_t) * drawn});
  const auto dense = [](int out, int in) { return size_t(staged_rows(out, size_t{2} * in)) * in * sizeof(bf16); };
  const auto expert = [](int out, int in) { return size_t(out) * in / kMxfp4Block * (kMxfp4BlockBytes + 1); };
  found.staging = std::max({dense(c.vocab, c.hidden), dense(q_width, c.hidden), dense(kv_width, c.hidden),
                            dense(c.hidden, q_width), expert(2 * c.inner, c.hidden), expert(c.hidden, c.inner)});
  return found;
}

size_t weight_bytes(const Config& c) {
  const size_t q_width = c.heads * kHeadDim, kv_width = c.kv_heads * kHeadDim;
  const auto dense = [](size_t out, size_t in) {
    return layout::dense_bytes(static_cast<int>(out), static_cast<int>(in));
  };
  const auto experts = [&](int out, int in) {
    return c.experts * (layout::mxfp4_code_bytes(out, in) + layout::mxfp4_scale_bytes(out, in) + sizeof(bf16) * out);
  };
  const size_t hidden = c.hidden;
  const size_t attention = dense(q_width, hidden) + 2 * dense(kv_width, hidden) + dense(hidden, q_width) +
                           sizeof(bf16) * (q_width + 2 * kv_width + hidden + c.heads);
  const size_t moe =
      sizeof(bf16) * c.experts * (hidden + 1) + experts(2 * c.inner, c.hidden) + experts(c.hidden, c.inner);
  const size_t layer = attention + moe + sizeof(bf16) * 2 * hidden;  // two norms
  return c.layers * layer + sizeof(bf16) * (size_t(c.vocab) * hidden + hidden) + dense(c.vocab, hidden);
}

}  // namespace gptoss::workspace
