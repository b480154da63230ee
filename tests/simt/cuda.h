// What nvcc knows by itself, for a C++ compiler: qualifiers, vector types, built-in variables and intrinsics.
#pragma once

#include <bit>
#include <cmath>
#include <type_traits>

#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::simt::self->index)
#define blockIdx (::simt::self->block->index)
#define blockDim (::simt::block_size)
#define gridDim (::simt::grid_size)

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
constexpr uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
constexpr uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
constexpr float2 make_float2(float x, float y) { return {x, y}; }
constexpr float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using std::isfinite;
using std::isnan;

namespace simt {

template <typename T>
struct Exchange {
  T value;
  int source;  // lane whose value this lane wants
};

// Values are taken first and written after: a lane's own slot is also somebody's source.
template <typename T>
__attribute__((no_sanitize("thread"))) void exchange(const std::array<void*, kWarp>& lanes) {
  T taken[kWarp];
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!lanes[lane]) continue;
    const int source = static_cast<Exchange<T>*>(lanes[lane])->source;
    taken[lane] = lanes[source] ? static_cast<Exchange<T>*>(lanes[source])->value : T{};
  }
  for (int lane = 0; lane < kWarp; ++lane)
    if (lanes[lane]) static_cast<Exchange<T>*>(lanes[lane])->value = taken[lane];
}

template <typename T>
T shuffle(uint32_t mask, T value, int source, const char* name, const Where& where) {
  if (source < 0 || source >= kWarp)
    stop(std::string(name) + " at " + text(where) + ": " + own_name() + " reads lane " + std::to_string(source) +
         ", expected 0 to 31");
  if (!(mask >> source & 1))
    stop(std::string(name) + " at " + text(where) + ": " + own_name() + " reads lane " + std::to_string(source) +
         ", which its mask leaves out");
  Exchange<T> mine{value, source};
  join(mask, name, where, &mine, &exchange<T>);
  return mine.value;
}

struct Vote {
  bool predicate;
  uint32_t ballot;
};

__attribute__((no_sanitize("thread"))) inline void vote(const std::array<void*, kWarp>& lanes) {
  uint32_t ballot = 0;
  for (int lane = 0; lane < kWarp; ++lane)
    if (lanes[lane]) ballot |= uint32_t{static_cast<Vote*>(lanes[lane])->predicate} << lane;
  for (void* lane : lanes)
    if (lane) static_cast<Vote*>(lane)->ballot = ballot;
}

struct Match {
  uint32_t value;
  uint32_t lanes;  // that have it too
};

__attribute__((no_sanitize("thread"))) inline void match(const std::array<void*, kWarp>& lanes) {
  for (void* lane : lanes) {
    if (!lane) continue;
    Match& mine = *static_cast<Match*>(lane);
    for (int other = 0; other < kWarp; ++other)
      if (lanes[other] && static_cast<Match*>(lanes[other])->value == mine.value) mine.lanes |= uint32_t{1} << other;
  }
}

}  // namespace simt

inline void __syncthreads(simt::Where where = simt::Where::current()) { simt::barrier(0, 0, where); }
inline void __syncwarp(uint32_t mask = ~0u, simt::Where where = simt::Where::current()) {
  simt::join(mask, "__syncwarp", where, nullptr, nullptr, true);
}
inline void __threadfence(simt::Where where = simt::Where::current()) { simt::fence(where); }

template <typename T>
T __shfl_sync(uint32_t mask, T value, int source, simt::Where where = simt::Where::current()) {
  return simt::shuffle(mask, value, source & 31, "__shfl_sync", where);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, simt::Where where = simt::Where::current()) {
  return simt::shuffle(mask, value, simt::self->lane ^ bits, "__shfl_xor_sync", where);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, int distance, simt::Where where = simt::Where::current()) {
  const int lane = simt::self->lane;
  return simt::shuffle(mask, value, distance < 32 && lane < distance ? lane : lane - distance, "__shfl_up_sync", where);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, int distance, simt::Where where = simt::Where::current()) {
  const int lane = simt::self->lane;
  return simt::shuffle(mask, value, distance < 32 && lane + distance > 31 ? lane : lane + distance, "__shfl_down_sync",
                       where);
}
inline uint32_t __ballot_sync(uint32_t mask, bool predicate, simt::Where where = simt::Where::current()) {
  simt::Vote mine{predicate, 0};
  simt::join(mask, "__ballot_sync", where, &mine, &simt::vote);
  return mine.ballot;
}
inline bool __any_sync(uint32_t mask, bool predicate, simt::Where where = simt::Where::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline bool __all_sync(uint32_t mask, bool predicate, simt::Where where = simt::Where::current()) {
  return __ballot_sync(mask, predicate, where) == mask;
}

inline uint32_t __match_any_sync(uint32_t mask, uint32_t value, simt::Where where = simt::Where::current()) {
  simt::Match mine{value, 0};
  simt::join(mask, "__match_any_sync", where, &mine, &simt::match);
  return mine.lanes;
}

// Relaxed, as CUDA's are: order comes from fences only.
template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value, simt::Where where = simt::Where::current()) {
  simt::yield("atomicAdd", where);
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
template <typename T>
T atomicMax(T* address, std::type_identity_t<T> value, simt::Where where = simt::Where::current()) {
  simt::yield("atomicMax", where);
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <typename T>
T atomicOr(T* address, std::type_identity_t<T> value, simt::Where where = simt::Where::current()) {
  simt::yield("atomicOr", where);
  return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value, simt::Where where = simt::Where::current()) {
  simt::yield("atomicExch", where);
  return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
}

constexpr int min(int a, int b) { return a < b ? a : b; }
constexpr int max(int a, int b) { return a > b ? a : b; }
constexpr int __popc(uint32_t x) { return std::popcount(x); }
constexpr int __clz(int x) { return std::countl_zero(static_cast<uint32_t>(x)); }
constexpr int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
constexpr int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<uint32_t>(x)) + 1; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
constexpr float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
constexpr uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }

// Byte i of the result is byte `selector >> 4i & 7` of {y, x} (CUDA Math API, "__byte_perm").
constexpr uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t both = uint64_t{y} << 32 | x;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= uint32_t(both >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
  return result;
}
