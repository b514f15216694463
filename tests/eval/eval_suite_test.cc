// Suites, scoring, variants and records of an evaluation.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "server/eval/record.h"
#include "server/eval/reference.h"
#include "server/eval/runner.h"
#include "server/eval/suite.h"
#include "server/eval/variants.h"

namespace lacuna::server {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string Line(const std::string& id, const std::string& task, int tokens) {
  return R"({"id":")" + id + R"(","task":")" + task + R"(","context_tokens":)" +
         std::to_string(tokens) +
         R"(,"messages":[{"role":"user","content":"q"}],"answers":["1","two"],"other":3})" + "\n";
}

TEST(EvalSuite, RightNeedsEveryAnswer) {
  const std::vector<std::string> answers = {"pony", "Olive"};
  EXPECT_TRUE(IsRight(answers, "Ida Silva owns a pony named Olive."));
  EXPECT_FALSE(IsRight(answers, "Ida Silva owns a pony."));
  EXPECT_FALSE(IsRight(answers, ""));
}

TEST(EvalSuite, LinesAreCheckedAndNamed) {
  const auto suite = ParseSuite(Line("a", "x", 100) + "\n" + Line("b", "y", 200), "f");
  ASSERT_TRUE(suite.ok()) << suite.status().message();
  ASSERT_EQ(suite->size(), 2u);
  EXPECT_EQ((*suite)[1].task, "y");
  EXPECT_EQ((*suite)[1].context_tokens, 200);
  EXPECT_THAT((*suite)[0].answers, ElementsAre("1", "two"));
  EXPECT_EQ((*suite)[0].messages[0]["content"], "q");

  const auto message = [](const std::string& text) {
    return ParseSuite(text, "f").status().message();
  };
  EXPECT_EQ(message(""), "f: got no questions, need one in each line");
  EXPECT_THAT(message(Line("a", "x", 1) + Line("a", "x", 1)),
              HasSubstr("f: line 2: id: got \"a\""));
  EXPECT_THAT(message("[]\n"), HasSubstr("f: line 1: got no JSON object"));
  EXPECT_THAT(message("{\n"), HasSubstr("f: line 1: line 1, column"));
  EXPECT_THAT(message(Line("", "x", 1)), HasSubstr("line 1: id: got"));
  EXPECT_THAT(message(Line("a", "x", 0)), HasSubstr("context_tokens: got 0, need 1 to"));
  EXPECT_THAT(message(R"({"id":"a","task":"x","context_tokens":9,"messages":[1],"answers":[""]})"),
              HasSubstr("answers: got \"\", need texts that are not empty"));
  EXPECT_THAT(message(R"({"id":"a","task":"x","context_tokens":9,"answers":["1"]})"),
              HasSubstr("messages: got no list"));
  EXPECT_THAT(message(std::string(1000, '[')), HasSubstr("f: line 1:"));  // too deep
}

TEST(EvalSuite, ALimitTakesTasksAndLengthsInTurn) {
  std::string text;
  for (const char* task : {"x", "y"}) {
    for (int i = 0; i < 3; ++i) {
      text += Line(std::string(task) + "1-" + std::to_string(i), task, 100);
      text += Line(std::string(task) + "2-" + std::to_string(i), task, 200);
    }
  }
  const auto ids = [&](const EvalChoice& choice) {
    std::vector<std::string> names;
    const auto chosen = ChooseQuestions(*ParseSuite(text, "f"), choice);
    EXPECT_TRUE(chosen.ok()) << chosen.status().message();
    for (const EvalQuestion& question : *chosen) names.push_back(question.id);
    return names;
  };
  EXPECT_THAT(ids({{}, {}, 4}), ElementsAre("x1-0", "x2-0", "y1-0", "y2-0"));
  EXPECT_THAT(ids({{200}, {"y"}, 2}), ElementsAre("y2-0", "y2-1"));
  EXPECT_EQ(ids({}).size(), 12u);
  EXPECT_EQ(ChooseQuestions(*ParseSuite(text, "f"), {{300}, {}, 0}).status().message(),
            "--lengths: got 300, need one of 100, 200");
  EXPECT_EQ(ChooseQuestions(*ParseSuite(text, "f"), {{}, {"z"}, 0}).status().message(),
            "--tasks: got z, need one of x, y");
}

TEST(EvalVariants, BudgetsWhereThereIsADial) {
  const auto served = ParseServedProfiles(R"({"data":[
      {"id":"quest","dials":[{"name":"budget_tokens"},{"name":"budget_fraction"}]},
      {"id":"both","dials":[{"name":"budget_fraction"},{"name":"prefill_fraction"},
                            {"name":"prefill_sink_tokens"}]},
      {"id":"mixed","dials":[{"name":"budget_fraction"},{"name":"prefill_sink_tokens"}]},
      {"id":"fixed","dials":[]}],
      "left_out":[{"id":"moa","reason":"spans: got nothing"}]})");
  ASSERT_TRUE(served.ok());
  const std::vector<double> fractions = {0.1, 0.05};
  const std::vector<std::string> all = {"all"};
  const auto plan = PlanVariants(all, fractions, *served);
  ASSERT_TRUE(plan.ok());
  std::map<std::string, std::string> bodies;
  for (const EvalVariant& variant : plan->variants) bodies[variant.label] = variant.sparse.dump();
  EXPECT_EQ(plan->variants[0].label, "dense");
  EXPECT_EQ(bodies.size(), 11u);
  EXPECT_EQ(bodies["dense"], R"({"profile":"dense","usage":true})");
  EXPECT_EQ(bodies["quest 5 %"], R"({"profile":"quest","usage":true,"budget_fraction":0.05})");
  EXPECT_EQ(bodies["both 10 %"],
            R"({"profile":"both","usage":true,"budget_fraction":0.1,"prefill_fraction":0.1})");
  EXPECT_FALSE(bodies.contains("fixed 10 %"));
  EXPECT_THAT(plan->notes,
              ElementsAre(HasSubstr("at their defaults only: fixed."),
                          HasSubstr("prefill at its default: mixed."), HasSubstr("moa (spans")));

  const std::vector<std::string> unknown = {"qest"}, left = {"moa"};
  EXPECT_EQ(PlanVariants(unknown, {}, *served).status().message(),
            "--profiles: got qest, need of all, dense, both, fixed, mixed, quest");
  EXPECT_THAT(PlanVariants(left, {}, *served).status().message(), HasSubstr("spans: got nothing"));
  // A server of another kind: dense without our field.
  const std::vector<std::string> dense = {"dense"};
  EXPECT_TRUE(PlanVariants(dense, {}, {})->variants[0].sparse.is_null());
  EXPECT_FALSE(ParseServedProfiles("no").ok());
}

TEST(EvalRecords, UsageIsReadAndLinesComeBackEqual) {
  const auto usage = nlohmann::json::parse(R"({"prompt_tokens":100,"completion_tokens":9,
      "prompt_tokens_details":{"cached_tokens":64},
      "sparse":{"profile":"quest","steps":{"dense":1,"sparse":7},
                "pages":{"considered":80,"selected":8},
                "prefill_blocks":{"considered":10,"selected":4},
                "mass":{"estimated":null,"audited":[0.9,1.0,0.8],"output_error":null},
                "audited_steps":3,"budget_widened":0}})");
  EvalRecord record{.question = "q\"1\n",
                    .task = "t",
                    .variant = "quest",
                    .context_tokens = 128,
                    .error = {},
                    .right = true,
                    .text = "\xc3\xa9"};
  ReadUsage(usage, record);
  EXPECT_EQ(record.cached_tokens, 64);
  EXPECT_EQ(record.sparse_steps, 7);
  EXPECT_EQ(record.pages_selected, 8);
  EXPECT_EQ(record.blocks_considered, 10);
  EXPECT_NEAR(record.captured_mass, 0.9, 1e-12);
  EXPECT_FALSE(record.prefilled());
  record.ttft_s = 0.125;
  const auto again = ParseRecord(RecordJson(record).dump());
  ASSERT_TRUE(again.ok()) << again.status().message();
  EXPECT_EQ(*again, record);
  EXPECT_FALSE(ParseRecord("{}").ok());
  EXPECT_THAT(ParseRecord(R"({"question": 5})").status().message(), HasSubstr("question: got 5"));
  EvalRecord bare;
  ReadUsage(nlohmann::json::parse(R"({"sparse":{"mass":{"audited":null}}})"), bare);
  EXPECT_EQ(bare, EvalRecord{});
}

TEST(EvalReferenceTest, CountsOnlyWhatWasAsked) {
  const auto reference = ParseReference(R"({"a@100": 0.5, "b@100": 1.0, "a@200": 1.0})", "f");
  ASSERT_TRUE(reference.ok());
  EvalReport report;
  report.cells[{"dense", 100}].tasks["a"] = {.right = 1, .count = 4};
  report.cells[{"dense", 100}].tasks["b"] = {.right = 4, .count = 4};
  const ReferenceVerdict verdict = CompareWithReference(report, *reference);
  EXPECT_EQ(verdict.count, 8);
  EXPECT_DOUBLE_EQ(verdict.expected, 6);
  EXPECT_DOUBLE_EQ(verdict.missing_points(), 12.5);
  for (const char* bad :
       {R"({"a": 1})", R"({"a@x": 1})", R"({"a@1": 2})", R"({"a@1": "1"})", "["}) {
    EXPECT_FALSE(ParseReference(bad, "f").ok()) << bad;
  }
}

TEST(EvalProgressTest, LongPromptsWeighMore) {
  const auto suite = ParseSuite(Line("a", "x", 2048) + Line("b", "x", 32768), "f");
  EvalProgress progress(*suite, 1);
  progress.Add(2048, true, 1.0);
  EXPECT_GT(progress.remaining_s(1.0), 20);
  EXPECT_THAT(progress.Bar(0, 1.0), HasSubstr("1/2, 0 failed, 1 s, "));
  progress.Add(32768, true, 30.0);
  EXPECT_EQ(progress.remaining_s(30.0), 0);
}

}  // namespace
}  // namespace lacuna::server
