// The generator of fresh suites: deterministic, of the asked length, and answerable.
#include "server/eval/make_suite.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <regex>
#include <set>

#include "server/eval/suite.h"
#include "server/eval/suite_facts.h"

namespace lacuna::server {
namespace {

using testing::HasSubstr;

std::string FileText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

class MakeSuiteTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto tokenizer = Tokenizer::FromJson(FileText("models/recall-12m/tokenizer.json"));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    tokenizer_ = std::move(*tokenizer).release();
  }
  static void TearDownTestSuite() { delete tokenizer_; }

  static Result<int64_t> Count(std::string_view text) {
    auto ids = tokenizer_->Encode(text);
    if (!ids.ok()) return ids.status();
    return static_cast<int64_t>(ids->size()) + 12;  // a template's share
  }
  static Result<std::string> Make(const SuiteOptions& options, std::string_view text) {
    return MakeSuite(options, text, *tokenizer_, Count, {});
  }
  static SuiteOptions All(uint64_t seed) {
    return {seed, {512, 2048}, {SuiteTasks().begin(), SuiteTasks().end()}, 4};
  }

  static Tokenizer* tokenizer_;
};
Tokenizer* MakeSuiteTest::tokenizer_ = nullptr;

TEST_F(MakeSuiteTest, PromptsHaveTheLengthAndTheAnswers) {
  const std::string text = FileText("docs/demo/long.txt");
  const auto lines = Make(All(3), text);
  ASSERT_TRUE(lines.ok()) << lines.status().message();
  const auto suite = ParseSuite(*lines, "f");
  ASSERT_TRUE(suite.ok()) << suite.status().message();
  ASSERT_EQ(suite->size(), 6u * 2 * 4);
  std::set<std::string> questions;
  for (const EvalQuestion& question : *suite) {
    const std::string prompt = question.messages[0]["content"];
    EXPECT_EQ(question.messages[0]["role"], "user");
    EXPECT_TRUE(IsRight(question.answers, prompt)) << question.id;
    const int64_t tokens = *Count(prompt);
    EXPECT_LE(tokens, question.context_tokens) << question.id;
    EXPECT_GE(tokens, question.context_tokens - 64) << question.id;
    questions.insert(prompt.substr(prompt.rfind("\n\n") + 2));
    if (question.task == "multi_value") {
      EXPECT_GE(question.answers.size(), 2u);
    }
  }
  EXPECT_EQ(questions.size(), suite->size());
}

TEST_F(MakeSuiteTest, TheSeedDecides) {
  const std::string text = FileText("docs/demo/long.txt");
  const std::string one = *Make(All(3), text);
  EXPECT_EQ(one, *Make(All(3), text));
  EXPECT_NE(one, *Make(All(4), text));
  // A part of it is the same by itself.
  SuiteOptions part = All(3);
  part.lengths = {2048};
  part.tasks = {"lines"};
  part.count = 2;
  EXPECT_THAT(one, HasSubstr(*Make(part, text)));
}

TEST_F(MakeSuiteTest, AnyTextWillDo) {
  std::string words, chinese;
  for (int i = 0; i < 3000; ++i) words += "word" + std::to_string(i) + " ";  // no sentence ends
  for (int i = 0; i < 3000; ++i) chinese += "\xe6\xb0\xb4\xe7\x81\xab";      // no blank either
  for (const std::string& text : {words, chinese}) {
    const auto lines = Make({1, {512}, {"needle", "bios"}, 2}, text);
    ASSERT_TRUE(lines.ok()) << lines.status().message();
    const auto suite = ParseSuite(*lines, "f");
    ASSERT_TRUE(suite.ok()) << suite.status().message();
    for (const EvalQuestion& question : *suite) {
      EXPECT_TRUE(IsRight(question.answers, question.messages[0]["content"].get<std::string>()));
    }
  }
  EXPECT_THAT(Make({1, {512}, {"needle"}, 1}, "short").status().message(),
              HasSubstr("--text: got 2 tokens, need 1024 or more"));
  EXPECT_FALSE(Make({1, {512}, {"needle"}, 1}, "\xff\xfe").ok());
  EXPECT_EQ(Make({1, {100}, {"needle"}, 1}, words).status().message(),
            "--lengths: got 100, need 256 to 4194304 tokens");
  EXPECT_EQ(Make({1, {512}, {"needles"}, 1}, words).status().message(),
            "--tasks: got needles, need of needle, multi_key, multi_value, key_value, lines, bios");
}

TEST(HideFactsTest, FactsStandBehindSentences) {
  const std::string text = "One. Two! \"Three?\" Four\n\nFive";
  const std::vector<std::string> facts = {"F1.", "F2.", "F3.", "F4.", "F5."};
  for (uint64_t seed = 0; seed < 20; ++seed) {
    std::string hidden = HideFacts(text, facts, seed);
    for (const std::string& fact : facts) {
      const size_t at = hidden.find(" " + fact);
      ASSERT_NE(at, std::string::npos) << hidden;
      hidden.erase(at, fact.size() + 1);
    }
    EXPECT_EQ(hidden, text);
  }
  EXPECT_EQ(HideFacts("One. Two", {"F."}, 1), "One. F. Two");
  EXPECT_EQ(HideFacts("\n\nOne", {"F."}, 1), "\n\n F.One");
}

TEST(MakeFactsTest, TheWordingOfTheSharedSuite) {
  const struct {
    const char* task;
    int64_t number;
    const char* fact;
    const char* question;
  } kCases[] = {
      {"lines", 0, "line [a-z]+-[a-z]+: REGISTER_CONTENT is <[0-9]{5}>",
       "Tell me what is the REGISTER_CONTENT in line [a-z-]+\\."},
      {"needle", 0,
       "The pass key for [a-z-]+ is ([0-9]{5})\\. Remember it\\. \\1 is the pass key\\.",
       "(What is the pass key for [a-z-]+\\?|Which pass key belongs to [a-z-]+\\?)"},
      {"needle", 1, "The [a-z]+ [a-z]+ is kept in the [a-z ]+\\.",
       "(Where|In which room) is the [a-z]+ [a-z]+ kept\\?"},
      {"key_value", 0, "\"[0-9a-f]{8}\": \"[0-9a-f]{8}\",",
       "(What is the value of key|Extract the value for the key) \"[0-9a-f]{8}\"[?.]"},
      {"key_value", 1, "[a-z]+\\.[a-z]+ = [0-9]+",
       "(What is the value of [a-z.]+\\?|What is [a-z.]+ set to\\?)"},
      {"multi_key", 0,
       "One of the special magic (number|uuid|word)s for [a-z0-9-]+ is: [a-z0-9-]+\\.",
       "(Tell me|What is) the special magic (number|uuid|word) for [a-z0-9-]+"
       "( mentioned in the provided text\\?|\\?|\\.)"},
      {"multi_value", 0,
       "One of the special magic (number|uuid|word)s for [a-z0-9-]+ is: [a-z0-9-]+\\.",
       "(List|What are) all the special magic (number|uuid|word)s for [a-z0-9-]+"
       "( mentioned in the provided text\\?|\\.)"},
      {"bios", 0,
       "([A-Z][a-z]+ ){2}.*\\.|[A-Z][a-z]+ [A-Z][a-z]+'s favorite color is [a-z]+\\.|"
       "The phone number of [A-Z][a-z]+ [A-Z][a-z]+ is [0-9]{3}-[0-9]{4}\\.",
       "[A-Z].*[A-Z][a-z]+ [A-Z][a-z]+.*\\?"},
  };
  Random random(5);
  for (const auto& one : kCases) {
    for (int i = 0; i < 20; ++i) {
      const FactSheet sheet = MakeFacts(one.task, 3, one.number, random);
      EXPECT_TRUE(std::regex_match(sheet.facts[0], std::regex(one.fact))) << sheet.facts[0];
      EXPECT_TRUE(std::regex_match(sheet.question, std::regex(one.question))) << sheet.question;
    }
  }
}

}  // namespace
}  // namespace lacuna::server
