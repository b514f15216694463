#include "kvcache/sparse/profile_reader.h"

#include <algorithm>

#include "kvcache/sparse/checker.h"

namespace lacuna::kvcache {
namespace {

const BoundSection* FindSection(std::span<const BoundSection> sections, std::string_view name) {
  const auto found = std::ranges::find(sections, name, &BoundSection::name);
  return found == sections.end() ? nullptr : &*found;
}

// Reads the object of section `path` ("" or "decode" or "decode.select"), and those inside it. As
// deep as section names have dots.
void ReadObject(const ConfigJson& object, const std::string& path,
                std::span<const BoundSection> sections, ConfigErrors& errors) {
  const std::string prefix = path.empty() ? "" : path + ".";
  std::vector<std::string_view> nested;
  for (const BoundSection& section : sections) {
    if (section.name.empty() || !section.name.starts_with(prefix)) continue;
    const std::string_view rest = section.name.substr(prefix.size());
    const std::string_view child = rest.substr(0, rest.find('.'));
    if (std::ranges::find(nested, child) == nested.end()) nested.push_back(child);
  }
  const BoundSection* own = FindSection(sections, path);
  ReadFields(
      object, prefix,
      own != nullptr ? std::span<const BoundField>(own->fields) : std::span<const BoundField>(),
      nested, errors);
  for (const std::string_view child : nested) {
    const auto value = object.find(child);
    if (value == object.end()) continue;
    const std::string child_path = prefix + std::string(child);
    if (value->is_object()) {
      ReadObject(*value, child_path, sections, errors);
    } else {
      errors.Add(child_path, ShownJson(*value), "an object");
    }
  }
}

// The string under `key`, or "".
std::string StringAt(const ConfigJson& root, const char* key) {
  if (!root.is_object()) return "";
  const auto found = root.find(key);
  return found != root.end() && found->is_string() ? found->get<std::string>() : "";
}

// Takes the base's keys over. False when there is no such base.
bool Inherit(const ConfigJson& root, const FindBase& find_base, SparseProfile& profile,
             ConfigErrors& errors) {
  const std::string name = StringAt(root, "extends");
  if (name.empty()) return true;
  const SparseProfile* base = find_base(name);
  if (base == nullptr) {
    errors.Add("extends", ShownJson(name), "the name of a sound profile that does not extend this");
    return false;
  }
  profile = *base;
  profile.summary.clear();  // a variant says itself what it does
  profile.departures.clear();
  return true;
}

}  // namespace

std::string BaseName(const ProfileText& text) {
  const Result<ConfigJson> root = ParseJsonText(text.text);
  return root.ok() ? StringAt(*root, "extends") : "";
}

ParsedProfile ParseProfile(const ProfileText& text, const FindBase& find_base) {
  ParsedProfile parsed;
  SparseProfile& profile = parsed.profile;
  ConfigErrors errors(text.name);
  const Result<ConfigJson> root = ParseJsonText(text.text);
  if (!root.ok()) {
    errors.AddLine(root.status().message());
  } else if (!root->is_object()) {
    errors.Add("file", ShownJson(*root), "an object of sections");
  } else if (Inherit(*root, find_base, profile, errors)) {
    ReadObject(*root, "", BindProfile(profile), errors);
    const SparseProfile* base = profile.extends.empty() ? nullptr : find_base(profile.extends);
    if (base != nullptr) {
      profile.departures.insert(profile.departures.begin(), base->departures.begin(),
                                base->departures.end());
    }
    if (profile.name != text.name) {
      errors.Add("name", ShownJson(profile.name), ShownJson(text.name) + ", the file's name");
    }
    if (profile.summary.empty()) errors.Add("summary", "nothing", "one line");
  }
  parsed.errors = errors.lines();
  // Rules across keys speak of values, so they wait until each value is sound.
  if (parsed.errors.empty()) parsed.errors = CheckProfile(profile);
  return parsed;
}

std::string PrintProfile(const SparseProfile& profile) {
  SparseProfile values = profile, defaults;
  values.extends.clear();
  const std::vector<BoundSection> sections = BindProfile(values), standard = BindProfile(defaults);
  ConfigJson root = ConfigJson::object();
  for (size_t s = 0; s < sections.size(); ++s) {
    for (size_t f = 0; f < sections[s].fields.size(); ++f) {
      const BoundField& field = sections[s].fields[f];
      const ConfigJson value = FieldJson(field);
      if (value == FieldJson(standard[s].fields[f])) continue;
      ConfigJson* object = &root;
      for (std::string_view path = sections[s].name; !path.empty();) {
        const size_t dot = path.find('.');
        object = &(*object)[std::string(path.substr(0, dot))];
        path = dot == path.npos ? "" : path.substr(dot + 1);
      }
      (*object)[std::string(field.name)] = value;
    }
  }
  return root.dump(2, ' ', false, ConfigJson::error_handler_t::replace) + "\n";
}

}  // namespace lacuna::kvcache
