#include "cpu/backend.h"

#include <algorithm>

#include "core/error.h"

namespace gptoss::cpu {
namespace {

int thread_count(int asked) {
  constexpr int kMaxThreads = 1024;
  CHECK(asked >= 0 && asked <= kMaxThreads, "threads is ", asked, ", expected 0 (every core) to ", kMaxThreads);
  return asked > 0 ? asked : std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

CpuBackend::CpuBackend(int threads, const std::string& isa)
    : pool_(thread_count(threads)),
      kernels_(select_kernels(isa)),
      scratch_(pool_.threads()),
      candidates_(pool_.threads()) {}

void CpuBackend::reserve_scratch(size_t count) {
  for (Buffer<float>& buffer : scratch_)
    if (buffer.size() < count) buffer = Buffer<float>(count);
}

void CpuBackend::expert_matmul(const ExpertInput& input, const int32_t* order, int divisor, int rows,
                               const ExpertLinear& layer, int expert, int first, int columns, float* decode_scratch,
                               float* out) {
  const size_t width = layer.in;
  const size_t row = size_t(expert) * layer.out + first;
  const size_t blocks = row * (width / kMxfp4Block);
  const Mxfp4Tile weight{layer.blocks + blocks * kMxfp4BlockBytes, layer.scales + blocks};
  if (input.q8) {
    const Q8Rows x{{input.q8, width, order, divisor}, {input.scale, width / kMxfp4Block, order, divisor}};
    kernels_.matmul_mxfp4_q8(x, rows, weight, columns, layer.in, out, columns);
  } else {
    const Rows<float> x{input.f32, width, order, divisor};
    kernels_.matmul_mxfp4(x, rows, weight, columns, layer.in, decode_scratch, out, columns);
  }
}

}  // namespace gptoss::cpu
