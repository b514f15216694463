// What this build calls itself. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lacuna::server {

inline constexpr std::string_view kVersion = LACUNA_VERSION;  // from CMakeLists.txt

// "fp_" and 12 hex digits: changes with the build, the model and the instruction set, since any of
// them may change the tokens.
std::string SystemFingerprint(std::string_view architecture, int64_t weight_bytes,
                              std::string_view backend);

}  // namespace lacuna::server
