// Warp collectives: who must take part, and which mask says so.
#include "cases.h"

namespace gptoss::simulated::cases {
namespace {

constexpr uint32_t kLowerHalf = 0x0000ffffu;

// Lanes of one warp in two different shuffles that both wait for all 32.
template <bool kRight>
__global__ void shuffle_in_branch(int* out) {
  int v = lane_id();
  if (lane_id() < 16) {
    v = __shfl_xor_sync(kRight ? kLowerHalf : kAllLanes, v, 1);  // named by shuffle_in_branch
  } else {
    v = __shfl_xor_sync(kRight ? ~kLowerHalf : kAllLanes, v, 1);
  }
  out[thread_id()] = v;
}

template <bool kRight>
void run_shuffle_in_branch(uint64_t) {
  std::vector<int> out(64);
  launch({"shuffle_in_branch", 1, 64, 0, 0}, shuffle_in_branch<kRight>, out.data());
  expect(out, [](int i) { return i % 32 ^ 1; });
}

// Half of the warp never comes.
template <bool kRight>
__global__ void absent_lanes(int* out) {
  int v = lane_id();
  if (lane_id() < 16) v = __shfl_xor_sync(kRight ? kLowerHalf : kAllLanes, v, 1);  // named by absent_lanes
  out[thread_id()] = v;
}

template <bool kRight>
void run_absent_lanes(uint64_t) {
  std::vector<int> out(32);
  launch({"absent_lanes", 1, 32, 0, 0}, absent_lanes<kRight>, out.data());
  expect(out, [](int i) { return i < 16 ? i ^ 1 : i; });
}

template <bool kRight>
__global__ void mask_without_caller(uint32_t* out) {
  const uint32_t mask = lane_id() < 16 ? kLowerHalf : kRight ? ~kLowerHalf : kLowerHalf;
  out[thread_id()] = __ballot_sync(mask, lane_id() % 3 == 0);  // named by mask_without_caller
}

template <bool kRight>
void run_mask_without_caller(uint64_t) {
  std::vector<uint32_t> out(32);
  launch({"mask_without_caller", 1, 32, 0, 0}, mask_without_caller<kRight>, out.data());
  expect(out, [](int i) { return 0x49249249u & (i < 16 ? kLowerHalf : ~kLowerHalf); });
}

// The second warp of 48 threads has 16 lanes.
template <bool kRight>
__global__ void mask_of_absent_lanes(uint32_t* out) {
  const uint32_t mask = kRight && warp_id() == 1 ? kLowerHalf : kAllLanes;
  out[thread_id()] = __ballot_sync(mask, true);  // named by mask_of_absent_lanes
}

template <bool kRight>
void run_mask_of_absent_lanes(uint64_t) {
  std::vector<uint32_t> out(48);
  launch({"mask_of_absent_lanes", 1, 48, 0, 0}, mask_of_absent_lanes<kRight>, out.data());
  expect(out, [](int i) { return i < 32 ? kAllLanes : kLowerHalf; });
}

template <bool kRight>
__global__ void source_outside_mask(int* out) {
  int v = lane_id();
  if (v < 16) v = __shfl_sync(kLowerHalf, v, kRight ? 7 : 20);  // named by source_outside_mask
  out[thread_id()] = v;
}

template <bool kRight>
void run_source_outside_mask(uint64_t) {
  std::vector<int> out(32);
  launch({"source_outside_mask", 1, 32, 0, 0}, source_outside_mask<kRight>, out.data());
  expect(out, [](int i) { return i < 16 ? 7 : i; });
}

// A butterfly one step too wide: there is no lane 32.
template <bool kRight>
__global__ void source_outside_warp(int* out) {
  int sum = lane_id();
  for (int bits = kRight ? 16 : 32; bits > 0; bits /= 2)
    sum += __shfl_xor_sync(kAllLanes, sum, bits);  // named by source_outside_warp
  out[thread_id()] = sum;
}

template <bool kRight>
void run_source_outside_warp(uint64_t) {
  std::vector<int> out(32);
  launch({"source_outside_warp", 1, 32, 0, 0}, source_outside_warp<kRight>, out.data());
  expect(out, [](int) { return 31 * 32 / 2; });
}

// `.aligned`: the whole warp executes the same mma.
template <bool kRight>
__global__ void mma_in_branch(float* out) {
  const uint32_t a[4] = {}, b[2] = {};
  float c[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  if (kRight || lane_id() < 16) {
    ptx::mma(c, a, b);  // named by mma_in_branch
  } else {
    ptx::mma(c, a, b);
  }
  out[thread_id()] = c[0];
}

template <bool kRight>
void run_mma_in_branch(uint64_t) {
  std::vector<float> out(32);
  launch({"mma_in_branch", 1, 32, 0, 0}, mma_in_branch<kRight>, out.data());
  expect(out, [](int) { return 1.0f; });
}

// Lanes of a warp are threads: they see each other's writes after __syncwarp only.
template <bool kRight>
__global__ void missing_syncwarp(const float* in, float* out) {
  auto* s = shared_memory<float>();
  s[thread_id()] = in[thread_id()];
  if (kRight) __syncwarp();
  out[thread_id()] = s[thread_id() ^ 1];
}

template <bool kRight>
void run_missing_syncwarp(uint64_t seed) {
  const std::vector<float> in = random_floats(seed, 64);
  std::vector<float> out(64);
  launch({"missing_syncwarp", 1, 64, 64 * sizeof(float), 0}, missing_syncwarp<kRight>, in.data(), out.data());
  expect(out, [&](int i) { return in[i ^ 1]; });  // named by missing_syncwarp
}

// Lanes that have the same number let one of them count for all; its successor may be another lane, to which
// __match_any_sync says nothing about memory.
template <bool kRight>
__global__ void match_without_syncwarp(const uint32_t* in, int rounds, uint32_t* out) {
  auto* count = shared_memory<uint32_t>();
  if (lane_id() < 4) count[lane_id()] = 0;
  __syncwarp();
  for (int round = 0; round < rounds; ++round) {
    const uint32_t v = in[round * kWarpSize + lane_id()] % 4, same = __match_any_sync(kAllLanes, v);
    if (__ffs(static_cast<int>(same)) - 1 == lane_id())
      count[v] += static_cast<uint32_t>(__popc(same));  // named by match_without_syncwarp
    if (kRight) __syncwarp();
  }
  __syncwarp();
  if (lane_id() < 4) out[lane_id()] = count[lane_id()];
}

template <bool kRight>
void run_match_without_syncwarp(uint64_t seed) {
  constexpr int kRounds = 5;
  const std::vector<uint32_t> in = random_words(seed, kRounds * kWarpSize);
  std::vector<uint32_t> out(4);
  launch({"match_without_syncwarp", 1, kWarpSize, 4 * sizeof(uint32_t), 0}, match_without_syncwarp<kRight>, in.data(),
         kRounds, out.data());
  expect(out, [&](int i) {
    uint32_t count = 0;
    for (const uint32_t v : in) count += v % 4 == static_cast<uint32_t>(i);
    return count;
  });
}

// The lanes that have nothing to match stay away.
template <bool kRight>
__global__ void match_in_branch(uint32_t* out) {
  uint32_t same = 0;
  if (kRight || lane_id() < 20) same = __match_any_sync(kAllLanes, lane_id() % 3);  // named by match_in_branch
  out[thread_id()] = same;
}

template <bool kRight>
void run_match_in_branch(uint64_t) {
  std::vector<uint32_t> out(32);
  launch({"match_in_branch", 1, 32, 0, 0}, match_in_branch<kRight>, out.data());
  expect(out, [](int i) { return i % 3 == 0 ? 0x49249249u : i % 3 == 1 ? 0x92492492u : 0x24924924u; });
}

}  // namespace

std::vector<Case> warp_cases() {
  return {
      {"shuffle_in_branch", Finder::simulator, run_shuffle_in_branch<true>, run_shuffle_in_branch<false>},
      {"absent_lanes", Finder::simulator, run_absent_lanes<true>, run_absent_lanes<false>},
      {"mask_without_caller", Finder::simulator, run_mask_without_caller<true>, run_mask_without_caller<false>},
      {"mask_of_absent_lanes", Finder::simulator, run_mask_of_absent_lanes<true>, run_mask_of_absent_lanes<false>},
      {"source_outside_mask", Finder::simulator, run_source_outside_mask<true>, run_source_outside_mask<false>},
      {"source_outside_warp", Finder::simulator, run_source_outside_warp<true>, run_source_outside_warp<false>},
      {"mma_in_branch", Finder::simulator, run_mma_in_branch<true>, run_mma_in_branch<false>},
      {"missing_syncwarp", Finder::result, run_missing_syncwarp<true>, run_missing_syncwarp<false>},
      {"match_in_branch", Finder::simulator, run_match_in_branch<true>, run_match_in_branch<false>},
      {"match_without_syncwarp", Finder::thread, run_match_without_syncwarp<true>, run_match_without_syncwarp<false>},
  };
}

}  // namespace gptoss::simulated::cases
