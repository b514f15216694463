// Table: gathers one artefact table of SparseArtefacts from the attention of sample prompts.
//
// Prompts come one after another, of each its layers in order, of each layer its heads in order.
// One thread; results depend on nothing but what was added. Each maker's file says what its table
// means and where the rule is from.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/calibrate/head_map.h"
#include "kernels/core/status.h"
#include "kvcache/sparse/artefacts.h"

namespace lacuna::engine {

// The numbers of `lacuna calibrate --set NAME=VALUE`; kCalibrateDials tells them.
struct CalibrateOptions final {
  double row_stride = 16;
  double sink_tokens = 64, local_tokens = 256;
  double tolerance = 0.02;
  double pattern_tokens = 32768;
  double density = 0.5;
  double planners = 0;
  double mass = 0.9, p_max = 0.96;
  double top_k = 128;
};

class Table {
 public:
  virtual ~Table() = default;
  virtual void Add(const HeadMap& map, const PromptMarks& marks) = 0;
  // Writes the table. kInvalidArgument: the prompts do not hold what it needs, "got X, need Y".
  virtual Status Finish(kvcache::SparseArtefacts& artefacts) = 0;
};

using kvcache::AttentionShape;
// head_scores.cc: what share of its attention a kv head spends, where an answer is copied, on the
// answer's place in the prompt, beyond what a streaming head would see (sink_tokens first and
// local_tokens newest). The largest of its query heads. Stands in for DuoAttention's gates, which
// need gradients; after Retrieval Head (Wu et al., 2024).
std::unique_ptr<Table> MakeHeadScores(const AttentionShape& shape, const CalibrateOptions& options);
// patterns.cc: MInference's search: the cheapest of the candidate shapes whose attention mass is
// within `tolerance` of the best one's. Sizes are shares of the sample's length, written for
// prompts of pattern_tokens.
std::unique_ptr<Table> MakePatterns(const AttentionShape& shape, const CalibrateOptions& options);
// spans.cc: MoA: rules alpha + beta * N with the least mass dropped at a mean density; greedy.
std::unique_ptr<Table> MakeSpans(const AttentionShape& shape, const CalibrateOptions& options);
// channels.cc: Double Sparsity: channels by the mean of |q_c * k_c|.
std::unique_ptr<Table> MakeChannels(const AttentionShape& shape);
// planner_layers.cc: DELTA: layers whose attention differs most from that of the layer before.
std::unique_ptr<Table> MakePlannerLayers(const AttentionShape& shape,
                                         const CalibrateOptions& options);
// prefill_p.cc: XAttention: the least p whose antidiagonal choice keeps `mass` of the attention.
std::unique_ptr<Table> MakePrefillP(const AttentionShape& shape, const CalibrateOptions& options);
// thresholds.cc: Top-Theta: mean of the top_k-th largest logit, and a tenth of its deviation more.
std::unique_ptr<Table> MakeThresholds(const AttentionShape& shape, const CalibrateOptions& options);

}  // namespace lacuna::engine
