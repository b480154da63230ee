// Every primitive of the simulated GPU against a plain computation.
#include "cases.h"

namespace gptoss::simulated::cases {
namespace {

constexpr int kWarps = 3;
constexpr int kThreads = kWarps * kWarpSize;

// --- shuffles, votes ---

__global__ void shuffle_kernel(const uint32_t* in, const int* how, uint32_t* out) {
  const uint32_t v = in[thread_id()];
  uint32_t* to = out + 5 * thread_id();
  to[0] = __shfl_sync(kAllLanes, v, how[thread_id()]);  // a source of its own for every lane
  to[1] = __shfl_xor_sync(kAllLanes, v, how[0]);
  to[2] = __shfl_up_sync(kAllLanes, v, how[0]);
  to[3] = __shfl_down_sync(kAllLanes, v, how[0]);
  const uint32_t odd = 0xaaaaaaaau, mine = lane_id() % 2 ? odd : ~odd;
  to[4] = __shfl_xor_sync(mine, v, 6);  // two collectives of one warp at a time
}

void shuffles(uint64_t seed) {
  const std::vector<uint32_t> in = random_words(seed, kThreads);
  std::vector<int> how;
  for (const uint32_t v : random_words(seed + 1, kThreads)) how.push_back(static_cast<int>(v % kWarpSize));
  std::vector<uint32_t> out(5 * kThreads);
  launch({"shuffles", 1, kThreads, 0, 0}, shuffle_kernel, in.data(), how.data(), out.data());
  expect(out, [&](int i) {
    const int thread = i / 5, lane = thread % kWarpSize, first = thread - lane, by = how[0];
    const int source[5] = {how[thread], lane ^ by, lane < by ? lane : lane - by, lane + by > 31 ? lane : lane + by,
                           lane ^ 6};
    return in[first + source[i % 5]];
  });
}

// A struct of 8 bytes that is no number goes through a shuffle too.
__global__ void wide_shuffle_kernel(const unsigned long long* in, unsigned long long* out) {
  out[thread_id()] = __shfl_xor_sync(kAllLanes, in[thread_id()], 5);
}

void wide_shuffle(uint64_t seed) {
  std::vector<unsigned long long> in;
  for (const uint32_t v : random_words(seed, kThreads)) in.push_back(uint64_t{v} << 32 | ~v);
  std::vector<unsigned long long> out(kThreads);
  launch({"wide_shuffle", 1, kThreads, 0, 0}, wide_shuffle_kernel, in.data(), out.data());
  expect(out, [&](int i) { return in[i ^ 5]; });
}

__global__ void vote_kernel(const uint32_t* in, uint32_t* out) {
  const uint32_t v = in[thread_id()], mask = lane_id() < 20 ? 0x000fffffu : 0xfff00000u;
  uint32_t* to = out + 4 * thread_id();
  to[0] = __ballot_sync(kAllLanes, v & 1);
  to[1] = __ballot_sync(mask, v & 1);
  to[2] = __any_sync(mask, v % 16 == 0);
  to[3] = __all_sync(mask, v % 16 != 0);
}

void votes(uint64_t seed) {
  const std::vector<uint32_t> in = random_words(seed, kThreads);
  std::vector<uint32_t> out(4 * kThreads);
  launch({"votes", 1, kThreads, 0, 0}, vote_kernel, in.data(), out.data());
  expect(out, [&](int i) {
    const int lane = i / 4 % kWarpSize, first = i / 4 - lane;
    uint32_t odd = 0, odd_here = 0, sixteenth = 0;
    for (int other = 0; other < kWarpSize; ++other) {
      const uint32_t v = in[first + other];
      const bool here = (lane < 20) == (other < 20);
      odd |= (v & 1) << other;
      odd_here |= (here ? v & 1 : 0) << other;
      sixteenth += here && v % 16 == 0;
    }
    return i % 4 == 0 ? odd : i % 4 == 1 ? odd_here : i % 4 == 2 ? sixteenth > 0 : sixteenth == 0;
  });
}

__global__ void match_kernel(const uint32_t* in, uint32_t* out) {
  const uint32_t mask = lane_id() < 20 ? 0x000fffffu : 0xfff00000u;
  out[2 * thread_id()] = __match_any_sync(kAllLanes, in[thread_id()] % 7);
  out[2 * thread_id() + 1] = __match_any_sync(mask, in[thread_id()] % 3);
}

void matches(uint64_t seed) {
  const std::vector<uint32_t> in = random_words(seed, kThreads);
  std::vector<uint32_t> out(2 * kThreads);
  launch({"matches", 1, kThreads, 0, 0}, match_kernel, in.data(), out.data());
  expect(out, [&](int i) {
    const int lane = i / 2 % kWarpSize, first = i / 2 - lane;
    uint32_t same = 0;
    for (int other = 0; other < kWarpSize; ++other) {
      const bool here = i % 2 == 0 || (lane < 20) == (other < 20);
      const uint32_t by = i % 2 == 0 ? 7 : 3;
      same |= uint32_t{here && in[first + other] % by == in[first + lane] % by} << other;
    }
    return same;
  });
}

__global__ void sum_kernel(const float* in, float* out) {
  out[thread_id()] = block_sum(in[thread_id()], shared_memory<float>()) + warp_max(in[thread_id()]);
}

void sums(uint64_t seed) {
  const std::vector<float> in = random_floats(seed, kThreads);
  std::vector<float> out(kThreads);
  launch({"sums", 1, kThreads, kWarps * sizeof(float), 0}, sum_kernel, in.data(), out.data());
  expect(out, [&](int i) {
    float sum = 0.0f, largest = -100.0f;
    for (const float v : in) sum += v;
    for (int lane = 0; lane < kWarpSize; ++lane) largest = std::max(largest, in[i / kWarpSize * kWarpSize + lane]);
    return sum + largest;
  });
}

// --- tensor cores ---

// Elements of the fragments as the PTX ISA numbers them, two to a register.
constexpr int a_row(int g, int i) { return i < 2 || (i >= 4 && i < 6) ? g : g + 8; }
constexpr int a_column(int t, int i) { return i < 4 ? 2 * t + (i & 1) : 2 * t + (i & 1) + 8; }
constexpr int b_row(int t, int i) { return i < 2 ? 2 * t + (i & 1) : 2 * t + (i & 1) + 8; }
constexpr int c_row(int g, int i) { return i < 2 ? g : g + 8; }
constexpr int c_column(int t, int i) { return 2 * t + (i & 1); }

__global__ void mma_kernel(const float* a, const float* b, const float* c, float* out) {
  const int g = lane_id() / 4, t = lane_id() % 4;
  uint32_t a_pairs[4], b_pairs[2];
  for (int i = 0; i < 8; i += 2)
    a_pairs[i / 2] = ptx::pack_bf16(a[a_row(g, i) * 16 + a_column(t, i)], a[a_row(g, i + 1) * 16 + a_column(t, i + 1)]);
  for (int i = 0; i < 4; i += 2) b_pairs[i / 2] = ptx::pack_bf16(b[b_row(t, i) * 8 + g], b[b_row(t, i + 1) * 8 + g]);
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = c[c_row(g, i) * 8 + c_column(t, i)];
  ptx::mma(sum, a_pairs, b_pairs);
  for (int i = 0; i < 4; ++i) out[warp_id() * 128 + c_row(g, i) * 8 + c_column(t, i)] = sum[i];
}

void mma(uint64_t seed) {
  const auto a = random_floats(seed, 16 * 16), b = random_floats(seed + 1, 16 * 8), c = random_floats(seed + 2, 16 * 8);
  std::vector<float> out(kWarps * 16 * 8);
  launch({"mma", 1, kThreads, 0, 0}, mma_kernel, a.data(), b.data(), c.data(), out.data());
  expect(out, [&](int i) {
    const int row = i % 128 / 8, column = i % 8;
    float sum = c[row * 8 + column];
    for (int k = 0; k < 16; ++k) sum += a[row * 16 + k] * b[k * 8 + column];
    return sum;
  });
}

__global__ void transpose_kernel(const uint32_t* in, uint32_t* out) {
  out[thread_id()] = ptx::transpose(in[thread_id()]);
}

void transpose(uint64_t seed) {
  const std::vector<uint32_t> in = random_words(seed, kThreads);
  std::vector<uint32_t> out(kThreads);
  launch({"transpose", 1, kThreads, 0, 0}, transpose_kernel, in.data(), out.data());
  const auto element = [&](int matrix, int row, int column) {
    return in[32 * matrix + 4 * row + column / 2] >> (16 * (column % 2)) & 0xffffu;
  };
  expect(out, [&](int i) {
    const int row = i % 32 / 4, column = 2 * (i % 4);
    return element(i / 32, column, row) | element(i / 32, column + 1, row) << 16;
  });
}

// Rows of four matrices in a random order; those after a matrix's own are another's.
__global__ void matrices_kernel(const uint32_t* in, const uint32_t* order, uint32_t* out) {
  auto* s = shared_memory<uint32_t>();
  for (int i = 0; i < 4; ++i) s[4 * thread_id() + i] = in[4 * thread_id() + i];
  __syncthreads();
  uint32_t found[4];
  ptx::load_matrices(found, s + 4 * (order[thread_id()] % kThreads));
  for (int i = 0; i < 4; ++i) out[4 * thread_id() + i] = found[i];
}

void matrices(uint64_t seed) {
  const std::vector<uint32_t> in = random_words(seed, 4 * kThreads), order = random_words(seed + 1, kThreads);
  std::vector<uint32_t> out(4 * kThreads);
  launch({"matrices", 1, kThreads, 16 * kThreads, 0}, matrices_kernel, in.data(), order.data(), out.data());
  expect(out, [&](int i) {
    const int thread = i / 4, lane = thread % kWarpSize, namer = thread - lane + 8 * (i % 4) + lane / 4;
    return in[4 * (order[namer] % kThreads) + lane % 4];
  });
}

// --- copies ---

__global__ void copy_kernel(const float* in, float* out) {
  auto* s = shared_memory<float>();
  ptx::copy_async(s + 4 * thread_id(), in + 4 * thread_id(), thread_id() % 3 != 0);
  ptx::commit_copies();
  ptx::wait_copies<0>();
  for (int i = 0; i < 4; ++i) out[4 * thread_id() + i] = s[4 * thread_id() + i];
}

void copies(uint64_t seed) {
  const std::vector<float> in = random_floats(seed, 4 * kThreads);
  std::vector<float> out(4 * kThreads);
  launch({"copies", 1, kThreads, 4 * kThreads * sizeof(float), 0}, copy_kernel, in.data(), out.data());
  expect(out, [&](int i) { return i / 4 % 3 == 0 ? 0.0f : in[i]; });
}

// --- atomics, indices ---

__global__ void atomic_kernel(const uint32_t* in, uint32_t* result, uint32_t* tickets) {
  const int i = block_id() * kThreads + thread_id();
  atomicAdd(&result[0], in[i]);
  atomicMax(&result[1], in[i]);
  atomicOr(&result[2], in[i] & in[i] >> 7 & in[i] >> 13);
  tickets[atomicAdd(&result[3], 1u)] += 1;  // each place is taken once
  if (atomicExch(&result[4], 1u) == 0) atomicAdd(&result[5], 1u);
}

void atomics(uint64_t seed) {
  constexpr int kBlocks = 5;
  const std::vector<uint32_t> in = random_words(seed, kBlocks * kThreads);
  std::vector<uint32_t> result(6), tickets(in.size());
  launch({"atomics", kBlocks, kThreads, 0, 0}, atomic_kernel, in.data(), result.data(), tickets.data());
  uint32_t sum = 0, largest = 0, bits = 0;
  for (const uint32_t v : in) sum += v, largest = std::max(largest, v), bits |= v & v >> 7 & v >> 13;
  const uint32_t wanted[] = {sum, largest, bits, static_cast<uint32_t>(in.size()), 1, 1};
  expect(result, [&](int i) { return wanted[i]; });
  expect(tickets, [](int) { return 1u; });
}

__global__ void index_kernel(uint32_t* count) {
  const uint32_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const uint32_t thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  count[block * blockDim.x * blockDim.y * blockDim.z + thread] += thread + 1;
}

void indices(uint64_t) {
  constexpr dim3 kGrid(3, 2, 4), kBlock(5, 3, 2);
  std::vector<uint32_t> count(24 * 30);
  launch({"indices", kGrid, kBlock, 0, 0}, index_kernel, count.data());
  expect(count, [](int i) { return static_cast<uint32_t>(i % 30 + 1); });
}

// --- powers of two ---

__global__ void power_kernel(const float* in, float* out) { out[thread_id()] = ptx::exp2(in[thread_id()]); }

void powers(uint64_t seed) {
  std::vector<float> in = random_floats(seed, kThreads);
  for (size_t i = 0; i < in.size(); i += 2) in[i] *= 40.0f;
  const std::vector<float> special{0.0f, -INFINITY, INFINITY, -125.9f, -126.1f, -140.0f, 127.5f, 128.0f};
  std::copy(special.begin(), special.end(), in.begin());
  std::vector<float> out(kThreads), exact;
  for (const float x : in) exact.push_back(x < -126.0f ? 0.0f : static_cast<float>(std::exp2(double{x})));
  launch({"powers", 1, kThreads, 0, 0}, power_kernel, in.data(), out.data());
  for (int i = 0; i < kThreads; ++i)  // within two units of the last place
    if (std::abs(out[i] - exact[i]) <= std::ldexp(exact[i], -22)) out[i] = exact[i];
  expect(out, [&](int i) { return exact[i]; });
}

// --- bits ---

__global__ void bits_kernel(const uint32_t* in, uint32_t* out) {
  const uint32_t x = in[2 * thread_id()], y = in[2 * thread_id() + 1];
  uint32_t* to = out + 5 * thread_id();
  to[0] = __byte_perm(x, y, x ^ y);
  to[1] = static_cast<uint32_t>(__popc(x));
  to[2] = static_cast<uint32_t>(__clz(static_cast<int>(x >> (y % 32))));
  to[3] = static_cast<uint32_t>(__ffs(static_cast<int>(x << (y % 32))));
  to[4] = static_cast<uint32_t>(__clzll(static_cast<long long>((uint64_t{x} << 32 | y) >> (y % 64))));
}

void bits(uint64_t seed) {
  std::vector<uint32_t> in = random_words(seed, 2 * kThreads);
  in[0] = 0;
  std::vector<uint32_t> out(5 * kThreads);
  launch({"bits", 1, kThreads, 0, 0}, bits_kernel, in.data(), out.data());
  expect(out, [&](int i) {
    const uint32_t x = in[i / 5 * 2], y = in[i / 5 * 2 + 1];
    const uint32_t right = x >> (y % 32), left = x << (y % 32);
    uint8_t bytes[8];
    for (int k = 0; k < 4; ++k)
      bytes[k] = static_cast<uint8_t>(x >> 8 * k), bytes[4 + k] = static_cast<uint8_t>(y >> 8 * k);
    uint32_t permuted = 0, ones = 0, leading = 0, lowest = 0;
    for (int k = 0; k < 4; ++k) permuted |= uint32_t{bytes[(x ^ y) >> 4 * k & 7]} << 8 * k;
    for (int k = 0; k < 32; ++k) ones += x >> k & 1;
    while (leading < 32 && !(right >> (31 - leading) & 1)) ++leading;
    if (left != 0)
      for (lowest = 1; !(left >> (lowest - 1) & 1);) ++lowest;
    uint32_t leading_of_64 = 0;
    while (leading_of_64 < 64 && !((uint64_t{x} << 32 | y) >> (y % 64) >> (63 - leading_of_64) & 1)) ++leading_of_64;
    const uint32_t wanted[] = {permuted, ones, leading, lowest, leading_of_64};
    return wanted[i % 5];
  });
}

}  // namespace

std::vector<Case> primitive_cases() {
  return {
      {"shuffles", Finder::nobody, shuffles, nullptr}, {"wide_shuffle", Finder::nobody, wide_shuffle, nullptr},
      {"votes", Finder::nobody, votes, nullptr},       {"sums", Finder::nobody, sums, nullptr},
      {"mma", Finder::nobody, mma, nullptr},           {"transpose", Finder::nobody, transpose, nullptr},
      {"matrices", Finder::nobody, matrices, nullptr}, {"copies", Finder::nobody, copies, nullptr},
      {"atomics", Finder::nobody, atomics, nullptr},   {"indices", Finder::nobody, indices, nullptr},
      {"powers", Finder::nobody, powers, nullptr},     {"bits", Finder::nobody, bits, nullptr},
      {"matches", Finder::nobody, matches, nullptr},
  };
}

}  // namespace gptoss::simulated::cases
