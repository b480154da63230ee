// Bulk copies and mbarriers: what may be read, written, announced or forgotten between a copy and its wait.
#include "cases.h"
#include "cuda/bulk.cuh"

namespace gptoss::simulated::cases {
namespace {

constexpr int kThreads = 64;
constexpr int kFloats = 4;  // of a copy
constexpr int kBytes = kFloats * sizeof(float);
constexpr int kTile = kThreads * kFloats;
constexpr int kTiles = 5;
constexpr int kShared = kTile * sizeof(float) + sizeof(ptx::Mbarrier);

enum class Mistake {
  none,
  no_init,
  init_twice,
  init_unseen,
  unfenced,
  arrivals,
  overwritten,
  parity,
  more_bytes,
  fewer_bytes,
  misaligned,
  ragged,
  outside,
  not_waited,
  refilled_early,
};

// One stage, tile after tile; every thread copies a part and reads parts of others.
template <Mistake kMistake>
__global__ void pipeline(const float* in, float* out) {
  constexpr auto is = [](Mistake mistake) { return kMistake == mistake; };
  constexpr int kExpected = is(Mistake::more_bytes) ? 2 * kBytes : is(Mistake::fewer_bytes) ? 0 : kBytes;
  auto* stage = shared_memory<float>();
  auto* done = reinterpret_cast<ptx::Mbarrier*>(stage + (is(Mistake::overwritten) ? 0 : kTile));
  const int at = kFloats * thread_id();
  float* to = stage + at + (is(Mistake::misaligned) ? 1 : is(Mistake::outside) ? kTile : 0);

  if (thread_id() == 0) {
    if (!is(Mistake::no_init)) ptx::mbarrier_init(done, is(Mistake::arrivals) ? kThreads + 1 : kThreads);
    if (is(Mistake::init_twice)) ptx::mbarrier_init(done, kThreads);  // named by bulk_init_twice
    if (!is(Mistake::unfenced)) ptx::fence_async_proxy();
  }
  if (!is(Mistake::init_unseen)) __syncthreads();

  float sum = 0.0f;
  for (int tile = 0; tile < kTiles; ++tile) {
    const float* from = in + tile * kTile + at;
    ptx::mbarrier_expect(done, kExpected);  // named by bulk_no_init bulk_init_unseen bulk_parity bulk_fewer_bytes
    if (is(Mistake::ragged)) ptx::copy_bulk(to, from, kBytes - 4, done);  // named by bulk_ragged
    ptx::copy_bulk(to, from, kBytes, done);  // named by bulk_unfenced bulk_misaligned bulk_outside bulk_not_waited
    const int parity = tile % 2 ^ is(Mistake::parity);
    if (!is(Mistake::not_waited) || tile < kTiles - 1)
      ptx::mbarrier_wait(done, parity);  // named by bulk_arrivals bulk_overwritten bulk_more_bytes
    for (int i = 0; i < kFloats; ++i) sum += stage[i * kThreads + thread_id()];
    if (!is(Mistake::refilled_early)) __syncthreads();
  }
  out[thread_id()] = sum;
}

template <Mistake kMistake>
void run(uint64_t seed) {
  const std::vector<float> in = random_floats(seed, kTiles * kTile);
  std::vector<float> out(kThreads);
  launch({"pipeline", 1, kThreads, kShared, 0}, pipeline<kMistake>, in.data(), out.data());
  const auto wanted = [&](int i) {
    float sum = 0.0f;
    for (int from = i; from < kTiles * kTile; from += kThreads) sum += in[from];
    return sum;
  };
  expect(out, wanted);  // named by bulk_refilled_early
}

}  // namespace

std::vector<Case> bulk_cases() {
  constexpr Form kRight = run<Mistake::none>;
  return {
      {"bulk_no_init", Finder::simulator, kRight, run<Mistake::no_init>},
      {"bulk_init_twice", Finder::simulator, kRight, run<Mistake::init_twice>},
      {"bulk_init_unseen", Finder::simulator, kRight, run<Mistake::init_unseen>},
      {"bulk_unfenced", Finder::simulator, kRight, run<Mistake::unfenced>},
      {"bulk_arrivals", Finder::simulator, kRight, run<Mistake::arrivals>},
      {"bulk_overwritten", Finder::simulator, kRight, run<Mistake::overwritten>},
      {"bulk_parity", Finder::simulator, kRight, run<Mistake::parity>},
      {"bulk_more_bytes", Finder::simulator, kRight, run<Mistake::more_bytes>},
      {"bulk_fewer_bytes", Finder::simulator, kRight, run<Mistake::fewer_bytes>},
      {"bulk_misaligned", Finder::simulator, kRight, run<Mistake::misaligned>},
      {"bulk_ragged", Finder::simulator, kRight, run<Mistake::ragged>},
      {"bulk_outside", Finder::simulator, kRight, run<Mistake::outside>},
      {"bulk_not_waited", Finder::simulator, kRight, run<Mistake::not_waited>},
      {"bulk_refilled_early", Finder::result, kRight, run<Mistake::refilled_early>},
  };
}

}  // namespace gptoss::simulated::cases
