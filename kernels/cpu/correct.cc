#include "kernels/cpu/correct.h"

namespace lacuna::kernels::cpu {

Status CorrectPrefillCpu(const CorrectPrefillArgs&, Isa, ThreadPool&) {
  return InternalError("CorrectPrefill is not written yet");
}

Status CompareAttentionCpu(const CompareAttentionArgs&, Isa, ThreadPool&) {
  return InternalError("CompareAttention is not written yet");
}

}  // namespace lacuna::kernels::cpu
