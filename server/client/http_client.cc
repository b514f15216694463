#include "server/client/http_client.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <nlohmann/json.hpp>
#include <utility>

namespace lacuna::server {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::use_awaitable;

constexpr int64_t kPageTimeoutMs = 10'000;
constexpr size_t kPageBytesMax = 64 << 20;

Status Failed(const beast::error_code& error) {
  std::string name = error.message();
  if (error == beast::error::timeout) name = "timeout";
  if (error == http::error::end_of_stream || error == asio::error::eof ||
      error == http::error::partial_message) {
    name = "truncated";
  }
  if (error == asio::error::connection_reset || error == asio::error::broken_pipe) {
    name = "connection reset";
  }
  if (error == asio::error::connection_refused) name = "connection refused";
  return {StatusCode::kUnavailable, std::move(name)};
}

}  // namespace

Result<HttpTarget> ResolveTarget(asio::io_context& io, Url url) {
  beast::error_code error;
  HttpTarget target;
  target.addresses = asio::ip::tcp::resolver(io).resolve(url.host, url.port, error);
  if (error) return Status(StatusCode::kUnavailable, url.host + ": " + error.message());
  target.url = std::move(url);
  return target;
}

asio::awaitable<void> HttpClient::Connect() {
  stream_ = std::make_unique<beast::tcp_stream>(co_await asio::this_coro::executor);
  stream_->expires_after(std::chrono::milliseconds(target_.timeout_ms));
  co_await stream_->async_connect(target_.addresses, use_awaitable);
  stream_->socket().set_option(asio::ip::tcp::no_delay(true));
}

asio::awaitable<Status> HttpClient::Send(http::verb verb, std::string path, std::string body) {
  http::request<http::string_body> message(verb, target_.url.base + path, 11);
  message.set(http::field::host, target_.url.host_header());
  message.set(http::field::user_agent, target_.user_agent);
  if (!target_.api_key.empty()) {
    message.set(http::field::authorization, "Bearer " + target_.api_key);
  }
  if (!body.empty()) message.set(http::field::content_type, "application/json");
  message.body() = std::move(body);
  message.prepare_payload();
  Status status;
  try {
    if (stream_ == nullptr) co_await Connect();
    stream_->expires_after(std::chrono::milliseconds(target_.timeout_ms));
    co_await http::async_write(*stream_, message, use_awaitable);
  } catch (const boost::system::system_error& error) {
    status = Failed(error.code());
    Close();
  }
  co_return status;
}

asio::awaitable<Result<unsigned>> HttpClient::Receive(OnBytes on_bytes) {
  beast::flat_buffer buffer;
  http::response_parser<http::string_body> parser;
  parser.body_limit(boost::none);
  try {
    co_await http::async_read_header(*stream_, buffer, parser, use_awaitable);
    const unsigned status = parser.get().result_int();
    bool stay = parser.is_done() ? on_bytes(status, "") : true;
    while (stay && !parser.is_done()) {
      co_await http::async_read_some(*stream_, buffer, parser, use_awaitable);
      stay = on_bytes(status, std::exchange(parser.get().body(), std::string()));
    }
    if (!stay || !parser.keep_alive()) Close();
    co_return status;
  } catch (const boost::system::system_error& error) {
    Close();
    co_return Failed(error.code());
  }
}

asio::awaitable<Result<std::string>> HttpGet(const HttpTarget& target, std::string path) {
  HttpTarget quick = target;
  quick.timeout_ms = kPageTimeoutMs;
  HttpClient client(quick);
  const Status sent = co_await client.Send(http::verb::get, path, "");
  if (!sent.ok()) co_return Status(sent.code(), path + ": " + sent.message());
  std::string page;
  const Result<unsigned> status = co_await client.Receive([&](unsigned, std::string_view bytes) {
    page.append(bytes);
    return page.size() <= kPageBytesMax;
  });
  if (!status.ok())
    co_return Status(status.status().code(), path + ": " + status.status().message());
  if (*status != 200) co_return NotFound(path + ": HTTP " + std::to_string(*status));
  co_return page;
}

Result<std::string> Fetch(asio::io_context& io, const HttpTarget& target, std::string path) {
  Result<std::string> page = Status(StatusCode::kUnavailable, path + ": no answer");
  asio::co_spawn(
      io, [&]() -> asio::awaitable<void> { page = co_await HttpGet(target, std::move(path)); },
      asio::detached);
  io.restart();
  io.run();
  return page;
}

Result<std::string> FirstModel(asio::io_context& io, const HttpTarget& target) {
  LACUNA_ASSIGN_OR_RETURN(const std::string page, Fetch(io, target, "/v1/models"));
  const auto json = nlohmann::json::parse(page, nullptr, false);
  const nlohmann::json::json_pointer id("/data/0/id");
  if (json.is_discarded() || !json.contains(id) || !json.at(id).is_string()) {
    return Status(StatusCode::kUnavailable, "/v1/models: no model in the answer");
  }
  return json.at(id).get<std::string>();
}

}  // namespace lacuna::server
