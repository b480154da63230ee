// Shared memory and the barriers that it needs.
#include "cases.h"

namespace gptoss::simulated::cases {
namespace {

constexpr int kThreads = 128;

// Every thread reads what another wrote.
template <bool kRight>
__global__ void missing_barrier(const float* in, float* out) {
  auto* s = shared_memory<float>();
  s[thread_id()] = in[thread_id()];
  if (kRight) __syncthreads();
  out[thread_id()] = s[kThreads - 1 - thread_id()];
}

template <bool kRight>
void run_missing_barrier(uint64_t seed) {
  const std::vector<float> in = random_floats(seed, kThreads);
  std::vector<float> out(kThreads);
  launch({"missing_barrier", 1, kThreads, kThreads * sizeof(float), 0}, missing_barrier<kRight>, in.data(), out.data());
  expect(out, [&](int i) { return in[kThreads - 1 - i]; });  // named by missing_barrier
}

// One barrier a step is enough for two buffers in turn, not for one.
constexpr int kSteps = 5;

template <bool kRight>
__global__ void reused_buffer(const float* in, float* out) {
  float sum = 0.0f;
  for (int step = 0; step < kSteps; ++step) {
    auto* s = shared_memory<float>() + (kRight ? step % 2 * kThreads : 0);
    s[thread_id()] = in[step * kThreads + thread_id()];
    __syncthreads();
    sum += s[(thread_id() + 37) % kThreads];
  }
  out[thread_id()] = sum;
}

template <bool kRight>
void run_reused_buffer(uint64_t seed) {
  const std::vector<float> in = random_floats(seed, kSteps * kThreads);
  std::vector<float> out(kThreads);
  launch({"reused_buffer", 1, kThreads, 2 * kThreads * sizeof(float), 0}, reused_buffer<kRight>, in.data(), out.data());
  const auto wanted = [&](int i) {
    float sum = 0.0f;
    for (int step = 0; step < kSteps; ++step) sum += in[step * kThreads + (i + 37) % kThreads];
    return sum;
  };
  expect(out, wanted);  // named by reused_buffer
}

// Two sums over the block, one after the other, through one scratch: a quick warp writes its second share while a
// slow one still reads the first. Only an unfair schedule shows it.
constexpr int kSums = 2;

template <bool kRight>
__global__ void reused_scratch(const float* in, float* out) {
  auto* scratch = shared_memory<float>();
  for (int n = 0; n < kSums; ++n) {
    const float sum = warp_sum(in[n * kThreads + thread_id()]);
    if (kRight) __syncthreads();
    if (lane_id() == 0) scratch[warp_id()] = sum;
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < kThreads / kWarpSize; ++warp) total += scratch[warp];
    out[n * kThreads + thread_id()] = total;
  }
}

template <bool kRight>
void run_reused_scratch(uint64_t seed) {
  const std::vector<float> in = random_floats(seed, kSums * kThreads);
  std::vector<float> out(in.size());
  launch({"reused_scratch", 1, kThreads, kThreads / kWarpSize * sizeof(float), 0}, reused_scratch<kRight>, in.data(),
         out.data());
  const auto wanted = [&](int i) {
    float sum = 0.0f;
    for (int thread = 0; thread < kThreads; ++thread) sum += in[i / kThreads * kThreads + thread];
    return sum;
  };
  expect(out, wanted);  // named by reused_scratch
}

// A histogram that counts in memory nobody cleared.
constexpr int kBins = 16;

template <bool kRight>
__global__ void uninitialised(const uint32_t* in, uint32_t* out) {
  auto* s = shared_memory<uint32_t>();
  if (kRight && thread_id() < kBins) s[thread_id()] = 0;
  __syncthreads();
  atomicAdd(&s[in[thread_id()] % kBins], 1u);
  __syncthreads();
  if (thread_id() < kBins) out[thread_id()] = s[thread_id()];
}

template <bool kRight>
void run_uninitialised(uint64_t seed) {
  const std::vector<uint32_t> in = random_words(seed, kThreads);
  std::vector<uint32_t> out(kBins);
  launch({"uninitialised", 1, kThreads, kBins * sizeof(uint32_t), 0}, uninitialised<kRight>, in.data(), out.data());
  const auto wanted = [&](int bin) {
    uint32_t count = 0;
    for (const uint32_t v : in) count += v % kBins == static_cast<uint32_t>(bin);
    return count;
  };
  expect(out, wanted);  // named by uninitialised
}

template <bool kRight>
__global__ void divergent_barrier(float* out) {
  auto* s = shared_memory<float>();
  s[thread_id()] = static_cast<float>(thread_id());
  if (kRight || thread_id() % 2 == 0) {
    __syncthreads();  // named by divergent_barrier
  } else {
    __syncthreads();
  }
  out[thread_id()] = s[kThreads - 1 - thread_id()];
}

template <bool kRight>
void run_divergent_barrier(uint64_t) {
  std::vector<float> out(kThreads);
  launch({"divergent_barrier", 1, kThreads, kThreads * sizeof(float), 0}, divergent_barrier<kRight>, out.data());
  expect(out, [](int i) { return kThreads - 1 - i; });
}

// A warp that leaves the others at their barrier.
template <bool kRight>
__global__ void absent_warp(float* out) {
  auto* s = shared_memory<float>();
  s[thread_id()] = static_cast<float>(thread_id());
  if (kRight || warp_id() != 2) __syncthreads();  // named by absent_warp
  out[thread_id()] = s[thread_id()];
}

template <bool kRight>
void run_absent_warp(uint64_t) {
  std::vector<float> out(kThreads);
  launch({"absent_warp", 1, kThreads, kThreads * sizeof(float), 0}, absent_warp<kRight>, out.data());
  expect(out, [](int i) { return i; });
}

// bar.sync with a count: two warps of four meet, as producer and consumer. Each must give the same count.
template <bool kRight>
__global__ void named_barrier(float* out) {
  constexpr int kHalf = kThreads / 2;
  auto* s = shared_memory<float>();
  const int half = thread_id() / kHalf;
  s[thread_id()] = static_cast<float>(thread_id());
  const int count = kRight || thread_id() % kHalf < kWarpSize ? kHalf : kThreads;
  ::simt::barrier(1 + half, count, ::simt::Where::current());  // named by named_barrier
  out[thread_id()] = s[half * kHalf + kHalf - 1 - thread_id() % kHalf];
}

template <bool kRight>
void run_named_barrier(uint64_t) {
  std::vector<float> out(kThreads);
  launch({"named_barrier", 1, kThreads, kThreads * sizeof(float), 0}, named_barrier<kRight>, out.data());
  expect(out, [](int i) { return i / 64 * 64 + 63 - i % 64; });
}

// Shared memory for all but one of the threads.
template <bool kRight>
__global__ void overrun(float* out) {
  auto* s = shared_memory<float>();
  s[kRight ? thread_id() : thread_id() + 1] = 1.0f;  // named by overrun
  __syncthreads();
  out[thread_id()] = s[thread_id()];
}

template <bool kRight>
void run_overrun(uint64_t) {
  std::vector<float> out(kThreads);
  launch({"overrun", 1, kThreads, kThreads * sizeof(float), 0}, overrun<kRight>, out.data());
  expect(out, [](int) { return 1.0f; });
}

}  // namespace

std::vector<Case> barrier_cases() {
  return {
      {"missing_barrier", Finder::result, run_missing_barrier<true>, run_missing_barrier<false>},
      {"reused_buffer", Finder::result, run_reused_buffer<true>, run_reused_buffer<false>},
      {"reused_scratch", Finder::result, run_reused_scratch<true>, run_reused_scratch<false>},
      {"uninitialised", Finder::result, run_uninitialised<true>, run_uninitialised<false>},
      {"divergent_barrier", Finder::simulator, run_divergent_barrier<true>, run_divergent_barrier<false>},
      {"absent_warp", Finder::simulator, run_absent_warp<true>, run_absent_warp<false>},
      {"named_barrier", Finder::simulator, run_named_barrier<true>, run_named_barrier<false>},
      {"overrun", Finder::address, run_overrun<true>, run_overrun<false>},
  };
}

}  // namespace gptoss::simulated::cases
