#define LACUNA_ISA scalar
#include "kernels/cpu/range_fold.inl"
