// What sparse code can be told to do, as enums: which metadata, which score, which selector. SEAM.
//
// kvcache/sparse/kinds.h gives each its words in profiles; docs/profiles.md their meaning.
#pragma once

#include <cstdint>

namespace lacuna::kernels {

// Prefill.
enum class EstimateKind : uint8_t { kNone, kProbe, kPooled, kProbePooled };
enum class ProbePlace : uint8_t { kLast, kTails };
enum class PrefillPool : uint8_t { kMean, kAntidiagonal, kBands };
enum class PrefillSelectKind : uint8_t { kAll, kNone, kVerticalSlash, kCover, kTopK, kTopP };
enum class ScopeKind : uint8_t { kRow, kMap };
enum class PrefillCorrectKind : uint8_t { kNone, kDelta, kOverwrite };

// Decode.
enum class MetadataKind : uint8_t { kNone, kMinMax, kMean, kLabels, kLowBit };
enum class MetadataPrecision : uint8_t { kBf16, kInt8, kInt4, kInt2 };
enum class ScoreKind : uint8_t { kNone, kBound, kDot, kKeys, kLogits, kProbs };
enum class QueryForm : uint8_t { kHead, kGroupMean };
enum class PoolKind : uint8_t { kNone, kMax, kSum, kMean };
enum class OwnerKind : uint8_t { kKvHead, kLayer };
enum class ReduceKind : uint8_t { kMax, kMean, kSum, kUnion, kRoundRobin };
enum class SelectKind : uint8_t { kAll, kNone, kTopK, kTopP, kThreshold };
enum class RefineKind : uint8_t { kNone, kTopK, kTopP };
enum class RefreshKind : uint8_t { kEveryStep, kEveryN, kCosine };
enum class DecodeCorrectKind : uint8_t { kNone, kDenominator };

}  // namespace lacuna::kernels
