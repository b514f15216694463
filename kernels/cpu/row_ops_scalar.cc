#define LACUNA_ISA scalar
#include "kernels/cpu/row_ops_impl.inl"
