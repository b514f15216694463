// GrpcServer: the listener of lacuna.v1.Inference, grpc.health.v1.Health and reflection.
//
// Owned by main. Stop order: BeginDrain (health says NOT_SERVING, new calls are UNAVAILABLE, what
// runs goes on) -> Shutdown -> destructor. No gRPC header is seen by its users.
#pragma once

#include <memory>
#include <string>

#include "kernels/core/clock.h"
#include "kernels/core/status.h"
#include "server/api/api_context.h"
#include "server/grpc/grpc_options.h"

namespace lacuna::server {

class GrpcServer final {
 public:
  // Listens at once. `api` outlives the server. kUnavailable: the address cannot be bound.
  static Result<std::unique_ptr<GrpcServer>> Start(const GrpcOptions& options, ApiContext& api);
  ~GrpcServer();  // Shutdown at once

  int port() const;
  void SetServing(bool serving);  // health of every service; true after Start
  // Health first, then intake; the listener still answers.
  void BeginDrain();
  // Closes the listener, waits for running calls until then and cuts the rest. Blocks.
  void Shutdown(TimePoint until);

 private:
  struct Parts;
  explicit GrpcServer(std::unique_ptr<Parts> parts);
  const std::unique_ptr<Parts> parts_;
};

}  // namespace lacuna::server
