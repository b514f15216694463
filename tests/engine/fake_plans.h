// Plans of one layer and one head for the FakeRunner, short enough for its small pools.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvcache/sparse/fingerprint.h"
#include "kvcache/sparse/plan.h"

namespace lacuna::engine {

using PlanRef = std::shared_ptr<const kvcache::SparsePlan>;

inline kvcache::SparsePlan BarePlan(std::string name) {
  kvcache::SparsePlan plan;
  plan.name = std::move(name);
  plan.shape.layers = plan.shape.q_heads = plan.shape.kv_heads = 1;
  plan.shape.head_dim = 2;
  plan.layers.resize(1);
  plan.heads.resize(1);
  plan.prefill.block_tokens = 1;
  return plan;
}

inline PlanRef Sealed(kvcache::SparsePlan plan) {
  plan.kv_fingerprint = kvcache::KvFingerprint(plan);
  plan.fingerprint = kvcache::FullFingerprint(plan);
  plan.path_fingerprint = kvcache::PathFingerprint(plan);
  return std::make_shared<const kvcache::SparsePlan>(std::move(plan));
}

inline void AddDecode(kvcache::SparsePlan& plan, kernels::RefreshKind refresh, int32_t steps) {
  plan.sparse_decode = true;
  plan.layers[0].decode = kvcache::LayerRole::kSelect;
  plan.decode.unit_tokens = 1;
  plan.decode.select = kernels::SelectKind::kTopK;
  plan.decode.refresh = refresh;
  plan.decode_dials.budget_tokens = 4;
  plan.decode_dials.dense_below_tokens = 10;
  plan.decode_dials.refresh_steps = steps;
}

// Computed in grains; of `last_rows` at its end in another way.
inline void AddPrefill(kvcache::SparsePlan& plan, int32_t grain, int32_t last_rows) {
  plan.sparse_prefill = true;
  plan.layers[0].prefill_sparse = true;
  plan.prefill.select = kernels::PrefillSelectKind::kTopP;
  plan.prefill.block_tokens = grain;
  plan.prefill_heads.resize(1);
  plan.prefill_dials.last_rows = last_rows;
  plan.prefill_dials.dense_below_tokens = 12;
}

inline void AddStreaming(kvcache::SparsePlan& plan) {
  plan.static_heads = true;
  plan.heads[0] = {.role = kvcache::HeadRole::kStreaming,
                   .prefill = {.window_tokens = 6, .sink_tokens = 3},
                   .decode = {.window_tokens = 6, .sink_tokens = 3}};
}

inline PlanRef DecodePlan(kernels::RefreshKind refresh = kernels::RefreshKind::kEveryN,
                          int32_t steps = 3) {
  kvcache::SparsePlan plan = BarePlan("decode");
  AddDecode(plan, refresh, steps);
  return Sealed(std::move(plan));
}

inline PlanRef PrefillPlan(int32_t grain = 8, int32_t last_rows = 0) {
  kvcache::SparsePlan plan = BarePlan("prefill");
  AddPrefill(plan, grain, last_rows);
  return Sealed(std::move(plan));
}

inline PlanRef StreamingPlan() {
  kvcache::SparsePlan plan = BarePlan("streaming");
  AddStreaming(plan);
  return Sealed(std::move(plan));
}

// One of each kind and of their mixtures.
inline std::vector<PlanRef> AllFakePlans(int32_t grain) {
  using enum kernels::RefreshKind;
  std::vector<PlanRef> plans = {DecodePlan(), DecodePlan(kEveryStep, 1), DecodePlan(kCosine, 1),
                                PrefillPlan(grain, 0), StreamingPlan()};
  kvcache::SparsePlan both = BarePlan("both");
  AddDecode(both, kEveryN, 4);
  AddPrefill(both, grain, 3);
  plans.push_back(Sealed(both));
  both.name = "all";
  AddStreaming(both);
  plans.push_back(Sealed(both));
  both.name = "spans";
  both.heads[0].role = kvcache::HeadRole::kSpan;
  both.spans = {{.alpha = 8, .beta = 0.5f}};
  plans.push_back(Sealed(both));
  return plans;
}

}  // namespace lacuna::engine
