// Client: HTTP/1.1 coroutines for the load test. One io_context thread runs all of them.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <memory>
#include <string>
#include <string_view>

#include "bench/load/load_config.h"
#include "bench/load/report.h"
#include "bench/load/schedule.h"
#include "bench/load/url.h"
#include "kernels/core/clock.h"
#include "kernels/core/status.h"

namespace lacuna::bench {

// What all clients of a run share; frozen before they start.
struct ClientContext final {
  const LoadConfig& config;
  Url url;
  std::string api_key;  // empty: none
  std::string model;
  boost::asio::ip::tcp::resolver::results_type addresses;
};

// One client: keeps its connection between requests, unless it went away or the server closed it.
class Client final {
 public:
  explicit Client(const ClientContext& context) : context_(context) {}

  // Sends one request and reads its answer to the end. `due` is when it should have been sent.
  boost::asio::awaitable<Sample> Run(const PlannedRequest& request, TimePoint due);

 private:
  boost::asio::awaitable<void> Connect();
  boost::asio::awaitable<void> Exchange(const PlannedRequest& request, std::string body,
                                        TimePoint due, Sample& sample);

  const ClientContext& context_;
  std::unique_ptr<boost::beast::tcp_stream> stream_;  // null: not connected
};

// GET of a small page. kUnavailable: no answer; kNotFound: another status than 200.
boost::asio::awaitable<Result<std::string>> Get(const ClientContext& context, std::string path);

}  // namespace lacuna::bench
