// HttpOptions: the listener, its time limits and its size limits (section "http" of the config).
// A plain struct with its field table; server/config fills it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/field_table.h"

namespace lacuna::server {

struct HttpOptions final {
  std::string host = "127.0.0.1";
  int64_t port = 8000;
  int64_t io_threads = 1;
  std::vector<std::string> allowed_hosts;
  std::vector<std::string> cors_origins;

  int64_t request_line_bytes_max = 8 << 10;
  int64_t header_bytes_max = 16 << 10;
  int64_t header_fields_max = 64;
  int64_t body_bytes_max = 4 << 20;
  int64_t chunks_max = 4096;
  int64_t chunk_extension_bytes_max = 256;
  int64_t connections_max = 4096;
  int64_t connections_per_address_max = 256;

  int64_t header_timeout_ms = 10'000;
  int64_t body_timeout_ms = 30'000;
  int64_t keep_alive_ms = 60'000;
  int64_t write_stall_ms = 30'000;
  int64_t early_headers_ms = 200;
  int64_t ping_ms = 10'000;
  int64_t drain_ms = 30'000;
};

inline const std::vector<Field<HttpOptions>>& HttpFields() {
  using O = HttpOptions;
  static const std::vector<Field<O>> kFields = {
      {"host", "Address to listen on.", &O::host, 1, 255},
      {"port", "TCP port; 0 picks a free one.", &O::port, 0, 65535},
      {"io_threads", "Threads that read and write sockets.", &O::io_threads, 1, 16},
      {"allowed_hosts",
       "Host names a request may carry, without port; empty: loopback names only when listening on "
       "loopback, any name otherwise.",
       &O::allowed_hosts, 0, 64},
      {"cors_origins", "Origins that browsers may call from, or \"*\"; empty: none.",
       &O::cors_origins, 0, 64},
      {"request_line_bytes_max", "Longest request line and longest header line.",
       &O::request_line_bytes_max, 64, 1 << 20},
      {"header_bytes_max", "All header lines together.", &O::header_bytes_max, 256, 1 << 20},
      {"header_fields_max", "Number of header fields.", &O::header_fields_max, 1, 1024},
      {"body_bytes_max", "Largest request body.", &O::body_bytes_max, 64, 1 << 30},
      {"chunks_max", "Chunks of one chunked request body.", &O::chunks_max, 1, 1 << 20},
      {"chunk_extension_bytes_max", "Extension bytes of one chunk.", &O::chunk_extension_bytes_max,
       0, 4096},
      {"connections_max", "Open connections.", &O::connections_max, 1, 1 << 20},
      {"connections_per_address_max", "Open connections from one address.",
       &O::connections_per_address_max, 1, 1 << 20},
      {"header_timeout_ms", "From the first byte of a request to the end of its header.",
       &O::header_timeout_ms, 10, 3'600'000},
      {"body_timeout_ms", "To read a whole body.", &O::body_timeout_ms, 10, 3'600'000},
      {"keep_alive_ms", "How long an idle connection stays open.", &O::keep_alive_ms, 10,
       3'600'000},
      {"write_stall_ms",
       "How long a client may leave a write unread before its request is dropped.",
       &O::write_stall_ms, 10, 3'600'000},
      {"early_headers_ms",
       "A stream's headers are sent after this time although no token is there yet.",
       &O::early_headers_ms, 0, 60'000},
      {"ping_ms", "A quiet stream gets a comment line this often.", &O::ping_ms, 10, 600'000},
      {"drain_ms", "How long running requests may go on after a stop signal.", &O::drain_ms, 0,
       3'600'000},
  };
  return kFields;
}

}  // namespace lacuna::server
