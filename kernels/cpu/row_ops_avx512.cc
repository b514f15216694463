#define LACUNA_ISA avx512
#include "kernels/cpu/row_ops_impl.inl"
