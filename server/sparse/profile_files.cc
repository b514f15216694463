#include "server/sparse/profile_files.h"

#include <fstream>
#include <iterator>
#include <utility>
#include <vector>

#include "kvcache/sparse/resolve.h"

namespace lacuna::server {
namespace {

using kvcache::ArtefactKind;

std::string FileOf(const kvcache::SparseProfile& profile, ArtefactKind kind) {
  const kvcache::ArtefactFileOptions& files = profile.artefacts;
  switch (kind) {
    case ArtefactKind::kHeadScores:
      return files.head_scores;
    case ArtefactKind::kPatterns:
      return files.patterns;
    case ArtefactKind::kSpans:
      return files.spans;
    case ArtefactKind::kChannels:
      return files.channels;
    case ArtefactKind::kPlannerLayers:
      return files.planner_layers;
    case ArtefactKind::kPrefillP:
      return files.prefill_p;
    case ArtefactKind::kThresholds:
      return files.thresholds;
  }
  return "";
}

}  // namespace

Result<kvcache::ProfileSet::Loaded> LoadProfiles(const std::string& folder) {
  std::vector<kvcache::ProfileText> texts = kvcache::ShippedProfiles();
  if (!folder.empty()) {
    LACUNA_ASSIGN_OR_RETURN(std::vector<kvcache::ProfileText> more,
                            kvcache::ReadProfileFolder(folder));
    texts.insert(texts.end(), more.begin(), more.end());
  }
  return kvcache::ProfileSet::Load(texts);
}

std::optional<ArtefactText> ReadArtefactText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  return ArtefactText{path, std::string(std::istreambuf_iterator<char>(file), {})};
}

Result<kvcache::SparseArtefacts> ReadNeededArtefacts(const kvcache::SparseProfile& profile,
                                                     const kvcache::AttentionShape& shape,
                                                     const std::optional<ArtefactText>& common) {
  const std::vector<ArtefactKind> needed = kvcache::NeededArtefacts(profile);
  kvcache::SparseArtefacts artefacts;
  if (common && !needed.empty()) {
    const bool container = common->text.find("lacuna-sparse-artefacts") != std::string::npos;
    if (container || needed.size() != 1) {
      LACUNA_ASSIGN_OR_RETURN(artefacts, kvcache::ReadArtefacts(common->text, common->file, shape));
    } else {
      LACUNA_RETURN_IF_ERROR(
          kvcache::ReadArtefact(needed[0], common->text, common->file, shape, artefacts));
    }
  }
  for (const ArtefactKind kind : needed) {
    const std::string path = FileOf(profile, kind);
    if (path.empty()) continue;
    const std::optional<ArtefactText> own = ReadArtefactText(path);
    if (!own) return InvalidArgument(path + ": got no such file, need a readable one");
    LACUNA_RETURN_IF_ERROR(kvcache::ReadArtefact(kind, own->text, path, shape, artefacts));
  }
  return artefacts;
}

}  // namespace lacuna::server
