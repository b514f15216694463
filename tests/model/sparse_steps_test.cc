// Steps of sequences with plans, on real models: what covers the context is dense bit for bit, rows
// do not depend on who shares their step, choices are kept and reused, metadata follows its pages.
#include <algorithm>
#include <random>

#include "kvcache/sparse/decode_counts.h"
#include "kvcache/sparse/prefill_grain.h"
#include "tests/model/sparse_steps_fixture.h"

namespace lacuna::engine {
namespace {

bool SomethingDiffers(std::span<const float> a, std::span<const float> b) {
  return !std::ranges::equal(a, b);
}

TEST_P(SparseSteps, WhatCoversTheContextIsDenseBitForBit) {
  const std::vector<PlanPtr> plans = Plans(Dials::kCover);
  Make(plans);
  TestSequence dense = MakeSequence(390, 1, 0, 3);
  dense.prompt_tokens = 385;
  const std::vector<float> expected = Generate({&dense})[0];
  for (const PlanPtr& plan : plans) {
    SCOPED_TRACE(plan->name);
    TestSequence sparse = Sparse(dense, plan);
    ExpectEqualBits(Generate({&sparse})[0], expected);
  }
}

TEST_P(SparseSteps, RowsOfAMixedBatchAreThoseOfEachAlone) {
  const std::vector<PlanPtr> plans = Plans(Dials::kTight);
  Make(plans);
  std::vector<TestSequence> sequences;
  std::vector<std::vector<float>> alone;
  int sparse = 0;
  const auto pages = static_cast<int32_t>(kPages / (static_cast<int64_t>(plans.size()) + 2));
  for (size_t i = 0; i < plans.size() + 2; ++i) {
    const auto number = static_cast<int32_t>(i);
    TestSequence one = MakeSequence(360 - 3 * i, 10 + static_cast<uint32_t>(i), number * pages);
    one.prompt_tokens = static_cast<int32_t>(one.tokens.size()) - 4;
    TestSequence dense = one;
    if (i < plans.size()) one = Sparse(one, plans[i], number);
    sequences.push_back(one);
    alone.push_back(Generate({&one})[0]);
    if (SomethingDiffers(alone.back(), Generate({&dense})[0])) ++sparse;
  }
  // Otherwise nothing here is sparse; in a model of few layers some profiles have none.
  EXPECT_GE(sparse, static_cast<int>(plans.size()) * 2 / 3);
  std::mt19937 random(7);
  std::vector<size_t> order(sequences.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::ranges::shuffle(order, random);
  std::vector<TestSequence*> batch;
  for (const size_t i : order) batch.push_back(&sequences[i]);
  const std::vector<std::vector<float>> together = Generate(batch);
  for (size_t i = 0; i < order.size(); ++i) {
    SCOPED_TRACE(order[i] < plans.size() ? plans[order[i]]->name : "dense");
    ExpectEqualBits(together[i], alone[order[i]]);
  }
}

TEST_P(SparseSteps, ReportsSayWhatWasReadAndAuditsWhatItCost) {
  for (const Dials dials : {Dials::kCover, Dials::kTight}) {
    const std::vector<PlanPtr> plans = Plans(dials);
    Make(plans);
    for (const PlanPtr& plan : plans) {
      SCOPED_TRACE(plan->name);
      TestSequence one = Sparse(MakeSequence(500, 3, 5), plan);
      one.prompt_tokens = 499;
      const std::vector<SparseReport> of_prompt = RunForReports({Step(one, 0, 499, 498)});
      ASSERT_EQ(of_prompt.size(), 1u);
      const kernels::RangeStats& blocks = of_prompt[0].blocks;
      EXPECT_EQ(blocks.blocks_considered > 0, plan->sparse_prefill);
      EXPECT_LE(blocks.blocks_selected, blocks.blocks_considered);
      one.audit = true;
      const std::vector<SparseReport> reports =
          RunForReports({Step(one, 499, 500, 0, /*decode=*/true)});
      ASSERT_EQ(reports.size(), 1u);
      EXPECT_EQ(reports[0].sequence, 0);
      EXPECT_LE(reports[0].keys.pages_selected, reports[0].keys.pages_considered);
      for (const kernels::AttentionAudit& audit : reports[0].audits) {
        ASSERT_GT(audit.layers, 0);
        const float mass = audit.captured_mass / static_cast<float>(audit.layers);
        if (dials == Dials::kCover) {
          EXPECT_EQ(mass, 1.0f);
          EXPECT_EQ(audit.output_error, 0.0f);
        } else {
          EXPECT_GT(mass, 0.0f);
          EXPECT_LE(mass, 1.001f);
        }
      }
      if (dials == Dials::kTight && plan->sparse_decode) {
        EXPECT_FALSE(reports[0].dense);
        EXPECT_GT(reports[0].keys.pages_considered, 0);
        EXPECT_LT(reports[0].audits[1].captured_mass, 1.0f * 10);
      }
    }
  }
}

TEST_P(SparseSteps, AuditedRowsAreTheSameRows) {
  const std::vector<PlanPtr> plans = Plans(Dials::kTight);
  Make(plans);
  for (const PlanPtr& plan : plans) {
    SCOPED_TRACE(plan->name);
    TestSequence one = Sparse(MakeSequence(303, 4, 0), plan);
    one.prompt_tokens = 300;
    TestSequence audited = one;
    audited.audit = true;
    ExpectEqualBits(Generate({&audited})[0], Generate({&one})[0]);
  }
}

// A step that keeps a choice reads what was chosen, whoever ran in between.
TEST_P(SparseSteps, ChoicesAreKeptAtTheirPlace) {
  std::vector<PlanPtr> plans;
  for (const PlanPtr& plan : Plans(Dials::kTight)) {
    if (plan->decode.refresh != kernels::RefreshKind::kEveryStep) plans.push_back(plan);
  }
  ASSERT_FALSE(plans.empty());
  Make(plans);
  for (const PlanPtr& plan : plans) {
    SCOPED_TRACE(plan->name);
    TestSequence a = Sparse(MakeSequence(310, 5, 0), plan, 3);
    TestSequence b = Sparse(MakeSequence(306, 6, 100), plan, 7);
    TestSequence c = Sparse(MakeSequence(308, 7, 200), plans[0], 0);
    a.prompt_tokens = b.prompt_tokens = c.prompt_tokens = 300;
    std::vector<TestSequence> alone = {a, b, c};
    std::vector<std::vector<float>> expected;
    for (TestSequence& one : alone) expected.push_back(Generate({&one})[0]);
    const auto together = Generate({&c, &a, &b});
    ExpectEqualBits(together[0], expected[2]);
    ExpectEqualBits(together[1], expected[0]);
    ExpectEqualBits(together[2], expected[1]);
  }
}

TEST_P(SparseSteps, MetadataFollowsSharedAndReusedPages) {
  const std::vector<PlanPtr> plans = Plans(Dials::kTight);
  Make(plans);
  for (const PlanPtr& plan : plans) {
    if (plan->kv_fingerprint != 0) continue;  // its prompt's keys are its own
    SCOPED_TRACE(plan->name);
    TestSequence alone = Sparse(MakeSequence(330, 8, 0), plan);
    alone.prompt_tokens = 326;
    const std::vector<float> expected = Generate({&alone})[0];
    // Somebody else uses the same pages, then a dense sequence computes the first 192 tokens there.
    TestSequence other = Sparse(MakeSequence(448, 9, 0), plan);
    Run({Step(other, 0, 448, -1)});
    TestSequence dense = MakeSequence(330, 8, 0);
    Run({Step(dense, 0, 100, -1)});
    Run({Step(dense, 100, 192, -1)});
    TestSequence shares = Sparse(MakeSequence(330, 8, 50), plan);
    std::copy_n(dense.pages.begin(), 192 / GetParam().page_tokens, shares.pages.begin());
    shares.prompt_tokens = 326;
    std::vector<float> got = Run({Step(shares, 192, 326, 133)});
    for (size_t i = 326; i < 330; ++i) {
      const std::vector<float> row = Run({Step(shares, i, i + 1, 0, /*decode=*/true)});
      got.insert(got.end(), row.begin(), row.end());
      const bool chose = kvcache::RefreshDue(*plan, shares.steps_since_choice);
      shares.steps_since_choice = chose ? 1 : shares.steps_since_choice + 1;
    }
    ExpectEqualBits(got, expected);
  }
}

TEST_P(SparseSteps, PromptsMayBeCutAtTheirGrain) {
  std::vector<PlanPtr> plans = Plans(Dials::kTight);
  for (const char* name : {"minference", "flexprefill", "sampleattention"}) {
    kvcache::SparseProfile profile = ChangedProfile(name, Dials::kTight);
    profile.prefill_estimate.cell_tokens = 2048;
    plans.push_back(Resolve(profile));
  }
  Make(plans);
  for (const PlanPtr& plan : plans) {
    const auto grain = static_cast<size_t>(kvcache::PrefillGrainTokens(*plan));
    const size_t cut = grain == 1 ? 133 : grain, end = cut + 126;
    if (end > static_cast<size_t>(model_->info().context_tokens_max)) continue;
    SCOPED_TRACE(plan->name + ", grain " + std::to_string(grain));
    TestSequence whole = Sparse(MakeSequence(end, 11, 0), plan);
    const auto logits_from = static_cast<int32_t>(end) - 10;
    const std::vector<float> expected = Run({Step(whole, 0, end, logits_from)});
    TestSequence parts = Sparse(MakeSequence(end, 11, 300), plan);
    Run({Step(parts, 0, cut, -1)});
    ExpectEqualBits(Run({Step(parts, cut, end, logits_from - static_cast<int32_t>(cut))}),
                    expected);
  }
}

TEST_P(SparseSteps, ALargerBudgetReadsMore) {
  const PlanPtr plan = Resolve(ChangedProfile("quest", Dials::kTight));
  Make({plan});
  TestSequence one = Sparse(MakeSequence(500, 12, 0), plan);
  Run({Step(one, 0, 499, -1)});
  const auto selected = [&](float scale) {
    one.budget_scale = scale;
    return RunForReports({Step(one, 499, 500, 0, /*decode=*/true)})[0].keys.keys_selected;
  };
  const int64_t usual = selected(1.0f);
  EXPECT_GT(selected(1.5f), usual);
  EXPECT_EQ(selected(1.0f), usual);
}

TEST_P(SparseSteps, PlansThatNobodyProvidedForAreErrors) {
  const std::vector<PlanPtr> plans = Plans(Dials::kTight);
  TestSequence one = Sparse(MakeSequence(64, 13, 0), plans[0]);
  const auto refused = [&] {
    return executor_->Launch({.sequences = {Step(one, 0, 64, -1)}, .rows = {}, .edits = {}})
               .status()
               .code() == StatusCode::kInternal;
  };
  EXPECT_TRUE(refused());  // no plan is served
  Make({Resolve(ChangedProfile("quest", Dials::kTight))});
  one.choice = static_cast<int32_t>(kRunningMax);
  EXPECT_TRUE(refused());
  one.choice = 0;
  auto stranger = std::make_shared<kvcache::SparsePlan>(*plans[0]);
  stranger->shape.layers += 1;
  one.plan = stranger;
  EXPECT_TRUE(refused());
}

INSTANTIATE_TEST_SUITE_P(Models, SparseSteps,
                         testing::ValuesIn(Cases({{"llama", 16},
                                                  {"gemma2", 16},
                                                  {"llama", 64},
                                                  {"recall-12m", 64},
                                                  {"llama", 16, "split"},
                                                  {"recall-12m", 64, "cuda"},
                                                  {"llama", 16, "cuda"},
                                                  {"gemma2", 16, "cuda"}},
                                                 3)),
                         [](const auto& test) { return test.param.Name(); });

}  // namespace
}  // namespace lacuna::engine
