// Global functions, and the binding of arguments that all functions share.
#include <algorithm>
#include <ctime>

#include "server/text/jinja_runtime.h"

namespace lacuna::server::jinja {
namespace {

using Parameters = std::vector<const Value*>;

Result<Value> Range(Runtime& runtime, const Arguments& arguments) {
  LACUNA_ASSIGN_OR_RETURN(const Parameters given, arguments.Bind("range", {"a", "b", "step"}));
  if (given[0] == nullptr) return InvalidArgument("range: how many?");
  LACUNA_ASSIGN_OR_RETURN(int64_t at, ToInt(*given[0], "range"));
  int64_t end = at, step = 1;
  if (given[1] == nullptr) {
    at = 0;
  } else {
    LACUNA_ASSIGN_OR_RETURN(end, ToInt(*given[1], "range"));
  }
  if (given[2] != nullptr) {
    LACUNA_ASSIGN_OR_RETURN(step, ToInt(*given[2], "range"));
  }
  if (step == 0) return InvalidArgument("range: step cannot be zero");
  std::vector<Value> items;
  while (step > 0 ? at < end : at > end) {
    LACUNA_RETURN_IF_ERROR(runtime.budget.Charge(1));
    items.push_back(Value(at));
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  return Value::Sequence(std::move(items));
}

Result<Value> StrftimeNow(Runtime& runtime, const Arguments& arguments) {
  constexpr size_t kFormatBytesMax = 256;
  LACUNA_ASSIGN_OR_RETURN(const Parameters given, arguments.Bind("strftime_now", {"format"}));
  const std::string* format = given[0] ? given[0]->AsString() : nullptr;
  if (format == nullptr || format->size() > kFormatBytesMax) {
    return InvalidArgument("strftime_now: needs a short format string");
  }
  if (format->empty()) return Value::String("");
  std::time_t now = runtime.now_unix_s;
  std::tm parts{};
  if (gmtime_r(&now, &parts) == nullptr) return InvalidArgument("strftime_now: no such time");
  char buffer[4096];
  const size_t bytes = std::strftime(buffer, sizeof(buffer), format->c_str(), &parts);
  if (bytes == 0) return InvalidArgument("strftime_now: bad format");
  return MakeString(runtime, std::string(buffer, bytes));
}

Result<Value> MakeDict(const Arguments& arguments) {
  std::vector<Dict::Entry> entries;
  for (const auto& [name, value] : arguments.named) {
    entries.emplace_back(Value::String(name), value);
  }
  if (!arguments.positional.empty()) {
    const Dict* base = arguments.positional[0].AsDict();
    if (base == nullptr || arguments.positional.size() > 1) {
      return InvalidArgument("dict: needs a dict or named values");
    }
    entries.insert(entries.begin(), base->entries().begin(), base->entries().end());
  }
  LACUNA_ASSIGN_OR_RETURN(DictPtr dict, Dict::Make(std::move(entries)));
  return Value(std::move(dict));
}

}  // namespace

Result<std::vector<const Value*>> Arguments::Bind(
    std::string_view function, std::initializer_list<std::string_view> names) const {
  std::vector<const Value*> bound(names.size());
  if (positional.size() > names.size()) {
    return InvalidArgument(std::string(function) + ": too many arguments");
  }
  for (size_t i = 0; i < positional.size(); ++i) bound[i] = &positional[i];
  for (const auto& [name, value] : named) {
    const auto at = std::find(names.begin(), names.end(), name);
    if (at == names.end()) {
      return InvalidArgument(std::string(function) + ": no parameter named '" + name + "'");
    }
    const Value*& slot = bound[static_cast<size_t>(at - names.begin())];
    if (slot != nullptr) return InvalidArgument(std::string(function) + ": '" + name + "' twice");
    slot = &value;
  }
  return bound;
}

bool HasGlobal(std::string_view name) {
  constexpr std::string_view kNames[] = {"range", "namespace", "dict", "raise_exception",
                                         "strftime_now"};
  return std::ranges::find(kNames, name) != std::end(kNames);
}

Result<Value> CallGlobal(Runtime& runtime, const std::string& name, const Arguments& arguments) {
  if (name == "range") return Range(runtime, arguments);
  if (name == "strftime_now") return StrftimeNow(runtime, arguments);
  if (name == "dict") {
    if (!arguments.positional.empty() && arguments.positional[0].AsDict()) {
      LACUNA_RETURN_IF_ERROR(runtime.budget.Charge(
          static_cast<int64_t>(arguments.positional[0].AsDict()->entries().size())));
    }
    return MakeDict(arguments);
  }
  if (name == "namespace") {
    auto space = std::make_shared<Namespace>();
    for (const auto& [field, value] : arguments.named) space->fields[field] = value;
    if (!arguments.positional.empty()) return InvalidArgument("namespace: needs named values");
    runtime.namespaces.push_back(space);
    return Value(std::move(space));
  }
  LACUNA_ASSIGN_OR_RETURN(const Parameters given, arguments.Bind(name, {"message"}));
  std::string message = "raise_exception";
  if (given[0] != nullptr) {
    LACUNA_ASSIGN_OR_RETURN(message, ToText(runtime, *given[0]));
  }
  // A status is one line, and may end up in a header or a log.
  std::replace_if(
      message.begin(), message.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  runtime.raised = true;
  return InvalidArgument(std::move(message));
}

}  // namespace lacuna::server::jinja
