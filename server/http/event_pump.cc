#include "server/http/event_pump.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <utility>

namespace lacuna::server {

namespace asio = boost::asio;

EventPump::EventPump(asio::ip::tcp::socket& socket)
    : socket_(socket), timer_(socket.get_executor()) {}

bool EventPump::Watch(std::span<const int> fds) {
  for (const int fd : fds) {
    const int copy = fd < 0 ? -1 : dup(fd);
    if (copy < 0) return false;
    sources_.push_back(
        std::make_unique<Source>(asio::posix::stream_descriptor(socket_.get_executor(), copy)));
  }
  return true;
}

asio::awaitable<void> EventPump::Wait(TimePoint until) {
  for (const std::unique_ptr<Source>& source : sources_) Arm(*source);
  ArmSocket();
  if (socket_has_data_) CheckClient();
  if (!notified_ && !client_gone_) {
    timer_.expires_at(until);
    co_await timer_.async_wait(asio::as_tuple(asio::use_awaitable));
  }
  notified_ = false;
}

void EventPump::Notify() {
  notified_ = true;
  timer_.cancel();
}

void EventPump::Close() {
  closed_ = true;
  for (const std::unique_ptr<Source>& source : sources_) source->descriptor.close();
  boost::system::error_code ignored;
  if (socket_armed_) socket_.cancel(ignored);
}

void EventPump::Arm(Source& source) {
  if (std::exchange(source.armed, true)) return;
  source.descriptor.async_wait(
      asio::posix::stream_descriptor::wait_read,
      [self = shared_from_this(), &source](const boost::system::error_code& error) {
        source.armed = false;
        if (!error && !self->closed_) self->Notify();
      });
}

void EventPump::ArmSocket() {
  if (socket_has_data_ || client_gone_ || std::exchange(socket_armed_, true)) return;
  socket_.async_wait(asio::ip::tcp::socket::wait_read,
                     [self = shared_from_this()](const boost::system::error_code& error) {
                       self->socket_armed_ = false;
                       if (self->closed_) return;
                       if (error) self->client_gone_ = true;
                       if (!error) self->CheckClient();
                       if (self->client_gone_) self->Notify();
                     });
}

// A half-closed connection counts as gone too, as most servers see it.
void EventPump::CheckClient() {
  const int fd = socket_.native_handle();
  char byte = 0;
  const ssize_t got = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) client_gone_ = true;
  if (got <= 0) return;
  socket_has_data_ = true;
  tcp_info info{};
  socklen_t size = sizeof info;
  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
      info.tcpi_state != TCP_ESTABLISHED) {
    client_gone_ = true;
  }
}

}  // namespace lacuna::server
