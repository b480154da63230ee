// Few rows: a task computes some columns of one active expert, as one long stream of weights; all are added to the
// residual stream afterwards. Many rows: a task owns some of its columns and adds every active expert to them. Either
// way no two tasks write the same number, and the order of a row's additions is its own experts', ascending.
#include <algorithm>

#include "cpu/backend.h"
#include "cpu/lora.h"

namespace gptoss::cpu {
namespace {

constexpr int kTile = 32;  // columns whose weights stay in a core's cache for many rows; hidden is a multiple

// Adds columns [first, first + columns) of an expert's products, `stride` apart, to those of the residual stream.
void add_expert(const MoeDownParams& p, int expert, int first, int columns, float* products, size_t stride) {
  const bf16* bias = p.down.bias + size_t(expert) * p.down.out + first;
  for (int i = p.groups.start[expert]; i < p.groups.start[expert + 1]; ++i, products += stride) {
    const int product = p.groups.order[i], row = product / p.chosen;
    const float weight = p.routing_weight[product];
    float* to = p.residual + size_t(row) * p.down.out + first;
    add_lora(p.lora, row, product, expert, p.down.out, first, columns, products);
    for (int c = 0; c < columns; ++c) to[c] += weight * (products[c] + to_float(bias[c]));
  }
}

void add_steering(const MoeDownParams& p, int first, int columns) {
  for (int row = 0; p.steering && row < p.rows; ++row)
    if (const float* steering = p.steering_of(row))
      for (int c = 0; c < columns; ++c) p.residual[size_t(row) * p.down.out + first + c] += steering[first + c];
}

}  // namespace

void CpuBackend::moe_down(const MoeDownParams& p) {
  const int most_rows = find_active(p.groups, p.down.experts);
  lay_out(p.input, p.rows * p.chosen, p.down.in);
  if (most_rows <= kFewRows)
    moe_down_few(p, most_rows);
  else
    moe_down_many(p, most_rows);
}

void CpuBackend::moe_down_few(const MoeDownParams& p, int most_rows) {
  const int hidden = p.down.out, active = static_cast<int>(active_experts_.size()), tiles = hidden / kTile;
  const int pieces = pieces_of_expert(active, tiles, size_t(kTile) * p.down.in, most_rows);
  const int most = (tiles + pieces - 1) / pieces * kTile;
  const size_t floats = size_t(p.rows) * p.chosen * hidden;
  if (products_.size() < floats) products_ = Buffer<float>(floats);
  reserve_scratch(expert_scratch(p.down.in));
  const auto products = [&](int expert) { return products_.data() + size_t(p.groups.start[expert]) * hidden; };
  pool_.parallel_for(active * pieces, [&](int task, int worker) {
    const int expert = active_experts_[task / pieces];
    const int first = task % pieces * most, columns = std::min(most, hidden - first);
    const int32_t* order = p.groups.order + p.groups.start[expert];
    const int rows = p.groups.start[expert + 1] - p.groups.start[expert];
    expert_matmul(p.input, order, 1, rows, p.down, expert, first, columns, scratch(worker), products(expert) + first,
                  hidden);
  });
  // One thread is done with few rows before another wakes, unless an adapter has its part in them.
  const int shares = p.rows > kFewRows || p.lora ? std::min(pool_.threads(), tiles) : 1;
  pool_.parallel_for(shares, [&](int share, int) {
    const int first = tiles * share / shares * kTile, columns = tiles * (share + 1) / shares * kTile - first;
    for (const int expert : active_experts_) add_expert(p, expert, first, columns, products(expert) + first, hidden);
    add_steering(p, first, columns);
  });
}

void CpuBackend::moe_down_many(const MoeDownParams& p, int most_rows) {
  const size_t out_floats = size_t(most_rows) * kTile;
  reserve_scratch(out_floats + expert_scratch(p.down.in));
  pool_.parallel_for(p.down.out / kTile, [&](int tile, int worker) {
    const int first = tile * kTile;
    float* out = scratch(worker);
    for (const int expert : active_experts_) {
      const int32_t* order = p.groups.order + p.groups.start[expert];
      const int rows = p.groups.start[expert + 1] - p.groups.start[expert];
      expert_matmul(p.input, order, 1, rows, p.down, expert, first, kTile, out + out_floats, out, kTile);
      add_expert(p, expert, first, kTile, out, kTile);
    }
    add_steering(p, first, kTile);
  });
}

}  // namespace gptoss::cpu
