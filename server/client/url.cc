#include "server/client/url.h"

#include <algorithm>

namespace lacuna::server {

Result<Url> ParseUrl(std::string_view text) {
  const Status bad = InvalidArgument("--url: got \"" + std::string(text.substr(0, 200)) +
                                     "\", need http://HOST[:PORT][/BASE]");
  constexpr std::string_view kScheme = "http://";
  if (!text.starts_with(kScheme)) return bad;
  text.remove_prefix(kScheme.size());
  const bool clean = std::all_of(text.begin(), text.end(),
                                 [](unsigned char c) { return c > 0x20 && c < 0x7f && c != '@'; });
  if (!clean) return bad;
  Url url;
  const size_t slash = std::min(text.find('/'), text.size());
  url.base = text.substr(slash);
  while (url.base.ends_with('/')) url.base.pop_back();
  std::string_view authority = text.substr(0, slash);
  const size_t bracket = authority.rfind(']');
  const size_t colon = authority.rfind(':');
  if (colon != std::string_view::npos && (bracket == std::string_view::npos || colon > bracket)) {
    url.port = authority.substr(colon + 1);
    authority = authority.substr(0, colon);
    const bool digits = url.port.find_first_not_of("0123456789") == std::string::npos;
    if (url.port.empty() || url.port.size() > 5 || !digits) return bad;
  }
  if (authority.starts_with('[') && authority.ends_with(']')) {
    authority = authority.substr(1, authority.size() - 2);
  }
  if (authority.empty()) return bad;
  url.host = authority;
  return url;
}

}  // namespace lacuna::server
