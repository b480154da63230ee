// Blocks of one grid: they share device memory, have no order, and need not all be there at once.
#include "cases.h"

namespace gptoss::simulated::cases {
namespace {

constexpr int kBlocks = 8;
constexpr int kThreads = 64;

// Neighbouring blocks both write the element between them, the same value: only a sanitizer sees it.
template <bool kRight>
__global__ void racing_blocks(float* out) {
  const int length = kRight ? kThreads : kThreads + 1;
  for (int i = thread_id(); i < length; i += kThreads) out[block_id() * kThreads + i] = 1.0f;  // named by racing_blocks
}

template <bool kRight>
void run_racing_blocks(uint64_t) {
  std::vector<float> out(kBlocks * kThreads + 1, 1.0f);
  launch({"racing_blocks", kBlocks, kThreads, 0, 0}, racing_blocks<kRight>, out.data());
  expect(out, [](int) { return 1.0f; });
}

// A counter that all blocks share.
template <bool kRight>
__global__ void counter_without_atomic(uint32_t* counter) {
  if (thread_id() != 0) return;
  if (kRight) {
    atomicAdd(counter, 1u);
  } else {
    *counter += 1;  // named by counter_without_atomic
  }
}

template <bool kRight>
void run_counter_without_atomic(uint64_t) {
  std::vector<uint32_t> counter(1);
  launch({"counter_without_atomic", kBlocks, kThreads, 0, 0}, counter_without_atomic<kRight>, counter.data());
  expect(counter, [](int) { return uint32_t{kBlocks}; });
}

// The block that arrives last adds what all have written. Without fences it may see the counter, not the data.
template <bool kRight>
__global__ void missing_fence(const float* in, float* partial, uint32_t* arrived, float* out) {
  auto* last = shared_memory<uint32_t>();
  partial[block_id() * kThreads + thread_id()] = in[block_id() * kThreads + thread_id()];
  if (kRight) __threadfence();
  __syncthreads();
  if (thread_id() == 0) *last = atomicAdd(arrived, 1u) == kBlocks - 1;
  __syncthreads();
  if (!*last) return;
  if (kRight) __threadfence();
  float sum = 0.0f;
  for (int block = 0; block < kBlocks; ++block)
    sum += partial[block * kThreads + thread_id()];  // named by missing_fence
  out[thread_id()] = sum;
}

template <bool kRight>
void run_missing_fence(uint64_t seed) {
  const std::vector<float> in = random_floats(seed, kBlocks * kThreads);
  std::vector<float> partial(in.size()), out(kThreads);
  uint32_t arrived = 0;
  launch({"missing_fence", kBlocks, kThreads, sizeof(uint32_t), 0}, missing_fence<kRight>, in.data(), partial.data(),
         &arrived, out.data());
  const auto wanted = [&](int i) {
    float sum = 0.0f;
    for (int block = 0; block < kBlocks; ++block) sum += in[block * kThreads + i];
    return sum;
  };
  expect(out, wanted);
}

// Waiting in a loop for blocks that may only start when this one ends.
template <bool kRight>
__global__ void absent_block(uint32_t* arrived) {
  if (thread_id() != 0) return;
  atomicAdd(arrived, 1u);
  if (kRight) return;
  while (atomicAdd(arrived, 0u) < kBlocks) {  // named by absent_block
  }
}

template <bool kRight>
void run_absent_block(uint64_t) {
  std::vector<uint32_t> arrived(1);
  launch({"absent_block", kBlocks, kThreads, 0, 0}, absent_block<kRight>, arrived.data());
  expect(arrived, [](int) { return uint32_t{kBlocks}; });
}

}  // namespace

std::vector<Case> block_cases() {
  return {
      {"racing_blocks", Finder::thread, run_racing_blocks<true>, run_racing_blocks<false>},
      {"counter_without_atomic", Finder::thread, run_counter_without_atomic<true>, run_counter_without_atomic<false>},
      {"missing_fence", Finder::thread, run_missing_fence<true>, run_missing_fence<false>},
      {"absent_block", Finder::simulator, run_absent_block<true>, run_absent_block<false>},
  };
}

}  // namespace gptoss::simulated::cases
