#define LACUNA_ISA avx2
#define LACUNA_TABLE kSelectAvx2
#define LACUNA_LANES 8
#include "kernels/cpu/select_score_impl.inl"
