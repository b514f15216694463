// HttpRequest and HttpReply: what an endpoint sees of HTTP, and what it answers. No sockets here.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "server/admit/admit.h"
#include "server/api/api_error.h"

namespace lacuna::server {

struct HttpRequest final {
  std::string path;  // without the query, not decoded
  std::string body;
  Caller caller;
  // X-Lacuna-Sparse-Profile, X-Lacuna-Sparse-Budget-Tokens; empty: not sent.
  std::string sparse_profile{}, sparse_budget_tokens{};
};

struct HttpReply final {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers{};
};

// With Retry-After where the error says when to come again.
HttpReply ErrorReply(const ApiError& error);

// Random lower-case hex digits, for ids of responses and requests; not for secrets.
std::string RandomHex(int digits);

}  // namespace lacuna::server
