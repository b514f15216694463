// A model, its executor and sequences with plans: what the tests of sparse steps share.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/execute/executor.h"
#include "kernels/ops/backend.h"
#include "kvcache/sparse/profile.h"

namespace lacuna::engine {

using PlanPtr = std::shared_ptr<const kvcache::SparsePlan>;

// Every shipped profile, changed by one of these and resolved with made-up artefacts.
enum class Dials {
  kCover,  // budgets, masses and windows that cover any context here
  kTight,  // a few hundred tokens, so that short contexts are sparse
};
std::vector<std::string> ProfileNames();
kvcache::SparseProfile ChangedProfile(const std::string& name, Dials dials);

struct TestSequence final {
  std::vector<TokenId> tokens;
  std::vector<int32_t> pages, logical;
  std::vector<int32_t> held_pages, held_logical;  // of a group of streaming heads
  std::vector<kvcache::PageSpan> spans;
  PlanPtr plan;  // null: dense
  int32_t prompt_tokens = 0;
  int32_t choice = 0, steps_since_choice = -1;
  float budget_scale = 1;
  bool audit = false;
};

struct SparseCase final {
  std::string model;
  int64_t page_tokens = 64;
  std::string backend = "cpu";  // see tests/device/engine_backend.h
  DType precision = DType::kBF16;

  std::string Name() const;
};
// All of them, or the first `sanitized` where sanitizers make every op an order of magnitude
// slower.
inline std::vector<SparseCase> Cases(std::vector<SparseCase> all, size_t sanitized) {
#if defined(LACUNA_SANITIZED)
  all.resize(sanitized);
#else
  static_cast<void>(sanitized);
#endif
  return all;
}

class SparseSteps : public testing::TestWithParam<SparseCase> {
 protected:
  static constexpr int64_t kContext = 2304;
  static constexpr int64_t kPages = 640;
  static constexpr int64_t kRunningMax = 40;

  // `wrap` may put something between the model and the backend.
  using Wrap = std::unique_ptr<kernels::Backend> (*)(std::unique_ptr<kernels::Backend>);
  // `residency`: its streaming heads keep only what they see.
  void Make(const std::vector<PlanPtr>& plans, Wrap wrap = nullptr, PlanPtr residency = nullptr);
  // The model is there from SetUp on, unless the test is skipped for want of the backend.
  void SetUp() override;
  const kvcache::AttentionShape& Shape() const { return shape_; }
  PlanPtr Resolve(const kvcache::SparseProfile& profile) const;
  // Streaming are the heads whose score is below that of the others.
  PlanPtr Resolve(const kvcache::SparseProfile& profile,
                  const std::vector<float>& head_scores) const;
  std::vector<PlanPtr> Plans(Dials dials) const;

  // Pages from `first` on, one after the other by `stride`.
  TestSequence MakeSequence(size_t tokens, uint32_t seed, int32_t first, int32_t stride = 1) const;
  TestSequence Sparse(TestSequence sequence, PlanPtr plan, int32_t choice = 0) const;
  StepSequence Step(TestSequence& sequence, size_t begin, size_t end, int32_t logits_from,
                    bool decode = false) const;
  // Logits of all rows that were asked for.
  std::vector<float> Run(std::vector<StepSequence> sequences);
  // Samples instead; the reports of the step.
  std::vector<SparseReport> RunForReports(std::vector<StepSequence> sequences);

  // The prompt in one chunk, then token by token to the end: logits of the prompt's last token and
  // of every later one. All sequences share steps, those that are longer run on alone.
  std::vector<std::vector<float>> Generate(std::vector<TestSequence*> sequences);

  SparseCase case_ = GetParam();  // what Make() makes
  kvcache::AttentionShape shape_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<kvcache::KvStorage> storage_;
  std::unique_ptr<kvcache::MetadataStorage> metadata_;
  std::unique_ptr<Executor> executor_;
};

void ExpectEqualBits(std::span<const float> got, std::span<const float> expected);

}  // namespace lacuna::engine
