#include "server/http/http_server.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/http/connection.h"
#include "server/http/head_check.h"

namespace lacuna::server {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);
constexpr std::chrono::milliseconds kPoll(5);

// Best effort, without waiting: the socket buffer of a fresh connection takes it.
void TurnAway(tcp::socket socket) {
  ResponseFrame frame;
  frame.keep_alive = false;
  frame.headers.emplace_back("x-request-id", "req_" + RandomHex(24));
  const std::string bytes =
      FormatReply(ErrorReply({ErrorKind::kOverloaded, "Too many connections.", {}}), frame);
  error_code ignored;
  socket.non_blocking(true, ignored);
  socket.write_some(asio::buffer(bytes), ignored);
  socket.shutdown(tcp::socket::shutdown_both, ignored);
}

Result<tcp::endpoint> Resolve(asio::io_context& context, const HttpOptions& options) {
  error_code error;
  tcp::resolver resolver(context);
  const auto found =
      resolver.resolve(options.host, std::to_string(options.port), tcp::resolver::passive, error);
  if (error || found.empty()) {
    return InvalidArgument("http.host: " + options.host + ": no such address");
  }
  return found.begin()->endpoint();
}

}  // namespace

class HttpServer::Impl final {
 public:
  Impl(const HttpOptions& options, ApiContext& api)
      : options_(options), api_(api), host_{options_, api_}, acceptor_(context_) {}

  Status Listen() {
    LACUNA_ASSIGN_OR_RETURN(const tcp::endpoint endpoint, Resolve(context_, options_));
    if (!endpoint.address().is_loopback() && !api_.admit.allows_public()) {
      return InvalidArgument(
          "http.host: " + options_.host +
          " can be reached by others: set admit.api_keys_file, or allow_public_without_key");
    }
    error_code error;
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) {
      return InvalidArgument("http.port: " + options_.host + ":" + std::to_string(options_.port) +
                             ": " + error.message());
    }
    port_ = acceptor_.local_endpoint(error).port();
    asio::co_spawn(context_, Accept(), [](const std::exception_ptr&) {});
    for (int64_t i = 0; i < options_.io_threads; ++i) {
      threads_.emplace_back([this] { context_.run(); });
    }
    return OkStatus();
  }

  int port() const { return port_; }

  void BeginDrain() {
    api_.draining = true;
    asio::post(context_, [this] {
      error_code ignored;
      acceptor_.close(ignored);
    });
    for (const auto& connection : List()) connection->Drain();
  }

  bool WaitIdle(TimePoint until) {
    while (host_.requests_in_progress > 0) {
      if (std::chrono::steady_clock::now() >= until) return false;
      std::this_thread::sleep_for(kPoll);
    }
    return true;
  }

  int Stop() {
    constexpr std::chrono::seconds kCutTime(2);  // to write the last event of a cut stream
    if (threads_.empty()) return 0;
    BeginDrain();
    const TimePoint until = std::chrono::steady_clock::now() + kCutTime;
    for (const auto& connection : List()) connection->Cut();
    while (!List().empty() && std::chrono::steady_clock::now() < until) {
      std::this_thread::sleep_for(kPoll);
    }
    while (host_.handlers_running > 0) std::this_thread::sleep_for(kPoll);  // bounded work
    context_.stop();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    connections_.clear();  // sockets must not outlive the context
    return static_cast<int>(host_.requests_cut + host_.requests_in_progress);
  }

 private:
  std::vector<std::shared_ptr<Connection>> List() {
    const std::lock_guard lock(mutex_);
    return {connections_.begin(), connections_.end()};
  }

  asio::awaitable<void> Accept() {
    constexpr std::chrono::milliseconds kRetry(100);
    while (acceptor_.is_open()) {
      auto [error, socket] = co_await acceptor_.async_accept(asio::make_strand(context_), kTuple);
      if (!error) {
        Adopt(std::move(socket));
      } else if (acceptor_.is_open()) {  // no descriptor left, or the peer gave up already
        asio::steady_timer timer(context_, kRetry);
        co_await timer.async_wait(kTuple);
      }
    }
  }

  void Adopt(tcp::socket socket) {
    error_code error;
    const asio::ip::address address = socket.remote_endpoint(error).address();
    if (error) return;
    if (!Count(address)) return TurnAway(std::move(socket));
    const auto executor = socket.get_executor();
    auto connection = std::make_shared<Connection>(std::move(socket), host_);
    {
      const std::lock_guard lock(mutex_);
      connections_.insert(connection);
    }
    api_.metrics.AddConnections(1);
    asio::co_spawn(
        executor, connection->Run(),
        [this, connection, address](const std::exception_ptr&) { Drop(connection, address); });
  }

  // False when one more connection from there would be too many.
  bool Count(const asio::ip::address& address) {
    const std::lock_guard lock(mutex_);
    if (static_cast<int64_t>(connections_.size()) >= options_.connections_max) return false;
    int64_t& count = per_address_[address];
    if (count >= options_.connections_per_address_max) return false;
    ++count;
    return true;
  }

  void Drop(const std::shared_ptr<Connection>& connection, const asio::ip::address& address) {
    api_.metrics.AddConnections(-1);
    const std::lock_guard lock(mutex_);
    connections_.erase(connection);
    const auto it = per_address_.find(address);
    if (--it->second == 0) per_address_.erase(it);
  }

  const HttpOptions options_;
  ApiContext& api_;
  ConnectionHost host_;
  std::mutex mutex_;
  std::set<std::shared_ptr<Connection>> connections_;
  std::map<asio::ip::address, int64_t> per_address_;
  int port_ = 0;
  // Last: what it still holds when it dies may reach all of the above.
  asio::io_context context_;
  tcp::acceptor acceptor_;
  std::vector<std::thread> threads_;
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() { impl_->Stop(); }

Result<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpOptions& options, ApiContext& api) {
  auto impl = std::make_unique<Impl>(options, api);
  LACUNA_RETURN_IF_ERROR(impl->Listen());
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

int HttpServer::port() const { return impl_->port(); }
void HttpServer::BeginDrain() { impl_->BeginDrain(); }
bool HttpServer::WaitIdle(TimePoint until) { return impl_->WaitIdle(until); }
int HttpServer::Stop() { return impl_->Stop(); }

}  // namespace lacuna::server
