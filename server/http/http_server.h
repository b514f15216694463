// HttpServer: listener, I/O threads and the two-phase stop.
//
// Owned by the serve command; Start, BeginDrain, WaitIdle and Stop are called from one thread. Each
// connection lives on its own strand; `api` and all it points to must outlive this object.
#pragma once

#include <memory>

#include "kernels/core/clock.h"
#include "kernels/core/status.h"
#include "server/api/api_context.h"
#include "server/http/http_options.h"

namespace lacuna::server {

class HttpServer final {
 public:
  // Binds, listens and serves. kInvalidArgument: the address cannot be used, or it is public while
  // there are no keys and admit.allow_public_without_key is false.
  static Result<std::unique_ptr<HttpServer>> Start(const HttpOptions& options, ApiContext& api);
  ~HttpServer();

  int port() const;

  // Phase one: no new connections, api.draining on (readiness and new work answer 503), idle
  // connections closed; what runs goes on.
  void BeginDrain();
  // True once no request is in progress; false when `until` passed first.
  bool WaitIdle(TimePoint until);
  // Phase two: ends what still runs with an error event, closes everything, joins. Returns the
  // number of requests that were cut.
  int Stop();

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace lacuna::server
