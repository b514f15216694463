// MakeEmulatedBackend, and what stands in for cuBLASLt and for kernels of sm_90 alone.
#include "tests/cuda_emulator/emulated_backend.h"

#include "kernels/cuda/attend/attend_prefill_sm90.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/matmul/cublaslt.h"
#include "kernels/cuda/matmul/matmul_kernels.h"
#include "kernels/cuda/ranges/range_kernels.h"
#include "tests/cuda_emulator/launch.h"

namespace lacuna::kernels {
namespace cuda {

Result<std::unique_ptr<CublasLt>> CublasLt::Create(DType dtype) {
  return std::unique_ptr<CublasLt>(new CublasLt(dtype));
}
CublasLt::~CublasLt() = default;
Status CublasLt::Run(const MatmulTask& task, cudaStream_t stream) {
  return SimpleMatmul(task, stream);
}

Status SkinnyMatmul(const MatmulTask& /*task*/, int /*sm_count*/, bool /*whole_k*/,
                    const SkinnyTuning& /*tuning*/, cudaStream_t /*stream*/) {
  return InternalError("SkinnyMatmul: not for the generation that is emulated");
}

bool PrefillSm90Serves(const AttendPrefillArgs& /*args*/, const DeviceTraits& /*traits*/) {
  return false;
}
Status AttendPrefillSm90(const AttendPrefillArgs& /*args*/, const DeviceTraits& /*traits*/,
                         const Workspace& /*workspace*/, cudaStream_t /*stream*/) {
  return InternalError("AttendPrefillSm90: not for the generation that is emulated");
}

Status RangeScoresSm90(const RangeWork& /*work*/, DType /*dtype*/, int /*sm_count*/,
                       cudaStream_t /*stream*/) {
  return InternalError("RangeScoresSm90: not for the generation that is emulated");
}
Status RangeProbeSm90(const RangeWork& /*work*/, DType /*dtype*/, const DeviceTraits& /*traits*/,
                      cudaStream_t /*stream*/) {
  return InternalError("RangeProbeSm90: not for the generation that is emulated");
}
Status RangeSpreadSm90(const RangeWork& /*work*/, DType /*dtype*/, const DeviceTraits& /*traits*/,
                       cudaStream_t /*stream*/) {
  return InternalError("RangeSpreadSm90: not for the generation that is emulated");
}

}  // namespace cuda

Result<std::unique_ptr<Backend>> MakeEmulatedBackend(const BackendOptions& options) {
  return cuda::MakeCudaBackend(options);
}

int64_t EmulatedLaunches() { return cuda_emulator::launches; }

}  // namespace lacuna::kernels
