#include "server/metrics/metrics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <sstream>

namespace lacuna::server {
namespace {

// Family names of an exposition, from its TYPE lines.
std::set<std::string> Families(const std::string& text) {
  std::set<std::string> names;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash, type, name;
    words >> hash >> type >> name;
    if (hash != "#" || type != "TYPE") continue;
    EXPECT_TRUE(names.insert(name).second) << name;
  }
  return names;
}

class MetricsTest : public ::testing::Test {
 protected:
  engine::EngineStats stats_;
  Metrics metrics_{"tiny", [this] { return EngineReading{&stats_, {{100, 60, 30, 10}}, 64}; }};
};

TEST_F(MetricsTest, TableIsWhatIsServedFromTheFirstScrapeOn) {
  std::set<std::string> table;
  for (const MetricRow& row : MetricTable()) table.insert(std::string(row.name));
  EXPECT_EQ(Families(metrics_.Scrape()), table);
}

TEST_F(MetricsTest, Values) {
  engine::Usage usage{.prompt_tokens = 7, .cached_tokens = 0, .completion_tokens = 3, .sparse = {}};
  const TimePoint start{};
  const engine::Timing timing{start, start, start + std::chrono::seconds(1),
                              start + std::chrono::seconds(3)};
  metrics_.ObserveEnd(EndReason::kStop, usage, timing);
  metrics_.ObserveAbort();
  const std::string text = metrics_.Scrape();
  const auto has = [&text](const std::string& line) {
    EXPECT_NE(text.find(line), std::string::npos) << line;
  };
  has("vllm:request_success_total{engine=\"0\",finished_reason=\"stop\",model_name=\"tiny\"} 1");
  has("vllm:request_success_total{engine=\"0\",finished_reason=\"abort\",model_name=\"tiny\"} 1");
  has("vllm:request_time_per_output_token_seconds_sum{engine=\"0\",model_name=\"tiny\"} 1");
  has("lacuna_kv_pages{group=\"0\",state=\"cached\"} 10");
  has("vllm:kv_cache_usage_perc{model_name=\"tiny\",engine=\"0\"} 0.3");
}

TEST_F(MetricsTest, WhatSparseAttentionReadAndMissed) {
  stats_.sparse.sparse_steps = 3;
  stats_.sparse.pages_considered = 100;
  stats_.sparse.pages_selected = 9;
  stats_.sparse.group_audits[2] = 2;
  stats_.sparse.captured_mass[2] = 1.75;
  stats_.sparse.budgets_widened = 1;
  const std::string text = metrics_.Scrape();
  for (const char* line :
       {"lacuna_sparse_decode_steps_total{kind=\"sparse\"} 3",
        "lacuna_sparse_decode_steps_total{kind=\"dense\"} 0",
        "lacuna_sparse_pages_considered_total 100", "lacuna_sparse_pages_selected_total 9",
        "lacuna_sparse_audits_total{layer_group=\"last\"} 2",
        "lacuna_sparse_captured_mass_sum_total{layer_group=\"last\"} 1.75",
        "lacuna_sparse_output_error_sum_total{layer_group=\"first\"} 0",
        "lacuna_sparse_budgets_widened_total 1"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line;
  }
}

TEST_F(MetricsTest, SeriesDoNotGrowWithRequests) {
  metrics_.ObserveHttp("/v1/completions", "POST", 200);
  const size_t before = Families(metrics_.Scrape()).size();
  const auto lines = [this] {
    const std::string text = metrics_.Scrape();
    return std::count(text.begin(), text.end(), '\n');
  };
  const auto count = lines();
  for (int i = 0; i < 1000; ++i) metrics_.ObserveHttp("/v1/completions", "POST", 200);
  EXPECT_EQ(lines(), count);
  EXPECT_EQ(Families(metrics_.Scrape()).size(), before);
}

}  // namespace
}  // namespace lacuna::server
