// Who calls: metadata "authorization" through server/admit, then rate and drain. Any thread.
#pragma once

#include <grpcpp/grpcpp.h>

#include "server/admit/admit.h"
#include "server/api/api_context.h"
#include "server/api/api_error.h"

namespace lacuna::server {

ApiResult<Caller> AdmitCall(ApiContext& api, const grpc::CallbackServerContext& context);

}  // namespace lacuna::server
