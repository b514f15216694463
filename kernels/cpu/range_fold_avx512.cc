#define LACUNA_ISA avx512
#include "kernels/cpu/range_fold.inl"
