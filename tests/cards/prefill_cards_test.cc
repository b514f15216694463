// What each shipped prefill profile reads at its defaults. The numbers of its publication are
// written out here once more; the choice itself is compared with RangeWorld's double-precision
// reading of the method, for every query head and tile of a prompt that is sparse at the defaults.
#include <algorithm>
#include <functional>

#include "kernels/cpu/isa.h"
#include "kvcache/sparse/profile_set.h"
#include "kvcache/sparse/resolve.h"
#include "tests/kvcache/sparse_test_models.h"
#include "tests/ops/range_world.h"

namespace lacuna::kernels {
namespace {

struct PrefillCard final {
  std::string profile;
  int tokens = 2500;                                       // of the prompt
  std::function<bool(const kvcache::SparsePlan&)> states;  // what the publication says
};

const std::vector<PrefillCard>& Cards() {
  using K = PrefillSelectKind;
  using E = EstimateKind;
  static const std::vector<PrefillCard> kCards = {
      // Jiang et al. 2024: the last 64 rows; the first 30 keys and nearest 100 distances forced.
      {"minference", 4300,
       [](const kvcache::SparsePlan& p) {
         return p.prefill.select == K::kVerticalSlash && p.prefill.estimate == E::kProbe &&
                p.prefill_dials.probe_rows == 64 && p.prefill_dials.sink_tokens == 30 &&
                p.prefill_dials.local_tokens == 100;
       }},
      // Lai et al. 2025: blocks of 128, 128 rows, gamma 0.9, tau 0.1, 1024 tokens at least.
      {"flexprefill", 4300,
       [](const kvcache::SparsePlan& p) {
         return p.prefill.estimate == E::kProbePooled && p.prefill.block_tokens == 128 &&
                p.prefill.scope == ScopeKind::kMap && p.prefill_dials.probe_rows == 128 &&
                p.prefill_heads[0].p == 0.9f && p.prefill_dials.js_threshold == 0.1f &&
                p.prefill_dials.min_tokens == 1024;
       }},
      // Xu et al. 2025: antidiagonals of stride 16, blocks of 128, 90 % of each row's mass, the
      // first block and the diagonal forced.
      {"xattention", 2500,
       [](const kvcache::SparsePlan& p) {
         return p.prefill.pool == PrefillPool::kAntidiagonal && p.prefill.select == K::kTopP &&
                p.prefill.stride_tokens == 16 && p.prefill.block_tokens == 128 &&
                p.prefill_heads[0].p == 0.9f && p.prefill_dials.sink_tokens == 128;
       }},
      // He et al. 2025: 8 first keys, 512 newest, the last 128 rows dense, no estimate.
      {"trianglemix", 2500,
       [](const kvcache::SparsePlan& p) {
         return p.prefill.select == K::kNone && p.prefill_dials.sink_tokens == 8 &&
                p.prefill_dials.local_tokens == 512 && p.prefill_dials.last_rows == 128;
       }},
      // Wang et al. 2026: bands of 96 and 64 of 128 channels, 95 % of the mass of each.
      {"prism", 2500,
       [](const kvcache::SparsePlan& p) {
         return p.prefill.pool == PrefillPool::kBands && p.prefill.select == K::kTopP &&
                p.prefill_dials.low_channels * 4 == 3 * p.shape.head_dim &&
                p.prefill_dials.high_channels * 2 == p.shape.head_dim &&
                p.prefill_heads[0].p == 0.95f;
       }},
      // Zhu et al. 2025: 5 % of the rows, 95 % of their mass, a window of 8 %.
      {"sampleattention", 4200,
       [](const kvcache::SparsePlan& p) {
         return p.prefill.probe_place == ProbePlace::kTails && p.prefill.select == K::kCover &&
                p.prefill_dials.probe_fraction == 0.05f && p.prefill_heads[0].p == 0.95f &&
                p.prefill_dials.local_fraction == 0.08;
       }},
      // Willette et al. 2025: over sink and window, or MInference; every 64th row dense.
      {"delta-streamingllm", 4200,
       [](const kvcache::SparsePlan& p) {
         return p.prefill.select == K::kNone && p.prefill.correct == PrefillCorrectKind::kDelta &&
                p.prefill_dials.correct_stride_rows == 64 && p.prefill_dials.sink_tokens == 1024 &&
                p.prefill_dials.local_tokens == 2048;
       }},
      {"delta-minference", 2500,
       [](const kvcache::SparsePlan& p) {
         return p.prefill.select == K::kVerticalSlash &&
                p.prefill.correct == PrefillCorrectKind::kDelta &&
                p.prefill_dials.correct_stride_rows == 64;
       }},
      {"lacuna-fast", 2500,
       [](const kvcache::SparsePlan& p) { return p.prefill.pool == PrefillPool::kAntidiagonal; }},
      {"lacuna-balanced", 4300,
       [](const kvcache::SparsePlan& p) { return p.prefill.pool == PrefillPool::kAntidiagonal; }},
  };
  return kCards;
}

kvcache::SparsePlan PlanOf(const std::string& name) {
  static const kvcache::ProfileSet kSet = kvcache::ProfileSet::Load(kvcache::ShippedProfiles()).set;
  const kvcache::AttentionShape shape = kvcache::Recall12m();
  const auto resolved =
      kvcache::ResolvePlan(*kSet.Find(name), shape, kvcache::MakeArtefacts(shape));
  EXPECT_EQ(resolved.errors, std::vector<std::string>{});
  return *resolved.plan;
}

class PrefillCards : public testing::TestWithParam<BackendCase> {};

std::vector<BackendCase> Cases() {
  std::vector<BackendCase> cases;
  for (const BackendCase& which : BackendCases(/*aligned_only=*/true)) {
    const bool best = which.isa == cpu::IsaName(cpu::DetectIsa());
    if (which.precision == DType::kBF16 && (best || which.cuda())) cases.push_back(which);
  }
  return cases;
}

TEST_P(PrefillCards, EachReadsWhatItsMethodSays) {
  auto backend = MakeTestBackend(GetParam());
  if (SkipsOrFails(backend)) return;
  for (const PrefillCard& card : Cards()) {
    SCOPED_TRACE(card.profile);
    const kvcache::SparsePlan plan = PlanOf(card.profile);
    ASSERT_TRUE(plan.sparse_prefill);
    EXPECT_TRUE(card.states(plan));
    const auto layer = static_cast<int32_t>(
        std::ranges::find(plan.layers, true, &kvcache::LayerPlan::prefill_sparse) -
        plan.layers.begin());
    RangeSpec spec{.q_heads = 2,
                   .kv_heads = 1,
                   .head_dim = plan.shape.head_dim,
                   .tokens = card.tokens,
                   .path = plan.prefill,
                   .dials = plan.prefill_dials,
                   .heads = {plan.prefill_head(layer, 0), plan.prefill_head(layer, 1)},
                   .shapes = {}};
    RangeWorld world(*backend, GetParam(), spec, 2.0f, 3);
    const RangeLists lists = world.Run();
    size_t unsure = 0, sparse = 0;
    for (const auto& [key, ranges] : lists) {
      const RangeWorld::Expected expected = world.Reference(key.first, key.second);
      std::vector<bool> groups(expected.groups.size(), false);
      for (const KeyRange& range : ranges) {
        for (int at = range.begin / 16; at * 16 < range.end; ++at) {
          if (static_cast<size_t>(at) < groups.size()) groups[static_cast<size_t>(at)] = true;
        }
      }
      sparse += std::ranges::count(groups, false) > 0 ? 1 : 0;
      unsure += expected.sure ? 0 : 1;
      if (expected.sure) {
        ASSERT_EQ(groups, expected.groups) << key.first << ", " << key.second;
      }
    }
    EXPECT_GT(sparse, 0u);
    EXPECT_LE(unsure, lists.size() / 4);
  }
}

INSTANTIATE_TEST_SUITE_P(Every, PrefillCards, testing::ValuesIn(Cases()), CaseName);

}  // namespace
}  // namespace lacuna::kernels
