// The bytes of a response: status line, header lines, chunks. Pure functions, any thread.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/api/http_message.h"

namespace lacuna::server {

// What every response of one request carries.
struct ResponseFrame final {
  bool keep_alive = true;
  bool http_1_0 = false;
  bool head_only = false;  // the answer to HEAD: headers of the body, without it
  std::vector<std::pair<std::string, std::string>> headers;  // x-request-id, CORS
};

// A whole response with Content-Length.
std::string FormatReply(const HttpReply& reply, const ResponseFrame& frame);

// The head of an SSE stream: chunked, or up to the end of the connection for HTTP/1.0.
std::string FormatStreamHead(const ResponseFrame& frame);
// One piece of it; `last` ends the stream.
std::string FormatStreamPiece(std::string_view data, bool last, const ResponseFrame& frame);

}  // namespace lacuna::server
