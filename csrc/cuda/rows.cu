// Rows of loaded weights, in the checkpoint's form: what people read and write while the model runs. The host takes
// whole rows of tiles from kernel form and back (layout.h), a few MiB at a time.
#include <cstring>
#include <vector>

#include "cuda/backend.h"
#include "cuda/mxfp4.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

constexpr int64_t kSliceBytes = int64_t{4} << 20;

// A stretch of one matrix's rows, and the whole tiles in which they lie.
struct Slice {
  int64_t first, count;  // rows of the tensor
  int64_t skip;          // of the tiles' rows, those before
  int rows;              // of the matrix, that the tiles hold
  size_t offset, bytes;  // of the tiles
};

int unit_of(Place::Form form) {
  if (form == Place::Form::dense) return layout::kDenseRows;
  return form == Place::Form::rotary ? kHeadDim : layout::kMxfp4Rows;
}

size_t tiled_bytes(const Place& place, int rows) {
  if (place.form == Place::Form::codes) return layout::mxfp4_code_bytes(rows, place.in);
  if (place.form == Place::Form::scales) return layout::mxfp4_scale_bytes(rows, place.in);
  return layout::dense_bytes(rows, place.in);
}

layout::RowOrder order_of(const Place& place) {
  return place.form == Place::Form::rotary ? layout::RowOrder::rotary : layout::RowOrder::plain;
}

void to_checkpoint(const Place& place, const unsigned char* tiled, int rows, unsigned char* to) {
  if (place.form == Place::Form::codes) return layout::codes_to_checkpoint(tiled, rows, place.in, to);
  if (place.form == Place::Form::scales) return layout::scales_to_checkpoint(tiled, rows, place.in, to);
  layout::dense_to_checkpoint(reinterpret_cast<const bf16*>(tiled), rows, place.in, order_of(place),
                              reinterpret_cast<bf16*>(to));
}

void to_kernel(const Place& place, const unsigned char* from, int rows, unsigned char* tiled) {
  if (place.form == Place::Form::codes) return layout::codes_to_kernel(from, rows, place.in, tiled);
  if (place.form == Place::Form::scales) return layout::scales_to_kernel(from, rows, place.in, tiled);
  layout::dense_to_kernel(reinterpret_cast<const bf16*>(from), rows, place.in, order_of(place),
                          reinterpret_cast<bf16*>(tiled));
}

// Calls visit(slice) for rows [first, first + count), matrix by matrix.
template <typename Visit>
void each_slice(const Place& place, int64_t first, int64_t count, Visit visit) {
  const int unit = unit_of(place.form);
  const int64_t step = std::max<int64_t>(1, kSliceBytes / static_cast<int64_t>(place.row_bytes) / unit) * unit;
  while (count > 0) {
    const int64_t matrix = first / place.out, row = first % place.out, begin = row / unit * unit;
    const int64_t end = std::min({begin + step, row + count, int64_t{place.out}});
    const int rows = static_cast<int>(
        std::min<int64_t>(layout::tiles(static_cast<int>(end), unit) * int64_t{unit}, place.out) - begin);
    visit(Slice{first, end - row, row - begin, rows,
                matrix * tiled_bytes(place, place.out) + tiled_bytes(place, static_cast<int>(begin)),
                tiled_bytes(place, rows)});
    first += end - row;
    count -= end - row;
  }
}

}  // namespace

void GpuBackend::read_rows(const Place& place, int64_t first, int64_t count, unsigned char* to) {
  if (place.form == Place::Form::rows)
    return copy_out(to, place.data + first * place.row_bytes, count * place.row_bytes);
  std::vector<unsigned char> tiled, rows;
  each_slice(place, first, count, [&](const Slice& slice) {
    tiled.resize(slice.bytes);
    rows.resize(slice.rows * place.row_bytes);
    copy_out(tiled.data(), place.data + slice.offset, slice.bytes);
    to_checkpoint(place, tiled.data(), slice.rows, rows.data());
    std::memcpy(to, rows.data() + slice.skip * place.row_bytes, slice.count * place.row_bytes);
    to += slice.count * place.row_bytes;
  });
}

void GpuBackend::write_rows(const Place& place, int64_t first, int64_t count, const unsigned char* from) {
  if (place.form == Place::Form::rows)
    return copy_in(place.data + first * place.row_bytes, from, count * place.row_bytes);
  if (place.form == Place::Form::scales) {
    const int largest = *std::max_element(from, from + count * place.row_bytes);
    CHECK(largest <= mxfp4::kLargestScale, "an MXFP4 scale is 2^", largest - 127, ", the GPU kernels take at most 2^",
          mxfp4::kLargestScale - 127, "; write smaller numbers, or use device='cpu'");
  }
  std::vector<unsigned char> tiled, rows;
  each_slice(place, first, count, [&](const Slice& slice) {
    tiled.resize(slice.bytes);
    rows.resize(slice.rows * place.row_bytes);
    if (slice.count < slice.rows) {
      copy_out(tiled.data(), place.data + slice.offset, slice.bytes);
      to_checkpoint(place, tiled.data(), slice.rows, rows.data());
    }
    std::memcpy(rows.data() + slice.skip * place.row_bytes, from, slice.count * place.row_bytes);
    to_kernel(place, rows.data(), slice.rows, tiled.data());
    copy_in(place.data + slice.offset, tiled.data(), slice.bytes);
    from += slice.count * place.row_bytes;
  });
}

}  // namespace gptoss::GPTOSS_GPU
