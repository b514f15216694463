// Profile + model + artefacts -> SparsePlan. Pure functions; any thread.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/sparse/plan.h"
#include "kvcache/sparse/profile.h"

namespace lacuna::kvcache {

// One number that a request sets: {"profile": "quest", "budget_tokens": 2048}.
struct DialValue final {
  std::string name;
  double value = 0;
};

// A number of the profile that a request may override.
struct DialInfo final {
  std::string_view name;
  std::string_view meaning;
  std::string_view key;  // of the profile: its bounds hold
};
std::span<const DialInfo> AllDials();
// Of those, the ones that this profile has, in the same order.
std::vector<DialInfo> DialsOf(const SparseProfile& profile);

struct DialedProfile final {
  SparseProfile profile;
  std::vector<std::string> errors;  // "PROFILE: DIAL: got X, need Y"
};
// Overrides the profile's numbers and checks the result. A dial that the profile lacks, an unknown
// one, one given twice and one out of bounds are errors; the first two list those that exist.
// budget_tokens and budget_fraction replace each other.
DialedProfile ApplyDials(const SparseProfile& profile, std::span<const DialValue> dials);

// The tables that resolving this profile reads.
std::vector<ArtefactKind> NeededArtefacts(const SparseProfile& profile);

// The profile as steps of this many tokens can compute it: its cells are halved, down to 1024,
// until a step holds one.
SparseProfile FitStep(SparseProfile profile, int64_t step_tokens_max);

struct ResolvedPlan final {
  std::shared_ptr<const SparsePlan> plan;  // null when there are errors
  std::vector<std::string> errors;         // "PROFILE: KEY: got X, need Y"
};
// The profile has passed its checks. Layer numbers are scaled from reference_layers: those of dense
// layers to smaller models only, so that a larger one has as many. Layers with a window of their
// own attend as the model says and are never sparse.
ResolvedPlan ResolvePlan(const SparseProfile& profile, const AttentionShape& shape,
                         const SparseArtefacts& artefacts);

}  // namespace lacuna::kvcache
