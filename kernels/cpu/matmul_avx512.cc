#define LACUNA_ISA avx512
#include "kernels/cpu/matmul_impl.inl"
