// CheckPairs: compares a tokenizer with recorded (text, ids) pairs; the body of `lacuna tokenize`.
#pragma once

#include <cstdint>
#include <istream>
#include <ostream>

#include "kernels/core/status.h"
#include "server/text/tokenizer.h"

namespace lacuna::server {

struct PairsReport {
  int64_t matched = 0;
  int64_t total = 0;
};

// One pair per line of `jsonl`: {"text": string, "ids": [int], "add_special_tokens": bool = false};
// other members are ignored, and so are empty lines. A pair matches when Encode gives `ids` and the
// decode round trip holds: the ids (without those that add_special_tokens adds), decoded between
// special tokens, give the text, or, where a normalizer changed it, encode to the same ids again.
// Each mismatch is one line on `mismatches`. A line that is no such pair is kInvalidArgument with
// its number.
Result<PairsReport> CheckPairs(const Tokenizer& tokenizer, std::istream& jsonl,
                               std::ostream& mismatches);

}  // namespace lacuna::server
