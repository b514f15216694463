#define LACUNA_ISA scalar
#include "kernels/cpu/matmul_impl.inl"
