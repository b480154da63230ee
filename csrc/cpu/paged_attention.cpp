// One task handles a few neighbouring rows of a sequence and one kv head, walking over the pages once for
// all of them. A row's pages are always visited whole and in order, so its result depends on nothing else.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/backend.h"

namespace gptoss::cpu {
namespace {

constexpr int kRowBlock = 8;  // rows that share a page while it is in cache

void cut_into_blocks(const Batch& batch, std::vector<RowBlock>& blocks) {
  blocks.clear();
  for (int s = 0; s < batch.sequences; ++s)
    for (int row = batch.row_start[s]; row < batch.row_start[s + 1]; row += kRowBlock)
      blocks.push_back({row, std::min(kRowBlock, batch.row_start[s + 1] - row)});
}

// Adds the sink, a logit without a value, to the softmax and divides.
void finish(const AttentionState& state, float sink, float* output) {
  const float max = std::max(state.max, sink);
  const float scale = std::exp(state.max - max);
  const float total = state.sum * scale + std::exp(sink - max);
  for (int d = 0; d < kHeadDim; ++d) output[d] = state.output[d] * scale / total;
}

}  // namespace

void CpuBackend::paged_attention(const PagedAttentionParams& p) {
  const KvLayer& cache = p.cache;
  const int group = p.heads / cache.kv_heads;  // query heads that share a kv head
  cut_into_blocks(p.batch, row_blocks_);
  const size_t head_bytes = size_t(kHeadDim) * cache.page_size * bytes_of(cache.dtype);
  // Per worker: the block's scaled queries, then its softmax states.
  const size_t query_floats = size_t(kRowBlock) * group * kHeadDim;
  const size_t state_floats = sizeof(AttentionState) / sizeof(float);
  reserve_scratch(query_floats + kRowBlock * group * state_floats);

  pool_.parallel_for(static_cast<int>(row_blocks_.size()) * cache.kv_heads, [&](int index, int worker) {
    const RowBlock& task = row_blocks_[index / cache.kv_heads];
    const int kv_head = index % cache.kv_heads;
    float* queries = scratch(worker);
    auto* states = reinterpret_cast<AttentionState*>(queries + query_floats);

    const int first_position = p.batch.position[task.first_row];
    const int last_position = first_position + task.rows - 1;
    auto oldest_visible = [&](int position) { return p.window == 0 ? 0 : std::max(0, position - p.window + 1); };

    for (int r = 0; r < task.rows; ++r) {
      const float* from = p.queries + (size_t(task.first_row + r) * p.heads + size_t(kv_head) * group) * kHeadDim;
      for (int i = 0; i < group * kHeadDim; ++i) queries[r * group * kHeadDim + i] = from[i] * 0.125f;
      for (int h = 0; h < group; ++h) states[r * group + h] = {{}, -std::numeric_limits<float>::infinity(), 0.0f};
    }

    const int32_t* table = cache.table + size_t(p.batch.sequence[task.first_row]) * cache.table_stride;
    const int size = cache.page_size;
    const auto part_of = [&](const void* pool, int page) {
      return static_cast<const uint8_t*>(pool) + (size_t(table[page]) * cache.kv_heads + kv_head) * head_bytes;
    };
    const int last_page = last_position / size;
    for (int page = oldest_visible(first_position) / size; page <= last_page; ++page) {
      const void *keys = part_of(cache.keys, page), *values = part_of(cache.values, page);
      const void* next_keys = page < last_page ? part_of(cache.keys, page + 1) : nullptr;
      const void* next_values = page < last_page ? part_of(cache.values, page + 1) : nullptr;
      for (int r = 0; r < task.rows; ++r) {
        const int position = first_position + r;
        const int first = std::max(oldest_visible(position) - page * size, 0);
        const int last = std::min(position + 1 - page * size, size);
        if (first >= last) continue;
        const KvPage view{keys, values, cache.dtype, size, first, last, next_keys, next_values};
        kernels_.attend_page(queries + r * group * kHeadDim, group, view, states + r * group);
        next_keys = next_values = nullptr;  // once is enough
      }
    }

    for (int r = 0; r < task.rows; ++r)
      for (int h = 0; h < group; ++h) {
        const int head = kv_head * group + h;
        finish(states[r * group + h], to_float(p.sinks[head]),
               p.output + (size_t(task.first_row + r) * p.heads + head) * kHeadDim);
      }
  });
}

}  // namespace gptoss::cpu
