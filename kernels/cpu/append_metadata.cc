#include "kernels/cpu/append_metadata.h"

namespace lacuna::kernels::cpu {

Status AppendMetadataCpu(const AppendMetadataArgs&, Isa, ThreadPool&) {
  return InternalError("AppendMetadata is not written yet");
}

}  // namespace lacuna::kernels::cpu
