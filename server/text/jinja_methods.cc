// Methods of str, dict, list and loop.
#include <algorithm>

#include "kernels/core/checked_math.h"
#include "server/text/jinja_runtime.h"
#include "server/text/jinja_unicode.h"

namespace lacuna::server::jinja {
namespace {

using Names = std::initializer_list<std::string_view>;
using Parameters = std::vector<const Value*>;
constexpr size_t kNone = std::string_view::npos;

const Names kStringMethods = {"strip",      "lstrip",       "rstrip",       "split",     "rsplit",
                              "splitlines", "startswith",   "endswith",     "upper",     "lower",
                              "title",      "capitalize",   "replace",      "join",      "find",
                              "count",      "removeprefix", "removesuffix", "isdigit",   "isalpha",
                              "isalnum",    "isspace",      "partition",    "rpartition"};
const Names kDictMethods = {"get", "items", "keys", "values", "copy"};
const Names kDictMutators = {"clear", "pop", "popitem", "setdefault", "update"};
const Names kListMethods = {"index", "count", "copy"};
const Names kListMutators = {"append", "extend", "insert", "pop",
                             "remove", "clear",  "sort",   "reverse"};
const Names kLoopMethods = {"cycle", "changed"};

bool Has(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Result<const std::string*> Text(const Value* value, const std::string& method) {
  if (value != nullptr && value->AsString()) return value->AsString();
  if (value != nullptr && value->Is<Undefined>()) return UndefinedError(*value);
  return InvalidArgument(method + ": needs a string");
}

Result<Value> Pieces(Runtime& runtime, const std::vector<std::string_view>& pieces,
                     SequenceKind kind = SequenceKind::kList) {
  LACUNA_RETURN_IF_ERROR(runtime.budget.Charge(static_cast<int64_t>(pieces.size())));
  std::vector<Value> items;
  items.reserve(pieces.size());
  for (const std::string_view piece : pieces) items.push_back(Value::String(std::string(piece)));
  return Value::Sequence(std::move(items), kind);
}

// Split at runs of white space, at most `splits_max` times from the left.
std::vector<std::string_view> SplitSpaces(std::string_view text, size_t splits_max) {
  std::vector<std::string_view> pieces;
  text = StripLeft(text);
  while (!text.empty()) {
    if (pieces.size() == splits_max) {
      pieces.push_back(text);
      break;
    }
    size_t pos = 0, end = 0;
    while (pos < text.size()) {
      end = pos;
      if (IsSpace(NextCodePoint(text, pos))) break;
      end = pos;
    }
    pieces.push_back(text.substr(0, end));
    text = StripLeft(text.substr(end));
  }
  return pieces;
}

Result<Value> Split(Runtime& runtime, std::string_view text, const Parameters& given,
                    bool from_right) {
  int64_t limit = -1;
  if (given[1] != nullptr) {
    LACUNA_ASSIGN_OR_RETURN(limit, ToInt(*given[1], "split: maxsplit"));
  }
  const size_t splits_max = limit < 0 ? kNone : static_cast<size_t>(limit);
  if (given[0] == nullptr || given[0]->Is<None>()) {
    if (from_right && limit >= 0) return InvalidArgument("rsplit: needs a separator here");
    return Pieces(runtime, SplitSpaces(text, splits_max));
  }
  LACUNA_ASSIGN_OR_RETURN(const std::string* separator, Text(given[0], "split"));
  if (separator->empty()) return InvalidArgument("split: empty separator");
  std::vector<size_t> cuts;
  for (size_t at = Find(text, *separator); at != kNone;
       at = Find(text, *separator, at + separator->size())) {
    cuts.push_back(at);
    if (!from_right && cuts.size() >= splits_max) break;
  }
  if (splits_max == 0) cuts.clear();
  // Python scans from the right; that differs only where separators overlap themselves.
  if (from_right && cuts.size() > splits_max) {
    cuts.erase(cuts.begin(), cuts.end() - static_cast<std::ptrdiff_t>(splits_max));
  }
  std::vector<std::string_view> pieces;
  size_t start = 0;
  for (const size_t cut : cuts) {
    pieces.push_back(text.substr(start, cut - start));
    start = cut + separator->size();
  }
  pieces.push_back(text.substr(start));
  return Pieces(runtime, pieces);
}

std::vector<std::string_view> SplitLines(std::string_view text) {
  std::vector<std::string_view> lines;
  size_t start = 0;
  for (size_t pos = 0; pos < text.size();) {
    const size_t at = pos;
    const char32_t code = NextCodePoint(text, pos);
    const bool breaks = (code >= 0x0A && code <= 0x0D) || (code >= 0x1C && code <= 0x1E) ||
                        code == 0x85 || code == 0x2028 || code == 0x2029;
    if (!breaks) continue;
    lines.push_back(text.substr(start, at - start));
    if (code == '\r' && pos < text.size() && text[pos] == '\n') ++pos;
    start = pos;
  }
  if (start < text.size()) lines.push_back(text.substr(start));
  return lines;
}

Result<Value> Partition(Runtime& runtime, std::string_view text, const Parameters& given,
                        bool from_right) {
  LACUNA_ASSIGN_OR_RETURN(const std::string* separator, Text(given[0], "partition"));
  if (separator->empty()) return InvalidArgument("partition: empty separator");
  size_t at = Find(text, *separator);
  for (size_t next = at; from_right && next != kNone;
       next = Find(text, *separator, next + separator->size())) {
    at = next;
  }
  if (at == kNone) {
    return from_right ? Pieces(runtime, {"", "", text}, SequenceKind::kTuple)
                      : Pieces(runtime, {text, "", ""}, SequenceKind::kTuple);
  }
  const size_t after = at + separator->size();
  return Pieces(runtime,
                {text.substr(0, at), text.substr(at, separator->size()), text.substr(after)},
                SequenceKind::kTuple);
}

// startswith and endswith: a string or a tuple of strings.
Result<Value> HasEnd(Runtime& runtime, std::string_view text, const Value* given, bool at_start) {
  const auto matches = [&](const std::string& end) {
    return at_start ? text.starts_with(end) : text.ends_with(end);
  };
  if (given != nullptr && given->AsList()) {
    for (const Value& item : given->AsList()->items) {
      LACUNA_ASSIGN_OR_RETURN(const std::string* end, Text(&item, "startswith"));
      LACUNA_RETURN_IF_ERROR(runtime.budget.ChargeBytes(end->size()));
      if (matches(*end)) return Value(true);
    }
    return Value(false);
  }
  LACUNA_ASSIGN_OR_RETURN(const std::string* end,
                          Text(given, at_start ? "startswith" : "endswith"));
  return Value(matches(*end));
}

Result<Value> IsKind(std::string_view text, const std::string& name) {
  for (size_t pos = 0; pos < text.size();) {
    const char32_t code = NextCodePoint(text, pos);
    const bool digit = code >= '0' && code <= '9';
    const bool alpha = (code | 0x20) >= 'a' && (code | 0x20) <= 'z';
    // Letters beyond ASCII: those that have a case, or stand in no case at all.
    const bool letter = alpha || (code >= 0xAA && IsPrintable(code) && !IsSpace(code));
    const bool holds = name == "isdigit"   ? digit
                       : name == "isspace" ? IsSpace(code)
                       : name == "isalpha" ? letter
                                           : letter || digit;
    if (!holds) return Value(false);
  }
  return Value(!text.empty());
}

Result<Value> CountOrFind(const std::string& name, std::string_view text, const Value* given) {
  LACUNA_ASSIGN_OR_RETURN(const std::string* needle, Text(given, name));
  size_t at = Find(text, *needle);
  if (name == "find") {
    return Value(at == kNone ? int64_t{-1} : CodePointCount(text.substr(0, at)));
  }
  if (needle->empty()) return Value(CodePointCount(text) + 1);
  int64_t count = 0;
  for (; at != kNone; at = Find(text, *needle, at + needle->size())) ++count;
  return Value(count);
}

Result<Value> StringMethod(Runtime& runtime, const std::string& text, const std::string& name,
                           const Arguments& arguments) {
  LACUNA_RETURN_IF_ERROR(runtime.budget.ChargeBytes(text.size()));
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    LACUNA_ASSIGN_OR_RETURN(const Parameters given, arguments.Bind(name, {"chars"}));
    return Strip(runtime, text, given[0], name != "rstrip", name != "lstrip");
  }
  if (name == "split" || name == "rsplit") {
    LACUNA_ASSIGN_OR_RETURN(const Parameters given, arguments.Bind(name, {"sep", "maxsplit"}));
    return Split(runtime, text, given, name == "rsplit");
  }
  if (name == "replace") {
    LACUNA_ASSIGN_OR_RETURN(const Parameters given, arguments.Bind(name, {"old", "new", "count"}));
    LACUNA_ASSIGN_OR_RETURN(const std::string* from, Text(given[0], name));
    LACUNA_ASSIGN_OR_RETURN(const std::string* to, Text(given[1], name));
    int64_t count = -1;
    if (given[2] != nullptr) {
      LACUNA_ASSIGN_OR_RETURN(count, ToInt(*given[2], "replace: count"));
    }
    return Replace(runtime, text, *from, *to, count);
  }
  if (Has({"upper", "lower", "title", "capitalize", "splitlines", "isdigit", "isalpha", "isalnum",
           "isspace"},
          name)) {
    LACUNA_RETURN_IF_ERROR(arguments.Bind(name, {}).status());
    if (name == "upper") return MakeString(runtime, ToUpper(text));
    if (name == "lower") return MakeString(runtime, ToLower(text));
    if (name == "title") return MakeString(runtime, TitleCase(text));
    if (name == "capitalize") return MakeString(runtime, Capitalize(text));
    if (name == "splitlines") return Pieces(runtime, SplitLines(text));
    return IsKind(text, name);
  }
  LACUNA_ASSIGN_OR_RETURN(const Parameters given, arguments.Bind(name, {"value"}));
  if (name == "startswith" || name == "endswith") {
    return HasEnd(runtime, text, given[0], name == "startswith");
  }
  if (name == "partition" || name == "rpartition") {
    return Partition(runtime, text, given, name == "rpartition");
  }
  if (name == "join") {
    if (given[0] == nullptr) return InvalidArgument("join: what?");
    return CallFilter(runtime, "join", *given[0], {{Value::String(text)}, {}});
  }
  if (name == "find" || name == "count") return CountOrFind(name, text, given[0]);
  LACUNA_ASSIGN_OR_RETURN(const std::string* end, Text(given[0], name));
  const bool prefix = name == "removeprefix";
  if (!(prefix ? text.starts_with(*end) : text.ends_with(*end))) return MakeString(runtime, text);
  const size_t rest = text.size() - end->size();
  return MakeString(runtime, prefix ? text.substr(end->size()) : text.substr(0, rest));
}

Result<Value> DictMethod(Runtime& runtime, const Value& self, const std::string& name,
                         const Arguments& arguments) {
  const Dict& dict = *self.AsDict();
  if (name == "get") {
    LACUNA_ASSIGN_OR_RETURN(const Parameters given, arguments.Bind(name, {"key", "default"}));
    if (given[0] == nullptr) return InvalidArgument("get: which key?");
    if (const Value* found = dict.Find(*given[0])) return *found;
    return given[1] ? *given[1] : Value(None{});
  }
  LACUNA_RETURN_IF_ERROR(arguments.Bind(name, {}).status());
  LACUNA_RETURN_IF_ERROR(runtime.budget.Charge(static_cast<int64_t>(dict.entries().size())));
  if (name == "copy") return self;
  std::vector<Value> items;
  for (const auto& [key, value] : dict.entries()) {
    if (name == "items") {
      LACUNA_ASSIGN_OR_RETURN(Value pair, Value::Sequence({key, value}, SequenceKind::kTuple));
      items.push_back(std::move(pair));
    } else {
      items.push_back(name == "keys" ? key : value);
    }
  }
  return Value::Sequence(std::move(items));
}

Result<Value> ListMethod(Runtime& runtime, const Value& self, const std::string& name,
                         const Arguments& arguments) {
  if (name == "copy") return self;
  LACUNA_ASSIGN_OR_RETURN(const Parameters given, arguments.Bind(name, {"value"}));
  if (given[0] == nullptr) return InvalidArgument(name + ": of what?");
  int64_t count = 0;
  const auto& items = self.AsList()->items;
  for (size_t i = 0; i < items.size(); ++i) {
    LACUNA_ASSIGN_OR_RETURN(const bool same, Equal(items[i], *given[0], runtime.budget));
    if (same && name == "index") return Value(static_cast<int64_t>(i));
    count += same ? 1 : 0;
  }
  if (name == "index") return InvalidArgument("index: the value is not in the list");
  return Value(count);
}

Result<Value> LoopMethod(Runtime& runtime, const std::shared_ptr<Loop>& loop,
                         const std::string& name, const Arguments& arguments) {
  if (name == "cycle") {
    if (arguments.positional.empty()) return InvalidArgument("cycle: through what?");
    return arguments.positional[loop->index % arguments.positional.size()];
  }
  LACUNA_ASSIGN_OR_RETURN(const Value now, Value::Sequence(arguments.positional));
  const ListPtr before = std::exchange(loop->changed, *now.As<ListPtr>());
  if (before == nullptr) {
    runtime.loops.push_back(loop);
    return Value(true);
  }
  LACUNA_ASSIGN_OR_RETURN(const bool same, Equal(Value(before), now, runtime.budget));
  return Value(!same);
}

}  // namespace

Result<Value> Strip(Runtime& runtime, std::string_view text, const Value* given, bool left,
                    bool right) {
  const std::string* chars = given != nullptr ? given->AsString() : nullptr;
  if (chars != nullptr) {  // each end may compare every character with every one of `chars`
    const auto compares = CheckedMul(text.size(), chars->size());
    LACUNA_RETURN_IF_ERROR(runtime.budget.ChargeBytes(compares.value_or(SIZE_MAX)));
  }
  if (left) text = StripLeft(text, chars);
  if (right) text = StripRight(text, chars);
  return MakeString(runtime, std::string(text));
}

Result<Value> Replace(Runtime& runtime, std::string_view text, std::string_view from,
                      std::string_view to, int64_t count_max) {
  std::string out;
  size_t start = 0;
  while (count_max != 0) {
    size_t at = start;
    if (from.empty()) {  // Python: before each character and at the end
      if (start >= text.size() && start != 0) break;
    } else {
      at = Find(text, from, start);
      if (at == kNone) break;
    }
    out += text.substr(start, at - start);
    out += to;
    LACUNA_RETURN_IF_ERROR(runtime.budget.CheckString(out.size()));
    start = at + from.size();
    if (count_max > 0) --count_max;
    if (!from.empty()) continue;
    if (text.empty()) break;
    size_t next = start;
    NextCodePoint(text, next);
    out += text.substr(start, next - start);
    start = next;
    if (start == text.size() && count_max != 0) {
      out += to;
      break;
    }
  }
  out += text.substr(start);
  return MakeString(runtime, std::move(out));
}

bool HasMethod(const Value& self, std::string_view name) {
  if (self.AsString()) return Has(kStringMethods, name);
  if (self.AsDict()) return Has(kDictMethods, name) || Has(kDictMutators, name);
  if (self.AsList()) return Has(kListMethods, name) || Has(kListMutators, name);
  return self.Is<std::shared_ptr<Loop>>() && Has(kLoopMethods, name);
}

Result<Value> CallMethod(Runtime& runtime, const Value& self, const std::string& name,
                         const Arguments& arguments) {
  const bool mutates =
      (self.AsDict() && Has(kDictMutators, name)) || (self.AsList() && Has(kListMutators, name));
  if (mutates) {
    return InvalidArgument("'" + name + "' would change a value; templates may not");
  }
  if (const Str* text = self.As<Str>()) return StringMethod(runtime, **text, name, arguments);
  if (self.AsDict()) return DictMethod(runtime, self, name, arguments);
  if (self.AsList()) return ListMethod(runtime, self, name, arguments);
  return LoopMethod(runtime, *self.As<std::shared_ptr<Loop>>(), name, arguments);
}

}  // namespace lacuna::server::jinja
