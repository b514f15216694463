#include "kernels/cpu/select_keys.h"

namespace lacuna::kernels::cpu {

Status SelectKeysCpu(const SelectKeysArgs&, Isa, ThreadPool&) {
  return InternalError("SelectKeys is not written yet");
}

}  // namespace lacuna::kernels::cpu
