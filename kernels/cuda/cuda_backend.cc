#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <string>
#include <utility>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/ops.h"

namespace lacuna::kernels::cuda {
namespace {

// Rows [first, first + count) of a call.
AttendDecodeArgs DecodeRows(const AttendDecodeArgs& args, int64_t first, int64_t count) {
  AttendDecodeArgs rows = args;
  rows.q = args.q.Slice(first, count);
  rows.out = args.out.Slice(first, count);
  rows.positions = args.positions.Slice(first, count);
  rows.lists.begins += first * args.lists_per_row;
  rows.lists.ends += first * args.lists_per_row;
  rows.lists.lists = count * args.lists_per_row;
  if (args.shapes != nullptr) rows.shapes += first * args.pool.kv_heads;
  if (!args.dropped_lse.empty()) rows.dropped_lse = args.dropped_lse.Slice(first, count);
  if (!args.lse.empty()) rows.lse = args.lse.Slice(first, count);
  return rows;
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(const BackendOptions& options, std::unique_ptr<CudaDevice> device,
              std::unique_ptr<Matmuls> matmuls)
      : precision_(options.precision),
        deterministic_(options.deterministic),
        device_(std::move(device)),
        matmuls_(std::move(matmuls)),
        name_("cuda-sm" + std::to_string(traits().major) + std::to_string(traits().minor) + " " +
              device_->model() + " " + std::string(DTypeName(precision_))) {}

  Device& device() override { return *device_; }
  std::string_view name() const override { return name_; }
  DType act_dtype() const override { return precision_; }
  bool decode_equals_prefill() const override { return precision_ == DType::kF32; }
  bool deterministic() const override { return deterministic_; }
  int threads() const override { return 1; }

  Result<std::unique_ptr<PreparedMatrix>> PrepareMatrix(const TensorView& weight) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return matmuls_->Prepare(weight);
  }
  Result<std::unique_ptr<PreparedMatrix>> PrepareRandomMatrix(int64_t rows, int64_t columns,
                                                              uint64_t seed, float scale) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return matmuls_->PrepareRandom(rows, columns, seed, scale);
  }

  Status ReserveWorkspace(const WorkspaceLimits& limits) override {
    LACUNA_RETURN_IF_ERROR(Reserve(
        std::max({PrefillWorkspaceBytes(traits(), limits.step_tokens, limits.sequences,
                                        limits.q_heads, limits.context_tokens),
                  SampleWorkspaceBytes(limits.logit_rows, limits.vocab),
                  SelectKeysWorkspaceBytes(limits.rows, limits.q_heads, limits.context_tokens),
                  SelectRangesWorkspaceBytes(precision_, limits.step_tokens, limits.q_heads,
                                             limits.head_dim, limits.context_tokens)}),
        &workspace_));
    LACUNA_RETURN_IF_ERROR(
        Reserve(DecodeWorkspaceBytes(traits(), limits.rows, limits.q_heads, limits.head_dim),
                &decode_workspace_));
    decode_rows_max_ = std::max(decode_rows_max_, limits.rows);
    return OkStatus();
  }

  Status Embed(const EmbedArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return cuda::Embed(args, device_->Native(stream));
  }
  Status RmsNorm(const RmsNormArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return cuda::RmsNorm(args, device_->Native(stream));
  }
  Status Matmul(const MatmulArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return matmuls_->Run(args, device_->Native(stream));
  }
  Status GatedActivation(const GatedActivationArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return cuda::GatedActivation(args, device_->Native(stream));
  }
  Status GatherRows(const GatherRowsArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return cuda::GatherRows(args, device_->Native(stream));
  }
  Status Softcap(const SoftcapArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return cuda::Softcap(args, device_->Native(stream));
  }
  Status RopeAppend(const RopeAppendArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return cuda::RopeAppend(args, device_->Native(stream));
  }
  Status AppendKv(const AppendKvArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return cuda::AppendKv(args, device_->Native(stream));
  }
  Status AttendDecode(const AttendDecodeArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    // The rows that correct a prefill may be more than a step decodes.
    for (int64_t first = 0; first < args.q.dim(0); first += decode_rows_max_) {
      const int64_t rows = std::min(decode_rows_max_, args.q.dim(0) - first);
      LACUNA_RETURN_IF_ERROR(cuda::AttendDecode(
          DecodeRows(args, first, rows), traits(), deterministic_,
          {decode_workspace_.data(), decode_workspace_.bytes()}, device_->Native(stream)));
    }
    return OkStatus();
  }
  Status AttendPrefill(const AttendPrefillArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return cuda::AttendPrefill(args, traits(), deterministic_, workspace(),
                               device_->Native(stream));
  }
  Status Sample(const SampleArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return cuda::Sample(args, traits(), workspace(), device_->Native(stream));
  }

  bool has_sparse_ops() const override { return true; }
  Status AppendMetadata(const AppendMetadataArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return cuda::AppendMetadata(args, device_->Native(stream));
  }
  Status SelectKeys(const SelectKeysArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return cuda::SelectKeys(args, traits(), workspace(), device_->Native(stream));
  }
  Status SelectRanges(const SelectRangesArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return cuda::SelectRanges(args, traits(), workspace(), device_->Native(stream));
  }
  Status CorrectPrefill(const CorrectPrefillArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return cuda::CorrectPrefill(args, device_->Native(stream));
  }
  Status CompareAttention(const CompareAttentionArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_->Enter());
    return cuda::CompareAttention(args, device_->Native(stream));
  }

 private:
  const DeviceTraits& traits() const { return device_->traits(); }
  Workspace workspace() const { return {workspace_.data(), workspace_.bytes()}; }
  Status Reserve(int64_t bytes, Buffer* buffer) {
    if (bytes <= buffer->bytes()) return OkStatus();
    Stream stream;
    LACUNA_RETURN_IF_ERROR(device_->Synchronize(stream));  // the last op may still use the old one
    *buffer = Buffer();
    LACUNA_ASSIGN_OR_RETURN(*buffer, device_->Allocate(bytes));
    return OkStatus();
  }

  DType precision_;
  bool deterministic_;
  std::unique_ptr<CudaDevice> device_;  // outlives what lies in its memory
  std::unique_ptr<Matmuls> matmuls_;
  Buffer workspace_;             // of prefill and sampling, which follow each other on the stream
  int64_t decode_rows_max_ = 1;  // of one launch
  Buffer decode_workspace_;  // its counters are zero between launches, so nothing else may use it
  std::string name_;
};

}  // namespace

Result<std::unique_ptr<Backend>> MakeCudaBackend(const BackendOptions& options) {
  if (options.precision == DType::kI32) {
    return InvalidArgument("precision: got i32, need bf16, f16 or f32");
  }
  LACUNA_ASSIGN_OR_RETURN(auto device, CudaDevice::Open(options.device_ordinal));
  LACUNA_ASSIGN_OR_RETURN(
      auto matmuls, Matmuls::Create(device->traits(), options.precision, options.deterministic));
  return std::unique_ptr<Backend>(
      std::make_unique<CudaBackend>(options, std::move(device), std::move(matmuls)));
}

}  // namespace lacuna::kernels::cuda
