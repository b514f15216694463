// The checked entries of the ops: the only way in for the layers above.
//
// Each validates ranks, shapes, dtypes and strides with one checker, the same for every backend,
// answers kInvalidArgument as "Op: tensor: got X, need Y", and returns at once when there is
// nothing to do. Contents are not looked at here (ids, slots, page lists): they may lie on a
// device.
#pragma once

#include <memory>

#include "kernels/core/status.h"
#include "kernels/ops/args.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/backend.h"
#include "kernels/ops/sample.h"

namespace lacuna::kernels {

Status Embed(Backend& backend, const EmbedArgs& args, Stream& stream);
Status RmsNorm(Backend& backend, const RmsNormArgs& args, Stream& stream);
Status Matmul(Backend& backend, const MatmulArgs& args, Stream& stream);
Status GatedActivation(Backend& backend, const GatedActivationArgs& args, Stream& stream);
Status GatherRows(Backend& backend, const GatherRowsArgs& args, Stream& stream);
Status Softcap(Backend& backend, const SoftcapArgs& args, Stream& stream);
Status AppendKv(Backend& backend, const AppendKvArgs& args, Stream& stream);
Status RopeAppend(Backend& backend, const RopeAppendArgs& args, Stream& stream);
Status AttendDecode(Backend& backend, const AttendDecodeArgs& args, Stream& stream);
Status AttendPrefill(Backend& backend, const AttendPrefillArgs& args, Stream& stream);
Status Sample(Backend& backend, const SampleArgs& args, Stream& stream);
Status AppendMetadata(Backend& backend, const AppendMetadataArgs& args, Stream& stream);
Status SelectKeys(Backend& backend, const SelectKeysArgs& args, Stream& stream);
Status SelectRanges(Backend& backend, const SelectRangesArgs& args, Stream& stream);
Status CorrectPrefill(Backend& backend, const CorrectPrefillArgs& args, Stream& stream);
Status CompareAttention(Backend& backend, const CompareAttentionArgs& args, Stream& stream);

// The weight of PrepareMatrix: [out, in] f32 | bf16 | f16, both at least 1.
Result<std::unique_ptr<PreparedMatrix>> PrepareMatrix(Backend& backend, const TensorView& weight);

}  // namespace lacuna::kernels
