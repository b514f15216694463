// http://HOST[:PORT][/BASE], the only form of URL that our clients take.
#pragma once

#include <string>
#include <string_view>

#include "kernels/core/status.h"

namespace lacuna::server {

struct Url final {
  std::string host, port = "80", base;  // base: "" or "/prefix", without a last slash
  std::string host_header() const { return port == "80" ? host : host + ":" + port; }
};

Result<Url> ParseUrl(std::string_view text);

}  // namespace lacuna::server
