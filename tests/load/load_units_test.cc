// The pure parts of the load test: distributions, schedules, percentiles, parsers, SLOs, config.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "bench/load/load_config.h"
#include "bench/load/report.h"
#include "bench/load/schedule.h"
#include "bench/load/server_metrics.h"
#include "server/client/answer_reader.h"
#include "server/client/sse_parser.h"
#include "server/client/url.h"

namespace lacuna::bench {
namespace {

using server::AnswerReader;
using server::ParseUrl;
using server::SseParser;

TEST(Schedule, DistributionsHaveTheirMomentsAndBounds) {
  constexpr int kDraws = 200'000;
  Random random(1);
  const Distribution log{"lognormal", 300, 200, 1, 1 << 20};
  double sum = 0, squares = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double value = static_cast<double>(Draw(log, random));
    sum += value;
    squares += value * value;
  }
  const double mean = sum / kDraws;
  EXPECT_NEAR(mean, 300, 5);
  EXPECT_NEAR(std::sqrt(squares / kDraws - mean * mean), 200, 10);
  const Distribution uniform{"uniform", 0, 0, 3, 6};
  std::vector<int> seen(8, 0);
  for (int i = 0; i < 40'000; ++i) ++seen[static_cast<size_t>(Draw(uniform, random))];
  for (size_t value = 0; value < seen.size(); ++value) {
    EXPECT_NEAR(seen[value], value >= 3 && value <= 6 ? 10'000 : 0, 500) << value;
  }
  EXPECT_EQ(Draw({"fixed", 128, 0, 1, 1000}, random), 128);
  EXPECT_EQ(Draw({"fixed", 128, 0, 1, 100}, random), 100);
}

TEST(Schedule, ArrivalsFollowTheirMode) {
  LoadConfig config;
  config.arrival.rate_per_s = 10;
  config.arrival.mode = "constant";
  const auto constant = MakeSchedule(config, 11, 0);
  EXPECT_NEAR(constant[10].due_s, 1.0, 1e-9);
  config.arrival.mode = "poisson";
  const auto poisson = MakeSchedule(config, 20'001, 0);
  EXPECT_NEAR(poisson.back().due_s, 2000, 60);  // 4 sigma
  int short_gaps = 0;
  for (size_t i = 1; i < poisson.size(); ++i) {
    const double gap = poisson[i].due_s - poisson[i - 1].due_s;
    EXPECT_GE(gap, 0);
    short_gaps += gap < 0.1;
  }
  EXPECT_NEAR(short_gaps / 20'000.0, 1 - std::exp(-1.0), 0.02);  // exponential, not uniform
  config.arrival.mode = "closed";
  EXPECT_EQ(MakeSchedule(config, 5, 0)[4].due_s, 0);
}

TEST(Schedule, SeedDecidesEverythingAndCancelRateOnlyCancels) {
  LoadConfig config;
  config.prompt_tokens = {"uniform", 0, 0, 1, 1000};
  const auto a = MakeSchedule(config, 10'000, 0);
  config.arrival.cancel_rate = 0.2;
  const auto b = MakeSchedule(config, 10'000, 0);
  int cancelled = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].prompt_tokens, b[i].prompt_tokens);
    ASSERT_EQ(a[i].prompt_seed, b[i].prompt_seed);
    EXPECT_FALSE(a[i].cancel_after);
    cancelled += b[i].cancel_after.has_value();
  }
  EXPECT_NEAR(cancelled, 2000, 160);
  EXPECT_EQ(PromptIds(config, a[0]), PromptIds(config, b[0]));
  config.seed = 2;
  EXPECT_NE(MakeSchedule(config, 1, 0)[0].prompt_seed, a[0].prompt_seed);
}

TEST(Schedule, PromptsShareTheirHeadOnly) {
  LoadConfig config;
  config.request.shared_prefix_tokens = 10;
  config.request.vocab_min = 5;
  config.request.vocab_max = 500;
  const auto a = PromptIds(config, {0, 50, 1, 1, {}}), b = PromptIds(config, {0, 50, 1, 2, {}});
  ASSERT_EQ(a.size(), 50u);
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 10, b.begin()));
  EXPECT_NE(a[10], b[10]);
  EXPECT_GE(*std::min_element(a.begin(), a.end()), 5);
  EXPECT_LT(*std::max_element(a.begin(), a.end()), 500);
}

TEST(Report, PercentilesAreNumpys) {
  EXPECT_EQ(Percentile({}, 50), 0);
  EXPECT_EQ(Percentile({7}, 99), 7);
  EXPECT_DOUBLE_EQ(Percentile({1, 2, 3, 4}, 50), 2.5);
  EXPECT_DOUBLE_EQ(Percentile({1, 2, 3, 4}, 90), 3.7);
  std::vector<double> hundred(101);
  std::iota(hundred.begin(), hundred.end(), 0.0);
  EXPECT_DOUBLE_EQ(FiguresOf(hundred).p99, 99);
  EXPECT_DOUBLE_EQ(FiguresOf({3, 1, 2}).mean, 2);
}

Sample Completed(double ttft_s, double e2el_s, int64_t tokens) {
  Sample sample;
  sample.end = Sample::End::kCompleted;
  sample.input_tokens = 10;
  sample.output_tokens = tokens;
  sample.ttft_s = ttft_s;
  sample.e2el_s = e2el_s;
  return sample;
}

TEST(Report, FiguresAndSlos) {
  LoadConfig config;
  config.slo.ttft_ms = 150;
  config.slo.p99_ttft_ms = 150;
  config.slo.goodput_min = 0.6;
  Sample failed, cancelled;
  failed.error = "http 503";
  cancelled.end = Sample::End::kCancelled;
  const Report report =
      MakeReport(config, {Completed(0.1, 0.5, 5), Completed(0.2, 0.2, 1), failed, cancelled}, 2.0);
  EXPECT_EQ(report.completed, 2);
  EXPECT_EQ(report.failed, 1);
  EXPECT_EQ(report.cancelled, 1);
  EXPECT_EQ(report.total_output_tokens, 6);
  EXPECT_DOUBLE_EQ(report.request_throughput, 1.0);
  EXPECT_DOUBLE_EQ(report.request_goodput, 0.5);
  EXPECT_DOUBLE_EQ(report.total_token_throughput, 13.0);
  EXPECT_DOUBLE_EQ(report.ttft_ms.mean, 150);
  EXPECT_DOUBLE_EQ(report.tpot_ms.mean, 100);  // the one-token answer has none
  ASSERT_EQ(report.slo_missed.size(), 3u);
  EXPECT_EQ(report.slo_missed[0], "p99_ttft_ms: got 199, need at most 150");
  EXPECT_EQ(report.slo_missed[1], "goodput_min: got 0.5, need at least 0.6");
  EXPECT_EQ(report.slo_missed[2], "error_rate_max: got 0.25, need at most 0");
  EXPECT_FALSE(report.invalid);
  const nlohmann::ordered_json json = ReportJson(config, report);
  for (const char* name :
       {"completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput",
        "request_goodput", "output_throughput", "total_token_throughput", "mean_ttft_ms",
        "median_tpot_ms", "p90_itl_ms", "p99_e2el_ms"}) {
    EXPECT_TRUE(json.contains(name)) << name;
  }
  EXPECT_TRUE(MakeReport(config, {}, 1).invalid);
  Sample late = Completed(1, 1, 1);
  late.send_lag_s = 5;
  EXPECT_TRUE(MakeReport(config, {late}, 1).invalid);
}

TEST(Sse, AnyCutGivesTheSameEvents) {
  const std::string text =
      ": ping\n\ndata: one\r\n\r\nevent: x\ndata:two\ndata: lines\n\n\ndata: [DONE]\n\ndata: half";
  const std::vector<std::string> expected = {"one", "two\nlines", "[DONE]"};
  for (size_t size = 1; size <= text.size(); ++size) {
    SseParser parser;
    std::vector<std::string> events;
    for (size_t at = 0; at < text.size(); at += size) {
      parser.Push(std::string_view(text).substr(at, size));
      while (auto event = parser.Next()) events.push_back(*event);
    }
    EXPECT_EQ(events, expected) << size;
  }
}

TEST(AnswerReaderTest, EveryEnd) {
  const std::string text = R"(data: {"choices":[{"text":"a","finish_reason":null}]})"
                           "\n\n";
  const std::string stop = R"(data: {"choices":[{"text":"","finish_reason":"stop"}]})"
                           "\n\n";
  const std::string usage =
      R"(data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":9}})"
      "\n\n";
  const std::string done = "data: [DONE]\n\n";
  const auto read = [](unsigned status, bool stream, bool chat, const std::string& body) {
    AnswerReader reader(status, stream, chat);
    reader.Push(body);
    reader.Finish();
    return reader;
  };
  const AnswerReader good = read(200, true, false, text + text + stop + usage + done);
  EXPECT_EQ(good.error(), "");
  EXPECT_EQ(good.pieces(), 2);
  EXPECT_EQ(good.output_tokens(), 9);
  EXPECT_EQ(read(200, true, false, text + stop + done).output_tokens(), 1);
  EXPECT_EQ(read(200, true, false, text + stop).error(), "truncated");
  EXPECT_EQ(read(200, true, false, text + done).error(), "truncated");
  EXPECT_EQ(read(200, true, false, text + "data: {\"error\":{}}\n\n" + done).error(),
            "stream error");
  EXPECT_EQ(read(200, true, false, "data: [1\n\n").error(), "bad answer");
  EXPECT_EQ(read(503, true, false, "{}").error(), "http 503");
  EXPECT_EQ(read(200, false, true,
                 R"({"choices":[{"message":{"content":"hi"},"finish_reason":"length"}]})")
                .error(),
            "");
  EXPECT_EQ(read(200, false, false, "{\"choices\"").error(), "bad answer");
}

TEST(ServerMetrics, LostAndLeaked) {
  const std::string page =
      "# HELP x y\nlacuna_kv_pages{group=\"0\",state=\"free\"} 90\n"
      "lacuna_kv_pages{group=\"0\",state=\"used\"} "
      "0\nlacuna_kv_pages{group=\"0\",state=\"cached\"} "
      "10\nlacuna_kv_pages{group=\"0\",state=\"total\"} 100\n"
      "lacuna_requests_submitted_total 50\n"
      "vllm:request_success_total{finished_reason=\"stop\"} 30\n"
      "vllm:request_success_total{finished_reason=\"abort\"} 20\n"
      "lacuna_plan_seconds_bucket{le=\"0.0005\"} 98\nlacuna_plan_seconds_bucket{le=\"0.001\"} 99\n"
      "lacuna_plan_seconds_bucket{le=\"+Inf\"} 100\ngarbage\nx NaN\n";
  ServerFigures after = ParseMetrics(page);
  ASSERT_TRUE(after.known);
  EXPECT_DOUBLE_EQ(after.plan_p99_ms, 1.0);
  EXPECT_EQ(Compare({}, after).lost, 0);
  EXPECT_EQ(Compare({}, after).leaked_pages, 0);
  after.submitted += 2;
  after.pages_free -= 3;
  EXPECT_EQ(Compare({}, after).lost, 2);
  EXPECT_EQ(Compare({}, after).leaked_pages, 3);
  after.pages_used = 3;  // accounted for, but held while idle
  EXPECT_EQ(Compare({}, after).leaked_pages, 3);
  EXPECT_FALSE(ParseMetrics("vllm:num_requests_running 1").known);
}

TEST(UrlTest, Forms) {
  EXPECT_EQ(ParseUrl("http://h:81/base/").value().base, "/base");
  EXPECT_EQ(ParseUrl("http://[::1]:81").value().host, "::1");
  EXPECT_EQ(ParseUrl("http://h").value().port, "80");
  for (const char* bad : {"", "h:80", "https://h", "http://", "http://h:", "http://h:x",
                          "http://u@h", "http://h h", "http://h:123456"}) {
    EXPECT_FALSE(ParseUrl(bad).ok()) << bad;
  }
}

TEST(LoadConfigTest, ErrorsAllAtOnceAndShippedFilesLoad) {
  const LoadedLoadConfig bad = ParseLoadConfig(
      R"({"nam": 1, "arrival": {"mode": "open", "rate": 1}, "slo": 3,
          "prompt_tokens": {"min": 9, "max": 3}, "request": {"vocab_min": 600}})",
      "f");
  const std::vector<std::string> expected = {
      "f: nam: got an unknown key, need name (the nearest known key)",
      R"(f: arrival.mode: got "open", need one of closed, constant, poisson)",
      "f: arrival.rate: got an unknown key, need one of mode, concurrency, rate_per_s, "
      "requests_max, duration_ms, warmup_requests, cancel_rate",
      "f: slo: got no object, need an object",
      "f: prompt_tokens.min: got 9, need at most prompt_tokens.max (3)",
      "f: request.vocab_min: got 600, need less than request.vocab_max (512)"};
  EXPECT_EQ(bad.errors, expected);
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator("configs/bench")) {
    ++files;
    EXPECT_EQ(ReadLoadConfig(entry.path()).errors, std::vector<std::string>{}) << entry.path();
  }
  EXPECT_GE(files, 5);
}

}  // namespace
}  // namespace lacuna::bench
