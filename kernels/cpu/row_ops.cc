#include "kernels/cpu/row_ops.h"

namespace lacuna::kernels::cpu {

namespace scalar {
extern const RowOps kRowOps;
}
namespace avx2 {
extern const RowOps kRowOps;
}
namespace avx512 {
extern const RowOps kRowOps;
}

const RowOps& RowOpsOf(Isa isa) {
  if (isa >= Isa::kAvx512) return avx512::kRowOps;
  return isa == Isa::kAvx2 ? avx2::kRowOps : scalar::kRowOps;
}

}  // namespace lacuna::kernels::cpu
