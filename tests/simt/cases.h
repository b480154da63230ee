// The simulator's own tests: small kernels, each right and with one seeded mistake. A line that ends in
// `// named by CASE` is the one that the error of that case's wrong form must name.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "cuda/launch.h"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"

namespace gptoss::simulated::cases {

// Who notices the wrong form.
enum class Finder {
  nobody,     // there is no wrong form
  simulator,  // names the kernel's line, under every schedule
  result,     // the output differs from a plain computation
  address,    // AddressSanitizer
  thread,     // ThreadSanitizer
};

// Either form launches a kernel and throws Error when its output is not what it should be.
using Form = void (*)(uint64_t seed);

struct Case {
  const char* name;
  Finder finder;
  Form right;
  Form wrong;
};

std::vector<Case> barrier_cases();
std::vector<Case> warp_cases();
std::vector<Case> copy_cases();
std::vector<Case> bulk_cases();
std::vector<Case> block_cases();
std::vector<Case> wgmma_cases();
std::vector<Case> primitive_cases();

// Small integers as floats: sums of them are exact in any order.
inline std::vector<float> random_floats(uint64_t seed, size_t count) {
  std::mt19937_64 generator(seed);
  std::vector<float> values(count);
  for (float& v : values) v = static_cast<float>(static_cast<int>(generator() % 17) - 8);
  return values;
}

inline std::vector<uint32_t> random_words(uint64_t seed, size_t count) {
  std::mt19937_64 generator(seed);
  std::vector<uint32_t> values(count);
  for (uint32_t& v : values) v = static_cast<uint32_t>(generator());
  return values;
}

// wanted(i) is the plain computation of found[i].
template <typename T, typename Wanted>
void expect(const std::vector<T>& found, Wanted&& wanted, ::simt::Where where = ::simt::Where::current()) {
  for (size_t i = 0; i < found.size(); ++i) {
    const T should_be = static_cast<T>(wanted(static_cast<int>(i)));
    if (!(found[i] == should_be))
      fail(where.file_name(), static_cast<int>(where.line()), "element ", i, " is ", found[i], ", expected ",
           should_be);
  }
}

inline int thread_id() { return static_cast<int>(threadIdx.x); }
inline int block_id() { return static_cast<int>(blockIdx.x); }

}  // namespace gptoss::simulated::cases
