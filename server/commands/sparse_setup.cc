#include "server/commands/sparse_setup.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

namespace lacuna::server {

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
  LACUNA_ASSIGN_OR_RETURN(std::unique_ptr<SparseService> service,
                          SparseService::Create(config, loaded.set, std::move(model)));
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
