// The tests behind `is`.
#include <algorithm>

#include "server/text/jinja_runtime.h"
#include "server/text/jinja_unicode.h"

namespace lacuna::server::jinja {
namespace {

struct Comparison {
  std::string_view name;
  Operator op;
};
constexpr Comparison kComparisons[] = {
    {"eq", Operator::kEqual},
    {"equalto", Operator::kEqual},
    {"==", Operator::kEqual},
    {"sameas", Operator::kEqual},
    {"ne", Operator::kNotEqual},
    {"!=", Operator::kNotEqual},
    {"lt", Operator::kLess},
    {"lessthan", Operator::kLess},
    {"<", Operator::kLess},
    {"le", Operator::kLessEqual},
    {"<=", Operator::kLessEqual},
    {"gt", Operator::kGreater},
    {"greaterthan", Operator::kGreater},
    {">", Operator::kGreater},
    {"ge", Operator::kGreaterEqual},
    {">=", Operator::kGreaterEqual},
    {"in", Operator::kIn},
};

bool IsCallable(const Value& value) { return value.Is<std::shared_ptr<const Callable>>(); }

using Predicate = bool (*)(const Value&);
struct TypeTest {
  std::string_view name;
  Predicate holds;
};
const TypeTest kTypeTests[] = {
    {"defined", [](const Value& v) { return !v.Is<Undefined>(); }},
    {"undefined", [](const Value& v) { return v.Is<Undefined>(); }},
    {"none", [](const Value& v) { return v.Is<None>(); }},
    {"string", [](const Value& v) { return v.AsString() != nullptr; }},
    {"mapping", [](const Value& v) { return v.AsDict() != nullptr; }},
    {"number", [](const Value& v) { return v.IsNumber(); }},
    {"integer", [](const Value& v) { return v.Is<int64_t>(); }},
    {"float", [](const Value& v) { return v.Is<double>(); }},
    {"boolean", [](const Value& v) { return v.Is<bool>(); }},
    {"true", [](const Value& v) { return v.Is<bool>() && v.Truthy(); }},
    {"false", [](const Value& v) { return v.Is<bool>() && !v.Truthy(); }},
    {"callable", IsCallable},
    {"iterable",
     [](const Value& v) {
       return v.AsString() || v.AsList() || v.AsDict() || v.Is<Undefined>() ||
              v.Is<std::shared_ptr<Loop>>();
     }},
    {"sequence",
     [](const Value& v) {
       return v.AsString() || v.AsDict() || v.Is<Undefined>() ||
              (v.AsList() && v.AsList()->kind != SequenceKind::kStream);
     }},
    {"escaped", [](const Value&) { return false; }},
};

Result<bool> DivisibleBy(const Value& value, const Arguments& arguments, std::string_view name) {
  int64_t divisor = 2;
  if (name == "divisibleby") {
    LACUNA_ASSIGN_OR_RETURN(const auto given, arguments.Bind(name, {"num"}));
    if (given[0] == nullptr) return InvalidArgument("divisibleby: by what?");
    LACUNA_ASSIGN_OR_RETURN(divisor, ToInt(*given[0], "divisibleby: num"));
  }
  LACUNA_ASSIGN_OR_RETURN(const int64_t number, ToInt(value, name));
  if (divisor == 0) return InvalidArgument("division by zero");
  const bool divides = divisor == -1 || number % divisor == 0;
  return divides == (name != "odd");
}

}  // namespace

Result<bool> CallTest(Runtime& runtime, const std::string& name, const Value& value,
                      const Arguments& arguments) {
  LACUNA_RETURN_IF_ERROR(runtime.budget.Charge(1));
  for (const TypeTest& test : kTypeTests) {
    if (test.name == name) {
      LACUNA_RETURN_IF_ERROR(arguments.Bind(name, {}).status());
      return test.holds(value);
    }
  }
  for (const Comparison& test : kComparisons) {
    if (test.name != name) continue;
    LACUNA_ASSIGN_OR_RETURN(const auto given, arguments.Bind(name, {"other"}));
    if (given[0] == nullptr) return InvalidArgument("test '" + name + "' needs an argument");
    if (name == "sameas" && value.TypeName() != given[0]->TypeName()) return false;
    return Compare(runtime, test.op, value, *given[0]);
  }
  if (name == "odd" || name == "even" || name == "divisibleby") {
    return DivisibleBy(value, arguments, name);
  }
  if (name == "lower" || name == "upper") {
    LACUNA_ASSIGN_OR_RETURN(const std::string text, ToText(runtime, value));
    const std::string other = name == "lower" ? ToUpper(text) : ToLower(text);
    return text == (name == "lower" ? ToLower(text) : ToUpper(text)) && text != other;
  }
  return InvalidArgument("no test named '" + name + "'");
}

}  // namespace lacuna::server::jinja
