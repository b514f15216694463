// The shape checkers behind ops.h, one per op. `act` is the activation type of the backend.
// Pure functions of the argument struct; they read no tensor contents. Any thread.
#pragma once

#include "kernels/core/dtype.h"
#include "kernels/core/status.h"
#include "kernels/ops/args.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/correct.h"
#include "kernels/ops/metadata.h"
#include "kernels/ops/sample.h"
#include "kernels/ops/select_keys.h"
#include "kernels/ops/select_ranges.h"

namespace lacuna::kernels {

Status Check(const EmbedArgs& args, DType act);
Status Check(const RmsNormArgs& args, DType act);
Status Check(const MatmulArgs& args, DType act);
Status Check(const GatedActivationArgs& args, DType act);
Status Check(const GatherRowsArgs& args, DType act);
Status Check(const SoftcapArgs& args, DType act);
Status Check(const AppendKvArgs& args, DType act);
Status Check(const RopeAppendArgs& args, DType act);
Status Check(const AttendDecodeArgs& args, DType act);
Status Check(const AttendPrefillArgs& args, DType act);
Status Check(const SampleArgs& args, DType act);
Status Check(const AppendMetadataArgs& args, DType act);
Status Check(const SelectKeysArgs& args, DType act);
Status Check(const SelectRangesArgs& args, DType act);
Status Check(const CorrectPrefillArgs& args, DType act);
Status Check(const CompareAttentionArgs& args, DType act);
Status CheckWeight(const TensorView& weight);

}  // namespace lacuna::kernels
