// The SparseService of a server that starts, and what its log says of it. One thread, at start.
#pragma once

#include <memory>

#include "kernels/core/status.h"
#include "server/sparse/sparse_service.h"

namespace lacuna::server {

// Reads profiles and artefacts. `model.artefacts` are those of the model's folder; a file of the
// config replaces them. One log line for each profile that is left out. kInvalidArgument:
// "sparse.KEY: got X, need Y".
Result<std::unique_ptr<SparseService>> MakeSparseService(const SparseConfig& config,
                                                         SparseService::Model model);

// One line: what requests get, what they may ask for, and what that costs in memory.
void LogSparse(const SparseService& sparse);

}  // namespace lacuna::server
