// How many threads are worth starting.
#pragma once

#include <string>

namespace gptoss::cpu {

// Cores this process may use: those of its affinity mask, but no more than the CPU quota of its control groups
// rounded up. More threads than that are stopped in turn, while the others wait for them at the end of every op.
// `root` is where /proc and /sys are; "" for the system's own.
int usable_cores(const std::string& root);

}  // namespace gptoss::cpu
