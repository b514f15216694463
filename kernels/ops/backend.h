// Backend: every op, pure virtual, so that a backend that lacks one does not compile. SEAM.
//
// Call the checked entries of ops.h, not these methods: they validate shapes, dtypes and strides
// the same way for every backend. One engine thread uses a Backend; it may use threads of its own
// inside.
//
// Determinism: with BackendOptions.deterministic the bits of an output row depend only on that
// row's inputs and page list, not on how many rows share the call; and AttendDecode gives the bits
// that AttendPrefill gives for the same query. Without it, only the tolerance of the op tests
// holds.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/core/status.h"
#include "kernels/device/device.h"
#include "kernels/ops/args.h"
#include "kernels/ops/attention.h"

namespace lacuna::kernels {

class Backend {
 public:
  virtual ~Backend() = default;

  virtual Device& device() = 0;
  virtual std::string_view name() const = 0;  // "cpu-avx512_bf16"
  virtual DType act_dtype() const = 0;        // bf16, or f32 in verification mode; also that of KV
  virtual int threads() const = 0;

  // weight: [out, in] f32 | bf16 | f16 in host memory, which may go away afterwards.
  virtual Result<std::unique_ptr<PreparedMatrix>> PrepareMatrix(const TensorView& weight) = 0;

  virtual Status Embed(const EmbedArgs& args, Stream& stream) = 0;
  virtual Status RmsNorm(const RmsNormArgs& args, Stream& stream) = 0;
  virtual Status Matmul(const MatmulArgs& args, Stream& stream) = 0;
  virtual Status Rope(const RopeArgs& args, Stream& stream) = 0;
  virtual Status GatedActivation(const GatedActivationArgs& args, Stream& stream) = 0;
  virtual Status GatherRows(const GatherRowsArgs& args, Stream& stream) = 0;
  virtual Status Softcap(const SoftcapArgs& args, Stream& stream) = 0;
  virtual Status AppendKv(const AppendKvArgs& args, Stream& stream) = 0;
  virtual Status AttendDecode(const AttendDecodeArgs& args, Stream& stream) = 0;
  virtual Status AttendPrefill(const AttendPrefillArgs& args, Stream& stream) = 0;
};

struct BackendOptions final {
  DType precision = DType::kBF16;  // kF32: verification mode
  bool deterministic = false;
  int threads = 0;  // 0: one per physical core
  bool pin_threads = true;
  std::string isa_max = "auto";  // auto | scalar | avx2 | avx512 | avx512_bf16 | amx
};

}  // namespace lacuna::kernels
