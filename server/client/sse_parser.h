// Server-sent events from pieces of any size: yields the data of each event. One stream, one
// thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace lacuna::server {

class SseParser final {
 public:
  void Push(std::string_view bytes) { buffer_.append(bytes); }
  // The data of the next whole event (its data lines joined by newlines); comments are skipped.
  std::optional<std::string> Next();

 private:
  std::string buffer_;
  size_t at_ = 0;
  std::string data_;
  bool has_data_ = false;
};

}  // namespace lacuna::server
