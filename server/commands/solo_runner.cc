#include "server/commands/solo_runner.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "kernels/core/checked_math.h"
#include "kernels/ops/ops.h"

namespace lacuna::server {
namespace {

constexpr int64_t kPageTokens = 64;
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
  runner->numbers_.resize(static_cast<size_t>(*pages));
  std::iota(runner->numbers_.begin(), runner->numbers_.end(), 0);
  LACUNA_ASSIGN_OR_RETURN(
      runner->executor_,
      engine::MakeExecutor(model, backend,
                           {.step_tokens_max = std::max(limits.step_tokens_max, limits.sequences),
                            .running_max = limits.sequences,
                            .logit_rows_max = std::max(limits.logit_rows_max, limits.sequences),
                            .graphs = limits.graphs}));
  LACUNA_ASSIGN_OR_RETURN(runner->storage_, kvcache::KvStorage::Create(
                                                backend.device(), model.groups(),
                                                std::vector<int64_t>(model.groups().size(), *pages),
                                                kPageTokens, backend.act_dtype()));
  LACUNA_RETURN_IF_ERROR(runner->executor_->Attach(*runner->storage_));
  return runner;
}

void SoloRunner::Add(int64_t sequence, engine::StepSequence step, int64_t tokens) {
  const int64_t last = step.first_position + tokens - 1;
  const size_t first_span = spans_.size();
  for (const kvcache::KvGroup& group : model_.groups()) {
    const int64_t first_key =
        group.full() ? 0 : std::max<int64_t>(step.first_position - group.window_tokens + 1, 0);
    const auto first_page = static_cast<size_t>(first_key / kPageTokens);
    const size_t count = static_cast<size_t>(last / kPageTokens) - first_page + 1;
    const auto begin = static_cast<size_t>(sequence * sequence_pages_);
    const std::span<const int32_t> numbers(numbers_);
    spans_.push_back(
        {numbers.subspan(begin + first_page, count), numbers.subspan(first_page, count)});
  }
  step.pages = std::span(spans_).subspan(first_span);
  batch_.sequences.push_back(std::move(step));
}

Result<TensorView> SoloRunner::RunForLogits(std::span<const TokenId> tokens, int64_t first_position,
                                            bool decode, int32_t logits_from) {
  batch_ = {};
  spans_.clear();
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
  batch_ = {};
  spans_.clear();
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
  batch_ = {};
  spans_.clear();
  spans_.reserve(static_cast<size_t>(limits_.sequences) * model_.groups().size());
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
  if (tokens == 0) return OkStatus();
  kernels::Device& device = backend_.device();
  const std::vector<float> noise = Noise(seed);
  kernels::Stream stream;
  std::vector<int32_t> slots(static_cast<size_t>(kFillTokens));
  LACUNA_ASSIGN_OR_RETURN(const kernels::Buffer device_slots,
                          device.Allocate(kFillTokens * static_cast<int64_t>(sizeof(int32_t))));
  for (size_t g = 0; g < model_.groups().size(); ++g) {
    const kernels::KvPool first_pool = storage_->pool(static_cast<int>(g), 0);
    const int64_t values = kFillTokens * first_pool.kv_heads * first_pool.head_dim;
    LACUNA_ASSIGN_OR_RETURN(const kernels::Buffer memory,
                            UploadNoise(device, first_pool.dtype, 2 * values, noise));
    std::byte* const v =
        memory.data() + values * static_cast<int64_t>(DTypeBytes(first_pool.dtype));
    for (int64_t first = 0; first < tokens * limits_.sequences; first += kFillTokens) {
      // Tokens are numbered through all sequences here; slots know of the room behind each.
      const int64_t rows = std::min(kFillTokens, tokens * limits_.sequences - first);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t sequence = (first + i) / tokens, position = (first + i) % tokens;
        slots[static_cast<size_t>(i)] =
            static_cast<int32_t>(sequence * sequence_pages_ * kPageTokens + position);
      }
      LACUNA_RETURN_IF_ERROR(device.Copy(device_slots.data(), slots.data(),
                                         rows * static_cast<int64_t>(sizeof(int32_t)), stream));
      for (size_t i = 0; i < model_.groups()[g].layers.size(); ++i) {
        const kernels::KvPool pool = storage_->pool(static_cast<int>(g), static_cast<int>(i));
        LACUNA_RETURN_IF_ERROR(kernels::AppendKv(
            backend_,
            {.k = TensorView(memory.data(), pool.dtype, {rows, pool.kv_heads, pool.head_dim}),
             .v = TensorView(v, pool.dtype, {rows, pool.kv_heads, pool.head_dim}),
             .slots = TensorView(device_slots.data(), DType::kI32, {rows}),
             .pool = pool},
            stream));
      }
      LACUNA_RETURN_IF_ERROR(device.Synchronize(stream));
    }
  }
  return OkStatus();
}

TokenId ArgMax(std::span<const float> logits) {
  return static_cast<TokenId>(std::ranges::max_element(logits) - logits.begin());
}

}  // namespace lacuna::server
