#include "server/eval/record.h"

#include <utility>

#include "kernels/core/json_text.h"

namespace lacuna::server {
namespace {

using nlohmann::json;

// The number at a path such as "/pages/selected"; 0 when it is not there.
template <typename T>
T NumberAt(const json& object, const char* path) {
  const json::json_pointer pointer(path);
  if (!object.contains(pointer) || !object.at(pointer).is_number()) return 0;
  return object.at(pointer).get<T>();
}

// The fields that are numbers or texts, in the order of the file.
template <typename Record, typename Visit>
void VisitFields(Record& r, Visit visit) {
  visit("question", r.question);
  visit("task", r.task);
  visit("context_tokens", r.context_tokens);
  visit("variant", r.variant);
  visit("error", r.error);
  visit("right", r.right);
  visit("text", r.text);
  visit("prompt_tokens", r.prompt_tokens);
  visit("cached_tokens", r.cached_tokens);
  visit("completion_tokens", r.completion_tokens);
  visit("ttft_s", r.ttft_s);
  visit("decode_s", r.decode_s);
  visit("dense_steps", r.dense_steps);
  visit("sparse_steps", r.sparse_steps);
  visit("pages_considered", r.pages_considered);
  visit("pages_selected", r.pages_selected);
  visit("blocks_considered", r.blocks_considered);
  visit("blocks_selected", r.blocks_selected);
  visit("audited_steps", r.audited_steps);
  visit("captured_mass", r.captured_mass);
}

bool Take(const ConfigJson& value, std::string& out) {
  if (value.is_string()) out = value.get<std::string>();
  return value.is_string();
}
bool Take(const ConfigJson& value, bool& out) {
  if (value.is_boolean()) out = value.get<bool>();
  return value.is_boolean();
}
bool Take(const ConfigJson& value, int64_t& out) {
  if (value.is_number_integer()) out = value.get<int64_t>();
  return value.is_number_integer();
}
bool Take(const ConfigJson& value, double& out) {
  if (value.is_number()) out = value.get<double>();
  return value.is_number();
}

}  // namespace

void ReadUsage(const json& usage, EvalRecord& record) {
  if (!usage.is_object()) return;
  record.prompt_tokens = NumberAt<int64_t>(usage, "/prompt_tokens");
  record.completion_tokens = NumberAt<int64_t>(usage, "/completion_tokens");
  record.cached_tokens = NumberAt<int64_t>(usage, "/prompt_tokens_details/cached_tokens");
  const auto found = usage.find("sparse");
  if (found == usage.end() || !found->is_object()) return;
  const json& sparse = *found;
  record.dense_steps = NumberAt<int64_t>(sparse, "/steps/dense");
  record.sparse_steps = NumberAt<int64_t>(sparse, "/steps/sparse");
  record.pages_considered = NumberAt<int64_t>(sparse, "/pages/considered");
  record.pages_selected = NumberAt<int64_t>(sparse, "/pages/selected");
  record.blocks_considered = NumberAt<int64_t>(sparse, "/prefill_blocks/considered");
  record.blocks_selected = NumberAt<int64_t>(sparse, "/prefill_blocks/selected");
  record.audited_steps = NumberAt<int64_t>(sparse, "/audited_steps");
  const json::json_pointer audited("/mass/audited");
  if (!sparse.contains(audited) || !sparse.at(audited).is_array()) return;
  double sum = 0;
  size_t count = 0;
  for (const json& group : sparse.at(audited)) {
    if (!group.is_number()) continue;
    sum += group.get<double>();
    ++count;
  }
  if (count > 0) record.captured_mass = sum / static_cast<double>(count);
}

nlohmann::ordered_json RecordJson(const EvalRecord& record) {
  nlohmann::ordered_json line;
  VisitFields(record, [&](const char* name, const auto& value) { line[name] = value; });
  return line;
}

Result<EvalRecord> ParseRecord(std::string_view line) {
  LACUNA_ASSIGN_OR_RETURN(const ConfigJson row, ParseJsonText(line));
  if (!row.is_object()) return InvalidArgument("got no JSON object, need one in each line");
  EvalRecord record;
  Status status;
  VisitFields(record, [&](const char* name, auto& value) {
    const auto found = row.find(name);
    if (found != row.end() && Take(*found, value)) return;
    if (status.ok()) {
      status = InvalidArgument(std::string(name) + ": got " +
                               (found == row.end() ? "none" : found->dump().substr(0, 40)) +
                               ", need a value as eval writes it");
    }
  });
  if (!status.ok()) return status;
  return record;
}

}  // namespace lacuna::server
