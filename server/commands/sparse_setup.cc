#include "server/commands/sparse_setup.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <string>
#include <utility>

namespace lacuna::server {
namespace {

// Names the profiles whose probes choose for fewer rows than the profile says.
void LogShortCells(const SparseService& service, const kvcache::ProfileSet& set,
                   int64_t step_tokens_max) {
  std::string names;
  for (const ProfileInfo& info : service.profiles()) {
    const kvcache::SparseProfile* const profile = set.Find(info.name);
    if (profile->prefill_estimate.cell_tokens <= step_tokens_max) continue;
    names.append(names.empty() ? "" : ", ").append(info.name);
  }
  if (names.empty()) return;
  spdlog::info(
      "sparse profiles {}: cells are shorter than their cell_tokens; engine.step_tokens_max is {}",
      names, step_tokens_max);
}

}  // namespace

Result<std::unique_ptr<SparseService>> MakeSparseService(const SparseConfig& config,
                                                         SparseService::Model model) {
  LACUNA_ASSIGN_OR_RETURN(const kvcache::ProfileSet::Loaded loaded,
                          LoadProfiles(config.profile_dir));
  for (const std::string& error : loaded.errors) {
    spdlog::warn("sparse profile left out: {}", error);
  }
  if (!config.artefacts.empty()) {
    model.artefacts = ReadArtefactText(config.artefacts);
    if (!model.artefacts) {
      return InvalidArgument(
          "sparse.artefacts: got a file that cannot be read, need a readable "
          "one");
    }
  }
  const int64_t step_tokens_max = model.step_tokens_max;
  LACUNA_ASSIGN_OR_RETURN(std::unique_ptr<SparseService> service,
                          SparseService::Create(config, loaded.set, std::move(model)));
  LogShortCells(*service, loaded.set, step_tokens_max);
  for (const SparseService::LeftOut& one : service->left_out()) {
    spdlog::info("sparse profile left out: {}: {}", one.name, one.reason);
  }
  return service;
}

void LogSparse(const SparseService& sparse) {
  const size_t count = sparse.profiles().size();
  if (count == 0) {
    spdlog::info("dense attention only");
    return;
  }
  const double percent = 100.0 * sparse.metadata_share();
  spdlog::info(
      "requests that name no sparse profile get {}; metadata of {} profile{} adds {:.0f} % to the "
      "KV cache{}",
      sparse.default_profile(), count, count == 1 ? "" : "s", percent,
      count > 1 && percent >= 1.0 ? "; name fewer in sparse.profiles" : "");
}

}  // namespace lacuna::server
