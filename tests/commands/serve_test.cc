// The whole `lacuna serve` in a process of its own, with a device that fails after some steps: each
// request gets its answer, readiness drops and the process ends with the exit code for devices.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "server/commands/serve_command.h"

namespace lacuna::server {
namespace {

class FailingRunner final : public engine::StepRunner {
 public:
  FailingRunner(std::unique_ptr<engine::StepRunner> runner, int steps)
      : runner_(std::move(runner)), steps_left_(steps) {}
  bool asynchronous() const override { return runner_->asynchronous(); }
  Result<engine::StepKind> Launch(const engine::StepBatch& batch) override {
    return runner_->Launch(batch);
  }
  Result<std::span<const kernels::SampleResult>> Wait() override {
    if (steps_left_-- == 0) return InternalError("device: an illegal memory access");
    return runner_->Wait();
  }

 private:
  std::unique_ptr<engine::StepRunner> runner_;
  int steps_left_;
};

struct Child final {
  pid_t pid = -1;
  int port = 0;
};

// Forks a server; its ready line tells the port. A port of 0: it did not start.
Child StartServer(ServeOptions options) {
  int ends[2];
  if (pipe(ends) != 0) return {};
  const pid_t pid = fork();
  if (pid == 0) {
    close(ends[0]);
    std::ofstream out("/dev/fd/" + std::to_string(ends[1])), err("/dev/null");
    _exit(RunServe(options, out, err));
  }
  close(ends[1]);
  std::string line;
  for (char c = 0; read(ends[0], &c, 1) == 1 && c != '\n';) line += c;
  close(ends[0]);
  const size_t colon = line.rfind(':');
  return {pid, line.starts_with("ready http://") ? std::stoi(line.substr(colon + 1)) : 0};
}

// The whole answer to one request on a connection of its own; empty: nobody answers.
std::string Ask(int port, const std::string& request) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
      send(fd, request.data(), request.size(), MSG_NOSIGNAL) ==
          static_cast<ssize_t>(request.size())) {
    char bytes[4096];
    for (ssize_t got; (got = recv(fd, bytes, sizeof bytes, 0)) > 0;) {
      answer.append(bytes, static_cast<size_t>(got));
    }
  }
  close(fd);
  return answer;
}

std::string Post(const std::string& path, const std::string& body) {
  return "POST " + path +
         " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
         "Content-Type: application/json\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n\r\n" + body;
}

ServeOptions Options(int steps_before_failure) {
  ServeOptions options;
  options.device = "cpu";
  options.overrides = {"http.port=0", "grpc.enabled=false", "cpu.threads=1", "log.level=off",
                       "http.drain_ms=2000"};
  options.wrap_runner = [steps_before_failure](std::unique_ptr<engine::StepRunner> runner) {
    return std::make_unique<FailingRunner>(std::move(runner), steps_before_failure);
  };
  return options;
}

int ExitCode(const Child& child) {
  int status = 0;
  waitpid(child.pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

constexpr char kBody[] =
    R"({"model": "recall-12m", "prompt": "one two", "max_tokens": 40, "ignore_eos": true)";

TEST(ServeTest, ADeviceErrorAnswersAllAndEndsTheProcess) {
  const Child child = StartServer(Options(5));
  ASSERT_NE(child.port, 0);
  const std::string answer = Ask(child.port, Post("/v1/completions", std::string(kBody) + "}"));
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 5")) << answer;
  // Nobody, or somebody who is not ready.
  const std::string ready =
      Ask(child.port, "GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  EXPECT_TRUE(ready.empty() || ready.starts_with("HTTP/1.1 503")) << ready;
  EXPECT_EQ(ExitCode(child), 5);
}

TEST(ServeTest, AStreamEndsWithAnErrorEvent) {
  const Child child = StartServer(Options(5));
  ASSERT_NE(child.port, 0);
  const std::string answer =
      Ask(child.port, Post("/v1/completions", std::string(kBody) + R"(, "stream": true})"));
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200")) << answer;
  EXPECT_NE(answer.find("\"error\""), std::string::npos) << answer;
  EXPECT_EQ(ExitCode(child), 5);
}

TEST(ServeTest, NoGpuIsAnErrorOnlyWhenAskedFor) {
  ServeOptions options = Options(5);
  options.device = "cuda";
  options.overrides.push_back("device.ordinal=63");  // not even where there are some
  const Child child = StartServer(options);
  EXPECT_EQ(child.port, 0);
  const int code = ExitCode(child);
  EXPECT_TRUE(code == 5 || code == 4) << code;
}

TEST(ServeTest, RandomWeightsOfAShapeAnswer) {
  ServeOptions options;
  options.device = "cpu";
  options.model = "tests/data/golden/llama";
  options.load_format = "dummy";
  options.overrides = {"http.port=0", "grpc.enabled=false", "cpu.threads=1", "log.level=off"};
  const Child refused = StartServer(options);  // 320 ids are too few for the tokenizer
  EXPECT_EQ(refused.port, 0);
  EXPECT_EQ(ExitCode(refused), 4);
  options.model = "configs/shapes/bench-150m.json";
  options.overrides.push_back("engine.context_tokens_max=512");
  const Child child = StartServer(options);
  ASSERT_NE(child.port, 0);
  const std::string answer =
      Ask(child.port, Post("/v1/completions",
                           R"({"model": "bench-150m", "prompt": "one", "max_tokens": 8,
                               "ignore_eos": true, "temperature": 2.0})"));
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200")) << answer;
  EXPECT_NE(answer.find("\"completion_tokens\":8"), std::string::npos) << answer;
  kill(child.pid, SIGTERM);
  EXPECT_EQ(ExitCode(child), 0);
}

}  // namespace
}  // namespace lacuna::server
