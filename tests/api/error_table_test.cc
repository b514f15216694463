// The error table, the route table, and the promises they make together.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "server/api/api_error.h"
#include "server/api/responder.h"
#include "server/api/routes.h"

namespace lacuna::server {
namespace {

TEST(ErrorTable, EveryRowHasOpenAisShape) {
  const auto table = ErrorTable();
  EXPECT_EQ(table.size(), static_cast<size_t>(ErrorKind::kEngineDown) + 1);
  std::set<int> statuses;
  for (size_t i = 0; i < table.size(); ++i) {
    EXPECT_EQ(static_cast<size_t>(table[i].kind), i);
    statuses.insert(table[i].http_status);
    const ApiError error{table[i].kind, "broken \xff text", "a.b"};
    const auto body = nlohmann::json::parse(error.Json());
    ASSERT_EQ(body.size(), 1u);
    const auto& inner = body["error"];
    EXPECT_EQ(inner.size(), 4u);
    EXPECT_TRUE(inner["message"].is_string());
    EXPECT_TRUE(inner["type"].is_string());
    EXPECT_EQ(inner["param"], "a.b");
    EXPECT_TRUE(inner["code"].is_string() || inner["code"].is_null());
    // Official clients stop retrying above 120 s.
    EXPECT_LE(table[i].retry_after_s, 120);
    const bool retry = table[i].http_status == 429 || table[i].http_status == 503;
    EXPECT_EQ(table[i].retry_after_s > 0, retry) << table[i].code;
  }
  for (const int status : {400, 401, 404, 405, 408, 413, 415, 422, 429, 503}) {
    EXPECT_TRUE(statuses.contains(status)) << status;
  }
}

TEST(ErrorTable, StatusCodes) {
  const std::pair<StatusCode, int> cases[] = {
      {StatusCode::kInvalidArgument, 400}, {StatusCode::kNotFound, 404},
      {StatusCode::kTooLong, 400},         {StatusCode::kUnauthenticated, 401},
      {StatusCode::kExhausted, 503},       {StatusCode::kDeadline, 408},
      {StatusCode::kUnavailable, 503},     {StatusCode::kCancelled, 503},
      {StatusCode::kInternal, 500}};
  for (const auto& [code, http] : cases) {
    EXPECT_EQ(FromStatus(Status(code, "x")).http_status(), http);
  }
  const ApiError internal = FromStatus(InternalError("secret /path"));
  EXPECT_EQ(internal.Json().find("secret"), std::string::npos);
}

TEST(Routes, OnlyProbesAreOpen) {
  const std::set<std::string_view> open = {"/health", "/livez", "/ready", "/readyz"};
  for (const Route& route : RouteTable()) {
    EXPECT_EQ(route.auth == Auth::kOpen, open.contains(route.pattern)) << route.pattern;
    EXPECT_EQ(route.intake, route.method == "POST") << route.pattern;
  }
}

TEST(Routes, Find) {
  EXPECT_NE(FindRoute("POST", "/v1/chat/completions").route, nullptr);
  EXPECT_EQ(FindRoute("PUT", "/v1/chat/completions").route, nullptr);
  EXPECT_EQ(FindRoute("PUT", "/v1/chat/completions").allow, "POST, OPTIONS");
  EXPECT_NE(FindRoute("HEAD", "/health").route, nullptr);
  EXPECT_NE(FindRoute("GET", "/v1/models/a/b%2Fc").route, nullptr);
  for (const char* path :
       {"/v1/nope", "/v1/models/../x/", "", "/", "//health", "/health/", "/HEALTH", "/%68ealth",
        "/v1/chat/completions/", "/./health", "/health;x", "/v1/chat/../completions"}) {
    const RouteMatch match = FindRoute("GET", path);
    if (std::string_view(path).starts_with("/v1/models/")) continue;  // a model's name, unknown
    EXPECT_TRUE(match.allow.empty()) << path;
    EXPECT_EQ(match.handler, "other");
  }
}

TEST(Sse, OneLinePerEvent) {
  std::string out;
  AppendSse({{"text", "a\nb\r\n\u2028"}}, out);
  EXPECT_TRUE(out.starts_with("data: {"));
  EXPECT_TRUE(out.ends_with("}\n\n"));
  EXPECT_EQ(out.find('\n'), out.size() - 2);
  EXPECT_EQ(out.find('\r'), std::string::npos);
  EXPECT_EQ(kSsePing, ": ping\n\n");
}

}  // namespace
}  // namespace lacuna::server
