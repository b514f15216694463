#include "server/api/field_reader.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/core/field_table.h"

namespace lacuna::server {
namespace {

bool IsAbsentOrOff(const nlohmann::json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
         (value.is_structured() && value.empty()) ||
         (value.is_string() && value.get_ref<const std::string&>().empty());
}

std::string Quote(std::string_view name) { return std::string("'").append(name).append("'"); }

}  // namespace

std::optional<int64_t> AsInt(const nlohmann::json& value, int64_t min, int64_t max) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (!std::in_range<int64_t>(number)) return std::nullopt;
    const auto narrow = static_cast<int64_t>(number);
    return narrow >= min && narrow <= max ? std::optional(narrow) : std::nullopt;
  }
  if (value.is_number_integer()) {
    const auto number = value.get<int64_t>();
    return number >= min && number <= max ? std::optional(number) : std::nullopt;
  }
  if (value.is_number_float()) {
    const double number = value.get<double>();
    constexpr double kExact = 9007199254740992.0;  // 2^53
    if (std::trunc(number) != number || std::abs(number) > kExact) return std::nullopt;
    const auto whole = static_cast<int64_t>(number);
    return whole >= min && whole <= max ? std::optional(whole) : std::nullopt;
  }
  return std::nullopt;
}

std::string FieldReader::Path(std::string_view name) const {
  return path_.empty() ? std::string(name) : path_ + "." + std::string(name);
}

void FieldReader::Fail(ErrorKind kind, std::string_view name, std::string message) {
  Fail(ApiError{kind, std::move(message), Path(name)});
}

void FieldReader::Fail(ApiError error) {
  if (!error_) error_ = std::move(error);
}

const nlohmann::json* FieldReader::Find(std::string_view name) {
  known_.emplace(name);
  if (error_) return nullptr;
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

const nlohmann::json* FieldReader::Require(std::string_view name) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) {
    Fail(ErrorKind::kMissing, name, "Missing required parameter: " + Quote(Path(name)) + ".");
  }
  return value;
}

bool FieldReader::Bool(std::string_view name, bool& out) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return false;
  if (!value->is_boolean()) {
    Fail(ErrorKind::kWrongType, name, Quote(Path(name)) + " must be true or false.");
    return false;
  }
  out = value->get<bool>();
  return true;
}

bool FieldReader::Number(std::string_view name, double min, double max, double& out) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return false;
  if (!value->is_number()) {
    Fail(ErrorKind::kWrongType, name, Quote(Path(name)) + " must be a number.");
    return false;
  }
  const double number = value->get<double>();
  if (!(number >= min && number <= max)) {
    Fail(ErrorKind::kBadValue, name, Quote(Path(name)) + " must be " + NeedRange(min, max) + ".");
    return false;
  }
  out = number;
  return true;
}

bool FieldReader::Int(std::string_view name, int64_t min, int64_t max, int64_t& out) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return false;
  if (!value->is_number()) {
    Fail(ErrorKind::kWrongType, name, Quote(Path(name)) + " must be an integer.");
    return false;
  }
  const std::optional<int64_t> number = AsInt(*value, min, max);
  if (!number) {
    const std::string range = std::to_string(min) + " to " + std::to_string(max);
    Fail(ErrorKind::kBadValue, name, Quote(Path(name)) + " must be an integer from " + range + ".");
    return false;
  }
  out = *number;
  return true;
}

bool FieldReader::String(std::string_view name, size_t bytes_max, std::string& out) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return false;
  if (!value->is_string()) {
    Fail(ErrorKind::kWrongType, name, Quote(Path(name)) + " must be a string.");
    return false;
  }
  const auto& text = value->get_ref<const std::string&>();
  if (text.size() > bytes_max) {
    Fail(ErrorKind::kBadValue, name,
         Quote(Path(name)) + " must have at most " + std::to_string(bytes_max) + " bytes.");
    return false;
  }
  out = text;
  return true;
}

const nlohmann::json* FieldReader::Array(std::string_view name, size_t len_max) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return nullptr;
  if (!value->is_array()) {
    Fail(ErrorKind::kWrongType, name, Quote(Path(name)) + " must be an array.");
    return nullptr;
  }
  if (value->size() > len_max) {
    Fail(ErrorKind::kBadValue, name,
         Quote(Path(name)) + " must have at most " + std::to_string(len_max) + " entries.");
    return nullptr;
  }
  return value;
}

void FieldReader::Ignore(std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names) known_.emplace(name);
}

void FieldReader::Refuse(std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names) {
    const nlohmann::json* value = Find(name);
    if (value == nullptr || IsAbsentOrOff(*value)) continue;
    Fail(ErrorKind::kUnsupported, name, Quote(Path(name)) + " is not supported by this server.");
  }
}

void FieldReader::RefuseUnknown() {
  if (error_) return;
  for (const auto& [name, value] : object_.items()) {
    if (known_.contains(name)) continue;
    Fail(ErrorKind::kBadValue, name.substr(0, 64),
         "Unknown parameter: " + Quote(Path(name.substr(0, 64))) + ".");
    return;
  }
}

}  // namespace lacuna::server
