#include "kvcache/sparse/profile_set.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <system_error>

namespace lacuna::kvcache {
namespace {

constexpr int64_t kProfileBytesMax = 1 << 16;
constexpr size_t kProfilesMax = 512;

// The table that shipped_profiles.S makes.
struct ShippedProfile final {
  const char* name;
  const char* begin;
  const char* end;
};
extern "C" const ShippedProfile lacuna_profiles_begin[];
extern "C" const ShippedProfile lacuna_profiles_end[];

}  // namespace

std::vector<ProfileText> ShippedProfiles() {
  std::vector<ProfileText> texts;
  for (const ShippedProfile* one = lacuna_profiles_begin; one != lacuna_profiles_end; ++one) {
    texts.push_back({one->name, std::string(one->begin, one->end)});
  }
  std::ranges::sort(texts, {}, &ProfileText::name);
  return texts;
}

Result<std::vector<ProfileText>> ReadProfileFolder(const std::string& folder) {
  std::error_code error;
  std::vector<ProfileText> texts;
  std::filesystem::directory_iterator files(folder, error);
  for (; !error && files != std::filesystem::directory_iterator(); files.increment(error)) {
    const std::filesystem::path& path = files->path();
    if (path.extension() != ".json" || path.filename() == "schema.json") continue;
    std::string text(kProfileBytesMax + 1, '\0');
    std::ifstream file(path, std::ios::binary);
    file.read(text.data(), kProfileBytesMax + 1);
    text.resize(static_cast<size_t>(file.gcount()));
    if (text.empty() || text.size() > kProfileBytesMax || texts.size() == kProfilesMax) {
      return InvalidArgument(path.string() + ": got a file that cannot be taken, need at most " +
                             std::to_string(kProfilesMax) + " readable files of at most " +
                             std::to_string(kProfileBytesMax) + " bytes");
    }
    texts.push_back({path.stem().string(), std::move(text)});
  }
  if (error) return InvalidArgument(folder + ": got no such folder, need one of profiles");
  std::ranges::sort(texts, {}, &ProfileText::name);
  return texts;
}

ProfileSet::Loaded ProfileSet::Load(std::span<const ProfileText> texts) {
  std::map<std::string, const ProfileText*, std::less<>> left;
  for (const ProfileText& text : texts) left[text.name] = &text;
  std::map<std::string, SparseProfile, std::less<>> sound;
  const FindBase find_base = [&sound](std::string_view name) {
    const auto found = sound.find(name);
    return found == sound.end() ? nullptr : &found->second;
  };
  Loaded loaded;
  // Bases first. Once none is left whose base is known, the rest extend nothing sound.
  for (bool stuck = false; !left.empty();) {
    bool any = false;
    for (auto it = left.begin(); it != left.end();) {
      const std::string base = BaseName(*it->second);
      if (!stuck && !base.empty() && find_base(base) == nullptr) {
        ++it;
        continue;
      }
      ParsedProfile parsed = ParseProfile(*it->second, find_base);
      loaded.errors.insert(loaded.errors.end(), parsed.errors.begin(), parsed.errors.end());
      if (parsed.errors.empty()) sound.emplace(it->first, std::move(parsed.profile));
      it = left.erase(it);
      any = true;
    }
    stuck = !any;
  }
  for (auto& [name, profile] : sound) loaded.set.profiles_.push_back(std::move(profile));
  return loaded;
}

const SparseProfile* ProfileSet::Find(std::string_view name) const {
  const auto found = std::ranges::find(profiles_, name, &SparseProfile::name);
  return found == profiles_.end() ? nullptr : &*found;
}

Result<const SparseProfile*> ProfileSet::Get(std::string_view name) const {
  if (const SparseProfile* found = Find(name)) return found;
  std::vector<std::string_view> names;
  std::ranges::transform(profiles_, std::back_inserter(names), &SparseProfile::name);
  const std::string_view nearest = NearestWord(name, names);
  std::string need = nearest.empty() ? "" : std::string(nearest) + " (the nearest), or ";
  need += "one of ";
  for (size_t i = 0; i < names.size(); ++i) need.append(i == 0 ? "" : ", ").append(names[i]);
  return InvalidArgument("profile: got " + ShownJson(std::string(name)) + ", need " + need);
}

}  // namespace lacuna::kvcache
