// cp.async: what may be read, written or forgotten between the copy and its wait.
#include "cases.h"

namespace gptoss::simulated::cases {
namespace {

constexpr int kThreads = 64;
constexpr int kFloats = 4;  // of a copy
constexpr int kTile = kThreads * kFloats;
constexpr int kTiles = 6;

// Two buffers, one filled while the other is read. The newest group may stay in flight, except at the last tile.
template <int kLeft, bool kSecondBarrier>
__global__ void pipeline(const float* in, float* out) {
  auto* s = shared_memory<float>();
  const auto fetch = [&](int tile) {
    const int at = kFloats * thread_id();
    if (tile < kTiles) ptx::copy_async(s + tile % 2 * kTile + at, in + tile * kTile + at);
    ptx::commit_copies();
  };
  float sum = 0.0f;
  fetch(0);
  for (int tile = 0; tile < kTiles; ++tile) {
    fetch(tile + 1);
    ptx::wait_copies<kLeft>();
    __syncthreads();
    for (int i = 0; i < kFloats; ++i) sum += s[tile % 2 * kTile + i * kThreads + thread_id()];
    if (kSecondBarrier) __syncthreads();  // before the buffer is filled again
  }
  ptx::wait_copies<0>();
  out[thread_id()] = sum;
}

template <int kLeft, bool kSecondBarrier>
void run_pipeline(uint64_t seed) {
  const std::vector<float> in = random_floats(seed, kTiles * kTile);
  std::vector<float> out(kThreads);
  launch({"pipeline", 1, kThreads, 2 * kTile * sizeof(float), 0}, pipeline<kLeft, kSecondBarrier>, in.data(),
         out.data());
  const auto wanted = [&](int i) {
    float sum = 0.0f;
    for (int from = i; from < kTiles * kTile; from += kThreads) sum += in[from];
    return sum;
  };
  expect(out, wanted);  // named by copy_wait_count stage_refilled_early
}

// Every thread copies 16 bytes and something happens too early, too late or never.
enum class Mistake { none, source_reused, target_reused, no_barrier, no_commit, no_wait, misaligned, out_of_bounds };

template <Mistake kMistake>
__global__ void copy_kernel(float* in, float* out) {
  auto* s = shared_memory<float>();
  const int at = kFloats * thread_id();
  float* target = s + at + (kMistake == Mistake::misaligned ? 1 : kMistake == Mistake::out_of_bounds ? kTile : 0);
  ptx::copy_async(target, in + at);  // named by copy_misaligned copy_out_of_bounds copy_not_committed copy_not_waited
  if (kMistake != Mistake::no_commit) ptx::commit_copies();
  if (kMistake == Mistake::source_reused) in[at] = 100.0f;
  if (kMistake == Mistake::target_reused) s[at + 1] = 100.0f;
  if (kMistake != Mistake::no_wait) ptx::wait_copies<0>();
  if (kMistake != Mistake::source_reused) in[at] = 100.0f;
  if (kMistake != Mistake::target_reused) s[at + 1] = 100.0f;
  if (kMistake != Mistake::no_barrier) __syncthreads();
  for (int i = 0; i < kFloats; ++i) out[i * kThreads + thread_id()] = s[i * kThreads + thread_id()];
}

template <Mistake kMistake>
void run_copy(uint64_t seed) {
  const std::vector<float> before = random_floats(seed, kTile);
  std::vector<float> in = before, out(kTile);
  launch({"copy", 1, kThreads, kTile * sizeof(float), 0}, copy_kernel<kMistake>, in.data(), out.data());
  const auto wanted = [&](int i) { return i % kFloats == 1 ? 100.0f : before[i]; };
  expect(out, wanted);  // named by copy_source_reused copy_target_reused copy_without_barrier
}

}  // namespace

std::vector<Case> copy_cases() {
  constexpr Form kRight = run_copy<Mistake::none>;
  return {
      {"copy_wait_count", Finder::result, run_pipeline<1, true>, run_pipeline<2, true>},
      {"stage_refilled_early", Finder::result, run_pipeline<1, true>, run_pipeline<1, false>},
      {"copy_source_reused", Finder::result, kRight, run_copy<Mistake::source_reused>},
      {"copy_target_reused", Finder::result, kRight, run_copy<Mistake::target_reused>},
      {"copy_without_barrier", Finder::result, kRight, run_copy<Mistake::no_barrier>},
      {"copy_not_committed", Finder::simulator, kRight, run_copy<Mistake::no_commit>},
      {"copy_not_waited", Finder::simulator, kRight, run_copy<Mistake::no_wait>},
      {"copy_misaligned", Finder::simulator, kRight, run_copy<Mistake::misaligned>},
      {"copy_out_of_bounds", Finder::simulator, kRight, run_copy<Mistake::out_of_bounds>},
  };
}

}  // namespace gptoss::simulated::cases
