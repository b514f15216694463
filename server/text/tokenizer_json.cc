#include "server/text/tokenizer_json.h"

#include <utility>

#include "server/text/unicode.h"

namespace lacuna::server {
namespace {

Status Wrong(const char* key, const char* need) {
  return InvalidArgument(std::string(key) + ": need " + need);
}

bool DepthIsBounded(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kJsonDepthMax) return false;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return true;
}

}  // namespace

Result<Json> ParseJson(std::string_view text) {
  if (!DepthIsBounded(text)) return InvalidArgument("nested too deeply");
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return InvalidArgument("not valid JSON");
  return json;
}

const Json& JsonMember(const Json& object, const char* key) {
  static const Json kNull;
  if (!object.is_object()) return kNull;
  const auto it = object.find(key);
  return it == object.end() ? kNull : *it;
}

Result<std::string> JsonString(const Json& object, const char* key) {
  const Json& member = JsonMember(object, key);
  if (!member.is_string()) return Wrong(key, "a string");
  return member.get_ref<const std::string&>();
}

Result<std::string> JsonString(const Json& object, const char* key, std::string fallback) {
  if (JsonMember(object, key).is_null()) return fallback;
  return JsonString(object, key);
}

Result<bool> JsonBool(const Json& object, const char* key, bool fallback) {
  const Json& member = JsonMember(object, key);
  if (member.is_null()) return fallback;
  if (!member.is_boolean()) return Wrong(key, "true or false");
  return member.get<bool>();
}

Result<int64_t> JsonInt(const Json& object, const char* key, int64_t low, int64_t high) {
  const Json& member = JsonMember(object, key);
  const auto need = [&] { return std::to_string(low) + ".." + std::to_string(high); };
  if (!member.is_number_integer()) return Wrong(key, need().c_str());
  if (member.is_number_unsigned() && member.get<uint64_t>() > static_cast<uint64_t>(high)) {
    return Wrong(key, need().c_str());
  }
  const auto value = member.get<int64_t>();
  if (value < low || value > high) return Wrong(key, need().c_str());
  return value;
}

Result<std::string> JsonChar(const Json& object, const char* key) {
  LACUNA_ASSIGN_OR_RETURN(std::string text, JsonString(object, key));
  if (text.empty() || DecodeUtf8(text.data()).bytes != text.size()) {
    return Wrong(key, "one character");
  }
  return text;
}

Result<const Json*> JsonArray(const Json& object, const char* key) {
  const Json& member = JsonMember(object, key);
  if (!member.is_array()) return Wrong(key, "an array");
  return &member;
}

Result<std::string> JsonType(const Json& component) { return JsonString(component, "type"); }

}  // namespace lacuna::server
