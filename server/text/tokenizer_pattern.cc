#include "server/text/tokenizer_pattern.h"

#include <oniguruma.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <utility>

#include "server/text/unicode.h"

namespace lacuna::server {
namespace {

constexpr size_t kRegexBytesMax = 16 << 10;
constexpr unsigned long kStackEntriesMax = 4'000'000;

const OnigUChar* Bytes(const char* p) { return reinterpret_cast<const OnigUChar*>(p); }

struct RegionFree {
  void operator()(OnigRegion* region) const { onig_region_free(region, 1); }
};
struct MatchParamFree {
  void operator()(OnigMatchParam* param) const { onig_free_match_param(param); }
};

void Gap(size_t begin, size_t end, std::vector<TextPattern::Span>& spans) {
  if (begin != end) spans.push_back({begin, end, false});
}

}  // namespace

void TextPattern::RegexFree::operator()(void* regex) const {
  onig_free(static_cast<regex_t*>(regex));
}

Result<TextPattern> TextPattern::FromJson(const Json& json) {
  if (JsonMember(json, "String").is_string()) {
    LACUNA_ASSIGN_OR_RETURN(std::string text, JsonString(json, "String"));
    if (text.empty()) return InvalidArgument("pattern: the string is empty");
    return FromLiteral(std::move(text));
  }
  LACUNA_ASSIGN_OR_RETURN(const std::string regex, JsonString(json, "Regex"));
  return FromRegex(regex);
}

TextPattern TextPattern::FromLiteral(std::string text) {
  TextPattern pattern;
  pattern.literal_ = std::move(text);
  return pattern;
}

Result<TextPattern> TextPattern::FromRegex(std::string_view regex, bool use_scanner) {
  if (regex.empty() || regex.size() > kRegexBytesMax) {
    return InvalidArgument("pattern: the regex must have 1 to 16384 bytes");
  }
  TextPattern pattern;
  if (use_scanner) pattern.scanner_ = FindSplitScanner(regex);
  if (pattern.scanner_) return pattern;
  // Compiling touches Oniguruma's shared tables.
  static std::mutex compile_mutex;
  const std::lock_guard lock(compile_mutex);
  OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};
  onig_initialize(encodings, 1);
  regex_t* compiled = nullptr;
  OnigErrorInfo error{};
  const OnigUChar* begin = Bytes(regex.data());
  const int code = onig_new(&compiled, begin, begin + regex.size(), ONIG_OPTION_NONE,
                            ONIG_ENCODING_UTF8, ONIG_SYNTAX_DEFAULT, &error);
  if (code != ONIG_NORMAL) return InvalidArgument("pattern: Oniguruma refuses the regex");
  pattern.regex_.reset(compiled);
  return pattern;
}

Status TextPattern::Cut(std::string_view text, std::vector<Span>& spans) const {
  if (regex_) return CutByRegex(text, spans);
  if (scanner_) {
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = (*scanner_)(text, begin);
      spans.push_back({begin, end, true});
      begin = end;
    }
    return OkStatus();
  }
  size_t gap = 0;
  for (size_t at = text.find(literal_); at != text.npos; at = text.find(literal_, gap)) {
    Gap(gap, at, spans);
    gap = at + literal_.size();
    spans.push_back({at, gap, true});
  }
  Gap(gap, text.size(), spans);
  return OkStatus();
}

Status TextPattern::CutByRegex(std::string_view text, std::vector<Span>& spans) const {
  const std::unique_ptr<OnigRegion, RegionFree> region(onig_region_new());
  const std::unique_ptr<OnigMatchParam, MatchParamFree> param(onig_new_match_param());
  if (!region || !param) return Exhausted("no memory for a regex match");
  // A search in linear time takes a few steps a byte; the steps of one search are bounded by that
  // and the number of searches by the clock.
  const unsigned long steps_max = 1'000'000 + 32 * text.size();
  onig_initialize_match_param(param.get());
  onig_set_retry_limit_in_match_of_match_param(param.get(), steps_max);
  onig_set_retry_limit_in_search_of_match_param(param.get(), steps_max);
  onig_set_match_stack_limit_size_of_match_param(param.get(), kStackEntriesMax);
  using Clock = std::chrono::steady_clock;
  const auto deadline =
      Clock::now() + std::chrono::seconds(2) + std::chrono::microseconds(4 * text.size());

  const OnigUChar* base = Bytes(text.data());
  const OnigUChar* end = base + text.size();
  size_t gap = 0;
  size_t from = 0;
  std::optional<size_t> last_end;
  for (int searches = 1; from <= text.size(); ++searches) {
    if (searches % 64 == 0 && Clock::now() > deadline) {
      return InvalidArgument("the split pattern of the tokenizer takes too long on this text");
    }
    const int found =
        onig_search_with_param(static_cast<regex_t*>(regex_.get()), base, end, base + from, end,
                               region.get(), ONIG_OPTION_NONE, param.get());
    if (found == ONIG_MISMATCH) break;
    if (found < 0) {
      return InvalidArgument(
          "the split pattern of the tokenizer takes too many steps on this text");
    }
    const auto match_begin = static_cast<size_t>(region->beg[0]);
    const auto match_end = static_cast<size_t>(region->end[0]);
    if (match_begin == match_end && last_end == match_end) {  // no empty match right after a match
      from += from < text.size() ? DecodeUtf8(text.data() + from).bytes : 1;
      continue;
    }
    from = match_end;
    last_end = match_end;
    Gap(gap, match_begin, spans);
    spans.push_back({match_begin, match_end, true});
    gap = match_end;
  }
  Gap(gap, text.size(), spans);
  return OkStatus();
}

}  // namespace lacuna::server
