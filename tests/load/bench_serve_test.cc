// RunBenchServe against a small HTTP server with scripted behaviours.
#include "bench/load/bench_serve.h"

#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <cstdio>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>
#include <vector>

namespace lacuna::bench {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;

const std::string kChunk = R"(data: {"choices":[{"text":"ab","finish_reason":null}]})"
                           "\n\n";
const std::string kEnd = R"(data: {"choices":[{"text":"","finish_reason":"length"}]})"
                         "\n\n"
                         "data: [DONE]\n\n";

// One thread per connection; each request is answered by the script with raw bytes, pause between
// the pieces. An empty script drops the connection.
class ScriptedServer final {
 public:
  struct Script final {
    unsigned status = 200;
    std::vector<std::string> pieces;
    std::chrono::milliseconds pause{0};
    bool cut = false;  // closes instead of the last chunk of the encoding
  };
  explicit ScriptedServer(std::function<Script(int)> script)
      : script_(std::move(script)), acceptor_(io_, tcp::endpoint(tcp::v4(), 0)) {
    thread_ = std::thread([this] { Accept(); });
  }
  ~ScriptedServer() {
    stopping_ = true;
    boost::system::error_code ignored;
    tcp::socket poke(io_);
    poke.connect(acceptor_.local_endpoint(), ignored);
    thread_.join();
    poke.close(ignored);
    for (std::thread& one : connections_) one.join();
  }
  std::string url() const {
    return "http://127.0.0.1:" + std::to_string(acceptor_.local_endpoint().port());
  }
  int requests() const { return requests_; }
  int disconnects() const { return disconnects_; }

 private:
  void Accept() {
    while (true) {
      boost::system::error_code error;
      tcp::socket socket(io_);
      acceptor_.accept(socket, error);
      if (stopping_ || error) return;
      connections_.emplace_back(
          [this, peer = std::make_shared<tcp::socket>(std::move(socket))] { Serve(*peer); });
    }
  }

  void Serve(tcp::socket& socket) {
    boost::beast::flat_buffer buffer;
    boost::system::error_code error;
    while (!stopping_) {
      http::request<http::string_body> request;
      http::read(socket, buffer, request, error);
      if (error) return;
      if (request.method() == http::verb::get) {
        const bool models = request.target() == "/v1/models";
        Answer(socket, {models ? 200u : 404u, {R"({"data":[{"id":"m"}]})"}, {}, false});
        continue;
      }
      if (!Answer(socket, script_(requests_++))) return;
    }
  }

  bool Answer(tcp::socket& socket, const Script& script) {
    boost::system::error_code error;
    std::string head =
        "HTTP/1.1 " + std::to_string(script.status) + " X\r\nTransfer-Encoding: chunked\r\n\r\n";
    asio::write(socket, asio::buffer(head), error);
    for (const std::string& piece : script.pieces) {
      std::this_thread::sleep_for(script.pause);
      char size[16];
      std::snprintf(size, sizeof size, "%zx\r\n", piece.size());
      asio::write(socket, asio::buffer(size + piece + "\r\n"), error);
      if (error) ++disconnects_;
      if (error) return false;
    }
    if (script.cut) return false;
    asio::write(socket, asio::buffer(std::string("0\r\n\r\n")), error);
    return !error;
  }

  std::function<Script(int)> script_;
  asio::io_context io_;
  tcp::acceptor acceptor_;
  std::atomic<bool> stopping_{false};
  std::atomic<int> requests_{0}, disconnects_{0};
  std::vector<std::thread> connections_;
  std::thread thread_;
};

struct BenchRun final {
  int code = -1;
  nlohmann::json report;
  std::string err;
};

BenchRun Bench(const std::string& url, const std::string& config) {
  const std::string path = testing::TempDir() + "lacuna_bench_serve_test.json";
  std::ofstream(path) << config;
  std::ostringstream out, err;
  BenchRun run;
  run.code = RunBenchServe({path, url, "-", true}, out, err);
  run.report = nlohmann::json::parse(out.str(), nullptr, false);
  run.err = err.str();
  std::remove(path.c_str());
  return run;
}

const ScriptedServer::Script kGood{200, {kChunk, kChunk, kChunk + kEnd}, {}, false};

TEST(BenchServe, ClosedLoopCountsEverything) {
  ScriptedServer server([](int) { return kGood; });
  const BenchRun run = Bench(server.url(), R"({"arrival": {"concurrency": 4, "requests_max": 50,
                                          "warmup_requests": 3}})");
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(server.requests(), 53);
  EXPECT_EQ(run.report["completed"], 50);
  EXPECT_EQ(run.report["total_output_tokens"], 150);
  EXPECT_EQ(run.report["total_input_tokens"], 50 * 128);
}

TEST(BenchServe, SlowAnswersAreMeasured) {
  ScriptedServer server([](int) {
    return ScriptedServer::Script{
        200, {kChunk, kChunk, kChunk + kEnd}, std::chrono::milliseconds(30), false};
  });
  const BenchRun run = Bench(server.url(), R"({"arrival": {"concurrency": 2, "requests_max": 6},
                                          "slo": {"p99_ttft_ms": 5}})");
  EXPECT_EQ(run.code, 1);  // the SLO
  EXPECT_GE(run.report["p50_ttft_ms"].get<double>(), 30);
  EXPECT_GE(run.report["mean_itl_ms"].get<double>(), 15);  // a late first read shortens the gap
  EXPECT_GE(run.report["p50_e2el_ms"].get<double>(), 90);
  EXPECT_NEAR(run.report["mean_tpot_ms"].get<double>(), run.report["mean_itl_ms"].get<double>(),
              10);
}

TEST(BenchServe, FailuresByClass) {
  ScriptedServer server([](int i) {
    switch (i % 4) {
      case 0:
        return kGood;
      case 1:
        return ScriptedServer::Script{503, {"{}"}, {}, false};
      case 2:
        return ScriptedServer::Script{200, {kChunk, "data: {\"error\":{}}\n\n"}, {}, false};
      default:
        return ScriptedServer::Script{200, {kChunk}, {}, true};
    }
  });
  const BenchRun run = Bench(server.url(), R"({"arrival": {"concurrency": 1, "requests_max": 12},
                                          "slo": {"error_rate_max": 0.5}})");
  EXPECT_EQ(run.code, 1);
  EXPECT_EQ(run.report["completed"], 3);
  EXPECT_EQ(run.report["failed"], 9);
  EXPECT_EQ(run.report["errors"]["http 503"], 3);
  EXPECT_EQ(run.report["errors"]["stream error"], 3);
  EXPECT_EQ(run.report["errors"]["truncated"], 3);
}

TEST(BenchServe, CancellingClientsDisconnect) {
  ScriptedServer server([](int) {
    return ScriptedServer::Script{200, std::vector<std::string>(50, kChunk),
                                  std::chrono::milliseconds(2), false};
  });
  const BenchRun run = Bench(server.url(), R"({"arrival": {"concurrency": 4, "requests_max": 12,
      "cancel_rate": 1}, "output_tokens": {"dist": "fixed", "mean": 10}})");
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_EQ(run.report["cancelled"], 12);
  EXPECT_EQ(run.report["failed"], 0);
  EXPECT_GT(server.disconnects(), 0);
}

TEST(BenchServe, OpenLoopLatencyCountsFromTheScheduledTime) {
  // One worker, 20 requests/s, 100 ms each: the queue grows, and the wait must show.
  ScriptedServer server([](int) {
    return ScriptedServer::Script{200, {kChunk + kEnd}, std::chrono::milliseconds(100), false};
  });
  const BenchRun run = Bench(server.url(), R"({"arrival": {"mode": "constant", "rate_per_s": 20,
      "concurrency": 1, "requests_max": 10}, "slo": {"send_lag_p99_ms_max": 100}})");
  EXPECT_EQ(run.code, 3);  // and the run says that it could not keep its schedule
  EXPECT_GE(run.report["p99_e2el_ms"].get<double>(), 400);
  EXPECT_GE(run.report["send_lag_p99_ms"].get<double>(), 300);
}

TEST(BenchServe, TimeoutAndDurationBound) {
  ScriptedServer server([](int) {
    return ScriptedServer::Script{200, {kChunk + kEnd}, std::chrono::milliseconds(400), false};
  });
  const BenchRun timeout = Bench(server.url(), R"({"endpoint": {"timeout_ms": 50},
      "arrival": {"concurrency": 1, "requests_max": 1}})");
  EXPECT_EQ(timeout.report["errors"]["timeout"], 1);
  const BenchRun bounded = Bench(server.url(), R"({"arrival": {"concurrency": 1,
      "requests_max": 1000, "duration_ms": 600}})");
  EXPECT_LE(bounded.report["completed"].get<int>(), 3);
  EXPECT_GE(bounded.report["completed"].get<int>(), 1);
}

TEST(BenchServe, BadInput) {
  EXPECT_EQ(Bench("https://h", "{}").code, 2);
  EXPECT_EQ(Bench("http://127.0.0.1:1", "{").code, 2);
  EXPECT_EQ(Bench("http://127.0.0.1:1", "{}").code, 3);  // nobody listens
}

}  // namespace
}  // namespace lacuna::bench
