// HttpClient: HTTP/1.1 coroutines over one connection that is kept between calls; for the commands
// that are clients of a server (bench serve, eval). One io_context thread runs all of them.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/verb.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/core/status.h"
#include "server/client/url.h"

namespace lacuna::server {

// Whom to talk to; frozen before the clients start.
struct HttpTarget final {
  Url url;
  boost::asio::ip::tcp::resolver::results_type addresses;
  std::string api_key;  // empty: none
  std::string user_agent = "lacuna";
  int64_t timeout_ms = 600'000;  // of one call
};

// Finds the addresses of `url`. kUnavailable: "HOST: ...".
Result<HttpTarget> ResolveTarget(boost::asio::io_context& io, Url url);

// The messages of failed calls are classes: "timeout", "truncated", "connection reset",
// "connection refused", or what the system says. A failure closes the connection.
class HttpClient final {
 public:
  explicit HttpClient(const HttpTarget& target) : target_(target) {}

  // Writes a request (a body is JSON), after connecting where that is needed.
  boost::asio::awaitable<Status> Send(boost::beast::http::verb verb, std::string path,
                                      std::string body);

  // Sees the status of the answer, and its body as it comes. False: walk away.
  using OnBytes = std::function<bool(unsigned http_status, std::string_view bytes)>;
  // Reads the answer to its end, or until `on_bytes` walks away, and gives its status. `on_bytes`
  // is called at least once, with nothing if the body is empty.
  boost::asio::awaitable<Result<unsigned>> Receive(OnBytes on_bytes);

  void Close() { stream_.reset(); }

 private:
  boost::asio::awaitable<void> Connect();

  const HttpTarget& target_;
  std::unique_ptr<boost::beast::tcp_stream> stream_;  // null: not connected
};

// GET of a small page. kUnavailable: no answer; kNotFound: another status than 200.
boost::asio::awaitable<Result<std::string>> HttpGet(const HttpTarget& target, std::string path);
// The same, running `io` until it is done.
Result<std::string> Fetch(boost::asio::io_context& io, const HttpTarget& target, std::string path);

// The first model that /v1/models lists.
Result<std::string> FirstModel(boost::asio::io_context& io, const HttpTarget& target);

}  // namespace lacuna::server
