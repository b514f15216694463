#include "server/text/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>

#include <limits>
#include <utility>
#include <vector>

#include "server/text/tokenizer_pattern.h"
#include "server/text/unicode.h"

namespace lacuna::server {
namespace {

class UnicodeForm final : public Normalizer {
 public:
  UnicodeForm(const icu::Normalizer2& form, bool compose) : form_(form), compose_(compose) {}
  using GetForm = const icu::Normalizer2* (*)(UErrorCode&);

  static Result<std::unique_ptr<Normalizer>> Make(GetForm get, bool compose) {
    UErrorCode error = U_ZERO_ERROR;
    const icu::Normalizer2* form = get(error);
    if (U_FAILURE(error)) return InternalError("ICU lacks its normalization data");
    return std::unique_ptr<Normalizer>(new UnicodeForm(*form, compose));
  }
  Status Apply(std::string& text) const override {
    if (IsAscii(text)) return OkStatus();
    if (text.size() > std::numeric_limits<int32_t>::max()) {
      return InvalidArgument("the text is too long");
    }
    std::string out;
    out.reserve(text.size());
    icu::StringByteSink<std::string> sink(&out);
    UErrorCode error = U_ZERO_ERROR;
    const icu::StringPiece source(text.data(), static_cast<int32_t>(text.size()));
    if (compose_) {
      form_.normalizeUTF8(0, source, sink, nullptr, error);
    } else {  // ICU 72 has no UTF-8 path for the decomposing forms
      form_.normalize(icu::UnicodeString::fromUTF8(source), error).toUTF8(sink);
    }
    if (U_FAILURE(error)) return InternalError("Unicode normalization failed");
    text.swap(out);
    return OkStatus();
  }

 private:
  const icu::Normalizer2& form_;
  const bool compose_;
};

// Rewrites each character by map(code point, out).
template <typename Map>
class CharMap final : public Normalizer {
 public:
  explicit CharMap(Map map) : map_(map) {}
  Status Apply(std::string& text) const override {
    std::string out;
    out.reserve(text.size());
    for (size_t pos = 0; pos < text.size();) {
      const CodePoint c = DecodeUtf8(text.data() + pos);
      map_(c.value, out);
      pos += c.bytes;
    }
    text.swap(out);
    return OkStatus();
  }

 private:
  const Map map_;
};

// Lowercase of each character by itself, as Rust's char::to_lowercase: no final sigma rule.
void AppendLower(char32_t c, std::string& out) {
  if (c == 0x130) {  // the only one whose lowercase has two code points
    out.append("i\xCC\x87");
  } else {
    AppendUtf8(out, static_cast<char32_t>(u_tolower(static_cast<UChar32>(c))));
  }
}

void AppendUnlessMark(char32_t c, std::string& out) {
  if (!IsMark(c)) AppendUtf8(out, c);
}

class ByteLevelNormalizer final : public Normalizer {
 public:
  Status Apply(std::string& text) const override {
    std::string out;
    AppendByteLevel(text, out);
    text.swap(out);
    return OkStatus();
  }
};

class StripNormalizer final : public Normalizer {
 public:
  StripNormalizer(bool left, bool right) : left_(left), right_(right) {}
  Status Apply(std::string& text) const override {
    std::string_view rest = text;
    while (left_ && !rest.empty()) {
      const CodePoint c = DecodeUtf8(rest.data());
      if (!IsWhiteSpace(c.value)) break;
      rest.remove_prefix(c.bytes);
    }
    while (right_ && !rest.empty()) {
      const uint32_t bytes = LastCodePointBytes(rest);
      if (!IsWhiteSpace(DecodeUtf8(rest.data() + rest.size() - bytes).value)) break;
      rest.remove_suffix(bytes);
    }
    if (rest.size() != text.size()) text = std::string(rest);
    return OkStatus();
  }

 private:
  const bool left_;
  const bool right_;
};

class PrependNormalizer final : public Normalizer {
 public:
  explicit PrependNormalizer(std::string prefix) : prefix_(std::move(prefix)) {}
  Status Apply(std::string& text) const override {
    if (!text.empty()) text.insert(0, prefix_);
    return OkStatus();
  }

 private:
  const std::string prefix_;
};

class ReplaceNormalizer final : public Normalizer {
 public:
  ReplaceNormalizer(TextPattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  Status Apply(std::string& text) const override {
    if (text.empty()) return OkStatus();
    std::vector<TextPattern::Span> spans;
    LACUNA_RETURN_IF_ERROR(pattern_.Cut(text, spans));
    std::string out;
    for (const auto& [begin, end, is_match] : spans) {
      out.append(is_match ? std::string_view(content_)
                          : std::string_view(text).substr(begin, end - begin));
    }
    text.swap(out);
    return OkStatus();
  }

 private:
  const TextPattern pattern_;
  const std::string content_;
};

class SequenceNormalizer final : public Normalizer {
 public:
  explicit SequenceNormalizer(std::vector<std::unique_ptr<Normalizer>> steps)
      : steps_(std::move(steps)) {}
  Status Apply(std::string& text) const override {
    for (const auto& step : steps_) LACUNA_RETURN_IF_ERROR(step->Apply(text));
    return OkStatus();
  }

 private:
  const std::vector<std::unique_ptr<Normalizer>> steps_;
};

using ParsedNormalizer = Result<std::unique_ptr<Normalizer>>;
ParsedNormalizer Parse(const Json& json, int depth);

ParsedNormalizer ParseSequence(const Json& json, int depth) {
  if (depth == 0) return InvalidArgument("Sequence: nested too deeply");
  LACUNA_ASSIGN_OR_RETURN(const Json* list, JsonArray(json, "normalizers"));
  std::vector<std::unique_ptr<Normalizer>> steps;
  for (const Json& step : *list) {
    LACUNA_ASSIGN_OR_RETURN(auto parsed, Parse(step, depth - 1));
    steps.push_back(std::move(parsed));
  }
  return std::unique_ptr<Normalizer>(new SequenceNormalizer(std::move(steps)));
}

template <typename Map>
ParsedNormalizer MakeCharMap(Map map) {
  return std::unique_ptr<Normalizer>(new CharMap<Map>(map));
}

ParsedNormalizer Parse(const Json& json, int depth) {
  LACUNA_ASSIGN_OR_RETURN(const std::string type, JsonType(json));
  if (type == "Sequence") return ParseSequence(json, depth);
  if (type == "NFC") return UnicodeForm::Make(icu::Normalizer2::getNFCInstance, true);
  if (type == "NFKC") return UnicodeForm::Make(icu::Normalizer2::getNFKCInstance, true);
  if (type == "NFD") return UnicodeForm::Make(icu::Normalizer2::getNFDInstance, false);
  if (type == "NFKD") return UnicodeForm::Make(icu::Normalizer2::getNFKDInstance, false);
  if (type == "Lowercase") return MakeCharMap(AppendLower);
  if (type == "StripAccents") return MakeCharMap(AppendUnlessMark);
  if (type == "ByteLevel") return std::unique_ptr<Normalizer>(new ByteLevelNormalizer);
  if (type == "Strip") {
    LACUNA_ASSIGN_OR_RETURN(const bool left, JsonBool(json, "strip_left", true));
    LACUNA_ASSIGN_OR_RETURN(const bool right, JsonBool(json, "strip_right", true));
    return std::unique_ptr<Normalizer>(new StripNormalizer(left, right));
  }
  if (type == "Prepend") {
    LACUNA_ASSIGN_OR_RETURN(std::string prefix, JsonString(json, "prepend"));
    return std::unique_ptr<Normalizer>(new PrependNormalizer(std::move(prefix)));
  }
  if (type == "Replace") {
    LACUNA_ASSIGN_OR_RETURN(TextPattern pattern,
                            TextPattern::FromJson(JsonMember(json, "pattern")));
    LACUNA_ASSIGN_OR_RETURN(std::string content, JsonString(json, "content"));
    return std::unique_ptr<Normalizer>(
        new ReplaceNormalizer(std::move(pattern), std::move(content)));
  }
  if (type == "Precompiled") {
    LACUNA_ASSIGN_OR_RETURN(const std::string map, JsonString(json, "precompiled_charsmap"));
    return MakeCharsmapNormalizer(map);
  }
  return InvalidArgument("unknown type \"" + type + "\"");
}

}  // namespace

ParsedNormalizer Normalizer::FromJson(const Json& json) {
  if (json.is_null()) return std::unique_ptr<Normalizer>();
  return Parse(json, kComponentDepthMax);
}

}  // namespace lacuna::server
