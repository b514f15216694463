// Attention for AVX-512 with VDPBF16PS.
#include <immintrin.h>

#include "kernels/cpu/attention_tile.h"

namespace lacuna::kernels::cpu {
namespace {
#include "kernels/cpu/attention_avx512.inl"
#include "kernels/cpu/attention_avx512_bf16.inl"
#include "kernels/cpu/attention_kernel.inl"
}  // namespace

const AttentionKernels kAttentionAvx512Bf16{nullptr,           PackRow<Bf16Dot>, FoldBlock<Bf16Dot>,
                                            StoreRow<Bf16Dot>, nullptr,          true};

}  // namespace lacuna::kernels::cpu
