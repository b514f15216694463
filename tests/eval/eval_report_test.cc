// Figures, tables and the page of an evaluation.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

#include "server/eval/figures.h"
#include "server/eval/html_report.h"
#include "server/eval/plot.h"
#include "server/eval/tables.h"

namespace lacuna::server {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

EvalRecord Answer(const std::string& question, const std::string& variant, bool right,
                  double ttft_s, double decode_s) {
  return {.question = question,
          .task = question.substr(0, 1),
          .variant = variant,
          .context_tokens = 8192,
          .error = {},
          .right = right,
          .text = {},
          .prompt_tokens = 8000,
          .completion_tokens = 11,
          .ttft_s = ttft_s,
          .decode_s = decode_s};
}

// dense: a0 right, a1 wrong, b0 right. fast: a0 wrong, a1 right, b0 right at twice the speed.
std::vector<EvalRecord> Answers() {
  std::vector<EvalRecord> records = {
      Answer("a0", "dense", true, 4.0, 1.0), Answer("a1", "dense", false, 4.0, 1.0),
      Answer("b0", "dense", true, 6.0, 1.0), Answer("a0", "fast", false, 2.0, 0.5),
      Answer("a1", "fast", true, 1.0, 0.5),  Answer("b0", "fast", true, 0.1, 0.5)};
  for (size_t i = 3; i < 6; ++i) {
    records[i].pages_considered = 100;
    records[i].pages_selected = 5 * static_cast<int64_t>(i - 2);
    records[i].blocks_considered = 1000;
    records[i].blocks_selected = 250;
    records[i].audited_steps = static_cast<int64_t>(i - 3);
    records[i].captured_mass = i == 4 ? 0.7 : 1.0;
  }
  records[5].cached_tokens = 7000;  // so its TTFT and blocks tell nothing about prefill
  records[5].blocks_selected = 1000;
  return records;
}

EvalPlan Plan() {
  return {{{"dense", "dense", 0, nullptr}, {"fast", "fast", 0, {{"profile", "fast"}}}}, {"a note"}};
}

TEST(EvalReportTest, FiguresOfARun) {
  const EvalReport report = MakeEvalReport(Answers(), Plan());
  EXPECT_THAT(report.lengths, ElementsAre(8192));
  EXPECT_THAT(report.tasks, ElementsAre("a", "b"));
  const EvalFigures& dense = *report.Find("dense", 8192);
  EXPECT_EQ(dense.all.right, 2);
  EXPECT_FALSE(dense.decode_read);
  EXPECT_DOUBLE_EQ(*dense.ttft_s, 4.0);
  EXPECT_DOUBLE_EQ(*dense.decode_tokens_per_s, 10.0);
  const EvalFigures& fast = *report.Find("fast", 8192);
  EXPECT_EQ(fast.all.count, 3);
  EXPECT_EQ(fast.tasks.at("a").right, 1);
  EXPECT_EQ(fast.lost, 1);
  EXPECT_EQ(fast.gained, 1);
  EXPECT_DOUBLE_EQ(*fast.decode_read, 30.0 / 300);
  EXPECT_DOUBLE_EQ(*fast.prefill_read, 0.25);
  EXPECT_DOUBLE_EQ(*fast.captured_mass, (0.7 + 2 * 1.0) / 3);
  EXPECT_DOUBLE_EQ(*fast.ttft_s, 1.5);        // of a0 and a1; b0 was cached
  EXPECT_DOUBLE_EQ(*fast.ttft_speedup, 3.0);  // the median of 2 and 4
  EXPECT_DOUBLE_EQ(*fast.decode_speedup, 2.0);
  EXPECT_EQ(report.Find("fast", 0)->all.right, 2);
  EXPECT_EQ(report.Find("other", 0), nullptr);
}

TEST(EvalReportTest, FailuresCountForNothingElse) {
  std::vector<EvalRecord> records = Answers();
  records[3].error = "http 503: busy";
  records.push_back(Answer("a0", "not asked for", true, 1, 1));
  const EvalReport report = MakeEvalReport(records, Plan());
  EXPECT_EQ(report.Find("fast", 8192)->all.count, 2);
  EXPECT_THAT(report.failures, ElementsAre("a0, fast: http 503: busy"));
  EXPECT_EQ(report.variants.size(), 2u);
  const EvalReport none = MakeEvalReport({}, Plan());
  EXPECT_TRUE(none.variants.empty());
  EXPECT_THAT(EvalHtml(none), HasSubstr("</html>"));
  EXPECT_EQ(EvalText(none), "a note\n");
}

TEST(EvalReportTest, TextMarkdownAndJson) {
  const EvalReport report = MakeEvalReport(Answers(), Plan());
  const std::string text = EvalText(report);
  EXPECT_THAT(text, HasSubstr("Right and cost, 8192 tokens\n"));
  EXPECT_THAT(text, HasSubstr("2 of 3   66.7"));
  EXPECT_THAT(text, HasSubstr("1, 1         10.0 %"));
  EXPECT_THAT(EvalMarkdown(report), HasSubstr("| fast | 2 of 3 | 66.7 | 1, 1 | 10.0 % | 25.0 % | "
                                              "1500 | 3.00x | 20 | 2.00x | 0.900 |\n"));
  const auto json = EvalReportJson(report);
  EXPECT_EQ(json["variants"][1]["lengths"]["8192"]["lost"], 1);
  EXPECT_TRUE(json["variants"][0]["all"]["decode_read"].is_null());
}

// Every tag closed in order, every value quoted: what a browser needs no mercy for.
void ExpectWellFormed(const std::string& html) {
  const std::regex tag(R"(<(/?)([a-z][a-z0-9]*)((?:\s+[a-zA-Z0-9-]+(?:="[^"<>]*")?)*)\s*(/?)>)");
  const std::set<std::string> empty = {"meta", "br"};
  std::vector<std::string> open;
  size_t at = html.find("<html"), seen = 0;
  std::smatch match;
  for (auto it = std::sregex_iterator(html.begin() + static_cast<long>(at), html.end(), tag);
       it != std::sregex_iterator(); ++it) {
    ++seen;
    const std::string name = (*it)[2];
    if (empty.contains(name) || (*it)[4] == "/") continue;
    if ((*it)[1] != "/") {
      open.push_back(name);
      continue;
    }
    ASSERT_FALSE(open.empty()) << name;
    ASSERT_EQ(open.back(), name);
    open.pop_back();
  }
  EXPECT_TRUE(open.empty()) << open.back();
  EXPECT_EQ(static_cast<size_t>(std::count(html.begin() + static_cast<long>(at), html.end(), '<')),
            seen);
}

TEST(EvalHtmlTest, WellFormedSelfContainedAndEscaped) {
  EvalPlan plan = Plan();
  plan.variants[1].label = "<b onload=\"x\">&'";
  plan.notes = {"<script>alert(1)</script>"};
  std::vector<EvalRecord> records = Answers();
  for (EvalRecord& record : records) {
    if (record.variant == "fast") record.variant = plan.variants[1].label;
    if (record.task == "a") record.task = "a<i>";
  }
  records[0].error = "http 500: <img src=x>";
  EvalReport report = MakeEvalReport(records, plan);
  report.model = "m</title>";
  const std::string html = EvalHtml(report);
  ExpectWellFormed(html);
  for (const char* foreign : {"http://", "https://", "//cdn", "src=", "href=", "@import", "url(",
                              "<script", "<link", "<b onload", "<img", "<i>"}) {
    if (std::string(foreign) == "src=") {
      EXPECT_THAT(html, HasSubstr("&lt;img src=x&gt;"));  // as text
      continue;
    }
    EXPECT_THAT(html, Not(HasSubstr(foreign)));
  }
  EXPECT_THAT(html, HasSubstr("&lt;b onload=&quot;x&quot;&gt;&amp;&#39;"));
  EXPECT_THAT(html, HasSubstr("prefers-color-scheme: dark"));
  EXPECT_THAT(html, HasSubstr("<svg viewBox"));
}

TEST(EvalHtmlTest, PointsStandWhereTheirNumbersAre) {
  Plot plot{.title = "t", .x_name = "x", .y_min = 0, .y_max = 100, .y_unit = " %", .points = {}};
  plot.points = {{"all", 1.0, 100, "a", 0, 1},
                 {"tenth", 0.1, 0, "b", 0, 2},
                 {"little", 0.0001, 50, "c", 1, 0}};
  const std::string svg = PlotSvg(plot);
  ExpectWellFormed("<html>" + svg + "</html>");
  EXPECT_THAT(svg, HasSubstr("cx=\"436.0\" cy=\"34.0\""));   // right and top edge
  EXPECT_THAT(svg, HasSubstr("cx=\"244.0\" cy=\"276.0\""));  // the middle of 1 % .. 100 %, bottom
  EXPECT_THAT(svg, HasSubstr("<title>little</title><polygon points=\"52.0,"));  // on the edge
}

}  // namespace
}  // namespace lacuna::server
