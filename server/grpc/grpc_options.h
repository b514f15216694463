// GrpcOptions: the gRPC listener and its limits (section "grpc" of the config).
// A plain struct with its field table; server/config fills it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/field_table.h"

namespace lacuna::server {

struct GrpcOptions final {
  bool enabled = true;
  std::string host = "127.0.0.1";
  int64_t port = 50051;
  bool reflection = true;
  int64_t message_bytes_max = 4 << 20;
  int64_t calls_max = 256;
  int64_t streams_per_connection_max = 128;
  int64_t ping_min_ms = 10'000;
  int64_t write_stall_ms = 30'000;
};

inline const std::vector<Field<GrpcOptions>>& GrpcFields() {
  using O = GrpcOptions;
  static const std::vector<Field<O>> kFields = {
      {"enabled", "Listen for gRPC at all.", &O::enabled},
      {"host", "Address to listen on.", &O::host, 1, 255},
      {"port", "TCP port; 0 picks a free one.", &O::port, 0, 65535},
      {"reflection", "Serve the schema by reflection, so that grpcurl needs no files.",
       &O::reflection},
      {"message_bytes_max", "Largest message a client may send.", &O::message_bytes_max, 64,
       1 << 30},
      {"calls_max", "Calls in flight; one more is answered RESOURCE_EXHAUSTED.", &O::calls_max, 1,
       1 << 16},
      {"streams_per_connection_max", "Calls in flight on one connection.",
       &O::streams_per_connection_max, 1, 1 << 16},
      {"ping_min_ms", "A client that sends keepalive pings more often is disconnected.",
       &O::ping_min_ms, 10, 3'600'000},
      {"write_stall_ms",
       "How long a client may leave a message unread before its request is dropped.",
       &O::write_stall_ms, 10, 3'600'000},
  };
  return kFields;
}

}  // namespace lacuna::server
