#include "kernels/core/status.h"

namespace lacuna {

std::string_view StatusCodeName(StatusCode code) {
  switch (code) {
    case StatusCode::kOk:
      return "ok";
    case StatusCode::kInvalidArgument:
      return "invalid_argument";
    case StatusCode::kNotFound:
      return "not_found";
    case StatusCode::kTooLong:
      return "too_long";
    case StatusCode::kUnauthenticated:
      return "unauthenticated";
    case StatusCode::kExhausted:
      return "exhausted";
    case StatusCode::kDeadline:
      return "deadline";
    case StatusCode::kUnavailable:
      return "unavailable";
    case StatusCode::kCancelled:
      return "cancelled";
    case StatusCode::kInternal:
      return "internal";
  }
  return "unknown";
}

std::string Status::ToString() const {
  std::string text(StatusCodeName(code_));
  if (!message_.empty()) text += ": " + message_;
  return text;
}

}  // namespace lacuna
