#include "kernels/cuda/attend/attend_decode.h"

#include <spdlog/spdlog.h>

#include <atomic>

#include "kernels/cuda/attend/attend_simple.h"

namespace lacuna::kernels::cuda {

Status AttendDecode(const AttendDecodeArgs& args, const DeviceTraits& traits, bool deterministic,
                    const Workspace& workspace, cudaStream_t stream) {
  const KvPool& pool = args.pool;
  if (DecodeHasKernel(pool.dtype, pool.head_dim, pool.page_tokens)) {
    return AttendDecodePaged(args, traits, deterministic, workspace, stream);
  }
  static std::atomic<bool> told = false;
  if (pool.dtype != DType::kF32 && !told.exchange(true)) {
    spdlog::warn("decode attention: head_dim {} with pages of {} tokens takes the slow kernel",
                 pool.head_dim, pool.page_tokens);
  }
  return AttendDecodeSimple(args, stream);
}

}  // namespace lacuna::kernels::cuda
