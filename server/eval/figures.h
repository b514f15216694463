// Records of an evaluation -> figures per variant and length. Pure functions.
//
// Shares: what decode read is pages selected / considered over sparse steps (a page counts when any
// of its tokens was read), what prefill read is blocks likewise, over prompts that were computed
// and not cached; absent when nothing was selected. TTFT: median over computed prompts. Decode
// speed: all steps / all time. Speed-ups: of decode, the ratio to dense of the same length; of
// TTFT, the median ratio over questions that both computed.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "server/eval/record.h"
#include "server/eval/variants.h"

namespace lacuna::server {

struct EvalCell final {
  int64_t right = 0, count = 0;
  double share() const {
    return count == 0 ? 0 : static_cast<double>(right) / static_cast<double>(count);
  }
};

struct EvalFigures final {
  EvalCell all;
  std::map<std::string, EvalCell> tasks;
  int64_t lost = 0, gained = 0;  // questions that dense alone, or dense not, got right
  std::optional<double> decode_read, prefill_read, captured_mass;
  std::optional<double> ttft_s, ttft_speedup;
  std::optional<double> decode_tokens_per_s, decode_speedup;
  int64_t prefilled = 0;  // answers behind ttft_s
  int64_t dense_steps = 0, sparse_steps = 0;
};

struct EvalReport final {
  std::vector<EvalVariant> variants;  // those with answers, in their order
  std::vector<int64_t> lengths;       // ascending
  std::vector<std::string> tasks;     // ascending
  std::map<std::pair<std::string, int64_t>, EvalFigures> cells;  // (label, length); length 0: all
  std::vector<std::string> failures;  // one line per question that was not answered
  std::vector<std::string> notes;
  std::string model, suite, when;  // for people

  const EvalFigures* Find(const std::string& label, int64_t length) const;
};

// Questions that failed count for nothing but `failures`. Records of other variants are left out.
EvalReport MakeEvalReport(std::span<const EvalRecord> records, const EvalPlan& plan);

nlohmann::ordered_json EvalReportJson(const EvalReport& report);

}  // namespace lacuna::server
