#include "server/commands/bench_sparse.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "kvcache/sparse/resolve.h"
#include "server/commands/profiles.h"
#include "server/commands/served_model.h"
#include "server/sparse/profile_files.h"

namespace lacuna::server {
namespace {

// Every table, for random weights. Every other kv head retrieves, so that half of them in each
// layer stream by a profile that lets half stream; the rest is what the methods' papers find most
// often.
kvcache::SparseArtefacts MadeUpArtefacts(const kvcache::AttentionShape& shape) {
  kvcache::SparseArtefacts made;
  made.model = "made up";
  for (int32_t i = 0; i < shape.layers * shape.kv_heads; ++i) {
    made.head_scores.push_back(i % shape.kv_heads % 2 == 0 ? 1.0f : 0.0f);
    for (int32_t c = 0; c < shape.head_dim; ++c) made.channels.push_back(static_cast<int16_t>(c));
  }
  const auto q_heads = static_cast<size_t>(shape.layers) * static_cast<size_t>(shape.q_heads);
  // MInference: 1000 columns and 6096 diagonals. MoA: spans of a quarter of the sequence.
  made.patterns.assign(q_heads, {kvcache::PatternKind::kVerticalSlash, 1000, 6096});
  made.spans.assign(q_heads, {.alpha = 1024, .beta = 0.25f});
  made.prefill_p.assign(q_heads, 0.9f);
  made.thresholds.assign(q_heads, 0.0f);
  auto& planners = made.planner_layers;
  planners = {std::min(2, shape.layers - 1), shape.layers / 2};
  planners.erase(std::unique(planners.begin(), planners.end()), planners.end());
  return made;
}

Result<std::optional<ArtefactText>> ArtefactsOf(const BenchOfflineOptions& options) {
  if (options.artefacts.empty() && options.model.empty()) return std::optional<ArtefactText>();
  const bool given = !options.artefacts.empty();
  auto text = ReadArtefactText(given ? options.artefacts : options.model + "/" + kArtefactsFile);
  if (given && !text) {
    return InvalidArgument(options.artefacts + ": got no such file, need a readable one");
  }
  return text;
}

}  // namespace

Result<BenchPlan> MakeBenchPlan(const BenchOfflineOptions& options,
                                const engine::ModelConfig& config, int64_t page_tokens) {
  if (options.sparse_profile.empty()) return BenchPlan{};
  LACUNA_ASSIGN_OR_RETURN(const kvcache::ProfileSet::Loaded loaded,
                          LoadProfiles(options.profile_dir));
  LACUNA_ASSIGN_OR_RETURN(const kvcache::SparseProfile* const profile,
                          loaded.set.Get(options.sparse_profile));
  LACUNA_ASSIGN_OR_RETURN(const std::vector<kvcache::DialValue> dials, ParseDials(options.dials));
  const kvcache::DialedProfile dialed =
      kvcache::ApplyDials(kvcache::FitStep(*profile, options.step_tokens), dials);
  if (!dialed.errors.empty()) return InvalidArgument(dialed.errors.front());
  const kvcache::AttentionShape shape = AttentionShapeOf(config, page_tokens);
  LACUNA_ASSIGN_OR_RETURN(const std::optional<ArtefactText> text, ArtefactsOf(options));
  LACUNA_ASSIGN_OR_RETURN(kvcache::SparseArtefacts artefacts,
                          ReadNeededArtefacts(dialed.profile, shape, text));
  BenchPlan made;
  const auto needed = kvcache::NeededArtefacts(dialed.profile);
  if (!text && (options.dummy || !options.shape.empty()) && !needed.empty()) {
    artefacts = MadeUpArtefacts(shape);
    made.made_up = true;
  }
  kvcache::ResolvedPlan resolved = kvcache::ResolvePlan(dialed.profile, shape, artefacts);
  if (!resolved.errors.empty()) return InvalidArgument(resolved.errors.front());
  made.plan = std::move(resolved.plan);
  return made;
}

}  // namespace lacuna::server
