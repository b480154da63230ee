// x / sqrt(mean(x^2) + eps) * weight in float, stored as bf16, the first `decoded` rows in the order of decoded rows.
// One block a row.
#include "cuda/backend.h"
#include "cuda/norm.cuh"
#include "cuda/ptx.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

__global__ void __launch_bounds__(norm::kThreads)
    rmsnorm_kernel(const float* x, const int32_t* rows, int width, const bf16* weight, float eps, int decoded,
                   bf16* out) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const int row = static_cast<int>(blockIdx.x);
  norm::apply(x + size_t(rows ? rows[row] : row) * width, width, weight, eps, shared_memory<float>(), row < decoded,
              out + size_t(row) * width);
}

}  // namespace

void GpuBackend::rmsnorm(const char* op, const float* x, const int32_t* rows, int count, int width, const bf16* weight,
                         float eps, int decoded, bf16* out) {
  launch({op, dim3(count), norm::kThreads, norm::kScratchBytes, stream_}, rmsnorm_kernel, x, rows, width, weight, eps,
         decoded, out);
}

}  // namespace gptoss::GPTOSS_GPU
