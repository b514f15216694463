// JSON of a request body, bounded while it is parsed: depth and number of values are checked before
// anything is stored, and nothing recurses on the depth of the input.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "server/api/api_error.h"

namespace lacuna::server {

struct JsonLimits final {
  int64_t depth_max = 32;
  int64_t nodes_max = 200'000;
};

// An object, or kBadBody: not JSON, invalid UTF-8, a number that is not finite, not an object, too
// deep, too many values. Of duplicate keys the last wins.
ApiResult<nlohmann::json> ParseJsonObject(std::string_view body, const JsonLimits& limits);

}  // namespace lacuna::server
