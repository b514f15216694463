// Printing values: str(), repr() and json.dumps() of Python.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "server/text/jinja_unicode.h"
#include "server/text/jinja_value.h"
#include "server/text/unicode.h"

namespace lacuna::server::jinja {
namespace {

// repr(float): the shortest digits that read back as the same number, scientific outside
// [1e-4, 1e16).
std::string FloatRepr(double number, bool json) {
  if (std::isnan(number)) return json ? "NaN" : "nan";
  if (std::isinf(number)) {
    return std::string(number < 0 ? "-" : "").append(json ? "Infinity" : "inf");
  }
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), std::abs(number),
                                 std::chars_format::scientific)
                       .ptr;
  const std::string_view text(buffer, static_cast<size_t>(end - buffer));
  const size_t e = text.find('e');
  int exponent = 0;
  const char* digits_of_exponent = text.data() + e + (text[e + 1] == '+' ? 2 : 1);
  std::from_chars(digits_of_exponent, end, exponent);
  std::string digits(text.substr(0, e));
  std::erase(digits, '.');
  std::string out(std::signbit(number) ? "-" : "");
  if (exponent < -4 || exponent >= 16) {
    out.append(digits, 0, 1);
    if (digits.size() > 1) out.append(1, '.').append(digits, 1);
    const std::string size = std::to_string(std::abs(exponent));
    return out.append(exponent < 0 ? "e-" : "e+").append(size.size() < 2 ? "0" : "").append(size);
  }
  if (exponent < 0) {
    return out.append("0.").append(static_cast<size_t>(-exponent - 1), '0').append(digits);
  }
  const size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() < whole) digits.append(whole - digits.size(), '0');
  out.append(digits, 0, whole).append(1, '.');
  return digits.size() > whole ? out.append(digits, whole) : out.append(1, '0');
}

void AppendHex(char32_t code, int digits, std::string& out) {
  for (int shift = (digits - 1) * 4; shift >= 0; shift -= 4) {
    out.push_back("0123456789abcdef"[code >> shift & 0xF]);
  }
}

// Walks a value and appends; one object per call of AppendStr or AppendJson.
class Printer {
 public:
  Printer(Budget& budget, std::string& out) : budget_(budget), out_(out) {}

  Status Str(const Value& value) {
    if (value.Is<Undefined>()) return OkStatus();
    if (const std::string* text = value.AsString()) return Put(*text);
    return Repr(value);
  }

  Status Repr(const Value& value) {
    LACUNA_RETURN_IF_ERROR(budget_.Charge(1));
    if (const std::string* text = value.AsString()) return Quote(*text);
    if (const bool* flag = value.As<bool>()) return Put(*flag ? "True" : "False");
    if (const int64_t* number = value.As<int64_t>()) return Put(std::to_string(*number));
    if (const double* number = value.As<double>()) return Put(FloatRepr(*number, false));
    if (value.Is<None>()) return Put("None");
    if (value.Is<Undefined>()) return Put("Undefined");
    if (const List* list = value.AsList()) {
      const bool tuple = list->kind == SequenceKind::kTuple;
      LACUNA_RETURN_IF_ERROR(Put(tuple ? "(" : "["));
      for (size_t i = 0; i < list->items.size(); ++i) {
        if (i > 0) LACUNA_RETURN_IF_ERROR(Put(", "));
        LACUNA_RETURN_IF_ERROR(Repr(list->items[i]));
      }
      return Put(!tuple ? "]" : list->items.size() == 1 ? ",)" : ")");
    }
    if (const Dict* dict = value.AsDict()) {
      LACUNA_RETURN_IF_ERROR(Put("{"));
      for (size_t i = 0; i < dict->entries().size(); ++i) {
        if (i > 0) LACUNA_RETURN_IF_ERROR(Put(", "));
        LACUNA_RETURN_IF_ERROR(Repr(dict->entries()[i].first));
        LACUNA_RETURN_IF_ERROR(Put(": "));
        LACUNA_RETURN_IF_ERROR(Repr(dict->entries()[i].second));
      }
      return Put("}");
    }
    // Python prints an address here; nothing of the process belongs in a prompt.
    return Put(std::string(1, '<').append(value.TypeName()).append(1, '>'));
  }

  Status Json(const Value& value, const JsonStyle& style, int level) {
    LACUNA_RETURN_IF_ERROR(budget_.Charge(1));
    if (const std::string* text = value.AsString()) return JsonString(*text, style);
    if (const bool* flag = value.As<bool>()) return Put(*flag ? "true" : "false");
    if (const int64_t* number = value.As<int64_t>()) return Put(std::to_string(*number));
    if (const double* number = value.As<double>()) return Put(FloatRepr(*number, true));
    if (value.Is<None>()) return Put("null");
    if (const List* list = value.AsList(); list && list->kind != SequenceKind::kStream) {
      if (list->items.empty()) return Put("[]");
      LACUNA_RETURN_IF_ERROR(Put("["));
      for (size_t i = 0; i < list->items.size(); ++i) {
        LACUNA_RETURN_IF_ERROR(JsonBreak(style, i > 0, level + 1));
        LACUNA_RETURN_IF_ERROR(Json(list->items[i], style, level + 1));
      }
      LACUNA_RETURN_IF_ERROR(JsonBreak(style, false, level));
      return Put("]");
    }
    if (const Dict* dict = value.AsDict()) return JsonDict(*dict, style, level);
    return InvalidArgument("tojson: a value of type " + std::string(value.TypeName()) +
                           " has no JSON form");
  }

 private:
  Status Put(std::string_view text) {
    LACUNA_RETURN_IF_ERROR(budget_.CheckString(out_.size() + text.size()));
    out_ += text;
    return budget_.ChargeBytes(text.size());
  }

  Status Quote(std::string_view text) {
    const bool has_single = text.find('\'') != std::string_view::npos;
    const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
    LACUNA_RETURN_IF_ERROR(budget_.CheckString(out_.size() + text.size()));
    LACUNA_RETURN_IF_ERROR(budget_.ChargeBytes(text.size()));
    out_.push_back(quote);
    for (size_t pos = 0; pos < text.size();) {
      const char32_t code = NextCodePoint(text, pos);
      if (code == static_cast<unsigned char>(quote) || code == '\\') {
        out_.push_back('\\');
        AppendUtf8(out_, code);
      } else if (code == '\n') {
        out_ += "\\n";
      } else if (code == '\r') {
        out_ += "\\r";
      } else if (code == '\t') {
        out_ += "\\t";
      } else if (IsPrintable(code)) {
        AppendUtf8(out_, code);
      } else {
        const int digits = code < 0x100 ? 2 : code < 0x10000 ? 4 : 8;
        out_ += digits == 2 ? "\\x" : digits == 4 ? "\\u" : "\\U";
        AppendHex(code, digits, out_);
      }
    }
    out_.push_back(quote);
    return budget_.CheckString(out_.size());
  }

  Status JsonDict(const Dict& dict, const JsonStyle& style, int level) {
    if (dict.entries().empty()) return Put("{}");
    std::vector<const Dict::Entry*> order;
    for (const Dict::Entry& entry : dict.entries()) order.push_back(&entry);
    LACUNA_RETURN_IF_ERROR(budget_.Charge(static_cast<int64_t>(order.size())));
    if (style.sort_keys) {
      std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
        return a->first.AsString() && b->first.AsString() &&
               *a->first.AsString() < *b->first.AsString();
      });
    }
    LACUNA_RETURN_IF_ERROR(Put("{"));
    for (size_t i = 0; i < order.size(); ++i) {
      LACUNA_RETURN_IF_ERROR(JsonBreak(style, i > 0, level + 1));
      const Value& key = order[i]->first;
      if (key.AsString()) {
        LACUNA_RETURN_IF_ERROR(JsonString(*key.AsString(), style));
      } else {
        LACUNA_RETURN_IF_ERROR(Put("\""));
        LACUNA_RETURN_IF_ERROR(Json(key, style, level));
        LACUNA_RETURN_IF_ERROR(Put("\""));
      }
      LACUNA_RETURN_IF_ERROR(Put(style.key_separator));
      LACUNA_RETURN_IF_ERROR(Json(order[i]->second, style, level + 1));
    }
    LACUNA_RETURN_IF_ERROR(JsonBreak(style, false, level));
    return Put("}");
  }

  // Between items: the separator, and the new line of an indented style.
  Status JsonBreak(const JsonStyle& style, bool separator, int level) {
    if (separator) LACUNA_RETURN_IF_ERROR(Put(style.item_separator));
    if (style.indent < 0) return OkStatus();
    const size_t spaces = static_cast<size_t>(style.indent) * static_cast<size_t>(level);
    LACUNA_RETURN_IF_ERROR(budget_.CheckString(spaces));
    return Put(std::string(1, '\n').append(spaces, ' '));
  }

  Status JsonString(std::string_view text, const JsonStyle& style) {
    LACUNA_RETURN_IF_ERROR(budget_.CheckString(out_.size() + text.size()));
    LACUNA_RETURN_IF_ERROR(budget_.ChargeBytes(text.size()));
    constexpr std::string_view kEscaped = "\"\\\n\r\t\b\f";
    out_.push_back('"');
    for (size_t pos = 0; pos < text.size();) {
      const char32_t code = NextCodePoint(text, pos);
      const size_t special =
          code < 0x80 ? kEscaped.find(static_cast<char>(code)) : std::string_view::npos;
      if (special != std::string_view::npos) {
        out_.push_back('\\');
        out_.push_back("\"\\nrtbf"[special]);
      } else if (code >= 0x20 && (code < 0x7F || !style.ensure_ascii)) {
        AppendUtf8(out_, code);
      } else if (code < 0x10000) {
        out_ += "\\u";
        AppendHex(code, 4, out_);
      } else {
        out_ += "\\u";
        AppendHex(0xD800 + ((code - 0x10000) >> 10), 4, out_);
        out_ += "\\u";
        AppendHex(0xDC00 + ((code - 0x10000) & 0x3FF), 4, out_);
      }
    }
    out_.push_back('"');
    return budget_.CheckString(out_.size());
  }

  Budget& budget_;
  std::string& out_;
};

}  // namespace

Status AppendStr(const Value& value, Budget& budget, std::string& out) {
  return Printer(budget, out).Str(value);
}

Status AppendJson(const Value& value, const JsonStyle& style, Budget& budget, std::string& out) {
  return Printer(budget, out).Json(value, style, 0);
}

}  // namespace lacuna::server::jinja
