#include "kernels/cpu/select_ranges.h"

namespace lacuna::kernels::cpu {

Status SelectRangesCpu(const SelectRangesArgs&, Isa, ThreadPool&) {
  return InternalError("SelectRanges is not written yet");
}

}  // namespace lacuna::kernels::cpu
