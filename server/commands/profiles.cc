#include "server/commands/profiles.h"

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <optional>

#include "engine/model/load_model.h"
#include "kvcache/sparse/profile_pages.h"
#include "kvcache/sparse/resolve.h"
#include "server/commands/served_model.h"

namespace lacuna::server {
namespace {

using kvcache::ArtefactKind;

// A file that `lacuna calibrate` writes into a model's folder.
constexpr const char* kArtefactsFile = "lacuna-sparse.json";

bool TellErrors(const std::vector<std::string>& errors, std::ostream& err) {
  for (const std::string& error : errors) err << error << "\n";
  return !errors.empty();
}

int Fail(const Status& status, std::ostream& err) {
  err << "lacuna profiles: " << status.message() << "\n";
  return 2;
}

Result<kvcache::ProfileSet::Loaded> LoadProfiles(const std::string& folder) {
  std::vector<kvcache::ProfileText> texts = kvcache::ShippedProfiles();
  if (!folder.empty()) {
    LACUNA_ASSIGN_OR_RETURN(std::vector<kvcache::ProfileText> more,
                            kvcache::ReadProfileFolder(folder));
    texts.insert(texts.end(), more.begin(), more.end());
  }
  return kvcache::ProfileSet::Load(texts);
}

Result<kvcache::AttentionShape> ReadAttentionShape(const std::string& model, int page_tokens) {
  engine::ModelConfig config;
  if (model.empty()) {
    LACUNA_ASSIGN_OR_RETURN(std::unique_ptr<engine::Folder> folder, OpenModelFolder(""));
    LACUNA_ASSIGN_OR_RETURN(std::unique_ptr<engine::MappedFile> file,
                            folder->Map("config.json", engine::kJsonFileBytesMax));
    LACUNA_ASSIGN_OR_RETURN(config, engine::ParseModelConfig(file->text(), ""));
  } else {
    LACUNA_ASSIGN_OR_RETURN(config, engine::ReadShape(model));
  }
  return kvcache::AttentionShape{.layers = static_cast<int32_t>(config.layers),
                                 .q_heads = static_cast<int32_t>(config.q_heads),
                                 .kv_heads = static_cast<int32_t>(config.kv_heads),
                                 .head_dim = static_cast<int32_t>(config.head_dim),
                                 .page_tokens = page_tokens,
                                 .layer_window_tokens = config.layer_window};
}

std::optional<std::string> FileText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

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

// The tables that the profile needs, each from the file it names, else from --artefacts, else from
// the model's folder. One that is nowhere stays absent, which ResolvePlan reports.
Result<kvcache::SparseArtefacts> ReadNeeded(const ShowProfileOptions& options,
                                            const kvcache::SparseProfile& profile,
                                            const kvcache::AttentionShape& shape) {
  kvcache::SparseArtefacts artefacts;
  std::string path = options.artefacts;
  if (path.empty() && !options.model.empty()) path = options.model + "/" + kArtefactsFile;
  if (const auto text = FileText(path)) {
    const std::vector<ArtefactKind> needed = kvcache::NeededArtefacts(profile);
    const bool container = text->find("lacuna-sparse-artefacts") != std::string::npos;
    if (container || needed.size() != 1) {
      LACUNA_ASSIGN_OR_RETURN(artefacts, kvcache::ReadArtefacts(*text, path, shape));
    } else {
      LACUNA_RETURN_IF_ERROR(kvcache::ReadArtefact(needed[0], *text, path, shape, artefacts));
    }
  } else if (!options.artefacts.empty()) {
    return InvalidArgument(path + ": got no such file, need a readable one");
  }
  for (const ArtefactKind kind : kvcache::NeededArtefacts(profile)) {
    const std::string file = FileOf(profile, kind);
    if (file.empty()) continue;
    const auto text = FileText(file);
    if (!text) return InvalidArgument(file + ": got no such file, need a readable one");
    LACUNA_RETURN_IF_ERROR(kvcache::ReadArtefact(kind, *text, file, shape, artefacts));
  }
  return artefacts;
}

Result<std::vector<kvcache::DialValue>> ParseDials(const std::vector<std::string>& texts) {
  std::vector<kvcache::DialValue> dials;
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    char* end = nullptr;
    const std::string number = equals == text.npos ? "" : text.substr(equals + 1);
    const double value = std::strtod(number.c_str(), &end);
    if (number.empty() || *end != '\0') {
      return InvalidArgument("--set: got " + ShownJson(text) + ", need dial=number");
    }
    dials.push_back({text.substr(0, equals), value});
  }
  return dials;
}

}  // namespace

int RunProfiles(const ProfilesOptions& options, std::ostream& out, std::ostream& err) {
  const Result<kvcache::ProfileSet::Loaded> loaded = LoadProfiles(options.folder);
  if (!loaded.ok()) return Fail(loaded.status(), err);
  if (TellErrors(loaded->errors, err)) return 2;
  if (options.schema) {
    out << kvcache::ProfileSchema();
  } else if (options.reference) {
    out << kvcache::ProfileReference(loaded->set.all());
  } else {
    out << kvcache::ListProfiles(loaded->set.all());
  }
  return 0;
}

int RunShowProfile(const ShowProfileOptions& options, std::ostream& out, std::ostream& err) {
  const Result<kvcache::ProfileSet::Loaded> loaded = LoadProfiles(options.folder);
  if (!loaded.ok()) return Fail(loaded.status(), err);
  const Result<const kvcache::SparseProfile*> found = loaded->set.Get(options.name);
  if (!found.ok()) {
    TellErrors(loaded->errors, err);  // perhaps why it is missing
    return Fail(found.status(), err);
  }
  const Result<std::vector<kvcache::DialValue>> dials = ParseDials(options.dials);
  if (!dials.ok()) return Fail(dials.status(), err);
  const kvcache::DialedProfile dialed = kvcache::ApplyDials(**found, *dials);
  if (TellErrors(dialed.errors, err)) return 2;
  const Result<kvcache::AttentionShape> shape =
      ReadAttentionShape(options.model, options.page_tokens);
  if (!shape.ok()) return Fail(shape.status(), err);
  const Result<kvcache::SparseArtefacts> artefacts = ReadNeeded(options, dialed.profile, *shape);
  if (!artefacts.ok()) return Fail(artefacts.status(), err);

  out << kvcache::DescribeProfile(dialed.profile) << "\n";
  const kvcache::ResolvedPlan resolved = kvcache::ResolvePlan(dialed.profile, *shape, *artefacts);
  if (TellErrors(resolved.errors, err)) return 2;
  out << kvcache::DescribePlan(*resolved.plan);
  return 0;
}

}  // namespace lacuna::server
