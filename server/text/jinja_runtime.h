// What expressions do with values: operators, attributes, filters, tests, methods and the global
// functions, as Python and Jinja 3.1 define them under transformers' immutable sandbox (no method
// that changes its value, no attribute of the program).
//
// One Runtime per Render call, one thread. Every function charges the budget for what it touches.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/text/jinja_ast.h"
#include "server/text/jinja_value.h"

namespace lacuna::server::jinja {

struct Runtime {
  Budget budget;
  int64_t now_unix_s = 0;
  int nesting_max = 0;  // evaluations inside each other
  int nesting = 0;
  bool raised = false;  // by raise_exception: the message goes out as it is
  // What can come to hold itself, emptied at the end: every namespace, and loops with `changed`.
  std::vector<std::shared_ptr<Namespace>> namespaces;
  std::vector<std::shared_ptr<Loop>> loops;

  Runtime(Budget spend, int64_t now, int depth)
      : budget(spend), now_unix_s(now), nesting_max(depth) {}
  ~Runtime() {
    for (const auto& space : namespaces) space->fields.clear();
    for (const auto& loop : loops) loop->changed.reset();
  }
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;
};

// Held while inside one more level of evaluation; check status() before going on.
class Nested final {
 public:
  explicit Nested(Runtime& runtime) : runtime_(runtime) { ++runtime_.nesting; }
  ~Nested() { --runtime_.nesting; }
  Nested(const Nested&) = delete;
  Nested& operator=(const Nested&) = delete;
  Status status() const {
    if (runtime_.nesting <= runtime_.nesting_max) return OkStatus();
    return {StatusCode::kTooLong, "evaluation nested too deep"};
  }

 private:
  Runtime& runtime_;
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The value of each parameter in `names`, null where none was given.
  Result<std::vector<const Value*>> Bind(std::string_view function,
                                         std::initializer_list<std::string_view> names) const;
};

// jinja_operators.cc
Result<Value> BinaryOperator(Runtime& runtime, Operator op, const Value& a, const Value& b);
Result<bool> Compare(Runtime& runtime, Operator op, const Value& a, const Value& b);
Result<Value> Negate(const Value& value);
Result<Value> GetAttribute(const Value& value, const std::string& name);  // value.name
Result<Value> GetItem(Runtime& runtime, const Value& value, const Value& key);
Result<Value> GetSlice(Runtime& runtime, const Value& value, const Value& first, const Value& last,
                       const Value& stride);  // None for a bound left out
// What a for loop walks: items, keys of a dict, characters of a string; nothing for Undefined.
Result<ListPtr> Items(Runtime& runtime, const Value& value);
Result<std::string> ToText(Runtime& runtime, const Value& value);  // str(value)
Result<Value> MakeString(Runtime& runtime, std::string text);      // charged and bounded
Result<int64_t> ToInt(const Value& value, std::string_view what);  // an int, or an error
Status UndefinedError(const Value& value);                         // value is Undefined

// jinja_filters.cc, jinja_tests.cc
Result<Value> CallFilter(Runtime& runtime, const std::string& name, const Value& value,
                         const Arguments& arguments);
Result<bool> CallTest(Runtime& runtime, const std::string& name, const Value& value,
                      const Arguments& arguments);

// jinja_methods.cc. HasMethod is also true for methods that CallMethod refuses.
bool HasMethod(const Value& self, std::string_view name);
Result<Value> CallMethod(Runtime& runtime, const Value& self, const std::string& name,
                         const Arguments& arguments);
// str.strip, of either end or both; `chars` may be null.
Result<Value> Strip(Runtime& runtime, std::string_view text, const Value* chars, bool left,
                    bool right);
Result<Value> Replace(Runtime& runtime, std::string_view text, std::string_view from,
                      std::string_view to, int64_t count_max);  // count_max < 0: all

// jinja_globals.cc
bool HasGlobal(std::string_view name);
Result<Value> CallGlobal(Runtime& runtime, const std::string& name, const Arguments& arguments);

}  // namespace lacuna::server::jinja
