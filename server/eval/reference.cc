#include "server/eval/reference.h"

#include <charconv>
#include <cstdio>

#include "kernels/core/json_text.h"

namespace lacuna::server {

Result<EvalReference> ParseReference(std::string_view text, const std::string& file) {
  const Result<ConfigJson> json = ParseJsonText(text);
  if (!json.ok()) return InvalidArgument(file + ": " + json.status().message());
  EvalReference reference;
  for (const auto& [key, value] : json->items()) {
    const size_t at = key.rfind('@');
    int64_t tokens = 0;
    const char* end = key.data() + key.size();
    const bool named = at != std::string::npos && at + 1 < key.size() &&
                       std::from_chars(key.data() + at + 1, end, tokens).ptr == end;
    const double share = value.is_number() ? value.get<double>() : -1;
    if (!named || share < 0 || share > 1) {
      return InvalidArgument(file + ": " + key.substr(0, 80) + ": got " +
                             value.dump().substr(0, 40) + ", need TASK@TOKENS: 0 to 1");
    }
    reference[{key.substr(0, at), tokens}] = share;
  }
  return reference;
}

double ReferenceVerdict::missing_points() const {
  return count == 0 ? 0
                    : 100 * (expected - static_cast<double>(right)) / static_cast<double>(count);
}

ReferenceVerdict CompareWithReference(const EvalReport& report, const EvalReference& reference) {
  ReferenceVerdict verdict;
  for (const auto& [cell, share] : reference) {
    const EvalFigures* figures = report.Find(kEvalDense, cell.second);
    if (figures == nullptr) continue;
    const auto task = figures->tasks.find(cell.first);
    if (task == figures->tasks.end()) continue;
    verdict.right += task->second.right;
    verdict.count += task->second.count;
    verdict.expected += share * static_cast<double>(task->second.count);
  }
  char text[160];
  std::snprintf(text, sizeof text, "Dense got %lld of %lld right, the reference %.1f of as many.",
                static_cast<long long>(verdict.right), static_cast<long long>(verdict.count),
                verdict.expected);
  verdict.note = text;
  return verdict;
}

}  // namespace lacuna::server
