#include "cpu/kernels_impl.h"
#include "cpu/limits_impl.h"
#include "cpu/sampling_impl.h"
#include "cpu/simd_avx512.h"

namespace gptoss::cpu {

extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = KernelsFor<Avx512>::table(SamplingFor<Avx512>::table, LimitsFor<Avx512>::table);

}  // namespace gptoss::cpu
