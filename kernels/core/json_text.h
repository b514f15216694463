// JSON text of a config file -> a DOM, under bounds, with errors that name line and column.
//
// Comments (// and /* */) are allowed. Duplicate keys, too deep nesting and too large a file are
// errors: a config that says two things is never half obeyed. Pure function, any thread.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

#include "kernels/core/status.h"

namespace lacuna {

using ConfigJson = nlohmann::ordered_json;

struct JsonTextLimits final {
  int64_t bytes_max = 1 << 20;
  int depth_max = 8;
};

// kInvalidArgument: "line 3, column 5: got ..., need ...", the part of an error line that follows
// the file's name.
Result<ConfigJson> ParseJsonText(std::string_view text, const JsonTextLimits& limits = {});

}  // namespace lacuna
