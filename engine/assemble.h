// Assemble: a backend, a model and the configs of the layers below become an engine that is ready
// to start.
//
// One thread, at start. The parts stand in the order in which they may be torn down (last first).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/engine_config.h"
#include "engine/model/model.h"
#include "kernels/core/clock.h"
#include "kernels/core/status.h"
#include "kernels/ops/backend.h"
#include "kvcache/kv_config.h"
#include "kvcache/pages/kv_storage.h"
#include "kvcache/sparse/metadata_storage.h"
#include "kvcache/sparse/plan.h"

namespace lacuna::engine {

struct Assembly final {
  Assembly() = default;
  Assembly(Assembly&&) = default;
  Assembly& operator=(Assembly&& other) noexcept {
    // What is replaced is torn down last first.
    engine = std::move(other.engine);
    metadata = std::move(other.metadata);
    storage = std::move(other.storage);
    model = std::move(other.model);
    backend = std::move(other.backend);
    return *this;
  }

  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<Model> model;
  std::unique_ptr<kvcache::KvStorage> storage;
  std::unique_ptr<kvcache::MetadataStorage> metadata;  // null without plans that read any
  std::unique_ptr<Engine> engine;                      // created, not started
};

struct AssemblyOptions final {
  EngineConfig engine;
  kvcache::KvConfig kv;
  // What requests may ask for, resolved for this model: they say what must be stored beside keys
  // and how much scratch memory steps need.
  std::vector<std::shared_ptr<const kvcache::SparsePlan>> plans;
  // Its streaming heads keep sink and window alone, for every request: those of other head roles
  // are refused. Null: every head keeps all pages.
  std::shared_ptr<const kvcache::SparsePlan> residency;
  // Puts something between the engine and its runner; for tests of what a device does when it
  // fails.
  std::function<std::unique_ptr<StepRunner>(std::unique_ptr<StepRunner>)> wrap_runner;
};

// From files, or of random weights: see engine/model/load_model.h.
using ModelLoader = std::function<Result<std::unique_ptr<Model>>(kernels::Backend&)>;

// `clock` must outlive the engine. Errors are one line and name the file or the key to change;
// kExhausted: what did not fit into memory.
Result<Assembly> Assemble(std::unique_ptr<kernels::Backend> backend, const ModelLoader& load,
                          const AssemblyOptions& options, const Clock& clock);

// Pages of each group's pool within `pool_bytes`. A full group gets as many as any; a window group
// no more than running_max sequences can use. kExhausted: not even one page of each fits.
struct PoolDemand final {
  int64_t page_bytes = 0;    // all layers of the group, metadata included
  int64_t window_pages = 0;  // pages that one sequence holds at most; 0: a full group
};
Result<std::vector<int64_t>> SizePools(const std::vector<PoolDemand>& groups, int64_t pool_bytes,
                                       int64_t full_pages_max, int64_t running_max);

}  // namespace lacuna::engine
