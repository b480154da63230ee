#include "cpu/amx_impl.h"
#include "cpu/tiles_amx.h"

namespace gptoss::cpu {

extern const TileKernels tile_kernels_amx;
const TileKernels tile_kernels_amx = TileProducts<AmxTiles>::table;

}  // namespace gptoss::cpu
