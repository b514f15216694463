#include "server/commands/solo_runner.h"

#include <algorithm>
#include <string>
#include <utility>

#include "kernels/core/checked_math.h"
#include "kernels/ops/ops.h"

namespace lacuna::server {
namespace {

constexpr int64_t kFillTokens = 4096;  // appended at once by FillRandom
constexpr TokenId kUnknownToken = 0;   // stands for one that only the device knows

// A prime length, so that rows differ although the noise repeats.
std::vector<float> Noise(uint64_t seed) {
  std::vector<float> noise(65537);
  uint64_t state = seed * 2 + 1;
  for (float& value : noise) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = static_cast<float>(static_cast<int16_t>(state >> 48)) * 0x1.0p-15f;
  }
  return noise;
}

// [values] of noise in the type of the keys, on the device.
Result<kernels::Buffer> UploadNoise(kernels::Device& device, DType dtype, int64_t values,
                                    std::span<const float> noise) {
  const int64_t bytes = values * static_cast<int64_t>(DTypeBytes(dtype));
  LACUNA_ASSIGN_OR_RETURN(const kernels::Buffer staging, device.AllocateHost(bytes));
  for (int64_t i = 0; i < values; ++i) {
    const float value = noise[static_cast<size_t>(i) % noise.size()];
    if (dtype == DType::kF32) {
      reinterpret_cast<float*>(staging.data())[i] = value;
    } else if (dtype == DType::kF16) {
      reinterpret_cast<F16*>(staging.data())[i] = ToF16(value);
    } else {
      reinterpret_cast<BF16*>(staging.data())[i] = ToBF16(value);
    }
  }
  LACUNA_ASSIGN_OR_RETURN(kernels::Buffer out, device.Allocate(bytes));
  kernels::Stream stream;
  LACUNA_RETURN_IF_ERROR(device.Copy(out.data(), staging.data(), bytes, stream));
  LACUNA_RETURN_IF_ERROR(device.Synchronize(stream));
  return out;
}

}  // namespace

Result<std::unique_ptr<SoloRunner>> SoloRunner::Create(engine::Model& model,
                                                       kernels::Backend& backend,
                                                       const SoloLimits& limits) {
  if (limits.tokens_max > model.info().context_tokens_max) {
    return InvalidArgument("got " + std::to_string(limits.tokens_max) +
                           " tokens, need at most the " +
                           std::to_string(model.info().context_tokens_max) + " of the model");
  }
  std::unique_ptr<SoloRunner> runner(new SoloRunner(model, backend, limits));
  runner->sequence_pages_ = CeilDiv(std::max<int64_t>(limits.tokens_max, 1), kPageTokens);
  const auto pages = CheckedMul(runner->sequence_pages_, limits.sequences);
  if (!pages || !CheckedNarrow<int32_t>(*pages)) return InvalidArgument("too many tokens");
  runner->PlacePages();
  engine::ExecutorLimits executor_limits{
      .step_tokens_max = std::max(limits.step_tokens_max, limits.sequences),
      .running_max = limits.sequences,
      .logit_rows_max = std::max(limits.logit_rows_max, limits.sequences),
      .graphs = limits.graphs};
  if (limits.plan != nullptr) executor_limits.plans = {limits.plan};
  LACUNA_ASSIGN_OR_RETURN(runner->executor_, engine::MakeExecutor(model, backend, executor_limits));
  LACUNA_RETURN_IF_ERROR(runner->CreateStorage());
  LACUNA_RETURN_IF_ERROR(runner->executor_->Attach(*runner->storage_, runner->metadata_.get()));
  return runner;
}

void SoloRunner::PlacePages() {
  for (const kvcache::KvGroup& group : model_.groups()) {
    GroupPages& pages = group_pages_.emplace_back(GroupPages{0, sequence_pages_});
    if (group.full()) continue;
    const int64_t sink = CeilDiv(group.sink_tokens, kPageTokens);
    // The window of a step's first token, the step itself, and a page at each ragged end.
    const int64_t ring = CeilDiv(group.window_tokens + limits_.step_tokens_max, kPageTokens) + 2;
    if (sink + ring < sequence_pages_) pages = {sink, sink + ring};
  }
}

Status SoloRunner::CreateStorage() {
  std::vector<int64_t> pages;
  for (const GroupPages& group : group_pages_) pages.push_back(group.all * limits_.sequences);
  kernels::Device& device = backend_.device();
  LACUNA_ASSIGN_OR_RETURN(storage_, kvcache::KvStorage::Create(device, model_.groups(), pages,
                                                               kPageTokens, backend_.act_dtype()));
  if (limits_.plan == nullptr) return OkStatus();
  const kvcache::SparsePlan* const plan = limits_.plan.get();
  std::vector<kvcache::MetadataStore> stores =
      engine::ArrangedStores(kvcache::MetadataStores({&plan, 1}), model_.head_order());
  if (stores.empty()) return OkStatus();
  LACUNA_ASSIGN_OR_RETURN(
      metadata_, kvcache::MetadataStorage::Create(device, model_.groups(), pages, kPageTokens,
                                                  std::move(stores)));
  return OkStatus();
}

int32_t SoloRunner::PageOf(size_t group, int64_t sequence, int64_t logical) const {
  const GroupPages& pages = group_pages_[group];
  const int64_t behind = logical - pages.sink;
  const int64_t page = behind < 0 ? logical : pages.sink + behind % (pages.all - pages.sink);
  return static_cast<int32_t>(sequence * pages.all + page);
}

void SoloRunner::Add(int64_t sequence, engine::StepSequence step, int64_t tokens) {
  const int64_t end = CeilDiv(step.first_position + tokens, kPageTokens);
  const size_t first_span = spans_.size();
  for (size_t g = 0; g < model_.groups().size(); ++g) {
    const kvcache::KvGroup& group = model_.groups()[g];
    const int64_t seen =
        group.full() ? 0 : std::max<int64_t>(step.first_position - group.window_tokens + 1, 0);
    Pages& pages = pages_.emplace_back();
    for (int64_t page = 0; page < end; ++page) {
      const int64_t sinks = CeilDiv(group.sink_tokens, kPageTokens);
      if (page >= sinks && page < seen / kPageTokens) page = seen / kPageTokens;
      pages.pages.push_back(PageOf(g, sequence, page));
      pages.logical.push_back(static_cast<int32_t>(page));
    }
    spans_.push_back({pages.pages, pages.logical});
  }
  step.pages = std::span(spans_).subspan(first_span);
  step.prompt_tokens = static_cast<int32_t>(prompt_tokens_);
  if (!progress_.empty()) progress_[static_cast<size_t>(sequence)].Fill(step);
  batch_.sequences.push_back(step);
}

// Spans point into what has room for a whole batch.
void SoloRunner::Clear() {
  batch_ = {};
  const auto spans = static_cast<size_t>(limits_.sequences) * model_.groups().size();
  spans_.clear();
  spans_.reserve(spans);
  pages_.clear();
  pages_.reserve(spans);
}

void SoloRunner::Follow(bool plan, int64_t prompt_tokens) {
  prompt_tokens_ = prompt_tokens;
  reads_ = {};
  progress_.clear();
  for (int64_t s = 0; plan && s < limits_.sequences; ++s) {
    progress_.emplace_back(engine::SparseOptions{.plan = limits_.plan}, /*seed=*/0,
                           std::span<const TokenId>());
    progress_.back().set_choice(static_cast<int32_t>(s));
  }
}

Result<std::span<const kernels::SampleResult>> SoloRunner::Wait() {
  LACUNA_ASSIGN_OR_RETURN(const auto results, executor_->Wait());
  for (const engine::SparseReport& report : executor_->reports()) {
    reads_.pages_considered += report.keys.pages_considered;
    reads_.pages_selected += report.keys.pages_selected;
    reads_.blocks_considered += report.blocks.blocks_considered;
    reads_.blocks_selected += report.blocks.blocks_selected;
  }
  return results;
}

Result<TensorView> SoloRunner::RunForLogits(std::span<const TokenId> tokens, int64_t first_position,
                                            bool decode, int32_t logits_from) {
  Clear();
  Add(0,
      {.tokens = tokens,
       .first_position = static_cast<int32_t>(first_position),
       .decode = decode,
       .pages = {},
       .logits_from = logits_from},
      static_cast<int64_t>(tokens.size()));
  return executor_->RunForLogits(batch_);
}

Status SoloRunner::Launch() {
  LACUNA_ASSIGN_OR_RETURN(const engine::StepKind kind, executor_->Launch(batch_));
  graph_steps_ += kind == engine::StepKind::kGraph;
  return OkStatus();
}

Status SoloRunner::LaunchPrefill(int64_t sequence, std::span<const TokenId> tokens,
                                 int64_t first_position, bool sample) {
  Clear();
  const auto count = static_cast<int64_t>(tokens.size());
  Add(sequence,
      {.tokens = tokens,
       .first_position = static_cast<int32_t>(first_position),
       .pages = {},
       .logits_from = sample ? static_cast<int32_t>(count) - 1 : -1},
      count);
  if (sample) batch_.rows.resize(1);  // greedy
  return Launch();
}

Status SoloRunner::LaunchDecode(std::span<const TokenId> tokens, int64_t position) {
  Clear();
  for (int64_t s = 0; s < limits_.sequences; ++s) {
    const bool known = !tokens.empty();
    Add(s,
        {.tokens = known ? tokens.subspan(static_cast<size_t>(s), 1) : std::span(&kUnknownToken, 1),
         .sampled_row = known ? -1 : static_cast<int32_t>(s),
         .first_position = static_cast<int32_t>(position),
         .decode = true,
         .pages = {},
         .logits_from = 0},
        1);
  }
  batch_.rows.resize(static_cast<size_t>(limits_.sequences));  // greedy
  return Launch();
}

Status SoloRunner::FillRandom(int64_t tokens, uint64_t seed) {
  for (size_t g = 0; tokens > 0 && g < model_.groups().size(); ++g) {
    LACUNA_RETURN_IF_ERROR(FillGroup(g, tokens, seed));
  }
  return OkStatus();
}

void SoloRunner::PlaceTokens(size_t group, int64_t tokens, int64_t first, std::span<int32_t> slots,
                             std::span<int32_t> previous) const {
  const GroupPages& pages = group_pages_[group];
  // In a ring, what is not overwritten later.
  const int64_t kept = CeilDiv(tokens, kPageTokens) - (pages.all - pages.sink);
  for (size_t i = 0; i < slots.size(); ++i) {
    const int64_t sequence = (first + static_cast<int64_t>(i)) / tokens;
    const int64_t position = (first + static_cast<int64_t>(i)) % tokens;
    const int64_t page = position / kPageTokens;
    const bool holds = page < pages.sink || page >= kept;
    slots[i] = holds ? static_cast<int32_t>(PageOf(group, sequence, page) * kPageTokens +
                                            position % kPageTokens)
                     : -1;
    previous[i] = page == 0 ? -1 : PageOf(group, sequence, page - 1);
  }
}

Status SoloRunner::FillGroup(size_t group, int64_t tokens, uint64_t seed) {
  kernels::Device& device = backend_.device();
  const kvcache::KvGroup& layers = model_.groups()[group];
  const int g = static_cast<int>(group);
  int64_t kv_heads = 0;
  for (const kvcache::KvLayer& layer : layers.layers) {
    kv_heads = std::max<int64_t>(kv_heads, layer.kv_heads);
  }
  const DType dtype = backend_.act_dtype();
  const int64_t values = kFillTokens * kv_heads * layers.head_dim;
  LACUNA_ASSIGN_OR_RETURN(const kernels::Buffer noise,
                          UploadNoise(device, dtype, 2 * values, Noise(seed)));
  std::byte* const v = noise.data() + values * static_cast<int64_t>(DTypeBytes(dtype));
  constexpr int64_t kBytes = kFillTokens * static_cast<int64_t>(sizeof(int32_t));
  LACUNA_ASSIGN_OR_RETURN(const kernels::Buffer places, device.Allocate(2 * kBytes));
  kernels::Stream stream;
  std::vector<int32_t> host(2 * kFillTokens);
  for (int64_t first = 0; first < tokens * limits_.sequences; first += kFillTokens) {
    // Tokens are numbered through all sequences here; slots know of the room behind each.
    const int64_t rows = std::min(kFillTokens, tokens * limits_.sequences - first);
    PlaceTokens(group, tokens, first, std::span(host).first(static_cast<size_t>(rows)),
                std::span(host).subspan(kFillTokens, static_cast<size_t>(rows)));
    LACUNA_RETURN_IF_ERROR(device.Copy(places.data(), host.data(), 2 * kBytes, stream));
    const TensorView slots(places.data(), DType::kI32, {rows});
    const TensorView previous(places.data() + kBytes, DType::kI32, {rows});
    for (size_t i = 0; i < layers.layers.size(); ++i) {
      const kernels::KvPool pool = storage_->pool(g, static_cast<int>(i));
      LACUNA_RETURN_IF_ERROR(kernels::AppendKv(
          backend_,
          {.k = TensorView(noise.data(), dtype, {rows, pool.kv_heads, pool.head_dim}),
           .v = TensorView(v, dtype, {rows, pool.kv_heads, pool.head_dim}),
           .slots = slots,
           .pool = pool},
          stream));
      for (size_t s = 0; metadata_ != nullptr && s < metadata_->stores(); ++s) {
        const kernels::MetadataPool stored = metadata_->pool(s, g, static_cast<int>(i));
        if (stored.data == nullptr) continue;
        LACUNA_RETURN_IF_ERROR(kernels::AppendMetadata(
            backend_,
            {.slots = slots, .previous_pages = previous, .keys = pool, .metadata = stored},
            stream));
      }
    }
    LACUNA_RETURN_IF_ERROR(device.Synchronize(stream));
  }
  return OkStatus();
}

TokenId ArgMax(std::span<const float> logits) {
  return static_cast<TokenId>(std::ranges::max_element(logits) - logits.begin());
}

}  // namespace lacuna::server
