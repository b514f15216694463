#define LACUNA_ISA avx2
#include "kernels/cpu/range_fold.inl"
