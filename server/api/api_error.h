// ApiError: every error that a client can see, in OpenAI's shape. One table gives HTTP status, type
// and code of each kind; gRPC and the engine's StatusCodes map into it.
//
// Plain values, any thread. Messages speak of the request, never of our inside.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "kernels/core/status.h"

namespace lacuna::server {

enum class ErrorKind {
  kMalformedHttp,
  kBadBody,
  kMissing,
  kWrongType,
  kBadValue,
  kContextLength,
  kUnsupported,
  kUnauthenticated,
  kHostForbidden,
  kModelNotFound,
  kUnknownUrl,
  kMethod,
  kTimeout,
  kBodyTooLarge,
  kTargetTooLong,
  kMediaType,
  kUnprocessable,
  kRateLimit,
  kHeaderTooLarge,
  kInternal,
  kOverloaded,
  kDraining,
  kEngineDown,
};

struct ErrorRow final {
  ErrorKind kind;
  int http_status;
  std::string_view type;
  std::string_view code;  // empty: null
  int retry_after_s;      // 0: no Retry-After header
  std::string_view when;
};

// All rows, in the order of ErrorKind.
std::span<const ErrorRow> ErrorTable();

struct ApiError final {
  ErrorKind kind = ErrorKind::kInternal;
  std::string message;
  std::optional<std::string> param;
  int retry_after_s = 0;  // overrides the row's when > 0

  const ErrorRow& row() const { return ErrorTable()[static_cast<size_t>(kind)]; }
  int http_status() const { return row().http_status; }
  int retry_after() const { return retry_after_s > 0 ? retry_after_s : row().retry_after_s; }
  // {"error":{"message","type","param","code"}}, one line, always valid UTF-8.
  std::string Json() const;
};

ErrorKind KindOf(StatusCode code);
// A failed Status as a client sees it; the message of kInternal stays inside.
ApiError FromStatus(const Status& status, std::optional<std::string> param = {});

// A value or an ApiError.
template <typename T>
class [[nodiscard]] ApiResult final {
 public:
  ApiResult(T value) : state_(std::in_place_index<0>, std::move(value)) {}         // NOLINT
  ApiResult(ApiError error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT

  bool ok() const { return state_.index() == 0; }
  T& value() { return std::get<0>(state_); }
  const T& value() const { return std::get<0>(state_); }
  T& operator*() { return value(); }
  T* operator->() { return &value(); }
  const ApiError& error() const { return std::get<1>(state_); }

 private:
  std::variant<T, ApiError> state_;
};

}  // namespace lacuna::server
