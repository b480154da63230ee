// The sampler's passes over a row of logits, which may have any length: in groups of 64, the last one padded.
// Compiled once for each instruction set, as kernels_impl.h.
#pragma once

#include "core/philox.h"
#include "cpu/elementwise_impl.h"

namespace gptoss::cpu {

template <class S>
struct SamplingFor {
  using V = typename S::V;
  using U = typename S::U;
  static constexpr int kGroup = kGumbelGroup;

  // Calls f(pointer to 64 logits, first token); what the last group lacks is `padding`.
  template <typename F>
  [[gnu::always_inline]] static void for_groups(const float* logits, int count, float padding, F&& f) {
    int first = 0;
    for (; first + kGroup <= count; first += kGroup) f(logits + first, first);
    if (first == count) return;
    alignas(64) float last[kGroup];
    for (int i = 0; i < kGroup; ++i) last[i] = first + i < count ? logits[first + i] : padding;
    f(last, first);
  }

  static V largest_of(const float* group) {
    V largest = S::load(group);
    for (int k = S::lanes; k < kGroup; k += S::lanes) largest = S::max(largest, S::load(group + k));
    return largest;
  }

  static Peak peak(const float* logits, int count) {
    V largest = S::set(logits[0]), poison = S::set(0.0f);
    for_groups(logits, count, logits[0], [&](const float* group, int) {
      for (int k = 0; k < kGroup; k += S::lanes) {
        const V v = S::load(group + k);
        largest = S::max(largest, v);
        poison = S::fma(v, S::set(0.0f), poison);  // NaN for NaN and infinity
      }
    });
    const float found = S::largest(largest), check = S::sum(poison);
    int token = 0;
    while (token + S::lanes <= count && S::at_least(S::load(logits + token), S::set(found)) == 0) token += S::lanes;
    while (token < count - 1 && !(logits[token] >= found)) ++token;
    return {found, token, check == check};
  }

  static void group_maxima(const float* logits, int count, float* maxima) {
    for_groups(logits, count, -__builtin_inff(),
               [&](const float* group, int first) { maxima[first / kGroup] = S::largest(largest_of(group)); });
  }

  static int count_at_least(const float* logits, int count, float least) {
    int found = 0;
    for_groups(logits, count, -__builtin_inff(), [&](const float* group, int) {
      for (int k = 0; k < kGroup; k += S::lanes)
        found += __builtin_popcount(S::at_least(S::load(group + k), S::set(least)));
    });
    return found;
  }

  static void collect(const float* logits, int count, float least, uint64_t* candidates) {
    for_groups(logits, count, -__builtin_inff(), [&](const float* group, int first) {
      for (int k = 0; k < kGroup; k += S::lanes)
        for (unsigned kept = S::at_least(S::load(group + k), S::set(least)); kept != 0; kept &= kept - 1) {
          const int i = k + __builtin_ctz(kept);
          *candidates++ = candidate(group[i], first + i);
        }
    });
  }

  static V scaled(V logits, const Softmax& s) {
    return S::div(S::sub(logits, S::set(s.largest)), S::set(s.temperature));
  }

  // Floats add up 64 weights, a double the groups: 200,000 floats in one sum would lose three digits.
  static double mass(const float* logits, int count, float least, Softmax s) {
    double total = 0;
    for_groups(logits, count, -__builtin_inff(), [&](const float* group, int) {
      V sum = S::set(0.0f);
      for (int k = 0; k < kGroup; k += S::lanes) {
        const V v = S::load(group + k);
        sum = S::add(sum, S::zero_unless_at_least(v, S::set(least), ElementwiseFor<S>::exp(scaled(v, s))));
      }
      total += S::sum(sum);
    });
    return total;
  }

  // The random words of `lanes` counters from `first` on.
  static void random_words(uint64_t seed, uint64_t position, uint32_t first, U (&c)[4]) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    c[0] = S::ascending(first);
    c[1] = S::broadcast(0);
    c[2] = S::broadcast(static_cast<uint32_t>(position));
    c[3] = S::broadcast(static_cast<uint32_t>(position >> 32));
    for (int round = 0; round < kPhiloxRounds; ++round) {
      U high0, low0, high1, low1;
      S::multiply(c[0], kPhiloxMultiplier0, high0, low0);
      S::multiply(c[2], kPhiloxMultiplier1, high1, low1);
      c[0] = S::exclusive_or(high1, c[1], S::broadcast(k0));
      c[1] = low1;
      c[2] = S::exclusive_or(high0, c[3], S::broadcast(k1));
      c[3] = low0;
      k0 += kPhiloxWeyl0;
      k1 += kPhiloxWeyl1;
    }
  }

  // Calls f(logit, token) for every token whose score reaches `best`, which f may raise, and whose logit `least`; and
  // for a few others.
  //
  // With u uniform and g = -log(-log u), x + g beats `best` iff -log u < e^(x - best). As 1 - u <= -log u,
  // 1 - u <= e^(x - best) is necessary, and it needs no logarithm. A handful of tokens of a row pass; their
  // scores are then computed as the definition says, so that every instruction set draws the same token.
  template <typename F>
  [[gnu::always_inline]] static void for_contenders(const float* logits, int count, const Softmax& s, float least,
                                                    uint64_t seed, uint64_t position, const float& best, F&& f) {
    for_groups(logits, count, -__builtin_inff(), [&](const float* group, int first) {
      const V largest = largest_of(group);
      if (S::at_least(scaled(largest, s), S::set(best - kLargestGumbel)) == 0 ||
          S::at_least(largest, S::set(least)) == 0)
        return;
      for (int part = 0; part < 16; part += S::lanes) {
        U words[4];
        random_words(seed, position, static_cast<uint32_t>(first / kGroup * 16 + part), words);
        for (int w = 0; w < 4; ++w) {
          const int at = 16 * w + part;
          const V v = S::load(group + at);
          // 2^31 (1 - u), rounded down by less than a bit; a thousandth more allows for e^x's rounding.
          const V reach = S::mul(ElementwiseFor<S>::exp(S::sub(scaled(v, s), S::set(best))), S::set(0x1p31f * 1.001f));
          unsigned passed = S::at_least(reach, S::half_complement(words[w])) & S::at_least(v, S::set(least));
          for (; passed != 0; passed &= passed - 1) {
            const int i = at + __builtin_ctz(passed);
            f(group[i], first + i);
          }
        }
      }
    });
  }

  static int race(const float* logits, int count, Softmax s, Cut cut, uint64_t seed, uint64_t position, int start) {
    int winner = start;
    float best = race_score(logits[start], start, s, seed, position);
    for_contenders(logits, count, s, cut.logit, seed, position, best, [&](float logit, int token) {
      if (token == start || !cut.keeps(logit, token)) return;
      const float found = race_score(logit, token, s, seed, position);
      if (found > best || (found == best && token < winner)) best = found, winner = token;
    });
    return winner;
  }

  static int rivals(const float* logits, int count, Softmax s, float least, uint64_t seed, uint64_t position, int most,
                    uint64_t* candidates) {
    int found = 0;
    for_contenders(logits, count, s, -__builtin_inff(), seed, position, least, [&](float logit, int token) {
      if (token >= count || !(race_score(logit, token, s, seed, position) >= least)) return;
      if (found < most) candidates[found] = candidate(logit, token);
      ++found;
    });
    return found;
  }

  static constexpr SamplingKernels table{peak, group_maxima, count_at_least, collect, mass, race, rivals};
};

}  // namespace gptoss::cpu
