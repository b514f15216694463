// What the CUDA backend calls and a build narrowed by LACUNA_EMULATED leaves out: workspaces of no
// bytes, and ops that say so. Weak: what is there wins.
#include "kernels/cuda/attend/attend_decode.h"
#include "kernels/cuda/attend/attend_prefill_sm80.h"
#include "kernels/cuda/attend/attend_simple.h"
#include "kernels/cuda/ops.h"

#define LACUNA_MISSING __attribute__((weak))
#define LACUNA_MISSING_OP(name, ...)                        \
  LACUNA_MISSING Status name(__VA_ARGS__) {                 \
    return InternalError(#name ": not in LACUNA_EMULATED"); \
  }

namespace lacuna::kernels::cuda {

LACUNA_MISSING_OP(Embed, const EmbedArgs&, cudaStream_t)
LACUNA_MISSING_OP(RmsNorm, const RmsNormArgs&, cudaStream_t)
LACUNA_MISSING_OP(GatedActivation, const GatedActivationArgs&, cudaStream_t)
LACUNA_MISSING_OP(GatherRows, const GatherRowsArgs&, cudaStream_t)
LACUNA_MISSING_OP(Softcap, const SoftcapArgs&, cudaStream_t)
LACUNA_MISSING_OP(AppendKv, const AppendKvArgs&, cudaStream_t)
LACUNA_MISSING_OP(RopeAppend, const RopeAppendArgs&, cudaStream_t)

LACUNA_MISSING int64_t PrefillWorkspaceBytes(const DeviceTraits&, int64_t, int64_t, int64_t,
                                             int64_t) {
  return 0;
}
LACUNA_MISSING_OP(AttendPrefill, const AttendPrefillArgs&, const DeviceTraits&, bool,
                  const Workspace&, cudaStream_t)
LACUNA_MISSING bool ServesSm80(const AttendPrefillArgs&, const DeviceTraits&) { return false; }
LACUNA_MISSING_OP(AttendPrefillSm80, const AttendPrefillArgs&, const DeviceTraits&, cudaStream_t)
LACUNA_MISSING_OP(AttendPrefillSimple, const AttendPrefillArgs&, cudaStream_t)
LACUNA_MISSING_OP(AttendDecodeSimple, const AttendDecodeArgs&, cudaStream_t)
LACUNA_MISSING int64_t DecodeWorkspaceBytes(const DeviceTraits&, int64_t, int64_t, int64_t) {
  return 0;
}
LACUNA_MISSING_OP(AttendDecode, const AttendDecodeArgs&, const DeviceTraits&, bool,
                  const Workspace&, cudaStream_t)
LACUNA_MISSING_OP(LaunchDecodeBf16, const DecodeParams&, int64_t, const DecodeLaunch&, cudaStream_t)
LACUNA_MISSING_OP(LaunchDecodeF16, const DecodeParams&, int64_t, const DecodeLaunch&, cudaStream_t)
LACUNA_MISSING_OP(CorrectPrefill, const CorrectPrefillArgs&, cudaStream_t)
LACUNA_MISSING_OP(CompareAttention, const CompareAttentionArgs&, cudaStream_t)

LACUNA_MISSING int64_t SampleWorkspaceBytes(int64_t, int64_t) { return 0; }
LACUNA_MISSING_OP(Sample, const SampleArgs&, const DeviceTraits&, const Workspace&, cudaStream_t)

LACUNA_MISSING_OP(AppendMetadata, const AppendMetadataArgs&, cudaStream_t)
LACUNA_MISSING int64_t SelectKeysWorkspaceBytes(int64_t, int64_t, int64_t) { return 0; }
LACUNA_MISSING_OP(SelectKeys, const SelectKeysArgs&, const DeviceTraits&, const Workspace&,
                  cudaStream_t)
LACUNA_MISSING int64_t SelectRangesWorkspaceBytes(DType, int64_t, int64_t, int64_t, int64_t) {
  return 0;
}
LACUNA_MISSING_OP(SelectRanges, const SelectRangesArgs&, const DeviceTraits&, const Workspace&,
                  cudaStream_t)

}  // namespace lacuna::kernels::cuda
