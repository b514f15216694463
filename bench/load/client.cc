#include "bench/load/client.h"

#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "bench/load/answer_reader.h"

namespace lacuna::bench {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::use_awaitable;
using nlohmann::json;
using HttpRequest = http::request<http::string_body>;

double Since(TimePoint start) { return Seconds(std::chrono::steady_clock::now() - start); }

// Words of three letters: about one token each with most vocabularies.
std::string Words(const LoadConfig& config, const PlannedRequest& request) {
  std::string text;
  for (const int32_t id : PromptIds(config, request)) {
    const auto value = static_cast<uint32_t>(id);
    text += text.empty() ? "" : " ";
    for (const uint32_t letter : {value % 26, value / 26 % 26, value / 676 % 26}) {
      text.push_back(static_cast<char>('a' + letter));
    }
  }
  return text;
}

std::string Body(const ClientContext& context, const PlannedRequest& request) {
  const LoadConfig& config = context.config;
  json body = {{"model", context.model},
               {"max_tokens", request.output_tokens},
               {"temperature", config.request.temperature},
               {"ignore_eos", config.request.ignore_eos},
               {"stream", config.endpoint.stream}};
  if (!config.request.stop.empty()) body["stop"] = config.request.stop;
  if (config.endpoint.stream) body["stream_options"] = {{"include_usage", true}};
  if (config.endpoint.api == "chat") {
    body["messages"] = {{{"role", "user"}, {"content", Words(config, request)}}};
  } else {
    body["prompt"] = PromptIds(config, request);
  }
  return body.dump();
}

HttpRequest MakeRequest(const ClientContext& context, http::verb verb, const std::string& path) {
  HttpRequest message(verb, context.url.base + path, 11);
  message.set(http::field::host, context.url.host_header());
  message.set(http::field::user_agent, "lacuna-bench");
  if (!context.api_key.empty()) {
    message.set(http::field::authorization, "Bearer " + context.api_key);
  }
  return message;
}

std::string ErrorName(const beast::error_code& error) {
  if (error == beast::error::timeout) return "timeout";
  if (error == http::error::end_of_stream || error == asio::error::eof ||
      error == http::error::partial_message) {
    return "truncated";
  }
  if (error == asio::error::connection_reset || error == asio::error::broken_pipe) {
    return "connection reset";
  }
  if (error == asio::error::connection_refused) return "connection refused";
  return error.message();
}

}  // namespace

asio::awaitable<void> Client::Connect() {
  stream_ = std::make_unique<beast::tcp_stream>(co_await asio::this_coro::executor);
  stream_->expires_after(std::chrono::milliseconds(context_.config.endpoint.timeout_ms));
  co_await stream_->async_connect(context_.addresses, use_awaitable);
  stream_->socket().set_option(asio::ip::tcp::no_delay(true));
}

asio::awaitable<Sample> Client::Run(const PlannedRequest& request, TimePoint due) {
  Sample sample;
  std::string body = Body(context_, request);
  sample.input_tokens = request.prompt_tokens;
  sample.send_lag_s = Since(due);
  try {
    if (stream_ == nullptr) co_await Connect();
    co_await Exchange(request, std::move(body), due, sample);
  } catch (const boost::system::system_error& error) {
    sample.end = Sample::End::kFailed;
    sample.error = ErrorName(error.code());
  }
  if (sample.end != Sample::End::kCompleted) stream_.reset();
  co_return sample;
}

asio::awaitable<void> Client::Exchange(const PlannedRequest& request, std::string body,
                                       TimePoint due, Sample& sample) {
  const EndpointOptions& endpoint = context_.config.endpoint;
  const bool chat = endpoint.api == "chat";
  HttpRequest message =
      MakeRequest(context_, http::verb::post, chat ? "/v1/chat/completions" : "/v1/completions");
  message.set(http::field::content_type, "application/json");
  message.body() = std::move(body);
  message.prepare_payload();
  stream_->expires_after(std::chrono::milliseconds(endpoint.timeout_ms));
  co_await http::async_write(*stream_, message, use_awaitable);

  // Where the client walks away: after that many pieces of content, or at once.
  const double share = request.cancel_after.value_or(2.0);
  const auto pieces_until_cancel =
      static_cast<int64_t>(share * static_cast<double>(request.output_tokens));
  const auto cancelled = [&](int64_t pieces) {
    return request.cancel_after && pieces >= pieces_until_cancel;
  };
  sample.end = Sample::End::kCancelled;
  if (request.cancel_after && (!endpoint.stream || pieces_until_cancel == 0)) {
    // Somewhere between the request's arrival and its first tokens.
    asio::steady_timer timer(co_await asio::this_coro::executor);
    timer.expires_after(std::chrono::microseconds(static_cast<int64_t>(share * 1e5)));
    co_await timer.async_wait(use_awaitable);
    co_return;
  }

  beast::flat_buffer buffer;
  http::response_parser<http::string_body> parser;
  parser.body_limit(boost::none);
  co_await http::async_read_header(*stream_, buffer, parser, use_awaitable);
  AnswerReader reader(parser.get().result_int(), endpoint.stream, chat);
  TimePoint last{};
  while (!parser.is_done()) {
    co_await http::async_read_some(*stream_, buffer, parser, use_awaitable);
    const int64_t before = reader.pieces();
    reader.Push(std::exchange(parser.get().body(), std::string()));
    if (reader.pieces() == before) continue;
    const TimePoint now = std::chrono::steady_clock::now();
    if (before == 0) {
      sample.ttft_s = Seconds(now - due);
    } else {
      // Pieces that came together share the gap before them.
      const auto count = static_cast<size_t>(reader.pieces() - before);
      sample.itl_s.insert(sample.itl_s.end(), count,
                          Seconds(now - last) / static_cast<double>(count));
    }
    last = now;
    if (cancelled(reader.pieces())) co_return;
  }
  reader.Finish();
  sample.e2el_s = Since(due);
  if (reader.pieces() == 0) sample.ttft_s = sample.e2el_s;
  if (reader.input_tokens() > 0) sample.input_tokens = reader.input_tokens();
  sample.output_tokens = reader.output_tokens();
  sample.error = reader.error();
  sample.end = sample.error.empty() ? Sample::End::kCompleted : Sample::End::kFailed;
  if (!parser.keep_alive()) stream_.reset();
}

asio::awaitable<Result<std::string>> Get(const ClientContext& context, std::string path) {
  try {
    beast::tcp_stream stream(co_await asio::this_coro::executor);
    stream.expires_after(std::chrono::seconds(10));
    co_await stream.async_connect(context.addresses, use_awaitable);
    const HttpRequest message = MakeRequest(context, http::verb::get, path);
    co_await http::async_write(stream, message, use_awaitable);
    beast::flat_buffer buffer;
    http::response_parser<http::string_body> parser;
    parser.body_limit(64 << 20);
    co_await http::async_read(stream, buffer, parser, use_awaitable);
    if (parser.get().result_int() != 200) {
      co_return NotFound(path + ": HTTP " + std::to_string(parser.get().result_int()));
    }
    co_return std::move(parser.get().body());
  } catch (const boost::system::system_error& error) {
    co_return Status(StatusCode::kUnavailable, path + ": " + ErrorName(error.code()));
  }
}

}  // namespace lacuna::bench
