#include "server/text/jinja_lexer.h"

#include <array>
#include <optional>

#include "server/text/jinja_unicode.h"
#include "server/text/unicode.h"

namespace lacuna::server::jinja {
namespace {

constexpr size_t kNone = std::string_view::npos;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameChar(char c) {
  return IsDigit(c) || c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         static_cast<unsigned char>(c) >= 0x80;
}

std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out.push_back(source[i]);
    } else if (i + 1 == source.size() || source[i + 1] != '\n') {
      out.push_back('\n');
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(NormalizeNewlines(source)), rest_(source_) {}

  Result<std::vector<Token>> Run() {
    while (!rest_.empty()) {
      LACUNA_RETURN_IF_ERROR(LexText());
    }
    Emit(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  void Emit(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  // Takes `bytes` off the input, counting lines.
  std::string_view Take(size_t bytes) {
    const std::string_view taken = rest_.substr(0, bytes);
    for (const char c : taken) line_ += c == '\n' ? 1 : 0;
    if (!taken.empty()) line_starting_ = taken.back() == '\n';
    rest_.remove_prefix(taken.size());
    return taken;
  }
  void TakeSpaces() {
    const std::string_view stripped = StripLeft(rest_);
    Take(rest_.size() - stripped.size());
  }

  // Text up to the next tag, then that tag.
  Status LexText() {
    size_t at = 0;
    while (true) {
      at = rest_.find('{', at);
      if (at == kNone || at + 1 >= rest_.size()) {
        at = rest_.size();
        break;
      }
      const char next = rest_[at + 1];
      if (next == '%' || next == '{' || next == '#') break;
      ++at;
    }
    const bool line_starting = line_starting_;
    const int line = line_;
    const std::string_view text = Take(at);
    if (rest_.empty()) {
      EmitText(text, line);
      return OkStatus();
    }
    const char type = rest_[1];
    const char sign = rest_.size() > 2 && (rest_[2] == '-' || rest_[2] == '+') ? rest_[2] : ' ';
    EmitText(StripBefore(text, sign, type, line_starting), line);
    const int tag_line = line_;
    Take(sign == ' ' ? 2 : 3);
    if (type == '#') return LexComment(tag_line);
    if (type == '%' && TakeRawBegin()) return LexRaw(tag_line);
    tokens_.push_back({type == '{' ? TokenKind::kOutputBegin : TokenKind::kBlockBegin, "", line_});
    return LexTag(type == '{', tag_line);
  }

  void EmitText(std::string_view text, int line) {
    if (!text.empty()) tokens_.push_back({TokenKind::kText, std::string(text), line});
  }

  // '-' strips all white space before a tag; otherwise a block or comment strips what stands
  // between it and the start of its line, when that is white space only.
  static std::string_view StripBefore(std::string_view text, char sign, char type,
                                      bool line_starting) {
    if (sign == '-') return StripRight(text);
    if (sign == '+' || type == '{') return text;
    const size_t newline = text.rfind('\n');
    if (newline == kNone && !line_starting) return text;
    const size_t start = newline == kNone ? 0 : newline + 1;
    return StripLeft(text.substr(start)).empty() ? text.substr(0, start) : text;
  }

  // `sign` stands before the closing characters of the tag just taken.
  void AfterTag(char sign, bool is_output) {
    if (sign == '-') {
      TakeSpaces();
    } else if (sign != '+' && !is_output && rest_.starts_with('\n')) {
      Take(1);
    }
  }

  Status LexComment(int tag_line) {
    const size_t end = rest_.find("#}");
    if (end == kNone) return ErrorAt(tag_line, "comment without an end");
    const char sign = end > 0 ? rest_[end - 1] : ' ';
    Take(end + 2);
    AfterTag(sign, false);
    return OkStatus();
  }

  bool TakeRawBegin() {
    std::string_view after = StripLeft(rest_);
    if (!after.starts_with("raw")) return false;
    after = StripLeft(after.substr(3));
    const bool strip = after.starts_with("-%}");
    if (!strip && !after.starts_with("%}")) return false;
    Take(rest_.size() - after.size() + (strip ? 3 : 2));
    if (strip) TakeSpaces();
    return true;
  }

  Status LexRaw(int tag_line) {
    const bool line_starting = line_starting_;
    for (size_t at = rest_.find("{%"); at != kNone; at = rest_.find("{%", at + 1)) {
      std::string_view after = rest_.substr(at + 2);
      const char sign = !after.empty() && (after[0] == '-' || after[0] == '+') ? after[0] : ' ';
      if (sign != ' ') after.remove_prefix(1);
      after = StripLeft(after);
      if (!after.starts_with("endraw")) continue;
      after = StripLeft(after.substr(6));
      const char end_sign = !after.empty() && (after[0] == '-' || after[0] == '+') ? after[0] : ' ';
      if (end_sign != ' ') after.remove_prefix(1);
      if (!after.starts_with("%}")) continue;
      const size_t tag_bytes = rest_.size() - after.size() + 2 - at;
      const int line = line_;
      const std::string_view text = Take(at);
      EmitText(StripBefore(text, sign, '%', line_starting), line);
      Take(tag_bytes);
      AfterTag(end_sign, false);
      return OkStatus();
    }
    return ErrorAt(tag_line, "raw without an endraw");
  }

  // The inside of {{ }} or {% %}.
  Status LexTag(bool is_output, int tag_line) {
    std::string brackets;  // still open
    const std::string_view close = is_output ? "}}" : "%}";
    while (true) {
      TakeSpaces();
      if (rest_.empty()) return ErrorAt(tag_line, "tag without an end");
      if (brackets.empty() && TakeClose(close, is_output)) return OkStatus();
      const char c = rest_[0];
      if (IsDigit(c)) {
        LACUNA_RETURN_IF_ERROR(LexNumber());
      } else if (IsNameChar(c)) {
        size_t bytes = 1;
        while (bytes < rest_.size() && IsNameChar(rest_[bytes])) ++bytes;
        const int line = line_;
        tokens_.push_back({TokenKind::kName, std::string(Take(bytes)), line});
      } else if (c == '\'' || c == '"') {
        LACUNA_RETURN_IF_ERROR(LexString());
      } else {
        LACUNA_RETURN_IF_ERROR(LexOperator(brackets));
      }
    }
  }

  bool TakeClose(std::string_view close, bool is_output) {
    const bool strip = rest_.starts_with('-');
    const bool keep = !is_output && rest_.starts_with('+');
    if (!rest_.substr(strip || keep ? 1 : 0).starts_with(close)) return false;
    Emit(is_output ? TokenKind::kOutputEnd : TokenKind::kBlockEnd, "");
    Take(strip || keep ? 3 : 2);
    AfterTag(strip ? '-' : keep ? '+' : ' ', is_output);
    return true;
  }

  Status LexNumber() {
    // x.0.1 is two indices, so no fraction after a dot.
    const bool after_dot =
        tokens_.back().kind == TokenKind::kOperator && tokens_.back().text == ".";
    std::string digits;
    size_t i = 0;
    const auto take_digits = [&] {
      for (; i < rest_.size() && (IsDigit(rest_[i]) || rest_[i] == '_'); ++i) {
        if (rest_[i] != '_') digits.push_back(rest_[i]);
      }
    };
    take_digits();
    bool is_float = false;
    if (!after_dot && i + 1 < rest_.size() && rest_[i] == '.' && IsDigit(rest_[i + 1])) {
      is_float = true;
      digits.push_back(rest_[i++]);
      take_digits();
    }
    if (!after_dot && i + 1 < rest_.size() && (rest_[i] == 'e' || rest_[i] == 'E')) {
      const size_t sign = rest_[i + 1] == '+' || rest_[i + 1] == '-' ? 1 : 0;
      if (i + 1 + sign < rest_.size() && IsDigit(rest_[i + 1 + sign])) {
        is_float = true;
        digits += 'e';
        if (rest_[i + 1] == '-') digits += '-';
        i += 1 + sign;
        take_digits();
      }
    }
    if (i < rest_.size() && IsNameChar(rest_[i])) return ErrorAt(line_, "bad number");
    Take(i);
    Emit(is_float ? TokenKind::kFloat : TokenKind::kInteger, std::move(digits));
    return OkStatus();
  }

  Status LexString() {
    const char quote = rest_[0];
    const int line = line_;
    std::string value;
    for (size_t i = 1; i < rest_.size();) {
      const char c = rest_[i++];
      if (c == quote) {
        Take(i);
        tokens_.push_back({TokenKind::kString, std::move(value), line});
        return OkStatus();
      }
      if (c != '\\') {
        value.push_back(c);
      } else if (i < rest_.size() && !Unescape(i, value)) {
        return ErrorAt(line, "bad escape in a string");
      }
    }
    return ErrorAt(line, "string without an end");
  }

  // Python's escapes; `i` stands after the backslash and moves past the escape.
  bool Unescape(size_t& i, std::string& value) const {
    constexpr std::string_view kNames = "ntrbfva\\'\"";
    constexpr std::string_view kValues = "\n\t\r\b\f\v\a\\'\"";
    const char c = rest_[i++];
    if (const size_t at = kNames.find(c); at != kNone) {
      value.push_back(kValues[at]);
    } else if (c == 'x' || c == 'u' || c == 'U') {
      std::optional<char32_t> code = Number(i, c == 'x' ? 2 : c == 'u' ? 4 : 8, 16);
      if (!code || *code > 0x10FFFF || (*code >= 0xD800 && *code < 0xE000)) return false;
      AppendUtf8(value, *code);
    } else if (c >= '0' && c <= '7') {
      --i;
      size_t digits = 1;
      while (digits < 3 && i + digits < rest_.size() && rest_[i + digits] >= '0' &&
             rest_[i + digits] <= '7') {
        ++digits;
      }
      AppendUtf8(value, *Number(i, digits, 8));
    } else if (c != '\n') {  // a backslash at the end of a line joins the lines
      value.push_back('\\');
      value.push_back(c);
    }
    return true;
  }

  std::optional<char32_t> Number(size_t& i, size_t digits, char32_t base) const {
    constexpr std::string_view kDigits = "0123456789abcdef";
    if (rest_.size() - i < digits) return std::nullopt;
    char32_t code = 0;
    for (size_t end = i + digits; i < end; ++i) {
      const char lower =
          rest_[i] >= 'A' && rest_[i] <= 'F' ? static_cast<char>(rest_[i] + 32) : rest_[i];
      const size_t digit = kDigits.find(lower);
      if (digit == kNone) return std::nullopt;
      code = code * base + static_cast<char32_t>(digit);
    }
    return code;
  }

  Status LexOperator(std::string& brackets) {
    constexpr std::array<std::string_view, 6> kDouble = {"//", "**", "==", "!=", ">=", "<="};
    for (const std::string_view op : kDouble) {
      if (rest_.starts_with(op)) {
        Emit(TokenKind::kOperator, std::string(Take(2)));
        return OkStatus();
      }
    }
    const char c = rest_[0];
    if (std::string_view("+-/*%~[](){}<>=.:|,").find(c) == kNone) {
      return ErrorAt(line_, "unexpected character");
    }
    constexpr std::string_view kOpen = "([{";
    constexpr std::string_view kShut = ")]}";
    if (kOpen.find(c) != kNone) {
      if (brackets.size() >= kParseDepthMax) return ErrorAt(line_, "nested too deep");
      brackets.push_back(c);
    }
    if (const size_t shut = kShut.find(c); shut != kNone) {
      if (brackets.empty() || brackets.back() != kOpen[shut]) {
        return ErrorAt(line_, "unexpected '" + std::string(1, c) + "'");
      }
      brackets.pop_back();
    }
    Emit(TokenKind::kOperator, std::string(Take(1)));
    return OkStatus();
  }

  const std::string source_;
  std::string_view rest_;
  std::vector<Token> tokens_;
  int line_ = 1;
  bool line_starting_ = true;
};

}  // namespace

Status ErrorAt(int line, const std::string& what) {
  return InvalidArgument("chat template: line " + std::to_string(line) + ": " + what);
}

Result<std::vector<Token>> Tokenize(std::string_view source) {
  if (!IsValidUtf8(source)) return InvalidArgument("chat template: not valid UTF-8");
  return Lexer(source).Run();
}

}  // namespace lacuna::server::jinja
