#define LACUNA_ISA avx512_bf16
#include "kernels/cpu/matmul_impl.inl"
