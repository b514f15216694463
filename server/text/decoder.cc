#include "server/text/decoder.h"

#include <utility>

#include "server/text/decoder_stages.h"

namespace lacuna::server {

// What the file says about one step.
class Decoder::Step {
 public:
  virtual ~Step() = default;
  virtual std::unique_ptr<DecodeStage> NewStage() const = 0;
  virtual std::string TokenBytes(std::string token) const { return token; }
};

namespace {

constexpr int64_t kStripMax = 1 << 20;
using Steps = std::vector<std::unique_ptr<Decoder::Step>>;

class ByteLevelStep final : public Decoder::Step {
 public:
  std::unique_ptr<DecodeStage> NewStage() const override {
    return std::make_unique<ByteLevelStage>();
  }
  std::string TokenBytes(std::string token) const override { return ByteLevelBytes(token); }
};

class ByteFallbackStep final : public Decoder::Step {
 public:
  std::unique_ptr<DecodeStage> NewStage() const override {
    return std::make_unique<ByteFallbackStage>();
  }
  std::string TokenBytes(std::string token) const override {
    const auto byte = ByteOfToken(token);
    return byte ? std::string(1, static_cast<char>(*byte)) : token;
  }
};

class FuseStep final : public Decoder::Step {
 public:
  std::unique_ptr<DecodeStage> NewStage() const override { return std::make_unique<FuseStage>(); }
};

class JoinStep final : public Decoder::Step {
 public:
  std::unique_ptr<DecodeStage> NewStage() const override { return std::make_unique<JoinStage>(); }
};

// Concerns the ends of a text, so the bytes of one token stay.
class StripStep final : public Decoder::Step {
 public:
  StripStep(std::string content, int64_t start, int64_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}
  std::unique_ptr<DecodeStage> NewStage() const override {
    return std::make_unique<StripStage>(content_, start_, stop_);
  }

 private:
  const std::string content_;
  const int64_t start_;
  const int64_t stop_;
};

class ReplaceStep final : public Decoder::Step {
 public:
  ReplaceStep(TextPattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  std::unique_ptr<DecodeStage> NewStage() const override {
    return std::make_unique<ReplaceStage>(pattern_, content_);
  }
  std::string TokenBytes(std::string token) const override {
    // After ByteFallback a token may be a single byte, which no pattern can match.
    return IsValidUtf8(token) ? ReplaceAll(pattern_, content_, token) : token;
  }

 private:
  const TextPattern pattern_;
  const std::string content_;
};

class MetaspaceStep final : public Decoder::Step {
 public:
  MetaspaceStep(std::string mark, bool prepends) : mark_(std::move(mark)), prepends_(prepends) {}
  std::unique_ptr<DecodeStage> NewStage() const override {
    return std::make_unique<MetaspaceStage>(mark_, prepends_);
  }
  std::string TokenBytes(std::string token) const override {
    return ReplaceAll(TextPattern::FromLiteral(mark_), " ", token);
  }

 private:
  const std::string mark_;
  const bool prepends_;
};

Status ParseInto(const Json& json, int depth, Steps& steps);

Status ParseSequence(const Json& json, int depth, Steps& steps) {
  if (depth == 0) return InvalidArgument("Sequence: nested too deeply");
  LACUNA_ASSIGN_OR_RETURN(const Json* list, JsonArray(json, "decoders"));
  for (const Json& step : *list) LACUNA_RETURN_IF_ERROR(ParseInto(step, depth - 1, steps));
  return OkStatus();
}

Status ParseStrip(const Json& json, Steps& steps) {
  LACUNA_ASSIGN_OR_RETURN(std::string content, JsonChar(json, "content"));
  LACUNA_ASSIGN_OR_RETURN(const int64_t start, JsonInt(json, "start", 0, kStripMax));
  LACUNA_ASSIGN_OR_RETURN(const int64_t stop, JsonInt(json, "stop", 0, kStripMax));
  steps.push_back(std::make_unique<StripStep>(std::move(content), start, stop));
  return OkStatus();
}

Status ParseMetaspace(const Json& json, Steps& steps) {
  LACUNA_ASSIGN_OR_RETURN(std::string mark, JsonChar(json, "replacement"));
  LACUNA_ASSIGN_OR_RETURN(const bool add_prefix, JsonBool(json, "add_prefix_space", true));
  LACUNA_ASSIGN_OR_RETURN(const std::string scheme,
                          JsonString(json, "prepend_scheme", add_prefix ? "always" : "never"));
  steps.push_back(std::make_unique<MetaspaceStep>(std::move(mark), scheme != "never"));
  return OkStatus();
}

Status ParseInto(const Json& json, int depth, Steps& steps) {
  LACUNA_ASSIGN_OR_RETURN(const std::string type, JsonType(json));
  if (type == "Sequence") return ParseSequence(json, depth, steps);
  if (type == "Strip") return ParseStrip(json, steps);
  if (type == "Metaspace") return ParseMetaspace(json, steps);
  if (type == "Replace") {
    LACUNA_ASSIGN_OR_RETURN(TextPattern pattern,
                            TextPattern::FromJson(JsonMember(json, "pattern")));
    LACUNA_ASSIGN_OR_RETURN(std::string content, JsonString(json, "content"));
    steps.push_back(std::make_unique<ReplaceStep>(std::move(pattern), std::move(content)));
    return OkStatus();
  }
  if (type == "ByteLevel") {
    steps.push_back(std::make_unique<ByteLevelStep>());
  } else if (type == "ByteFallback") {
    steps.push_back(std::make_unique<ByteFallbackStep>());
  } else if (type == "Fuse") {
    steps.push_back(std::make_unique<FuseStep>());
  } else {
    return InvalidArgument("unknown type \"" + type + "\"");
  }
  return OkStatus();
}

}  // namespace

class DecodeStream::Sink final : public DecodeStage {
 public:
  void Text(std::string_view text) override { out_.append(text); }
  void EndToken() override {}
  void End() override {}
  std::string Take() { return std::exchange(out_, {}); }

 private:
  std::string out_;
};

DecodeStream::DecodeStream(std::vector<std::unique_ptr<DecodeStage>> stages)
    : stages_(std::move(stages)) {
  auto sink = std::make_unique<Sink>();
  sink_ = sink.get();
  stages_.push_back(std::move(sink));
  for (size_t i = 0; i + 1 < stages_.size(); ++i) stages_[i]->set_next(stages_[i + 1].get());
}

DecodeStream::~DecodeStream() = default;

std::string DecodeStream::Push(std::string_view token) {
  stages_.front()->Text(token);
  stages_.front()->EndToken();
  return sink_->Take();
}

std::string DecodeStream::Flush() {
  stages_.front()->End();
  return sink_->Take();
}

Decoder::Decoder(std::vector<std::unique_ptr<Step>> steps) : steps_(std::move(steps)) {}
Decoder::~Decoder() = default;

Result<std::unique_ptr<Decoder>> Decoder::FromJson(const Json& json) {
  Steps steps;
  if (json.is_null()) {
    steps.push_back(std::make_unique<JoinStep>());
  } else {
    LACUNA_RETURN_IF_ERROR(ParseInto(json, kComponentDepthMax, steps));
  }
  return std::unique_ptr<Decoder>(new Decoder(std::move(steps)));
}

std::unique_ptr<DecodeStream> Decoder::NewStream() const {
  std::vector<std::unique_ptr<DecodeStage>> stages;
  for (const auto& step : steps_) stages.push_back(step->NewStage());
  return std::make_unique<DecodeStream>(std::move(stages));
}

std::string Decoder::TokenBytes(std::string_view token) const {
  std::string bytes(token);
  for (const auto& step : steps_) bytes = step->TokenBytes(std::move(bytes));
  return bytes;
}

}  // namespace lacuna::server
