#include "engine/execute/executor.h"

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/core/checked_math.h"
#include "kvcache/sparse/selection_builder.h"

namespace lacuna::engine {
namespace {

// The arrays of one step. On the CPU the host's memory is the device's.
struct StepArrays final {
  std::vector<int32_t> ids, positions, wanted;
  std::vector<kernels::PrefillChunk> chunks, last_chunks;
  struct Group {
    std::vector<int32_t> slots;
    kvcache::SelectionBuilder decode, prefill;
  };
  std::vector<Group> groups;
  std::vector<StepInputs::Group> group_inputs;
  std::vector<int32_t> first_rows;  // [sequences]
  int64_t rows = 0;
  int64_t decode_rows = 0;
};

TensorView Vector(std::vector<int32_t>& values) {
  return TensorView(values.data(), DType::kI32, {static_cast<int64_t>(values.size())});
}

int64_t SizeOf(const StepSequence& sequence) {
  return static_cast<int64_t>(sequence.tokens.size());
}

bool IsDecode(const StepSequence& sequence) {
  return sequence.decode && sequence.tokens.size() == 1;
}

class Executor final : public StepRunner {
 public:
  Executor(Model& model, kernels::Backend& backend, kvcache::KvStorage& storage,
           const ExecutorLimits& limits)
      : model_(model), backend_(backend), storage_(storage), limits_(limits) {}

  Status Allocate();
  Result<TensorView> Run(const StepBatch& batch) override;

 private:
  Status CheckBatch(const StepBatch& batch) const;
  void PlaceRows(const StepBatch& batch);
  Status FillRows(const StepSequence& sequence, int32_t first_row);
  void FillChunk(const StepSequence& sequence, int32_t first_row);
  void FillWanted(const StepBatch& batch);
  Result<TensorView> ComputeLogits(int64_t rows);

  Model& model_;
  kernels::Backend& backend_;
  kvcache::KvStorage& storage_;
  ExecutorLimits limits_;
  std::unique_ptr<ModelWorkspace> workspace_;
  StepArrays arrays_;
  kernels::Buffer logits_;  // host, [rows, vocab] f32
  kernels::Stream stream_;
};

Status Executor::Allocate() {
  constexpr int64_t kRowsMax = 1 << 20;
  const auto bounded = [](int64_t value) { return value >= 1 && value <= kRowsMax; };
  if (!bounded(limits_.step_tokens_max) || !bounded(limits_.running_max) ||
      !bounded(limits_.logit_rows_max)) {
    return InvalidArgument("executor: got a limit outside 1 to 1048576");
  }
  if (limits_.running_max > limits_.step_tokens_max) {
    return InvalidArgument("executor: got running_max " + std::to_string(limits_.running_max) +
                           ", need at most step_tokens_max " +
                           std::to_string(limits_.step_tokens_max));
  }
  LACUNA_ASSIGN_OR_RETURN(workspace_,
                          model_.MakeWorkspace(limits_.step_tokens_max, limits_.logit_rows_max));
  const int64_t row_bytes = model_.info().vocab_size * static_cast<int64_t>(sizeof(float));
  LACUNA_ASSIGN_OR_RETURN(logits_,
                          backend_.device().AllocateHost(limits_.logit_rows_max * row_bytes));
  const size_t rows = static_cast<size_t>(limits_.step_tokens_max);
  const size_t sequences = static_cast<size_t>(limits_.running_max);
  for (std::vector<int32_t>* array : {&arrays_.ids, &arrays_.positions, &arrays_.wanted}) {
    array->reserve(rows);
  }
  arrays_.chunks.reserve(sequences);
  arrays_.last_chunks.reserve(sequences);
  arrays_.first_rows.reserve(sequences);
  arrays_.groups.resize(model_.groups().size());
  arrays_.group_inputs.resize(model_.groups().size());
  for (size_t g = 0; g < arrays_.groups.size(); ++g) {
    StepArrays::Group& group = arrays_.groups[g];
    group.slots.reserve(rows);
    // Sequences that share prefixes may name more pages than the pool has; the lists then grow.
    group.decode.Reserve(limits_.running_max, storage_.group_pages()[g]);
    group.prefill.Reserve(limits_.running_max, storage_.group_pages()[g]);
  }
  return OkStatus();
}

Status Executor::CheckBatch(const StepBatch& batch) const {
  int64_t rows = 0;
  for (const StepSequence& sequence : batch.sequences) {
    rows += SizeOf(sequence);
    if (sequence.tokens.empty() || sequence.pages.size() != model_.groups().size() ||
        sequence.first_position < 0 ||
        sequence.first_position + SizeOf(sequence) > model_.info().context_tokens_max) {
      return InternalError("a step holds a sequence without tokens, pages or room");
    }
    if (sequence.logits_from < -1 || sequence.logits_from >= SizeOf(sequence)) {
      return InternalError("a step wants logits of rows that it does not have");
    }
  }
  if (rows > limits_.step_tokens_max ||
      static_cast<int64_t>(batch.sequences.size()) > limits_.running_max) {
    return InternalError("a step of " + std::to_string(rows) + " rows and " +
                         std::to_string(batch.sequences.size()) + " sequences is too large");
  }
  return OkStatus();
}

// Decode rows first, in the order of their sequences, then the chunks.
void Executor::PlaceRows(const StepBatch& batch) {
  arrays_.first_rows.assign(batch.sequences.size(), 0);
  int64_t row = 0;
  for (const bool decode : {true, false}) {
    for (size_t i = 0; i < batch.sequences.size(); ++i) {
      if (IsDecode(batch.sequences[i]) != decode) continue;
      arrays_.first_rows[i] = static_cast<int32_t>(row);
      row += SizeOf(batch.sequences[i]);
    }
    if (decode) arrays_.decode_rows = row;
  }
  arrays_.rows = row;
  for (std::vector<int32_t>* array : {&arrays_.ids, &arrays_.positions}) {
    array->resize(static_cast<size_t>(row));
  }
  for (StepArrays::Group& group : arrays_.groups) {
    group.slots.resize(static_cast<size_t>(row));
    group.decode.Clear();
    group.prefill.Clear();
  }
  arrays_.chunks.clear();
  arrays_.last_chunks.clear();
}

Status Executor::FillRows(const StepSequence& sequence, int32_t first_row) {
  const size_t first = static_cast<size_t>(first_row);
  for (size_t i = 0; i < sequence.tokens.size(); ++i) {
    const TokenId token = sequence.tokens[i];
    if (token < 0 || token >= model_.info().vocab_size) {
      return InternalError("a step holds a token outside the vocabulary");
    }
    arrays_.ids[first + i] = token;
    arrays_.positions[first + i] = sequence.first_position + static_cast<int32_t>(i);
  }
  for (size_t g = 0; g < arrays_.groups.size(); ++g) {
    StepArrays::Group& group = arrays_.groups[g];
    LACUNA_RETURN_IF_ERROR(kvcache::FillSlots(
        sequence.pages[g], storage_.page_tokens(), sequence.first_position,
        static_cast<int32_t>(sequence.tokens.size()), group.slots.data() + first));
    (IsDecode(sequence) ? group.decode : group.prefill).AddDense(sequence.pages[g]);
  }
  return OkStatus();
}

void Executor::FillChunk(const StepSequence& sequence, int32_t first_row) {
  const int32_t rows = static_cast<int32_t>(sequence.tokens.size());
  arrays_.chunks.push_back({first_row, rows, sequence.first_position});
  // At least one row, so that chunks and lists stay in step.
  const int32_t skip = sequence.logits_from < 0 ? rows - 1 : sequence.logits_from;
  arrays_.last_chunks.push_back({first_row + skip, rows - skip, sequence.first_position + skip});
}

// In the order of the sequences, which is that of the answer.
void Executor::FillWanted(const StepBatch& batch) {
  arrays_.wanted.clear();
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    const StepSequence& sequence = batch.sequences[i];
    if (sequence.logits_from < 0) continue;
    for (int64_t t = sequence.logits_from; t < SizeOf(sequence); ++t) {
      arrays_.wanted.push_back(arrays_.first_rows[i] + static_cast<int32_t>(t));
    }
  }
}

Result<TensorView> Executor::ComputeLogits(int64_t rows) {
  const int64_t vocab = model_.info().vocab_size;
  const int64_t bytes = rows * vocab * static_cast<int64_t>(sizeof(float));
  if (bytes > logits_.bytes()) {
    LACUNA_ASSIGN_OR_RETURN(logits_, backend_.device().AllocateHost(bytes));
  }
  const TensorView out(logits_.data(), DType::kF32, {rows, vocab});
  for (int64_t first = 0; first < rows; first += limits_.logit_rows_max) {
    const int64_t count = std::min(limits_.logit_rows_max, rows - first);
    LACUNA_RETURN_IF_ERROR(model_.Logits(first, out.Slice(first, count), *workspace_, stream_));
  }
  LACUNA_RETURN_IF_ERROR(backend_.device().Synchronize(stream_));
  return out;
}

Result<TensorView> Executor::Run(const StepBatch& batch) {
  LACUNA_RETURN_IF_ERROR(CheckBatch(batch));
  if (batch.sequences.empty()) return TensorView();
  PlaceRows(batch);
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    const StepSequence& sequence = batch.sequences[i];
    LACUNA_RETURN_IF_ERROR(FillRows(sequence, arrays_.first_rows[i]));
    if (!IsDecode(sequence)) FillChunk(sequence, arrays_.first_rows[i]);
  }
  FillWanted(batch);
  for (size_t g = 0; g < arrays_.groups.size(); ++g) {
    StepArrays::Group& group = arrays_.groups[g];
    arrays_.group_inputs[g] = {Vector(group.slots), group.decode.lists(), group.prefill.lists()};
  }
  const StepInputs step{
      .ids = Vector(arrays_.ids),
      .positions = Vector(arrays_.positions),
      .decode_rows = arrays_.decode_rows,
      .chunks = arrays_.chunks,
      .last_chunks = arrays_.last_chunks,
      .wanted = arrays_.wanted.empty() ? TensorView() : Vector(arrays_.wanted),
      .groups = arrays_.group_inputs,
  };
  LACUNA_RETURN_IF_ERROR(model_.Forward(step, storage_, *workspace_, stream_));
  if (arrays_.wanted.empty()) return TensorView();
  return ComputeLogits(static_cast<int64_t>(arrays_.wanted.size()));
}

}  // namespace

Result<std::unique_ptr<StepRunner>> MakeExecutor(Model& model, kernels::Backend& backend,
                                                 kvcache::KvStorage& storage,
                                                 const ExecutorLimits& limits) {
  if (backend.device().kind() != kernels::DeviceKind::kCpu) {
    return InvalidArgument("executor: got a device with memory of its own, need the CPU");
  }
  auto executor = std::make_unique<Executor>(model, backend, storage, limits);
  LACUNA_RETURN_IF_ERROR(executor->Allocate());
  return std::unique_ptr<StepRunner>(std::move(executor));
}

}  // namespace lacuna::engine
