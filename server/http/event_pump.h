// EventPump: lets a connection's coroutine sleep until one of its choices has events, the client
// has gone, somebody notifies it, or a time has passed.
//
// One per generating response, on the connection's strand; waits in flight keep it alive.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <span>
#include <vector>

#include "kernels/core/clock.h"

namespace lacuna::server {

class EventPump final : public std::enable_shared_from_this<EventPump> {
 public:
  explicit EventPump(boost::asio::ip::tcp::socket& socket);

  // Watches duplicates of `fds`, each readable while there is something to take. False when the
  // system has no descriptor left.
  bool Watch(std::span<const int> fds);
  // Returns when something happened since the last call, or at `until`.
  boost::asio::awaitable<void> Wait(TimePoint until);
  void Notify();
  // Ends all waits. The socket stays open.
  void Close();

  bool client_gone() const { return client_gone_; }

 private:
  struct Source final {
    explicit Source(boost::asio::posix::stream_descriptor d) : descriptor(std::move(d)) {}
    boost::asio::posix::stream_descriptor descriptor;
    bool armed = false;
  };
  void Arm(Source& source);
  void ArmSocket();
  void CheckClient();

  boost::asio::ip::tcp::socket& socket_;
  boost::asio::steady_timer timer_;
  std::vector<std::unique_ptr<Source>> sources_;
  bool socket_armed_ = false;
  bool socket_has_data_ = false;  // the next request is there already: reads tell nothing any more
  bool client_gone_ = false;
  bool notified_ = false;
  bool closed_ = false;
};

}  // namespace lacuna::server
