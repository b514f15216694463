#include "server/grpc/call_status.h"

#include <string>

namespace lacuna::server {

grpc::StatusCode GrpcCodeOf(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kUnauthenticated:
      return grpc::StatusCode::UNAUTHENTICATED;
    case ErrorKind::kHostForbidden:
      return grpc::StatusCode::PERMISSION_DENIED;
    case ErrorKind::kModelNotFound:
      return grpc::StatusCode::NOT_FOUND;
    case ErrorKind::kTimeout:
      return grpc::StatusCode::DEADLINE_EXCEEDED;
    case ErrorKind::kRateLimit:
    case ErrorKind::kOverloaded:
    case ErrorKind::kBodyTooLarge:
      return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case ErrorKind::kDraining:
    case ErrorKind::kEngineDown:
      return grpc::StatusCode::UNAVAILABLE;
    case ErrorKind::kInternal:
      return grpc::StatusCode::INTERNAL;
    default:
      return grpc::StatusCode::INVALID_ARGUMENT;  // what HTTP answers with another 4xx
  }
}

grpc::Status ToGrpcStatus(const ApiError& error, grpc::CallbackServerContext& context) {
  std::string message = error.message;
  if (error.param) {
    context.AddTrailingMetadata("lacuna-param", *error.param);
    message = *error.param + ": " + message;
  }
  if (error.retry_after() > 0) {
    context.AddTrailingMetadata("retry-after", std::to_string(error.retry_after()));
  }
  return {GrpcCodeOf(error.kind), message};
}

}  // namespace lacuna::server
