#include <cstring>

#include "cpu/amx.h"
#include "trap.h"

namespace gptoss::cpu {

extern const TileKernels tile_kernels_emulated;
#if defined(GPTOSS_AMX)
extern const TileKernels tile_kernels_amx;
#endif

// "amx-emulated" is the kernels' source over registers in C++, "amx-trapped" the very machine code of "amx".
std::vector<const Kernels*> emulated_kernels() {
  bool has_avx512 = false;
  for (const Kernels* kernels : available_kernels()) has_avx512 |= std::strcmp(kernels->isa, "avx512") == 0;
  if (!has_avx512) return {};
  static const Kernels emulated = with_tiles("amx-emulated", tile_kernels_emulated);
  std::vector<const Kernels*> found{&emulated};
#if defined(GPTOSS_AMX)
  emulated::trap_tile_instructions();
  static const Kernels trapped = with_tiles("amx-trapped", tile_kernels_amx);
  found.push_back(&trapped);
#endif
  return found;
}

}  // namespace gptoss::cpu
