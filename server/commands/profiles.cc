#include "server/commands/profiles.h"

#include <cstdlib>
#include <optional>

#include "engine/model/load_model.h"
#include "kvcache/sparse/profile_pages.h"
#include "kvcache/sparse/resolve.h"
#include "server/commands/served_model.h"
#include "server/sparse/profile_files.h"

namespace lacuna::server {
namespace {

bool TellErrors(const std::vector<std::string>& errors, std::ostream& err) {
  for (const std::string& error : errors) err << error << "\n";
  return !errors.empty();
}

int Fail(const Status& status, std::ostream& err) {
  err << "lacuna profiles: " << status.message() << "\n";
  return 2;
}

Result<kvcache::AttentionShape> ReadAttentionShape(const std::string& model, int page_tokens) {
  engine::ModelConfig config;
  if (model.empty()) {
    LACUNA_ASSIGN_OR_RETURN(std::unique_ptr<engine::Folder> folder, OpenModelFolder(""));
    LACUNA_ASSIGN_OR_RETURN(config, FolderShape(*folder));
  } else {
    LACUNA_ASSIGN_OR_RETURN(config, engine::ReadShape(model));
  }
  return AttentionShapeOf(config, page_tokens);
}

// Of --artefacts, else of the model's folder, else of the embedded model.
Result<std::optional<ArtefactText>> CommonArtefacts(const ShowProfileOptions& options) {
  if (!options.artefacts.empty()) {
    std::optional<ArtefactText> text = ReadArtefactText(options.artefacts);
    if (!text) {
      return InvalidArgument(options.artefacts + ": got no such file, need a readable one");
    }
    return text;
  }
  if (!options.model.empty()) return ReadArtefactText(options.model + "/" + kArtefactsFile);
  LACUNA_ASSIGN_OR_RETURN(std::unique_ptr<engine::Folder> folder, OpenModelFolder(""));
  return FolderArtefacts(*folder);
}

}  // namespace

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
  const Result<std::optional<ArtefactText>> common = CommonArtefacts(options);
  if (!common.ok()) return Fail(common.status(), err);
  const auto artefacts = ReadNeededArtefacts(dialed.profile, *shape, *common);
  if (!artefacts.ok()) return Fail(artefacts.status(), err);

  out << kvcache::DescribeProfile(dialed.profile) << "\n";
  const kvcache::ResolvedPlan resolved = kvcache::ResolvePlan(dialed.profile, *shape, *artefacts);
  if (TellErrors(resolved.errors, err)) return 2;
  out << kvcache::DescribePlan(*resolved.plan);
  return 0;
}

}  // namespace lacuna::server
