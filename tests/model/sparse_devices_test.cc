// Every shipped profile in a model, in f32: CUDA's kernels, on a GPU and emulated, against those of
// the CPU. What both read is the same, so the logits differ by rounding.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/model/sparse_steps_fixture.h"

namespace lacuna::engine {
namespace {

class SparseDevices : public SparseSteps {
 protected:
  // Logits of every plan's sequence, all in one batch, on `backend`.
  std::vector<std::vector<float>> GenerateOn(const std::string& backend,
                                             const std::vector<PlanPtr>& plans) {
    case_.backend = backend;
    Make(plans);
    std::vector<TestSequence> sequences;
    const auto pages = static_cast<int32_t>(kPages / static_cast<int64_t>(plans.size()));
    for (size_t i = 0; i < plans.size(); ++i) {
      const auto number = static_cast<int32_t>(i);
      TestSequence one = MakeSequence(330 - 3 * i, 20 + static_cast<uint32_t>(i), number * pages);
      one.prompt_tokens = static_cast<int32_t>(one.tokens.size()) - 3;
      sequences.push_back(Sparse(one, plans[i], number));
    }
    std::vector<TestSequence*> batch;
    for (TestSequence& one : sequences) batch.push_back(&one);
    return Generate(batch);
  }
};

TEST_P(SparseDevices, AgreeOnEveryProfile) {
  const std::vector<PlanPtr> plans = Plans(Dials::kTight);
  const auto expected = GenerateOn("cpu", plans);
  const auto got = GenerateOn(GetParam().backend, plans);
  for (size_t i = 0; i < plans.size(); ++i) {
    ASSERT_EQ(got[i].size(), expected[i].size());
    float largest = 0.0f;
    for (size_t j = 0; j < got[i].size(); ++j) {
      const float difference = std::abs(got[i][j] - expected[i][j]);
      largest = difference > largest || std::isnan(difference) ? difference : largest;
    }
    EXPECT_LT(largest, 2e-4f) << plans[i]->name;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, SparseDevices,
                         testing::Values(SparseCase{"llama", 16, "emulated", DType::kF32},
                                         SparseCase{"llama", 16, "cuda", DType::kF32}),
                         [](const auto& test) { return test.param.Name(); });

}  // namespace
}  // namespace lacuna::engine
