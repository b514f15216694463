#include "server/grpc/caller.h"

#include <string_view>

namespace lacuna::server {

ApiResult<Caller> AdmitCall(ApiContext& api, const grpc::CallbackServerContext& context) {
  std::string_view authorization;
  const auto [begin, end] = context.client_metadata().equal_range("authorization");
  // Two keys are no key: nobody should have to guess which one counts.
  if (begin != end && std::next(begin) == end) {
    authorization = {begin->second.data(), begin->second.size()};
  }
  Result<Caller> caller = api.admit.Authenticate(authorization);
  if (!caller.ok()) return FromStatus(caller.status());
  if (api.draining.load(std::memory_order_relaxed)) {
    return ApiError{ErrorKind::kDraining, "The server is stopping.", {}};
  }
  if (!api.engine.healthy()) {
    return ApiError{ErrorKind::kEngineDown, "The device failed; the server must be restarted.", {}};
  }
  if (const int wait_s = api.admit.TakeRate(*caller); wait_s > 0) {
    return ApiError{ErrorKind::kRateLimit, "The rate limit of this key is exceeded.", {}, wait_s};
  }
  return *caller;
}

}  // namespace lacuna::server
