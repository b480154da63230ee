// The GPU backends a build may hold: the real one, and the simulated one of the tests. Plain C++, no CUDA headers.
#pragma once

#include <memory>

#include "model/backend.h"

namespace gptoss::cuda {
std::unique_ptr<Backend> make_backend();  // throws Error saying what is missing when there is no usable GPU
}

namespace gptoss::simulated {
std::unique_ptr<Backend> make_backend();
void set_seed(uint64_t seed);  // of the order in which simulated threads run
}  // namespace gptoss::simulated
