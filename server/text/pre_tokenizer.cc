#include "server/text/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "server/text/tokenizer_pattern.h"
#include "server/text/unicode.h"

namespace lacuna::server {
namespace {

enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
using Spans = std::vector<TextPattern::Span>;

Result<Behavior> ParseBehavior(const Json& json) {
  LACUNA_ASSIGN_OR_RETURN(const std::string name, JsonString(json, "behavior", "Isolated"));
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  return InvalidArgument("unknown behavior \"" + name + "\"");
}

// Joins spans as the behaviour says; a span stays a match only to be removed.
void MergeSpans(Behavior behavior, Spans& spans) {
  if (behavior == Behavior::kRemoved || behavior == Behavior::kIsolated) return;
  const bool backward = behavior == Behavior::kMergedWithNext;
  if (backward) std::reverse(spans.begin(), spans.end());
  size_t kept = 0;
  bool previous = false;
  for (const TextPattern::Span span : spans) {
    const bool joins =
        behavior == Behavior::kContiguous ? span.is_match == previous : span.is_match && !previous;
    previous = span.is_match;
    if (!joins || kept == 0) {
      spans[kept++] = span;
    } else if (backward) {
      spans[kept - 1].begin = span.begin;
    } else {
      spans[kept - 1].end = span.end;
    }
  }
  spans.resize(kept);
  if (backward) std::reverse(spans.begin(), spans.end());
}

void AppendSpans(const Piece& piece, Behavior behavior, Spans& spans, Pieces& out) {
  MergeSpans(behavior, spans);
  for (const auto& [begin, end, is_match] : spans) {
    if (begin == end || (is_match && behavior == Behavior::kRemoved)) continue;
    out.push_back({piece.text.substr(begin, end - begin), piece.at_start && begin == 0});
  }
}

class Split final : public PreTokenizer {
 public:
  Split(TextPattern pattern, Behavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  static Result<std::unique_ptr<PreTokenizer>> FromJson(const Json& json) {
    LACUNA_ASSIGN_OR_RETURN(TextPattern pattern,
                            TextPattern::FromJson(JsonMember(json, "pattern")));
    LACUNA_ASSIGN_OR_RETURN(const Behavior behavior, ParseBehavior(json));
    LACUNA_ASSIGN_OR_RETURN(const bool invert, JsonBool(json, "invert", false));
    return std::unique_ptr<PreTokenizer>(new Split(std::move(pattern), behavior, invert));
  }

  Status Apply(Pieces& pieces, PieceArena&) const override {
    Pieces out;
    Spans spans;
    for (const Piece& piece : pieces) {
      spans.clear();
      LACUNA_RETURN_IF_ERROR(pattern_.Cut(piece.text, spans));
      if (invert_) {
        for (auto& span : spans) span.is_match = !span.is_match;
      }
      AppendSpans(piece, behavior_, spans, out);
    }
    pieces.swap(out);
    return OkStatus();
  }

 private:
  const TextPattern pattern_;
  const Behavior behavior_;
  const bool invert_;
};

// Cuts by the class of single characters: each character that `is_match` says is one match.
template <typename Predicate>
class CharSplit final : public PreTokenizer {
 public:
  CharSplit(Predicate is_match, Behavior behavior) : is_match_(is_match), behavior_(behavior) {}

  Status Apply(Pieces& pieces, PieceArena&) const override {
    Pieces out;
    Spans spans;
    for (const Piece& piece : pieces) {
      spans.clear();
      size_t gap = 0;
      for (size_t pos = 0; pos < piece.text.size();) {
        const CodePoint c = DecodeUtf8(piece.text.data() + pos);
        if (is_match_(c.value)) {
          if (gap != pos) spans.push_back({gap, pos, false});
          gap = pos + c.bytes;
          spans.push_back({pos, gap, true});
        }
        pos += c.bytes;
      }
      if (gap != piece.text.size()) spans.push_back({gap, piece.text.size(), false});
      AppendSpans(piece, behavior_, spans, out);
    }
    pieces.swap(out);
    return OkStatus();
  }

 private:
  const Predicate is_match_;
  const Behavior behavior_;
};

template <typename Predicate>
std::unique_ptr<PreTokenizer> MakeCharSplit(Predicate is_match, Behavior behavior) {
  return std::make_unique<CharSplit<Predicate>>(is_match, behavior);
}

// \w+|[^\w\s]+ keeps the matches and drops the spaces between them.
class Whitespace final : public PreTokenizer {
 public:
  Status Apply(Pieces& pieces, PieceArena&) const override {
    enum Class { kGap, kWord, kSymbol };
    Pieces out;
    for (const Piece& piece : pieces) {
      Class run = kGap;
      size_t begin = 0;
      const auto close = [&](size_t end) {
        if (run == kGap || begin == end) return;
        out.push_back({piece.text.substr(begin, end - begin), piece.at_start && begin == 0});
      };
      for (size_t pos = 0; pos < piece.text.size();) {
        const CodePoint c = DecodeUtf8(piece.text.data() + pos);
        const Class now = IsWordChar(c.value) ? kWord : IsWhiteSpace(c.value) ? kGap : kSymbol;
        if (now != run) {
          close(pos);
          run = now;
          begin = pos;
        }
        pos += c.bytes;
      }
      close(piece.text.size());
    }
    pieces.swap(out);
    return OkStatus();
  }
};

class ByteLevel final : public PreTokenizer {
 public:
  ByteLevel(std::unique_ptr<PreTokenizer> split, bool add_prefix_space)
      : split_(std::move(split)), add_prefix_space_(add_prefix_space) {}

  static Result<std::unique_ptr<PreTokenizer>> FromJson(const Json& json) {
    LACUNA_ASSIGN_OR_RETURN(const bool add_prefix_space, JsonBool(json, "add_prefix_space", true));
    LACUNA_ASSIGN_OR_RETURN(const bool use_regex, JsonBool(json, "use_regex", true));
    std::unique_ptr<PreTokenizer> split;
    if (use_regex) {
      LACUNA_ASSIGN_OR_RETURN(TextPattern pattern, TextPattern::FromRegex(kGpt2Pattern));
      split = std::make_unique<Split>(std::move(pattern), Behavior::kIsolated, false);
    }
    return std::unique_ptr<PreTokenizer>(new ByteLevel(std::move(split), add_prefix_space));
  }

  Status Apply(Pieces& pieces, PieceArena& arena) const override {
    if (add_prefix_space_) {
      for (Piece& piece : pieces) {
        if (!piece.text.starts_with(' ')) {
          piece.text = arena.emplace_back(" ").append(piece.text);
        }
      }
    }
    if (split_) LACUNA_RETURN_IF_ERROR(split_->Apply(pieces, arena));
    if (!rewrite_bytes_) return OkStatus();
    for (Piece& piece : pieces) {
      std::string& text = arena.emplace_back();
      AppendByteLevel(piece.text, text);
      piece.text = text;
    }
    return OkStatus();
  }
  bool EndsInByteLevel() const override { return !rewrite_bytes_; }
  void RewriteBytes() override { rewrite_bytes_ = true; }

 private:
  const std::unique_ptr<PreTokenizer> split_;  // null without use_regex
  const bool add_prefix_space_;
  bool rewrite_bytes_ = false;
};

class Metaspace final : public PreTokenizer {
 public:
  enum class Prepend { kAlways, kFirst, kNever };
  Metaspace(std::string replacement, Prepend prepend, bool split)
      : mark_(std::move(replacement)),
        prepend_(prepend),
        split_(TextPattern::FromLiteral(mark_), Behavior::kMergedWithNext, false),
        splits_(split) {}

  static Result<std::unique_ptr<PreTokenizer>> FromJson(const Json& json) {
    LACUNA_ASSIGN_OR_RETURN(std::string mark, JsonChar(json, "replacement"));
    LACUNA_ASSIGN_OR_RETURN(const bool split, JsonBool(json, "split", true));
    // Files older than prepend_scheme have add_prefix_space only.
    LACUNA_ASSIGN_OR_RETURN(const bool add_prefix_space, JsonBool(json, "add_prefix_space", true));
    LACUNA_ASSIGN_OR_RETURN(
        const std::string scheme,
        JsonString(json, "prepend_scheme", add_prefix_space ? "always" : "never"));
    Prepend prepend{};
    if (scheme == "always") {
      prepend = Prepend::kAlways;
    } else if (scheme == "first") {
      prepend = Prepend::kFirst;
    } else if (scheme == "never") {
      prepend = Prepend::kNever;
    } else {
      return InvalidArgument("unknown prepend_scheme \"" + scheme + "\"");
    }
    return std::unique_ptr<PreTokenizer>(new Metaspace(std::move(mark), prepend, split));
  }

  Status Apply(Pieces& pieces, PieceArena& arena) const override {
    for (Piece& piece : pieces) {
      const bool may_prepend =
          prepend_ == Prepend::kAlways || (prepend_ == Prepend::kFirst && piece.at_start);
      const bool has_mark = piece.text.starts_with(mark_) || piece.text.starts_with(' ');
      std::string& text = arena.emplace_back();
      if (may_prepend && !has_mark) text = mark_;
      for (const char c : piece.text) {
        if (c == ' ') {
          text.append(mark_);
        } else {
          text.push_back(c);
        }
      }
      piece.text = text;
    }
    return splits_ ? split_.Apply(pieces, arena) : OkStatus();
  }

 private:
  const std::string mark_;
  const Prepend prepend_;
  const Split split_;
  const bool splits_;
};

class Sequence final : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> steps) : steps_(std::move(steps)) {
    for (size_t i = 0; i + 1 < steps_.size(); ++i) steps_[i]->RewriteBytes();
  }
  Status Apply(Pieces& pieces, PieceArena& arena) const override {
    for (const auto& step : steps_) LACUNA_RETURN_IF_ERROR(step->Apply(pieces, arena));
    return OkStatus();
  }
  bool EndsInByteLevel() const override {
    return !steps_.empty() && steps_.back()->EndsInByteLevel();
  }
  void RewriteBytes() override {
    for (const auto& step : steps_) step->RewriteBytes();
  }

 private:
  const std::vector<std::unique_ptr<PreTokenizer>> steps_;
};

Result<std::unique_ptr<PreTokenizer>> Parse(const Json& json, int depth);

Result<std::unique_ptr<PreTokenizer>> ParseSequence(const Json& json, int depth) {
  if (depth == 0) return InvalidArgument("Sequence: nested too deeply");
  LACUNA_ASSIGN_OR_RETURN(const Json* list, JsonArray(json, "pretokenizers"));
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  for (const Json& step : *list) {
    LACUNA_ASSIGN_OR_RETURN(auto parsed, Parse(step, depth - 1));
    steps.push_back(std::move(parsed));
  }
  return std::unique_ptr<PreTokenizer>(new Sequence(std::move(steps)));
}

Result<std::unique_ptr<PreTokenizer>> Parse(const Json& json, int depth) {
  LACUNA_ASSIGN_OR_RETURN(const std::string type, JsonType(json));
  if (type == "Sequence") return ParseSequence(json, depth);
  if (type == "Split") return Split::FromJson(json);
  if (type == "ByteLevel") return ByteLevel::FromJson(json);
  if (type == "Metaspace") return Metaspace::FromJson(json);
  if (type == "Whitespace") return std::unique_ptr<PreTokenizer>(new Whitespace);
  if (type == "WhitespaceSplit") return MakeCharSplit(IsWhiteSpace, Behavior::kRemoved);
  if (type == "Punctuation") {
    LACUNA_ASSIGN_OR_RETURN(const Behavior behavior, ParseBehavior(json));
    return MakeCharSplit(IsPunctuation, behavior);
  }
  if (type == "Digits") {
    LACUNA_ASSIGN_OR_RETURN(const bool individual, JsonBool(json, "individual_digits", false));
    return MakeCharSplit(IsNumeric, individual ? Behavior::kIsolated : Behavior::kContiguous);
  }
  if (type == "CharDelimiterSplit") {
    LACUNA_ASSIGN_OR_RETURN(const std::string delimiter, JsonChar(json, "delimiter"));
    const char32_t value = DecodeUtf8(delimiter.data()).value;
    return MakeCharSplit([value](char32_t c) { return c == value; }, Behavior::kRemoved);
  }
  return InvalidArgument("unknown type \"" + type + "\"");
}

}  // namespace

Result<std::unique_ptr<PreTokenizer>> PreTokenizer::FromJson(const Json& json) {
  if (json.is_null()) return std::unique_ptr<PreTokenizer>(new Sequence({}));
  return Parse(json, kComponentDepthMax);
}

}  // namespace lacuna::server
