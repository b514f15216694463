#define LACUNA_ISA avx512
#define LACUNA_TABLE kSelectAvx512
#define LACUNA_LANES 16
#include "kernels/cpu/select_score_impl.inl"
