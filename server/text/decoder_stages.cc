#include "server/text/decoder_stages.h"

#include <algorithm>
#include <utility>

namespace lacuna::server {

void FuseStage::End() {
  next_->EndToken();
  next_->End();
}

std::string ByteLevelBytes(std::string_view token) {
  std::string bytes;
  for (size_t pos = 0; pos < token.size();) {
    const CodePoint c = DecodeUtf8(token.data() + pos);
    const int byte = ByteLevelByte(c.value);
    if (byte < 0) return std::string(token);
    bytes.push_back(static_cast<char>(byte));
    pos += c.bytes;
  }
  return bytes;
}

void ByteLevelStage::EndToken() {
  assembler_.Push(ByteLevelBytes(std::exchange(token_, {})), out_);
  Send();
}

void ByteLevelStage::End() {
  assembler_.Flush(out_);
  Send();
  next_->EndToken();
  next_->End();
}

void ByteLevelStage::Send() {
  if (!out_.empty()) next_->Text(out_);
  out_.clear();
}

std::optional<uint8_t> ByteOfToken(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    const char upper = static_cast<char>(c & ~0x20);
    return upper >= 'A' && upper <= 'F' ? upper - 'A' + 10 : -1;
  };
  const int high = digit(token[3]);
  const int low = digit(token[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<uint8_t>(high << 4 | low);
}

void ByteFallbackStage::Text(std::string_view text) {
  if (forwarding_) return next_->Text(text);
  token_.append(text);
  if (token_.size() <= 6) return;
  SendRun();
  forwarding_ = true;
  next_->Text(std::exchange(token_, {}));
}

void ByteFallbackStage::EndToken() {
  const auto byte = ByteOfToken(token_);
  if (byte && !forwarding_) {
    run_.push_back(static_cast<char>(*byte));
    token_.clear();
    return;
  }
  if (!forwarding_) {
    SendRun();
    if (!token_.empty()) next_->Text(std::exchange(token_, {}));
  }
  forwarding_ = false;
  next_->EndToken();
}

void ByteFallbackStage::End() {
  SendRun();
  next_->End();
}

void ByteFallbackStage::SendRun() {
  if (run_.empty()) return;
  const std::string run = std::exchange(run_, {});
  if (IsValidUtf8(run)) {
    next_->Text(run);
  } else {
    for (size_t i = 0; i < run.size(); ++i) next_->Text(kReplacementUtf8);
  }
  next_->EndToken();
}

void StripStage::Text(std::string_view text) {
  while (start_left_ > 0 && text.starts_with(content_)) {
    text.remove_prefix(content_.size());
    --start_left_;
  }
  if (text.empty()) return;
  start_left_ = 0;
  // Everything but the last stop_ of the trailing occurrences can go.
  std::string_view body = text;
  int64_t trailing = 0;
  while (trailing < stop_ && body.ends_with(content_)) {
    body.remove_suffix(content_.size());
    ++trailing;
  }
  // A piece of nothing but occurrences joins those held before.
  const int64_t keep = body.empty() ? std::min(held_ + trailing, stop_) : trailing;
  for (int64_t send = body.empty() ? held_ + trailing - keep : held_; send > 0; --send) {
    next_->Text(content_);
  }
  if (!body.empty()) next_->Text(body);
  held_ = keep;
}

void StripStage::EndToken() {
  start_left_ = start_;
  held_ = 0;
  next_->EndToken();
}

std::string ReplaceAll(const TextPattern& pattern, std::string_view content,
                       std::string_view token) {
  std::vector<TextPattern::Span> spans;
  if (token.empty() || !pattern.Cut(token, spans).ok()) return std::string(token);
  std::string out;
  for (const auto& [begin, end, is_match] : spans) {
    out.append(is_match ? content : token.substr(begin, end - begin));
  }
  return out;
}

void ReplaceStage::Text(std::string_view text) {
  held_.append(text);
  const std::string& literal = pattern_.literal();
  if (literal.empty()) return;
  std::string out;
  size_t from = 0;
  for (size_t at = held_.find(literal); at != held_.npos; at = held_.find(literal, from)) {
    out.append(held_, from, at - from).append(content_);
    from = at + literal.size();
  }
  // Hold the longest suffix that may begin the literal.
  size_t keep = std::min(literal.size() - 1, held_.size() - from);
  while (keep > 0 && !std::string_view(held_).ends_with(literal.substr(0, keep))) --keep;
  out.append(held_, from, held_.size() - from - keep);
  held_.erase(0, held_.size() - keep);
  if (!out.empty()) next_->Text(out);
}

void ReplaceStage::EndToken() {
  const std::string rest = std::exchange(held_, {});
  const std::string out = pattern_.literal().empty() ? ReplaceAll(pattern_, content_, rest) : rest;
  if (!out.empty()) next_->Text(out);
  next_->EndToken();
}

void MetaspaceStage::Text(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t at = text.find(mark_);
    out.append(text.substr(0, at));
    if (at == text.npos) break;
    if (!drops_) out.push_back(' ');
    text.remove_prefix(at + mark_.size());
  }
  if (!out.empty()) next_->Text(out);
}

void MetaspaceStage::EndToken() {
  drops_ = false;
  next_->EndToken();
}

void JoinStage::Separate() {
  if (!is_first_ && !separated_) next_->Text(" ");
  separated_ = true;
}

void JoinStage::Text(std::string_view text) {
  Separate();
  next_->Text(text);
}

void JoinStage::EndToken() {
  Separate();
  separated_ = false;
  is_first_ = false;
  next_->EndToken();
}

}  // namespace lacuna::server
