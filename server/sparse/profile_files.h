// Files of the sparse runtime: profiles, and what was measured of a model. Reads only; any thread.
#pragma once

#include <optional>
#include <string>

#include "kernels/core/status.h"
#include "kvcache/sparse/artefacts.h"
#include "kvcache/sparse/profile_set.h"

namespace lacuna::server {

// `lacuna calibrate` writes it into a model's folder.
inline constexpr const char* kArtefactsFile = "lacuna-sparse.json";

// The shipped profiles and those of `folder`, if it is not empty.
Result<kvcache::ProfileSet::Loaded> LoadProfiles(const std::string& folder);

struct ArtefactText final {
  std::string file;  // for messages
  std::string text;
};
// Nothing when there is no such file.
std::optional<ArtefactText> ReadArtefactText(const std::string& path);

// The tables that the profile needs: each from the file that the profile names, else from `common`
// (the container, or a file of the one kind that is needed). One that is nowhere stays absent,
// which ResolvePlan reports.
Result<kvcache::SparseArtefacts> ReadNeededArtefacts(const kvcache::SparseProfile& profile,
                                                     const kvcache::AttentionShape& shape,
                                                     const std::optional<ArtefactText>& common);

}  // namespace lacuna::server
