#include "engine/calibrate/calibrator.h"

#include <array>
#include <utility>

namespace lacuna::engine {
namespace {

using kvcache::ArtefactKind;

constexpr double kTokensMax = 1 << 24;

std::unique_ptr<Table> MakeTable(ArtefactKind kind, const AttentionShape& shape,
                                 const CalibrateOptions& options) {
  switch (kind) {
    case ArtefactKind::kHeadScores:
      return MakeHeadScores(shape, options);
    case ArtefactKind::kPatterns:
      return MakePatterns(shape, options);
    case ArtefactKind::kSpans:
      return MakeSpans(shape, options);
    case ArtefactKind::kChannels:
      return MakeChannels(shape);
    case ArtefactKind::kPlannerLayers:
      return MakePlannerLayers(shape, options);
    case ArtefactKind::kPrefillP:
      return MakePrefillP(shape, options);
    case ArtefactKind::kThresholds:
      return MakeThresholds(shape, options);
  }
  return nullptr;
}

}  // namespace

std::span<const CalibrateDial> AllCalibrateDials() {
  using Options = CalibrateOptions;
  static constexpr std::array<CalibrateDial, 10> kDials = {{
      {"row_stride", "Every so many-th query of a prompt is looked at (with the last 64).",
       &Options::row_stride, 1, 1024, true},
      {"sink_tokens", "head_scores: first tokens that a streaming head sees anyhow.",
       &Options::sink_tokens, 0, kTokensMax, true},
      {"local_tokens", "head_scores: newest tokens that a streaming head sees anyhow.",
       &Options::local_tokens, 1, kTokensMax, true},
      {"tolerance", "patterns: mass that a cheaper shape may lose against the best one.",
       &Options::tolerance, 0, 1, false},
      {"pattern_tokens", "patterns: length of the prompts that sizes are written for.",
       &Options::pattern_tokens, 1024, kTokensMax, true},
      {"density", "spans: mean share of the keys that heads see.", &Options::density, 0.01, 1,
       false},
      {"planners", "planner_layers: planners beside the first two layers; 0: one in 8 layers.",
       &Options::planners, 0, 1024, true},
      {"mass", "prefill_p: attention mass that a head keeps.", &Options::mass, 0.01, 1, false},
      {"p_max", "prefill_p: largest p.", &Options::p_max, 0.01, 1, false},
      {"top_k", "thresholds: keys above the threshold; four times as many in the first two layers.",
       &Options::top_k, 1, kTokensMax, true},
  }};
  return kDials;
}

Calibrator::Calibrator(const AttentionShape& shape, const AttentionMath& math,
                       const CalibrateOptions& options, std::span<const ArtefactKind> kinds)
    : shape_(shape), options_(options) {
  for (const ArtefactKind kind : kinds) tables_.push_back(MakeTable(kind, shape, options));
  sample_.scale = math.scale;
  sample_.softcap = math.softcap;
}

void Calibrator::Begin(PromptMarks marks, std::function<void(int32_t layer)> on_layer) {
  marks_ = std::move(marks);
  on_layer_ = std::move(on_layer);
  watching_ = true;
}

void Calibrator::Observe(int64_t layer, const TensorView& q, const TensorView& k,
                         const TensorView&) {
  if (!watching_) return;
  sample_.Take(q, k);
  sample_.layer = static_cast<int32_t>(layer);
  sample_.window_tokens = shape_.layer_window_tokens.empty()
                              ? 0
                              : shape_.layer_window_tokens[static_cast<size_t>(layer)];
  const std::vector<int32_t> rows =
      SampledRows(sample_.tokens, static_cast<int32_t>(options_.row_stride), marks_);
  for (int32_t head = 0; head < sample_.q_heads; ++head) {
    FillMap(sample_, head, rows, map_);
    for (const auto& table : tables_) table->Add(map_, marks_);
  }
  if (on_layer_) on_layer_(sample_.layer);
}

Status Calibrator::Finish(kvcache::SparseArtefacts& artefacts) {
  for (const auto& table : tables_) LACUNA_RETURN_IF_ERROR(table->Finish(artefacts));
  return OkStatus();
}

}  // namespace lacuna::engine
