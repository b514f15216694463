// The whole HTTP server on loopback, over the real engine with a fake model: framing, errors,
// disconnects, limits, drain.
#include "server/http/http_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "server/api/routes.h"
#include "tests/engine/engine_fixture.h"
#include "tests/kvcache/sparse_test_models.h"

namespace lacuna::server {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;

// A blocking client that sends any bytes.
class Client final {
 public:
  explicit Client(int port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const timeval limit{.tv_sec = 20, .tv_usec = 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  ~Client() { Close(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  void Close() {
    if (fd_ >= 0) close(std::exchange(fd_, -1));
  }
  void Send(const std::string& bytes) const {
    EXPECT_EQ(send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  // Until `end` has come, or the server closed.
  std::string ReadUntil(const std::string& end) {
    while (buffer_.find(end) == std::string::npos && More()) {
    }
    const size_t at = buffer_.find(end);
    const size_t size = at == std::string::npos ? buffer_.size() : at + end.size();
    std::string out = buffer_.substr(0, size);
    buffer_.erase(0, size);
    return out;
  }
  std::string ReadAll() {
    while (More()) {
    }
    return std::exchange(buffer_, "");
  }

  struct Reply final {
    int status = 0;
    std::string head, body;
    json Json() const { return json::parse(body, nullptr, false); }
  };
  // One reply with a Content-Length.
  Reply ReadReply() {
    Reply reply;
    reply.head = ReadUntil("\r\n\r\n");
    if (reply.head.size() < 12) return reply;
    reply.status = std::stoi(reply.head.substr(9, 3));
    const size_t at = reply.head.find("Content-Length: ");
    const size_t length = at == std::string::npos ? 0 : std::stoul(reply.head.substr(at + 16));
    while (buffer_.size() < length && More()) {
    }
    reply.body = buffer_.substr(0, length);
    buffer_.erase(0, length);
    return reply;
  }

 private:
  bool More() {
    char bytes[4096];
    const ssize_t got = recv(fd_, bytes, sizeof bytes, 0);
    if (got > 0) buffer_.append(bytes, static_cast<size_t>(got));
    return got > 0;
  }

  int fd_;
  std::string buffer_;
};

// A model that takes its time, so that a client can leave while it runs.
class SlowRunner final : public engine::StepRunner {
 public:
  explicit SlowRunner(const engine::FakeRunner::Shape& shape) : runner_(shape) {}
  bool asynchronous() const override { return false; }
  Result<engine::StepKind> Launch(const engine::StepBatch& batch) override {
    return runner_.Launch(batch);
  }
  Result<std::span<const kernels::SampleResult>> Wait() override {
    usleep(1000);
    return runner_.Wait();
  }

 private:
  engine::FakeRunner runner_;
};

std::string Post(const std::string& path, const std::string& body, const std::string& more = "") {
  return "POST " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
         more + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}
std::string Get(const std::string& path, const std::string& more = "") {
  return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + more + "\r\n";
}
json Body(int max_tokens, bool stream = false) {
  json body = {
      {"model", "tiny"}, {"temperature", 0}, {"max_tokens", max_tokens}, {"prompt", {5, 6, 7}}};
  if (stream) body["stream"] = true;
  return body;
}

class HttpServerTest : public ::testing::Test {
 protected:
  HttpServerTest() {
    std::ifstream file("models/recall-12m/tokenizer.json", std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    tokenizer_ = std::move(*Tokenizer::FromJson(text.str()));
    options_.port = 0;
    options_.early_headers_ms = 20;
    options_.ping_ms = 50;
  }
  ~HttpServerTest() override {
    server_.reset();
    if (engine_) engine_->Stop();
  }

  void Start(bool run_engine = true, int64_t pages = 4096) {
    engine::FakeRunner::Shape shape;
    shape.groups = {engine::FullGroup()};
    shape.group_pages = {pages};
    shape.vocab_size = tokenizer_->vocab_size();
    engine::EngineParts parts;
    parts.runner = std::make_unique<SlowRunner>(shape);
    parts.groups = shape.groups;
    parts.group_pages = shape.group_pages;
    parts.page_tokens = shape.page_tokens;
    parts.vocab_size = shape.vocab_size;
    parts.context_tokens_max = 1 << 14;
    parts.clock = &clock_;
    engine_ = std::move(*engine::Engine::Create({}, std::move(parts)));
    admit_ = std::move(*Admit::Create(admit_options_, clock_));
    metrics_ = std::make_unique<Metrics>("tiny", [this] {
      return EngineReading{&engine_->stats(), engine_->page_counts(), 4};
    });
    workers_ = std::make_unique<TextWorkers>(1, limits_.text_queue_len_max);
    api_.reset(new ApiContext{.engine = *engine_,
                              .tokenizer = *tokenizer_,
                              .chat_template = nullptr,
                              .admit = *admit_,
                              .metrics = *metrics_,
                              .text_workers = *workers_,
                              .limits = limits_});
    api_->model_name = "tiny";
    api_->aliases = {"org/other"};
    api_->vocab_size = shape.vocab_size;
    if (run_engine) engine_->Start();
    auto server = HttpServer::Start(options_, *api_);
    ASSERT_TRUE(server.ok()) << server.status().message();
    server_ = std::move(*server);
  }
  int port() const { return server_->port(); }

  void ExpectIdleSoon() {
    const auto until = std::chrono::steady_clock::now() + milliseconds(10'000);
    const auto used = [this] { return engine_->page_counts()[0].used; };
    while ((used() > 0 || engine_->stats().running > 0 || engine_->stats().waiting > 0) &&
           std::chrono::steady_clock::now() < until) {
      usleep(1000);
    }
    const auto pages = engine_->page_counts()[0];
    EXPECT_EQ(pages.used, 0);
    EXPECT_EQ(pages.free + pages.cached, pages.total);
    EXPECT_EQ(engine_->stats().running, 0);
  }
  void ExpectError(const Client::Reply& reply, int status, const std::string& code) {
    EXPECT_EQ(reply.status, status) << reply.head << reply.body;
    EXPECT_NE(reply.head.find("Content-Type: application/json\r\n"), std::string::npos);
    EXPECT_NE(reply.head.find("x-request-id: "), std::string::npos);
    const json body = reply.Json();
    ASSERT_TRUE(body.is_object()) << reply.body;
    EXPECT_EQ(body["error"].size(), 4u);
    EXPECT_EQ(body["error"]["code"].is_null() ? "" : body["error"]["code"], code);
  }

  HttpOptions options_;
  ApiLimits limits_;
  AdmitOptions admit_options_;
  SteadyClock clock_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<Admit> admit_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<TextWorkers> workers_;
  std::unique_ptr<ApiContext> api_;
  std::unique_ptr<HttpServer> server_;
};

std::unique_ptr<SparseService> SparseServiceOf(const SparseConfig& config = {}) {
  const kvcache::ProfileSet set = kvcache::ProfileSet::Load(kvcache::ShippedProfiles()).set;
  SparseService::Model model;
  model.shape = kvcache::Recall12m();
  model.has_sparse_ops = true;
  return std::move(*SparseService::Create(config, set, model));
}

TEST_F(HttpServerTest, SparseRefusalsOfBodyAndHeaders) {
  Start();
  const auto sparse = SparseServiceOf();
  api_->sparse = sparse.get();
  Client client(port());
  const auto ask = [&](const json& field, const std::string& headers = "") {
    json body = Body(2);
    if (!field.is_null()) body["sparse"] = field;
    client.Send(Post("/v1/completions", body.dump(), headers));
    return client.ReadReply();
  };
  Client::Reply reply = ask({{"profile", "qest"}});
  ExpectError(reply, 400, "invalid_value");
  EXPECT_EQ(reply.Json()["error"]["param"], "sparse.profile");
  const std::string quest = "X-Lacuna-Sparse-Profile: qest\r\n";
  reply = ask(nullptr, quest);
  ExpectError(reply, 400, "invalid_value");
  EXPECT_EQ(reply.Json()["error"]["param"], "sparse.profile");
  reply = ask(nullptr, "x-lacuna-sparse-profile: quest\r\nX-Lacuna-Sparse-Profile: prism\r\n");
  ExpectError(reply, 400, "invalid_value");  // no profile is called "quest, prism"
  reply = ask(nullptr, "X-Lacuna-Sparse-Budget-Tokens: few\r\n");
  ExpectError(reply, 400, "invalid_value");
  EXPECT_EQ(reply.Json()["error"]["param"], "sparse.budget_tokens");
  // The body wins, and dense needs nothing of the engine.
  EXPECT_EQ(ask({{"mode", "dense"}}, quest).status, 200);
  EXPECT_EQ(ask(nullptr, "X-Lacuna-Sparse-Profile: dense\r\n").status, 200);
  api_->sparse = nullptr;
  ExpectError(ask({{"profile", "quest"}}), 400, "unsupported_parameter");
  ExpectIdleSoon();
}

TEST_F(HttpServerTest, SparseUsageIsThereWhenAskedFor) {
  Start();
  Client client(port());
  json body = Body(3);
  client.Send(Post("/v1/completions", body.dump()));
  EXPECT_FALSE(client.ReadReply().Json()["usage"].contains("sparse"));
  body["sparse"] = {{"usage", true}};
  client.Send(Post("/v1/completions", body.dump()));
  EXPECT_EQ(client.ReadReply().Json()["usage"]["sparse"]["profile"], "dense");
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}, {"continuous_usage_stats", true}};
  client.Send(Post("/v1/completions", body.dump()));
  const std::string stream = client.ReadUntil("\r\n0\r\n\r\n");
  size_t last = stream.rfind("data: {");
  EXPECT_EQ(stream.find("\"sparse\""), stream.find("\"sparse\"", last));  // there alone
  EXPECT_NE(stream.find("\"sparse\""), std::string::npos);
}

TEST_F(HttpServerTest, SparseProfilesAreListed) {
  Start();
  SparseConfig config;
  config.profile = "quest";
  config.profiles = {"lacuna-safe", "moa"};
  const auto sparse = SparseServiceOf(config);
  Client client(port());
  client.Send(Get("/v1/sparse/profiles"));
  json list = client.ReadReply().Json();
  EXPECT_EQ(list["default"], "dense");
  EXPECT_TRUE(list["data"].empty());
  api_->sparse = sparse.get();
  client.Send(Get("/v1/sparse/profiles"));
  list = client.ReadReply().Json();
  EXPECT_EQ(list["object"], "list");
  EXPECT_EQ(list["default"], "quest");
  ASSERT_EQ(list["data"].size(), 2u);
  EXPECT_EQ(list["data"][1]["id"], "quest");
  EXPECT_EQ(list["data"][1]["default"], true);
  EXPECT_EQ(list["data"][1]["dials"][0]["name"], "budget_tokens");
  EXPECT_EQ(list["data"][1]["dials"][0]["whole"], true);
  ASSERT_EQ(list["left_out"].size(), 1u);
  EXPECT_EQ(list["left_out"][0]["id"], "moa");
}

TEST_F(HttpServerTest, JsonAndStreamAgreeOnOneConnection) {
  Start();
  Client client(port());
  client.Send(Post("/v1/completions", Body(20).dump()));
  const json whole = client.ReadReply().Json();
  EXPECT_EQ(whole["object"], "text_completion");
  EXPECT_EQ(whole["usage"]["completion_tokens"], 20);
  EXPECT_EQ(whole["choices"][0]["finish_reason"], "length");
  json body = Body(20, true);
  body["stream_options"] = {{"include_usage", true}};
  client.Send(Post("/v1/completions", body.dump()));
  const std::string stream = client.ReadUntil("\r\n0\r\n\r\n");
  EXPECT_NE(stream.find("data: [DONE]\n\n"), std::string::npos);
  std::string text;
  int finishes = 0, usages = 0;
  for (size_t at = 0; (at = stream.find("data: {", at)) != std::string::npos; ++at) {
    const json chunk = json::parse(stream.substr(at + 6, stream.find('\n', at) - at - 6));
    usages += chunk["usage"].is_object();
    for (const json& choice : chunk["choices"]) {
      text += choice["text"].get<std::string>();
      finishes += choice["finish_reason"].is_string();
    }
  }
  EXPECT_EQ(text, whole["choices"][0]["text"]);
  EXPECT_EQ(finishes, 1);
  EXPECT_EQ(usages, 1);
  ExpectIdleSoon();
}

TEST_F(HttpServerTest, EchoLogprobsAndManyPrompts) {
  Start();
  Client client(port());
  json body = Body(0);
  body["echo"] = true;
  client.Send(Post("/v1/completions", body.dump()));
  json reply = client.ReadReply().Json();
  EXPECT_EQ(reply["choices"][0]["text"], tokenizer_->Decode(std::vector<TokenId>{5, 6, 7}, false));
  EXPECT_EQ(reply["usage"]["completion_tokens"], 0);
  body = Body(2);
  body["echo"] = true;
  body["logprobs"] = 2;
  body["n"] = 2;
  body["prompt"] = {{5, 6, 7}, {8, 9}};
  client.Send(Post("/v1/completions", body.dump()));
  reply = client.ReadReply().Json();
  ASSERT_EQ(reply["choices"].size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(reply["choices"][i]["index"], i);
    const json& logprobs = reply["choices"][i]["logprobs"];
    const size_t tokens = i < 2 ? 5 : 4;
    for (const char* key : {"tokens", "token_logprobs", "top_logprobs", "text_offset"}) {
      EXPECT_EQ(logprobs[key].size(), tokens) << key;
    }
    EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
    EXPECT_TRUE(logprobs["token_logprobs"][1].is_number());
  }
  EXPECT_EQ(reply["usage"]["prompt_tokens"], 5);
}

TEST_F(HttpServerTest, ErrorsKeepTheConnection) {
  Start();
  Client client(port());
  const auto expect = [&](const std::string& bytes, int status, const std::string& code) {
    SCOPED_TRACE(bytes.substr(0, 200));
    client.Send(bytes);
    const Client::Reply reply = client.ReadReply();
    ExpectError(reply, status, code);
    EXPECT_NE(reply.head.find("Connection: keep-alive"), std::string::npos);
  };
  expect(Post("/v1/completions", "{"), 400, "");
  expect(Post("/v1/completions", "[]"), 400, "");
  expect(Get("/v1/nope"), 404, "unknown_url");
  expect(Get("/v1/completions"), 405, "method_not_supported");
  expect(Get("/v1/models/none"), 404, "model_not_found");
  json body = Body(5);
  body["model"] = "gpt";
  expect(Post("/v1/completions", body.dump()), 404, "model_not_found");
  body = Body(5);
  body["prompt"] = json(std::vector<int>(20'000, 5));
  expect(Post("/v1/completions", body.dump()), 400, "context_length_exceeded");
  expect(Post("/detokenize", R"({"tokens":[99999999]})"), 422, "unprocessable_entity");
  expect(
      "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
      "Content-Length: 2\r\n\r\n{}",
      415, "unsupported_media_type");
  client.Send(Get("/v1/models/org%2Fother"));
  EXPECT_EQ(client.ReadReply().Json()["id"], "org/other");
  client.Send(Get("/health", "X-Request-Id: abc\r\n"));
  EXPECT_NE(client.ReadReply().head.find("x-request-id: abc\r\n"), std::string::npos);
}

TEST_F(HttpServerTest, MalformedHttpIsRefusedAndClosed) {
  Start();
  for (const std::string& bytes :
       {std::string("garbage\r\n\r\n"), std::string("GET / HTTP/1.1\n\n"),
        std::string("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
                    "Transfer-Encoding: chunked\r\n\r\n{}"),
        std::string("POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
                    "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
        std::string(64 << 10, '\x81'), std::string(64 << 10, 'A')}) {
    Client client(port());
    client.Send(bytes);
    const Client::Reply reply = client.ReadReply();
    EXPECT_TRUE(reply.status == 400 || reply.status == 431) << reply.head;
    EXPECT_TRUE(reply.Json().contains("error"));
    EXPECT_EQ(client.ReadAll(), "") << "one answer, then closed";
  }
}

TEST_F(HttpServerTest, BodyLimits) {
  options_.body_bytes_max = 1000;
  options_.chunks_max = 4;
  Start();
  {
    Client client(port());
    client.Send(Post("/tokenize", std::string(1000, ' ')));
    ExpectError(client.ReadReply(), 400, "");
  }
  {
    Client client(port());
    client.Send(Post("/tokenize", std::string(1001, ' ')));
    ExpectError(client.ReadReply(), 413, "request_too_large");
    EXPECT_EQ(client.ReadAll(), "");
  }
  const std::string head =
      "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
  {
    Client client(port());
    client.Send(head + "f\r\n{\"prompt\": \"hi\"\r\n1\r\n}\r\n0\r\n\r\n");
    EXPECT_EQ(client.ReadReply().status, 200);
  }
  {
    Client client(port());
    client.Send(head + "1\r\n{\r\n1\r\n}\r\n1\r\n \r\n1\r\n \r\n1\r\n \r\n0\r\n\r\n");
    ExpectError(client.ReadReply(), 400, "malformed_request");
  }
  {
    Client client(port());
    std::string size = "3e9\r\n";
    client.Send(head + size + std::string(1001, ' ') + "\r\n0\r\n\r\n");
    ExpectError(client.ReadReply(), 413, "request_too_large");
  }
}

TEST_F(HttpServerTest, SlowSendersAreTimedOut) {
  options_.header_timeout_ms = 100;
  options_.body_timeout_ms = 100;
  Start();
  Client head(port());
  head.Send("GET /hea");
  ExpectError(head.ReadReply(), 408, "request_timeout");
  Client body(port());
  body.Send("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{");
  ExpectError(body.ReadReply(), 408, "request_timeout");
}

TEST_F(HttpServerTest, EarlyHeadersAndPingsWhileNothingHappens) {
  Start(/*run_engine=*/false);
  Client client(port());
  client.Send(Post("/v1/completions", Body(5, true).dump()));
  EXPECT_NE(client.ReadUntil("\r\n\r\n").find("text/event-stream"), std::string::npos);
  EXPECT_NE(client.ReadUntil(": ping\n\n").find(": ping"), std::string::npos);
  EXPECT_NE(client.ReadUntil(": ping\n\n").find(": ping"), std::string::npos);
}

TEST_F(HttpServerTest, DisconnectFreesEverything) {
  Start();
  for (const bool stream : {true, false}) {
    Client client(port());
    client.Send(Post("/v1/completions", Body(16'000, stream).dump()));
    while (engine_->stats().running == 0) usleep(100);
    client.Close();
    ExpectIdleSoon();
  }
  EXPECT_EQ(engine_->stats().finished_length, 0u);
  EXPECT_NE(metrics_->Scrape().find("finished_reason=\"abort\",model_name=\"tiny\"} 2"),
            std::string::npos);
}

TEST_F(HttpServerTest, DisconnectWhileQueued) {
  Start(/*run_engine=*/false);
  {
    Client client(port());
    client.Send(Post("/v1/completions", Body(50).dump()));
    while (engine_->stats().submitted == 0) usleep(100);
  }
  const std::string aborted = "finished_reason=\"abort\",model_name=\"tiny\"} 1";
  while (metrics_->Scrape().find(aborted) == std::string::npos) usleep(1000);
  while (engine_->StepOnce()) {
  }
  EXPECT_EQ(engine_->stats().generated_tokens, 0u);
  ExpectIdleSoon();
}

TEST_F(HttpServerTest, KeysGuardEveryRouteButProbes) {
  const std::string path = ::testing::TempDir() + "http_server_test_keys";
  std::ofstream(path) << "0123456789abcdef\n";
  admit_options_.api_keys_file = path;
  admit_options_.rate_per_s = 0.001;
  admit_options_.rate_burst = 1;
  Start();
  Client client(port());
  for (const Route& route : RouteTable()) {
    const std::string target =
        std::string(route.pattern) + (route.pattern.ends_with('/') ? "tiny" : "");
    for (const std::string key : {"", "Authorization: Bearer wrong-key-wrong-key\r\n"}) {
      client.Send(route.method == "POST" ? Post(target, "{}", key) : Get(target, key));
      const Client::Reply reply = client.ReadReply();
      if (route.auth == Auth::kOpen) {
        EXPECT_EQ(reply.status, 200) << target;
      } else {
        ExpectError(reply, 401, "invalid_api_key");
      }
    }
  }
  const std::string right = "Authorization: Bearer 0123456789abcdef\r\n";
  client.Send(Post("/tokenize", R"({"prompt":"hi"})", right));
  EXPECT_EQ(client.ReadReply().status, 200);
  client.Send(Post("/tokenize", R"({"prompt":"hi"})", right));
  const Client::Reply limited = client.ReadReply();
  ExpectError(limited, 429, "rate_limit_exceeded");
  EXPECT_NE(limited.head.find("Retry-After: 120\r\n"), std::string::npos);
  std::remove(path.c_str());
}

TEST_F(HttpServerTest, CorsAndHosts) {
  options_.cors_origins = {"https://good.example"};
  Start();
  Client client(port());
  const std::string ask =
      "OPTIONS /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
      "Access-Control-Request-Headers: authorization, x-stainless-os\r\nOrigin: ";
  client.Send(ask + "https://good.example\r\n\r\n");
  const Client::Reply good = client.ReadReply();
  EXPECT_EQ(good.status, 204);
  EXPECT_NE(good.head.find("Access-Control-Allow-Origin: https://good.example\r\n"),
            std::string::npos);
  EXPECT_NE(good.head.find("x-stainless-os"), std::string::npos);
  client.Send(ask + "https://evil.example\r\n\r\n");
  EXPECT_EQ(client.ReadReply().head.find("Access-Control-"), std::string::npos);
  client.Send("GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n");
  ExpectError(client.ReadReply(), 403, "host_not_allowed");
}

TEST_F(HttpServerTest, PublicBindNeedsKeys) {
  Start();
  HttpOptions open = options_;
  open.host = "0.0.0.0";
  EXPECT_EQ(HttpServer::Start(open, *api_).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(HttpServerTest, ConnectionLimit) {
  options_.connections_per_address_max = 2;
  Start();
  Client one(port()), two(port());
  one.Send(Get("/health"));
  EXPECT_EQ(one.ReadReply().status, 200);
  two.Send(Get("/health"));
  EXPECT_EQ(two.ReadReply().status, 200);
  Client three(port());
  ExpectError(three.ReadReply(), 503, "server_overloaded");
}

TEST_F(HttpServerTest, DrainFinishesThenCuts) {
  Start(/*run_engine=*/false);
  Client idle(port()), stream(port());
  idle.Send(Get("/ready"));
  EXPECT_EQ(idle.ReadReply().status, 200);
  stream.Send(Post("/v1/completions", Body(5, true).dump()));
  stream.ReadUntil("\r\n\r\n");
  server_->BeginDrain();
  EXPECT_EQ(idle.ReadAll(), "") << "idle connections are closed";
  EXPECT_FALSE(server_->WaitIdle(std::chrono::steady_clock::now() + milliseconds(50)));
  EXPECT_EQ(server_->Stop(), 1);
  const std::string rest = stream.ReadAll();
  EXPECT_NE(rest.find("server_draining"), std::string::npos) << rest;
  EXPECT_NE(rest.find("data: [DONE]\n\n"), std::string::npos);
}

TEST_F(HttpServerTest, OldHttpAndHead) {
  Start();
  {
    Client client(port());
    const std::string body = Body(3, true).dump();
    client.Send("POST /v1/completions HTTP/1.0\r\nContent-Length: " + std::to_string(body.size()) +
                "\r\n\r\n" + body);
    const std::string all = client.ReadAll();
    EXPECT_EQ(all.find("Transfer-Encoding"), std::string::npos);
    EXPECT_TRUE(all.ends_with("data: [DONE]\n\n")) << all;
  }
  Client client(port());
  client.Send("HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_NE(client.ReadUntil("\r\n\r\n").find("Content-Length: 15"), std::string::npos);
  client.Send(Get("/version"));
  EXPECT_EQ(client.ReadReply().status, 200);
}

}  // namespace
}  // namespace lacuna::server
