// `lacuna bench serve`: a load test from a config file against a running server. Blocks; all of it
// runs on the calling thread.
#pragma once

#include <ostream>
#include <string>

namespace lacuna::bench {

struct BenchServeOptions final {
  std::string config_path;
  std::string url;        // http://HOST:PORT
  std::string json_path;  // empty: no JSON file; "-": to `out` instead of the table
  bool quiet = false;     // no progress bar
};

// The report goes to `out`, progress and errors to `err`. Returns the exit code: 0 ok, 1 an SLO was
// missed, requests were lost or pages leaked, 2 bad config or URL, 3 the run is invalid (no server,
// or the client could not keep its schedule).
int RunBenchServe(const BenchServeOptions& options, std::ostream& out, std::ostream& err);

}  // namespace lacuna::bench
