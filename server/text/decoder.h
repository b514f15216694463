// Decoder: token texts -> text, as a chain of steps through which tokens stream.
//
// A Decoder is immutable after load, any thread; a DecodeStream belongs to one thread. Decoding all
// at once is a stream that is flushed, so streamed and whole results agree by construction.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/status.h"
#include "server/text/tokenizer_json.h"

namespace lacuna::server {

// One step of a running decode. A token arrives as any number of Text calls, each of whole code
// points, and one EndToken; after the last token comes one End.
class DecodeStage {
 public:
  virtual ~DecodeStage() = default;
  void set_next(DecodeStage* next) { next_ = next; }
  virtual void Text(std::string_view text) = 0;
  virtual void EndToken() = 0;
  virtual void End() { next_->End(); }

 protected:
  DecodeStage* next_ = nullptr;
};

class DecodeStream final {
 public:
  explicit DecodeStream(std::vector<std::unique_ptr<DecodeStage>> stages);
  ~DecodeStream();
  // Feeds one token and returns the text that it made final.
  std::string Push(std::string_view token);
  std::string Flush();

 private:
  class Sink;
  std::vector<std::unique_ptr<DecodeStage>> stages_;  // the last is the sink
  Sink* sink_;
};

class Decoder final {
 public:
  // `json` may be null: tokens are joined by spaces. Names an unknown type in its error.
  static Result<std::unique_ptr<Decoder>> FromJson(const Json& json);
  ~Decoder();

  std::unique_ptr<DecodeStream> NewStream() const;
  // The bytes that one token in the middle of a text stands for.
  std::string TokenBytes(std::string_view token) const;

  class Step;

 private:
  explicit Decoder(std::vector<std::unique_ptr<Step>> steps);
  const std::vector<std::unique_ptr<Step>> steps_;
};

}  // namespace lacuna::server
