// Streaming heads that keep only sink and window: the same answers from a fraction of the pages.
#include <algorithm>
#include <cmath>

#include "engine/model/load_model.h"
#include "tests/model/sparse_steps_fixture.h"

namespace lacuna::engine {
namespace {

class SparseResidency : public SparseSteps {
 protected:
  // The second of each layer's two heads streams: heads keep the order of the checkpoint, so that
  // even the bits can be compared.
  std::vector<float> SecondHeadsStream() const {
    std::vector<float> scores;
    for (int32_t layer = 0; layer < Shape().layers; ++layer) {
      scores.push_back(1.0f);
      scores.push_back(0.0f);
    }
    return scores;
  }
  // Here and there none, one or both.
  std::vector<float> Scattered() const { return {0, 1, 1, 0, 0, 0, 1, 1, 0.5f, 1, 1, 0}; }

  TestSequence Prompt(const PlanPtr& plan) const {
    TestSequence one = Sparse(MakeSequence(600, 3, 5), plan, 2);
    one.prompt_tokens = 590;
    return one;
  }
};

TEST_P(SparseResidency, HeadsThatKeepTheirOrderGiveTheSameBits) {
  for (const char* name : {"duoattention", "lserve"}) {
    SCOPED_TRACE(name);
    const PlanPtr plan = Resolve(ChangedProfile(name, Dials::kTight), SecondHeadsStream());
    Make({plan});
    TestSequence whole = Prompt(plan), resident = whole;
    const std::vector<float> expected = Generate({&whole})[0];
    Make({plan}, nullptr, plan);
    ASSERT_EQ(model_->groups().size(), 2u);
    EXPECT_EQ(model_->groups()[1].sink_tokens, 16);
    const std::vector<float> got = Generate({&resident})[0];
    if (GetParam().backend == "cpu") {
      ExpectEqualBits(got, expected);
      continue;
    }
    // A GPU cuts a list into parts by its length, and the lists of resident pages are shorter.
    ASSERT_EQ(got.size(), expected.size());
    double difference = 0, norm = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      difference += std::pow(double{got[i]} - expected[i], 2);
      norm += std::pow(double{expected[i]}, 2);
    }
    EXPECT_LE(std::sqrt(difference / norm), 0.02);
  }
}

TEST_P(SparseResidency, ReorderedHeadsGiveTheSameAnswers) {
  for (const char* name : {"duoattention", "lserve", "double-sparsity"}) {
    SCOPED_TRACE(name);
    kvcache::SparseProfile profile = ChangedProfile(name, Dials::kTight);
    // Channel lists, and the chunks' estimates, of each head.
    profile.who = ChangedProfile("lserve", Dials::kTight).who;
    profile.decode_layers.dense_layers = {2};
    const PlanPtr plan = Resolve(profile, Scattered());
    Make({plan});
    TestSequence whole = Prompt(plan), dense = whole, resident = whole;
    const std::vector<float> expected = Generate({&whole})[0];
    dense.plan = nullptr;
    const std::vector<float> of_dense = Generate({&dense})[0];
    Make({plan}, nullptr, plan);
    const std::vector<float> got = Generate({&resident})[0];
    ASSERT_EQ(got.size(), expected.size());
    double error = 0, distance = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      error += std::pow(got[i] - expected[i], 2);
      distance += std::pow(of_dense[i] - expected[i], 2);
    }
    // Sums in another order, not other attention.
    EXPECT_LT(std::sqrt(error), 0.15 * std::sqrt(distance));
  }
}

TEST_P(SparseResidency, ReportsSumOverTheHeadsThatSelect) {
  const PlanPtr plan = Resolve(ChangedProfile("lserve", Dials::kTight), Scattered());
  Make({plan}, nullptr, plan);
  TestSequence one = Prompt(plan);
  Run({Step(one, 0, 590, -1)});
  one.audit = true;
  const std::vector<SparseReport> reports =
      RunForReports({Step(one, 590, 591, 0, /*decode=*/true)});
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].keys.layers, 6);  // full heads, one launch each
  const int64_t pages = (591 + GetParam().page_tokens - 1) / GetParam().page_tokens;
  EXPECT_EQ(reports[0].keys.pages_considered, 6 * pages);
  for (const kernels::AttentionAudit& audit : reports[0].audits) {
    ASSERT_GT(audit.layers, 0);
    EXPECT_LE(audit.captured_mass, 1.001f * static_cast<float>(audit.layers));
  }
}

TEST_P(SparseResidency, OtherHeadsAndReusedChoicesAreErrors) {
  const PlanPtr plan = Resolve(ChangedProfile("lserve", Dials::kTight), Scattered());
  const PlanPtr other = Resolve(ChangedProfile("lserve", Dials::kTight), SecondHeadsStream());
  const PlanPtr none = Resolve(ChangedProfile("quest", Dials::kTight));
  kvcache::SparseProfile profile = ChangedProfile("lserve", Dials::kTight);
  profile.decode_layers.share_layers = 2;
  const PlanPtr shares = Resolve(profile, Scattered());
  Make({plan}, nullptr, plan);
  for (const PlanPtr& wrong : {other, none, shares}) {
    EXPECT_EQ(MakeExecutor(*model_, *backend_, {.plans = {plan, wrong}}).status().code(),
              StatusCode::kInvalidArgument);
  }
  const auto folder = Folder::Open("models/recall-12m");
  ASSERT_TRUE(folder.ok());
  const PlanPtr spans = Resolve(ChangedProfile("moa", Dials::kTight));
  EXPECT_EQ(LoadModel(**folder, *backend_, kContext, false, spans.get()).status().code(),
            StatusCode::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(Models, SparseResidency,
                         testing::ValuesIn(Cases({{"recall-12m", 64},
                                                  {"recall-12m", 16},
                                                  {"recall-12m", 64, "cuda"},
                                                  {"recall-12m", 16, "cuda"}},
                                                 1)),
                         [](const auto& test) { return test.param.Name(); });

}  // namespace
}  // namespace lacuna::engine
