#include "cpu/kernels_impl.h"
#include "cpu/limits_impl.h"
#include "cpu/sampling_impl.h"
#include "cpu/simd_avx2.h"

namespace gptoss::cpu {

extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = KernelsFor<Avx2>::table(SamplingFor<Avx2>::table, LimitsFor<Avx2>::table);

}  // namespace gptoss::cpu
