#include "cpu/kernels_impl.h"
#include "cpu/limits_impl.h"
#include "cpu/sampling_impl.h"
#include "cpu/simd_portable.h"

namespace gptoss::cpu {

extern const Kernels kernels_portable;
const Kernels kernels_portable = KernelsFor<Portable>::table(SamplingFor<Portable>::table, LimitsFor<Portable>::table);

}  // namespace gptoss::cpu
