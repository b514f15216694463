#define LACUNA_ISA scalar
#define LACUNA_TABLE kSelectScalar
#define LACUNA_LANES 4
#include "kernels/cpu/select_score_impl.inl"
