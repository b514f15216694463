#include "server/config/cross_checks.h"

#include <algorithm>
#include <string>

namespace lacuna::server {
namespace {

std::string Quoted(const std::string& text) {
  return ConfigJson(text).dump(-1, ' ', true, ConfigJson::error_handler_t::replace);
}

// "need at least OTHER (64)"
void NeedAtLeast(std::string_view key, int64_t value, std::string_view other, int64_t least,
                 ConfigErrors& errors) {
  if (value >= least) return;
  errors.Add(key, std::to_string(value),
             "at least " + std::string(other) + " (" + std::to_string(least) + ")");
}

void CheckListener(std::string_view section, const std::string& host, const AdmitOptions& admit,
                   ConfigErrors& errors) {
  const std::string key = std::string(section) + ".host";
  const bool clean = std::all_of(host.begin(), host.end(), [](unsigned char c) {
    return c > 0x20 && c < 0x7f && c != '/' && c != '@';
  });
  if (!clean) {
    errors.Add(key, Quoted(host), "a host name or an address without port");
    return;
  }
  if (!IsLoopbackHost(host) && admit.api_keys_file.empty() && !admit.allow_public_without_key) {
    errors.Add(key, Quoted(host),
               "a loopback address, or admit.api_keys_file, or admit.allow_public_without_key");
  }
}

void CheckEngine(const ServerConfig& config, ConfigErrors& errors) {
  const engine::EngineConfig& engine = config.engine;
  if (config.kv.page_tokens != 16 && config.kv.page_tokens != 64) {
    errors.Add("kv.page_tokens", std::to_string(config.kv.page_tokens), "16 or 64");
  }
  // Else running sequences could not all decode in one step.
  if (engine.step_tokens_max > 0) {
    NeedAtLeast("engine.step_tokens_max", engine.step_tokens_max, "engine.running_max",
                engine.running_max, errors);
  }
  // Else the longest prompt could never be queued.
  NeedAtLeast("engine.queue_tokens_max", engine.queue_tokens_max, "engine.context_tokens_max",
              engine.context_tokens_max, errors);
  if (engine.context_tokens_max == 1) {
    errors.Add("engine.context_tokens_max", "1", "0 or at least 2 (a prompt token and one more)");
  }
}

void CheckNames(const ModelOptions& model, ConfigErrors& errors) {
  if (model.load_format == "dummy" && model.path.empty()) {
    errors.Add("model.path", "\"\"", "a shape (configs/shapes) with model.load_format dummy");
  }
  std::vector<std::string> names = model.aliases;
  if (!model.served_name.empty()) names.push_back(model.served_name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) errors.Add("model.aliases", Quoted(*twice), "each name once");
  if (!names.empty() && names.front().empty()) {
    errors.Add("model.aliases", "\"\"", "names of at least one byte");
  }
}

void CheckSparse(const SparseConfig& sparse, ConfigErrors& errors) {
  if (sparse.mass_floor > 0 && sparse.audit_fraction == 0) {
    errors.Add("sparse.mass_floor", ConfigJson(sparse.mass_floor).dump(),
               "0, or sparse.audit_fraction above 0");
  }
  const bool dense = sparse.profile.empty() || sparse.profile == kDenseProfile;
  if (dense && !sparse.store_streaming_heads) {
    errors.Add("sparse.store_streaming_heads", "false",
               "true, or a sparse.profile with streaming heads");
  }
}

}  // namespace

bool IsLoopbackHost(std::string_view host) {
  if (host == "localhost" || host == "::1" || host == "[::1]") return true;
  return host.starts_with("127.") &&
         host.find_first_not_of("0123456789.") == std::string_view::npos;
}

void CheckAcrossKeys(const ServerConfig& config, ConfigErrors& errors) {
  CheckNames(config.model, errors);
  CheckEngine(config, errors);
  CheckSparse(config.sparse, errors);
  CheckListener("http", config.http.host, config.admit, errors);
  if (config.grpc.enabled) {
    CheckListener("grpc", config.grpc.host, config.admit, errors);
    if (config.grpc.port != 0 && config.grpc.port == config.http.port) {
      errors.Add("grpc.port", std::to_string(config.grpc.port), "another port than http.port");
    }
    NeedAtLeast("grpc.calls_max", config.grpc.calls_max, "grpc.streams_per_connection_max",
                config.grpc.streams_per_connection_max, errors);
  }
  NeedAtLeast("http.connections_max", config.http.connections_max,
              "http.connections_per_address_max", config.http.connections_per_address_max, errors);
  NeedAtLeast("http.header_bytes_max", config.http.header_bytes_max, "http.request_line_bytes_max",
              config.http.request_line_bytes_max, errors);
  NeedAtLeast("limits.choices_max", config.limits.choices_max, "limits.n_max", config.limits.n_max,
              errors);
}

}  // namespace lacuna::server
