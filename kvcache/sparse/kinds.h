// The words of a profile as enums: each enum lists its words in the order of its kXxxChoices.
//
// Profiles hold the words, plans the enums; WordIndex and WordAt go from one to the other.
#pragma once

#include <cstdint>
#include <string_view>

namespace lacuna::kvcache {

inline constexpr std::string_view kHeadsChoices = "all|streaming|artefact|spans";
enum class HeadsKind : uint8_t { kAll, kStreaming, kArtefact, kSpans };

inline constexpr std::string_view kFromChoices = "profile|artefact";
enum class FromKind : uint8_t { kProfile, kArtefact };

inline constexpr std::string_view kEstimateChoices = "none|probe|pooled|probe_pooled";
enum class EstimateKind : uint8_t { kNone, kProbe, kPooled, kProbePooled };

inline constexpr std::string_view kProbePlaceChoices = "last|tails";
enum class ProbePlace : uint8_t { kLast, kTails };

inline constexpr std::string_view kPrefillPoolChoices = "mean|antidiagonal|bands";
enum class PrefillPool : uint8_t { kMean, kAntidiagonal, kBands };

inline constexpr std::string_view kPrefillSelectChoices =
    "all|none|vertical_slash|cover|top_k|top_p";
enum class PrefillSelectKind : uint8_t { kAll, kNone, kVerticalSlash, kCover, kTopK, kTopP };

inline constexpr std::string_view kScopeChoices = "row|map";
enum class ScopeKind : uint8_t { kRow, kMap };

inline constexpr std::string_view kPrefillCorrectChoices = "none|delta|overwrite";
enum class PrefillCorrectKind : uint8_t { kNone, kDelta, kOverwrite };

inline constexpr std::string_view kMetadataChoices = "none|minmax|mean|labels|lowbit";
enum class MetadataKind : uint8_t { kNone, kMinMax, kMean, kLabels, kLowBit };

inline constexpr std::string_view kPrecisionChoices = "bf16|int8|int4|int2";
enum class MetadataPrecision : uint8_t { kBf16, kInt8, kInt4, kInt2 };

inline constexpr std::string_view kScoreChoices = "none|bound|dot|keys|logits|probs";
enum class ScoreKind : uint8_t { kNone, kBound, kDot, kKeys, kLogits, kProbs };

inline constexpr std::string_view kQueryChoices = "head|group_mean";
enum class QueryForm : uint8_t { kHead, kGroupMean };

inline constexpr std::string_view kPoolChoices = "none|max|sum|mean";
enum class PoolKind : uint8_t { kNone, kMax, kSum, kMean };

inline constexpr std::string_view kOwnerChoices = "kv_head|layer";
enum class OwnerKind : uint8_t { kKvHead, kLayer };

inline constexpr std::string_view kReduceChoices = "max|mean|sum|union|round_robin";
enum class ReduceKind : uint8_t { kMax, kMean, kSum, kUnion, kRoundRobin };

inline constexpr std::string_view kSelectChoices = "all|none|top_k|top_p|threshold";
enum class SelectKind : uint8_t { kAll, kNone, kTopK, kTopP, kThreshold };

inline constexpr std::string_view kRefineChoices = "none|top_k|top_p";
enum class RefineKind : uint8_t { kNone, kTopK, kTopP };

inline constexpr std::string_view kRefineSourceChoices = "lowbit|keys";
enum class RefineSource : uint8_t { kLowBit, kKeys };

inline constexpr std::string_view kRefreshChoices = "every_step|every_n|cosine";
enum class RefreshKind : uint8_t { kEveryStep, kEveryN, kCosine };

inline constexpr std::string_view kDecodeCorrectChoices = "none|denominator";
enum class DecodeCorrectKind : uint8_t { kNone, kDenominator };

// Position of `word` in "a|b|c"; the words have passed the field tables, so it is there.
constexpr uint8_t WordIndex(std::string_view choices, std::string_view word) {
  uint8_t index = 0;
  while (choices.substr(0, choices.find('|')) != word && choices.find('|') != choices.npos) {
    choices.remove_prefix(choices.find('|') + 1);
    ++index;
  }
  return index;
}

template <typename Enum>
constexpr Enum KindOf(std::string_view choices, std::string_view word) {
  return static_cast<Enum>(WordIndex(choices, word));
}

template <typename Enum>
constexpr std::string_view WordAt(std::string_view choices, Enum kind) {
  for (auto left = static_cast<uint8_t>(kind); left > 0; --left) {
    choices.remove_prefix(choices.find('|') + 1);
  }
  return choices.substr(0, choices.find('|'));
}

}  // namespace lacuna::kvcache
