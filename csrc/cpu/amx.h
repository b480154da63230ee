// Tables whose products of many 8-bit rows are made by tiles: avx512's kernels, and four of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace gptoss::cpu {

// See Kernels. Results are avx512's, bit for bit.
struct TileKernels {
  size_t (*laid_out_bytes)(int width);
  void (*lay_out)(const int8_t* q8, const float* scale, int width, uint8_t* to);
  void (*matmul_mxfp4_q8)(Rows<uint8_t> x, int rows, Mxfp4Tile weight, int columns, int width, float* out,
                          size_t out_stride);
  void (*matmul_q8)(Rows<uint8_t> x, int rows, Q8Tile weight, int columns, int width, float* out, size_t out_stride);
};

// avx512's table with these in place of its own.
Kernels with_tiles(const char* isa, const TileKernels& tiles);

// Whether a random product of both kinds comes out the same, bit for bit.
bool same_products(const Kernels& a, const Kernels& b);

// Why this host or build has no table "amx"; empty where it has. Asks the system for the use of tiles, once.
const std::string& amx_problem();
const Kernels& amx_kernels();

// The tables of builds for tests, for hosts without tiles. By name alone: no host prefers them.
std::vector<const Kernels*> emulated_kernels();

// Memory of this thread for so many bytes, on a cache line's border. What was in it is lost.
uint8_t* tile_scratch(size_t bytes);

}  // namespace gptoss::cpu
