// Strict HTTP/1.1: looks at the raw bytes of a request head before the parser does, and refuses
// what two parsers could read in two ways. Pure functions, any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "server/api/api_error.h"

namespace lacuna::server {

struct HeadLimits final {
  int64_t line_bytes_max = 8 << 10;
  int64_t fields_max = 64;
};

// `head`: request line and header lines, up to and including the empty line. Refuses (and the
// connection must then close): bare CR or LF, control and non-ASCII bytes, folded lines, names that
// are no token or hold '_', a repeated or signed Content-Length, any Transfer-Encoding but
// "chunked", both of them, a repeated Host, HTTP/1.1 without Host, other versions.
std::optional<ApiError> CheckHead(std::string_view head, const HeadLimits& limits);

// The name in a Host header without its port: "[::1]:80" -> "[::1]".
std::string_view HostName(std::string_view host);
bool IsLoopbackName(std::string_view name);

}  // namespace lacuna::server
