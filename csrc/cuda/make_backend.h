// The GPU backends a build may hold: the real one, and the simulated one of the tests. Plain C++, no CUDA headers.
#pragma once

#include <memory>
#include <string>

#include "model/backend.h"

namespace gptoss::cuda {
std::string problem();                    // why there is no usable GPU, and what to do; empty when there is one
std::unique_ptr<Backend> make_backend();  // throws Error with that sentence
}  // namespace gptoss::cuda

namespace gptoss::simulated {
std::unique_ptr<Backend> make_backend();
void set_seed(uint64_t seed);             // of the order in which simulated threads run
void set_architecture(int architecture);  // 80, or 90: with the kernels for wgmma
}  // namespace gptoss::simulated
