// SparseArtefacts: what was learned or measured of one model and profiles need: head scores, head
// patterns, spans, channel lists, planner layers, per-head p and thresholds.
//
// Readers and writers are pure functions over bytes; any thread. One JSON container holds all kinds
// (`lacuna calibrate` writes it); each kind is also read in the format of the method it comes from.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/status.h"
#include "kernels/ops/select_ranges.h"

namespace lacuna::kvcache {

// What the sparse runtime must know of a model.
struct AttentionShape final {
  int32_t layers = 0, q_heads = 0, kv_heads = 0, head_dim = 0;
  int32_t page_tokens = 64;
  std::vector<int32_t> layer_window_tokens;  // [layers], 0: full; empty: all full

  int32_t group() const { return q_heads / kv_heads; }
  bool operator==(const AttentionShape&) const = default;
};

using kernels::HeadPattern;
using kernels::PatternKind;

// A head sees the newest alpha + beta * N tokens.
struct HeadSpan final {
  float alpha = 0, beta = 0;
  bool operator==(const HeadSpan&) const = default;
};

enum class ArtefactKind : uint8_t {
  kHeadScores,
  kPatterns,
  kSpans,
  kChannels,
  kPlannerLayers,
  kPrefillP,
  kThresholds,
};
inline constexpr std::string_view kArtefactNames =
    "head_scores|patterns|spans|channels|planner_layers|prefill_p|thresholds";

// Tables by layer, then head; an empty one is absent.
struct SparseArtefacts final {
  std::string model;                  // informative
  std::vector<float> head_scores;     // [layers, kv_heads] 0 .. 1: how much the head retrieves
  std::vector<HeadPattern> patterns;  // [layers, q_heads]
  std::vector<HeadSpan> spans;        // [layers, q_heads]
  std::vector<int16_t> channels;      // [layers, kv_heads, head_dim], the most telling first
  std::vector<int32_t> planner_layers;
  std::vector<float> prefill_p;   // [layers, q_heads]
  std::vector<float> thresholds;  // [layers, q_heads]
  bool operator==(const SparseArtefacts&) const = default;

  bool Has(ArtefactKind kind) const;
};

// The container; every table must fit `shape`. kInvalidArgument: "FILE: KEY: got X, need Y".
Result<SparseArtefacts> ReadArtefacts(std::string_view bytes, std::string_view file,
                                      const AttentionShape& shape);
// One line per row of a table. Numbers keep their float value.
std::string WriteArtefacts(const SparseArtefacts& artefacts, const AttentionShape& shape);

// One kind, into its place in `artefacts`. The bytes are a container, or the format of:
//   head_scores     DuoAttention: a row per layer, tab-separated numbers, one per kv head
//   patterns        MInference: a list over layers of {"head": [type, v, s, score]}
//   spans           MoA: {"alphas": [layer][q head], "betas": ...}
//   channels        Double Sparsity: {"model.layers.I.self_attn.k_proj": [head][channel], ...};
//                   of q_proj, k_proj and qk_proj, the one with a row per kv head; or per q head,
//                   whose ranks are then added up over the group
//   planner_layers  a list of layers
//   prefill_p, thresholds  a list over layers of a number per q head
Status ReadArtefact(ArtefactKind kind, std::string_view bytes, std::string_view file,
                    const AttentionShape& shape, SparseArtefacts& artefacts);

}  // namespace lacuna::kvcache
