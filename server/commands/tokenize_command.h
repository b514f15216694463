// `lacuna tokenize`: checks a tokenizer against known pairs of text and ids.
#pragma once

#include <ostream>
#include <string>

namespace lacuna::server {

struct TokenizeOptions final {
  std::string tokenizer;  // tokenizer.json
  std::string pairs;      // lines of {"text": ..., "ids": [...]}
};

// Prints each mismatch and `N of M match`. 0: all match; 1: not; 2: a file cannot be read.
int RunTokenize(const TokenizeOptions& options, std::ostream& out, std::ostream& err);

}  // namespace lacuna::server
