// What a server says of itself after a load test: /metrics as text -> lost requests, page
// accounting and planning time. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace lacuna::bench {

struct ServerFigures final {
  bool known = false;  // the server is one of ours
  int64_t running = 0, waiting = 0;
  int64_t submitted = 0, ended = 0;
  int64_t pages_total = 0, pages_free = 0, pages_used = 0, pages_cached = 0;  // of all groups
  double plan_p99_ms = 0;  // upper edge of the histogram's bucket
  double batch_sequences_max = 0;

  bool idle() const { return running == 0 && waiting == 0; }
};

// Reads the Prometheus text format; unknown lines are skipped.
ServerFigures ParseMetrics(std::string_view text);

struct ServerVerdict final {
  int64_t lost = 0;          // accepted during the run, and never ended
  int64_t leaked_pages = 0;  // used while idle, and missing from free + used + cached = total
};
ServerVerdict Compare(const ServerFigures& before, const ServerFigures& after);
nlohmann::ordered_json ServerJson(const ServerFigures& after, const ServerVerdict& verdict);

}  // namespace lacuna::bench
