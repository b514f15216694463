#include "server/http/connection.h"

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <utility>

#include "server/http/head_check.h"

namespace lacuna::server {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::awaitable;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;
using Parser = http::request_parser<http::string_body>;

namespace {

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);
constexpr size_t kReadBytes = 4096;
// An error that is known before the body was read: up to this size the body is read all the same,
// so that the connection can be kept.
constexpr uint64_t kDrainedBodyMax = 64 << 10;

ApiError TooLarge(uint64_t bytes_max) {
  return {ErrorKind::kBodyTooLarge,
          "The body may have at most " + std::to_string(bytes_max) + " bytes.",
          {}};
}

ApiError TooSlow() { return {ErrorKind::kTimeout, "The request came too slowly.", {}}; }

std::string Text(boost::beast::string_view view) { return std::string(view.data(), view.size()); }

// A header sent twice is one list, as HTTP has it; nobody should have to guess which one counts.
std::string JoinedText(const http::request<http::string_body>& message, const char* name) {
  std::string text;
  const auto [begin, end] = message.equal_range(name);
  for (auto it = begin; it != end; ++it) text += (it == begin ? "" : ", ") + Text(it->value());
  return text;
}

bool IsJson(std::string_view content_type) {
  const std::string_view type = content_type.substr(0, content_type.find(';'));
  return content_type.empty() ||
         boost::beast::iequals(
             boost::beast::string_view(type.data(), type.find_last_not_of(" \t") + 1),
             "application/json");
}

// A client's id is echoed when it is short and plain.
bool IsPlainId(std::string_view id) {
  return !id.empty() && id.size() <= 128 && std::ranges::all_of(id, [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
           c == '_' || c == '.' || c == ':';
  });
}

// Libraries below an endpoint may throw, if only for want of memory.
HandlerResult CallHandler(const Route& route, ApiContext& api, const HttpRequest& request) {
  try {
    return route.handler(api, request);
  } catch (const std::exception&) {
    return ErrorReply({ErrorKind::kInternal, "The server had an internal error.", {}});
  }
}

// Bounds of a chunked body that the parser does not know.
struct ChunkGuard final {
  int64_t chunks_left;
  size_t extension_bytes_max;
  void operator()(uint64_t, boost::beast::string_view extension, error_code& error) {
    if (--chunks_left < 0 || extension.size() > extension_bytes_max) {
      error = http::error::bad_chunk;
    }
  }
};

}  // namespace

// Cancels the socket's pending operations when it expires.
class Connection::Deadline final {
 public:
  Deadline(Connection& connection, int64_t timeout_ms) : timer_(connection.deadline_) {
    timer_.expires_after(Milliseconds(timeout_ms));
    timer_.async_wait([self = connection.shared_from_this(), state = state_](error_code error) {
      if (error || state->done) return;
      state->expired = true;
      self->socket_.cancel(error);
    });
  }
  ~Deadline() {
    state_->done = true;
    timer_.cancel();
  }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;
  bool expired() const { return state_->expired; }

 private:
  struct State final {
    bool done = false, expired = false;
  };
  asio::steady_timer& timer_;
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

Connection::Connection(asio::ip::tcp::socket socket, ConnectionHost& host)
    : socket_(std::move(socket)), host_(host), deadline_(socket_.get_executor()) {}

void Connection::Drain() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    self->draining_ = true;
    error_code ignored;
    if (!self->busy_) self->socket_.cancel(ignored);
  });
}

void Connection::Cut() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    self->draining_ = self->cut_ = true;
    error_code ignored;
    if (self->pump_) {
      self->pump_->Notify();
    } else {
      self->socket_.cancel(ignored);
    }
  });
}

awaitable<void> Connection::Run() {
  error_code ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  bool more = true;
  while (more && !draining_) {
    frame_ = ResponseFrame{};
    handler_ = method_ = "other";
    more = co_await ReadHead();
    if (!more) break;
    busy_ = true;
    ++host_.requests_in_progress;
    more = co_await ServeOne();
    --host_.requests_in_progress;
    busy_ = false;
  }
  socket_.shutdown(asio::ip::tcp::socket::shutdown_both, ignored);
  socket_.close(ignored);
}

// Reads until the buffer holds a whole head, and checks its bytes.
awaitable<bool> Connection::ReadHead() {
  const HttpOptions& options = host_.options;
  const auto view = [this] {
    return std::string_view(static_cast<const char*>(buffer_.data().data()), buffer_.size());
  };
  std::optional<Deadline> deadline;
  deadline.emplace(*this, buffer_.size() > 0 ? options.header_timeout_ms : options.keep_alive_ms);
  bool started = buffer_.size() > 0;
  size_t end = std::string_view::npos;
  while ((end = view().find("\r\n\r\n")) == std::string_view::npos) {
    const size_t lf = view().find('\n');
    const bool bare = lf != std::string_view::npos && (lf == 0 || view()[lf - 1] != '\r');
    if (bare || static_cast<int64_t>(buffer_.size()) > options.header_bytes_max) break;
    auto [error, bytes] = co_await socket_.async_read_some(buffer_.prepare(kReadBytes), kTuple);
    if (error) {
      if (deadline->expired() && started) co_await Refuse(TooSlow());
      co_return false;
    }
    buffer_.commit(bytes);
    if (!std::exchange(started, true)) {
      deadline.reset();
      deadline.emplace(*this, options.header_timeout_ms);
    }
  }
  deadline.reset();
  std::optional<ApiError> problem;
  const bool whole = end != std::string_view::npos;
  const std::string_view head = view().substr(0, whole ? end + 4 : std::string_view::npos);
  if (static_cast<int64_t>(head.size()) > options.header_bytes_max) {
    problem = ApiError{ErrorKind::kHeaderTooLarge, "The request header is too large.", {}};
  } else {
    problem = CheckHead(head, {options.request_line_bytes_max, options.header_fields_max});
  }
  if (problem) co_await Refuse(*problem);
  co_return !problem;
}

awaitable<bool> Connection::ServeOne() {
  Parser parser;
  parser.header_limit(static_cast<uint32_t>(2 * host_.options.header_bytes_max));
  parser.body_limit(boost::none);  // checked below, after the caller
  auto [error, bytes] = co_await http::async_read_header(socket_, buffer_, parser, kTuple);
  if (error) {
    co_await Refuse({ErrorKind::kMalformedHttp, "The request is not valid HTTP/1.1.", {}});
    co_return false;
  }
  const auto& message = parser.get();
  Incoming incoming;
  incoming.method = Text(message.method_string());
  incoming.target = Text(message.target());
  incoming.content_type = Text(message[http::field::content_type]);
  incoming.authorization = Text(message[http::field::authorization]);
  incoming.origin = Text(message[http::field::origin]);
  incoming.cors_headers = Text(message[http::field::access_control_request_headers]);
  incoming.host = Text(message[http::field::host]);
  incoming.request_id = Text(message["x-request-id"]);
  incoming.request.sparse_profile = JoinedText(message, "x-lacuna-sparse-profile");
  incoming.request.sparse_budget_tokens = JoinedText(message, "x-lacuna-sparse-budget-tokens");
  incoming.http_1_0 = message.version() == 10;
  incoming.keep_alive = message.keep_alive();
  incoming.expects_continue = boost::beast::iequals(message[http::field::expect], "100-continue");
  incoming.request.path = incoming.target.substr(0, incoming.target.find('?'));

  const RouteMatch match = FindRoute(incoming.method, incoming.request.path);
  FrameFor(incoming, match);
  std::optional<ApiError> problem = CheckCaller(incoming, match);
  const uint64_t length = parser.content_length().value_or(0);
  const auto body_max = static_cast<uint64_t>(host_.options.body_bytes_max);
  if (!problem && length > body_max) problem = TooLarge(body_max);
  const bool keeps_body = length <= std::min(kDrainedBodyMax, body_max) && !parser.chunked() &&
                          !incoming.expects_continue;
  if (problem && !keeps_body) {
    frame_.keep_alive = false;
  } else {
    parser.body_limit(body_max);
    std::optional<ApiError> unread = co_await ReadBody(parser, incoming);
    if (!frame_.keep_alive && unread && unread->message.empty()) co_return false;
    if (!problem) problem = std::move(unread);
  }
  co_return co_await Answer(incoming, std::move(problem));
}

// An error with an empty message: the client went away.
template <typename BodyParser>
awaitable<std::optional<ApiError>> Connection::ReadBody(BodyParser& parser, Incoming& incoming) {
  ChunkGuard guard{host_.options.chunks_max,
                   static_cast<size_t>(host_.options.chunk_extension_bytes_max)};
  parser.on_chunk_header(guard);
  if (incoming.expects_continue && !parser.is_done() &&
      !co_await Write("HTTP/1.1 100 Continue\r\n\r\n")) {
    frame_.keep_alive = false;
    co_return ApiError{};
  }
  Deadline deadline(*this, host_.options.body_timeout_ms);
  auto [error, bytes] = co_await http::async_read(socket_, buffer_, parser, kTuple);
  if (!error) {
    incoming.request.body = std::move(parser.get().body());
    co_return std::nullopt;
  }
  frame_.keep_alive = false;
  if (deadline.expired()) co_return TooSlow();
  if (error == http::error::body_limit) {
    co_return TooLarge(static_cast<uint64_t>(host_.options.body_bytes_max));
  }
  if (error.category() == make_error_code(http::error::bad_chunk).category() &&
      error != http::error::end_of_stream && error != http::error::partial_message) {
    co_return ApiError{ErrorKind::kMalformedHttp, "The body is not framed as HTTP/1.1 says.", {}};
  }
  co_return ApiError{};
}

std::optional<ApiError> Connection::CheckCaller(Incoming& incoming, const RouteMatch& match) {
  ApiContext& api = host_.api;
  if (!HostAllowed(incoming.host)) {
    return ApiError{ErrorKind::kHostForbidden, "This Host is not in http.allowed_hosts.", {}};
  }
  if (match.allow.empty()) {
    return ApiError{ErrorKind::kUnknownUrl,
                    "Unknown request URL: " + incoming.method + " " +
                        incoming.request.path.substr(0, 256) + ".",
                    {}};
  }
  if (incoming.method == "OPTIONS") return std::nullopt;
  if (match.route == nullptr) {
    return ApiError{ErrorKind::kMethod, "Use one of " + match.allow + " here.", {}};
  }
  const Route& route = *match.route;
  const bool open =
      route.auth == Auth::kOpen || (route.auth == Auth::kMetrics && api.admit.metrics_public());
  if (!open) {
    auto caller = api.admit.Authenticate(incoming.authorization);
    if (!caller.ok()) return FromStatus(caller.status());
    incoming.request.caller = *caller;
  }
  if (!route.intake) return std::nullopt;
  if (!IsJson(incoming.content_type)) {
    return ApiError{ErrorKind::kMediaType, "The Content-Type must be application/json.", {}};
  }
  if (api.draining.load()) {
    return ApiError{ErrorKind::kDraining, "The server is stopping.", {}};
  }
  if (const int wait_s = api.admit.TakeRate(incoming.request.caller); wait_s > 0) {
    return ApiError{ErrorKind::kRateLimit, "Too many requests with this key.", {}, wait_s};
  }
  return std::nullopt;
}

awaitable<bool> Connection::Answer(Incoming& incoming, std::optional<ApiError> error) {
  const RouteMatch match = FindRoute(incoming.method, incoming.request.path);
  if (error) {
    HttpReply reply = ErrorReply(*error);
    if (error->kind == ErrorKind::kMethod) reply.headers.emplace_back("Allow", match.allow);
    if (error->kind == ErrorKind::kUnauthenticated) {
      reply.headers.emplace_back("WWW-Authenticate", "Bearer");
    }
    if (frame_.keep_alive) co_return co_await WriteReply(reply);
    co_await Refuse(*error);
    co_return false;
  }
  if (incoming.method == "OPTIONS") {
    HttpReply reply{204, "", "", {{"Allow", match.allow}}};
    co_return co_await WriteReply(reply);
  }
  HandlerResult result = co_await RunHandler(*match.route, std::move(incoming.request));
  if (const auto* reply = std::get_if<HttpReply>(&result)) co_return co_await WriteReply(*reply);
  co_return co_await Generate(*std::get<std::unique_ptr<Responder>>(result));
}

awaitable<HandlerResult> Connection::RunHandler(const Route& route, HttpRequest request) {
  ApiContext& api = host_.api;
  if (!route.intake) co_return CallHandler(route, api, request);
  struct Job final {
    HttpRequest request;
    std::optional<HandlerResult> result;
    asio::steady_timer done;
  };
  auto job = std::make_shared<Job>(
      Job{std::move(request), std::nullopt,
          asio::steady_timer(socket_.get_executor(), Clock::time_point::max())});
  ++host_.handlers_running;
  const bool taken = api.text_workers.Post([job, &route, &host = host_]() mutable {
    HandlerResult result = CallHandler(route, host.api, job->request);
    {
      const auto executor = job->done.get_executor();
      asio::post(executor, [job = std::move(job), result = std::move(result)]() mutable {
        job->result = std::move(result);
        job->done.cancel();
      });
    }
    --host.handlers_running;  // nothing of the connection is held here any more
  });
  if (!taken) {
    --host_.handlers_running;
    co_return ErrorReply({ErrorKind::kOverloaded, "Too many requests wait to be read.", {}});
  }
  while (!job->result) co_await job->done.async_wait(kTuple);
  co_return std::move(*job->result);
}

awaitable<bool> Connection::Generate(Responder& responder) {
  pump_ = std::make_shared<EventPump>(socket_);
  const std::vector<int> descriptors = responder.descriptors();
  bool alive = false;
  if (pump_->Watch(descriptors)) {
    alive = co_await GenerateOn(*pump_, responder);
  } else {
    const ApiError error{ErrorKind::kOverloaded, "The server has no descriptor left.", {}};
    alive = co_await WriteReply(ErrorReply(error));
  }
  pump_->Close();
  pump_.reset();
  co_return alive;
}

awaitable<bool> Connection::GenerateOn(EventPump& pump, Responder& responder) {
  const Milliseconds ping(host_.options.ping_ms);
  std::string out;
  bool head_sent = false;
  TimePoint wake = Clock::now() + Milliseconds(host_.options.early_headers_ms);
  while (true) {
    bool complete = responder.Pump(out);
    if (cut_ && !complete) {
      ++host_.requests_cut;
      responder.Fail({ErrorKind::kDraining, "The server is stopping.", {}}, out);
      complete = true;
    }
    if (complete && !responder.begun()) co_return co_await WriteReply(responder.Reply());
    if (responder.streaming() && out.empty() && Clock::now() >= wake) {
      if (responder.begun()) out += kSsePing;
      responder.Begin(out);
    }
    const bool starts = responder.begun() && !head_sent;
    if (starts || !out.empty()) {
      std::string bytes = starts ? FormatStreamHead(frame_) : std::string();
      if (starts) Count(200);
      head_sent = true;
      bytes += FormatStreamPiece(out, complete, frame_);
      out.clear();
      if (!co_await Write(std::move(bytes))) co_return false;
      wake = Clock::now() + ping;
      if (!complete) continue;  // more may have come during the write
    }
    if (complete) co_return frame_.keep_alive;
    if (!responder.streaming() && Clock::now() >= wake) wake = Clock::now() + ping;
    co_await pump.Wait(wake);
    if (pump.client_gone()) {
      if (!head_sent) Count(499);
      co_return false;
    }
  }
}

awaitable<bool> Connection::WriteReply(const HttpReply& reply) {
  if (draining_) frame_.keep_alive = false;
  Count(reply.status);
  const bool written = co_await Write(FormatReply(reply, frame_));
  co_return written&& frame_.keep_alive;
}

awaitable<bool> Connection::Write(std::string bytes) {
  Deadline deadline(*this, host_.options.write_stall_ms);
  auto [error, written] = co_await asio::async_write(socket_, asio::buffer(bytes), kTuple);
  co_return !error;
}

awaitable<void> Connection::Refuse(const ApiError& error) {
  constexpr int64_t kLingerMs = 2'000;
  constexpr size_t kLingerBytesMax = 16 << 20;
  frame_.keep_alive = false;
  if (frame_.headers.empty()) frame_.headers.emplace_back("x-request-id", "req_" + RandomHex(24));
  HttpReply reply = ErrorReply(error);
  if (error.kind == ErrorKind::kUnauthenticated) {
    reply.headers.emplace_back("WWW-Authenticate", "Bearer");
  }
  co_await WriteReply(reply);
  // Closing with unread bytes would reset the connection, and the client might lose the answer.
  error_code ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  Deadline deadline(*this, kLingerMs);
  size_t total = 0;
  buffer_.clear();
  while (total < kLingerBytesMax) {
    auto [read_error, bytes] =
        co_await socket_.async_read_some(buffer_.prepare(16 * kReadBytes), kTuple);
    if (read_error) break;
    total += bytes;
  }
}

void Connection::FrameFor(const Incoming& incoming, const RouteMatch& match) {
  static constexpr std::string_view kMethods[] = {"GET", "POST",   "HEAD", "OPTIONS",
                                                  "PUT", "DELETE", "PATCH"};
  handler_ = match.handler;
  const auto* known = std::ranges::find(kMethods, incoming.method);
  method_ = known == std::end(kMethods) ? "other" : *known;
  frame_.http_1_0 = incoming.http_1_0;
  // A stream of HTTP/1.0 ends with its connection.
  frame_.keep_alive = incoming.keep_alive && !incoming.http_1_0 && !draining_;
  frame_.head_only = incoming.method == "HEAD";
  frame_.headers.emplace_back("x-request-id", IsPlainId(incoming.request_id)
                                                  ? incoming.request_id
                                                  : "req_" + RandomHex(24));
  const std::string origin = AllowedOrigin(incoming);
  if (origin.empty()) return;
  frame_.headers.emplace_back("Access-Control-Allow-Origin", origin);
  frame_.headers.emplace_back("Vary", "Origin");
  frame_.headers.emplace_back("Access-Control-Expose-Headers", "x-request-id, retry-after");
  if (incoming.method != "OPTIONS") return;
  frame_.headers.emplace_back("Access-Control-Allow-Methods", match.allow);
  frame_.headers.emplace_back("Access-Control-Allow-Headers", incoming.cors_headers);
  frame_.headers.emplace_back("Access-Control-Max-Age", "600");
}

std::string Connection::AllowedOrigin(const Incoming& incoming) const {
  if (incoming.origin.empty()) return {};
  for (const std::string& allowed : host_.options.cors_origins) {
    if (allowed == "*" || allowed == incoming.origin) return incoming.origin;
  }
  return {};
}

bool Connection::HostAllowed(std::string_view host) const {
  const HttpOptions& options = host_.options;
  const std::string_view name = HostName(host);
  if (name.empty()) return true;  // HTTP/1.0 without Host: no browser, nothing to rebind
  if (!options.allowed_hosts.empty()) {
    return std::ranges::any_of(options.allowed_hosts, [&](const std::string& allowed) {
      return boost::beast::iequals(boost::beast::string_view(name.data(), name.size()), allowed);
    });
  }
  return !IsLoopbackName(options.host) || IsLoopbackName(name);
}

void Connection::Count(int status) { host_.api.metrics.ObserveHttp(handler_, method_, status); }

}  // namespace lacuna::server
