// `lacuna eval`: quality beside speed. Asks a suite's questions with several sparse profiles and
// with dense attention, over HTTP, and reports accuracy, density and times of the same run.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace lacuna::server {

struct EvalOptions final {
  std::string suite;                  // .jsonl or .jsonl.gz
  std::vector<std::string> profiles;  // names, or "all"; dense is always among them
  std::vector<double> fractions;      // budgets: shares of the tokens, (0, 1]
  std::vector<int64_t> lengths;       // these three as EvalChoice
  std::vector<std::string> tasks;
  int64_t limit = 0;
  std::string reference;  // JSON file of EvalReference; may be ""
  std::string out;        // folder for report.json, report.md, index.html, answers.jsonl; may be ""
  bool resume = false;    // asks only what the folder's answers.jsonl lacks
  int64_t max_tokens = 64;
  int64_t concurrency = 1;
  bool quiet = false;  // no progress bar
  // The server: one that runs, or one that is started for the evaluation.
  std::string url, api_key_env;
  std::string model, config, device, precision;
  std::vector<std::string> overrides;
};

// Tables go to `out`, progress and errors to `err`. 0; 1 a request failed, or dense
// is more than 2 points below the reference; 2 an option or a file is
// bad; 3 there is no server, or it went away.
int RunEvalCommand(const EvalOptions& options, std::ostream& out, std::ostream& err);

}  // namespace lacuna::server
