// Bulk copies and mbarriers, as the PTX ISA describes them.
//
// A copy's target is poison from its issue until a wait on its mbarrier succeeds, and its source is read then. So
// whoever refills a stage too early, or reads one too early, gets what the hardware may give. What CUDA leaves
// undefined ends the launch: an mbarrier that was not made, that others use before a barrier or bulk copies before a
// fence has shown it to them, that was overwritten, or that gets more arrivals or bytes than its phase expects.
#pragma once

#include "machine.h"

namespace simt {

void mbarrier_init(void* barrier, int arrivals, const Where& where);
void mbarrier_expect(void* barrier, int bytes, const Where& where);
void mbarrier_wait(void* barrier, int parity, const Where& where);
void copy_bulk(void* shared, const void* global, int bytes, void* landed, const Where& where);
void fence_async_proxy();

}  // namespace simt
