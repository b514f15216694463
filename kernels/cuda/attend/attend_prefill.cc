// Which prefill kernel serves a call: wgmma (sm_90), mma.sync (sm_80 and newer), or plain CUDA
// cores.
#include <spdlog/spdlog.h>

#include <atomic>

#include "kernels/cuda/attend/attend_prefill_sm80.h"
#include "kernels/cuda/attend/attend_prefill_sm90.h"
#include "kernels/cuda/attend/attend_simple.h"
#include "kernels/cuda/ops.h"

namespace lacuna::kernels::cuda {
namespace {

enum class Kernel { kSm90, kSm80, kSimple };

// Lists with masks are what decode selects; the engine's prefill has none, and the plain kernel
// takes them.
Kernel Choose(const AttendPrefillArgs& args, const DeviceTraits& traits) {
  if (args.lists.masks != nullptr) return Kernel::kSimple;
  if (PrefillSm90Serves(args, traits)) return Kernel::kSm90;
  return ServesSm80(args, traits) ? Kernel::kSm80 : Kernel::kSimple;
}

// Says once that a slower kernel runs than this device could, and for what. f32 is verification.
void LogSlow(const AttendPrefillArgs& args, const DeviceTraits& traits, Kernel kernel) {
  static std::atomic<bool> said[2] = {false, false};
  const bool simple = kernel == Kernel::kSimple;
  if (args.pool.dtype == DType::kF32 || (!simple && traits.major != 9)) return;
  if (args.lists.masks != nullptr) return;
  if (said[simple ? 1 : 0].exchange(true)) return;
  spdlog::warn("prefill attention: head_dim {} with pages of {} tokens takes the {} kernel",
               args.pool.head_dim, args.pool.page_tokens, simple ? "plain" : "mma.sync");
}

}  // namespace

// Key tiles are found while the kernels run, so the size does not depend on the shapes.
int64_t PrefillWorkspaceBytes(const DeviceTraits& traits, int64_t /*tokens_max*/,
                              int64_t /*chunks_max*/, int64_t /*q_heads*/,
                              int64_t /*context_tokens_max*/) {
  return traits.major == 9 ? kPrefillSm90WorkspaceBytes : 0;
}

// Every kernel computes a row from its query, position, list and ranges alone, so there is nothing
// to choose for `deterministic`.
Status AttendPrefill(const AttendPrefillArgs& args, const DeviceTraits& traits,
                     bool /*deterministic*/, const Workspace& workspace, cudaStream_t stream) {
  const Kernel kernel = Choose(args, traits);
  if (kernel != Kernel::kSm90) LogSlow(args, traits, kernel);
  switch (kernel) {
    case Kernel::kSm90:
      return AttendPrefillSm90(args, traits, workspace, stream);
    case Kernel::kSm80:
      return AttendPrefillSm80(args, traits, stream);
    case Kernel::kSimple:
      break;
  }
  return AttendPrefillSimple(args, stream);
}

}  // namespace lacuna::kernels::cuda
