// A row is drawn by many blocks, each of which has a slice of the vocabulary; the last to come finishes it. One kernel
// does all of it for rows without cuts (whatever their mask, bias and penalties), two more cut (sample_cuts.cuh), and
// one reports log-probabilities. The last three are launched when some row of the batch wants them, and leave the other
// rows alone.
#include <utility>

#include "cuda/sample_cuts.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

using namespace sampling;

constexpr uint32_t kInPrompt = 0x80000000u;
constexpr float kLowest = -3.402823466e+38f;

struct SliceShared : Shared {
  uint32_t seen[kSlice];  // how often a token was generated, below the top bit, which marks the prompt's
};

// What is forbidden stays so, and what is allowed stays finite.
__device__ __forceinline__ void set(float& logit, float value) {
  if (logit != kForbidden) logit = fminf(fmaxf(value, kLowest), -kLowest);
}

// Calls f(i, at) for the elements of a list of tokens that lie in the slice, `at` places from its beginning, in the
// order of the list. All lanes of a warp see all of them.
template <typename F>
__device__ __forceinline__ void each_in_slice(const int32_t* list, int begin, int end, int first, int size, F&& f) {
  for (int base = begin; base < end; base += kWarpSize) {
    const int i = base + lane_id();
    const int at = i < end ? list[i] - first : -1;
    for (uint32_t left = __ballot_sync(kAllLanes, at >= 0 && at < size); left != 0; left &= left - 1) {
      const int lane = __ffs(static_cast<int>(left)) - 1;
      f(base + lane, __shfl_sync(kAllLanes, at, lane));
    }
  }
}

// Mask, logit bias and penalties on the thread's logits.
__device__ __forceinline__ void adjust(const SampleParams& p, const SampleRow& row, float (&logit)[kEach],
                                       SliceShared& s) {
  const int thread = static_cast<int>(threadIdx.x), first = slice_index() * kSlice;
  if (row.mask_row >= 0) {
    const uint32_t* allowed = p.allowed + size_t(row.mask_row) * ((static_cast<size_t>(p.vocab) + 31) / 32);
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (const int t = token_at(i); t < p.vocab && !(allowed[t / 32] >> (t % 32) & 1u)) logit[i] = kForbidden;
  }
  // A token may be listed more than once: its thread adds in the order of the list.
  each_in_slice(p.bias_token, row.bias_start, row.bias_end, first, kSlice, [&](int listed, int at) {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (token_at(i) == first + at) set(logit[i], logit[i] + p.bias_value[listed]);
  });

  const bool repetition = row.repetition_penalty != 1.0f;
  if (!repetition && row.presence_penalty == 0.0f && row.frequency_penalty == 0.0f) return;
#pragma unroll
  for (int i = 0; i < kEach; ++i) s.seen[kThreads * i + thread] = 0;
  __syncthreads();
  const auto place = [&](int token) { return token >= first && token < first + kSlice ? token - first : -1; };
  for (int i = row.output_start + thread; i < row.output_end; i += kThreads)
    if (const int at = place(p.history[i]); at >= 0) atomicAdd(&s.seen[at], 1u);
  for (int i = row.prompt_start + thread; repetition && i < row.prompt_end; i += kThreads)
    if (const int at = place(p.history[i]); at >= 0) atomicOr(&s.seen[at], kInPrompt);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const uint32_t seen = s.seen[token_at(i) - first], times = seen & ~kInPrompt;
    if (seen == 0) continue;
    if (repetition) set(logit[i], logit[i] > 0 ? logit[i] / row.repetition_penalty : logit[i] * row.repetition_penalty);
    if (times > 0) set(logit[i], logit[i] - (row.presence_penalty + row.frequency_penalty * static_cast<float>(times)));
  }
}

// The draw within a slice: the key of its token's logit. Scores are of logits below the slice's largest, which leaves
// the order among them as it is.
__device__ __forceinline__ Key draw(const SampleRow& row, int vocab, const float (&logit)[kEach], Key largest,
                                    Shared& s) {
  const float highest = value_of(largest);
  if (row.temperature == 0.0f || highest == kForbidden) return largest;
  // Logarithms in double precision only for those whose noise may suffice: rounding keeps the order of the bounds.
  const auto ones = [](uint32_t noise) { return __clz(static_cast<int>(~noise)); };
  uint32_t noises[kEach] = {};
  float reached = kForbidden;
  each_with_noise(row, vocab, [&](int i, int, uint32_t noise) {
    noises[i] = noise;
    reached = fmaxf(reached, scaled(logit[i], highest, row) + gumbel_at_least(ones(noise)));
  });
  reached = value_of(block_largest(rank_key(reached, 0), s));
  Key best = 0, own = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int token = token_at(i);
    if (token >= vocab || logit[i] == kForbidden) continue;
    const float below = scaled(logit[i], highest, row);
    if (!(below + gumbel_at_most(ones(noises[i])) >= reached)) continue;
    const Key key = rank_key(below + gumbel_of(noises[i]), token);
    if (key > best) best = key, own = rank_key(logit[i], token);
  }
  const Key winner = block_largest(best, s);
  if (best == winner && (winner != 0 || threadIdx.x == 0)) s.drawn = own;  // one thread's: keys are unique, 0 is none
  __syncthreads();
  return s.drawn;
}

// The row's token from those of its slices.
__device__ __forceinline__ Key choose(const SampleRow& row, const Slice* slices, int count, Key largest, Shared& s) {
  const float highest = value_of(largest);
  if (row.temperature == 0.0f || highest == kForbidden) return largest;
  Key winner = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const float logit = value_of(slices[i].drawn);
    if (logit == kForbidden) continue;
    const int token = token_of(slices[i].drawn);
    const float noise = gumbel(row.seed, row.position, static_cast<uint32_t>(token));
    const Key key = rank_key(scaled(logit, highest, row) + noise, token);
    winner = key > winner ? key : winner;
  }
  return block_largest(winner, s);
}

// The smallest of the `wanted` largest among the slices' largest: as many tokens are at least as likely. 0 when there
// are fewer slices.
__device__ __forceinline__ Key bound_of(const Slice* slices, int count, int wanted, Shared& s) {
  Key bound = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const Key own = slices[i].untouched;
    int larger = 0;
    for (int k = 0; k < count; ++k) larger += slices[k].untouched > own;
    if (larger == wanted - 1) bound = own;
  }
  return block_largest(bound, s);
}

__global__ void __launch_bounds__(kThreads, 3) slices_kernel(SampleParams p, Memory m) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  SliceShared& s = *shared_memory<SliceShared>();
  const int index = row_index(), thread = static_cast<int>(threadIdx.x);
  const SampleRow& row = p.rows[index];
  const float* logits = p.logits + size_t(index) * p.vocab;
  const bool cuts = row.cuts(p.vocab);
  Row& state = m.row[index];

  float logit[kEach];
  Key untouched = 0, largest = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int token = token_at(i);
    logit[i] = token < p.vocab ? logits[token] : kForbidden;
    if (token >= p.vocab) continue;
    const Key key = isfinite(logit[i]) ? rank_key(logit[i], token) : kNotFinite;
    untouched = key > untouched ? key : untouched;
  }
  adjust(p, row, logit, s);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int token = token_at(i);
    if (token >= p.vocab) continue;
    const Key key = rank_key(logit[i], token);
    largest = key > largest ? key : largest;
    if (cuts) m.adjusted_of(index)[token] = logit[i];
  }
  untouched = block_largest(untouched, s);
  largest = block_largest(largest, s);
  const Key drawn = cuts ? largest : draw(row, p.vocab, logit, largest, s);
  Slice* slices = m.slices_of(index);
  if (thread == 0) {
    Slice& own = slices[slice_index()];
    own.untouched = untouched, own.largest = largest, own.drawn = drawn;
  }
  if (cuts && slice_index() == 0)
    for (int bin = thread; bin < kBins; bin += kThreads)
      m.mass[size_t(index) * kBins + bin] = 0, m.count[size_t(index) * kBins + bin] = 0;
  if (!is_last(&m.arrived[index], gridDim.y, &s.last)) return;

  untouched = largest = 0;
  for (int i = thread; i < m.slices; i += kThreads) {
    untouched = slices[i].untouched > untouched ? slices[i].untouched : untouched;
    largest = slices[i].largest > largest ? slices[i].largest : largest;
  }
  untouched = block_largest(untouched, s);
  largest = block_largest(largest, s);
  const bool failed = untouched == kNotFinite;
  const bool reports = !failed && !row.skip_report && p.logprobs > 0;
  const Key token = failed || cuts ? largest : choose(row, slices, m.slices, largest, s);
  const Key bound = reports ? bound_of(slices, m.slices, p.logprobs < p.vocab ? p.logprobs : p.vocab, s) : 0;
  if (thread == 0) {
    p.status[index] = failed ? SampleStatus::not_finite : SampleStatus::drawn;
    p.token[index] = failed ? 0 : token_of(token);
    p.token_logprob[index] = NAN;
    p.token_rank[index] = 0;
    const bool uncut = !cuts || failed || value_of(largest) == kForbidden;
    state.cuts = uncut                                                        ? Cuts::none
                 : row.top_p < 1.0f || (row.top_k > 0 && row.top_k < p.vocab) ? Cuts::bins
                                                                              : Cuts::min_p;
    state.untouched = untouched, state.largest = largest, state.bound = bound;
    state.winner = state.before_edge = 0, state.listed = state.found = 0;
  }
  for (int i = thread; i < p.logprobs; i += kThreads) {
    p.top_token[size_t(index) * p.logprobs + i] = 0;
    p.top_logprob[size_t(index) * p.logprobs + i] = NAN;
  }
}

// Log-probability and rank of the drawn token, and the likeliest ones, from untouched logits.
__global__ void __launch_bounds__(kThreads) report_kernel(SampleParams p, Memory m) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  Shared& s = *shared_memory<Shared>();
  const int index = row_index(), thread = static_cast<int>(threadIdx.x);
  if (p.rows[index].skip_report || p.status[index] != SampleStatus::drawn) return;
  const float* logits = p.logits + size_t(index) * p.vocab;
  Row& state = m.row[index];
  const int token = p.token[index];
  const float highest = value_of(state.untouched);
  const Key own = rank_key(logits[token], token), bound = state.bound;
  uint32_t* list = m.list_of(index);

  float total = 0.0f;
  Key before = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int t = token_at(i);
    if (t >= p.vocab) continue;
    const Key key = rank_key(logits[t], t);
    total += expf(logits[t] - highest);
    before += key > own ? 1 : 0;
    // Few: hardly more than are reported.
    if (p.logprobs > 0 && key >= bound) list[atomicAdd(&state.found, 1u)] = static_cast<uint32_t>(t);
  }
  const auto plus = [](Key a, Key b) { return a + b; };
  total = block_sum(total, s.sums);
  before = block_reduce(before, plus, s);
  Slice* slices = m.slices_of(index);
  if (thread == 0) slices[slice_index()].total = total, slices[slice_index()].before = static_cast<uint32_t>(before);
  if (!is_last(&m.arrived[index], gridDim.y, &s.last)) return;

  total = 0.0f, before = 0;
  for (int i = thread; i < m.slices; i += kThreads) total += slices[i].total, before += slices[i].before;
  const float log_total = highest + logf(block_sum(total, s.sums));
  before = block_reduce(before, plus, s);
  if (thread == 0) {
    p.token_logprob[index] = logits[token] - log_total;
    p.token_rank[index] = static_cast<int>(before) + 1;
  }
  const int wanted = p.logprobs < p.vocab ? p.logprobs : p.vocab, found = static_cast<int>(state.found);
  Key limit = kNotFinite;
  for (int place = 0; place < wanted; ++place) {
    Key next = 0;
    for (int i = thread; i < found; i += kThreads) {
      const auto t = static_cast<int>(list[i]);
      const Key key = rank_key(logits[t], t);
      if (key < limit && key > next) next = key;
    }
    limit = block_largest(next, s);
    if (thread == 0) {
      p.top_token[size_t(index) * p.logprobs + place] = token_of(limit);
      p.top_logprob[size_t(index) * p.logprobs + place] = logits[token_of(limit)] - log_total;
    }
  }
}

}  // namespace

void GpuBackend::sample(const SampleParams& p) {
  const int slices = workspace::sample_slices(p.vocab);
  auto* memory = partial_.reserve<unsigned char>(workspace::sample(p.count, p.vocab), stream_);
  const auto take = [&](size_t bytes) { return std::exchange(memory, memory + p.count * bytes); };
  Memory m{};
  m.row = reinterpret_cast<Row*>(take(sizeof(Row)));
  m.slice = reinterpret_cast<Slice*>(take(sizeof(Slice) * slices));
  m.mass = reinterpret_cast<Key*>(take(sizeof(Key) * kBins));
  m.count = reinterpret_cast<uint32_t*>(take(sizeof(uint32_t) * kBins));
  m.adjusted = reinterpret_cast<float*>(take(sizeof(float) * p.vocab));
  m.list = reinterpret_cast<uint32_t*>(take(sizeof(uint32_t) * p.vocab));
  m.arrived = counters_.reserve<uint32_t>(sizeof(uint32_t) * p.count, stream_);
  m.vocab = p.vocab, m.slices = slices;

  const dim3 grid(p.count, slices);
  launch({"sample", grid, kThreads, sizeof(SliceShared), stream_}, slices_kernel, p, m);
  if (p.any_cuts) {
    launch({"sample", grid, kThreads, sizeof(BinShared), stream_}, bins_kernel, p, m);
    launch({"sample", grid, kThreads, sizeof(CutShared), stream_}, cuts_kernel, p, m);
  }
  if (p.any_reports) launch({"sample", grid, kThreads, sizeof(Shared), stream_}, report_kernel, p, m);
}

}  // namespace gptoss::GPTOSS_GPU
