#include "bench/load/server_metrics.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

namespace lacuna::bench {
namespace {

struct Line final {
  std::string_view name, labels;
  double value = 0;
};

std::optional<Line> ParseLine(std::string_view text) {
  if (text.empty() || text[0] == '#') return std::nullopt;
  Line line;
  const size_t brace = text.find('{'), close = text.rfind('}');
  const size_t space = close == std::string_view::npos ? text.find(' ') : text.find(' ', close);
  if (space == std::string_view::npos) return std::nullopt;
  if (brace != std::string_view::npos && brace < close && close < space) {
    line.name = text.substr(0, brace);
    line.labels = text.substr(brace + 1, close - brace - 1);
  } else {
    line.name = text.substr(0, space);
  }
  std::string_view number = text.substr(space + 1);
  if (number.starts_with("+")) number.remove_prefix(1);
  const auto result = std::from_chars(number.data(), number.data() + number.size(), line.value);
  if (result.ec != std::errc()) return std::nullopt;
  return line;
}

std::string_view Label(std::string_view labels, std::string_view name) {
  const std::string key = std::string(name).append("=\"");
  const size_t at = labels.find(key);
  if (at == std::string_view::npos) return "";
  const size_t begin = at + key.size();
  return labels.substr(begin, labels.find('"', begin) - begin);
}

void Take(const Line& line, ServerFigures& out, std::vector<std::pair<double, double>>& plan) {
  // A damaged figure must not become undefined behaviour.
  const double bounded = std::isfinite(line.value) ? std::clamp(line.value, -1e15, 1e15) : 0.0;
  const auto count = static_cast<int64_t>(bounded);
  if (line.name == "vllm:num_requests_running") out.running += count;
  if (line.name == "vllm:num_requests_waiting") out.waiting += count;
  if (line.name == "vllm:request_success_total") out.ended += count;
  if (line.name == "lacuna_requests_submitted_total") out.submitted += count;
  if (line.name == "lacuna_batch_sequences_max") out.batch_sequences_max = bounded;
  if (line.name == "lacuna_kv_pages") {
    out.known = true;
    const std::string_view state = Label(line.labels, "state");
    if (state == "total") out.pages_total += count;
    if (state == "free") out.pages_free += count;
    if (state == "used") out.pages_used += count;
    if (state == "cached") out.pages_cached += count;
  }
  if (line.name == "lacuna_plan_seconds_bucket") {
    const std::string_view edge = Label(line.labels, "le");
    double upper = std::numeric_limits<double>::infinity();
    if (edge != "+Inf") std::from_chars(edge.data(), edge.data() + edge.size(), upper);
    plan.emplace_back(upper, line.value);
  }
}

}  // namespace

ServerFigures ParseMetrics(std::string_view text) {
  ServerFigures out;
  std::vector<std::pair<double, double>> plan;  // upper edge, count up to it
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    if (const std::optional<Line> line = ParseLine(text.substr(0, end))) Take(*line, out, plan);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  std::sort(plan.begin(), plan.end());
  for (const auto& [upper, count] : plan) {
    if (count < 0.99 * plan.back().second) continue;
    out.plan_p99_ms = upper * 1e3;
    break;
  }
  return out;
}

ServerVerdict Compare(const ServerFigures& before, const ServerFigures& after) {
  ServerVerdict verdict;
  verdict.lost = (after.submitted - before.submitted) - (after.ended - before.ended) +
                 (before.running + before.waiting) - (after.running + after.waiting);
  const int64_t sum = after.pages_free + after.pages_used + after.pages_cached;
  const int64_t missing = after.pages_total > 0 ? after.pages_total - sum : 0;
  verdict.leaked_pages = std::abs(missing) + (after.idle() ? after.pages_used : 0);
  return verdict;
}

nlohmann::ordered_json ServerJson(const ServerFigures& after, const ServerVerdict& verdict) {
  return {{"lost_requests", verdict.lost},
          {"leaked_pages", verdict.leaked_pages},
          {"pages_total", after.pages_total},
          {"pages_free", after.pages_free},
          {"pages_used", after.pages_used},
          {"pages_cached", after.pages_cached},
          {"plan_p99_ms_at_most", after.plan_p99_ms},
          {"batch_sequences_max", after.batch_sequences_max}};
}

}  // namespace lacuna::bench
