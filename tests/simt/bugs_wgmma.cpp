// wgmma: what may be read or overwritten between its issue and its wait, and how its tile lies in shared memory.
#include "cases.h"
#include "cuda/bulk.cuh"
#include "cuda/wgmma.cuh"

namespace gptoss::simulated::cases {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 64, kColumns = 64;
constexpr int kRowBytes = 2 * kColumns;

enum class Mistake { none, not_waited, tile_reused, not_swizzled, misaligned };

// out [64, N] = a [64, 64] b [N, 64]^T, N = 8 kTiles.
template <Mistake kMistake, int kTiles>
__global__ void product_kernel(const float* a, const float* b, float* out) {
  constexpr int kTokens = 8 * kTiles;
  auto* tile = shared_memory<unsigned char>() + (kMistake == Mistake::misaligned ? 128 : 0);
  const int g = lane_id() / 4, t = lane_id() % 4;
  for (int i = thread_id(); i < kTokens * kColumns; i += kThreads) {
    const int token = i / kColumns, byte = 2 * (i % kColumns);
    const int unit = byte / 16 ^ (kMistake == Mistake::not_swizzled ? 0 : token % 8);
    *reinterpret_cast<bf16*>(tile + token * kRowBytes + 16 * unit + byte % 16) = to_bf16(b[i]);
  }
  ptx::fence_async_proxy();
  __syncthreads();

  float sums[kTiles][4] = {};
  ptx::wgmma_fence();
  for (int step = 0; step < kColumns / 16; ++step) {
    uint32_t pairs[4];
    for (int i = 0; i < 4; ++i) {
      const float* from = a + (16 * warp_id() + g + 8 * (i % 2)) * kColumns + 16 * step + 2 * t + 8 * (i / 2);
      pairs[i] = ptx::pack_bf16(from[0], from[1]);
    }
    ptx::wgmma(sums, pairs, ptx::matrix_descriptor(tile, 32 * step));  // named by wgmma_misaligned
    ptx::wgmma_commit();
  }
  if (kMistake == Mistake::tile_reused) tile[thread_id()] = 0x40;
  if (kMistake == Mistake::not_waited)
    ptx::wgmma_wait<1>();
  else
    ptx::wgmma_wait<0>();
  for (int n = 0; n < kTiles; ++n)
    for (int i = 0; i < 4; ++i) out[(16 * warp_id() + g + 8 * (i / 2)) * kTokens + 8 * n + 2 * t + i % 2] = sums[n][i];
  ptx::wgmma_wait<0>();
}

template <Mistake kMistake, int kTiles>
void multiply(uint64_t seed) {
  constexpr int kTokens = 8 * kTiles;
  const auto a = random_floats(seed, kRows * kColumns), b = random_floats(seed + 1, kTokens * kColumns);
  std::vector<float> out(kRows * kTokens);
  launch({"wgmma", 1, kThreads, kTokens * kRowBytes + 128, 0}, product_kernel<kMistake, kTiles>, a.data(), b.data(),
         out.data());
  const auto wanted = [&](int i) {
    float sum = 0.0f;
    for (int k = 0; k < kColumns; ++k) sum += a[i / kTokens * kColumns + k] * b[i % kTokens * kColumns + k];
    return sum;
  };
  expect(out, wanted);  // named by wgmma_not_waited wgmma_tile_reused wgmma_not_swizzled
}

template <Mistake kMistake>
void run(uint64_t seed) {
  multiply<kMistake, 4>(seed);
  multiply<kMistake, 8>(seed + 2);
  multiply<kMistake, 16>(seed + 4);
}

}  // namespace

std::vector<Case> wgmma_cases() {
  constexpr Form kRight = run<Mistake::none>;
  return {
      {"wgmma_not_waited", Finder::result, kRight, run<Mistake::not_waited>},
      {"wgmma_tile_reused", Finder::result, kRight, run<Mistake::tile_reused>},
      {"wgmma_not_swizzled", Finder::result, kRight, run<Mistake::not_swizzled>},
      {"wgmma_misaligned", Finder::simulator, kRight, run<Mistake::misaligned>},
  };
}

}  // namespace gptoss::simulated::cases
