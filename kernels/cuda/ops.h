// What CudaBackend calls: one function per op, argument structs as checked by kernels/ops. SEAM.
//
// All are asynchronous on `stream`, allocate nothing, and may be captured in a graph unless said
// otherwise. Workspaces are given by the caller and sized by the ...WorkspaceBytes functions.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

#include "kernels/core/status.h"
#include "kernels/ops/args.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/correct.h"
#include "kernels/ops/metadata.h"
#include "kernels/ops/sample.h"
#include "kernels/ops/select_keys.h"
#include "kernels/ops/select_ranges.h"

namespace lacuna::kernels::cuda {

// What the kernels need to know of the device; filled once.
struct DeviceTraits final {
  int ordinal = 0;
  int major = 0;
  int minor = 0;
  int sm_count = 0;
  int64_t shared_bytes_max = 0;  // per block, opt-in
};

// Scratch memory that lives as long as the backend and is used by one op at a time (stream order).
struct Workspace final {
  void* data = nullptr;
  int64_t bytes = 0;
};

// row_ops.cu
Status Embed(const EmbedArgs& args, cudaStream_t stream);
Status RmsNorm(const RmsNormArgs& args, cudaStream_t stream);
Status GatedActivation(const GatedActivationArgs& args, cudaStream_t stream);
Status GatherRows(const GatherRowsArgs& args, cudaStream_t stream);
Status Softcap(const SoftcapArgs& args, cudaStream_t stream);

// append_kv.cu
Status AppendKv(const AppendKvArgs& args, cudaStream_t stream);
Status RopeAppend(const RopeAppendArgs& args, cudaStream_t stream);

// matmul.cc (cuBLASLt), skinny_matmul.cu (few rows)
class Matmuls {
 public:
  virtual ~Matmuls() = default;
  // dtype: that of the activations: bf16, f16 or f32. `traits` and the stream outlive it.
  static Result<std::unique_ptr<Matmuls>> Create(const DeviceTraits& traits, DType dtype,
                                                 bool deterministic);
  virtual Result<std::unique_ptr<PreparedMatrix>> Prepare(const TensorView& weight) = 0;
  // A weight of seeded random numbers, uniform in +- scale, made on the device (benchmarks).
  virtual Result<std::unique_ptr<PreparedMatrix>> PrepareRandom(int64_t rows, int64_t columns,
                                                                uint64_t seed, float scale) = 0;
  virtual Status Run(const MatmulArgs& args, cudaStream_t stream) = 0;
};

// attend_prefill.cc chooses between attend_prefill_sm90*.cu, attend_prefill_sm80*.cu and
// attend_simple.cu (f32, odd head sizes, lists with masks). `chunks` is host memory and is copied
// into kernel arguments or through `workspace`; not for capture.
int64_t PrefillWorkspaceBytes(const DeviceTraits& traits, int64_t tokens_max, int64_t chunks_max,
                              int64_t q_heads, int64_t context_tokens_max);
Status AttendPrefill(const AttendPrefillArgs& args, const DeviceTraits& traits, bool deterministic,
                     const Workspace& workspace, cudaStream_t stream);

// attend_decode.cc: split-KV over page lists, merge included; attend_simple.cu for f32 and odd head
// sizes. Its workspace is zero-filled before the first call, exactly DecodeWorkspaceBytes, and used
// by nothing else: between launches it keeps arrival counters. A call has at most its rows_max
// rows. Deterministic: the bits of a row depend on its own query, position and list only (not the
// bits of AttendPrefill).
int64_t DecodeWorkspaceBytes(const DeviceTraits& traits, int64_t rows_max, int64_t q_heads,
                             int64_t head_dim);
Status AttendDecode(const AttendDecodeArgs& args, const DeviceTraits& traits, bool deterministic,
                    const Workspace& workspace, cudaStream_t stream);

// correct.cu. `chunks` is host memory and is copied into kernel arguments.
Status CorrectPrefill(const CorrectPrefillArgs& args, cudaStream_t stream);
Status CompareAttention(const CompareAttentionArgs& args, cudaStream_t stream);

// select_ranges.cc, range_*.cu. `chunks` is host memory and travels in kernel arguments; not for
// capture. Scratch: enough for any kind of estimate, slice by slice, up to this context.
int64_t SelectRangesWorkspaceBytes(DType dtype, int64_t step_tokens, int64_t q_heads,
                                   int64_t head_dim, int64_t context_tokens);
Status SelectRanges(const SelectRangesArgs& args, const DeviceTraits& traits,
                    const Workspace& workspace, cudaStream_t stream);

// sample.cu
int64_t SampleWorkspaceBytes(int64_t rows_max, int64_t vocab_size);
Status Sample(const SampleArgs& args, const DeviceTraits& traits, const Workspace& workspace,
              cudaStream_t stream);

// append_metadata.cu
Status AppendMetadata(const AppendMetadataArgs& args, cudaStream_t stream);

// select_keys.cc: scores (select_score*.cu), then choices and lists (select_choice*.cu and others).
// Rows that fit in the workspace go together; one row of context_tokens_max always fits.
int64_t SelectKeysWorkspaceBytes(int64_t rows_max, int64_t q_heads, int64_t context_tokens_max);
Status SelectKeys(const SelectKeysArgs& args, const DeviceTraits& traits,
                  const Workspace& workspace, cudaStream_t stream);

}  // namespace lacuna::kernels::cuda
