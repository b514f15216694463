#define LACUNA_ISA avx2
#include "kernels/cpu/matmul_impl.inl"
