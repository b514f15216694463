// Connection: one client's socket: reads requests under the limits, answers each, keeps alive.
//
// Owned by its coroutines and listed by ConnectionHost; all state on the socket's strand. Any parse
// error closes: a connection that was misread once is never read again.
#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "server/api/responder.h"
#include "server/api/routes.h"
#include "server/http/event_pump.h"
#include "server/http/http_options.h"
#include "server/http/response_writer.h"

namespace lacuna::server {

// What all connections share. Outlives them.
struct ConnectionHost final {
  const HttpOptions& options;
  ApiContext& api;
  std::atomic<int64_t> requests_in_progress{0};
  std::atomic<int64_t> requests_cut{0};
  // Handlers on text workers: they hold objects of the I/O context, which must not die before.
  std::atomic<int64_t> handlers_running{0};
};

class Connection final : public std::enable_shared_from_this<Connection> {
 public:
  Connection(boost::asio::ip::tcp::socket socket, ConnectionHost& host);

  // Serves until the connection ends; the socket is closed then.
  boost::asio::awaitable<void> Run();

  // Any thread. Closes after the request in progress, at once if there is none.
  void Drain();
  // Any thread. Ends the request in progress with an error, then closes.
  void Cut();

 private:
  // The parsed head of one request, and its body once that was read.
  struct Incoming final {
    std::string method, target, content_type, authorization, origin, cors_headers, host, request_id;
    bool http_1_0 = false;
    bool keep_alive = true;
    bool expects_continue = false;
    HttpRequest request;
  };
  class Deadline;  // cancels the socket's operations when it expires

  // An error with an empty message: the client went away.
  template <typename Parser>
  boost::asio::awaitable<std::optional<ApiError>> ReadBody(Parser& parser, Incoming& incoming);

  // False: the connection is over, without an answer or after an error's.
  boost::asio::awaitable<bool> ReadHead();
  boost::asio::awaitable<bool> ServeOne();
  boost::asio::awaitable<bool> Answer(Incoming& incoming, std::optional<ApiError> error);
  std::optional<ApiError> CheckCaller(Incoming& incoming, const RouteMatch& match);
  boost::asio::awaitable<HandlerResult> RunHandler(const Route& route, HttpRequest request);
  boost::asio::awaitable<bool> Generate(Responder& responder);
  boost::asio::awaitable<bool> GenerateOn(EventPump& pump, Responder& responder);

  boost::asio::awaitable<bool> WriteReply(const HttpReply& reply);
  boost::asio::awaitable<bool> Write(std::string bytes);
  // Answers an error after which the stream of bytes cannot be trusted, and lingers so that the
  // client can read it.
  boost::asio::awaitable<void> Refuse(const ApiError& error);
  void FrameFor(const Incoming& incoming, const RouteMatch& match);
  bool HostAllowed(std::string_view host) const;
  std::string AllowedOrigin(const Incoming& incoming) const;
  void Count(int status);

  boost::asio::ip::tcp::socket socket_;
  ConnectionHost& host_;
  boost::asio::steady_timer deadline_;
  boost::beast::flat_buffer buffer_;
  ResponseFrame frame_;
  std::string_view handler_ = "other";  // of the request in progress, for metrics
  std::string_view method_ = "other";
  std::shared_ptr<EventPump> pump_;  // while a response is generated
  bool busy_ = false;
  bool draining_ = false;
  bool cut_ = false;
};

}  // namespace lacuna::server
