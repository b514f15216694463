#include "server/text/jinja_value.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace lacuna::server::jinja {
namespace {

Status TooDeep() { return {StatusCode::kTooLong, "values nested too deep"}; }

// Keys are compared without a budget: a tuple as a key is refused, so each is a scalar.
bool SameKey(const Value& a, const Value& b) {
  if (a.IsNumber() && b.IsNumber()) {
    int64_t x = 0, y = 0;
    if (a.AsInt(x) && b.AsInt(y)) return x == y;
    return a.AsDouble() == b.AsDouble();
  }
  if (a.AsString() && b.AsString()) return *a.AsString() == *b.AsString();
  return a.Is<None>() && b.Is<None>();
}

}  // namespace

Status Budget::Charge(int64_t steps) {
  if (steps > steps_left_) {
    steps_left_ = 0;
    return {StatusCode::kTooLong, "the template takes too many steps"};
  }
  steps_left_ -= steps;
  return OkStatus();
}

Status Budget::CheckString(size_t bytes) const {
  if (bytes <= string_bytes_max()) return OkStatus();
  return {StatusCode::kTooLong, "text longer than " + std::to_string(string_bytes_max_) + " bytes"};
}

Result<DictPtr> Dict::Make(std::vector<Entry> entries) {
  auto dict = std::make_shared<Dict>();
  dict->entries_.reserve(entries.size());
  for (Entry& entry : entries) {
    const Value& key = entry.first;
    if (!key.AsString() && !key.IsNumber() && !key.Is<None>()) {
      return InvalidArgument("a " + std::string(key.TypeName()) + " cannot be the key of a dict");
    }
    dict->height_ = std::max(dict->height_, entry.second.height() + 1);
    if (const Value* found = dict->Find(key)) {
      auto at = std::find_if(dict->entries_.begin(), dict->entries_.end(),
                             [&](const Entry& e) { return &e.second == found; });
      at->second = std::move(entry.second);
      continue;
    }
    dict->entries_.push_back(std::move(entry));
    if (const std::string* text = dict->entries_.back().first.AsString()) {
      dict->strings_.emplace(*text, dict->entries_.size() - 1);
    }
  }
  if (dict->height_ > kHeightMax) return TooDeep();
  return DictPtr(std::move(dict));
}

const Value* Dict::Find(std::string_view key) const {
  const auto at = strings_.find(key);
  return at == strings_.end() ? nullptr : &entries_[at->second].second;
}

const Value* Dict::Find(const Value& key) const {
  if (const std::string* text = key.AsString()) return Find(std::string_view(*text));
  // Keys that are not strings come from literals of the template only, so there are few.
  for (const Entry& entry : entries_) {
    if (SameKey(entry.first, key)) return &entry.second;
  }
  return nullptr;
}

Result<Value> Value::Sequence(std::vector<Value> items, SequenceKind kind) {
  auto list = std::make_shared<List>();
  for (const Value& item : items) list->height = std::max(list->height, item.height() + 1);
  if (list->height > kHeightMax) return TooDeep();
  list->items = std::move(items);
  list->kind = kind;
  return Value(ListPtr(std::move(list)));
}

Result<Value> Value::FromJson(const nlohmann::ordered_json& json, int depth) {
  if (depth > kHeightMax) return TooDeep();
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::boolean:
      return Value(json.get<bool>());
    case nlohmann::ordered_json::value_t::number_integer:
      return Value(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_unsigned:
      if (json.get<uint64_t>() > INT64_MAX) return Value(json.get<double>());
      return Value(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_float:
      return Value(json.get<double>());
    case nlohmann::ordered_json::value_t::string:
      return String(json.get_ref<const std::string&>());
    case nlohmann::ordered_json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const auto& item : json) {
        LACUNA_ASSIGN_OR_RETURN(Value value, FromJson(item, depth + 1));
        items.push_back(std::move(value));
      }
      return Sequence(std::move(items));
    }
    case nlohmann::ordered_json::value_t::object: {
      std::vector<Dict::Entry> entries;
      entries.reserve(json.size());
      for (const auto& [key, item] : json.items()) {
        LACUNA_ASSIGN_OR_RETURN(Value value, FromJson(item, depth + 1));
        entries.emplace_back(String(key), std::move(value));
      }
      LACUNA_ASSIGN_OR_RETURN(DictPtr dict, Dict::Make(std::move(entries)));
      return Value(std::move(dict));
    }
    default:
      return Value(None{});
  }
}

const int64_t* Value::AsInt(int64_t& storage) const {
  if (const bool* flag = As<bool>()) {
    storage = *flag ? 1 : 0;
    return &storage;
  }
  if (const int64_t* number = As<int64_t>()) {
    storage = *number;
    return &storage;
  }
  return nullptr;
}

double Value::AsDouble() const {
  if (const double* number = As<double>()) return *number;
  int64_t number = 0;
  return AsInt(number) ? static_cast<double>(number) : 0.0;
}

int Value::height() const {
  if (const List* list = AsList()) return list->height;
  if (const Dict* dict = AsDict()) return dict->height();
  if (const auto* loop = As<std::shared_ptr<Loop>>()) return (*loop)->list->height + 1;
  if (const auto* callable = As<std::shared_ptr<const Callable>>(); callable && (*callable)->self) {
    return (*callable)->self->height() + 1;
  }
  return 0;  // a Namespace too: freeing it never recurses, since the Runtime holds each
}

bool Value::Truthy() const {
  if (Is<Undefined>() || Is<None>()) return false;
  if (IsNumber()) return AsDouble() != 0.0;
  if (const std::string* text = AsString()) return !text->empty();
  if (const List* list = AsList()) {
    return list->kind == SequenceKind::kStream || !list->items.empty();
  }
  if (const Dict* dict = AsDict()) return !dict->entries().empty();
  return true;
}

std::string_view Value::TypeName() const {
  constexpr std::string_view kNames[] = {"Undefined", "NoneType",    "bool",    "int",
                                         "float",     "str",         "list",    "dict",
                                         "Namespace", "LoopContext", "function"};
  if (const List* list = AsList(); list != nullptr && list->kind == SequenceKind::kTuple) {
    return "tuple";
  }
  return kNames[data_.index()];
}

Result<bool> Equal(const Value& a, const Value& b, Budget& budget) {
  LACUNA_RETURN_IF_ERROR(budget.Charge(1));
  if (a.IsNumber() || a.Is<None>()) return SameKey(a, b);
  if (a.AsString() && b.AsString()) {
    const std::string& x = *a.AsString();
    LACUNA_RETURN_IF_ERROR(budget.ChargeBytes(x.size()));
    return x == *b.AsString();
  }
  if (const List* x = a.AsList(); x != nullptr && b.AsList() != nullptr) {
    const List* y = b.AsList();
    const bool tuples = x->kind == SequenceKind::kTuple;
    if (tuples != (y->kind == SequenceKind::kTuple) || x->items.size() != y->items.size()) {
      return false;
    }
    for (size_t i = 0; i < x->items.size(); ++i) {
      LACUNA_ASSIGN_OR_RETURN(const bool same, Equal(x->items[i], y->items[i], budget));
      if (!same) return false;
    }
    return true;
  }
  if (const Dict* x = a.AsDict(); x != nullptr && b.AsDict() != nullptr) {
    const Dict* y = b.AsDict();
    if (x->entries().size() != y->entries().size()) return false;
    for (const auto& [key, value] : x->entries()) {
      const Value* other = y->Find(key);
      if (other == nullptr) return false;
      LACUNA_ASSIGN_OR_RETURN(const bool same, Equal(value, *other, budget));
      if (!same) return false;
    }
    return true;
  }
  if (a.Is<Undefined>()) return b.Is<Undefined>();
  const auto same_pointer = [&]<typename T>(const T* x, const T* y) { return x && y && *x == *y; };
  return same_pointer(a.As<std::shared_ptr<Namespace>>(), b.As<std::shared_ptr<Namespace>>()) ||
         same_pointer(a.As<std::shared_ptr<Loop>>(), b.As<std::shared_ptr<Loop>>()) ||
         same_pointer(a.As<std::shared_ptr<const Callable>>(),
                      b.As<std::shared_ptr<const Callable>>());
}

Result<bool> Less(const Value& a, const Value& b, Budget& budget) {
  LACUNA_RETURN_IF_ERROR(budget.Charge(1));
  if (a.IsNumber() && b.IsNumber()) {
    int64_t x = 0, y = 0;
    if (a.AsInt(x) && b.AsInt(y)) return x < y;
    if (std::isnan(a.AsDouble())) return false;
    return std::isnan(b.AsDouble()) || a.AsDouble() < b.AsDouble();
  }
  if (a.AsString() && b.AsString()) {
    LACUNA_RETURN_IF_ERROR(budget.ChargeBytes(a.AsString()->size()));
    return *a.AsString() < *b.AsString();
  }
  return InvalidArgument("cannot order a " + std::string(a.TypeName()) + " and a " +
                         std::string(b.TypeName()));
}

}  // namespace lacuna::server::jinja
