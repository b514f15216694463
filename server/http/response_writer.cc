#include "server/http/response_writer.h"

#include <cstdio>

namespace lacuna::server {
namespace {

constexpr std::pair<int, std::string_view> kReasons[] = {
    {200, "OK"},
    {204, "No Content"},
    {400, "Bad Request"},
    {401, "Unauthorized"},
    {403, "Forbidden"},
    {404, "Not Found"},
    {405, "Method Not Allowed"},
    {408, "Request Timeout"},
    {413, "Content Too Large"},
    {414, "URI Too Long"},
    {415, "Unsupported Media Type"},
    {422, "Unprocessable Content"},
    {429, "Too Many Requests"},
    {431, "Request Header Fields Too Large"},
    {500, "Internal Server Error"},
    {503, "Service Unavailable"},
};

std::string_view Reason(int status) {
  for (const auto& [code, reason] : kReasons) {
    if (code == status) return reason;
  }
  return "Unknown";
}

void AppendField(std::string_view name, std::string_view value, std::string& out) {
  out.append(name).append(": ").append(value).append("\r\n");
}

std::string StatusLine(int status, const ResponseFrame& frame) {
  std::string out = "HTTP/1.1 " + std::to_string(status) + " ";
  out.append(Reason(status)).append("\r\n");
  AppendField("Connection", frame.keep_alive ? "keep-alive" : "close", out);
  for (const auto& [name, value] : frame.headers) AppendField(name, value, out);
  return out;
}

}  // namespace

std::string FormatReply(const HttpReply& reply, const ResponseFrame& frame) {
  std::string out = StatusLine(reply.status, frame);
  for (const auto& [name, value] : reply.headers) AppendField(name, value, out);
  if (reply.status == 204) return out + "\r\n";
  AppendField("Content-Type", reply.content_type, out);
  AppendField("Content-Length", std::to_string(reply.body.size()), out);
  out += "\r\n";
  if (!frame.head_only) out += reply.body;
  return out;
}

std::string FormatStreamHead(const ResponseFrame& frame) {
  std::string out = StatusLine(200, frame);
  AppendField("Content-Type", "text/event-stream; charset=utf-8", out);
  AppendField("Cache-Control", "no-cache", out);
  AppendField("X-Accel-Buffering", "no", out);  // nginx must not hold events back
  if (!frame.http_1_0) AppendField("Transfer-Encoding", "chunked", out);
  return out + "\r\n";
}

std::string FormatStreamPiece(std::string_view data, bool last, const ResponseFrame& frame) {
  if (frame.http_1_0) return std::string(data);
  std::string out;
  if (!data.empty()) {  // an empty chunk would end the stream
    char size[24];
    std::snprintf(size, sizeof size, "%zx\r\n", data.size());
    out.append(size).append(data).append("\r\n");
  }
  if (last) out += "0\r\n\r\n";
  return out;
}

}  // namespace lacuna::server
