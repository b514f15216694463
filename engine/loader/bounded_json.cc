#include "engine/loader/bounded_json.h"

#include <cmath>
#include <set>
#include <vector>

namespace lacuna::engine {
namespace {

using nlohmann::json;

// Counts brackets outside strings. Up to the first syntax error this sees the tokens that the
// parser sees, so the parser never goes deeper.
bool DepthWithin(std::string_view text, int depth_max) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
      continue;
    }
    if (c == '"') in_string = true;
    if ((c == '[' || c == '{') && ++depth > depth_max) return false;
    if (c == ']' || c == '}') --depth;
  }
  return true;
}

std::string Number(double value) { return json(value).dump(); }

}  // namespace

Result<json> ParseJsonObject(std::string_view text, std::string_view file, int depth_max) {
  const std::string prefix = std::string(file) + ": ";
  if (!DepthWithin(text, depth_max)) {
    return InvalidArgument(prefix + "expected a JSON depth of at most " +
                           std::to_string(depth_max) + ", found more");
  }
  std::vector<std::set<std::string>> keys;
  std::string repeated;
  const auto callback = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end && !keys.empty()) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second) {
      repeated = Describe(value);
    }
    return true;
  };
  json value = json::parse(text.begin(), text.end(), callback, /*allow_exceptions=*/false);
  if (value.is_discarded() || !value.is_object()) {
    return InvalidArgument(prefix + "expected a JSON object, found something else");
  }
  if (!repeated.empty()) return InvalidArgument(prefix + "key " + repeated + " stands twice");
  return value;
}

std::string Describe(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

const json* FieldReader::Find(const char* key) const {
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

bool FieldReader::Has(const char* key) const { return Find(key) != nullptr; }

void FieldReader::Fail(std::string_view key, std::string_view expected, std::string_view found) {
  if (!status_.ok()) return;
  status_ = InvalidArgument(path_ + std::string(key) + ": expected " + std::string(expected) +
                            ", found " + std::string(found));
}

int64_t FieldReader::Int(const char* key, int64_t min, int64_t max,
                         std::optional<int64_t> fallback) {
  const std::string expected =
      "an integer from " + std::to_string(min) + " to " + std::to_string(max);
  const json* value = Find(key);
  if (value == nullptr) {
    if (!fallback) Fail(key, expected, "nothing");
    return fallback.value_or(min);
  }
  const bool fits =
      value->is_number_integer() &&
      (!value->is_number_unsigned() || value->get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX));
  if (!fits || value->get<int64_t>() < min || value->get<int64_t>() > max) {
    Fail(key, expected, Describe(*value));
    return fallback.value_or(min);
  }
  return value->get<int64_t>();
}

double FieldReader::Double(const char* key, double min, double max,
                           std::optional<double> fallback) {
  const std::string expected = "a number from " + Number(min) + " to " + Number(max);
  const json* value = Find(key);
  if (value == nullptr) {
    if (!fallback) Fail(key, expected, "nothing");
    return fallback.value_or(min);
  }
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  if (!(number >= min && number <= max)) {
    Fail(key, expected, Describe(*value));
    return fallback.value_or(min);
  }
  return number;
}

bool FieldReader::Bool(const char* key, bool fallback) {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) Fail(key, "true or false", Describe(*value));
  return value->is_boolean() ? value->get<bool>() : fallback;
}

std::string FieldReader::String(const char* key, std::string fallback) {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  if (!value->is_string()) Fail(key, "a string", Describe(*value));
  return value->is_string() ? value->get<std::string>() : fallback;
}

const json* FieldReader::Object(const char* key) {
  const json* value = Find(key);
  if (value != nullptr && !value->is_object()) {
    Fail(key, "an object", Describe(*value));
    return nullptr;
  }
  return value;
}

const json* FieldReader::Array(const char* key, size_t size_max) {
  const json* value = Find(key);
  if (value == nullptr) return nullptr;
  if (!value->is_array() || value->size() > size_max) {
    Fail(key, "an array of at most " + std::to_string(size_max), Describe(*value));
    return nullptr;
  }
  return value;
}

}  // namespace lacuna::engine
