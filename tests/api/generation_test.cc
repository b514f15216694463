// Choices over the real engine with a fake model: text, stop strings, all-or-none, cancels.
#include "server/api/generation.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "tests/engine/engine_fixture.h"

namespace lacuna::server {
namespace {

using engine::FakeRunner;

std::unique_ptr<Tokenizer> LoadTokenizer() {
  std::ifstream file("models/recall-12m/tokenizer.json", std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  auto tokenizer = Tokenizer::FromJson(text.str());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  return tokenizer.ok() ? std::move(*tokenizer) : nullptr;
}

class GenerationTest : public ::testing::Test {
 protected:
  GenerationTest() : tokenizer_(LoadTokenizer()) {
    FakeRunner::Shape shape = engine::SmallShape();
    shape.vocab_size = tokenizer_->vocab_size();
    engine::EngineConfig config;
    config.queue_len_max = 4;
    test_ = engine::MakeTestEngine(shape, config, clock_, {}, true, 64);
    input_.prompt = {10, 11, 12};
    input_.sampling.temperature = 0.0;
    input_.sampling.max_tokens = 12;
    input_.scope = CacheScope{1};
  }

  // What one choice says until its outcome.
  struct Heard final {
    std::string text;
    std::vector<TokenId> tokens;
    std::optional<Outcome> outcome;
  };
  Heard Listen(Choice& choice) {
    Heard heard;
    for (int i = 0; i < 10'000 && !heard.outcome; ++i) {
      while (auto delta = choice.Poll()) {
        heard.text += delta->text;
        heard.tokens.insert(heard.tokens.end(), delta->tokens.begin(), delta->tokens.end());
        if (delta->outcome) heard.outcome = delta->outcome;
      }
      test_.engine->StepOnce();
    }
    EXPECT_TRUE(heard.outcome.has_value());
    EXPECT_TRUE(choice.done());
    EXPECT_FALSE(choice.Poll().has_value());
    return heard;
  }
  void ExpectEmptyEngine() {
    while (test_.engine->StepOnce()) {
    }
    EXPECT_TRUE(test_.engine->Idle());
    for (const auto& pages : test_.engine->page_counts()) {
      EXPECT_EQ(pages.used, 0);
      EXPECT_EQ(pages.free + pages.cached, pages.total);
    }
  }
  std::vector<TokenId> Expected(int64_t count) {
    return engine::Reference(test_.shape, input_.prompt, count);
  }

  ManualClock clock_;
  std::unique_ptr<Tokenizer> tokenizer_;
  engine::TestEngine test_;
  GenerationInput input_;
};

TEST_F(GenerationTest, TextIsTheTokensText) {
  auto choices = StartGeneration(*test_.engine, *tokenizer_, input_, nullptr);
  ASSERT_TRUE(choices.ok()) << choices.status().message();
  ASSERT_EQ(choices->size(), 1u);
  const Heard heard = Listen((*choices)[0]);
  EXPECT_EQ(heard.tokens, Expected(12));
  EXPECT_EQ(heard.text, tokenizer_->Decode(heard.tokens, true));
  EXPECT_EQ(heard.outcome->finish_reason, "length");
  EXPECT_EQ(heard.outcome->usage.completion_tokens, 12);
  EXPECT_EQ(heard.outcome->usage.prompt_tokens, 3);
  ExpectEmptyEngine();
}

// Every part of the text as a stop string: found wherever it lies across token borders.
TEST_F(GenerationTest, StopStringsAcrossTokens) {
  const std::string whole = tokenizer_->Decode(Expected(12), true);
  ASSERT_GE(whole.size(), 8u);
  int tried = 0;
  for (size_t begin = 1; begin + 3 <= whole.size() && tried < 24; ++begin) {
    const std::string stop = whole.substr(begin, 3);
    if ((whole[begin] & 0xC0) == 0x80 || whole.find(stop) != begin) continue;
    ++tried;
    input_.stop = {stop};
    auto choices = StartGeneration(*test_.engine, *tokenizer_, input_, nullptr);
    ASSERT_TRUE(choices.ok());
    const Heard heard = Listen((*choices)[0]);
    EXPECT_EQ(heard.text, whole.substr(0, begin));
    EXPECT_EQ(heard.outcome->finish_reason, "stop");
    EXPECT_EQ(heard.outcome->matched_stop, stop);
    EXPECT_TRUE(heard.outcome->error.ok());
    EXPECT_EQ(heard.outcome->usage.completion_tokens, static_cast<int64_t>(heard.tokens.size()));
  }
  EXPECT_GT(tried, 4);
  ExpectEmptyEngine();
}

TEST_F(GenerationTest, StopStringsWaitForMinTokens) {
  const std::string whole = tokenizer_->Decode(Expected(12), true);
  input_.stop = {whole.substr(0, 1)};
  input_.sampling.min_tokens = 12;
  auto choices = StartGeneration(*test_.engine, *tokenizer_, input_, nullptr);
  ASSERT_TRUE(choices.ok());
  const Heard heard = Listen((*choices)[0]);
  EXPECT_EQ(heard.text, whole);
  EXPECT_EQ(heard.outcome->finish_reason, "length");
}

TEST_F(GenerationTest, SeedsDifferByChoiceAndRepeat) {
  input_.n = 3;
  input_.has_seed = true;
  input_.sampling.seed = 7;
  input_.sampling.temperature = 2.0;
  std::vector<std::string> runs[2];
  for (auto& run : runs) {
    auto choices = StartGeneration(*test_.engine, *tokenizer_, input_, nullptr);
    ASSERT_TRUE(choices.ok());
    for (Choice& choice : *choices) run.push_back(Listen(choice).text);
  }
  EXPECT_EQ(runs[0], runs[1]);
}

TEST_F(GenerationTest, AllOrNone) {
  input_.n = 8;  // the queue holds 4
  auto refused = StartGeneration(*test_.engine, *tokenizer_, input_, nullptr);
  EXPECT_EQ(refused.status().code(), StatusCode::kExhausted);
  ExpectEmptyEngine();
}

TEST_F(GenerationTest, ContextBounds) {
  input_.prompt.assign(64, 10);
  auto refused = StartGeneration(*test_.engine, *tokenizer_, input_, nullptr);
  ASSERT_EQ(refused.status().code(), StatusCode::kTooLong);
  EXPECT_NE(refused.status().message().find("64"), std::string::npos);
  input_.prompt.assign(60, 10);
  input_.clamp_max_tokens = false;
  EXPECT_EQ(StartGeneration(*test_.engine, *tokenizer_, input_, nullptr).status().code(),
            StatusCode::kTooLong);
  input_.clamp_max_tokens = true;
  auto choices = StartGeneration(*test_.engine, *tokenizer_, input_, nullptr);
  ASSERT_TRUE(choices.ok());
  EXPECT_EQ(Listen((*choices)[0]).tokens.size(), 4u);
}

TEST_F(GenerationTest, DroppingCancels) {
  input_.sampling.max_tokens = 50;
  {
    auto choices = StartGeneration(*test_.engine, *tokenizer_, input_, nullptr);
    ASSERT_TRUE(choices.ok());
    for (int i = 0; i < 3; ++i) test_.engine->StepOnce();
    EXPECT_GT(test_.engine->page_counts()[0].used, 0);
  }
  test_.engine->StepOnce();
  EXPECT_EQ(test_.engine->page_counts()[0].used, 0) << "freed by the next step";
  ExpectEmptyEngine();
}

TEST_F(GenerationTest, CancelEndsWithAnError) {
  auto choices = StartGeneration(*test_.engine, *tokenizer_, input_, nullptr);
  ASSERT_TRUE(choices.ok());
  (*choices)[0].Cancel();
  EXPECT_EQ(Listen((*choices)[0]).outcome->error.code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace lacuna::server
