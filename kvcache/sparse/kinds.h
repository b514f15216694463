// The words of a profile as enums: each enum lists its words in the order of its kXxxChoices.
//
// Profiles hold the words, plans the enums; WordIndex and WordAt go from one to the other.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/ops/sparse_kinds.h"

namespace lacuna::kvcache {

inline constexpr std::string_view kHeadsChoices = "all|streaming|artefact|spans";
enum class HeadsKind : uint8_t { kAll, kStreaming, kArtefact, kSpans };

inline constexpr std::string_view kFromChoices = "profile|artefact";
enum class FromKind : uint8_t { kProfile, kArtefact };

inline constexpr std::string_view kEstimateChoices = "none|probe|pooled|probe_pooled";
using kernels::EstimateKind;

inline constexpr std::string_view kProbePlaceChoices = "last|tails";
using kernels::ProbePlace;

inline constexpr std::string_view kPrefillPoolChoices = "mean|antidiagonal|bands";
using kernels::PrefillPool;

inline constexpr std::string_view kPrefillSelectChoices =
    "all|none|vertical_slash|cover|top_k|top_p";
using kernels::PrefillSelectKind;

inline constexpr std::string_view kScopeChoices = "row|map";
using kernels::ScopeKind;

inline constexpr std::string_view kPrefillCorrectChoices = "none|delta|overwrite";
using kernels::PrefillCorrectKind;

inline constexpr std::string_view kMetadataChoices = "none|minmax|mean|labels|lowbit";
using kernels::MetadataKind;

inline constexpr std::string_view kPrecisionChoices = "bf16|int8|int4|int2";
using kernels::MetadataPrecision;

inline constexpr std::string_view kScoreChoices = "none|bound|dot|keys|logits|probs";
using kernels::ScoreKind;

inline constexpr std::string_view kQueryChoices = "head|group_mean";
using kernels::QueryForm;

inline constexpr std::string_view kPoolChoices = "none|max|sum|mean";
using kernels::PoolKind;

inline constexpr std::string_view kOwnerChoices = "kv_head|layer";
using kernels::OwnerKind;

inline constexpr std::string_view kReduceChoices = "max|mean|sum|union|round_robin";
using kernels::ReduceKind;

inline constexpr std::string_view kSelectChoices = "all|none|top_k|top_p|threshold";
using kernels::SelectKind;

inline constexpr std::string_view kRefineChoices = "none|top_k|top_p";
using kernels::RefineKind;

inline constexpr std::string_view kRefineSourceChoices = "lowbit|keys";
enum class RefineSource : uint8_t { kLowBit, kKeys };

inline constexpr std::string_view kRefreshChoices = "every_step|every_n|cosine";
using kernels::RefreshKind;

inline constexpr std::string_view kDecodeCorrectChoices = "none|denominator";
using kernels::DecodeCorrectKind;

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
