// Tokens to Program. Recursive descent with a bound on nesting that is checked before descending.
// A pure function of the source.
#pragma once

#include <string_view>

#include "kernels/core/status.h"
#include "server/text/jinja_ast.h"

namespace lacuna::server::jinja {

inline constexpr size_t kSourceBytesMax = 4 << 20;

// Errors (kInvalidArgument): "chat template: line 3: ...".
Result<Program> ParseTemplate(std::string_view source);

}  // namespace lacuna::server::jinja
