// What the GPU backend needs beside weights, activations and cache, in bytes: known before anything is loaded, and
// taken once. Plain C++, so that a host without CUDA can plan for one with it.
#pragma once

#include "cuda/layout.h"
#include "model/backend.h"
#include "model/config.h"

namespace gptoss::workspace {

// Decode attention splits a context into chunks of 256 keys up to position 8192 and of 1024 beyond: short contexts
// need many blocks, long ones have them.
constexpr int kChunk = 256, kLongChunk = 1024, kShortChunks = 32;
constexpr int kShortEnd = kChunk * kShortChunks;
constexpr int chunk_of(int key) {
  return key < kShortEnd ? key / kChunk : kShortChunks + (key - kShortEnd) / kLongChunk;
}
constexpr int chunk_begin(int chunk) {
  return chunk < kShortChunks ? chunk * kChunk : kShortEnd + (chunk - kShortChunks) * kLongChunk;
}
// The most chunks that a row of a layer can look at, when the context has `reach` places.
constexpr int most_chunks(int reach, int window) {
  return window == 0 ? chunk_of(reach - 1) + 1 : layout::tiles(window - 1, kChunk) + 1;
}

constexpr int kHeadTile = 8;  // query heads that a block of decode attention works on
// A tile's softmax in progress: maximum, sum and output of each head.
constexpr size_t kAttentionState = sizeof(float) * kHeadTile * (2 + kHeadDim);

constexpr size_t attention(int rows, int head_tiles, int chunks) {
  return size_t(rows) * head_tiles * chunks * kAttentionState;
}
constexpr size_t attention_out(int rows, int width) { return sizeof(bf16) * rows * width; }
// A partial sum for each output of an assignment, and its expert: once, or once for each row tile.
constexpr size_t moe_down_decoded(int out, int assignments) {
  return sizeof(float) * layout::tiles(out, layout::kMxfp4Rows) * assignments * (layout::kMxfp4Rows + 1);
}
constexpr size_t moe_down_prompt(int out, int assignments) { return sizeof(float) * assignments * (size_t(out) + 1); }
// Several blocks share a row's router, and leave its logits here.
constexpr size_t gate_logits(int rows, int experts) { return sizeof(float) * rows * experts; }
// Arrivals: of all blocks, and at each row.
constexpr size_t gate_counters(int rows) { return sizeof(uint32_t) * (1 + size_t(rows)); }

constexpr int kSampleSlice = 2048;  // tokens of the vocabulary that a block of the sampler works on
constexpr int kSampleBins = 1024;   // of the histogram of a row's logits
// What the sampler's kernels say of a row and of a slice of it to each other.
constexpr size_t kSampleRowBytes = 80, kSampleSliceBytes = 32;
constexpr int sample_slices(int vocab) { return layout::tiles(vocab, kSampleSlice); }
// Of each row that, a histogram of counts and masses, the adjusted logits, and a list of tokens.
constexpr size_t sample(int rows, int vocab) {
  return rows *
         (kSampleRowBytes + kSampleSliceBytes * sample_slices(vocab) +
          kSampleBins * (sizeof(uint64_t) + sizeof(uint32_t)) + (sizeof(float) + sizeof(uint32_t)) * size_t(vocab));
}

// Weights on their way in, some rows at a time.
constexpr size_t kStagingBytes = size_t{16} << 20;
int staged_rows(int out, size_t row_bytes);  // whole heads, and whole tiles of either kind

struct Sizes {
  size_t partial;   // shared by all ops
  size_t counters;  // likewise
  size_t staging;
};

// The largest that steps within the limits ask for.
Sizes sizes(const Config&, const StepLimits&);

// Weights in kernel form.
size_t weight_bytes(const Config&);

}  // namespace gptoss::workspace
