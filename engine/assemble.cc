#include "engine/assemble.h"

#include <algorithm>
#include <string>
#include <utility>

#include "engine/execute/executor.h"
#include "engine/model/load_model.h"
#include "kernels/core/checked_math.h"
#include "kernels/make_backend.h"

namespace lacuna::engine {
namespace {

constexpr int64_t kDefaultPoolBytesMax = int64_t{1} << 30;

// Pages of a pool when each full group has `full_pages`.
int64_t PagesOf(const PoolDemand& group, int64_t full_pages, int64_t running_max) {
  if (group.window_pages == 0) return full_pages;
  return std::min(full_pages, group.window_pages * running_max);
}

std::vector<PoolDemand> Demands(const Model& model, const AssemblyOptions& options, DType dtype) {
  std::vector<PoolDemand> demands;
  const int64_t page_tokens = options.kv.page_tokens;
  for (const kvcache::KvGroup& group : model.groups()) {
    PoolDemand demand;
    demand.page_bytes = kvcache::KvStorage::PageBytes(group, page_tokens, dtype);
    if (!group.full()) {
      // The window, the chunk in flight, and a page at each ragged end.
      demand.window_pages =
          CeilDiv(group.window_tokens + options.engine.step_tokens_max, page_tokens) + 2 +
          CeilDiv(group.sink_tokens, page_tokens);
    }
    demands.push_back(demand);
  }
  return demands;
}

}  // namespace

Result<std::vector<int64_t>> SizePools(const std::vector<PoolDemand>& groups, int64_t pool_bytes,
                                       int64_t full_pages_max, int64_t running_max) {
  const auto bytes = [&](int64_t full_pages) {
    int64_t total = 0;
    for (const PoolDemand& group : groups) {
      total += PagesOf(group, full_pages, running_max) * group.page_bytes;
    }
    return total;
  };
  if (bytes(1) > pool_bytes) {
    return InvalidArgument("kv.pool_bytes: got " + std::to_string(pool_bytes) + ", need at least " +
                           std::to_string(bytes(1)) + " for one page of each group");
  }
  int64_t low = 1;
  int64_t high = std::max<int64_t>(1, full_pages_max);
  while (low < high) {  // the most pages whose bytes still fit
    const int64_t middle = low + (high - low + 1) / 2;
    if (bytes(middle) <= pool_bytes) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  std::vector<int64_t> pages;
  for (const PoolDemand& group : groups) pages.push_back(PagesOf(group, low, running_max));
  return pages;
}

Result<Assembly> Assemble(const Folder& folder, const AssemblyOptions& options,
                          const Clock& clock) {
  Assembly assembly;
  kernels::BackendOptions backend_options = options.backend;
  backend_options.deterministic = options.engine.deterministic;
  LACUNA_ASSIGN_OR_RETURN(assembly.backend, kernels::MakeBackend(options.device, backend_options));
  LACUNA_ASSIGN_OR_RETURN(assembly.model,
                          LoadModel(folder, *assembly.backend, options.engine.context_tokens_max));
  const Model& model = *assembly.model;
  const DType dtype = assembly.backend->act_dtype();

  const int64_t context_tokens = model.info().context_tokens_max;
  const int64_t context_pages = CeilDiv(context_tokens, options.kv.page_tokens);
  const std::vector<PoolDemand> demands = Demands(model, options, dtype);
  const int64_t sequences = std::max<int64_t>(1, options.engine.running_max / 4);
  int64_t pool_bytes = options.kv.pool_bytes;
  if (pool_bytes == 0) pool_bytes = kDefaultPoolBytesMax;
  const int64_t full_pages_max =
      context_pages * (options.kv.pool_bytes == 0 ? sequences : options.engine.running_max);
  LACUNA_ASSIGN_OR_RETURN(
      std::vector<int64_t> group_pages,
      SizePools(demands, pool_bytes, full_pages_max, options.engine.running_max));
  LACUNA_ASSIGN_OR_RETURN(assembly.storage,
                          kvcache::KvStorage::Create(assembly.backend->device(), model.groups(),
                                                     group_pages, options.kv.page_tokens, dtype));
  EngineParts parts;
  const ExecutorLimits limits{.step_tokens_max = options.engine.step_tokens_max,
                              .running_max = options.engine.running_max,
                              .logit_rows_max = options.engine.running_max};
  LACUNA_ASSIGN_OR_RETURN(
      parts.runner, MakeExecutor(*assembly.model, *assembly.backend, *assembly.storage, limits));
  parts.groups = model.groups();
  parts.group_pages = std::move(group_pages);
  parts.page_tokens = options.kv.page_tokens;
  parts.prefix_cache = options.kv.prefix_cache;
  parts.vocab_size = model.info().vocab_size;
  parts.context_tokens_max = context_tokens;
  parts.eos = model.info().eos;
  parts.logit_rows_max = limits.logit_rows_max;
  parts.clock = &clock;
  LACUNA_ASSIGN_OR_RETURN(assembly.engine, Engine::Create(options.engine, std::move(parts)));
  return assembly;
}

}  // namespace lacuna::engine
