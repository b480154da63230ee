// One task computes the products of one row or assignment, if it has an adapter.
#include "cpu/backend.h"

namespace gptoss::cpu {
namespace {

// In 16 partial sums, so that the compiler can use vectors.
float dot(const float* a, const float* x, int width) {
  constexpr int kLanes = 16;  // divides width, a multiple of 32
  float sums[kLanes] = {};
  for (int i = 0; i < width; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += a[i + lane] * x[i + lane];
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

}  // namespace

void CpuBackend::lora(const LoraParams& p) {
  reserve_scratch(p.width);
  pool_.parallel_for(p.count, [&](int n, int worker) {
    const int row = p.row_of(n);
    bool adapted = false;
    for (const Lora& target : p.target) adapted = adapted || target.of(row);
    if (!adapted) return;
    const size_t at = p.input_of(n);
    const float* x = p.input.f32 + at;
    float* own = scratch(worker);
    if (p.input.q8) {
      for (int i = 0; i < p.width; ++i)
        own[i] = static_cast<float>(p.input.q8[at + i]) * p.input.scale[(at + i) / kMxfp4Block];
      x = own;
    }
    if (p.norm_weight) {
      kernels_.rmsnorm(x, p.norm_weight, p.norm_eps, p.width, own);
      x = own;
    }
    for (const Lora& target : p.target)
      if (const LoraMatrix* matrix = target.of(row))
        for (int k = 0; k < matrix->rank; ++k)
          target.product[size_t(n) * target.stride + k] = dot(p.a_of(*matrix, n) + size_t(k) * p.width, x, p.width);
  });
}

}  // namespace gptoss::cpu
