// AMX instructions on a host that has none: the processor traps, and they are done on the emulated registers.
#pragma once

namespace gptoss::emulated {

// For the whole process, until somebody else handles illegal instructions (Python's faulthandler does). Linux on
// x86-64.
void trap_tile_instructions();

// How many were done so by this thread.
long trapped_instructions();

}  // namespace gptoss::emulated
