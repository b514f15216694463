#include "server/api/sparse_fields.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <string_view>
#include <utility>

namespace lacuna::server {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::string_view kKeys[] = {"profile", "mode", "audit_fraction", "mass_floor", "usage"};
constexpr size_t kMembersMax = 64;
constexpr size_t kNameBytesMax = 64;

std::string KnownKeys() {
  std::string text;
  for (const std::string_view key : kKeys) text.append(key).append(", ");
  text += "and of dials ";
  for (const kvcache::DialInfo& dial : kvcache::AllDials()) {
    text.append(&dial == kvcache::AllDials().data() ? "" : ", ").append(dial.name);
  }
  return text;
}

bool IsDial(std::string_view name) {
  return std::ranges::find(kvcache::AllDials(), name, &kvcache::DialInfo::name) !=
         kvcache::AllDials().end();
}

void ReadMode(FieldReader& reader, SparseAsk& ask) {
  std::string mode;
  if (!reader.String("mode", kNameBytesMax, mode)) return;
  ask.dense = mode == "dense";
  if (mode != "dense" && mode != "auto") {
    reader.Fail(ErrorKind::kBadValue, "mode", "'sparse.mode' must be one of auto, dense.");
  }
}

void ReadMembers(FieldReader& reader, const json& object, SparseFields& fields) {
  SparseAsk& ask = fields.ask;
  ReadMode(reader, ask);
  if (reader.String("profile", kNameBytesMax, ask.profile) && ask.profile.empty()) {
    reader.Fail(ErrorKind::kBadValue, "profile", "'sparse.profile' must not be empty.");
  }
  double share = 0;
  if (reader.Number("audit_fraction", 0, 1, share)) ask.audit_fraction = share;
  if (reader.Number("mass_floor", 0, 1, share)) ask.mass_floor = share;
  reader.Bool("usage", fields.usage);
  constexpr double kAny = std::numeric_limits<double>::infinity();
  for (const kvcache::DialInfo& dial : kvcache::AllDials()) {
    double value = 0;
    if (reader.Number(dial.name, -kAny, kAny, value)) {
      ask.dials.push_back({std::string(dial.name), value});
    }
  }
  for (const auto& [name, value] : object.items()) {
    if (IsSparseKey(name) || IsDial(name)) continue;
    std::string shown = name.substr(0, kNameBytesMax);
    std::ranges::replace_if(
        shown, [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
    reader.Fail(
        ErrorKind::kBadValue, shown,
        "Unknown parameter: '" + reader.Path(shown) + "', need one of " + KnownKeys() + ".");
    return;
  }
}

ordered_json GroupsJson(const double (&values)[engine::SparseUsage::kLayerGroups],
                        int64_t audited_steps) {
  if (audited_steps == 0) return nullptr;
  ordered_json list = ordered_json::array();
  for (const double value : values) list.push_back(value);
  return list;
}

void AddMean(double one, int64_t weight, int64_t weight_before, double& mean) {
  if (weight + weight_before == 0) return;
  const auto before = static_cast<double>(weight_before), more = static_cast<double>(weight);
  mean = (mean * before + one * more) / (before + more);
}

}  // namespace

bool IsSparseKey(std::string_view name) {
  return std::ranges::find(kKeys, name) != std::end(kKeys);
}

SparseFields ReadSparseFields(FieldReader& reader) {
  SparseFields fields;
  const json* object = reader.Find("sparse");
  if (object == nullptr) return fields;
  if (!object->is_object()) {
    reader.Fail(ErrorKind::kWrongType, "sparse", "'sparse' must be an object.");
    return fields;
  }
  if (object->size() > kMembersMax) {
    reader.Fail(ErrorKind::kBadValue, "sparse", "'sparse' must have at most 64 members.");
    return fields;
  }
  FieldReader inner(*object, reader.Path("sparse"));
  ReadMembers(inner, *object, fields);
  if (!inner.ok()) reader.Fail(inner.error());
  return fields;
}

std::optional<ApiError> AddSparseHeaders(const HttpRequest& request, json& body) {
  const std::string& tokens = request.sparse_budget_tokens;
  if (request.sparse_profile.empty() && tokens.empty()) return std::nullopt;
  json& field = body["sparse"];
  if (!field.is_null()) return std::nullopt;
  field = json::object();
  if (!request.sparse_profile.empty()) field["profile"] = request.sparse_profile;
  if (tokens.empty()) return std::nullopt;
  int64_t count = 0;
  const auto [end, error] = std::from_chars(tokens.data(), tokens.data() + tokens.size(), count);
  if (error != std::errc() || end != tokens.data() + tokens.size()) {
    return ApiError{ErrorKind::kBadValue,
                    "The header X-Lacuna-Sparse-Budget-Tokens must be a whole number.",
                    "sparse.budget_tokens"};
  }
  field["budget_tokens"] = count;
  return std::nullopt;
}

ApiResult<SparseGrant> GrantSparse(const SparseService* service, const SparseFields& fields) {
  const SparseAsk& ask = fields.ask;
  if (service == nullptr) {
    const bool dense = ask.profile.empty() || ask.profile == kDenseProfile;
    if (dense && ask.dials.empty()) return SparseGrant{{}, kDenseProfile, {}};
    return ApiError{ErrorKind::kUnsupported, "This server has no sparse attention.", "sparse"};
  }
  SparseGrant grant = service->Grant(ask);
  if (!grant.refusal) return grant;
  const std::string param = "sparse" + (grant.refusal->key.empty() ? "" : "." + grant.refusal->key);
  return ApiError{grant.refusal->unsupported ? ErrorKind::kUnsupported : ErrorKind::kBadValue,
                  "'" + param + "': " + grant.refusal->message, param};
}

ApiError FromSubmit(const Status& status, std::optional<std::string> param) {
  constexpr std::string_view kPrefix = "sparse: ";
  if (!status.message().starts_with(kPrefix)) return FromStatus(status, std::move(param));
  const std::string text = status.message().substr(kPrefix.size());
  return FromStatus(Status(status.code(), "'sparse': " + text + "."), "sparse");
}

ordered_json SparseUsageJson(const std::string& profile, const engine::SparseUsage& usage) {
  return {{"profile", profile},
          {"steps", {{"dense", usage.dense_steps}, {"sparse", usage.sparse_steps}}},
          {"pages", {{"considered", usage.pages_considered}, {"selected", usage.pages_selected}}},
          {"prefill_blocks",
           {{"considered", usage.prefill_blocks_considered},
            {"selected", usage.prefill_blocks_selected}}},
          {"mass",
           {{"estimated",
             usage.estimated_mass > 0 ? ordered_json(usage.estimated_mass) : ordered_json(nullptr)},
            {"audited", GroupsJson(usage.captured_mass, usage.audited_steps)},
            {"output_error", GroupsJson(usage.output_error, usage.audited_steps)}}},
          {"audited_steps", usage.audited_steps},
          {"budget_widened", usage.budget_widened}};
}

void AddSparseUsage(const engine::SparseUsage& one, engine::SparseUsage& sum) {
  AddMean(one.estimated_mass, one.sparse_steps, sum.sparse_steps, sum.estimated_mass);
  for (int group = 0; group < engine::SparseUsage::kLayerGroups; ++group) {
    AddMean(one.captured_mass[group], one.audited_steps, sum.audited_steps,
            sum.captured_mass[group]);
    AddMean(one.output_error[group], one.audited_steps, sum.audited_steps, sum.output_error[group]);
  }
  sum.dense_steps += one.dense_steps;
  sum.sparse_steps += one.sparse_steps;
  sum.pages_considered += one.pages_considered;
  sum.pages_selected += one.pages_selected;
  sum.prefill_blocks_considered += one.prefill_blocks_considered;
  sum.prefill_blocks_selected += one.prefill_blocks_selected;
  sum.audited_steps += one.audited_steps;
  sum.budget_widened += one.budget_widened;
}

}  // namespace lacuna::server
