// The running steps of a decoder; decoder.cc reads which ones a file asks for.
//
// Each holds back only what a later token may still change.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/text/decoder.h"
#include "server/text/tokenizer_pattern.h"
#include "server/text/unicode.h"

namespace lacuna::server {

// Joins all tokens into one.
class FuseStage final : public DecodeStage {
 public:
  void Text(std::string_view text) override { next_->Text(text); }
  void EndToken() override {}
  void End() override;
};

// A byte-level token -> its bytes; the text itself if a character is outside the alphabet.
std::string ByteLevelBytes(std::string_view token);

// Byte-level tokens -> one token of UTF-8.
class ByteLevelStage final : public DecodeStage {
 public:
  void Text(std::string_view text) override { token_.append(text); }
  void EndToken() override;
  void End() override;

 private:
  void Send();
  std::string token_;
  std::string out_;
  Utf8Assembler assembler_;
};

// "<0xE2>" -> 0xE2; nothing for other tokens.
std::optional<uint8_t> ByteOfToken(std::string_view token);

// A run of byte tokens -> one token: its UTF-8, or one U+FFFD a byte if the run is not valid as a
// whole. So the run is held until another token ends it.
class ByteFallbackStage final : public DecodeStage {
 public:
  void Text(std::string_view text) override;
  void EndToken() override;
  void End() override;

 private:
  void SendRun();
  std::string token_;        // while it may still be a byte token
  bool forwarding_ = false;  // it is none
  std::string run_;
};

// Cuts up to `start` leading and `stop` trailing occurrences of a character off each token.
class StripStage final : public DecodeStage {
 public:
  StripStage(std::string_view content, int64_t start, int64_t stop)
      : content_(content), start_(start), stop_(stop), start_left_(start) {}
  void Text(std::string_view text) override;
  void EndToken() override;

 private:
  const std::string_view content_;  // of the decoder, which outlives its streams
  const int64_t start_;
  const int64_t stop_;
  int64_t start_left_;
  int64_t held_ = 0;  // trailing occurrences not yet sent, at most stop_
};

// Replaces a pattern in each token. A literal streams; a regex needs the whole token.
class ReplaceStage final : public DecodeStage {
 public:
  ReplaceStage(const TextPattern& pattern, std::string_view content)
      : pattern_(pattern), content_(content) {}
  void Text(std::string_view text) override;
  void EndToken() override;

 private:
  const TextPattern& pattern_;
  const std::string_view content_;
  std::string held_;
};

// Applies `pattern` to one whole token; leaves it as it is if the regex exceeds its limits.
std::string ReplaceAll(const TextPattern& pattern, std::string_view content,
                       std::string_view token);

// The mark of Metaspace -> space, but nothing in the first token if a prefix was prepended.
class MetaspaceStage final : public DecodeStage {
 public:
  MetaspaceStage(std::string_view mark, bool prepends) : mark_(mark), drops_(prepends) {}
  void Text(std::string_view text) override;
  void EndToken() override;

 private:
  const std::string_view mark_;
  bool drops_;
};

// A space between tokens: what Hugging Face does without a decoder.
class JoinStage final : public DecodeStage {
 public:
  void Text(std::string_view text) override;
  void EndToken() override;

 private:
  void Separate();
  bool is_first_ = true;
  bool separated_ = false;  // the space before the present token was sent
};

}  // namespace lacuna::server
