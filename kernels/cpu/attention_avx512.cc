// Attention for AVX-512 without bf16 arithmetic.
#include <immintrin.h>

#include "kernels/cpu/attention_tile.h"

namespace lacuna::kernels::cpu {
namespace {
#include "kernels/cpu/attention_avx512.inl"
#include "kernels/cpu/attention_kernel.inl"
}  // namespace

const AttentionKernels kAttentionAvx512F32{nullptr,       PackRow<F32>, FoldBlock<F32>,
                                           StoreRow<F32>, nullptr,      true};
const AttentionKernels kAttentionAvx512Bf16Widened{
    nullptr, PackRow<Bf16Widened>, FoldBlock<Bf16Widened>, StoreRow<Bf16Widened>, nullptr, true};

}  // namespace lacuna::kernels::cpu
