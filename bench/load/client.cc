#include "bench/load/client.h"

#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "server/client/answer_reader.h"

namespace lacuna::bench {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::use_awaitable;
using nlohmann::json;

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

}  // namespace

asio::awaitable<Sample> Client::Run(const PlannedRequest& request, TimePoint due) {
  Sample sample;
  std::string body = Body(context_, request);
  sample.input_tokens = request.prompt_tokens;
  sample.send_lag_s = Since(due);
  sample.error = co_await Exchange(request, std::move(body), due, sample);
  if (!sample.error.empty()) sample.end = Sample::End::kFailed;
  if (sample.end != Sample::End::kCompleted) http_.Close();
  co_return sample;
}

asio::awaitable<std::string> Client::Exchange(const PlannedRequest& request, std::string body,
                                              TimePoint due, Sample& sample) {
  const EndpointOptions& endpoint = context_.config.endpoint;
  const bool chat = endpoint.api == "chat";
  const Status sent = co_await http_.Send(
      http::verb::post, chat ? "/v1/chat/completions" : "/v1/completions", std::move(body));
  if (!sent.ok()) co_return sent.message();

  // Where the client walks away: after that many pieces of content, or at once.
  const double share = request.cancel_after.value_or(2.0);
  const auto pieces_until_cancel =
      static_cast<int64_t>(share * static_cast<double>(request.output_tokens));
  sample.end = Sample::End::kCancelled;
  if (request.cancel_after && (!endpoint.stream || pieces_until_cancel == 0)) {
    // Somewhere between the request's arrival and its first tokens.
    asio::steady_timer timer(co_await asio::this_coro::executor);
    timer.expires_after(std::chrono::microseconds(static_cast<int64_t>(share * 1e5)));
    co_await timer.async_wait(use_awaitable);
    co_return "";
  }

  std::optional<server::AnswerReader> reader;
  TimePoint last{};
  bool left = false;
  const Result<unsigned> status =
      co_await http_.Receive([&](unsigned http_status, std::string_view bytes) {
        if (!reader) reader.emplace(http_status, endpoint.stream, chat);
        const int64_t before = reader->pieces();
        reader->Push(bytes);
        if (reader->pieces() == before) return true;
        const TimePoint now = std::chrono::steady_clock::now();
        if (before == 0) {
          sample.ttft_s = Seconds(now - due);
        } else {
          // Pieces that came together share the gap before them.
          const auto count = static_cast<size_t>(reader->pieces() - before);
          sample.itl_s.insert(sample.itl_s.end(), count,
                              Seconds(now - last) / static_cast<double>(count));
        }
        last = now;
        left = request.cancel_after && reader->pieces() >= pieces_until_cancel;
        return !left;
      });
  if (!status.ok()) co_return status.status().message();
  if (left) co_return "";
  reader->Finish();
  sample.e2el_s = Since(due);
  if (reader->pieces() == 0) sample.ttft_s = sample.e2el_s;
  if (reader->input_tokens() > 0) sample.input_tokens = reader->input_tokens();
  sample.output_tokens = reader->output_tokens();
  sample.end = Sample::End::kCompleted;
  co_return reader->error();
}

}  // namespace lacuna::bench
