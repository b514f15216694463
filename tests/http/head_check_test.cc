// Crafted heads that two parsers could read differently: each must be refused.
#include "server/http/head_check.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace lacuna::server {
namespace {

std::string Head(const std::string& fields) {
  return "POST /x HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n";
}

TEST(HeadCheck, AcceptsWhatClientsSend) {
  for (const std::string& head :
       {Head(""), Head("Content-Length: 5\r\n"), Head("transfer-encoding: Chunked\r\n"),
        Head("X-Stainless-Lang: js\r\nAuthorization: Bearer a_b-c\r\nAccept:*/*\r\n"),
        Head("Empty:\r\n"), std::string("GET /health HTTP/1.0\r\n\r\n"),
        std::string("GET /a?b=%20c&d=%2F HTTP/1.1\r\nHost: [::1]:80\r\n\r\n")}) {
    const auto error = CheckHead(head, {});
    EXPECT_FALSE(error.has_value()) << head << (error ? error->message : "");
  }
}

TEST(HeadCheck, Smuggling) {
  std::vector<std::string> heads = {
      Head("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
      Head("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
      Head("Content-Length: 5\r\nContent-Length: 5\r\n"),
      Head("Content-Length: 5\r\ncontent-length: 6\r\n"),
      Head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
      "POST /x HTTP/1.1\nHost: a\n\n",
      "POST /x HTTP/1.1\r\nHost: a\nContent-Length: 5\r\n\r\n",
      "POST /x HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
      "POST /x HTTP/1.1\r\n Host: a\r\n\r\n",
      "POST /x HTTP/1.1\r\n\r\n",
      "POST /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
      "POST  /x HTTP/1.1\r\nHost: a\r\n\r\n",
      "POST /x  HTTP/1.1\r\nHost: a\r\n\r\n",
      "POST /x y HTTP/1.1\r\nHost: a\r\n\r\n",
      "POST /x\tHTTP/1.1\r\nHost: a\r\n\r\n",
      "POST http://b/x HTTP/1.1\r\nHost: a\r\n\r\n",
      "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
      "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
      "POST /x HTTP/1.2\r\nHost: a\r\n\r\n",
      "POST /x HTTP/2.0\r\nHost: a\r\n\r\n",
      "POST /x http/1.1\r\nHost: a\r\n\r\n",
      "POST /x HTTP/1.1 \r\nHost: a\r\n\r\n",
      "post /x HTTP/1.1\r\nHost: a\r\n\r\n",
      "POST /x\r\nHost: a\r\n\r\n",
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
      "\r\nPOST /x HTTP/1.1\r\nHost: a\r\n\r\n",
      "POST /\x80 HTTP/1.1\r\nHost: a\r\n\r\n",
      "POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
  };
  for (const char* value : {"", "+5", "-5", "5 5", "5,5", "0x5", "5;", " ", "five", "1e3", "5.0",
                            "'5'", "9999999999999999999999", "\xd9\xa5"}) {
    heads.push_back(Head("Content-Length: " + std::string(value) + "\r\n"));
  }
  for (const char* value :
       {"", "identity", "gzip", "gzip, chunked", "chunked, identity", "xchunked", "chunked;a",
        "\"chunked\"", "chunked,", ",chunked", "chunked chunked",
        "\x0b"
        "chunked",
        "chunke", "cow"}) {
    heads.push_back(Head("Transfer-Encoding: " + std::string(value) + "\r\n"));
  }
  for (const char* line : {"Transfer-Encoding : chunked",
                           "Content-Length\t: 5",
                           ": x",
                           "no colon",
                           " folded: x",
                           "\tfolded: x",
                           "under_score: x",
                           "Content_Length: 5",
                           "b@d: x",
                           "b(d: x",
                           "b\"d: x",
                           "b{d: x",
                           "b/d: x",
                           "b d: x",
                           "b\x01: x",
                           "a: b\x01",
                           "a: b\x7f",
                           "a: \x80",
                           "a: \xc3\xa9",
                           "a: b\vc",
                           "\x7f: x",
                           "Transfer\x8d-Encoding: chunked"}) {
    heads.push_back(Head(std::string(line) + "\r\n"));
  }
  heads.push_back(Head(std::string("a: b\0c\r\n", 8)));
  heads.push_back(Head(std::string("a\0b: c\r\n", 8)));
  for (const std::string& head : heads) {
    const auto error = CheckHead(head, {});
    ASSERT_TRUE(error.has_value()) << head;
    EXPECT_EQ(error->http_status(), 400) << head;
  }
}

TEST(HeadCheck, Limits) {
  const HeadLimits limits{.line_bytes_max = 100, .fields_max = 4};
  const auto fields = [](int count) {
    std::string text;
    for (int i = 0; i < count; ++i) text += "a: b\r\n";
    return text;
  };
  EXPECT_FALSE(CheckHead(Head(fields(3)), limits).has_value());  // and Host
  EXPECT_EQ(CheckHead(Head(fields(4)), limits)->http_status(), 431);
  EXPECT_EQ(CheckHead(Head(fields(4000)), limits)->http_status(), 431);
  EXPECT_FALSE(CheckHead(Head("a: " + std::string(97, 'x') + "\r\n"), limits).has_value());
  EXPECT_EQ(CheckHead(Head("a: " + std::string(98, 'x') + "\r\n"), limits)->http_status(), 431);
  const auto target = [](size_t bytes) {
    return "GET /" + std::string(bytes - 14, 'x') + " HTTP/1.1\r\nHost: a\r\n\r\n";
  };
  EXPECT_FALSE(CheckHead(target(100), limits).has_value());
  EXPECT_EQ(CheckHead(target(101), limits)->http_status(), 414);
}

TEST(HeadCheck, HostNames) {
  EXPECT_EQ(HostName("localhost:8000"), "localhost");
  EXPECT_EQ(HostName("[::1]:8000"), "[::1]");
  EXPECT_EQ(HostName("a.b"), "a.b");
  for (const char* name : {"localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "[::1]"}) {
    EXPECT_TRUE(IsLoopbackName(name)) << name;
  }
  for (const char* name : {"evil.com", "127.evil.com", "localhost.evil.com", "10.0.0.1", ""}) {
    EXPECT_FALSE(IsLoopbackName(name)) << name;
  }
}

}  // namespace
}  // namespace lacuna::server
