// Attention over one page of keys and values, by an online softmax: the heads that share a kv head go together.
#pragma once

#include "cpu/elementwise_impl.h"
#include "cpu/kernels.h"
#include "cpu/prefetch.h"
#include "model/ops.h"

namespace gptoss::cpu {

template <class S>
struct AttentionFor {
  using V = typename S::V;

  static V exp(V x) { return ElementwiseFor<S>::exp(x); }

  static constexpr int kHeadGroup = 8;  // query heads whose scores share one load of a key vector
  static_assert(kHeadGroup <= S::lanes);

  // Scores of N vectors of slots from `at` on.
  template <int H, int N, typename T>
  static void slot_scores(const float* queries, const KvPage& page, int at, float (*scores)[kMaxPageSize]) {
    const T* keys = static_cast<const T*>(page.keys) + at;
    const T* next = page.next_keys ? static_cast<const T*>(page.next_keys) + at : nullptr;
    V sum[H][N];
    for (int h = 0; h < H; ++h)
      for (int n = 0; n < N; ++n) sum[h][n] = S::set(0.0f);
    for (int d = 0; d < 64; ++d) {
      V key[N];
      for (int n = 0; n < N; ++n) key[n] = S::load(keys + d * page.size + n * S::lanes);
      for (int h = 0; h < H; ++h)
        for (int n = 0; n < N; ++n) sum[h][n] = S::fma(S::set(queries[h * 64 + d]), key[n], sum[h][n]);
      if (next) ask_for(next + d * page.size, N * S::lanes * sizeof(T));
    }
    for (int h = 0; h < H; ++h)
      for (int n = 0; n < N; ++n) S::save(scores[h] + at + n * S::lanes, sum[h][n]);
  }

  // Turns scores into weights relative to the running maxima and rescales what was summed before.
  template <int H>
  static void update_softmax(float (*scores)[kMaxPageSize], const KvPage& page, AttentionState* states) {
    float before[S::lanes] = {}, now[S::lanes] = {}, rescale[S::lanes] = {};
    bool larger = false;
    for (int h = 0; h < H; ++h) {
      // Slots that do not count may hold anything. -infinity becomes e^-87, which a sum of 1 or more does not see.
      for (int i = 0; i < page.first; ++i) scores[h][i] = -__builtin_inff();
      for (int i = page.last; i < page.size; ++i) scores[h][i] = -__builtin_inff();
      V largest = S::load(scores[h]);
      for (int at = S::lanes; at < page.size; at += S::lanes) largest = S::max(largest, S::load(scores[h] + at));
      before[h] = states[h].max;
      const float found = S::largest(largest);
      now[h] = found > before[h] ? found : before[h];
      larger = larger || found > before[h];
    }
    if (larger) S::save(rescale, exp(S::sub(S::load(before), S::load(now))));
    for (int h = 0; h < H; ++h) {
      AttentionState& state = states[h];
      V sum = S::set(0.0f);
      for (int at = 0; at < page.size; at += S::lanes) {
        const V weight = exp(S::sub(S::load(scores[h] + at), S::set(now[h])));
        S::save(scores[h] + at, weight);
        sum = S::add(sum, weight);
      }
      if (larger) {
        state.max = now[h];
        state.sum *= rescale[h];
        for (int d = 0; d < 64; d += S::lanes)
          S::save(state.output + d, S::mul(S::load(state.output + d), S::set(rescale[h])));
      }
      state.sum += S::sum(sum);
    }
  }

  template <int H, typename T>
  static void add_values(const KvPage& page, const T* next, const float (*weights)[kMaxPageSize],
                         AttentionState* states) {
    constexpr int vectors = 4;
    const T* values = static_cast<const T*>(page.values);
    for (int d = 0; d < 64; d += vectors * S::lanes) {
      V sum[H][vectors];
      for (int h = 0; h < H; ++h)
        for (int v = 0; v < vectors; ++v) sum[h][v] = S::load(states[h].output + d + v * S::lanes);
      for (int i = page.first; i < page.last; ++i) {
        V value[vectors];
        for (int v = 0; v < vectors; ++v) value[v] = S::load(values + i * 64 + d + v * S::lanes);
        for (int h = 0; h < H; ++h)
          for (int v = 0; v < vectors; ++v) sum[h][v] = S::fma(S::set(weights[h][i]), value[v], sum[h][v]);
        if (next) ask_for(next + i * 64 + d, vectors * S::lanes * sizeof(T));
      }
      for (int h = 0; h < H; ++h)
        for (int v = 0; v < vectors; ++v) S::save(states[h].output + d + v * S::lanes, sum[h][v]);
    }
  }

  template <int H, typename T>
  static void attend_heads(const float* queries, const KvPage& page, AttentionState* states) {
    alignas(64) float scores[H][kMaxPageSize];
    constexpr int N = S::score_vectors;
    int at = 0;
    for (; at + N * S::lanes <= page.size; at += N * S::lanes) slot_scores<H, N, T>(queries, page, at, scores);
    for (; at < page.size; at += S::lanes) slot_scores<H, 1, T>(queries, page, at, scores);
    update_softmax<H>(scores, page, states);
    constexpr int G = S::value_heads;
    const T* next = static_cast<const T*>(page.next_values);  // asked for by the first heads
    int h = 0;
    for (; h + G <= H; h += G) add_values<G, T>(page, h ? nullptr : next, scores + h, states + h);
    for (; h < H; ++h) add_values<1, T>(page, h ? nullptr : next, scores + h, states + h);
  }

  template <typename T>
  static void attend(const float* queries, int heads, const KvPage& page, AttentionState* states) {
    int h = 0;
    for (; h + kHeadGroup <= heads; h += kHeadGroup) attend_heads<kHeadGroup, T>(queries + h * 64, page, states + h);
    for (; h + 2 <= heads; h += 2) attend_heads<2, T>(queries + h * 64, page, states + h);
    for (; h < heads; ++h) attend_heads<1, T>(queries + h * 64, page, states + h);
  }

  static void attend_page(const float* queries, int heads, const KvPage& page, AttentionState* states) {
    if (page.dtype == DType::f32)
      attend<float>(queries, heads, page, states);
    else
      attend<bf16>(queries, heads, page, states);
  }
};

}  // namespace gptoss::cpu
