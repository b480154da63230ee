// One task computes one head of q, k or v for every row: 64 columns of a projection, its bias, the
// rotation, and for k and v the write into the cache. A row's cosines and sines serve all its heads.
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

  const int heads = p.q.out / kHeadDim;
  const int kv_heads = p.cache.kv_heads;
  const size_t out_floats = size_t(rows) * kHeadDim;
  reserve_scratch(out_floats);
  pool_.parallel_for(heads + 2 * kv_heads, [&](int task, int worker) {
    const bool is_query = task < heads;
    const bool is_key = !is_query && task < heads + kv_heads;
    const Linear& layer = is_query ? p.q : is_key ? p.k : p.v;
    const Lora& lora = is_query ? p.q_lora : is_key ? p.k_lora : p.v_lora;
    const int head = is_query ? task : (task - heads) % kv_heads;
    const size_t first = size_t(head) * kHeadDim;

    float* out = is_query ? p.queries + first : scratch(worker);
    const size_t stride = is_query ? size_t(heads) * kHeadDim : kHeadDim;
    dense_matmul(p.normed, 0, rows, layer, static_cast<int>(first), kHeadDim, out, stride);
    for (int row = 0; row < rows; ++row) {
      float* values = out + row * stride;
      for (int d = 0; d < kHeadDim; ++d) values[d] += to_float(layer.bias[first + d]);
      add_lora(lora, row, row, 0, layer.out, static_cast<int>(first), kHeadDim, values);
      if (is_query || is_key) rotate(values, rotations_.data() + size_t(row) * kHeadDim);
      if (is_query) continue;
      if (p.cache.dtype == DType::f32)
        append<float>(p.cache, p.batch, row, head, values, is_key);
      else
        append<bf16>(p.cache, p.batch, row, head, values, is_key);
    }
  });
}

}  // namespace gptoss::cpu
