// ProfileSet: all profiles of a server by name. Immutable once loaded; any thread.
//
// The shipped profiles (configs/sparse/*.json) are linked into the binary; a folder of the
// operator's adds to them, and replaces those of equal name.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/status.h"
#include "kvcache/sparse/profile_reader.h"

namespace lacuna::kvcache {

// configs/sparse/*.json as they were when the binary was built, ascending by name.
std::vector<ProfileText> ShippedProfiles();

// Every *.json of the folder but schema.json. kInvalidArgument: "FOLDER: ...".
Result<std::vector<ProfileText>> ReadProfileFolder(const std::string& folder);

class ProfileSet final {
 public:
  struct Loaded;
  // Later texts replace earlier ones of their name. Profiles with errors are left out, and so are
  // those that extend them.
  static Loaded Load(std::span<const ProfileText> texts);

  // Ascending by name.
  const std::vector<SparseProfile>& all() const { return profiles_; }
  const SparseProfile* Find(std::string_view name) const;
  // kInvalidArgument: lists those that exist, the nearest first when one is near.
  Result<const SparseProfile*> Get(std::string_view name) const;

 private:
  std::vector<SparseProfile> profiles_;
};

struct ProfileSet::Loaded final {
  ProfileSet set;
  std::vector<std::string> errors;  // "PROFILE: KEY: got X, need Y"
};

}  // namespace lacuna::kvcache
