#include "engine/assemble.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "engine/execute/executor.h"
#include "kernels/core/checked_math.h"

namespace lacuna::engine {
namespace {

constexpr int64_t kDefaultPoolBytesMax = int64_t{1} << 30;

// Pages of a pool when each full group has `full_pages`.
int64_t PagesOf(const PoolDemand& group, int64_t full_pages, int64_t running_max) {
  if (group.window_pages == 0) return full_pages;
  return std::min(full_pages, group.window_pages * running_max);
}

// What the plans store beside keys.
std::vector<kvcache::MetadataStore> StoresOf(const AssemblyOptions& options) {
  std::vector<const kvcache::SparsePlan*> plans;
  for (const auto& plan : options.plans) plans.push_back(plan.get());
  return kvcache::MetadataStores(plans);
}

std::vector<PoolDemand> Demands(const Model& model, const AssemblyOptions& options, DType dtype) {
  std::vector<PoolDemand> demands;
  const int64_t page_tokens = options.kv.page_tokens;
  const std::vector<kvcache::MetadataStore> stores = StoresOf(options);
  for (const kvcache::KvGroup& group : model.groups()) {
    PoolDemand demand;
    demand.page_bytes = kvcache::KvStorage::PageBytes(group, page_tokens, dtype) +
                        kvcache::MetadataStorage::PageBytes(group, page_tokens, stores);
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
    return Exhausted("one page of each KV group takes " + std::to_string(bytes(1)) + " bytes, " +
                     std::to_string(std::max<int64_t>(pool_bytes, 0)) + " are left for them");
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

namespace {

// The line of a kExhausted error, with what was being made and the key that changes it.
Status Explained(const Status& status, const std::string& what, const std::string& advice) {
  if (status.code() != StatusCode::kExhausted) return status;
  return Exhausted(what + ": " + status.message() + "; " + advice);
}

// On the CPU, room for a quarter of the sequences at full context, under 1 GiB: memory that is not
// ours alone. On a device, a share of what weights and workspaces left.
Result<std::vector<int64_t>> ChoosePages(const Assembly& parts, const AssemblyOptions& options) {
  const bool cpu = parts.backend->device().kind() == kernels::DeviceKind::kCpu;
  const kvcache::KvConfig& kv = options.kv;
  const int64_t running_max = options.engine.running_max;
  const int64_t context_pages = CeilDiv(parts.model->info().context_tokens_max, kv.page_tokens);
  const int64_t free_bytes = parts.backend->device().FreeBytes();
  int64_t pool_bytes = kv.pool_bytes;
  int64_t sequences = running_max;
  std::string key = "raise kv.pool_bytes";
  if (pool_bytes == 0 && cpu) {
    pool_bytes = kDefaultPoolBytesMax;
    sequences = std::max<int64_t>(1, running_max / 4);
  } else if (pool_bytes == 0) {
    pool_bytes = static_cast<int64_t>(kv.memory_share * static_cast<double>(free_bytes));
    sequences = 2 * running_max;  // and as many cached prefixes
    key = "raise kv.memory_share, lower engine.step_tokens_max, or serve a smaller model";
  }
  // Slots are 32 bits.
  const int64_t pages_max = std::numeric_limits<int32_t>::max() / kv.page_tokens;
  const int64_t full_pages_max = std::min(context_pages * sequences, pages_max);
  auto pages = SizePools(Demands(*parts.model, options, parts.backend->act_dtype()), pool_bytes,
                         full_pages_max, running_max);
  if (!pages.ok()) return Explained(pages.status(), "KV cache", key);
  return pages;
}

}  // namespace

Result<Assembly> Assemble(std::unique_ptr<kernels::Backend> backend, const ModelLoader& load,
                          const AssemblyOptions& options, const Clock& clock) {
  Assembly assembly;
  assembly.backend = std::move(backend);
  auto model = load(*assembly.backend);
  if (!model.ok()) {
    return Explained(model.status(), "weights", "serve a smaller model, or free the memory");
  }
  assembly.model = std::move(*model);
  if ((options.residency != nullptr) != (assembly.model->head_order() != nullptr)) {
    return InternalError("the model was not loaded for the residency that it is served with");
  }
  const ExecutorLimits limits{.step_tokens_max = options.engine.step_tokens_max,
                              .running_max = options.engine.running_max,
                              .logit_rows_max = options.engine.running_max,
                              .graphs = options.engine.cuda_graphs,
                              .plans = options.plans};
  auto executor = MakeExecutor(*assembly.model, *assembly.backend, limits);
  if (!executor.ok()) {
    return Explained(executor.status(), "workspaces",
                     "lower engine.step_tokens_max or engine.running_max");
  }
  LACUNA_ASSIGN_OR_RETURN(std::vector<int64_t> group_pages, ChoosePages(assembly, options));
  auto storage =
      kvcache::KvStorage::Create(assembly.backend->device(), assembly.model->groups(), group_pages,
                                 options.kv.page_tokens, assembly.backend->act_dtype());
  const std::string kv_advice = "lower kv.pool_bytes or kv.memory_share";
  if (!storage.ok()) return Explained(storage.status(), "KV cache", kv_advice);
  assembly.storage = std::move(*storage);
  std::vector<kvcache::MetadataStore> stores =
      ArrangedStores(StoresOf(options), assembly.model->head_order());
  if (!stores.empty()) {
    auto metadata =
        kvcache::MetadataStorage::Create(assembly.backend->device(), assembly.model->groups(),
                                         group_pages, options.kv.page_tokens, std::move(stores));
    if (!metadata.ok()) return Explained(metadata.status(), "sparse metadata", kv_advice);
    assembly.metadata = std::move(*metadata);
  }
  const Status attached = (*executor)->Attach(*assembly.storage, assembly.metadata.get());
  if (!attached.ok()) return Explained(attached, "graphs and step memory", kv_advice);

  const ModelInfo& info = assembly.model->info();
  EngineParts parts;
  parts.runner = std::move(*executor);
  if (options.wrap_runner) parts.runner = options.wrap_runner(std::move(parts.runner));
  parts.groups = assembly.model->groups();
  parts.group_pages = std::move(group_pages);
  parts.page_tokens = options.kv.page_tokens;
  parts.prefix_cache = options.kv.prefix_cache;
  parts.vocab_size = info.vocab_size;
  parts.context_tokens_max = info.context_tokens_max;
  parts.eos = info.eos;
  parts.logit_rows_max = limits.logit_rows_max;
  parts.replays_output = options.engine.deterministic && !assembly.backend->decode_equals_prefill();
  parts.sparse_ops = assembly.backend->has_sparse_ops();
  parts.plans = options.plans;
  parts.residency = options.residency;
  parts.clock = &clock;
  LACUNA_ASSIGN_OR_RETURN(assembly.engine, Engine::Create(options.engine, std::move(parts)));
  return assembly;
}

}  // namespace lacuna::engine
