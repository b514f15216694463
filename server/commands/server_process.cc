#include "server/commands/server_process.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <iostream>

namespace lacuna::server {
namespace {

// What the server writes to its standard output before it serves: "ready http://H:P ...".
std::string ReadyUrl(int fd) {
  std::string line;
  for (char c = 0; read(fd, &c, 1) == 1 && c != '\n';) line += c;
  constexpr std::string_view kReady = "ready ";
  if (!line.starts_with(kReady)) return "";
  return line.substr(kReady.size(), line.find(' ', kReady.size()) - kReady.size());
}

[[noreturn]] void Serve(const ServeOptions& options, int fd, pid_t parent) {
  // No orphan, however the parent ends; it may have ended before this line.
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(1);
  std::ofstream out(std::string("/dev/fd/").append(std::to_string(fd)));
  const int code = RunServe(options, out, std::cerr);
  std::cerr.flush();
  _exit(code);
}

}  // namespace

Result<std::unique_ptr<ServerProcess>> ServerProcess::Start(const ServeOptions& options) {
  int ends[2];
  if (pipe(ends) != 0) return Exhausted("no pipe for the server");
  std::cout.flush();
  const pid_t parent = getpid(), pid = fork();
  if (pid == 0) {
    close(ends[0]);
    Serve(options, ends[1], parent);
  }
  close(ends[1]);
  std::string url = pid > 0 ? ReadyUrl(ends[0]) : "";
  close(ends[0]);
  if (pid < 0) return Exhausted("no process for the server");
  if (url.empty()) {
    waitpid(pid, nullptr, 0);
    return Status(StatusCode::kUnavailable, "the server did not start");
  }
  return std::unique_ptr<ServerProcess>(new ServerProcess(pid, std::move(url)));
}

ServerProcess::~ServerProcess() {
  kill(pid_, SIGTERM);
  waitpid(pid_, nullptr, 0);
}

}  // namespace lacuna::server
