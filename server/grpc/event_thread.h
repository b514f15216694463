// EventThread: the one thread on which all gRPC streams wait for engine events and decide what to
// write next. gRPC's own threads only hand over; nothing here blocks.
//
// Owned by GrpcServer, and outlives every call.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <thread>

namespace lacuna::server {

class EventThread final {
 public:
  EventThread() : work_(io_.get_executor()), thread_([this] { io_.run(); }) {}
  ~EventThread() {
    work_.reset();
    thread_.join();  // after the handlers of the last calls
  }
  EventThread(const EventThread&) = delete;
  EventThread& operator=(const EventThread&) = delete;

  boost::asio::io_context& io() { return io_; }

 private:
  boost::asio::io_context io_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::thread thread_;
};

}  // namespace lacuna::server
