// residual[r] = weight[token of row r]. One block a row.
#include "cuda/backend.h"
#include "cuda/ptx.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) embed_kernel(EmbedParams p) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const int row = static_cast<int>(blockIdx.x);
  const bf16* from = p.weight + size_t(p.token(row)) * p.hidden;
  float* to = p.residual + size_t(row) * p.hidden;
  for (int i = static_cast<int>(threadIdx.x); i < p.hidden; i += kThreads) to[i] = to_float(from[i]);
}

}  // namespace

void GpuBackend::embed(const EmbedParams& p) { launch({"embed", dim3(p.rows), kThreads, 0, stream_}, embed_kernel, p); }

}  // namespace gptoss::GPTOSS_GPU
