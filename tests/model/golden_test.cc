// Every family against Hugging Face's logits, through the same function as `lacuna verify`.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <string>
#include <tuple>

#include "server/commands/bench_offline_command.h"
#include "server/commands/inspect_command.h"
#include "server/commands/verify_command.h"

namespace lacuna::server {
namespace {

using Case = std::tuple<std::string, std::string, std::string>;  // family, precision, device

class Golden : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (std::get<2>(GetParam()) != "cuda") return;
    const auto backend = MakeBackendFor({.device = "cuda"});
    if (backend.ok()) return;
    const char* required = std::getenv("LACUNA_REQUIRE_CUDA");
    if (required != nullptr && std::string(required) == "1") FAIL() << backend.status().ToString();
    GTEST_SKIP() << backend.status().ToString();
  }
};

TEST_P(Golden, MatchesHuggingFace) {
  const auto& [family, precision, device] = GetParam();
  const std::string golden = "tests/data/golden/" + family;
  VerifyOptions options;
  options.model = family == "recall-12m" ? "models/recall-12m" : golden;
  options.expected = golden + "/expected.safetensors";
  options.device.precision = precision;
  options.device.device = device;
  const Result<VerifyReport> report = VerifyModel(options);
  ASSERT_TRUE(report.ok()) << report.status().ToString();
  EXPECT_TRUE(report->Passes(precision == "fp32"));
  EXPECT_LE(report->rel_error, precision == "fp32" ? 1e-5 : 2e-2);
  EXPECT_EQ(report->greedy_tokens, family == "recall-12m" ? 9 : 16);
  EXPECT_TRUE(precision == "bf16" || report->misses.empty());
}

INSTANTIATE_TEST_SUITE_P(
    Families, Golden,
    testing::Combine(testing::Values("llama", "mistral", "qwen2", "qwen3", "olmo2", "phi3",
                                     "granite", "glm4", "gemma2", "gemma3_text", "recall-12m"),
                     testing::Values("fp32", "bf16"), testing::Values("cpu", "cuda")),
    [](const testing::TestParamInfo<Case>& param) {
      std::string name = std::get<0>(param.param) + "_" + std::get<1>(param.param) + "_" +
                         std::get<2>(param.param);
      std::replace(name.begin(), name.end(), '-', '_');
      return name;
    });

TEST(Verify, AnotherModelsLogitsAreOutOfTolerance) {
  VerifyOptions options;
  options.model = "tests/data/golden/llama";
  options.expected = "tests/data/golden/mistral/expected.safetensors";
  options.device = {.device = "cpu", .precision = "fp32"};
  std::ostringstream out, err;
  EXPECT_EQ(RunVerify(options, out, err), 1);
  EXPECT_TRUE(err.str().empty());
}

TEST(Verify, NamesWhatIsMissing) {
  VerifyOptions options;
  options.model = "tests/data/golden/llama";
  options.expected = "tests/data/golden/mistral/model.safetensors";
  std::ostringstream out, err;
  EXPECT_EQ(RunVerify(options, out, err), 2);
  EXPECT_EQ(err.str(),
            "lacuna verify: model.safetensors: tensor input_ids: expected one, found none\n");
}

TEST(Inspect, TellsGroupsAndBytes) {
  std::ostringstream out, err;
  EXPECT_EQ(RunInspect({"tests/data/golden/gemma3_text"}, out, err), 0) << err.str();
  EXPECT_NE(out.str().find("6 layers, window of 16 tokens, 1536 bytes per token"),
            std::string::npos);
  EXPECT_EQ(RunInspect({"tests/data/golden"}, out, err), 2);
  EXPECT_EQ(err.str(), "lacuna inspect: config.json: no such file\n");
}

TEST(BenchOffline, RunsAShapeAtDepth) {
  BenchOfflineOptions options;
  options.shape = "tests/data/golden/gemma2/config.json";
  options.device.device = "cpu";
  options.depth = 100;
  options.prompt = 70;
  options.generate = 3;
  options.step_tokens = 32;
  std::ostringstream first, second, err;
  EXPECT_EQ(RunBenchOffline(options, first, err), 0) << err.str();
  EXPECT_EQ(RunBenchOffline(options, second, err), 0) << err.str();
  const auto hash = [](const std::string& text) { return text.substr(text.find("output hash")); };
  EXPECT_EQ(hash(first.str()), hash(second.str()));
  options.sequences = 3;  // they decode together
  EXPECT_EQ(RunBenchOffline(options, first, err), 0) << err.str();
  EXPECT_NE(first.str().find("3 sequences"), std::string::npos);
  options.engine = true;
  std::ostringstream engine;
  EXPECT_EQ(RunBenchOffline(options, engine, err), 0) << err.str();
  EXPECT_NE(engine.str().find("3 sequences of 100 + 3 tokens"), std::string::npos) << engine.str();
  options.engine = false;
  options.depth = 1000;  // a shape may be asked for more than its own 512
  EXPECT_EQ(RunBenchOffline(options, first, err), 0) << err.str();
}

}  // namespace
}  // namespace lacuna::server
