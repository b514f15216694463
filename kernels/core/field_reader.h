// Field tables at work: JSON objects and `--set` overrides into plain structs, every error
// collected, and back into commented JSON. The type of the struct is erased here, so that one small
// reader serves every config of the project (the server's sections, load tests, sparse profiles).
//
// Errors have one form: "file: key: got X, need Y". Any thread; nothing throws.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "kernels/core/field_table.h"
#include "kernels/core/json_text.h"

namespace lacuna {

// One key, bound to the member of one struct that must outlive it.
struct BoundField final {
  using Value = std::variant<bool*, int64_t*, double*, std::string*, std::vector<std::string>*,
                             std::vector<int64_t>*>;
  std::string_view name, meaning;
  Value value;
  double min, max;
  std::string_view choices;
};

template <typename Config>
std::vector<BoundField> BindFields(const std::vector<Field<Config>>& fields, Config& config) {
  std::vector<BoundField> bound;
  bound.reserve(fields.size());
  for (const Field<Config>& field : fields) {
    bound.push_back(
        {field.name, field.meaning,
         std::visit([&config](auto member) -> BoundField::Value { return &(config.*member); },
                    field.member),
         field.min, field.max, field.choices});
  }
  return bound;
}

struct BoundSection final {
  std::string_view name, meaning;
  std::vector<BoundField> fields;
};

// The errors of one source (a file, or "--set"), in the order they were found.
class ConfigErrors final {
 public:
  explicit ConfigErrors(std::string source) : source_(std::move(source)) {}
  void Add(std::string_view key, std::string_view got, std::string_view need);
  void AddLine(std::string_view text);  // "source: text"
  const std::vector<std::string>& lines() const { return lines_; }

 private:
  std::string source_;
  std::vector<std::string> lines_;
};

// Sets the field from a JSON value; on an error the field keeps its value.
void AssignField(const ConfigJson& value, const std::string& key, const BoundField& field,
                 ConfigErrors& errors);

// Reads the keys of `object` into `fields`. `prefix` ("engine.") precedes each key in errors;
// `nested` are further keys that the caller reads itself.
void ReadFields(const ConfigJson& object, const std::string& prefix,
                std::span<const BoundField> fields, std::span<const std::string_view> nested,
                ConfigErrors& errors);

// Reads a whole file of sections, each an object of fields.
void ReadSections(const ConfigJson& root, std::span<const BoundSection> sections,
                  ConfigErrors& errors);

// Applies one "section.key=value". Lists are comma-separated.
void ApplyOverride(std::string_view text, std::span<const BoundSection> sections,
                   ConfigErrors& errors);

// Commented JSON of the current values; `defaults` holds the same sections over default-constructed
// structs, and shows beside a value what it would have been.
std::string PrintSections(std::span<const BoundSection> sections,
                          std::span<const BoundSection> defaults);

// The current value.
ConfigJson FieldJson(const BoundField& field);

// One line, escaped and short, whatever the value is.
std::string ShownJson(const ConfigJson& value);

// What a field accepts: "a whole number from 1 to 8", "true or false", "one of auto, cpu, cuda".
std::string NeedText(const BoundField& field);

// The candidate with the smallest edit distance to `word`, or "" when none is near.
std::string_view NearestWord(std::string_view word, std::span<const std::string_view> candidates);

}  // namespace lacuna
