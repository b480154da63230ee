// Products of many 8-bit rows by tiles, written over a type Tiles: the registers of AMX (tiles_amx.h), or those that
// the tests emulate. Sums are avx512's, bit for bit: exact integers inside a block of 32, and of floats the same ones
// in the same order.
//
// One multiplication of tiles makes one block's sums of 8 rows x 16 columns; they take a conversion, a product of
// scales and an addition each, and that is what costs. avx512 keeps a float sum for each of 16 lanes, lane 4 q + p of
// blocks 4 p + q of all steps of 16, and adds lanes l and l + 8, then l and l + 4, l + 2, l + 1 at the end. Here a
// lane's blocks are taken one after the other, so that its sums of 8 rows x 32 columns stay in 16 registers; and the
// lanes in the order in which that tree wants them: p = 0, 2, 1, 3, for each q = 0, 2, 1, 3. Like bits of a counter,
// sums of 1, 2, 4 and 8 lanes wait for their other half.
//
// From outside in: 128 rows, whose activations stay in the second cache; 32 columns, unpacked once for all of these;
// the four lanes of one p, whose weights stay in the first cache; eight rows; the lanes' blocks.
#pragma once

#include "cpu/amx.h"
#include "cpu/tile_columns.h"
#include "cpu/tile_config.h"

namespace gptoss::cpu {

extern const Kernels kernels_avx512;

template <class Tiles>
struct TileProducts {
  using V = __m512;
  using Columns = TileColumns<Tiles>;

  static constexpr int kRows = 8;      // of a group: sums of 8 x 32 are half the registers
  static constexpr int kGroups = 16;   // of rows that meet 32 columns' weights
  static constexpr int kTile = 16;     // columns of a tile
  static constexpr int kColumns = 32;  // of two tiles that share their activations and these their scales
  static constexpr int kLanes = 16;
  static constexpr int kLeastRows = kRows;  // fewer are avx512's

  // Numbers of the tile registers.
  static constexpr int kLeftSum = 0, kRightSum = 1, kActivations = 2, kLeft = 3, kRight = 4;

  static constexpr TileConfig config() {
    TileConfig tiles{.palette = 1};
    tiles.set(kLeftSum, kRows, kTile * 4);
    tiles.set(kRightSum, kRows, kTile * 4);
    tiles.set(kActivations, kRows, kMxfp4Block);
    tiles.set(kLeft, kMxfp4Block / 4, kTile * 4);
    tiles.set(kRight, kMxfp4Block / 4, kTile * 4);
    return tiles;
  }

  // A row for tiles: its blocks' bytes, four even and four odd in turn as the weights' rows, then their scales. It
  // follows what avx512 reads. An odd number of lines, so that neighbouring rows do not meet in the cache.
  static constexpr size_t odd_lines(size_t bytes) { return ((bytes + 63) / 64 | 1) * 64; }
  static constexpr size_t row_bytes(int blocks) { return size_t(blocks) * (kMxfp4Block + sizeof(float)); }
  static size_t row_offset(int blocks) { return kernels_avx512.laid_out_bytes(blocks * kMxfp4Block); }

  static size_t laid_out_bytes(int width) {
    return odd_lines(row_offset(width / kMxfp4Block) + row_bytes(width / kMxfp4Block));
  }
  static void lay_out(const int8_t* q8, const float* scale, int width, uint8_t* to) {
    kernels_avx512.lay_out(q8, scale, width, to);
    to += row_offset(width / kMxfp4Block);
    const __m256i apart =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
    for (int k = 0; k < width; k += kMxfp4Block) {
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q8 + k));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k), _mm256_shuffle_epi8(bytes, apart));
    }
    __builtin_memcpy(to + width, scale, size_t(width / kMxfp4Block) * sizeof(float));
  }

  // The order of a row's blocks: a lane's one after the other, lanes as the tree wants them.
  struct Order {
    int start[kLanes + 1];  // the place of each lane's first block

    explicit Order(int blocks) {
      start[0] = 0;
      for (int n = 0; n < kLanes; ++n) start[n + 1] = start[n] + (blocks - first_block(n) + kLanes - 1) / kLanes;
    }
    static int mirrored(int i) { return i % 2 * 2 + i / 2; }  // 0, 2, 1, 3; its own inverse
    static int first_block(int n) { return 4 * mirrored(n / 4) + mirrored(n % 4); }
    int place(int b) const { return start[4 * mirrored(b % kLanes / 4) + mirrored(b % 4)] + b / kLanes; }
  };

  // What a thread works with; see Weights and Row for what it is.
  struct Scratch {
    int32_t* block;  // [blocks], of each place
    int8_t* tiles;   // [blocks, 2, Columns::kBytes], by place
    float* scales;   // [blocks, kColumns], by place
    V* waiting;      // [groups, 2, kRows, 2]: sums of 4 and of 8 lanes
    uint8_t* rows;   // [groups, kRows, stride]: rows that do not lie side by side
    size_t row_stride;

    Scratch(int blocks, int groups) : row_stride(odd_lines(row_bytes(blocks))) {
      const size_t line = 64, many = static_cast<size_t>(blocks), some = static_cast<size_t>(groups);
      const size_t order = (many * sizeof(int32_t) + line - 1) / line * line;
      const size_t weights = many * 2 * Columns::kBytes, factors = many * kColumns * sizeof(float);
      const size_t sums = some * 2 * kRows * 2 * sizeof(V);
      uint8_t* at = tile_scratch(order + weights + factors + sums + some * kRows * row_stride);
      block = reinterpret_cast<int32_t*>(at);
      tiles = reinterpret_cast<int8_t*>(at += order);
      scales = reinterpret_cast<float*>(at += weights);
      waiting = reinterpret_cast<V*>(at += factors);
      rows = at + sums;
    }
  };

  // Eight rows, `stride` bytes apart.
  struct Group {
    const uint8_t* rows;
    size_t stride;
  };

  // Rows side by side are read where they lie. Others, and the last ones filled up with zeros, are copied.
  static Group group(const Rows<uint8_t>& x, int first, int count, int blocks, uint8_t* copy, size_t copy_stride) {
    const size_t offset = row_offset(blocks), bytes = row_bytes(blocks);
    if (!x.index && count == kRows) return {x[first] + offset, x.stride};
    for (int r = 0; r < count; ++r) __builtin_memcpy(copy + size_t(r) * copy_stride, x[first + r] + offset, bytes);
    for (int r = count; r < kRows; ++r) __builtin_memset(copy + size_t(r) * copy_stride, 0, bytes);
    return {copy, copy_stride};
  }

  // Integer sums of the block at `place`: of the left 16 columns [kRows, 16], then of the right ones.
  [[gnu::always_inline]] static void multiply(const Scratch& s, const Group& x, int place, int32_t* to) {
    constexpr size_t line = 64;
    Tiles::template load<kActivations>(x.rows + size_t(s.block[place]) * kMxfp4Block, x.stride);
    Tiles::template load<kLeft>(s.tiles + size_t(place) * 2 * Columns::kBytes, line);
    Tiles::template load<kRight>(s.tiles + size_t(place) * 2 * Columns::kBytes + Columns::kBytes, line);
    Tiles::template zero<kLeftSum>();
    Tiles::template zero<kRightSum>();
    Tiles::template dot<kLeftSum, kActivations, kLeft>();
    Tiles::template dot<kRightSum, kActivations, kRight>();
    Tiles::template store<kLeftSum>(to, line);
    Tiles::template store<kRightSum>(to + kRows * kTile, line);
  }

  // The n-th of sums to be added pairwise, n-th pair sums pairwise, and so on: sum becomes what can be added by now.
  // Unless it is the last it is left waiting.
  [[gnu::always_inline]] static void add_pairwise(V (*sum)[2], V (*waiting)[kRows][2], int n, int last) {
    int level = 0;
    for (; n >> level & 1; ++level) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        sum[r][0] = _mm512_add_ps(sum[r][0], waiting[level][r][0]);
        sum[r][1] = _mm512_add_ps(sum[r][1], waiting[level][r][1]);
      }
    }
    if (n == last) return;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) waiting[level][r][0] = sum[r][0], waiting[level][r][1] = sum[r][1];
  }

  // Sums of a group's rows over the four lanes of part p.
  static void add_lanes(const Scratch& s, const Order& order, const Group& x, int blocks, int p, V (*total)[2]) {
    // A tile comes back through memory: some places ahead, so that none is waited for.
    constexpr int kAhead = 2, kRing = 4;
    alignas(64) int32_t ring[kRing][kRows * kColumns];
    V waiting[2][kRows][2];
    const float* x_scales = reinterpret_cast<const float*>(x.rows + size_t(blocks) * kMxfp4Block);
    const size_t x_stride = x.stride / sizeof(float);

    int place = order.start[4 * p];
    const int end = order.start[4 * p + 4];
    for (int i = place; i < place + kAhead && i < end; ++i) multiply(s, x, i, ring[static_cast<unsigned>(i) % kRing]);
    for (int q = 0; q < 4; ++q) {
      V sum[kRows][2];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
      for (; place < order.start[4 * p + q + 1]; ++place) {
        if (place + kAhead < end) multiply(s, x, place + kAhead, ring[static_cast<unsigned>(place + kAhead) % kRing]);
        const int32_t* products = ring[static_cast<unsigned>(place) % kRing];
        const V left = _mm512_load_ps(s.scales + size_t(place) * kColumns);
        const V right = _mm512_load_ps(s.scales + size_t(place) * kColumns + kTile);
        const float* scale = x_scales + s.block[place];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const V factor = _mm512_set1_ps(scale[size_t(r) * x_stride]);
          const V to_left = _mm512_cvtepi32_ps(_mm512_load_si512(products + r * kTile));
          const V to_right = _mm512_cvtepi32_ps(_mm512_load_si512(products + (kRows + r) * kTile));
          sum[r][0] = _mm512_fmadd_ps(to_left, _mm512_mul_ps(left, factor), sum[r][0]);
          sum[r][1] = _mm512_fmadd_ps(to_right, _mm512_mul_ps(right, factor), sum[r][1]);
        }
      }
      add_pairwise(sum, waiting, q, 3);
      if (q < 3) continue;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) total[r][0] = sum[r][0], total[r][1] = sum[r][1];
    }
  }

  // Up to 128 rows by up to 32 columns whose weights are unpacked.
  static void multiply_columns(const Scratch& s, const Order& order, const Group* groups, int rows, int columns,
                               int blocks, float unit, float* out, size_t out_stride) {
    const auto mask = [&](int first) {
      const int there = columns - first;
      return static_cast<__mmask16>(there >= kTile ? 0xffff : there > 0 ? (1 << there) - 1 : 0);
    };
    const __mmask16 left = mask(0), right = mask(kTile);
    const V factor = _mm512_set1_ps(unit);
    for (int p = 0; p < 4; ++p)
      for (int first = 0; first < rows; first += kRows) {
        V sum[kRows][2];
        const int g = first / kRows;
        add_lanes(s, order, groups[g], blocks, p, sum);
        add_pairwise(sum, reinterpret_cast<V(*)[kRows][2]>(s.waiting + size_t(g) * 2 * kRows * 2), p, 3);
        if (p < 3) continue;
        for (int r = 0; r < kRows && first + r < rows; ++r) {
          float* to = out + size_t(first + r) * out_stride;
          _mm512_mask_storeu_ps(to, left, _mm512_mul_ps(factor, sum[r][0]));
          if (right) _mm512_mask_storeu_ps(to + kTile, right, _mm512_mul_ps(factor, sum[r][1]));
        }
      }
  }

  template <typename Matrix>
  static void matmul(const Rows<uint8_t>& x, int rows, const Matrix& weight, int columns, float* out,
                     size_t out_stride) {
    constexpr int kMost = kRows * kGroups;
    const int blocks = weight.blocks, groups_here = (rows + kRows - 1) / kRows;
    const Order order(blocks);
    const Scratch s(blocks, groups_here < kGroups ? groups_here : kGroups);
    for (int b = 0; b < blocks; ++b) s.block[order.place(b)] = b;

    const TileConfig tiles = config();
    Tiles::configure(tiles);
    for (int first_row = 0; first_row < rows; first_row += kMost) {
      const int some = rows - first_row < kMost ? rows - first_row : kMost;
      Group groups[kGroups];
      for (int r = 0; r < some; r += kRows)
        groups[r / kRows] = group(x, first_row + r, some - r < kRows ? some - r : kRows, blocks,
                                  s.rows + size_t(r) * s.row_stride, s.row_stride);
      for (int first = 0; first < columns; first += kColumns) {
        for (int half = 0; half < 2; ++half) {
          const int begin = first + half * kTile, at = begin < columns ? begin : columns - 1;
          weight.unpack(at, columns - at, kTile, [&](int b) {
            const auto place = static_cast<size_t>(order.place(b));
            return typename Columns::Target{s.tiles + (place * 2 + half) * Columns::kBytes,
                                            s.scales + (place * 2 + half) * kTile};
          });
        }
        multiply_columns(s, order, groups, some, columns - first, blocks, Matrix::unit,
                         out + size_t(first_row) * out_stride + first, out_stride);
      }
    }
    Tiles::release();  // a thread that carries tiles costs the system 8 KB at every switch
  }

  static void matmul_mxfp4_q8(Rows<uint8_t> x, int rows, Mxfp4Tile weight, int columns, int width, float* out,
                              size_t out_stride) {
    if (rows < kLeastRows) return kernels_avx512.matmul_mxfp4_q8(x, rows, weight, columns, width, out, out_stride);
    matmul(x, rows, typename Columns::Mxfp4{weight, width / kMxfp4Block}, columns, out, out_stride);
  }
  static void matmul_q8(Rows<uint8_t> x, int rows, Q8Tile weight, int columns, int width, float* out,
                        size_t out_stride) {
    if (rows < kLeastRows) return kernels_avx512.matmul_q8(x, rows, weight, columns, width, out, out_stride);
    matmul(x, rows, typename Columns::Q8{weight, width / kMxfp4Block}, columns, out, out_stride);
  }

  static constexpr TileKernels table{
      .laid_out_bytes = laid_out_bytes, .lay_out = lay_out, .matmul_mxfp4_q8 = matmul_mxfp4_q8, .matmul_q8 = matmul_q8};
};

}  // namespace gptoss::cpu
