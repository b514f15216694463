#include "server/api/api_error.h"

#include <array>
#include <nlohmann/json.hpp>

namespace lacuna::server {
namespace {

using K = ErrorKind;
constexpr std::string_view kRequest = "invalid_request_error";
constexpr std::string_view kServer = "server_error";

constexpr std::array kTable = {
    ErrorRow{K::kMalformedHttp, 400, kRequest, "malformed_request", 0, "not strict HTTP/1.1"},
    ErrorRow{K::kBadBody, 400, kRequest, "", 0, "the body is not a JSON object in UTF-8"},
    ErrorRow{K::kMissing, 400, kRequest, "missing_required_parameter", 0, "a field is missing"},
    ErrorRow{K::kWrongType, 400, kRequest, "invalid_type", 0, "a field has the wrong JSON type"},
    ErrorRow{K::kBadValue, 400, kRequest, "invalid_value", 0, "out of range or not a choice"},
    ErrorRow{K::kContextLength, 400, kRequest, "context_length_exceeded", 0,
             "the prompt does not fit the context or the page pool"},
    ErrorRow{K::kUnsupported, 400, kRequest, "unsupported_parameter", 0,
             "a feature that this server does not have"},
    ErrorRow{K::kUnauthenticated, 401, kRequest, "invalid_api_key", 0, "missing or wrong key"},
    ErrorRow{K::kHostForbidden, 403, "permission_error", "host_not_allowed", 0,
             "a Host header outside allowed_hosts"},
    ErrorRow{K::kModelNotFound, 404, kRequest, "model_not_found", 0, "unknown model"},
    ErrorRow{K::kUnknownUrl, 404, kRequest, "unknown_url", 0, "unknown route"},
    ErrorRow{K::kMethod, 405, kRequest, "method_not_supported", 0, "wrong verb"},
    ErrorRow{K::kTimeout, 408, "timeout_error", "request_timeout", 0,
             "the request came too slowly, or its deadline passed"},
    ErrorRow{K::kBodyTooLarge, 413, kRequest, "request_too_large", 0, "body over the limit"},
    ErrorRow{K::kTargetTooLong, 414, kRequest, "request_target_too_long", 0, "URL over the limit"},
    ErrorRow{K::kMediaType, 415, kRequest, "unsupported_media_type", 0, "not application/json"},
    ErrorRow{K::kUnprocessable, 422, kRequest, "unprocessable_entity", 0,
             "/detokenize: an id that the vocabulary does not have"},
    ErrorRow{K::kRateLimit, 429, "rate_limit_error", "rate_limit_exceeded", 1, "rate of the key"},
    ErrorRow{K::kHeaderTooLarge, 431, kRequest, "request_header_too_large", 0,
             "header over the limits"},
    ErrorRow{K::kInternal, 500, kServer, "internal_error", 0, "our fault"},
    ErrorRow{K::kOverloaded, 503, kServer, "server_overloaded", 1, "a queue is full"},
    ErrorRow{K::kDraining, 503, kServer, "server_draining", 5, "the server is stopping"},
    ErrorRow{K::kEngineDown, 503, kServer, "engine_unhealthy", 30, "the device failed"},
};

}  // namespace

std::span<const ErrorRow> ErrorTable() { return kTable; }

std::string ApiError::Json() const {
  const auto text_or_null = [](std::string_view text) {
    return text.empty() ? nlohmann::json(nullptr) : nlohmann::json(text);
  };
  const nlohmann::json body = {
      {"error",
       {{"message", message},
        {"type", row().type},
        {"param", param ? nlohmann::json(*param) : nlohmann::json(nullptr)},
        {"code", text_or_null(row().code)}}}};
  return body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

ErrorKind KindOf(StatusCode code) {
  switch (code) {
    case StatusCode::kInvalidArgument:
      return K::kBadValue;
    case StatusCode::kNotFound:
      return K::kModelNotFound;
    case StatusCode::kTooLong:
      return K::kContextLength;
    case StatusCode::kUnauthenticated:
      return K::kUnauthenticated;
    case StatusCode::kExhausted:
      return K::kOverloaded;
    case StatusCode::kDeadline:
      return K::kTimeout;
    case StatusCode::kUnavailable:
    case StatusCode::kCancelled:  // nobody is left to read it, except when a drain cuts a stream
      return K::kDraining;
    case StatusCode::kOk:
    case StatusCode::kInternal:
      break;
  }
  return K::kInternal;
}

ApiError FromStatus(const Status& status, std::optional<std::string> param) {
  const ErrorKind kind = KindOf(status.code());
  if (kind == K::kInternal) return {kind, "The server had an internal error.", {}};
  return {kind, status.message(), std::move(param)};
}

}  // namespace lacuna::server
