// One task computes some heads of q, k or v for every row: each 64 columns of a projection, its bias, the
// rotation, and for k and v the write into the cache. A row's cosines and sines serve all its heads.
#include <algorithm>
#include <cmath>

#include "cpu/backend.h"
#include "cpu/lora.h"

namespace gptoss::cpu {
namespace {

constexpr int kHalf = kHeadDim / 2;

// Cosines, then sines, of position * inv_freq[i]. Angles are float, as in the official code.
void find_rotation(int position, const float* inv_freq, float rope_scale, float* rotation) {
  for (int i = 0; i < kHalf; ++i) {
    const float angle = static_cast<float>(position) * inv_freq[i];
    rotation[i] = std::cos(angle) * rope_scale;
    rotation[i + kHalf] = std::sin(angle) * rope_scale;
  }
}

// Rotates the pairs (head[i], head[i + 32]).
void rotate(float* head, const float* rotation) {
  for (int i = 0; i < kHalf; ++i) {
    const float c = rotation[i], s = rotation[i + kHalf];
    const float first = head[i], second = head[i + kHalf];
    head[i] = first * c - second * s;
    head[i + kHalf] = second * c + first * s;
  }
}

// Slot of a position in its page; keys are transposed, so their elements lie page_size apart.
template <typename T>
void append(const KvLayer& cache, const Batch& batch, int row, int kv_head, const float* head, bool is_key) {
  const int position = batch.position[row];
  const int page = cache.table[size_t(batch.sequence[row]) * cache.table_stride + position / cache.page_size];
  const int slot = position % cache.page_size;
  T* base = static_cast<T*>(is_key ? cache.keys : cache.values) +
            (size_t(page) * cache.kv_heads + kv_head) * kHeadDim * cache.page_size;
  for (int d = 0; d < kHeadDim; ++d)
    store(head[d], is_key ? base + size_t(d) * cache.page_size + slot : base + size_t(slot) * kHeadDim + d);
}

}  // namespace

void CpuBackend::attention_in(const AttentionInParams& p) {
  const int rows = p.batch.rows;
  const int hidden = p.q.in;
  if (rotations_.size() < size_t(rows) * kHeadDim) rotations_ = Buffer<float>(size_t(rows) * kHeadDim);
  reserve_dense(p.q, rows);
  pool_.parallel_for(rows, [&](int row, int) {
    float* normed = p.normed + size_t(row) * hidden;
    kernels_.rmsnorm(p.residual + size_t(row) * hidden, p.norm_weight, p.norm_eps, hidden, normed);
    quantize_dense(p.q, normed, row);
    find_rotation(p.batch.position[row], p.inv_freq, p.rope_scale, rotations_.data() + size_t(row) * kHeadDim);
  });

  const int heads = p.q.out / kHeadDim, kv_heads = p.cache.kv_heads;
  const int most = tiles_of_task(heads + 2 * kv_heads, size_t(kHeadDim) * hidden, rows);
  const int q_tasks = (heads + most - 1) / most, kv_tasks = (kv_heads + most - 1) / most;
  reserve_scratch(size_t(rows) * most * kHeadDim);
  pool_.parallel_for(q_tasks + 2 * kv_tasks, [&](int task, int worker) {
    const bool is_query = task < q_tasks;
    const bool is_key = !is_query && task < q_tasks + kv_tasks;
    const Linear& layer = is_query ? p.q : is_key ? p.k : p.v;
    const Lora& lora = is_query ? p.q_lora : is_key ? p.k_lora : p.v_lora;
    const int head = most * (is_query ? task : (task - q_tasks) % kv_tasks);
    const int end = std::min(head + most, is_query ? heads : kv_heads);
    const int first = head * kHeadDim, columns = (end - head) * kHeadDim;

    float* out = is_query ? p.queries + first : scratch(worker);
    const size_t stride = is_query ? layer.out : columns;
    dense_matmul(p.normed, 0, rows, layer, first, columns, out, stride);
    for (int row = 0; row < rows; ++row) {
      float* values = out + row * stride;
      for (int c = 0; c < columns; ++c) values[c] += to_float(layer.bias[first + c]);
      add_lora(lora, row, row, 0, layer.out, first, columns, values);
      for (int h = head; h < end; ++h, values += kHeadDim) {
        if (is_query || is_key) rotate(values, rotations_.data() + size_t(row) * kHeadDim);
        if (is_query) continue;
        if (p.cache.dtype == DType::f32)
          append<float>(p.cache, p.batch, row, h, values, is_key);
        else
          append<bf16>(p.cache, p.batch, row, h, values, is_key);
      }
    }
  });
}

}  // namespace gptoss::cpu
