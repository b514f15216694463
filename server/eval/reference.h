// What another implementation got right: {"task@context_tokens": share}, as beside recall.jsonl.gz.
// Pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "server/eval/figures.h"

namespace lacuna::server {

// (task, context_tokens) -> share of questions that it got right.
using EvalReference = std::map<std::pair<std::string, int64_t>, double>;

// kInvalidArgument: "FILE: KEY: got X, need Y".
Result<EvalReference> ParseReference(std::string_view text, const std::string& file);

struct ReferenceVerdict final {
  int64_t right = 0, count = 0;  // of our dense answers, in cells that the reference has
  double expected = 0;           // right answers of the reference for as many
  double missing_points() const;
  std::string note;  // for people
};
ReferenceVerdict CompareWithReference(const EvalReport& report, const EvalReference& reference);

}  // namespace lacuna::server
