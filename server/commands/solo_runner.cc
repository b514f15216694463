#include "server/commands/solo_runner.h"

#include <algorithm>
#include <numeric>

#include "engine/execute/executor.h"
#include "kernels/core/checked_math.h"
#include "kernels/make_backend.h"
#include "kernels/ops/ops.h"

namespace lacuna::server {
namespace {

constexpr int64_t kPageTokens = 64;
constexpr int64_t kFillTokens = 1024;  // appended at once by FillRandom

}  // namespace

Result<std::unique_ptr<kernels::Backend>> MakeBackendFor(const DeviceOptions& options) {
  kernels::BackendOptions backend;
  backend.threads = options.threads;
  if (options.precision == "fp32") {
    backend.precision = DType::kF32;
  } else if (options.precision != "bf16") {
    return InvalidArgument("--precision: got " + options.precision + ", need bf16 or fp32");
  }
  if (options.device != "cpu" && options.device != "cuda") {
    return InvalidArgument("--device: got " + options.device + ", need cpu or cuda");
  }
  return kernels::MakeBackend(
      options.device == "cpu" ? kernels::DeviceKind::kCpu : kernels::DeviceKind::kCuda, backend);
}

Result<std::unique_ptr<SoloRunner>> SoloRunner::Create(engine::Model& model,
                                                       kernels::Backend& backend,
                                                       int64_t tokens_max, int64_t step_tokens_max,
                                                       int64_t logit_rows_max) {
  if (tokens_max > model.info().context_tokens_max) {
    return InvalidArgument("got " + std::to_string(tokens_max) + " tokens, need at most the " +
                           std::to_string(model.info().context_tokens_max) + " of the model");
  }
  std::unique_ptr<SoloRunner> runner(new SoloRunner(model, backend));
  const int64_t pages = CeilDiv(std::max<int64_t>(tokens_max, 1), kPageTokens);
  runner->page_index_.resize(static_cast<size_t>(pages));
  std::iota(runner->page_index_.begin(), runner->page_index_.end(), 0);
  LACUNA_ASSIGN_OR_RETURN(runner->storage_, kvcache::KvStorage::Create(
                                                backend.device(), model.groups(),
                                                std::vector<int64_t>(model.groups().size(), pages),
                                                kPageTokens, backend.act_dtype()));
  LACUNA_ASSIGN_OR_RETURN(
      runner->executor_,
      engine::MakeExecutor(model, backend, *runner->storage_,
                           {.step_tokens_max = std::max<int64_t>(step_tokens_max, 1),
                            .running_max = 1,
                            .logit_rows_max = std::max<int64_t>(logit_rows_max, 1)}));
  return runner;
}

Result<TensorView> SoloRunner::RunStep(std::span<const TokenId> tokens, int64_t first_position,
                                       bool decode, int32_t logits_from) {
  const int64_t last = first_position + static_cast<int64_t>(tokens.size()) - 1;
  std::vector<kvcache::PageSpan> spans;
  for (const kvcache::KvGroup& group : model_.groups()) {
    const int64_t first_key =
        group.full() ? 0 : std::max<int64_t>(first_position - group.window_tokens + 1, 0);
    const int64_t first_page = first_key / kPageTokens;
    const std::span<const int32_t> pages =
        std::span(page_index_)
            .subspan(static_cast<size_t>(first_page),
                     static_cast<size_t>(last / kPageTokens - first_page + 1));
    spans.push_back({pages, pages});
  }
  engine::StepBatch batch;
  batch.sequences.push_back({.tokens = tokens,
                             .first_position = static_cast<int32_t>(first_position),
                             .decode = decode,
                             .pages = spans,
                             .logits_from = logits_from});
  return executor_->Run(batch);
}

Status SoloRunner::FillLayer(const kernels::KvPool& pool, int64_t tokens,
                             std::span<const float> noise) {
  const int64_t columns = pool.kv_heads * pool.head_dim;
  kernels::Stream stream;
  std::vector<int32_t> slots(static_cast<size_t>(kFillTokens));
  LACUNA_ASSIGN_OR_RETURN(
      const kernels::Buffer memory,
      backend_.device().AllocateHost(2 * kFillTokens * columns *
                                     static_cast<int64_t>(DTypeBytes(pool.dtype))));
  const int64_t count = 2 * kFillTokens * columns;
  for (int64_t i = 0; i < count; ++i) {
    const float value = noise[static_cast<size_t>(i % static_cast<int64_t>(noise.size()))];
    if (pool.dtype == DType::kF32) {
      reinterpret_cast<float*>(memory.data())[i] = value;
    } else {
      reinterpret_cast<BF16*>(memory.data())[i] = ToBF16(value);
    }
  }
  std::byte* const values =
      memory.data() + kFillTokens * columns * static_cast<int64_t>(DTypeBytes(pool.dtype));
  for (int64_t first = 0; first < tokens; first += kFillTokens) {
    const int64_t rows = std::min(kFillTokens, tokens - first);
    std::iota(slots.begin(), slots.end(), static_cast<int32_t>(first));
    LACUNA_RETURN_IF_ERROR(kernels::AppendKv(
        backend_,
        {.k = TensorView(memory.data(), pool.dtype, {rows, pool.kv_heads, pool.head_dim}),
         .v = TensorView(values, pool.dtype, {rows, pool.kv_heads, pool.head_dim}),
         .slots = TensorView(slots.data(), DType::kI32, {rows}),
         .pool = pool},
        stream));
  }
  return backend_.device().Synchronize(stream);
}

Status SoloRunner::FillRandom(int64_t tokens, uint64_t seed) {
  // A prime length, so that rows differ although the noise repeats.
  std::vector<float> noise(65537);
  uint64_t state = seed * 2 + 1;
  for (float& value : noise) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = static_cast<float>(static_cast<int16_t>(state >> 48)) * 0x1.0p-15f;
  }
  for (size_t g = 0; g < model_.groups().size(); ++g) {
    for (size_t i = 0; i < model_.groups()[g].layers.size(); ++i) {
      LACUNA_RETURN_IF_ERROR(
          FillLayer(storage_->pool(static_cast<int>(g), static_cast<int>(i)), tokens, noise));
    }
  }
  return OkStatus();
}

TokenId ArgMax(std::span<const float> logits) {
  return static_cast<TokenId>(std::ranges::max_element(logits) - logits.begin());
}

}  // namespace lacuna::server
