#define LACUNA_ISA avx512_bf16
#define LACUNA_TABLE kSelectAvx512Bf16
#define LACUNA_LANES 16
#define LACUNA_BF16
#include "kernels/cpu/select_score_impl.inl"
