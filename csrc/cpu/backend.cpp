#include "cpu/backend.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "cpu/usable_cores.h"

namespace gptoss::cpu {
namespace {

int thread_count(int asked) {
  constexpr int kMaxThreads = 1024;
  CHECK(asked >= 0 && asked <= kMaxThreads, "threads is ", asked, ", expected 0 (every usable core) to ", kMaxThreads);
  return asked > 0 ? asked : usable_cores("");
}

}  // namespace

CpuBackend::CpuBackend(int threads, const std::string& isa)
    : pool_(thread_count(threads)),
      kernels_(select_kernels(isa)),
      scratch_(pool_.threads()),
      candidates_(pool_.threads()) {}

void* CpuBackend::allocate(size_t bytes) {
  constexpr size_t kAlign = 64;
  CHECK(bytes <= SIZE_MAX - kAlign, bytes, " bytes do not fit the address space");
  void* memory = std::aligned_alloc(kAlign, std::max(kAlign, (bytes + kAlign - 1) / kAlign * kAlign));
  CHECK(memory != nullptr, "out of memory: ", bytes,
        " bytes were asked for; use a shorter context, fewer sequences or a smaller model");
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
}

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
