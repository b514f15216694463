// Checked access to the members of tokenizer.json; errors name the member, not the file.
//
// Used at load only. The readers never throw.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "kernels/core/status.h"

namespace lacuna::server {

using Json = nlohmann::json;

// Components ("Sequence") and JSON values may nest this deep.
inline constexpr int kJsonDepthMax = 64;
inline constexpr int kComponentDepthMax = 8;

// Parses with a bound on the nesting.
Result<Json> ParseJson(std::string_view text);

// The member, or null when `object` lacks it (or is no object).
const Json& JsonMember(const Json& object, const char* key);
Result<std::string> JsonString(const Json& object, const char* key);
// A missing or null member gives the fallback.
Result<std::string> JsonString(const Json& object, const char* key, std::string fallback);
Result<bool> JsonBool(const Json& object, const char* key, bool fallback);
Result<int64_t> JsonInt(const Json& object, const char* key, int64_t low, int64_t high);
// Exactly one code point, as UTF-8.
Result<std::string> JsonChar(const Json& object, const char* key);
// The array `key`, or an error.
Result<const Json*> JsonArray(const Json& object, const char* key);
// "type" of a component.
Result<std::string> JsonType(const Json& component);

}  // namespace lacuna::server
