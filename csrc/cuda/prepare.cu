// Weights on their way to the device: tiled on the host, one matrix at a time, and copied.
#include <vector>

#include "cuda/backend.h"
#include "cuda/mxfp4.cuh"

namespace gptoss::GPTOSS_GPU {

Linear GpuBackend::prepare(const Linear& stored, MatrixUse use, DeviceStorage& storage) {
  Linear to = stored;
  to.bias = upload(*this, stored.bias, stored.out, storage);
  if (use == MatrixUse::rows) {
    to.weight = upload(*this, stored.weight, size_t(stored.out) * stored.in, storage);
    return to;
  }
  std::vector<bf16> tiled(layout::dense_bytes(stored.out, stored.in) / sizeof(bf16));
  const auto order = use == MatrixUse::rotary_product ? layout::RowOrder::rotary : layout::RowOrder::plain;
  layout::dense_to_kernel(stored.weight, stored.out, stored.in, order, tiled.data());
  to.weight = upload(*this, tiled.data(), tiled.size(), storage);
  return to;
}

ExpertLinear GpuBackend::prepare(const ExpertLinear& stored, DeviceStorage& storage) {
  const size_t code_bytes = layout::mxfp4_code_bytes(stored.out, stored.in);
  const size_t scale_bytes = layout::mxfp4_scale_bytes(stored.out, stored.in);
  const size_t blocks = size_t(stored.out) * stored.in / kMxfp4Block;
  uint8_t* codes = storage.emplace_back(*this, stored.experts * code_bytes).data();
  uint8_t* scales = storage.emplace_back(*this, stored.experts * scale_bytes).data();
  std::vector<uint8_t> tiled_codes(code_bytes), tiled_scales(scale_bytes);
  for (int e = 0; e < stored.experts; ++e) {
    const uint8_t* from = stored.scales + e * blocks;
    const int largest = *std::max_element(from, from + blocks);
    CHECK(largest <= mxfp4::kLargestScale, "expert ", e, " has an MXFP4 scale of 2^", largest - 127,
          ", the GPU kernels take at most 2^", mxfp4::kLargestScale - 127, "; use device='cpu'");
    layout::mxfp4_to_kernel(stored.blocks + e * blocks * kMxfp4BlockBytes, from, stored.out, stored.in,
                            tiled_codes.data(), tiled_scales.data());
    copy_in(codes + e * code_bytes, tiled_codes.data(), code_bytes);
    copy_in(scales + e * scale_bytes, tiled_scales.data(), scale_bytes);
  }
  ExpertLinear to = stored;
  to.blocks = codes;
  to.scales = scales;
  to.bias = upload(*this, stored.bias, size_t(stored.experts) * stored.out, storage);
  return to;
}

}  // namespace gptoss::GPTOSS_GPU
