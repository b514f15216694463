// ApiError -> grpc::Status, with the field and the waiting time in trailing metadata. Any thread.
#pragma once

#include <grpcpp/grpcpp.h>

#include "server/api/api_error.h"

namespace lacuna::server {

grpc::StatusCode GrpcCodeOf(ErrorKind kind);

// Also adds the trailers "lacuna-param" and "retry-after" to `context`; before Finish only.
grpc::Status ToGrpcStatus(const ApiError& error, grpc::CallbackServerContext& context);

}  // namespace lacuna::server
