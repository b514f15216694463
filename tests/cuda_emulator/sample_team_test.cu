// Sample by teams of blocks, as on sm_90, beside Sample by one block for a row: the same tokens.
// The emulated device is an sm_80, so this is the only place where teams run without a GPU.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "kernels/cuda/ops.h"
#include "kernels/ops/sample.h"
#include "tests/cuda_emulator/launch.h"

namespace lacuna::kernels::cuda {
namespace {

constexpr int64_t kRows = 4;
constexpr int64_t kVocab = 20100;

struct Chosen final {
  std::vector<SampleResult> results;
  std::vector<int32_t> tokens;
};

// `team`: blocks for a row; 1: on a device without teams.
Chosen Choose(const std::vector<float>& logits, const std::vector<SampleRow>& rows,
              const std::vector<LogitEdit>& edits, int team) {
  const DeviceTraits traits{.major = team > 1 ? 9 : 8,
                            .sm_count = static_cast<int>(kRows) * team,
                            .shared_bytes_max = 163 << 10};
  std::vector<std::byte> workspace(static_cast<size_t>(SampleWorkspaceBytes(kRows, kVocab)) + 256);
  auto* const data = workspace.data() + (256 - reinterpret_cast<uintptr_t>(workspace.data()) % 256);
  std::vector<float> copy = logits;
  Chosen chosen{std::vector<SampleResult>(kRows), std::vector<int32_t>(kRows)};
  const SampleArgs args{.logits = {copy.data(), DType::kF32, {kRows, kVocab}},
                        .rows = rows.data(),
                        .edits = edits.data(),
                        .results = chosen.results.data(),
                        .tokens = chosen.tokens.data()};
  const int64_t launches = cuda_emulator::cluster_launches;
  EXPECT_EQ(Sample(args, traits, {data, static_cast<int64_t>(workspace.size()) - 256}, nullptr),
            OkStatus());
  EXPECT_EQ(cuda_emulator::cluster_launches - launches, team > 1 ? 1 : 0);
  return chosen;
}

// Rows of the spread `scale`; of a peaked one some tokens stand in front.
std::vector<float> Logits(float scale, bool peaked) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> logits(static_cast<size_t>(kRows * kVocab));
  for (float& value : logits) {
    value = normal(random) + (peaked && random() % 4096 == 0 ? 9.0f : 0.0f);
  }
  return logits;
}

void ExpectTeamsAgree(const SampleRow& row, const std::vector<LogitEdit>& edits = {}) {
  for (const auto& [scale, peaked] : {std::pair{3.0f, false}, {1.5f, true}, {0.02f, false}}) {
    const std::vector<float> logits = Logits(scale, peaked);
    std::vector<SampleRow> rows(kRows, row);
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].seed = 71 * i + 5;
      rows[i].index = static_cast<int64_t>(i);
      rows[i].edits_end = static_cast<int32_t>(edits.size());
    }
    const Chosen alone = Choose(logits, rows, edits, 1);
    for (const int team : {2, 4}) {
      const Chosen by_team = Choose(logits, rows, edits, team);
      EXPECT_EQ(by_team.tokens, alone.tokens) << scale << ", " << team << " blocks";
      for (size_t i = 0; i < rows.size(); ++i) {
        const SampleResult& got = by_team.results[i];
        const SampleResult& want = alone.results[i];
        EXPECT_EQ(got.status, want.status);
        EXPECT_EQ(got.logprob, want.logprob);
        ASSERT_EQ(got.top_count, want.top_count);
        for (int top = 0; top < got.top_count; ++top) {
          EXPECT_EQ(got.top_tokens[top], want.top_tokens[top]);
        }
      }
    }
  }
}

// From the likelier tokens by the first block, and where they are too few (0.02: all are kept) by
// all blocks.
TEST(SampleTeam, TopP) { ExpectTeamsAgree({.temperature = 0.8f, .top_p = 0.9f}); }

TEST(SampleTeam, TopPWithLogprobs) {
  ExpectTeamsAgree({.temperature = 0.8f, .top_p = 0.9f, .logprobs = 3});
}

TEST(SampleTeam, TopPOfChangedRows) {
  ExpectTeamsAgree({.temperature = 0.8f, .top_p = 0.9f, .repetition = 1.3f},
                   {{.token = 77, .flags = LogitEdit::kRepeated}, {.token = 300, .bias = 5.0f}});
}

TEST(SampleTeam, TopKOfMany) {
  ExpectTeamsAgree({.temperature = 0.8f, .top_p = 0.95f, .top_k = 3000});
}

TEST(SampleTeam, LowMinP) { ExpectTeamsAgree({.temperature = 1.0f, .min_p = 0.001f}); }

// For one block, while its team waits or leaves.
TEST(SampleTeam, FewTokens) {
  ExpectTeamsAgree({.temperature = 0.8f, .top_k = 50});
  ExpectTeamsAgree({.logprobs = 5});
}

TEST(SampleTeam, BrokenRows) {
  std::vector<float> logits = Logits(3.0f, false);
  logits[100] = std::numeric_limits<float>::quiet_NaN();
  for (int64_t i = 0; i < kVocab; ++i) logits[static_cast<size_t>(kVocab + i)] = -INFINITY;
  const std::vector<SampleRow> rows(kRows, {.temperature = 1.0f, .top_p = 0.9f});
  const Chosen chosen = Choose(logits, rows, {}, 4);
  EXPECT_EQ(chosen.results[0].status, SampleResult::kNotANumber);
  EXPECT_EQ(chosen.results[1].status, SampleResult::kImpossible);
  EXPECT_EQ(chosen.results[2].status, SampleResult::kOk);
  EXPECT_EQ(chosen.tokens, Choose(logits, rows, {}, 1).tokens);
}

}  // namespace
}  // namespace lacuna::kernels::cuda
