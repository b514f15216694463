#include "server/http/response_writer.h"

#include <gtest/gtest.h>

#include "server/api/responder.h"

namespace lacuna::server {
namespace {

TEST(ResponseWriter, Reply) {
  ResponseFrame frame;
  frame.headers = {{"x-request-id", "a"}};
  const std::string text = FormatReply({200, "{}"}, frame);
  EXPECT_TRUE(text.starts_with("HTTP/1.1 200 OK\r\n"));
  EXPECT_NE(text.find("\r\nx-request-id: a\r\n"), std::string::npos);
  EXPECT_NE(text.find("\r\nContent-Length: 2\r\n"), std::string::npos);
  EXPECT_TRUE(text.ends_with("\r\n\r\n{}"));
  frame.head_only = true;
  EXPECT_TRUE(FormatReply({200, "{}"}, frame).ends_with("\r\n\r\n"));
}

TEST(ResponseWriter, StreamHead) {
  const std::string head = FormatStreamHead({});
  for (const char* line :
       {"Content-Type: text/event-stream; charset=utf-8", "Cache-Control: no-cache",
        "X-Accel-Buffering: no", "Transfer-Encoding: chunked"}) {
    EXPECT_NE(head.find(line), std::string::npos) << line;
  }
  ResponseFrame old;
  old.http_1_0 = true;
  EXPECT_EQ(FormatStreamHead(old).find("Transfer-Encoding"), std::string::npos);
}

TEST(ResponseWriter, StreamPieces) {
  const ResponseFrame frame;
  EXPECT_EQ(FormatStreamPiece(kSsePing, false, frame), "8\r\n: ping\n\n\r\n");
  EXPECT_EQ(FormatStreamPiece("", false, frame), "") << "an empty chunk would end the stream";
  EXPECT_EQ(FormatStreamPiece("x", true, frame), "1\r\nx\r\n0\r\n\r\n");
  ResponseFrame old;
  old.http_1_0 = true;
  EXPECT_EQ(FormatStreamPiece("x", true, old), "x");
}

}  // namespace
}  // namespace lacuna::server
