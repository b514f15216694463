// Routes: one table of every path, with who may call it and where it runs. Immutable, any thread.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "server/api/endpoints.h"

namespace lacuna::server {

enum class Auth {
  kOpen,     // probes
  kKey,      // a key, when keys are set
  kMetrics,  // a key, unless metrics_public
};

struct Route final {
  std::string_view method;
  std::string_view pattern;  // exact; one that ends with '/' is a prefix, and wants something after
  Auth auth;
  bool intake;  // takes work: JSON body, rate limit, runs on a text worker, refused while draining
  HandlerResult (*handler)(ApiContext&, const HttpRequest&);
};

std::span<const Route> RouteTable();

struct RouteMatch final {
  const Route* route = nullptr;        // null: unknown path or wrong verb
  std::string allow;                   // the verbs of a known path, for Allow; empty: unknown path
  std::string_view handler = "other";  // the pattern, for metrics
};

// `path` is compared as it came: no decoding and no dot segments, so nothing hides behind them.
RouteMatch FindRoute(std::string_view method, std::string_view path);

}  // namespace lacuna::server
