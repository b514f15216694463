#include "server/api/http_message.h"

#include <random>

namespace lacuna::server {

HttpReply ErrorReply(const ApiError& error) {
  HttpReply reply;
  reply.status = error.http_status();
  reply.body = error.Json();
  if (error.retry_after() > 0) {
    reply.headers.emplace_back("Retry-After", std::to_string(error.retry_after()));
  }
  return reply;
}

std::string RandomHex(int digits) {
  thread_local std::mt19937_64 random{std::random_device{}()};
  std::string text;
  for (int i = 0; i < digits; ++i) text += "0123456789abcdef"[random() % 16];
  return text;
}

}  // namespace lacuna::server
