#include "kernels/ops/ops.h"

#include "kernels/ops/checks.h"

namespace lacuna::kernels {

Status Embed(Backend& backend, const EmbedArgs& args, Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Check(args, backend.act_dtype()));
  return args.out.empty() ? OkStatus() : backend.Embed(args, stream);
}

Status RmsNorm(Backend& backend, const RmsNormArgs& args, Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Check(args, backend.act_dtype()));
  return args.out.empty() ? OkStatus() : backend.RmsNorm(args, stream);
}

Status Matmul(Backend& backend, const MatmulArgs& args, Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Check(args, backend.act_dtype()));
  return args.out.empty() ? OkStatus() : backend.Matmul(args, stream);
}

Status GatedActivation(Backend& backend, const GatedActivationArgs& args, Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Check(args, backend.act_dtype()));
  return args.out.empty() ? OkStatus() : backend.GatedActivation(args, stream);
}

Status GatherRows(Backend& backend, const GatherRowsArgs& args, Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Check(args, backend.act_dtype()));
  return args.out.empty() ? OkStatus() : backend.GatherRows(args, stream);
}

Status Softcap(Backend& backend, const SoftcapArgs& args, Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Check(args, backend.act_dtype()));
  return args.x.empty() ? OkStatus() : backend.Softcap(args, stream);
}

Status AppendKv(Backend& backend, const AppendKvArgs& args, Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Check(args, backend.act_dtype()));
  return args.k.empty() ? OkStatus() : backend.AppendKv(args, stream);
}

Status RopeAppend(Backend& backend, const RopeAppendArgs& args, Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Check(args, backend.act_dtype()));
  return args.k.empty() ? OkStatus() : backend.RopeAppend(args, stream);
}

Status AttendDecode(Backend& backend, const AttendDecodeArgs& args, Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Check(args, backend.act_dtype()));
  return args.q.empty() ? OkStatus() : backend.AttendDecode(args, stream);
}

Status AttendPrefill(Backend& backend, const AttendPrefillArgs& args, Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Check(args, backend.act_dtype()));
  return args.q.empty() || args.chunks.empty() ? OkStatus() : backend.AttendPrefill(args, stream);
}

Status Sample(Backend& backend, const SampleArgs& args, Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Check(args, backend.act_dtype()));
  return args.logits.empty() ? OkStatus() : backend.Sample(args, stream);
}

Status AppendMetadata(Backend& backend, const AppendMetadataArgs& args, Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Check(args, backend.act_dtype()));
  return args.slots.empty() ? OkStatus() : backend.AppendMetadata(args, stream);
}

Status SelectKeys(Backend& backend, const SelectKeysArgs& args, Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Check(args, backend.act_dtype()));
  return args.q.empty() ? OkStatus() : backend.SelectKeys(args, stream);
}

Status SelectRanges(Backend& backend, const SelectRangesArgs& args, Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Check(args, backend.act_dtype()));
  return args.q.empty() || args.chunks.empty() ? OkStatus() : backend.SelectRanges(args, stream);
}

Status CorrectPrefill(Backend& backend, const CorrectPrefillArgs& args, Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Check(args, backend.act_dtype()));
  return args.out.empty() || args.chunks.empty() ? OkStatus()
                                                 : backend.CorrectPrefill(args, stream);
}

Status CompareAttention(Backend& backend, const CompareAttentionArgs& args, Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Check(args, backend.act_dtype()));
  return args.sparse.empty() ? OkStatus() : backend.CompareAttention(args, stream);
}

Result<std::unique_ptr<PreparedMatrix>> PrepareMatrix(Backend& backend, const TensorView& weight) {
  LACUNA_RETURN_IF_ERROR(CheckWeight(weight));
  return backend.PrepareMatrix(weight);
}

}  // namespace lacuna::kernels
