// The kernels, written once over a vector type S (simd_*.h) and compiled by kernels_*.cpp for each
// instruction set. Only templates on S live here and in the other *_impl.h, so no two objects share a symbol.
#pragma once

#include "cpu/attention_impl.h"
#include "cpu/elementwise_impl.h"
#include "cpu/float_impl.h"
#include "cpu/kernels.h"
#include "cpu/packed_impl.h"
#include "cpu/q8_impl.h"
#include "cpu/quantize_impl.h"

namespace gptoss::cpu {

template <class S>
struct KernelsFor {
  static constexpr Kernels table(const SamplingKernels& sampling, const LimitKernels& limits) {
    using Float = FloatFor<S>;
    using Packed = PackedFor<S>;
    using Q8 = Q8For<S>;
    using Quantize = QuantizeFor<S>;
    using Elementwise = ElementwiseFor<S>;
    return {.isa = S::name,
            .matmul_bf16 = Float::matmul_bf16,
            .matmul_packed = Packed::matmul_packed,
            .pack_row = Packed::pack_row,
            .matmul_mxfp4 = Float::matmul_mxfp4,
            .laid_out_bytes = Q8::laid_out_bytes,
            .lay_out = Q8::lay_out,
            .matmul_mxfp4_q8 = Q8::matmul_mxfp4_q8,
            .matmul_q8 = Q8::matmul_q8,
            .matmul_screen = Q8::matmul_screen,
            .quantize_q8 = Quantize::quantize_q8,
            .quantize_weights = Quantize::quantize_weights,
            .quantize_screen = Quantize::quantize_screen,
            .rmsnorm = Elementwise::rmsnorm,
            .swiglu = Elementwise::swiglu,
            .attend_page = AttentionFor<S>::attend_page,
            .sampling = sampling,
            .limits = limits};
  }
};

}  // namespace gptoss::cpu
