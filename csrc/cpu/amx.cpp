#include "cpu/amx.h"

#include <cerrno>
#include <cstring>
#include <vector>

#include "core/buffer.h"
#include "cpu/q8_weights.h"
#include "model/ops.h"

#if defined(GPTOSS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace gptoss::cpu {

#if defined(GPTOSS_X86)
extern const Kernels kernels_avx512;

Kernels with_tiles(const char* isa, const TileKernels& tiles) {
  Kernels kernels = kernels_avx512;
  kernels.isa = isa;
  kernels.laid_out_bytes = tiles.laid_out_bytes;
  kernels.lay_out = tiles.lay_out;
  kernels.matmul_mxfp4_q8 = tiles.matmul_mxfp4_q8;
  kernels.matmul_q8 = tiles.matmul_q8;
  return kernels;
}
#endif

uint8_t* tile_scratch(size_t bytes) {
  thread_local Buffer<uint8_t> memory;
  if (memory.size() < bytes) memory = Buffer<uint8_t>(bytes);
  return memory.data();
}

bool same_products(const Kernels& a, const Kernels& b) {
  // A last group of rows, tile of columns, and step of blocks that are not whole.
  constexpr int kRows = 19, kColumns = 43, kBlocks = 37, kWidth = kBlocks * kMxfp4Block;
  uint64_t state = 1;
  const auto random = [&] {  // the upper bits of a linear congruence
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 40);
  };
  std::vector<uint8_t> codes(size_t{kColumns} * kBlocks * kMxfp4BlockBytes), exponents(size_t{kColumns} * kBlocks);
  for (uint8_t& each : codes) each = static_cast<uint8_t>(random());
  for (uint8_t& each : exponents) each = static_cast<uint8_t>(115 + random() % 16);
  std::vector<bf16> dense(size_t{kColumns} * kWidth);
  for (bf16& each : dense) each = to_bf16(static_cast<float>(random()) * 0x1p-23f - 1.0f);

  const auto product = [&](const Kernels& kernels) {
    uint64_t start = state;
    const size_t row_bytes = kernels.laid_out_bytes(kWidth);
    Buffer<uint8_t> rows(kRows * row_bytes);
    std::vector<int8_t> q8(kWidth);
    std::vector<float> scale(kBlocks);
    for (int r = 0; r < kRows; ++r) {
      for (int8_t& each : q8) each = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
      for (float& each : scale) each = static_cast<float>(random()) * 0x1p-30f;
      kernels.lay_out(q8.data(), scale.data(), kWidth, rows.data() + size_t(r) * row_bytes);
    }
    state = start;

    const size_t weight_bytes = q8_row_bytes(kWidth), weight_scales = q8_row_scales(kWidth);
    std::vector<int8_t> weight(kColumns * weight_bytes);
    std::vector<bf16> weight_scale(kColumns * weight_scales);
    for (size_t c = 0; c < kColumns; ++c)
      kernels.quantize_weights(dense.data() + c * kWidth, kWidth, weight.data() + c * weight_bytes,
                               weight_scale.data() + c * weight_scales);

    std::vector<float> out(size_t{3} * kRows * kColumns);
    std::vector<int32_t> order(kRows);
    for (int r = 0; r < kRows; ++r) order[static_cast<size_t>(r)] = 2 * (kRows - 1 - r) + 1;
    const Rows<uint8_t> x{rows.data(), row_bytes}, reversed{rows.data(), row_bytes, order.data(), 2};
    float* to = out.data();
    kernels.matmul_mxfp4_q8(x, kRows, {codes.data(), exponents.data()}, kColumns, kWidth, to, kColumns);
    kernels.matmul_mxfp4_q8(reversed, kRows, {codes.data(), exponents.data()}, kColumns, kWidth, to += kRows * kColumns,
                            kColumns);
    kernels.matmul_q8(x, kRows, {weight.data(), weight_scale.data()}, kColumns, kWidth, to += kRows * kColumns,
                      kColumns);
    return out;
  };
  const std::vector<float> first = product(a), second = product(b);
  return std::memcmp(first.data(), second.data(), first.size() * sizeof(float)) == 0;
}

#if defined(GPTOSS_AMX)
extern const TileKernels tile_kernels_amx;

const Kernels& amx_kernels() {
  static const Kernels kernels = with_tiles("amx", tile_kernels_amx);
  return kernels;
}

namespace {

// Whether the processor has tiles of 16 rows of 64 bytes, and signed bytes among what it multiplies.
bool processor_has_tiles() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & kTile) == 0 || (edx & kInt8) == 0) return false;
  // Palette 1: bytes of a tile and of a row, how many tiles, and rows of one.
  if (!__get_cpuid_count(0x1d, 1, &eax, &ebx, &ecx, &edx)) return false;
  return (eax >> 16) >= 1024 && (ebx & 0xffff) >= 64 && (ebx >> 16) >= 8 && (ecx & 0xffff) >= 16;
}

// Whether the system saves tiles when it switches threads.
bool system_saves_tiles() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kXsave = 1u << 27, kTiles = 3u << 17;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & kXsave) == 0) return false;
  asm volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return (eax & kTiles) == kTiles;
}

std::string find_amx_problem() {
  if (!processor_has_tiles()) return "the processor has no AMX-INT8";
  if (!system_saves_tiles()) return "the system does not save tile registers";
  // Linux gives a process the registers when it asks (arch_prctl, 5.16 and later); all threads have them then.
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0)
    return std::string("the system refuses tile registers: ") + std::strerror(errno);
  if (!same_products(amx_kernels(), kernels_avx512)) return "a product by tiles is not what avx512 makes of it";
  return "";
}

}  // namespace

const std::string& amx_problem() {
  static const std::string problem = find_amx_problem();
  return problem;
}
#else
const Kernels& amx_kernels() { fail(__FILE__, __LINE__, "this build has no AMX"); }
const std::string& amx_problem() {
  static const std::string problem = "this build has none: it is of x86-64 Linux, by a compiler that knows AMX";
  return problem;
}
#endif

#if !defined(GPTOSS_EMULATED_AMX)
std::vector<const Kernels*> emulated_kernels() { return {}; }
#endif

}  // namespace gptoss::cpu
