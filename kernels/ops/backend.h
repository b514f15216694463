// Backend: every op, pure virtual, so that a backend that lacks one does not compile. SEAM.
//
// Call the checked entries of ops.h, not these methods: they validate shapes, dtypes and strides
// the same way for every backend. One engine thread uses a Backend; it may use threads of its own
// inside.
//
// Determinism: with BackendOptions.deterministic the bits of an output row depend only on that
// row's inputs and page list, not on how many rows share the call. On the CPU, and on CUDA in f32,
// AttendDecode also gives the bits that AttendPrefill gives for the same query; on CUDA in bf16 and
// f16 the two are different kernels and agree within rounding. Without `deterministic`, only the
// tolerance of the op tests holds.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/core/status.h"
#include "kernels/device/device.h"
#include "kernels/ops/args.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/correct.h"
#include "kernels/ops/metadata.h"
#include "kernels/ops/sample.h"
#include "kernels/ops/select_keys.h"
#include "kernels/ops/select_ranges.h"

namespace lacuna::kernels {

// The largest step that a backend will be asked for; what its scratch memory is sized by.
struct WorkspaceLimits final {
  int64_t step_tokens = 1;  // rows of a step: prompt and decode tokens together
  int64_t rows = 1;         // decode rows of a step
  int64_t sequences = 1;    // prefill chunks of a step
  int64_t q_heads = 1;
  int64_t head_dim = 1;
  int64_t context_tokens = 1;  // of one sequence
  int64_t logit_rows = 1;      // rows of Sample
  int64_t vocab = 1;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual Device& device() = 0;
  virtual std::string_view name() const = 0;  // "cpu-avx512_bf16"
  virtual DType act_dtype() const = 0;        // bf16, or f32 in verification mode; also that of KV
  // Whether AttendDecode gives the bits that AttendPrefill gives for the same query. Where it does
  // not, a deterministic engine computes a generated token again the way it was computed first.
  virtual bool decode_equals_prefill() const = 0;
  virtual bool deterministic() const = 0;  // as BackendOptions asked
  virtual int threads() const = 0;

  // weight: [out, in] f32 | bf16 | f16 in host memory, which may go away afterwards.
  virtual Result<std::unique_ptr<PreparedMatrix>> PrepareMatrix(const TensorView& weight) = 0;
  // [rows, columns] of seeded random numbers, uniform in +- scale, made where they will lie: for
  // speed measurements of shapes without weights. Other numbers on other backends.
  virtual Result<std::unique_ptr<PreparedMatrix>> PrepareRandomMatrix(int64_t rows, int64_t columns,
                                                                      uint64_t seed,
                                                                      float scale) = 0;
  // Allocates the scratch memory of the ops; none allocates later. Called before the first step,
  // and never while a recorded graph lives. A second call never shrinks.
  virtual Status ReserveWorkspace(const WorkspaceLimits& limits) = 0;

  virtual Status Embed(const EmbedArgs& args, Stream& stream) = 0;
  virtual Status RmsNorm(const RmsNormArgs& args, Stream& stream) = 0;
  virtual Status Matmul(const MatmulArgs& args, Stream& stream) = 0;
  virtual Status GatedActivation(const GatedActivationArgs& args, Stream& stream) = 0;
  virtual Status GatherRows(const GatherRowsArgs& args, Stream& stream) = 0;
  virtual Status Softcap(const SoftcapArgs& args, Stream& stream) = 0;
  virtual Status RopeAppend(const RopeAppendArgs& args, Stream& stream) = 0;
  virtual Status AppendKv(const AppendKvArgs& args, Stream& stream) = 0;
  virtual Status AttendDecode(const AttendDecodeArgs& args, Stream& stream) = 0;
  virtual Status AttendPrefill(const AttendPrefillArgs& args, Stream& stream) = 0;
  virtual Status Sample(const SampleArgs& args, Stream& stream) = 0;

  // Sparse attention. Without it the ops below are never called; the engine says why.
  virtual bool has_sparse_ops() const = 0;
  virtual Status AppendMetadata(const AppendMetadataArgs& args, Stream& stream) = 0;
  virtual Status SelectKeys(const SelectKeysArgs& args, Stream& stream) = 0;
  virtual Status SelectRanges(const SelectRangesArgs& args, Stream& stream) = 0;
  virtual Status CorrectPrefill(const CorrectPrefillArgs& args, Stream& stream) = 0;
  virtual Status CompareAttention(const CompareAttentionArgs& args, Stream& stream) = 0;
};

struct BackendOptions final {
  DType precision = DType::kBF16;  // or kF16 (CUDA); kF32: verification mode
  bool deterministic = false;
  int device_ordinal = 0;  // of the GPU
  int threads = 0;         // 0: one per physical core
  bool pin_threads = true;
  std::string isa_max = "auto";  // auto | scalar | avx2 | avx512 | avx512_bf16 | amx
};

}  // namespace lacuna::kernels
