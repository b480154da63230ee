#include "model/activations.h"

namespace gptoss {

Activations::Activations(Backend& backend, const Config& config, Numerics numerics, int max_rows)
    : rope_scale(yarn_scale(config)), max_rows_(max_rows) {
  constexpr int kMaxRows = 1 << 22;  // times 128 experts fits an int
  CHECK(max_rows > 0 && max_rows <= kMaxRows, "max_rows is ", max_rows, ", expected 1 to ", kMaxRows);
  CHECK(numerics == Numerics::fast || backend.has_exact(),
        "numerics is 'exact', which this device does not offer; use 'fast'");
  const size_t rows = max_rows;
  const size_t assignments = rows * config.chosen;
  const auto make = [&]<typename T>(DeviceBuffer<T>& buffer, size_t count) {
    buffer = DeviceBuffer<T>(backend, count);
    bytes_ += buffer.bytes();
  };
  make(residual, rows * config.hidden);
  make(normed, rows * config.hidden);
  make(queries, rows * config.heads * kHeadDim);
  make(attention, rows * config.heads * kHeadDim);
  make(expert, assignments);
  make(routing_weight, assignments);
  make(group_start, config.experts + 1);
  make(group_order, assignments);
  if (numerics == Numerics::exact) {
    make(inner, assignments * config.inner);
  } else if (backend.fast_form() == ExpertForm::q8) {
    make(normed_q8, rows * config.hidden);
    make(normed_scale, rows * config.hidden / kMxfp4Block);
    make(inner_q8, assignments * config.inner);
    make(inner_scale, assignments * config.inner / kMxfp4Block);
  } else {
    make(normed_b16, rows * config.hidden);
    make(inner_b16, assignments * config.inner);
  }
  const std::vector<float> frequencies = yarn_inv_freq(config);
  make(inv_freq, frequencies.size());
  backend.copy_in(inv_freq.data(), frequencies.data(), inv_freq.bytes());
}

}  // namespace gptoss
