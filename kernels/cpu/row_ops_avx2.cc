#define LACUNA_ISA avx2
#include "kernels/cpu/row_ops_impl.inl"
