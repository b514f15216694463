#include "server/http/head_check.h"

#include <algorithm>
#include <string>

namespace lacuna::server {
namespace {

std::string Lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

bool IsAlnum(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// RFC 9110 tchar without '_': proxies that turn '-' into '_' must not meet both.
bool IsNameChar(char c) {
  return IsAlnum(c) || std::string_view("!#$%&'*+-.^`|~").find(c) != std::string_view::npos;
}

bool IsVisible(char c) { return c > ' ' && c < 127; }

ApiError Malformed(std::string message) {
  return {ErrorKind::kMalformedHttp, std::move(message), {}};
}

// Counts of the fields that decide where a message ends and whom it is for.
struct Framing final {
  int content_lengths = 0;
  int transfer_encodings = 0;
  int hosts = 0;
};

std::optional<ApiError> CheckRequestLine(std::string_view line, bool& version_1_1) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == std::string_view::npos || first == last) {
    return Malformed("The request line needs a method, a target and a version.");
  }
  const std::string_view method = line.substr(0, first);
  const std::string_view target = line.substr(first + 1, last - first - 1);
  const std::string_view version = line.substr(last + 1);
  const bool method_ok =
      !method.empty() && std::ranges::all_of(method, [](char c) { return c >= 'A' && c <= 'Z'; });
  if (!method_ok) return Malformed("The method is not one of HTTP.");
  if (target.empty() || target.front() != '/' || !std::ranges::all_of(target, IsVisible)) {
    return Malformed("The request target must be a path in visible ASCII.");
  }
  version_1_1 = version == "HTTP/1.1";
  if (!version_1_1 && version != "HTTP/1.0") return Malformed("Only HTTP/1.1 is spoken here.");
  return std::nullopt;
}

std::optional<ApiError> CheckFraming(const std::string& name, std::string_view value,
                                     Framing& framing) {
  if (name == "content-length") {
    ++framing.content_lengths;
    const bool digits = !value.empty() && value.size() <= 18 &&
                        std::ranges::all_of(value, [](char c) { return c >= '0' && c <= '9'; });
    if (!digits) return Malformed("Content-Length must be one decimal number.");
  } else if (name == "transfer-encoding") {
    ++framing.transfer_encodings;
    if (Lower(value) != "chunked") return Malformed("The only Transfer-Encoding is chunked.");
  } else if (name == "host") {
    ++framing.hosts;
  }
  return std::nullopt;
}

std::optional<ApiError> CheckField(std::string_view line, Framing& framing) {
  if (line.front() == ' ' || line.front() == '\t') {
    return Malformed("Folded header lines are refused.");
  }
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos || colon == 0) {
    return Malformed("A header line needs a name and a colon.");
  }
  const std::string_view name = line.substr(0, colon);
  if (!std::ranges::all_of(name, IsNameChar)) {
    return Malformed("A header name holds a character that is refused.");
  }
  std::string_view value = line.substr(colon + 1);
  while (!value.empty() && (value.front() == ' ' || value.front() == '\t')) value.remove_prefix(1);
  while (!value.empty() && (value.back() == ' ' || value.back() == '\t')) value.remove_suffix(1);
  const bool clean =
      std::ranges::all_of(value, [](char c) { return IsVisible(c) || c == ' ' || c == '\t'; });
  if (!clean) return Malformed("A header value holds a byte that is refused.");
  return CheckFraming(Lower(name), value, framing);
}

std::optional<ApiError> CheckTogether(const Framing& framing, bool version_1_1) {
  if (framing.content_lengths > 1) return Malformed("Content-Length is repeated.");
  if (framing.transfer_encodings > 1) return Malformed("Transfer-Encoding is repeated.");
  if (framing.content_lengths + framing.transfer_encodings > 1) {
    return Malformed("Content-Length and Transfer-Encoding exclude each other.");
  }
  if (framing.transfer_encodings > 0 && !version_1_1) {
    return Malformed("HTTP/1.0 has no Transfer-Encoding.");
  }
  if (framing.hosts > 1 || (framing.hosts == 0 && version_1_1)) {
    return Malformed("Exactly one Host header is needed.");
  }
  return std::nullopt;
}

}  // namespace

std::optional<ApiError> CheckHead(std::string_view head, const HeadLimits& limits) {
  Framing framing;
  bool version_1_1 = false;
  int64_t lines = 0;
  while (!head.empty()) {
    const size_t end = head.find('\n');
    if (end == std::string_view::npos || end == 0 || head[end - 1] != '\r') {
      return Malformed("Lines must end with CR LF.");
    }
    const std::string_view line = head.substr(0, end - 1);
    head.remove_prefix(end + 1);
    if (line.find('\r') != std::string_view::npos) return Malformed("A lone CR is refused.");
    if (static_cast<int64_t>(line.size()) > limits.line_bytes_max) {
      return ApiError{lines == 0 ? ErrorKind::kTargetTooLong : ErrorKind::kHeaderTooLarge,
                      lines == 0 ? "The request line is too long." : "A header line is too long.",
                      {}};
    }
    if (line.empty() && lines > 0) break;
    auto error = lines == 0 ? CheckRequestLine(line, version_1_1) : CheckField(line, framing);
    if (error) return error;
    if (lines > limits.fields_max) {
      return ApiError{ErrorKind::kHeaderTooLarge, "There are too many header fields.", {}};
    }
    ++lines;
  }
  return CheckTogether(framing, version_1_1);
}

std::string_view HostName(std::string_view host) {
  if (host.starts_with('[')) return host.substr(0, std::min(host.find(']'), host.size() - 1) + 1);
  return host.substr(0, std::min(host.find(':'), host.size()));
}

bool IsLoopbackName(std::string_view name) {
  const std::string lower = Lower(name);
  return lower == "localhost" || lower == "[::1]" || lower == "::1" ||
         lower.ends_with(".localhost") ||
         (lower.starts_with("127.") &&
          std::ranges::all_of(lower, [](char c) { return (c >= '0' && c <= '9') || c == '.'; }));
}

}  // namespace lacuna::server
