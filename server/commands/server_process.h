// ServerProcess: `lacuna serve` in a child process, for commands that are clients of a server and
// were given none. Start it before any thread of this process. One thread.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "kernels/core/status.h"
#include "server/commands/serve_command.h"

namespace lacuna::server {

class ServerProcess final {
 public:
  // Returns once the server is ready. Its log and errors go to this process's standard error.
  // kUnavailable when it ended instead, having told why.
  static Result<std::unique_ptr<ServerProcess>> Start(const ServeOptions& options);
  // Stops it and waits for its end.
  ~ServerProcess();
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  const std::string& url() const { return url_; }

 private:
  ServerProcess(pid_t pid, std::string url) : pid_(pid), url_(std::move(url)) {}

  const pid_t pid_;
  const std::string url_;  // http://HOST:PORT
};

}  // namespace lacuna::server
