// `lacuna calibrate`: the tables of a model that sparse profiles need, from sample prompts.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "kernels/core/status.h"
#include "kvcache/sparse/artefacts.h"

namespace lacuna::server {

struct CalibrateCommandOptions final {
  std::string model;           // folder; empty: the embedded recall-12m
  std::string method = "all";  // a table, a profile that needs some, or all
  std::string data;            // .jsonl, .txt, or either as .gz
  std::string out;             // of an existing file the other tables are kept
  std::string precision = "fp32";
  int threads = 0;
  int64_t prompts = 0;           // at most, the first of the file; 0: all
  int64_t tokens = 8192;         // of a prompt; longer ones are left out
  std::vector<std::string> set;  // "density=0.4"
  bool quiet = false;
};

// The tables that a method stands for: "all", one of kvcache::kArtefactNames, a shipped profile, or
// a method of the literature with a table and no profile that reads it. kInvalidArgument: others.
Result<std::vector<kvcache::ArtefactKind>> TablesOf(const std::string& method);

// Writes the tables to `out`; progress goes to `err`. 0, or 2 and one line.
int RunCalibrate(const CalibrateCommandOptions& options, std::ostream& out, std::ostream& err);

// What --set takes, for --help.
std::string CalibrateDialHelp();

}  // namespace lacuna::server
