#include "tests/ops/range_cases.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "kernels/ops/range_limits.h"

namespace lacuna::kernels {

RangeSpec PooledSpec(PrefillPool pool, PrefillSelectKind select) {
  RangeSpec spec;
  spec.path.estimate = EstimateKind::kPooled;
  spec.path.pool = pool;
  spec.path.select = select;
  spec.dials.sink_tokens = 100;
  spec.dials.local_tokens = 130;
  spec.dials.low_channels = 24;
  spec.dials.high_channels = 16;
  return spec;
}

RangeSpec ProbedSpec(PrefillSelectKind select, ProbePlace place) {
  RangeSpec spec;
  spec.path.estimate = EstimateKind::kProbe;
  spec.path.select = select;
  spec.path.probe_place = place;
  spec.dials.probe_fraction = 0.12f;
  spec.dials.sink_tokens = 30;
  spec.dials.local_tokens = 100;
  return spec;
}

namespace {

std::vector<PrefillHead> Patterns() {
  return {{.pattern = {PatternKind::kVerticalSlash, 60, 150}, .p = 1},
          {.pattern = {PatternKind::kAShape, 70, 333}, .p = 1},
          {.pattern = {PatternKind::kBlocks, 5, 0}, .p = 1},
          {.pattern = {PatternKind::kVerticalSlash, 1, 700}, .p = 1}};
}

RangeSpec Flex(float js_threshold, ScopeKind scope) {
  RangeSpec spec = ProbedSpec(PrefillSelectKind::kCover, ProbePlace::kLast);
  spec.path.estimate = EstimateKind::kProbePooled;
  spec.path.scope = scope;
  spec.dials.probe_rows = 128;
  spec.dials.min_tokens = 256;
  spec.dials.js_threshold = js_threshold;
  spec.p = 0.8f;
  return spec;
}

}  // namespace

std::vector<NamedSpec> RangeCases() {
  std::vector<NamedSpec> cases;
  RangeSpec spec = PooledSpec(PrefillPool::kAntidiagonal, PrefillSelectKind::kTopP);
  cases.push_back({"antidiagonal top_p", spec, 8.0f});
  spec.path.stride_tokens = 8;
  spec.path.inclusive = false;
  spec.tokens = 1303;
  spec.page_tokens = 16;
  cases.push_back({"antidiagonal 8 exclusive", spec, 6.0f});
  spec.path.stride_tokens = 128;
  spec.path.scope = ScopeKind::kMap;
  cases.push_back({"antidiagonal 128 map", spec, 16.0f});
  spec.path.stride_tokens = 1;
  spec.path.block_tokens = 64;
  spec.tokens = 733;
  cases.push_back({"antidiagonal 1", spec, 6.0f});
  spec = PooledSpec(PrefillPool::kAntidiagonal, PrefillSelectKind::kTopK);
  spec.path.stride_tokens = 4;
  spec.dials.budget_tokens = 200;
  spec.dials.fraction = 0.2;
  spec.q_heads = spec.kv_heads;
  cases.push_back({"antidiagonal top_k, group 1", spec});
  spec = PooledSpec(PrefillPool::kMean, PrefillSelectKind::kTopK);
  spec.path.block_tokens = 64;
  spec.dials.fraction = 0.3;
  spec.dials.local_fraction = 0.2;
  spec.head_dim = 48;
  spec.scale = 0.4f;
  cases.push_back({"mean top_k", spec});
  spec = PooledSpec(PrefillPool::kMean, PrefillSelectKind::kTopP);
  spec.dials.min_tokens = 400;
  spec.dials.max_tokens = 600;
  spec.q_heads = 8;
  cases.push_back({"mean top_p, limits, group 4", spec, 30.0f});
  spec.path.scope = ScopeKind::kMap;
  spec.dials.min_tokens = spec.dials.max_tokens = 0;
  cases.push_back({"mean map", spec, 30.0f});
  spec = PooledSpec(PrefillPool::kBands, PrefillSelectKind::kTopP);
  spec.tokens = 2200;
  cases.push_back({"bands", spec, 2.0f});
  spec = ProbedSpec(PrefillSelectKind::kVerticalSlash, ProbePlace::kLast);
  spec.path.block_tokens = 64;
  spec.heads = Patterns();
  spec.tokens = 1700;
  cases.push_back({"patterns", spec, 2.0f});
  spec.path.probe_place = ProbePlace::kTails;
  spec.dials.probe_rows = 100;
  spec.dials.probe_fraction = 0.3f;
  spec.tokens = 2500;
  cases.push_back({"patterns of tails", spec, 2.0f});
  spec.path.cell_tokens = 2048;
  cases.push_back({"patterns of tails, cells of 2048", spec, 2.0f});
  spec = ProbedSpec(PrefillSelectKind::kCover, ProbePlace::kTails);
  spec.dials.local_fraction = 0.08;
  spec.tokens = 2400;
  spec.page_tokens = 16;
  cases.push_back({"cover of tails", spec, 3.0f});
  spec.path.block_tokens = 64;
  spec.dials.min_tokens = 200;
  spec.dials.max_tokens = 500;
  spec.tokens = 77;
  cases.push_back({"cover of a short prompt", spec, 3.0f});
  cases.push_back({"flexprefill, no map", Flex(0, ScopeKind::kMap), 2.0f});
  cases.push_back({"flexprefill, all maps", Flex(1, ScopeKind::kMap), 2.0f});
  cases.push_back({"flexprefill, some maps", Flex(0.2f, ScopeKind::kRow), 2.0f});
  spec = Flex(0.2f, ScopeKind::kMap);
  spec.path.cell_tokens = 2048;
  spec.path.block_tokens = 64;
  spec.tokens = 2200;
  cases.push_back({"flexprefill, cells of 2048", spec, 2.0f});
  spec.path.cell_tokens = kCellTokensMax;
  cases.push_back({"flexprefill, the largest cells", spec, 2.0f});
  spec = RangeSpec{};
  spec.path.select = PrefillSelectKind::kNone;
  spec.dials.sink_tokens = 100;
  spec.dials.local_tokens = 250;
  spec.dials.last_rows = 70;
  cases.push_back({"sink and window, last rows", spec});
  spec.path.correct = PrefillCorrectKind::kDelta;
  spec.dials.local_fraction = 0.25;
  cases.push_back({"corrected", spec});
  spec.shapes = {{.window_tokens = 64, .sink_tokens = 4}, {}};
  spec.dials.dense_below_tokens = 1500;
  cases.push_back({"a head with a window", spec});
  spec.dials.dense_below_tokens = 1501;
  cases.push_back({"too short", spec});
  return cases;
}

std::vector<NamedSpec> FewRangeCases() {
  constexpr std::array<std::string_view, 6> kNames = {
      "antidiagonal top_p", "mean map",       "bands",
      "patterns",           "cover of tails", "flexprefill, some maps"};
  std::vector<NamedSpec> few;
  for (NamedSpec& named : RangeCases()) {
    if (std::ranges::count(kNames, named.name) > 0) few.push_back(std::move(named));
  }
  return few;
}

}  // namespace lacuna::kernels
