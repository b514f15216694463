#include "kernels/cpu/range_fold.h"

namespace lacuna::kernels::cpu {

namespace scalar {
extern const RangeFolds kRangeFolds;
}
namespace avx2 {
extern const RangeFolds kRangeFolds;
}
namespace avx512 {
extern const RangeFolds kRangeFolds;
}

const RangeFolds& RangeFoldsOf(Isa isa) {
  if (isa >= Isa::kAvx512) return avx512::kRangeFolds;
  return isa == Isa::kAvx2 ? avx2::kRangeFolds : scalar::kRangeFolds;
}

}  // namespace lacuna::kernels::cpu
