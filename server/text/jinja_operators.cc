#include <algorithm>
#include <cmath>

#include "kernels/core/checked_math.h"
#include "server/text/jinja_runtime.h"
#include "server/text/jinja_unicode.h"

namespace lacuna::server::jinja {
namespace {

Status Overflow() { return InvalidArgument("integer out of range"); }
Status DivisionByZero() { return InvalidArgument("division by zero"); }

std::string_view Symbol(Operator op) {
  constexpr std::string_view kSymbols[] = {"+",  "-",  "~", "*",  "/", "//", "%",  "**",
                                           "==", "!=", "<", "<=", ">", ">=", "in", "not in"};
  return kSymbols[static_cast<size_t>(op)];
}

Status BadOperands(Operator op, const Value& a, const Value& b) {
  if (a.Is<Undefined>()) return UndefinedError(a);
  if (b.Is<Undefined>()) return UndefinedError(b);
  return InvalidArgument("cannot apply " + std::string(Symbol(op)) + " to a " +
                         std::string(a.TypeName()) + " and a " + std::string(b.TypeName()));
}

Result<Value> FromOptional(std::optional<int64_t> number) {
  if (!number) return Overflow();
  return Value(*number);
}

Result<Value> IntegerPower(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) return DivisionByZero();
    return Value(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  if (base == 0 || base == 1) return Value(exponent == 0 ? int64_t{1} : base);
  if (base == -1) return Value(exponent % 2 == 0 ? int64_t{1} : int64_t{-1});
  std::optional<int64_t> product = 1;
  for (; product && exponent > 0; --exponent) product = CheckedMul(*product, base);
  return FromOptional(product);
}

Result<Value> IntegerOperator(Operator op, int64_t a, int64_t b) {
  switch (op) {
    case Operator::kAdd:
      return FromOptional(CheckedAdd(a, b));
    case Operator::kSubtract: {
      int64_t out = 0;
      if (__builtin_sub_overflow(a, b, &out)) return Overflow();
      return Value(out);
    }
    case Operator::kMultiply:
      return FromOptional(CheckedMul(a, b));
    case Operator::kDivide:
      if (b == 0) return DivisionByZero();
      return Value(static_cast<double>(a) / static_cast<double>(b));
    case Operator::kFloorDivide:
    case Operator::kModulo: {
      if (b == 0) return DivisionByZero();
      if (b == -1)
        return op == Operator::kModulo ? Value(int64_t{0}) : FromOptional(CheckedMul(a, b));
      const bool down = a % b != 0 && (a < 0) != (b < 0);  // C++ rounds to zero, Python down
      if (op == Operator::kModulo) return Value(a % b + (down ? b : 0));
      return Value(a / b - (down ? 1 : 0));
    }
    default:
      return IntegerPower(a, b);
  }
}

Result<Value> FloatOperator(Operator op, double a, double b) {
  switch (op) {
    case Operator::kAdd:
      return Value(a + b);
    case Operator::kSubtract:
      return Value(a - b);
    case Operator::kMultiply:
      return Value(a * b);
    case Operator::kPower:
      return Value(std::pow(a, b));
    default:
      break;
  }
  if (b == 0) return DivisionByZero();
  if (op == Operator::kDivide) return Value(a / b);
  if (op == Operator::kFloorDivide) return Value(std::floor(a / b));
  const double rest = std::fmod(a, b);
  return Value(rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest);
}

Result<Value> Repeat(Runtime& runtime, const Value& value, int64_t times) {
  times = std::max<int64_t>(times, 0);
  if (const std::string* text = value.AsString()) {
    const auto bytes = CheckedMul(static_cast<int64_t>(text->size()), times);
    LACUNA_RETURN_IF_ERROR(
        runtime.budget.CheckString(static_cast<size_t>(bytes.value_or(INT64_MAX))));
    std::string out;
    for (int64_t i = 0; i < times && !text->empty(); ++i) out += *text;
    return MakeString(runtime, std::move(out));
  }
  const List& list = *value.AsList();
  const auto count = CheckedMul(static_cast<int64_t>(list.items.size()), times);
  LACUNA_RETURN_IF_ERROR(runtime.budget.Charge(count.value_or(INT64_MAX)));
  std::vector<Value> items;
  if (list.items.empty()) times = 0;
  for (int64_t i = 0; i < times; ++i) {
    items.insert(items.end(), list.items.begin(), list.items.end());
  }
  return Value::Sequence(std::move(items), list.kind);
}

Result<Value> Concatenate(Runtime& runtime, const List& a, const List& b) {
  LACUNA_RETURN_IF_ERROR(
      runtime.budget.Charge(static_cast<int64_t>(a.items.size() + b.items.size())));
  std::vector<Value> items = a.items;
  items.insert(items.end(), b.items.begin(), b.items.end());
  return Value::Sequence(std::move(items), a.kind);
}

Result<bool> Contains(Runtime& runtime, const Value& item, const Value& whole) {
  if (const std::string* text = whole.AsString()) {
    if (!item.AsString()) return BadOperands(Operator::kIn, item, whole);
    LACUNA_RETURN_IF_ERROR(runtime.budget.ChargeBytes(text->size()));
    return Find(*text, *item.AsString()) != std::string_view::npos;
  }
  if (const Dict* dict = whole.AsDict()) return dict->Find(item) != nullptr;
  if (whole.Is<Undefined>()) return false;
  const List* list = whole.AsList();
  if (list == nullptr) return BadOperands(Operator::kIn, item, whole);
  for (const Value& other : list->items) {
    LACUNA_ASSIGN_OR_RETURN(const bool same, Equal(item, other, runtime.budget));
    if (same) return true;
  }
  return false;
}

Result<Value> LoopAttribute(const Loop& loop, std::string_view name) {
  const auto length = static_cast<int64_t>(loop.list->items.size());
  const auto index = static_cast<int64_t>(loop.index);
  if (name == "index") return Value(index + 1);
  if (name == "index0") return Value(index);
  if (name == "revindex") return Value(length - index);
  if (name == "revindex0") return Value(length - index - 1);
  if (name == "first") return Value(index == 0);
  if (name == "last") return Value(index == length - 1);
  if (name == "length") return Value(length);
  // Of recursive loops, which are not supported.
  if (name == "depth" || name == "depth0") return Value(int64_t{name == "depth" ? 1 : 0});
  if (name == "previtem" && index > 0) return loop.list->items[loop.index - 1];
  if (name == "nextitem" && index + 1 < length) return loop.list->items[loop.index + 1];
  return Value::NotDefined("loop has no '" + std::string(name) + "' here");
}

Result<Value> StringSlice(Runtime& runtime, const std::string& text, int64_t at, int64_t end,
                          int64_t step) {
  std::vector<size_t> starts;  // of each code point, needed only to walk with a stride
  size_t first = text.size(), last = text.size(), pos = 0;
  for (int64_t i = 0; pos < text.size(); ++i) {
    if (i == at) first = pos;
    if (i == end) last = pos;
    if (step != 1) {
      LACUNA_RETURN_IF_ERROR(runtime.budget.Charge(1));
      starts.push_back(pos);
    }
    NextCodePoint(text, pos);
  }
  if (step == 1) return MakeString(runtime, text.substr(first, last > first ? last - first : 0));
  starts.push_back(text.size());
  std::string out;
  for (; step > 0 ? at < end : at > end; at += step) {
    const auto i = static_cast<size_t>(at);
    out.append(text, starts[i], starts[i + 1] - starts[i]);
  }
  return MakeString(runtime, std::move(out));
}

Value Method(const Value& self, const std::string& name) {
  auto method = std::make_shared<Callable>();
  method->name = name;
  method->self = std::make_shared<const Value>(self);
  return Value(std::shared_ptr<const Callable>(std::move(method)));
}

Value Missing(const Value& value, std::string_view name) {
  const std::string owner = value.Is<None>() ? "None" : std::string(value.TypeName()) + " object";
  return Value::NotDefined("'" + owner + "' has no attribute '" + std::string(name) + "'");
}

}  // namespace

Status UndefinedError(const Value& value) {
  const Undefined* undefined = value.As<Undefined>();
  return InvalidArgument(undefined && undefined->why ? *undefined->why : "undefined value");
}

Result<std::string> ToText(Runtime& runtime, const Value& value) {
  std::string out;
  LACUNA_RETURN_IF_ERROR(AppendStr(value, runtime.budget, out));
  return out;
}

Result<Value> MakeString(Runtime& runtime, std::string text) {
  LACUNA_RETURN_IF_ERROR(runtime.budget.CheckString(text.size()));
  LACUNA_RETURN_IF_ERROR(runtime.budget.ChargeBytes(text.size()));
  return Value::String(std::move(text));
}

Result<int64_t> ToInt(const Value& value, std::string_view what) {
  int64_t number = 0;
  if (value.AsInt(number)) return number;
  if (value.Is<Undefined>()) return UndefinedError(value);
  return InvalidArgument(std::string(what) + " must be an int, not a " +
                         std::string(value.TypeName()));
}

Result<Value> BinaryOperator(Runtime& runtime, Operator op, const Value& a, const Value& b) {
  if (op == Operator::kConcat) {
    LACUNA_ASSIGN_OR_RETURN(std::string text, ToText(runtime, a));
    LACUNA_RETURN_IF_ERROR(AppendStr(b, runtime.budget, text));
    return MakeString(runtime, std::move(text));
  }
  int64_t x = 0, y = 0;
  if (a.AsInt(x) && b.AsInt(y)) return IntegerOperator(op, x, y);
  if (a.IsNumber() && b.IsNumber()) return FloatOperator(op, a.AsDouble(), b.AsDouble());
  if (op == Operator::kAdd && a.AsString() && b.AsString()) {
    LACUNA_RETURN_IF_ERROR(runtime.budget.CheckString(a.AsString()->size() + b.AsString()->size()));
    return MakeString(runtime, *a.AsString() + *b.AsString());
  }
  if (op == Operator::kAdd && a.AsList() && b.AsList() && a.AsList()->kind == b.AsList()->kind) {
    return Concatenate(runtime, *a.AsList(), *b.AsList());
  }
  if (op == Operator::kMultiply && (a.AsString() || a.AsList()) && b.AsInt(y)) {
    return Repeat(runtime, a, y);
  }
  if (op == Operator::kMultiply && (b.AsString() || b.AsList()) && a.AsInt(x)) {
    return Repeat(runtime, b, x);
  }
  return BadOperands(op, a, b);
}

Result<bool> Compare(Runtime& runtime, Operator op, const Value& a, const Value& b) {
  if (op == Operator::kIn) return Contains(runtime, a, b);
  if (op == Operator::kNotIn) {
    LACUNA_ASSIGN_OR_RETURN(const bool found, Contains(runtime, a, b));
    return !found;
  }
  if (op == Operator::kEqual || op == Operator::kNotEqual) {
    LACUNA_ASSIGN_OR_RETURN(const bool same, Equal(a, b, runtime.budget));
    return same == (op == Operator::kEqual);
  }
  const bool ordered = (a.IsNumber() && b.IsNumber()) || (a.AsString() && b.AsString());
  if (!ordered) return BadOperands(op, a, b);
  if (a.IsNumber() && (std::isnan(a.AsDouble()) || std::isnan(b.AsDouble()))) return false;
  const bool swapped = op == Operator::kGreater || op == Operator::kLessEqual;
  LACUNA_ASSIGN_OR_RETURN(const bool less, Less(swapped ? b : a, swapped ? a : b, runtime.budget));
  return less == (op == Operator::kLess || op == Operator::kGreater);
}

Result<Value> Negate(const Value& value) {
  int64_t number = 0;
  if (value.AsInt(number)) return IntegerOperator(Operator::kSubtract, 0, number);
  if (value.IsNumber()) return Value(-value.AsDouble());
  if (value.Is<Undefined>()) return UndefinedError(value);
  return InvalidArgument("cannot negate a " + std::string(value.TypeName()));
}

Result<Value> GetAttribute(const Value& value, const std::string& name) {
  if (value.Is<Undefined>()) return UndefinedError(value);
  if (const auto* space = value.As<std::shared_ptr<Namespace>>()) {
    const auto at = (*space)->fields.find(name);
    if (at != (*space)->fields.end()) return at->second;
    return Missing(value, name);
  }
  // As Python's getattr before getitem: message.items is the method, message['items'] the entry.
  if (HasMethod(value, name)) return Method(value, name);
  if (const auto* loop = value.As<std::shared_ptr<Loop>>()) return LoopAttribute(**loop, name);
  if (const Dict* dict = value.AsDict()) {
    if (const Value* found = dict->Find(std::string_view(name))) return *found;
  }
  return Missing(value, name);
}

Result<Value> GetItem(Runtime& runtime, const Value& value, const Value& key) {
  if (value.Is<Undefined>()) return UndefinedError(value);
  if (const Dict* dict = value.AsDict()) {
    if (const Value* found = dict->Find(key)) return *found;
  }
  int64_t index = 0;
  if (key.AsInt(index) && (value.AsList() || value.AsString())) {
    const std::string* text = value.AsString();
    if (text) LACUNA_RETURN_IF_ERROR(runtime.budget.ChargeBytes(text->size()));
    const int64_t length =
        text ? CodePointCount(*text) : static_cast<int64_t>(value.AsList()->items.size());
    if (index < 0) index += length;
    if (index < 0 || index >= length) {
      return Value::NotDefined(std::string(value.TypeName()) + " object has no element " +
                               std::to_string(index));
    }
    if (!text) return value.AsList()->items[static_cast<size_t>(index)];
    size_t pos = 0;
    while (index-- > 0) NextCodePoint(*text, pos);
    const size_t start = pos;
    NextCodePoint(*text, pos);
    return Value::String(text->substr(start, pos - start));
  }
  if (!key.AsString()) {
    if (key.Is<Undefined>()) return Missing(value, "");
    LACUNA_ASSIGN_OR_RETURN(const std::string name, ToText(runtime, key));
    return Missing(value, name.substr(0, 80));
  }
  if (value.AsDict()) {
    return HasMethod(value, *key.AsString()) ? Method(value, *key.AsString())
                                             : Missing(value, *key.AsString());
  }
  return GetAttribute(value, *key.AsString());
}

Result<Value> GetSlice(Runtime& runtime, const Value& value, const Value& first, const Value& last,
                       const Value& stride) {
  if (value.Is<Undefined>()) return UndefinedError(value);
  if (!value.AsList() && !value.AsString()) {
    return InvalidArgument("cannot slice a " + std::string(value.TypeName()));
  }
  int64_t step = 1;
  if (!stride.Is<None>()) {
    LACUNA_ASSIGN_OR_RETURN(step, ToInt(stride, "a slice's step"));
  }
  if (step == 0) return InvalidArgument("a slice's step cannot be zero");
  const std::string* text = value.AsString();
  if (text) LACUNA_RETURN_IF_ERROR(runtime.budget.ChargeBytes(text->size()));
  const int64_t length =
      text ? CodePointCount(*text) : static_cast<int64_t>(value.AsList()->items.size());
  // slice.indices of Python.
  const int64_t low = step > 0 ? 0 : -1;
  const int64_t high = step > 0 ? length : length - 1;
  const auto bound = [&](const Value& given, int64_t otherwise) -> Result<int64_t> {
    if (given.Is<None>()) return otherwise;
    LACUNA_ASSIGN_OR_RETURN(int64_t at, ToInt(given, "a slice's bound"));
    if (at < 0) at += length;
    return std::clamp(at, low, high);
  };
  LACUNA_ASSIGN_OR_RETURN(int64_t at, bound(first, step > 0 ? low : high));
  LACUNA_ASSIGN_OR_RETURN(const int64_t end, bound(last, step > 0 ? high : low));
  step = std::clamp(step, -length - 1, length + 1);  // so that `at` cannot overflow
  if (text) return StringSlice(runtime, *text, at, end, step);
  std::vector<Value> items;
  for (; step > 0 ? at < end : at > end; at += step) {
    LACUNA_RETURN_IF_ERROR(runtime.budget.Charge(1));
    items.push_back(value.AsList()->items[static_cast<size_t>(at)]);
  }
  return Value::Sequence(std::move(items), value.AsList()->kind);
}

Result<ListPtr> Items(Runtime& runtime, const Value& value) {
  if (const ListPtr* list = value.As<ListPtr>()) return *list;
  std::vector<Value> items;
  if (const Dict* dict = value.AsDict()) {
    LACUNA_RETURN_IF_ERROR(runtime.budget.Charge(static_cast<int64_t>(dict->entries().size())));
    for (const auto& [key, item] : dict->entries()) items.push_back(key);
  } else if (const std::string* text = value.AsString()) {
    for (size_t pos = 0; pos < text->size();) {
      LACUNA_RETURN_IF_ERROR(runtime.budget.Charge(1));
      const size_t start = pos;
      NextCodePoint(*text, pos);
      items.push_back(Value::String(text->substr(start, pos - start)));
    }
  } else if (!value.Is<Undefined>()) {
    return InvalidArgument("a " + std::string(value.TypeName()) + " cannot be iterated");
  }
  LACUNA_ASSIGN_OR_RETURN(const Value list, Value::Sequence(std::move(items)));
  return *list.As<ListPtr>();
}

}  // namespace lacuna::server::jinja
