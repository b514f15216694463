#include "server/api/routes.h"

#include <array>

namespace lacuna::server {
namespace {

constexpr std::array kRoutes = {
    Route{"POST", "/v1/chat/completions", Auth::kKey, true, PostChatCompletions},
    Route{"POST", "/v1/completions", Auth::kKey, true, PostCompletions},
    Route{"POST", "/tokenize", Auth::kKey, true, PostTokenize},
    Route{"POST", "/detokenize", Auth::kKey, true, PostDetokenize},
    Route{"GET", "/v1/models", Auth::kKey, false, GetModels},
    Route{"GET", "/v1/models/", Auth::kKey, false, GetModel},
    Route{"GET", "/v1/sparse/profiles", Auth::kKey, false, GetSparseProfiles},
    Route{"GET", "/v1/loads", Auth::kKey, false, GetLoads},
    Route{"GET", "/version", Auth::kKey, false, GetVersion},
    Route{"GET", "/metrics", Auth::kMetrics, false, GetMetrics},
    Route{"GET", "/health", Auth::kOpen, false, GetHealth},
    Route{"GET", "/livez", Auth::kOpen, false, GetLive},
    Route{"GET", "/ready", Auth::kOpen, false, GetReady},
    Route{"GET", "/readyz", Auth::kOpen, false, GetReady},
};

bool Matches(const Route& route, std::string_view path) {
  if (!route.pattern.ends_with('/')) return path == route.pattern;
  return path.size() > route.pattern.size() && path.starts_with(route.pattern);
}

}  // namespace

std::span<const Route> RouteTable() { return kRoutes; }

RouteMatch FindRoute(std::string_view method, std::string_view path) {
  RouteMatch match;
  for (const Route& route : kRoutes) {
    if (!Matches(route, path)) continue;
    match.handler = route.pattern;
    match.allow = std::string(route.method) + (route.method == "GET" ? ", HEAD" : "") + ", OPTIONS";
    const bool head = method == "HEAD" && route.method == "GET";
    if (route.method == method || head) match.route = &route;
  }
  return match;
}

}  // namespace lacuna::server
