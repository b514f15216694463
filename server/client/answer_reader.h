// AnswerReader: the body of one answer in pieces -> content pieces, usage and how it ended. Pure.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "server/client/sse_parser.h"

namespace lacuna::server {

class AnswerReader final {
 public:
  AnswerReader(unsigned http_status, bool stream, bool chat);

  void Push(std::string_view bytes);
  void Finish();  // the body has ended

  int64_t pieces() const { return pieces_; }  // events that carried text; 1 for a whole answer
  int64_t input_tokens() const { return input_tokens_; }    // 0: the server did not say
  int64_t output_tokens() const { return output_tokens_; }  // else the pieces stand for tokens
  const std::string& text() const { return text_; }         // of all choices, as it came
  const nlohmann::json& usage() const { return usage_; }    // null: the server did not say
  // "" or the class of the failure: "http 503", "stream error", "truncated", "bad answer".
  const std::string& error() const { return error_; }
  // What the server said of a failure, in one line; may be empty.
  const std::string& detail() const { return detail_; }

 private:
  void OnEvent(std::string_view data);
  void KeepDetail(const nlohmann::json& answer);
  void Fail(std::string error);

  const bool stream_, chat_;
  SseParser sse_;
  std::string body_, text_;
  nlohmann::json usage_;
  int64_t pieces_ = 0, input_tokens_ = 0, output_tokens_ = 0;
  bool finished_ = false, done_ = false;
  std::string error_, detail_;
};

}  // namespace lacuna::server
