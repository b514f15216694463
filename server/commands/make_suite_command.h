// `lacuna make-suite`: a fresh suite for `lacuna eval` from any text, the same for the same seed.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace lacuna::server {

struct MakeSuiteOptions final {
  std::vector<std::string> texts;  // files of UTF-8 text, plain or gzip
  std::string out;                 // .jsonl, or .jsonl.gz which is packed
  std::string model;               // folder, for its tokenizer; empty: the embedded recall-12m
  uint64_t seed = 1;
  std::vector<int64_t> lengths = {2048, 8192, 32768};
  std::vector<std::string> tasks;  // empty: all
  int64_t count = 8;
  bool quiet = false;
};

// 0, or 2 and one line.
int RunMakeSuite(const MakeSuiteOptions& options, std::ostream& out, std::ostream& err);

}  // namespace lacuna::server
