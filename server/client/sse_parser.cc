#include "server/client/sse_parser.h"

#include <utility>

namespace lacuna::server {

std::optional<std::string> SseParser::Next() {
  while (true) {
    const size_t end = buffer_.find('\n', at_);
    if (end == std::string::npos) {
      buffer_.erase(0, at_);
      at_ = 0;
      return std::nullopt;
    }
    std::string_view line = std::string_view(buffer_).substr(at_, end - at_);
    if (line.ends_with('\r')) line.remove_suffix(1);
    at_ = end + 1;
    if (line.empty()) {
      if (!has_data_) continue;
      has_data_ = false;
      return std::exchange(data_, "");
    }
    if (!line.starts_with("data:")) continue;
    line.remove_prefix(5);
    if (line.starts_with(' ')) line.remove_prefix(1);
    if (has_data_) data_ += '\n';
    data_.append(line);
    has_data_ = true;
  }
}

}  // namespace lacuna::server
