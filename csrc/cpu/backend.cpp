#include "cpu/backend.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "cpu/packed_weights.h"
#include "cpu/q8_weights.h"
#include "cpu/usable_cores.h"

namespace gptoss::cpu {
namespace {

int thread_count(int asked) {
  constexpr int kMaxThreads = 1024;
  CHECK(asked >= 0 && asked <= kMaxThreads, "threads is ", asked, ", expected 0 (every usable core) to ", kMaxThreads);
  return asked > 0 ? asked : usable_cores("");
}

}  // namespace

CpuBackend::CpuBackend(int threads, const std::string& isa, DenseForm dense_form)
    : pool_(thread_count(threads)),
      kernels_(select_kernels(isa)),
      dense_form_(dense_form),
      scratch_(pool_.threads()),
      candidates_(pool_.threads()) {}

void* CpuBackend::allocate(size_t bytes) {
  constexpr size_t kHuge = size_t{2} << 20;  // pages that a core finds with fewer looks into its tables
  const size_t align = bytes >= 2 * kHuge ? kHuge : 64;
  CHECK(bytes <= SIZE_MAX - align, bytes, " bytes do not fit the address space");
  const size_t whole = std::max(align, (bytes + align - 1) / align * align);
  void* memory = std::aligned_alloc(align, whole);
  CHECK(memory != nullptr, "out of memory: ", bytes,
        " bytes were asked for; use a shorter context, fewer sequences or a smaller model");
#ifdef MADV_HUGEPAGE
  if (align == kHuge) madvise(memory, whole, MADV_HUGEPAGE);  // a wish: the system may have none
#endif
  return memory;
}
void CpuBackend::release(void* memory) { std::free(memory); }
void CpuBackend::copy_in(void* device, const void* host, size_t bytes) { std::memcpy(device, host, bytes); }
void CpuBackend::copy_out(void* host, const void* device, size_t bytes) { std::memcpy(host, device, bytes); }

void CpuBackend::read_rows(const Place& place, int64_t first, int64_t count, unsigned char* to) {
  std::memcpy(to, place.data + first * place.row_bytes, count * place.row_bytes);
}

// The weights are a private mapping of the checkpoint's files, read-only until here: a page that is written becomes
// this process's own, and the files stay as they are.
void CpuBackend::write_rows(const Place& place, int64_t first, int64_t count, const unsigned char* from) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), bytes = count * place.row_bytes;
  unsigned char* to = place.data + first * place.row_bytes;
  const auto begin = reinterpret_cast<uintptr_t>(to) / page * page;
  const size_t length = reinterpret_cast<uintptr_t>(to) + bytes - begin;
  CHECK(mprotect(reinterpret_cast<void*>(begin), length, PROT_READ | PROT_WRITE) == 0, "the ", bytes,
        " bytes cannot be made writable (", std::strerror(errno), "); free some memory, or write fewer at once");
  std::memcpy(to, from, bytes);
  if (place.copy.has_copy()) fill_copy(place.copy, first, count);
  if (place.screen) fill_screen(place.copy, place.screen, first, count);
}

Linear CpuBackend::prepare(const Linear& stored, MatrixUse use, DeviceStorage& storage) {
  if (dense_form_ == DenseForm::bf16 || use == MatrixUse::rows) return stored;
  Linear copy = stored;
  if (dense_form_ == DenseForm::q8) {
    // Where a load touches two lines the second is fetched sooner: rows, all of whole lines, begin in the middle of
    // one.
    constexpr size_t kMiddle = 32;
    copy.q8 = storage.take_beside<int8_t>(*this, stored.out * q8_row_bytes(stored.in) + kMiddle) + kMiddle;
    copy.scale = storage.take_beside<bf16>(*this, stored.out * q8_row_scales(stored.in));
  } else {
    copy.first_upper = first_upper_byte(stored);
    if (copy.first_upper < 0) return stored;
    copy.packed = storage.take_beside<uint8_t>(*this, stored.out * packed_row_bytes(stored.in));
    copy.packed_rows = storage.take_beside<PackedRow>(*this, stored.out);
  }
  fill_copy(copy, 0, stored.out);
  return copy;
}

void CpuBackend::fill_copy(const Linear& layer, int64_t first, int64_t count) {
  constexpr int kRows = 16;  // of a task
  const size_t width = layer.in;
  const auto fill = [&](int64_t row) {
    const bf16* from = layer.weight + row * width;
    if (layer.q8)
      kernels_.quantize_weights(from, layer.in, const_cast<int8_t*>(layer.q8) + row * q8_row_bytes(layer.in),
                                const_cast<bf16*>(layer.scale) + row * q8_row_scales(layer.in));
    else
      const_cast<PackedRow*>(layer.packed_rows)[row] = kernels_.pack_row(
          from, layer.in, layer.first_upper, const_cast<uint8_t*>(layer.packed) + row * packed_row_bytes(layer.in));
  };
  pool_.parallel_for(static_cast<int>((count + kRows - 1) / kRows), [&](int task, int) {
    const int64_t end = first + std::min<int64_t>(count, int64_t{task + 1} * kRows);
    for (int64_t row = first + int64_t{task} * kRows; row < end; ++row) fill(row);
  });
}

int CpuBackend::tiles_of_task(int tiles, size_t tile_numbers, int rows) const {
  constexpr int kTasks = 8;  // of a thread
  constexpr size_t kLongest = 3 << 20;
  if (rows > kFewRows) return 1;
  const int most = std::min(tiles / (kTasks * pool_.threads()), static_cast<int>(kLongest / tile_numbers));
  if (most <= 1) return 1;
  const int tasks = (tiles + most - 1) / most;
  return (tiles + tasks - 1) / tasks;
}

int CpuBackend::pieces_of_expert(int active, int tiles, size_t tile_numbers, int rows) const {
  const int most = std::min(tiles, tiles_of_task(active * tiles, tile_numbers, rows));
  const int pieces = (tiles + most - 1) / most, even = (tiles + pieces - 1) / pieces;
  return (tiles + even - 1) / even;
}

void CpuBackend::reserve_bytes(int rows, int width) {
  const size_t values = size_t(rows) * width;
  if (dense_bytes_.size() < values) {
    dense_bytes_ = Buffer<int8_t>(values);
    dense_scale_ = Buffer<float>(values / kMxfp4Block);
  }
  reserve_laid_out(rows, width);
}

void CpuBackend::quantize_row(const float* x, int row, int width) {
  int8_t* bytes = dense_bytes_.data() + size_t(row) * width;
  float* scale = dense_scale_.data() + size_t(row) * (width / kMxfp4Block);
  kernels_.quantize_q8(x, width, bytes, scale);
  kernels_.lay_out(bytes, scale, width, laid_out_.data() + row * kernels_.laid_out_bytes(width));
}

void CpuBackend::reserve_dense(const Linear& layer, int rows) {
  if (layer.q8) reserve_bytes(rows, layer.in);
}

void CpuBackend::quantize_dense(const Linear& layer, const float* x, int row) {
  if (layer.q8) quantize_row(x, row, layer.in);
}

void CpuBackend::dense_matmul(const float* x, int row, int rows, const Linear& layer, int first, int columns,
                              float* out, size_t out_stride) {
  const size_t width = layer.in;
  x += row * width;
  if (layer.packed) {
    const PackedTile weight{layer.packed + first * packed_row_bytes(layer.in), layer.packed_rows + first,
                            layer.weight + first * width, layer.first_upper};
    kernels_.matmul_packed({x, width}, rows, weight, columns, layer.in, out, out_stride);
  } else if (layer.q8) {
    const Q8Tile weight{layer.q8 + first * q8_row_bytes(layer.in), layer.scale + first * q8_row_scales(layer.in)};
    const size_t stride = kernels_.laid_out_bytes(layer.in);
    kernels_.matmul_q8({laid_out_.data() + row * stride, stride}, rows, weight, columns, layer.in, out, out_stride);
  } else {
    kernels_.matmul_bf16({x, width}, rows, layer.weight + first * width, columns, layer.in, out, out_stride);
  }
}

int CpuBackend::find_active(const ExpertGroups& groups, int experts) {
  active_experts_.clear();
  int most_rows = 0;
  for (int e = 0; e < experts; ++e) {
    const int rows = groups.start[e + 1] - groups.start[e];
    if (rows > 0) active_experts_.push_back(e);
    most_rows = std::max(most_rows, rows);
  }
  return most_rows;
}

void CpuBackend::reserve_laid_out(int rows, int width) {
  const size_t bytes = rows * kernels_.laid_out_bytes(width);
  if (laid_out_.size() < bytes) laid_out_ = Buffer<uint8_t>(bytes);
}

void CpuBackend::lay_out(const ExpertInput& input, int rows, int width) {
  constexpr int kRows = 8;  // of a task: few rows are not worth waking a thread
  if (!input.q8) return;
  reserve_laid_out(rows, width);
  const size_t stride = kernels_.laid_out_bytes(width);
  pool_.parallel_for((rows + kRows - 1) / kRows, [&](int task, int) {
    for (int row = task * kRows; row < std::min(rows, (task + 1) * kRows); ++row)
      kernels_.lay_out(input.q8 + size_t(row) * width, input.scale + size_t(row) * (width / kMxfp4Block), width,
                       laid_out_.data() + row * stride);
  });
}

void CpuBackend::reserve_scratch(size_t count) {
  for (Buffer<float>& buffer : scratch_)
    if (buffer.size() < count) buffer = Buffer<float>(count);
}

void CpuBackend::expert_matmul(const ExpertInput& input, const int32_t* order, int divisor, int rows,
                               const ExpertLinear& layer, int expert, int first, int columns, float* scratch,
                               float* out, size_t out_stride) {
  const size_t width = layer.in;
  const size_t row = size_t(expert) * layer.out + first;
  const size_t blocks = row * (width / kMxfp4Block);
  const Mxfp4Tile weight{layer.blocks + blocks * kMxfp4BlockBytes, layer.scales + blocks};
  if (input.q8) {
    const Rows<uint8_t> x{laid_out_.data(), kernels_.laid_out_bytes(layer.in), order, divisor};
    kernels_.matmul_mxfp4_q8(x, rows, weight, columns, layer.in, out, out_stride);
  } else {
    const Rows<float> x{input.f32, width, order, divisor};
    kernels_.matmul_mxfp4(x, rows, weight, columns, layer.in, scratch, out, out_stride);
  }
}

}  // namespace gptoss::cpu
