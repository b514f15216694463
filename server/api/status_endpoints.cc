// What tells about the server: models, liveness, readiness, version, load, metrics.
#include <algorithm>
#include <cmath>
#include <utility>

#include "server/api/endpoints.h"

namespace lacuna::server {
namespace {

using nlohmann::ordered_json;

constexpr std::string_view kModelsPrefix = "/v1/models/";

HttpReply JsonReply(const ordered_json& body) {
  HttpReply reply;
  reply.body = body.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  return reply;
}

ordered_json ModelCard(const ApiContext& context, std::string_view name) {
  return {{"id", name},
          {"object", "model"},
          {"created", context.created_s},
          {"owned_by", "lacuna"},
          {"root", context.model_name},
          {"max_model_len", context.engine.context_tokens_max()}};
}

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// "%2F" -> "/"; what is no valid escape stays as it is, and matches no model.
std::string PercentDecode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool escape = text[i] == '%' && i + 2 < text.size();
    const int high = escape ? HexValue(text[i + 1]) : -1;
    const int low = escape ? HexValue(text[i + 2]) : -1;
    if (high < 0 || low < 0) {
      out += text[i];
      continue;
    }
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

ordered_json Bound(double value) {
  return std::isfinite(value) ? ordered_json(value) : ordered_json(nullptr);
}

ordered_json ProfileCard(const ProfileInfo& profile) {
  ordered_json dials = ordered_json::array();
  for (const ProfileInfo::Dial& dial : profile.dials) {
    dials.push_back({{"name", dial.name},
                     {"meaning", dial.meaning},
                     {"value", dial.value},
                     {"min", Bound(dial.min)},
                     {"max", Bound(dial.max)},
                     {"whole", dial.whole}});
  }
  return {
      {"id", profile.name},         {"object", "sparse.profile"}, {"default", profile.is_default},
      {"summary", profile.summary}, {"paper", profile.paper},     {"dials", std::move(dials)}};
}

HttpReply NotReady(const ApiContext& context) {
  if (!context.engine.healthy()) {
    return ErrorReply({ErrorKind::kEngineDown, "The device failed; restart the server.", {}});
  }
  return ErrorReply({ErrorKind::kDraining, "The server is stopping.", {}});
}

}  // namespace

HandlerResult GetModels(ApiContext& context, const HttpRequest&) {
  ordered_json data = ordered_json::array({ModelCard(context, context.model_name)});
  for (const std::string& alias : context.aliases) data.push_back(ModelCard(context, alias));
  return JsonReply({{"object", "list"}, {"data", std::move(data)}});
}

HandlerResult GetModel(ApiContext& context, const HttpRequest& request) {
  const std::string name =
      PercentDecode(std::string_view(request.path).substr(kModelsPrefix.size()));
  if (!context.KnowsModel(name)) {
    return ErrorReply({ErrorKind::kModelNotFound,
                       "The model '" + name.substr(0, 256) + "' is not served here.", "model"});
  }
  return JsonReply(ModelCard(context, name));
}

// What requests may say in `sparse`, and why the other profiles are not there.
HandlerResult GetSparseProfiles(ApiContext& context, const HttpRequest&) {
  ordered_json data = ordered_json::array(), left_out = ordered_json::array();
  const SparseService* sparse = context.sparse;
  if (sparse != nullptr) {
    for (const ProfileInfo& profile : sparse->profiles()) data.push_back(ProfileCard(profile));
    for (const SparseService::LeftOut& one : sparse->left_out()) {
      left_out.push_back({{"id", one.name}, {"reason", one.reason}});
    }
  }
  return JsonReply({{"object", "list"},
                    {"default", sparse == nullptr ? kDenseProfile : sparse->default_profile()},
                    {"dense_allowed", sparse == nullptr || sparse->dense_allowed()},
                    {"data", std::move(data)},
                    {"left_out", std::move(left_out)}});
}

HandlerResult GetLive(ApiContext&, const HttpRequest&) { return JsonReply({{"status", "ok"}}); }

// Alive and able to compute; a server that drains is still healthy.
HandlerResult GetHealth(ApiContext& context, const HttpRequest&) {
  if (!context.engine.healthy()) return NotReady(context);
  return JsonReply({{"status", "ok"}});
}

HandlerResult GetReady(ApiContext& context, const HttpRequest&) {
  if (!context.Ready()) return NotReady(context);
  return JsonReply({{"status", "ok"}});
}

HandlerResult GetVersion(ApiContext& context, const HttpRequest&) {
  return JsonReply({{"version", context.version}});
}

HandlerResult GetLoads(ApiContext& context, const HttpRequest&) {
  const engine::EngineStats& stats = context.engine.stats();
  double usage = 0.0;
  for (const engine::PageCounts& counts : context.engine.page_counts()) {
    if (counts.total == 0) continue;
    usage = std::max(usage, static_cast<double>(counts.used) / static_cast<double>(counts.total));
  }
  const ordered_json rank = {{"dp_rank", 0},
                             {"num_running_reqs", stats.running.load()},
                             {"num_waiting_reqs", stats.waiting.load()},
                             {"num_waiting_tokens", stats.waiting_tokens.load()},
                             {"token_usage", usage}};
  return JsonReply({{"version", context.version}, {"loads", ordered_json::array({rank})}});
}

HandlerResult GetMetrics(ApiContext& context, const HttpRequest&) {
  context.metrics.SetReady(context.Ready());
  HttpReply reply;
  reply.content_type = "text/plain; version=0.0.4; charset=utf-8";
  reply.body = context.metrics.Scrape();
  return reply;
}

}  // namespace lacuna::server
