// Weights on their way to the device: as the checkpoint has them into staging memory, some rows at a time, and from
// there into kernel form (layout.h). One thread makes 16 bytes of it.
#include <vector>

#include "cuda/backend.h"
#include "cuda/mxfp4.cuh"
#include "cuda/ptx.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(size_t threads) { return static_cast<unsigned>((threads + kThreads - 1) / kThreads); }

__device__ __forceinline__ size_t thread_of_grid() { return size_t(blockIdx.x) * kThreads + threadIdx.x; }

// weight [out, in] -> tiled.
__global__ void __launch_bounds__(kThreads)
    tile_dense_kernel(const bf16* weight, int out, int in, layout::RowOrder order, bf16* tiled) {
  ptx::wait_for_previous_kernel();
  const size_t i = thread_of_grid(), across = layout::tiles(in, layout::kDenseColumns);
  const size_t tile = i / 64;
  const int h = static_cast<int>(i / 32 % 2), lane = static_cast<int>(i % 32);
  const int tile_row = static_cast<int>(tile / across), chunk = static_cast<int>(tile % across);
  if (tile_row >= layout::tiles(out, layout::kDenseRows)) return;
  const int row = layout::source_row(tile_row * layout::kDenseRows + lane / 4 + 8 * h, order);
  uint32_t pairs[4] = {};
  if (row < out)
    for (int k = 0; k < 4; ++k)
      pairs[k] = *reinterpret_cast<const uint32_t*>(weight + size_t(row) * in + chunk * layout::kDenseColumns +
                                                    layout::fragment_column(lane % 4, k));
  reinterpret_cast<uint4*>(tiled)[i] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// blocks [out, in / 32, 16] -> tiled codes.
__global__ void __launch_bounds__(kThreads) tile_codes_kernel(const uint8_t* blocks, int out, int in, uint8_t* codes) {
  ptx::wait_for_previous_kernel();
  const size_t i = thread_of_grid(), across = layout::tiles(in, layout::kMxfp4Columns);
  const size_t tile = i / 64;
  const int h = static_cast<int>(i / 32 % 2), lane = static_cast<int>(i % 32);
  const int tile_row = static_cast<int>(tile / across), chunk = static_cast<int>(tile % across);
  if (tile_row >= layout::tiles(out, layout::kMxfp4Rows)) return;
  const int row_blocks = in / kMxfp4Block;
  uint32_t words[4] = {};
  for (int k = 0; k < 2; ++k) {
    const int row = tile_row * layout::kMxfp4Rows + 16 * h + 8 * k + lane / 4;
    for (int b = 0; b < 2; ++b) {
      const int block = 2 * chunk + b;
      if (row >= out || block >= row_blocks) continue;
      const uint8_t* from = blocks + (size_t(row) * row_blocks + block) * kMxfp4BlockBytes;
      for (int p = 0; p < 4; ++p)
        words[2 * k + b] |= layout::place_pair(from[layout::fragment_column(lane % 4, p) / 2], p);
    }
  }
  reinterpret_cast<uint4*>(codes)[i] = make_uint4(words[0], words[1], words[2], words[3]);
}

// scales [out, in / 32] -> tiled, 1 where there is none. One thread a scale.
__global__ void __launch_bounds__(kThreads) tile_scales_kernel(const uint8_t* scales, int out, int in, uint8_t* tiled) {
  ptx::wait_for_previous_kernel();
  const size_t i = thread_of_grid(), across = layout::tiles(in, layout::kMxfp4Columns);
  const size_t tile = i / layout::kTileScales;
  const int place = static_cast<int>(i % layout::kTileScales);
  const int tile_row = static_cast<int>(tile / across), chunk = static_cast<int>(tile % across);
  if (tile_row >= layout::tiles(out, layout::kMxfp4Rows)) return;
  const int row = tile_row * layout::kMxfp4Rows + 8 * (place % 4) + place / 8, block = 2 * chunk + place / 4 % 2;
  const int row_blocks = in / kMxfp4Block;
  tiled[i] = row < out && block < row_blocks ? scales[size_t(row) * row_blocks + block] : uint8_t{127};
}

}  // namespace

Linear GpuBackend::prepare(const Linear& stored, MatrixUse use, DeviceStorage& storage) {
  Linear to = stored;
  to.bias = upload(*this, stored.bias, stored.out, storage);
  if (use == MatrixUse::rows) {
    to.weight = upload(*this, stored.weight, size_t(stored.out) * stored.in, storage);
    return to;
  }
  const auto order = use == MatrixUse::rotary_product ? layout::RowOrder::rotary : layout::RowOrder::plain;
  auto* tiled = storage.take<bf16>(*this, layout::dense_bytes(stored.out, stored.in) / sizeof(bf16));
  const size_t row_bytes = size_t(stored.in) * sizeof(bf16);
  const int step = workspace::staged_rows(stored.out, row_bytes);
  auto* staging = staging_.reserve<bf16>(step * row_bytes, stream_);
  for (int first = 0; first < stored.out; first += step) {
    const int rows = std::min(step, stored.out - first);
    uploader_.copy(staging, stored.weight + size_t(first) * stored.in, rows * row_bytes);
    launch({"preparing weights", blocks_for(layout::dense_bytes(rows, stored.in) / 16), kThreads, 0, stream_},
           tile_dense_kernel, static_cast<const bf16*>(staging), rows, stored.in, order,
           tiled + layout::dense_bytes(first, stored.in) / sizeof(bf16));
  }
  to.weight = tiled;
  return to;
}

ExpertLinear GpuBackend::prepare(const ExpertLinear& stored, DeviceStorage& storage) {
  const size_t code_bytes = layout::mxfp4_code_bytes(stored.out, stored.in);
  const size_t scale_bytes = layout::mxfp4_scale_bytes(stored.out, stored.in);
  const size_t blocks = size_t(stored.out) * stored.in / kMxfp4Block;
  auto* codes = storage.take<uint8_t>(*this, stored.experts * code_bytes);
  auto* scales = storage.take<uint8_t>(*this, stored.experts * scale_bytes);
  auto* staging = staging_.reserve<uint8_t>(blocks * (kMxfp4BlockBytes + 1), stream_);
  uint8_t* staged_scales = staging + blocks * kMxfp4BlockBytes;
  for (int e = 0; e < stored.experts; ++e) {
    const uint8_t* from = stored.scales + e * blocks;
    const int largest = *std::max_element(from, from + blocks);
    CHECK(largest <= mxfp4::kLargestScale, "expert ", e, " has an MXFP4 scale of 2^", largest - 127,
          ", the GPU kernels take at most 2^", mxfp4::kLargestScale - 127, "; use device='cpu'");
    uploader_.copy(staging, stored.blocks + e * blocks * kMxfp4BlockBytes, blocks * kMxfp4BlockBytes);
    uploader_.copy(staged_scales, from, blocks);
    launch({"preparing experts", blocks_for(code_bytes / 16), kThreads, 0, stream_}, tile_codes_kernel,
           static_cast<const uint8_t*>(staging), stored.out, stored.in, codes + e * code_bytes);
    launch({"preparing experts", blocks_for(scale_bytes), kThreads, 0, stream_}, tile_scales_kernel,
           static_cast<const uint8_t*>(staged_scales), stored.out, stored.in, scales + e * scale_bytes);
  }
  ExpertLinear to = stored;
  to.blocks = codes;
  to.scales = scales;
  to.bias = upload(*this, stored.bias, size_t(stored.experts) * stored.out, storage);
  return to;
}

}  // namespace gptoss::GPTOSS_GPU
