#include "kernels/core/field_reader.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>

namespace lacuna {
namespace {

constexpr size_t kShownBytesMax = 60;
constexpr size_t kNumbersMax = 1024;  // of a list

std::vector<std::string_view> SplitText(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(separator, at), text.size());
    parts.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

std::string JoinChoices(std::string_view choices, std::string_view separator) {
  std::string joined;
  for (const std::string_view choice : SplitText(choices, '|')) {
    joined.append(joined.empty() ? "" : separator).append(choice);
  }
  return joined;
}

bool IsChoice(std::string_view value, std::string_view choices) {
  if (choices.empty()) return true;
  const std::vector<std::string_view> all = SplitText(choices, '|');
  return std::find(all.begin(), all.end(), value) != all.end();
}

bool InRange(double value, const BoundField& field) {
  return value >= field.min && value <= field.max;
}

// " of 1 to 8 bytes", " of at least 1 items"; empty without bounds.
std::string LengthText(const BoundField& field, std::string_view unit) {
  if (std::isinf(field.min) && std::isinf(field.max)) return "";
  std::string range = NeedRange(field.min, field.max);
  range.erase(0, std::string_view("a number").size());
  if (range.starts_with(" from")) range.replace(0, 5, " of");
  return range + " " + std::string(unit);
}

// The value as the field's type, or nothing when the JSON is of another type or out of bounds.
bool Assign(const ConfigJson& json, const BoundField&, bool* out) {
  if (!json.is_boolean()) return false;
  *out = json.get<bool>();
  return true;
}

bool Assign(const ConfigJson& json, const BoundField& field, int64_t* out) {
  if (!json.is_number_integer()) return false;
  if (json.is_number_unsigned() &&
      json.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return false;
  }
  const int64_t value = json.get<int64_t>();
  if (!InRange(static_cast<double>(value), field)) return false;
  *out = value;
  return true;
}

bool Assign(const ConfigJson& json, const BoundField& field, double* out) {
  if (!json.is_number()) return false;
  const double value = json.get<double>();
  if (!std::isfinite(value) || !InRange(value, field)) return false;
  *out = value;
  return true;
}

bool Assign(const ConfigJson& json, const BoundField& field, std::string* out) {
  if (!json.is_string()) return false;
  const std::string& value = json.get_ref<const std::string&>();
  if (!IsChoice(value, field.choices) || !InRange(static_cast<double>(value.size()), field)) {
    return false;
  }
  *out = value;
  return true;
}

bool Assign(const ConfigJson& json, const BoundField& field, std::vector<std::string>* out) {
  if (!json.is_array() || !InRange(static_cast<double>(json.size()), field)) return false;
  std::vector<std::string> values;
  for (const ConfigJson& item : json) {
    if (!item.is_string()) return false;
    values.push_back(item.get<std::string>());
    if (!IsChoice(values.back(), field.choices)) return false;
  }
  *out = std::move(values);
  return true;
}

bool Assign(const ConfigJson& json, const BoundField& field, std::vector<int64_t>* out) {
  if (!json.is_array() || json.size() > kNumbersMax) return false;
  std::vector<int64_t> values(json.size());
  for (size_t i = 0; i < json.size(); ++i) {
    if (!Assign(json[i], field, &values[i])) return false;
  }
  *out = std::move(values);
  return true;
}

// The text of an override as the JSON that a file would hold; text that does not fit the type
// stays a string, and AssignField then says what is needed.
ConfigJson OverrideJson(std::string_view text, const BoundField& field) {
  if (std::holds_alternative<std::string*>(field.value)) return std::string(text);
  if (std::holds_alternative<std::vector<std::string>*>(field.value)) {
    ConfigJson list = ConfigJson::array();
    if (text.empty()) return list;
    for (const std::string_view item : SplitText(text, ',')) list.push_back(std::string(item));
    return list;
  }
  const bool numbers = std::holds_alternative<std::vector<int64_t>*>(field.value);
  const std::string literal = numbers ? "[" + std::string(text) + "]" : std::string(text);
  ConfigJson json = ConfigJson::parse(literal, nullptr, false);
  if (numbers && json.is_array()) return json;
  const bool scalar = !json.is_discarded() && json.is_primitive() && !json.is_string();
  return scalar ? json : ConfigJson(std::string(text));
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substitute = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({substitute, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

// `elsewhere`: where the same key does exist, if not here.
void AddUnknown(const std::string& prefix, const std::string& key,
                std::span<const std::string_view> known, const std::string& elsewhere,
                ConfigErrors& errors) {
  const std::string_view nearest = NearestWord(key, known);
  std::string need;
  if (!nearest.empty()) {
    need = prefix + std::string(nearest) + " (the nearest known key)";
  } else if (!elsewhere.empty()) {
    need = elsewhere + " (it lives there)";
  } else {
    for (const std::string_view name : known) {
      need += (need.empty() ? "one of " : ", ") + std::string(name);
    }
  }
  errors.Add(prefix + key, "an unknown key", need);
}

std::string FindElsewhere(std::string_view key, std::span<const BoundSection> sections) {
  for (const BoundSection& section : sections) {
    for (const BoundField& field : section.fields) {
      if (field.name == key) return std::string(section.name) + "." + std::string(key);
    }
  }
  return "";
}

// " [1 to 8]", " [auto | cpu]"; empty where the type says it all.
std::string BoundsNote(const BoundField& field) {
  if (!field.choices.empty()) {
    return " [" + JoinChoices(field.choices, " | ") + "]";
  }
  std::string range = NeedRange(field.min, field.max).substr(std::string_view("a number").size());
  if (range.empty()) return "";
  range.erase(0, range.starts_with(" from ") ? 6 : 4);  // " of at least 1"
  if (std::holds_alternative<std::string*>(field.value)) range += " bytes";
  if (std::holds_alternative<std::vector<std::string>*>(field.value)) range += " items";
  if (std::holds_alternative<std::vector<int64_t>*>(field.value)) range += " each";
  return " [" + range + "]";
}

std::vector<std::string_view> Names(std::span<const BoundField> fields) {
  std::vector<std::string_view> names;
  for (const BoundField& field : fields) names.push_back(field.name);
  return names;
}

std::vector<std::string_view> Names(std::span<const BoundSection> sections) {
  std::vector<std::string_view> names;
  for (const BoundSection& section : sections) names.push_back(section.name);
  return names;
}

template <typename Named>
const Named* FindNamed(std::span<const Named> all, std::string_view name) {
  const auto found =
      std::find_if(all.begin(), all.end(), [name](const Named& one) { return one.name == name; });
  return found == all.end() ? nullptr : &*found;
}

void AppendComment(std::string& out, std::string_view indent, std::string_view text) {
  constexpr size_t kColumns = 100;
  std::string line;
  for (const std::string_view word : SplitText(text, ' ')) {
    if (!line.empty() && indent.size() + 3 + line.size() + 1 + word.size() > kColumns) {
      out.append(indent).append("// ").append(line).append("\n");
      line.clear();
    }
    line.append(line.empty() ? "" : " ").append(word);
  }
  out.append(indent).append("// ").append(line).append("\n");
}

}  // namespace

ConfigJson FieldJson(const BoundField& field) {
  return std::visit([](const auto* value) { return ConfigJson(*value); }, field.value);
}

std::string ShownJson(const ConfigJson& value) {
  std::string text = value.dump(-1, ' ', true, ConfigJson::error_handler_t::replace);
  if (text.size() > kShownBytesMax) text = text.substr(0, kShownBytesMax) + "...";
  return text;
}

void ConfigErrors::Add(std::string_view key, std::string_view got, std::string_view need) {
  std::string shown(key.substr(0, kShownBytesMax));
  std::replace_if(
      shown.begin(), shown.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
  AddLine(shown + ": got " + std::string(got) + ", need " + std::string(need));
}

void ConfigErrors::AddLine(std::string_view text) {
  lines_.push_back(source_ + ": " + std::string(text));
}

std::string NeedText(const BoundField& field) {
  if (std::holds_alternative<bool*>(field.value)) return "true or false";
  if (std::holds_alternative<int64_t*>(field.value)) {
    return "a whole " + NeedRange(field.min, field.max).substr(2);
  }
  if (std::holds_alternative<double*>(field.value)) return NeedRange(field.min, field.max);
  if (std::holds_alternative<std::string*>(field.value)) {
    if (!field.choices.empty()) return "one of " + JoinChoices(field.choices, ", ");
    return "a string" + LengthText(field, "bytes");
  }
  if (std::holds_alternative<std::vector<int64_t>*>(field.value)) {
    return "a list of whole numbers" +
           NeedRange(field.min, field.max).substr(std::string_view("a number").size());
  }
  const std::string items =
      field.choices.empty() ? "" : ", each one of " + JoinChoices(field.choices, ", ");
  return "a list of strings" + LengthText(field, "items") + items;
}

std::string_view NearestWord(std::string_view word, std::span<const std::string_view> candidates) {
  constexpr size_t kWordBytesMax = 64;  // longer ones are no typing errors
  if (word.size() > kWordBytesMax) return "";
  std::string_view best;
  size_t best_distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string_view candidate : candidates) {
    const size_t distance = EditDistance(word, candidate);
    if (distance < best_distance && distance < candidate.size()) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

void AssignField(const ConfigJson& value, const std::string& key, const BoundField& field,
                 ConfigErrors& errors) {
  const bool assigned =
      std::visit([&](auto* out) { return Assign(value, field, out); }, field.value);
  if (!assigned) errors.Add(key, ShownJson(value), NeedText(field));
}

void ReadFields(const ConfigJson& object, const std::string& prefix,
                std::span<const BoundField> fields, std::span<const std::string_view> nested,
                ConfigErrors& errors) {
  for (const auto& [key, value] : object.items()) {
    if (const BoundField* field = FindNamed(fields, key)) {
      AssignField(value, prefix + key, *field, errors);
    } else if (std::find(nested.begin(), nested.end(), key) == nested.end()) {
      std::vector<std::string_view> known = Names(fields);
      known.insert(known.end(), nested.begin(), nested.end());
      AddUnknown(prefix, key, known, "", errors);
    }
  }
}

void ReadSections(const ConfigJson& root, std::span<const BoundSection> sections,
                  ConfigErrors& errors) {
  if (!root.is_object()) {
    errors.Add("file", ShownJson(root), "an object of sections");
    return;
  }
  for (const auto& [name, value] : root.items()) {
    const BoundSection* section = FindNamed(sections, name);
    if (section == nullptr) {
      AddUnknown("", name, Names(sections), FindElsewhere(name, sections), errors);
      continue;
    }
    if (!value.is_object()) {
      errors.Add(name, ShownJson(value), "an object");
      continue;
    }
    const std::span<const BoundField> fields = section->fields;
    for (const auto& [key, item] : value.items()) {
      if (const BoundField* field = FindNamed(fields, key)) {
        AssignField(item, name + "." + key, *field, errors);
      } else {
        AddUnknown(name + ".", key, Names(fields), FindElsewhere(key, sections), errors);
      }
    }
  }
}

void ApplyOverride(std::string_view text, std::span<const BoundSection> sections,
                   ConfigErrors& errors) {
  const size_t equals = text.find('=');
  const size_t dot = text.substr(0, equals).find('.');
  if (equals == std::string_view::npos || dot == std::string_view::npos) {
    errors.Add("--set", ShownJson(std::string(text)), "section.key=value");
    return;
  }
  const std::string section_name(text.substr(0, dot));
  const std::string key(text.substr(dot + 1, equals - dot - 1));
  const BoundSection* section = FindNamed(sections, section_name);
  if (section == nullptr) {
    AddUnknown("", section_name, Names(sections), FindElsewhere(key, sections), errors);
    return;
  }
  const std::span<const BoundField> fields = section->fields;
  const BoundField* field = FindNamed(fields, key);
  if (field == nullptr) {
    AddUnknown(section_name + ".", key, Names(fields), FindElsewhere(key, sections), errors);
    return;
  }
  AssignField(OverrideJson(text.substr(equals + 1), *field), section_name + "." + key, *field,
              errors);
}

std::string PrintSections(std::span<const BoundSection> sections,
                          std::span<const BoundSection> defaults) {
  std::string out = "{\n";
  for (size_t s = 0; s < sections.size(); ++s) {
    const BoundSection& section = sections[s];
    AppendComment(out, "  ", section.meaning);
    out += "  \"" + std::string(section.name) + "\": {\n";
    for (size_t f = 0; f < section.fields.size(); ++f) {
      const BoundField& field = section.fields[f];
      const ConfigJson value = FieldJson(field), standard = FieldJson(defaults[s].fields[f]);
      AppendComment(out, "    ",
                    std::string(field.meaning) + BoundsNote(field) +
                        (value == standard ? "" : " Default: " + standard.dump() + "."));
      out += "    \"" + std::string(field.name) +
             "\": " + FieldJson(field).dump(-1, ' ', false, ConfigJson::error_handler_t::replace) +
             (f + 1 < section.fields.size() ? ",\n" : "\n");
    }
    out += s + 1 < sections.size() ? "  },\n\n" : "  }\n";
  }
  return out + "}\n";
}

}  // namespace lacuna
