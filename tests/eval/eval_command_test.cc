// RunEvalCommand against a small HTTP server with scripted answers, and its bad inputs.
#include "server/commands/eval_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "server/commands/make_suite_command.h"

namespace lacuna::server {
namespace {

namespace asio = boost::asio;
namespace fs = std::filesystem;
namespace http = boost::beast::http;
using asio::ip::tcp;
using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

// Knows the profiles quest and off; quest answers "7", dense "7 and 8"; off is refused.
class FakeServer final {
 public:
  FakeServer() : acceptor_(io_, tcp::endpoint(tcp::v4(), 0)) {
    thread_ = std::thread([this] { Accept(); });
  }
  ~FakeServer() {
    stopping_ = true;
    boost::system::error_code ignored;
    tcp::socket poke(io_);
    poke.connect(acceptor_.local_endpoint(), ignored);
    thread_.join();
  }
  std::string url() const {
    return "http://127.0.0.1:" + std::to_string(acceptor_.local_endpoint().port());
  }
  std::vector<std::string> asked;  // "profile: prompt"

 private:
  void Accept() {
    while (true) {
      boost::system::error_code error;
      tcp::socket socket(io_);
      acceptor_.accept(socket, error);
      if (stopping_ || error) return;
      boost::beast::flat_buffer buffer;
      while (!error) {
        http::request<http::string_body> request;
        http::read(socket, buffer, request, error);
        if (error) break;
        http::response<http::string_body> response(http::status::ok, 11);
        response.body() = Answer(request, response);
        response.prepare_payload();
        http::write(socket, response, error);
      }
    }
  }

  std::string Answer(const http::request<http::string_body>& request,
                     http::response<http::string_body>& response) {
    if (request.target() == "/v1/models") return R"({"data":[{"id":"m"}]})";
    if (request.target() == "/v1/sparse/profiles") {
      return R"({"data":[{"id":"quest","dials":[]},{"id":"off","dials":[]}],"left_out":[]})";
    }
    const json body = json::parse(request.body());
    const std::string profile = body["sparse"]["profile"];
    asked.push_back(profile + ": " + body["messages"][0]["content"].get<std::string>());
    if (profile == "off") {
      response.result(http::status::bad_request);
      return R"({"error":{"message":"no such\nthing"}})";
    }
    const std::string text = profile == "quest" ? "7" : "7 and 8";
    const json chunk = {
        {"choices", {{{"delta", {{"content", text}}}, {"finish_reason", nullptr}}}}};
    const json usage = {{"prompt_tokens", 100}, {"completion_tokens", 3}};
    return "data: " + chunk.dump() + "\n\n" +
           "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n" +
           "data: " + json{{"choices", json::array()}, {"usage", usage}}.dump() + "\n\n" +
           "data: [DONE]\n\n";
  }

  asio::io_context io_;
  tcp::acceptor acceptor_;
  std::thread thread_;
  std::atomic<bool> stopping_ = false;
};

class EvalCommandTest : public testing::Test {
 protected:
  EvalCommandTest() {
    folder_ = fs::path(testing::TempDir()) /
              (std::string("lacuna-eval-") +
               testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    options_.suite = (folder_ / "suite.jsonl").string();
    std::ofstream(options_.suite) << Line("one", R"(["7"])") << Line("two", R"(["7", "8"])");
    options_.profiles = {"quest"};
    options_.quiet = true;
  }
  ~EvalCommandTest() override { fs::remove_all(folder_); }

  static std::string Line(const std::string& id, const std::string& answers) {
    return R"({"id":")" + id +
           R"(","task":"t","context_tokens":128,"messages":[{"role":"user","content":")" + id +
           R"("}],"answers":)" + answers + "}\n";
  }
  int Run() {
    out_.str("");
    err_.str("");
    return RunEvalCommand(options_, out_, err_);
  }
  // The one line of an error.
  std::string Error(int code) {
    EXPECT_EQ(Run(), code);
    const std::string text = err_.str();
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
    return text;
  }
  std::string FileText(const char* name) const {
    std::ifstream file(folder_ / "out" / name);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  fs::path folder_;
  EvalOptions options_;
  std::ostringstream out_, err_;
};

TEST_F(EvalCommandTest, AsksPromptByPromptAndWritesAll) {
  FakeServer server;
  options_.url = server.url();
  options_.out = (folder_ / "out").string();
  ASSERT_EQ(Run(), 0) << err_.str();
  EXPECT_THAT(server.asked, ElementsAre("dense: one", "quest: one", "dense: two", "quest: two"));
  EXPECT_THAT(out_.str(), HasSubstr("dense     2 of 2   100.0"));
  EXPECT_THAT(out_.str(), HasSubstr("quest     1 of 2    50.0           1, 0"));
  const json report = json::parse(FileText("report.json"));
  EXPECT_EQ(report["model"], "m");
  EXPECT_EQ(report["variants"][1]["lengths"]["128"]["right"], 1);
  EXPECT_THAT(FileText("report.md"), HasSubstr("| quest | 1 of 2 |"));
  EXPECT_THAT(FileText("index.html"), HasSubstr("</html>"));

  EXPECT_THAT(Error(2), HasSubstr("which holds a run, need another folder or --resume"));
  // A run that was cut: one answer and a half.
  const std::string answers = FileText("answers.jsonl");
  const size_t second = answers.find('\n') + 1;
  std::ofstream(folder_ / "out/answers.jsonl") << answers.substr(0, second + 30);
  server.asked.clear();
  options_.resume = true;
  ASSERT_EQ(Run(), 0) << err_.str();
  EXPECT_THAT(server.asked, ElementsAre("quest: one", "dense: two", "quest: two"));
  EXPECT_EQ(json::parse(FileText("report.json"))["variants"][0]["all"]["count"], 2);
}

TEST_F(EvalCommandTest, AFailedRequestIsExitOne) {
  FakeServer server;
  options_.url = server.url();
  options_.profiles = {"off"};
  EXPECT_EQ(Run(), 1);
  // Refused once, not asked again.
  EXPECT_THAT(server.asked, ElementsAre("dense: one", "off: one", "dense: two"));
  EXPECT_THAT(out_.str(), HasSubstr("failed: one, off: http 400: no such thing\n"));
}

TEST_F(EvalCommandTest, BelowTheReferenceIsExitOne) {
  FakeServer server;
  options_.url = server.url();
  options_.reference = (folder_ / "reference.json").string();
  std::ofstream(options_.reference) << R"({"t@128": 1.0})";
  EXPECT_EQ(Run(), 0);
  std::ofstream(options_.suite) << Line("one", R"(["7"])") << Line("two", R"(["9"])");
  EXPECT_EQ(Run(), 1);
  EXPECT_THAT(out_.str(), HasSubstr("Dense got 1 of 2 right, the reference 2.0 of as many."));
}

TEST_F(EvalCommandTest, BadInputsAreOneLineEach) {
  {
    FakeServer server;
    options_.url = server.url();
    options_.profiles = {"qest"};
    EXPECT_THAT(Error(2), HasSubstr("--profiles: got qest, need of all, dense, off, quest"));
    options_.profiles = {"quest"};
    options_.lengths = {64};
    EXPECT_THAT(Error(2), HasSubstr("--lengths: got 64, need one of 128"));
    options_.lengths.clear();
    options_.overrides = {"cpu.threads=1"};
    EXPECT_THAT(Error(2), HasSubstr("--url: got options of a server too"));
    options_.overrides.clear();
  }
  EXPECT_THAT(Error(3), HasSubstr("/v1/models: connection refused"));
  options_.url = "ftp://x";
  EXPECT_THAT(Error(2), HasSubstr("--url: got \"ftp://x\""));
  options_.url.clear();
  options_.fractions = {1.5};
  EXPECT_THAT(Error(2), HasSubstr("--budget-fractions: got 150 %"));
  options_.fractions.clear();
  options_.resume = true;
  EXPECT_THAT(Error(2), HasSubstr("--resume: got no --out"));
  options_.resume = false;
  options_.suite = "nowhere.jsonl";
  EXPECT_THAT(Error(2), HasSubstr("nowhere.jsonl"));
}

TEST_F(EvalCommandTest, MakeSuitePacksTheSameBytes) {
  std::ostringstream out, err;
  MakeSuiteOptions make{.texts = {"docs/demo/long.txt"},
                        .out = (folder_ / "a.jsonl.gz").string(),
                        .model = {},
                        .lengths = {512},
                        .tasks = {"needle"},
                        .count = 2,
                        .quiet = true};
  ASSERT_EQ(RunMakeSuite(make, out, err), 0) << err.str();
  const auto bytes = [&](const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  const std::string first = bytes(make.out);
  make.out = (folder_ / "b.jsonl.gz").string();
  ASSERT_EQ(RunMakeSuite(make, out, err), 0);
  EXPECT_EQ(first, bytes(make.out));
  options_.suite = make.out;  // read back, packed as it is
  options_.tasks = {"lines"};
  EXPECT_THAT(Error(2), HasSubstr("--tasks: got lines, need one of needle"));
  make.texts = {"nowhere.txt"};
  EXPECT_EQ(RunMakeSuite(make, out, err), 2);
  EXPECT_THAT(err.str(), HasSubstr("lacuna make-suite: nowhere.txt"));
}

}  // namespace
}  // namespace lacuna::server
