// Client: the coroutines of the load test. One io_context thread runs all of them.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <string>

#include "bench/load/load_config.h"
#include "bench/load/report.h"
#include "bench/load/schedule.h"
#include "kernels/core/clock.h"
#include "server/client/http_client.h"

namespace lacuna::bench {

// What all clients of a run share; frozen before they start.
struct ClientContext final {
  const LoadConfig& config;
  server::HttpTarget target;
  std::string model;
};

// One client: keeps its connection between requests, unless it went away or the server closed it.
class Client final {
 public:
  explicit Client(const ClientContext& context) : context_(context), http_(context.target) {}

  // Sends one request and reads its answer to the end. `due` is when it should have been sent.
  boost::asio::awaitable<Sample> Run(const PlannedRequest& request, TimePoint due);

 private:
  // How it went, "" when it came to its end.
  boost::asio::awaitable<std::string> Exchange(const PlannedRequest& request, std::string body,
                                               TimePoint due, Sample& sample);

  const ClientContext& context_;
  server::HttpClient http_;
};

}  // namespace lacuna::bench
