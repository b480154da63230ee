// Top-k, top-p and min-p. Filters are cut-offs in one total order of the tokens (likelier first, of equals the lower
// id). A histogram of all logits says in which bins the cuts lie; the tokens of those bins are listed, and the last
// block to come finds the cuts among them. All histograms hold integers.
#pragma once

#include "cuda/sample.cuh"

namespace gptoss::GPTOSS_GPU::sampling {

// Sums of masses by bin in two halves, because shared memory adds 32 bits at once and 64 in a loop of trials.
struct Histogram {
  uint32_t low[kBins], high[kBins];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kOwnBins; ++i) low[own(i)] = high[own(i)] = 0;
  }
  __device__ __forceinline__ void add(int bin, Key weight) {
    const auto upper = static_cast<uint32_t>(weight >> kLowBits);
    atomicAdd(&low[bin], static_cast<uint32_t>(weight) & ((1u << kLowBits) - 1u));
    if (upper > 0) atomicAdd(&high[bin], upper);
  }
  __device__ __forceinline__ Key sum(int bin) const { return low[bin] + (static_cast<Key>(high[bin]) << kLowBits); }

  static __device__ __forceinline__ int own(int i) { return kOwnBins * static_cast<int>(threadIdx.x) + i; }
};

struct BinShared : Shared {
  Histogram mass;
  uint32_t count[kBins];
};

struct CutShared : Shared {
  Histogram mass;
  Key kept[kSlice];  // the list's beginning
};

// What of a mass the draw keeps: top-p of it, but one token.
__device__ __forceinline__ Key target_of(Key mass, float top_p) {
  const auto target = static_cast<Key>(static_cast<double>(mass) * static_cast<double>(top_p));
  return target > 0 ? target : 1;
}

__device__ __forceinline__ float threshold_of(const SampleRow& row) {
  return row.min_p > 0.0f ? logf(row.min_p) : kForbidden;
}

// Counts and masses of a row's tokens by bin; the last block says which bins the cuts lie in.
__global__ void __launch_bounds__(kThreads, 4) bins_kernel(SampleParams p, Memory m) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  BinShared& s = *shared_memory<BinShared>();
  Row& state = m.row[row_index()];
  if (state.cuts != Cuts::bins) return;
  const SampleRow& row = p.rows[row_index()];
  const float highest = value_of(state.largest), threshold = threshold_of(row);
  const float* adjusted = m.adjusted_of(row_index());
  Key* mass = m.mass + size_t(row_index()) * kBins;
  uint32_t* count = m.count + size_t(row_index()) * kBins;

  s.mass.clear();
#pragma unroll
  for (int i = 0; i < kOwnBins; ++i) s.count[Histogram::own(i)] = 0;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int token = token_at(i);
    if (token >= p.vocab) continue;
    const float logit = scaled(adjusted[token], highest, row);
    if (!(logit >= threshold) || logit == kForbidden) continue;
    atomicAdd(&s.count[bin_of(logit)], 1u);
    s.mass.add(bin_of(logit), mass_of(logit));
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kOwnBins; ++i) {
    const int bin = Histogram::own(i);
    if (s.count[bin] == 0) continue;
    atomicAdd(&count[bin], s.count[bin]);
    if (const Key sum = s.mass.sum(bin); sum > 0) atomicAdd(&mass[bin], sum);
  }
  if (!is_last(&m.arrived[row_index()], gridDim.y, &s.last)) return;

  Key counts[kOwnBins], masses[kOwnBins];
#pragma unroll
  for (int i = 0; i < kOwnBins; ++i) counts[i] = count[Histogram::own(i)], masses[i] = mass[Histogram::own(i)];
  const Key all = ~Key{0};
  const bool top_k = row.top_k > 0 && row.top_k < p.vocab;
  const Found edge = find_bin(counts, top_k ? static_cast<Key>(row.top_k) : all, s);
  // Of tokens beyond the edge there is nothing left that top-p could see.
#pragma unroll
  for (int i = 0; i < kOwnBins; ++i)
    if (Histogram::own(i) >= edge.bin) masses[i] = 0;
  const Key sure = find_bin(masses, all, s).before;
  Found first{kBins, 0}, last{-1, 0};
  if (row.top_p < 1.0f) {
    // Some of the edge's tokens stay: their mass lies between none and all of it.
    const Key more = edge.bin < kBins ? mass[edge.bin] : 0;
#pragma unroll
    for (int i = 0; i < kOwnBins; ++i)
      if (Histogram::own(i) == edge.bin) masses[i] = more;
    first = find_bin(masses, target_of(sure, row.top_p), s);
    last = find_bin(masses, target_of(sure + more, row.top_p), s);
  }
  if (threadIdx.x == 0) {
    state.edge = edge.bin, state.in_edge = row.top_k - static_cast<int>(edge.before);
    state.before_edge = sure;
    state.first = first.bin, state.before_first = first.before, state.last = last.bin;
  }
}

// The tokens that a cut may reach, as keys of their scaled logits.
struct List {
  const uint32_t* token;
  const float* adjusted;
  const SampleRow& row;
  float highest;
  int size;
  CutShared& s;

  __device__ __forceinline__ Key read(int i) const {
    const auto t = static_cast<int>(token[i]);
    return rank_key(scaled(adjusted[t], highest, row), t);
  }
  __device__ __forceinline__ Key key(int i) const { return i < kSlice ? s.kept[i] : read(i); }

  // The key at which the sum of weight(key) over falling keys reaches `target`, which it does. All threads call it.
  template <typename Weight>
  __device__ __forceinline__ Key reach(Key target, Weight&& weight) const {
    const int thread = static_cast<int>(threadIdx.x);
    int known = 64;  // bits of the key from here on are those of `cut`
    Key cut = 0;
    while (known > 0) {
      const auto weight_of = [&](Key k) { return known < 64 && k >> known != cut >> known ? Key{0} : weight(k); };
      Key common = ~Key{0}, either = 0;
      for (int i = thread; i < size; i += kThreads)
        if (const Key k = key(i); weight_of(k) > 0) common &= k, either |= k;
      common = block_reduce(common, [](Key a, Key b) { return a & b; }, s);
      either = block_reduce(either, [](Key a, Key b) { return a | b; }, s);
      if (common == either) return common;  // one is left
      // By the highest ten bits from the first in which they differ.
      const int top = 64 - __clzll(static_cast<long long>(common ^ either));
      const int shift = top > 10 ? top - 10 : 0;
      const auto place = [&](Key k) { return kBins - 1 - static_cast<int>(k >> shift & (kBins - 1)); };
      Key own[kOwnBins] = {};
      for (int begin = 0; begin < size; begin += kSlice) {  // no more at once than 32 bits can count
        __syncthreads();
        s.mass.clear();
        __syncthreads();
        const int end = size < begin + kSlice ? size : begin + kSlice;
        for (int i = begin + thread; i < end; i += kThreads)
          if (const Key k = key(i), w = weight_of(k); w > 0) s.mass.add(place(k), w);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kOwnBins; ++i) own[i] += s.mass.sum(Histogram::own(i));
      }
      const Found found = find_bin(own, target, s);
      target -= found.before;
      cut = ((common >> shift & ~Key{kBins - 1}) | static_cast<Key>(kBins - 1 - found.bin)) << shift;
      known = shift;
    }
    return cut;
  }
};

// The draw among what the cuts leave. Tokens of the bins before them take part at once, those of the bins that they
// may lie in are listed, and the last block to come looks at those.
__global__ void __launch_bounds__(kThreads, 3) cuts_kernel(SampleParams p, Memory m) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  CutShared& s = *shared_memory<CutShared>();
  Row& state = m.row[row_index()];
  if (state.cuts == Cuts::none) return;
  const bool bins = state.cuts == Cuts::bins;
  const SampleRow& row = p.rows[row_index()];
  const float highest = value_of(state.largest), threshold = threshold_of(row);
  const float* adjusted = m.adjusted_of(row_index());
  uint32_t* list = m.list_of(row_index());
  const int edge = bins ? state.edge : kBins, first = bins ? state.first : kBins, last = bins ? state.last : -1;
  const int sure = first < edge ? first : edge;
  const int thread = static_cast<int>(threadIdx.x);

  Key winner = 0;
  uint32_t listed = 0;  // of the thread's tokens, by bit
  each_with_noise(row, p.vocab, [&](int i, int token, uint32_t noise) {
    const float logit = scaled(adjusted[token], highest, row);
    if (!(logit >= threshold) || logit == kForbidden) return;
    const int bin = bin_of(logit);
    if (!bins || bin < sure) {
      const Key key = rank_key(logit + gumbel_of(noise), token);
      winner = key > winner ? key : winner;
    } else if (bin == edge || (bin >= first && bin <= last)) {
      listed |= 1u << i;
    }
  });
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const uint32_t lanes = __ballot_sync(kAllLanes, listed >> i & 1u);
    if (lanes == 0) continue;
    uint32_t place = 0;
    if (lane_id() == 0) place = atomicAdd(&state.listed, static_cast<uint32_t>(__popc(lanes)));
    place = __shfl_sync(kAllLanes, place, 0) + static_cast<uint32_t>(__popc(lanes & ((1u << lane_id()) - 1u)));
    if (listed >> i & 1u) list[place] = static_cast<uint32_t>(token_at(i));
  }
  winner = block_largest(winner, s);
  if (thread == 0) atomicMax(&state.winner, winner);
  if (!is_last(&m.arrived[row_index()], gridDim.y, &s.last)) return;

  const List rest{list, adjusted, row, highest, static_cast<int>(state.listed), s};
  for (int i = thread; i < rest.size && i < kSlice; i += kThreads) s.kept[i] = rest.read(i);
  __syncthreads();
  Key cut = 0, mass = state.before_edge;
  const auto bin_of_key = [](Key key) { return bin_of(value_of(key)); };
  const auto mass_of_key = [](Key key) { return mass_of(value_of(key)); };
  if (edge < kBins) {
    cut =
        rest.reach(static_cast<Key>(state.in_edge), [&](Key key) { return bin_of_key(key) == edge ? Key{1} : Key{0}; });
    Key own = 0;
    for (int i = thread; i < rest.size; i += kThreads)
      if (const Key key = rest.key(i); bin_of_key(key) == edge && key >= cut) own += mass_of_key(key);
    mass += block_reduce(own, [](Key a, Key b) { return a + b; }, s);
  }
  if (first < kBins)
    cut = rest.reach(target_of(mass, row.top_p) - state.before_first, [&](Key key) {
      const int bin = bin_of_key(key);
      return bin >= first && bin <= last && key >= cut ? mass_of_key(key) : Key{0};
    });
  winner = state.winner;
  for (int i = thread; i < rest.size; i += kThreads) {
    const Key key = rest.key(i);
    if (key < cut) continue;
    const int token = token_of(key);
    const Key drawn = rank_key(value_of(key) + gumbel(row.seed, row.position, static_cast<uint32_t>(token)), token);
    winner = drawn > winner ? drawn : winner;
  }
  winner = block_largest(winner, s);
  if (thread == 0) p.token[row_index()] = token_of(winner);
}

}  // namespace gptoss::GPTOSS_GPU::sampling
