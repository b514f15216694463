// Values of the template language: immutable, shared by pointer, with Python's printing and
// comparing. Only Namespace can change, and it belongs to one Render call.
//
// Lists and dicts carry their height, refused above kHeightMax when made, so that printing,
// comparing and freeing them may recurse. Because values are shared, a small graph can stand for a
// huge tree: every walk takes the Budget of its Render and stops when it is spent.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "kernels/core/status.h"

namespace lacuna::server::jinja {

class Value;
struct Macro;  // jinja_ast.h
struct Scope;  // jinja_interpreter.h

inline constexpr int kHeightMax = 128;

// What one Render may still spend.
class Budget final {
 public:
  Budget(int64_t steps_max, int64_t string_bytes_max)
      : steps_left_(steps_max), string_bytes_max_(string_bytes_max) {}

  Status Charge(int64_t steps);
  // Reading or writing `bytes` of string: a step for each 256.
  Status ChargeBytes(size_t bytes) { return Charge(static_cast<int64_t>(bytes / 256) + 1); }
  // Before a string of `bytes` is made: kTooLong above the limit.
  Status CheckString(size_t bytes) const;
  size_t string_bytes_max() const { return static_cast<size_t>(string_bytes_max_); }

 private:
  int64_t steps_left_;
  int64_t string_bytes_max_;
};

using Str = std::shared_ptr<const std::string>;
struct None {};
struct Undefined {
  Str why;  // "'x' is undefined"
};

// kStream is what map, select and the like give: Python has a generator there, which is true even
// when it would yield nothing.
enum class SequenceKind : uint8_t { kList, kTuple, kStream };
struct List {
  std::vector<Value> items;
  SequenceKind kind = SequenceKind::kList;
  int height = 0;
};

class Dict final {
 public:
  using Entry = std::pair<Value, Value>;
  // A later entry with an equal key replaces the value of the earlier one, as in Python.
  static Result<std::shared_ptr<const Dict>> Make(std::vector<Entry> entries);

  const Value* Find(const Value& key) const;
  const Value* Find(std::string_view key) const;
  const std::vector<Entry>& entries() const { return entries_; }
  int height() const { return height_; }

 private:
  std::vector<Entry> entries_;
  std::unordered_map<std::string_view, size_t> strings_;  // views of the keys in entries_
  int height_ = 0;
};

struct Namespace {
  std::map<std::string, Value, std::less<>> fields;
};

// The `loop` variable.
struct Loop {
  std::shared_ptr<const List> list;
  size_t index = 0;
  std::shared_ptr<const List> changed;  // arguments of the last loop.changed(...)
};

// A global function, a method bound to its value, or a macro.
struct Callable {
  std::string name;
  std::shared_ptr<const Value> self;  // bound methods only
  const Macro* macro = nullptr;
  std::weak_ptr<Scope> scope;  // where the macro was defined; weak, since the scope owns the macro
};

template <typename T, typename Variant>
struct IsAlternative;
template <typename T, typename... Ts>
struct IsAlternative<T, std::variant<Ts...>> : std::disjunction<std::is_same<T, Ts>...> {};

class Value final {
 public:
  using Data =
      std::variant<Undefined, None, bool, int64_t, double, Str, std::shared_ptr<const List>,
                   std::shared_ptr<const Dict>, std::shared_ptr<Namespace>, std::shared_ptr<Loop>,
                   std::shared_ptr<const Callable>>;

  Value() = default;
  template <typename T>
  requires IsAlternative<T, Data>::value explicit Value(T data)
      : data_(std::in_place_type<T>, std::move(data)) {}
  static Value String(std::string text) {
    return Value(Str(std::make_shared<const std::string>(std::move(text))));
  }
  static Value NotDefined(std::string why) {
    return Value(Undefined{std::make_shared<const std::string>(std::move(why))});
  }
  // kTooLong when nested deeper than kHeightMax.
  static Result<Value> Sequence(std::vector<Value> items, SequenceKind kind = SequenceKind::kList);
  static Result<Value> FromJson(const nlohmann::ordered_json& json, int depth = 0);

  template <typename T>
  bool Is() const {
    return std::holds_alternative<T>(data_);
  }
  template <typename T>
  const T* As() const {
    return std::get_if<T>(&data_);
  }
  const std::string* AsString() const { return Is<Str>() ? As<Str>()->get() : nullptr; }
  const List* AsList() const {
    return Is<std::shared_ptr<const List>>() ? As<std::shared_ptr<const List>>()->get() : nullptr;
  }
  const Dict* AsDict() const {
    return Is<std::shared_ptr<const Dict>>() ? As<std::shared_ptr<const Dict>>()->get() : nullptr;
  }
  // bool and int64_t, as Python's int.
  const int64_t* AsInt(int64_t& storage) const;
  bool IsNumber() const { return Is<bool>() || Is<int64_t>() || Is<double>(); }
  double AsDouble() const;  // of a number
  int height() const;

  bool Truthy() const;
  std::string_view TypeName() const;  // Python's: "str", "dict", ...

 private:
  Data data_;
};

using ListPtr = std::shared_ptr<const List>;
using DictPtr = std::shared_ptr<const Dict>;

Result<bool> Equal(const Value& a, const Value& b, Budget& budget);
// a < b of two numbers or two strings; kInvalidArgument for anything else. Total: NaN is last.
Result<bool> Less(const Value& a, const Value& b, Budget& budget);

// str(value), appended. Undefined is the empty string.
Status AppendStr(const Value& value, Budget& budget, std::string& out);

struct JsonStyle {
  int indent = -1;  // -1: one line
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
// json.dumps(value), appended.
Status AppendJson(const Value& value, const JsonStyle& style, Budget& budget, std::string& out);

}  // namespace lacuna::server::jinja
