#include "kernels/core/json_text.h"

#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace lacuna {
namespace {

// "line 3, column 5" of the byte that ends `text.substr(0, bytes)`.
std::string LineAndColumn(std::string_view text, size_t bytes) {
  const std::string_view before = text.substr(0, std::min(bytes, text.size()));
  const size_t line = 1 + static_cast<size_t>(std::count(before.begin(), before.end(), '\n'));
  const size_t line_start = before.rfind('\n');
  const size_t column =
      line_start == std::string_view::npos ? before.size() : before.size() - line_start - 1;
  return "line " + std::to_string(line) + ", column " + std::to_string(std::max<size_t>(column, 1));
}

// The library's text without its prefix and with no control byte: "unexpected '}'; expected ...".
std::string Reason(std::string_view what) {
  for (const std::string_view mark : {"syntax error while parsing ", "parse error: "}) {
    const size_t at = what.find(mark);
    if (at != std::string_view::npos) {
      what.remove_prefix(at + mark.size());
      break;
    }
  }
  std::string reason(what.substr(0, 200));
  std::replace_if(
      reason.begin(), reason.end(), [](unsigned char c) { return c < 0x20 || c >= 0x7f; }, '?');
  return reason;
}

// Watches the parser: depth and duplicate keys. The parser itself does not recurse.
class Watcher final {
 public:
  explicit Watcher(int depth_max) : depth_max_(depth_max) {}

  bool operator()(int depth, ConfigJson::parse_event_t event, const ConfigJson& value) {
    using Event = ConfigJson::parse_event_t;
    if (error_) return false;
    switch (event) {
      case Event::object_start:
      case Event::array_start:
        if (depth >= depth_max_) {
          error_ = "got nesting deeper than " + std::to_string(depth_max_) + ", need at most that";
          return false;
        }
        if (event == Event::object_start) keys_.emplace_back();
        break;
      case Event::object_end:
        keys_.pop_back();
        break;
      case Event::key:
        if (!keys_.back().insert(value.get_ref<const std::string&>()).second) {
          error_ = "got the key " + value.dump() + " twice, need it once";
          return false;
        }
        break;
      default:
        break;
    }
    return true;
  }
  const std::optional<std::string>& error() const { return error_; }

 private:
  int depth_max_;
  std::vector<std::set<std::string>> keys_;  // of the open objects, outermost first
  std::optional<std::string> error_;
};

}  // namespace

Result<ConfigJson> ParseJsonText(std::string_view text, const JsonTextLimits& limits) {
  if (static_cast<int64_t>(text.size()) > limits.bytes_max) {
    return InvalidArgument("line 1, column 1: got " + std::to_string(text.size()) +
                           " bytes, need at most " + std::to_string(limits.bytes_max));
  }
  Watcher watcher(limits.depth_max);
  // The parser keeps a copy of the callback, so it gets a reference.
  const ConfigJson::parser_callback_t callback =
      [&watcher](int depth, ConfigJson::parse_event_t event, ConfigJson& value) {
        return watcher(depth, event, value);
      };
  try {
    ConfigJson json = ConfigJson::parse(text.begin(), text.end(), callback, true, true);
    if (watcher.error()) return InvalidArgument(*watcher.error());
    return json;
  } catch (const ConfigJson::parse_error& error) {
    if (watcher.error()) return InvalidArgument(*watcher.error());
    return InvalidArgument(LineAndColumn(text, error.byte) + ": got broken JSON (" +
                           Reason(error.what()) + "), need valid JSON with // comments");
  } catch (const ConfigJson::exception& error) {
    return InvalidArgument("got broken JSON (" + Reason(error.what()) +
                           "), need valid JSON with // comments");
  }
}

}  // namespace lacuna
