#include "cpu/amx_impl.h"
#include "tiles_emulated.h"

namespace gptoss::cpu {

extern const TileKernels tile_kernels_emulated;
const TileKernels tile_kernels_emulated = TileProducts<EmulatedTiles>::table;

}  // namespace gptoss::cpu
