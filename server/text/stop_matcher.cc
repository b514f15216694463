#include "server/text/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace lacuna::server {

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_stop)
    : include_stop_(include_stop) {
  for (std::string& text : stops) {
    if (text.empty()) continue;
    std::vector<size_t> border(text.size(), 0);
    for (size_t i = 1, k = 0; i < text.size(); ++i) {
      while (k > 0 && text[i] != text[k]) k = border[k - 1];
      if (text[i] == text[k]) ++k;
      border[i] = k;
    }
    stops_.push_back({std::move(text), std::move(border), 0});
  }
}

bool StopMatcher::Advance(Stop& stop, char byte) {
  size_t& k = stop.matched_bytes;
  while (k > 0 && stop.text[k] != byte) k = stop.border[k - 1];
  if (stop.text[k] == byte) ++k;
  return k == stop.text.size();
}

StopMatcher::Output StopMatcher::Push(std::string_view piece) {
  if (stopped_) return {{}, true, matched_};
  for (size_t i = 0; i < piece.size(); ++i) {
    const Stop* found = nullptr;
    for (Stop& stop : stops_) {
      if (Advance(stop, piece[i]) && (!found || stop.text.size() > found->text.size())) {
        found = &stop;
      }
    }
    if (!found) continue;
    stopped_ = true;
    matched_ = found->text;
    std::string text = std::exchange(held_, {}).append(piece.substr(0, i + 1));
    if (!include_stop_) text.resize(text.size() - matched_.size());
    return {std::move(text), true, matched_};
  }
  size_t hold_bytes = 0;
  for (const Stop& stop : stops_) hold_bytes = std::max(hold_bytes, stop.matched_bytes);
  std::string text = std::exchange(held_, {}).append(piece);
  held_ = text.substr(text.size() - hold_bytes);
  text.resize(text.size() - hold_bytes);
  return {std::move(text), false, {}};
}

StopMatcher::Output StopMatcher::Flush() { return {std::exchange(held_, {}), stopped_, matched_}; }

}  // namespace lacuna::server
