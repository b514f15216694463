#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>

#include "server/text/jinja_runtime.h"
#include "server/text/jinja_unicode.h"

namespace lacuna::server::jinja {
namespace {

using Parameters = std::vector<const Value*>;

Status WrongInput(std::string_view filter, const Value& value) {
  if (value.Is<Undefined>()) return UndefinedError(value);
  return InvalidArgument(std::string(filter) + ": cannot take a " + std::string(value.TypeName()));
}

bool Flag(const Value* value, bool otherwise = false) {
  return value == nullptr ? otherwise : value->Truthy();
}

Result<int64_t> IntOr(const Value* value, int64_t otherwise, std::string_view what) {
  if (value == nullptr || value->Is<None>()) return otherwise;
  return ToInt(*value, what);
}

// item.a.0.b, by the dotted path of map(attribute=...) and its like.
Result<Value> GetPath(Runtime& runtime, const Value& item, const Value& path) {
  if (!path.AsString()) return GetItem(runtime, item, path);
  Value value = item;
  std::string_view rest = *path.AsString();
  while (true) {
    const size_t dot = rest.find('.');
    const std::string name(rest.substr(0, dot));
    int64_t index = 0;
    const auto parsed = std::from_chars(name.data(), name.data() + name.size(), index);
    const bool is_index = parsed.ec == std::errc() && parsed.ptr == name.data() + name.size();
    LACUNA_ASSIGN_OR_RETURN(value,
                            GetItem(runtime, value, is_index ? Value(index) : Value::String(name)));
    if (dot == std::string_view::npos) return value;
    rest.remove_prefix(dot + 1);
  }
}

Result<Value> CaseFold(const Value& value, bool case_sensitive) {
  if (case_sensitive || !value.AsString()) return value;
  return Value::String(ToLower(*value.AsString()));
}

// Each word (after white space, a bracket or a hyphen) with a capital.
std::string Title(std::string_view text) {
  std::string out;
  size_t start = 0;  // of the word
  const auto put_word = [&](size_t end) {
    if (start == end) return;
    size_t second = start;
    NextCodePoint(text, second);
    out += ToUpper(text.substr(start, second - start)) + ToLower(text.substr(second, end - second));
  };
  for (size_t pos = 0; pos < text.size();) {
    const size_t at = pos;
    const char32_t code = NextCodePoint(text, pos);
    const bool opens =
        code > 0 && code < 0x80 && std::strchr("-({[<", static_cast<int>(code)) != nullptr;
    if (!opens && !IsSpace(code)) continue;
    put_word(at);
    out += text.substr(at, pos - at);
    start = pos;
  }
  put_word(text.size());
  return out;
}

std::string Escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out.push_back(c);
    }
  }
  return out;
}

Result<Value> Indent(Runtime& runtime, const std::string& text, const Parameters& given) {
  std::string indentation;
  if (given[0] != nullptr && given[0]->AsString()) {
    indentation = *given[0]->AsString();
  } else {
    LACUNA_ASSIGN_OR_RETURN(const int64_t width, IntOr(given[0], 4, "indent: width"));
    LACUNA_RETURN_IF_ERROR(
        runtime.budget.CheckString(static_cast<size_t>(std::max<int64_t>(width, 0))));
    indentation.assign(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
  }
  const bool blank = Flag(given[2]);
  std::string out = Flag(given[1]) ? indentation : "";
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find('\n', start), text.size());
    if (start > 0) {
      out.push_back('\n');
      if (blank || end > start) out += indentation;
    }
    out.append(text, start, end - start);
    LACUNA_RETURN_IF_ERROR(runtime.budget.CheckString(out.size()));
    start = end + 1;
  }
  return MakeString(runtime, std::move(out));
}

Result<Value> TextFilter(Runtime& runtime, const std::string& name, const Value& value,
                         const Arguments& arguments) {
  LACUNA_ASSIGN_OR_RETURN(std::string text, ToText(runtime, value));
  LACUNA_RETURN_IF_ERROR(runtime.budget.ChargeBytes(text.size()));
  if (name == "trim") {
    LACUNA_ASSIGN_OR_RETURN(const Parameters given, arguments.Bind(name, {"chars"}));
    return Strip(runtime, text, given[0], true, true);
  }
  if (name == "indent") {
    LACUNA_ASSIGN_OR_RETURN(const Parameters given,
                            arguments.Bind(name, {"width", "first", "blank"}));
    return Indent(runtime, text, given);
  }
  if (name == "replace") {
    LACUNA_ASSIGN_OR_RETURN(const Parameters given, arguments.Bind(name, {"old", "new", "count"}));
    if (given[0] == nullptr || given[1] == nullptr) return InvalidArgument("replace: old and new");
    LACUNA_ASSIGN_OR_RETURN(const std::string from, ToText(runtime, *given[0]));
    LACUNA_ASSIGN_OR_RETURN(const std::string to, ToText(runtime, *given[1]));
    LACUNA_ASSIGN_OR_RETURN(const int64_t count, IntOr(given[2], -1, "replace: count"));
    return Replace(runtime, text, from, to, count);
  }
  LACUNA_RETURN_IF_ERROR(arguments.Bind(name, {}).status());
  if (name == "upper") return MakeString(runtime, ToUpper(text));
  if (name == "lower") return MakeString(runtime, ToLower(text));
  if (name == "capitalize") return MakeString(runtime, Capitalize(text));
  if (name == "title") return MakeString(runtime, Title(text));
  if (name == "e" || name == "escape") return MakeString(runtime, Escape(text));
  return MakeString(runtime, std::move(text));  // string, safe
}

Result<Value> ParseNumber(const Value& value, const Parameters& given, bool as_int) {
  const Value fallback = given[0] ? *given[0] : as_int ? Value(int64_t{0}) : Value(0.0);
  double number = 0;
  if (value.IsNumber()) {
    int64_t whole = 0;
    if (as_int && value.AsInt(whole)) return Value(whole);
    number = value.AsDouble();
  } else if (const std::string* text = value.AsString()) {
    std::string_view digits = StripLeft(StripRight(*text));
    if (digits.starts_with('+')) digits.remove_prefix(1);
    const char* end = digits.data() + digits.size();
    int64_t base = 10, whole = 0;
    if (as_int && given.size() > 1) {
      LACUNA_ASSIGN_OR_RETURN(base, IntOr(given[1], 10, "int: base"));
      if (base < 2 || base > 36) return InvalidArgument("int: base must be 2 to 36");
    }
    const auto parsed = std::from_chars(digits.data(), end, whole, static_cast<int>(base));
    if (as_int && parsed.ec == std::errc() && parsed.ptr == end) return Value(whole);
    const auto real = std::from_chars(digits.data(), end, number);
    if (real.ec != std::errc() || real.ptr != end) return fallback;
  } else {
    return fallback;
  }
  if (!as_int) return Value(number);
  if (!(std::abs(number) < 0x1p63)) return fallback;
  return Value(static_cast<int64_t>(number));
}

Result<Value> Round(const Value& value, const Parameters& given) {
  if (!value.IsNumber()) return WrongInput("round", value);
  LACUNA_ASSIGN_OR_RETURN(const int64_t precision, IntOr(given[0], 0, "round: precision"));
  const std::string method = given[1] && given[1]->AsString() ? *given[1]->AsString() : "common";
  if (precision < -15 || precision > 15) return InvalidArgument("round: precision out of range");
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double number = value.AsDouble();
  if (method == "ceil") return Value(std::ceil(number * scale) / scale);
  if (method == "floor") return Value(std::floor(number * scale) / scale);
  if (method != "common") return InvalidArgument("round: method must be common, ceil or floor");
  if (!value.Is<double>() && precision >= 0) return value;
  if (precision <= 0) return Value(std::nearbyint(number * scale) / scale);
  // Correctly rounded, as Python does by printing: scaling would round twice.
  char buffer[400];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), number, std::chars_format::fixed,
                                 static_cast<int>(precision));
  double rounded = number;
  if (end.ec == std::errc()) std::from_chars(buffer, end.ptr, rounded);
  return Value(rounded);
}

Result<Value> NumberFilter(Runtime& runtime, const std::string& name, const Value& value,
                           const Arguments& arguments) {
  if (name == "int" || name == "float") {
    LACUNA_ASSIGN_OR_RETURN(const Parameters given, arguments.Bind(name, {"default", "base"}));
    return ParseNumber(value, given, name == "int");
  }
  if (name == "round") {
    LACUNA_ASSIGN_OR_RETURN(const Parameters given, arguments.Bind(name, {"precision", "method"}));
    return Round(value, given);
  }
  LACUNA_RETURN_IF_ERROR(arguments.Bind(name, {}).status());
  int64_t number = 0;
  if (value.AsInt(number)) {
    return number < 0 ? Negate(value)
                      : BinaryOperator(runtime, Operator::kAdd, value, Value(int64_t{0}));
  }
  if (!value.IsNumber()) return WrongInput(name, value);
  return Value(std::abs(value.AsDouble()));
}

Result<Value> Join(Runtime& runtime, const List& list, const Parameters& given) {
  std::string separator;
  if (given[0] != nullptr) {
    LACUNA_ASSIGN_OR_RETURN(separator, ToText(runtime, *given[0]));
  }
  std::string out;
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) out += separator;
    Value item = list.items[i];
    if (given[1] != nullptr) {
      LACUNA_ASSIGN_OR_RETURN(item, GetPath(runtime, item, *given[1]));
    }
    LACUNA_RETURN_IF_ERROR(AppendStr(item, runtime.budget, out));
    LACUNA_RETURN_IF_ERROR(runtime.budget.ChargeBytes(separator.size()));
    LACUNA_RETURN_IF_ERROR(runtime.budget.CheckString(out.size()));
  }
  return MakeString(runtime, std::move(out));
}

// Stable, by keys that are all numbers or all strings. On return `order` indexes the items.
Status SortByKeys(Runtime& runtime, const std::vector<Value>& keys, bool reverse,
                  std::vector<size_t>& order) {
  order.resize(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    order[i] = i;
    // Fails for a pair that has no order before the sort, which must not be given a broken one.
    LACUNA_RETURN_IF_ERROR(Less(keys[0], keys[i], runtime.budget).status());
  }
  Status status;
  const auto less = [&](size_t a, size_t b) {
    Result<bool> result = Less(keys[a], keys[b], runtime.budget);
    if (!result.ok()) status = result.status();
    return result.ok() && *result;
  };
  if (reverse) {
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return less(b, a); });
  } else {
    std::stable_sort(order.begin(), order.end(), less);
  }
  return status;
}

Result<Value> Sort(Runtime& runtime, const List& list, const Parameters& given) {
  std::vector<Value> keys;
  for (const Value& item : list.items) {
    Value key = item;
    if (given[2] != nullptr && !given[2]->Is<None>()) {
      LACUNA_ASSIGN_OR_RETURN(key, GetPath(runtime, item, *given[2]));
    }
    LACUNA_ASSIGN_OR_RETURN(key, CaseFold(key, Flag(given[1])));
    keys.push_back(std::move(key));
  }
  std::vector<size_t> order;
  LACUNA_RETURN_IF_ERROR(SortByKeys(runtime, keys, Flag(given[0]), order));
  std::vector<Value> items;
  for (const size_t i : order) items.push_back(list.items[i]);
  return Value::Sequence(std::move(items));
}

Result<Value> DictSort(Runtime& runtime, const Dict& dict, const Parameters& given) {
  const bool by_value = given[1] && given[1]->AsString() && *given[1]->AsString() == "value";
  std::vector<Value> keys;
  for (const auto& [key, value] : dict.entries()) {
    LACUNA_ASSIGN_OR_RETURN(Value folded, CaseFold(by_value ? value : key, Flag(given[0])));
    keys.push_back(std::move(folded));
  }
  std::vector<size_t> order;
  LACUNA_RETURN_IF_ERROR(SortByKeys(runtime, keys, Flag(given[2]), order));
  std::vector<Value> items;
  for (const size_t i : order) {
    const auto& [key, value] = dict.entries()[i];
    LACUNA_ASSIGN_OR_RETURN(Value pair, Value::Sequence({key, value}, SequenceKind::kTuple));
    items.push_back(std::move(pair));
  }
  return Value::Sequence(std::move(items));
}

Result<Value> Unique(Runtime& runtime, const List& list, const Parameters& given) {
  std::vector<Value> seen, items;
  for (const Value& item : list.items) {
    Value key = item;
    if (given[1] != nullptr) {
      LACUNA_ASSIGN_OR_RETURN(key, GetPath(runtime, item, *given[1]));
    }
    LACUNA_ASSIGN_OR_RETURN(key, CaseFold(key, Flag(given[0])));
    bool found = false;
    for (size_t i = 0; i < seen.size() && !found; ++i) {
      LACUNA_ASSIGN_OR_RETURN(found, Equal(seen[i], key, runtime.budget));
    }
    if (found) continue;
    seen.push_back(std::move(key));
    items.push_back(item);
  }
  return Value::Sequence(std::move(items), SequenceKind::kStream);
}

Result<Value> Sum(Runtime& runtime, const List& list, const Parameters& given) {
  Value total = given[1] ? *given[1] : Value(int64_t{0});
  for (Value item : list.items) {
    if (given[0] != nullptr) {
      LACUNA_ASSIGN_OR_RETURN(item, GetPath(runtime, item, *given[0]));
    }
    LACUNA_ASSIGN_OR_RETURN(total, BinaryOperator(runtime, Operator::kAdd, total, item));
  }
  return total;
}

Result<Value> MinMax(Runtime& runtime, const List& list, bool want_max, const Parameters& given) {
  if (list.items.empty()) return Value::NotDefined("No aggregated item, sequence was empty.");
  size_t best = 0;
  Value best_key;
  for (size_t i = 0; i < list.items.size(); ++i) {
    Value key = list.items[i];
    if (given[1] != nullptr) {
      LACUNA_ASSIGN_OR_RETURN(key, GetPath(runtime, key, *given[1]));
    }
    LACUNA_ASSIGN_OR_RETURN(key, CaseFold(key, Flag(given[0])));
    if (i > 0) {
      LACUNA_ASSIGN_OR_RETURN(const bool better, want_max ? Less(best_key, key, runtime.budget)
                                                          : Less(key, best_key, runtime.budget));
      if (!better) continue;
    }
    best = i;
    best_key = std::move(key);
  }
  return list.items[best];
}

Result<Value> Batch(Runtime& runtime, const List& list, const Parameters& given) {
  if (given[0] == nullptr) return InvalidArgument("batch: how many?");
  LACUNA_ASSIGN_OR_RETURN(const int64_t count, ToInt(*given[0], "batch: linecount"));
  if (count < 1) return InvalidArgument("batch: linecount must be positive");
  std::vector<Value> rows, row;
  const auto flush = [&]() -> Status {
    LACUNA_ASSIGN_OR_RETURN(Value made, Value::Sequence(std::move(row)));
    rows.push_back(std::move(made));
    row = {};
    return OkStatus();
  };
  for (const Value& item : list.items) {
    if (static_cast<int64_t>(row.size()) == count) LACUNA_RETURN_IF_ERROR(flush());
    row.push_back(item);
  }
  while (given[1] && !row.empty() && static_cast<int64_t>(row.size()) < count) {
    LACUNA_RETURN_IF_ERROR(runtime.budget.Charge(1));
    row.push_back(*given[1]);
  }
  if (!row.empty()) LACUNA_RETURN_IF_ERROR(flush());
  return Value::Sequence(std::move(rows), SequenceKind::kStream);
}

Result<Value> Reverse(Runtime& runtime, const Value& value) {
  if (value.AsString()) {
    return GetSlice(runtime, value, Value(None{}), Value(None{}), Value(int64_t{-1}));
  }
  LACUNA_ASSIGN_OR_RETURN(const ListPtr list, Items(runtime, value));
  LACUNA_RETURN_IF_ERROR(runtime.budget.Charge(static_cast<int64_t>(list->items.size())));
  std::vector<Value> items(list->items.rbegin(), list->items.rend());
  return Value::Sequence(std::move(items), SequenceKind::kStream);
}

Result<Value> Last(Runtime& runtime, const Value& value) {
  if (value.AsString() && !value.AsString()->empty()) {
    return GetItem(runtime, value, Value(int64_t{-1}));
  }
  LACUNA_ASSIGN_OR_RETURN(const ListPtr list, Items(runtime, value));
  if (list->items.empty()) return Value::NotDefined("No last item, sequence was empty.");
  return list->items.back();
}

Result<Value> First(Runtime& runtime, const Value& value) {
  if (value.AsString() && !value.AsString()->empty()) {
    return GetItem(runtime, value, Value(int64_t{0}));
  }
  LACUNA_ASSIGN_OR_RETURN(const ListPtr list, Items(runtime, value));
  if (list->items.empty()) return Value::NotDefined("No first item, sequence was empty.");
  return list->items.front();
}

// Filters over the items of the value.
Result<Value> SequenceFilter(Runtime& runtime, const std::string& name, const Value& value,
                             const Arguments& arguments) {
  if (name == "first") return First(runtime, value);
  if (name == "last") return Last(runtime, value);
  if (name == "reverse") return Reverse(runtime, value);
  LACUNA_ASSIGN_OR_RETURN(const ListPtr list, Items(runtime, value));
  LACUNA_RETURN_IF_ERROR(runtime.budget.Charge(static_cast<int64_t>(list->items.size())));
  if (name == "list") return Value::Sequence(list->items);
  if (name == "join") {
    LACUNA_ASSIGN_OR_RETURN(const Parameters given, arguments.Bind(name, {"d", "attribute"}));
    return Join(runtime, *list, given);
  }
  if (name == "sort") {
    LACUNA_ASSIGN_OR_RETURN(const Parameters given,
                            arguments.Bind(name, {"reverse", "case_sensitive", "attribute"}));
    return Sort(runtime, *list, given);
  }
  if (name == "sum") {
    LACUNA_ASSIGN_OR_RETURN(const Parameters given, arguments.Bind(name, {"attribute", "start"}));
    return Sum(runtime, *list, given);
  }
  if (name == "batch") {
    LACUNA_ASSIGN_OR_RETURN(const Parameters given,
                            arguments.Bind(name, {"linecount", "fill_with"}));
    return Batch(runtime, *list, given);
  }
  LACUNA_ASSIGN_OR_RETURN(const Parameters given,
                          arguments.Bind(name, {"case_sensitive", "attribute"}));
  if (name == "unique") return Unique(runtime, *list, given);
  return MinMax(runtime, *list, name == "max", given);
}

// map(filter, args...) and map(attribute=..., default=...)
Result<Value> Map(Runtime& runtime, const List& list, const Arguments& arguments) {
  std::vector<Value> items;
  if (arguments.positional.empty()) {
    LACUNA_ASSIGN_OR_RETURN(const Parameters given,
                            arguments.Bind("map", {"attribute", "default"}));
    if (given[0] == nullptr) return InvalidArgument("map: a filter or an attribute is needed");
    for (const Value& item : list.items) {
      LACUNA_ASSIGN_OR_RETURN(Value value, GetPath(runtime, item, *given[0]));
      if (value.Is<Undefined>() && given[1]) value = *given[1];
      items.push_back(std::move(value));
    }
  } else {
    const std::string* filter = arguments.positional[0].AsString();
    if (filter == nullptr) return InvalidArgument("map: the name of a filter is needed");
    Arguments rest = arguments;
    rest.positional.erase(rest.positional.begin());
    for (const Value& item : list.items) {
      LACUNA_ASSIGN_OR_RETURN(Value value, CallFilter(runtime, *filter, item, rest));
      items.push_back(std::move(value));
    }
  }
  return Value::Sequence(std::move(items), SequenceKind::kStream);
}

// select, reject (test, args...) and selectattr, rejectattr (attribute, test, args...)
Result<Value> Select(Runtime& runtime, const std::string& name, const List& list,
                     const Arguments& arguments) {
  const bool by_attribute = name.ends_with("attr");
  const bool keep = name.starts_with("select");
  Arguments rest = arguments;
  const auto take = [&]() {
    Value value = rest.positional.front();
    rest.positional.erase(rest.positional.begin());
    return value;
  };
  if (by_attribute && rest.positional.empty()) return InvalidArgument(name + ": which attribute?");
  const Value attribute = by_attribute ? take() : Value();
  const Value test = rest.positional.empty() ? Value(None{}) : take();
  if (!test.Is<None>() && !test.AsString()) return InvalidArgument(name + ": bad test");
  std::vector<Value> items;
  for (const Value& item : list.items) {
    Value value = item;
    if (by_attribute) {
      LACUNA_ASSIGN_OR_RETURN(value, GetPath(runtime, item, attribute));
    }
    bool passes = value.Truthy();
    if (test.AsString()) {
      LACUNA_ASSIGN_OR_RETURN(passes, CallTest(runtime, *test.AsString(), value, rest));
    }
    if (passes == keep) items.push_back(item);
  }
  return Value::Sequence(std::move(items), SequenceKind::kStream);
}

Result<Value> Length(Runtime& runtime, const Value& value) {
  if (const std::string* text = value.AsString()) {
    LACUNA_RETURN_IF_ERROR(runtime.budget.ChargeBytes(text->size()));
    return Value(CodePointCount(*text));
  }
  if (const List* list = value.AsList()) return Value(static_cast<int64_t>(list->items.size()));
  if (const Dict* dict = value.AsDict()) return Value(static_cast<int64_t>(dict->entries().size()));
  if (value.Is<Undefined>()) return Value(int64_t{0});
  return WrongInput("length", value);
}

Result<Value> ToJson(Runtime& runtime, const Value& value, const Arguments& arguments) {
  // The parameter order of transformers' own filter.
  LACUNA_ASSIGN_OR_RETURN(
      const Parameters given,
      arguments.Bind("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"}));
  if (value.Is<Undefined>()) return UndefinedError(value);
  JsonStyle style;
  style.ensure_ascii = Flag(given[0]);
  style.sort_keys = Flag(given[3]);
  if (given[1] != nullptr && !given[1]->Is<None>()) {
    LACUNA_ASSIGN_OR_RETURN(const int64_t indent, ToInt(*given[1], "tojson: indent"));
    style.indent = static_cast<int>(std::clamp<int64_t>(indent, 0, 64));
    style.item_separator = ",";
  }
  if (given[2] != nullptr && !given[2]->Is<None>()) {
    const List* pair = given[2]->AsList();
    if (!pair || pair->items.size() != 2 || !pair->items[0].AsString() ||
        !pair->items[1].AsString()) {
      return InvalidArgument("tojson: separators must be two strings");
    }
    style.item_separator = *pair->items[0].AsString();
    style.key_separator = *pair->items[1].AsString();
  }
  std::string out;
  LACUNA_RETURN_IF_ERROR(AppendJson(value, style, runtime.budget, out));
  return MakeString(runtime, std::move(out));
}

Result<Value> ValueFilter(Runtime& runtime, const std::string& name, const Value& value,
                          const Arguments& arguments) {
  if (name == "default" || name == "d") {
    LACUNA_ASSIGN_OR_RETURN(const Parameters given,
                            arguments.Bind(name, {"default_value", "boolean"}));
    const bool missing = value.Is<Undefined>() || (Flag(given[1]) && !value.Truthy());
    if (!missing) return value;
    return given[0] ? *given[0] : Value::String("");
  }
  if (name == "tojson") return ToJson(runtime, value, arguments);
  if (name == "length" || name == "count") return Length(runtime, value);
  if (name == "items") {
    if (value.Is<Undefined>()) return Value::Sequence({});
    if (!value.AsDict()) return WrongInput(name, value);
    return CallMethod(runtime, value, "items", {});
  }
  if (name == "dictsort") {
    LACUNA_ASSIGN_OR_RETURN(const Parameters given,
                            arguments.Bind(name, {"case_sensitive", "by", "reverse"}));
    if (!value.AsDict()) return WrongInput(name, value);
    return DictSort(runtime, *value.AsDict(), given);
  }
  LACUNA_ASSIGN_OR_RETURN(const ListPtr list, Items(runtime, value));
  LACUNA_RETURN_IF_ERROR(runtime.budget.Charge(static_cast<int64_t>(list->items.size())));
  if (name == "map") return Map(runtime, *list, arguments);
  return Select(runtime, name, *list, arguments);
}

using Filter = Result<Value> (*)(Runtime&, const std::string&, const Value&, const Arguments&);
struct Group {
  Filter filter;
  std::initializer_list<std::string_view> names;
};
const Group kGroups[] = {
    {TextFilter,
     {"trim", "upper", "lower", "capitalize", "title", "replace", "indent", "string", "safe", "e",
      "escape"}},
    {NumberFilter, {"int", "float", "round", "abs"}},
    {SequenceFilter,
     {"first", "last", "list", "join", "sort", "unique", "reverse", "sum", "min", "max", "batch"}},
    {ValueFilter,
     {"default", "d", "tojson", "length", "count", "items", "dictsort", "map", "select", "reject",
      "selectattr", "rejectattr"}},
};

}  // namespace

Result<Value> CallFilter(Runtime& runtime, const std::string& name, const Value& value,
                         const Arguments& arguments) {
  const Nested nested(runtime);  // map calls filters by name, map among them
  LACUNA_RETURN_IF_ERROR(nested.status());
  LACUNA_RETURN_IF_ERROR(
      runtime.budget.Charge(1 + static_cast<int64_t>(arguments.positional.size())));
  for (const Group& group : kGroups) {
    if (std::ranges::find(group.names, name) != group.names.end()) {
      return group.filter(runtime, name, value, arguments);
    }
  }
  return InvalidArgument("no filter named '" + name + "'");
}

}  // namespace lacuna::server::jinja
