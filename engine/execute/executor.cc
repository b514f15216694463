#include "engine/execute/executor.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "engine/execute/fill_step.h"
#include "engine/execute/graph_cache.h"
#include "engine/execute/sparse_image.h"
#include "engine/execute/sparse_memory.h"
#include "engine/execute/step_image.h"
#include "kernels/core/checked_math.h"
#include "kernels/ops/ops.h"

namespace lacuna::engine {
namespace {

using kernels::Buffer;
using kernels::SampleResult;

constexpr size_t kFlightsMax = 2;
constexpr int64_t kTokenAlign = 64;  // tokens before the image, which must start aligned
// Room in a graph's page lists: so much or a power of two times it.
constexpr int64_t kGraphEntriesMin = 2048;
constexpr int64_t kEntriesReserved = 1 << 20;

TensorView Vector(int32_t* values, int64_t count) {
  return count == 0 ? TensorView() : TensorView(values, DType::kI32, {count});
}

// The arrays of a step as its ops take them.
struct DeviceStep final {
  StepImage::Arrays arrays;
  int64_t rows = 0, wanted = 0;
  StepChunks chunks;
  std::vector<StepInputs::Group> groups;
  bool gathers = false;  // ids are taken from `sources`
  SparseInputs sparse;
  bool has_classes = false;
};

class DeviceExecutor final : public Executor {
 public:
  DeviceExecutor(Model& model, kernels::Backend& backend, const ExecutorLimits& limits)
      : model_(model),
        backend_(backend),
        device_(backend.device()),
        separate_(device_.kind() != kernels::DeviceKind::kCpu),
        limits_(limits),
        launches_(static_cast<int32_t>(model.info().kv_heads), model.head_order()),
        sparse_image_(launches_),
        sparse_memory_(device_) {}
  ~DeviceExecutor() override {
    // The device may still use what is freed now; an error was told, or will be, to somebody else.
    static_cast<void>(device_.Synchronize(stream_).ok());
  }

  Status Allocate();
  Status Attach(kvcache::KvStorage& storage, kvcache::MetadataStorage* metadata) override;
  bool asynchronous() const override { return separate_; }
  Result<StepKind> Launch(const StepBatch& batch) override;
  Result<std::span<const SampleResult>> Wait() override;
  Result<TensorView> RunForLogits(const StepBatch& batch) override;
  std::span<const SparseReport> reports() const override { return reports_; }

 private:
  // What the host writes and reads of one step; two steps may be under way.
  struct Slot {
    Buffer image;    // separate memory: pinned; else what the kernels read
    Buffer results;  // [rows_max] SampleResult
    Buffer report;   // separate memory: what the step's classes added up; else a part of `image`
    int64_t report_offset = 0;
    std::vector<ReportPlace> places;
    std::unique_ptr<kernels::Event> done;
    size_t rows = 0;
  };

  Status CheckLimits() const;
  Status ReserveImage(int64_t bytes);
  int64_t SparseBytesMax() const;
  // Orders the step, pads it if it is to be a recorded one, and lays out its classes.
  bool Order(const StepBatch& batch, bool may_record);
  bool FitsGraph(const StepBatch& batch) const;
  StepSizes Sizes(const StepBatch& batch, bool recorded) const;
  // Fills the slot's image and copies it to the device. order_ and sparse_image_ are the batch's.
  Status Stage(const StepBatch& batch, const StepSizes& sizes, Slot& slot);
  Status StageClasses();
  Status CopyReport(Slot& slot);
  // The staged step, as the graph of its kind if that is or can be recorded now.
  Result<StepKind> RunRecorded(const StepSizes& sizes);
  Status Record(GraphCache::Entry& entry);
  Status WarmGraphs();
  Status WarmGraph();
  Status Forward();
  Status RunStep();
  int64_t TokenBytes() const {
    return context_.sampled_rows_max * static_cast<int64_t>(sizeof(int32_t));
  }
  SampleResult* results() {
    return reinterpret_cast<SampleResult*>(
        (separate_ ? results_ : slots_[launched_ % kFlightsMax].results).data());
  }

  Model& model_;
  kernels::Backend& backend_;
  kernels::Device& device_;
  const bool separate_;  // the device has memory of its own
  ExecutorLimits limits_;
  const HeadLaunches launches_;
  kvcache::KvStorage* storage_ = nullptr;
  const kvcache::MetadataStorage* metadata_ = nullptr;
  size_t full_group_ = 0;  // of the layers that plans speak of
  StepContext context_;
  std::unique_ptr<ModelWorkspace> workspace_;
  kernels::Stream stream_;

  StepImage image_;
  StepOrder order_;  // of the step being launched, as the next three
  SparseImage sparse_image_;
  DeviceStep step_;
  StepImage::Arrays host_arrays_;  // of its image
  std::array<Slot, kFlightsMax> slots_;
  size_t launched_ = 0, waited_ = 0;  // steps so far
  // Separate memory: [sampled_rows_max] i32, the tokens that the last step sampled, and behind them
  // the image, which begins with its ids: so that one gather takes a row's id from either.
  Buffer device_image_;
  Buffer ids_;      // [rows_max] i32, gathered
  Buffer logits_;   // [logit_rows_max, vocab] f32
  Buffer results_;  // separate memory: [rows_max] SampleResult
  Buffer tokens_;   // else: [rows_max] i32
  GraphCache graphs_;
  Buffer host_logits_;  // of RunForLogits
  SparseMemory sparse_memory_;
  std::vector<SparseReport> reports_;  // of the step waited for last
};

Status DeviceExecutor::CheckLimits() const {
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
  return OkStatus();
}

Status DeviceExecutor::Allocate() {
  LACUNA_RETURN_IF_ERROR(CheckLimits());
  const ModelInfo& info = model_.info();
  if (!limits_.plans.empty() && !backend_.has_sparse_ops()) {
    return InvalidArgument("executor: got plans, and backend " + std::string(backend_.name()) +
                           " has no sparse attention");
  }
  limits_.graphs = limits_.graphs && separate_ && device_.captures();
  const int64_t padded_rows = limits_.graphs && !limits_.plans.empty()
                                  ? PaddedRowsMax(limits_.running_max)
                                  : limits_.running_max;
  LACUNA_RETURN_IF_ERROR(sparse_memory_.Allocate({.plans = limits_.plans,
                                                  .step_tokens_max = limits_.step_tokens_max,
                                                  .running_max = limits_.running_max,
                                                  .decode_rows_max = padded_rows,
                                                  .context_tokens_max = info.context_tokens_max,
                                                  .act = backend_.act_dtype(),
                                                  .head_order = model_.head_order(),
                                                  .launches = &launches_}));
  const int64_t decode_rows = std::max(padded_rows, sparse_memory_.correct_rows_max());
  LACUNA_RETURN_IF_ERROR(backend_.ReserveWorkspace({.step_tokens = limits_.step_tokens_max,
                                                    .rows = decode_rows,
                                                    .sequences = limits_.running_max,
                                                    .q_heads = info.q_heads,
                                                    .head_dim = info.head_dim,
                                                    .context_tokens = info.context_tokens_max,
                                                    .logit_rows = limits_.logit_rows_max,
                                                    .vocab = info.vocab_size}));
  LACUNA_ASSIGN_OR_RETURN(workspace_,
                          model_.MakeWorkspace(limits_.step_tokens_max, limits_.logit_rows_max));
  const int64_t rows = limits_.step_tokens_max;
  const int64_t row_bytes = info.vocab_size * static_cast<int64_t>(sizeof(float));
  LACUNA_ASSIGN_OR_RETURN(logits_, device_.Allocate(limits_.logit_rows_max * row_bytes));
  const int64_t result_bytes = rows * static_cast<int64_t>(sizeof(SampleResult));
  const int64_t token_bytes = rows * static_cast<int64_t>(sizeof(int32_t));
  for (Slot& slot : slots_) {
    LACUNA_ASSIGN_OR_RETURN(slot.results, device_.AllocateHost(result_bytes));
    LACUNA_ASSIGN_OR_RETURN(slot.done, device_.MakeEvent());
  }
  if (separate_) {
    LACUNA_ASSIGN_OR_RETURN(results_, device_.Allocate(result_bytes));
    LACUNA_ASSIGN_OR_RETURN(ids_, device_.Allocate(token_bytes));
  } else {
    LACUNA_ASSIGN_OR_RETURN(tokens_, device_.Allocate(token_bytes));
  }
  context_ = {.vocab_size = info.vocab_size,
              .context_tokens_max = info.context_tokens_max,
              .groups = model_.groups().size(),
              .rows_max = rows,
              .sequences_max = limits_.running_max,
              .sampled_rows_max = separate_ ? CeilDiv(rows, kTokenAlign) * kTokenAlign : 0};
  if (!limits_.plans.empty()) {
    context_.shape = {.layers = static_cast<int32_t>(info.layers),
                      .q_heads = static_cast<int32_t>(info.q_heads),
                      .kv_heads = static_cast<int32_t>(info.kv_heads),
                      .head_dim = static_cast<int32_t>(info.head_dim),
                      .layer_window_tokens = {}};
  }
  return OkStatus();
}

// Of what the classes of any step read and add up.
int64_t DeviceExecutor::SparseBytesMax() const {
  const int64_t corrected = sparse_memory_.correct_rows_max() + limits_.running_max;
  return SparseImage::BytesMax(limits_.plans, launches_, limits_.running_max) +
         corrected * static_cast<int64_t>(sizeof(int32_t) + 2 * sizeof(int64_t));
}

Status DeviceExecutor::Attach(kvcache::KvStorage& storage, kvcache::MetadataStorage* metadata) {
  storage_ = &storage;
  metadata_ = metadata;
  context_.previous_pages = metadata != nullptr && metadata->reads_previous_pages();
  for (size_t g = model_.groups().size(); g-- > 0;) {
    if (model_.groups()[g].full()) full_group_ = g;
  }
  context_.page_tokens = storage.page_tokens();
  // Sequences that share prefixes may name more pages than the pool has: all of a small server's
  // fit, those of a large one make the image grow.
  const int64_t context_pages = CeilDiv(context_.context_tokens_max, storage.page_tokens());
  StepSizes sizes{.rows = context_.rows_max,
                  .decode_rows = PaddedRowsMax(context_.sequences_max),
                  .chunks = context_.sequences_max,
                  .wanted = context_.rows_max,
                  .edits = 64 * context_.sequences_max,
                  .previous_pages = context_.previous_pages,
                  .sparse_bytes = SparseBytesMax(),
                  .groups = {}};
  for (const int64_t pages : storage.group_pages()) {
    const int64_t entries =
        std::min(std::max(pages, kEntriesReserved), context_pages * context_.sequences_max);
    sizes.groups.push_back({entries, entries});
  }
  image_.SetSizes(sizes);
  LACUNA_RETURN_IF_ERROR(ReserveImage(image_.bytes()));
  for (Slot& slot : slots_) {
    if (!separate_ || limits_.plans.empty()) break;
    LACUNA_ASSIGN_OR_RETURN(slot.report, device_.AllocateHost(sizes.sparse_bytes));
  }
  return limits_.graphs ? WarmGraphs() : OkStatus();
}

Status DeviceExecutor::ReserveImage(int64_t bytes) {
  if (bytes <= slots_[0].image.bytes()) return OkStatus();
  bytes = std::max(bytes, 2 * slots_[0].image.bytes());
  LACUNA_RETURN_IF_ERROR(device_.Synchronize(stream_));  // steps under way read the old ones
  graphs_.Clear();
  for (Slot& slot : slots_) {
    LACUNA_ASSIGN_OR_RETURN(slot.image, device_.AllocateHost(bytes));
  }
  if (!separate_) return OkStatus();
  const int64_t token_bytes = TokenBytes();
  LACUNA_ASSIGN_OR_RETURN(Buffer grown, device_.Allocate(token_bytes + bytes));
  if (device_image_.bytes() > 0) {
    LACUNA_RETURN_IF_ERROR(device_.Copy(grown.data(), device_image_.data(), token_bytes, stream_));
    LACUNA_RETURN_IF_ERROR(device_.Synchronize(stream_));
  }
  device_image_ = std::move(grown);
  return OkStatus();
}

Status DeviceExecutor::Stage(const StepBatch& batch, const StepSizes& sizes, Slot& slot) {
  image_.SetSizes(sizes);
  LACUNA_RETURN_IF_ERROR(ReserveImage(image_.bytes()));
  image_.Locate(slot.image.data(), host_arrays_);
  LACUNA_RETURN_IF_ERROR(FillStep(batch, order_, context_, sizes, host_arrays_, step_.chunks));
  if (!sparse_image_.empty()) {
    sparse_image_.Fill(batch, order_, step_.chunks, host_arrays_.groups[full_group_].prefill,
                       host_arrays_.sparse);
  }
  slot.report_offset = host_arrays_.sparse - slot.image.data();
  slot.places = sparse_image_.places();
  std::byte* base = slot.image.data();
  if (separate_) {
    base = device_image_.data() + TokenBytes();
    LACUNA_RETURN_IF_ERROR(device_.Copy(base, slot.image.data(), image_.bytes(), stream_));
  }
  image_.Locate(base, step_.arrays);
  step_.rows = sizes.rows;
  step_.wanted = sizes.wanted;
  step_.groups.resize(context_.groups);
  for (size_t g = 0; g < context_.groups; ++g) {
    const StepImage::Arrays::Group& group = step_.arrays.groups[g];
    step_.groups[g] = {.slots = Vector(group.slots, sizes.rows),
                       .decode = group.decode.Lists(sizes.decode_rows),
                       .prefill = group.prefill.Lists(sizes.chunks),
                       .previous_pages = sizes.previous_pages
                                             ? Vector(group.previous_pages, sizes.rows)
                                             : TensorView()};
  }
  LACUNA_RETURN_IF_ERROR(StageClasses());
  const auto unknown = [](const StepSequence& s) { return s.sampled_row >= 0; };
  step_.gathers = std::ranges::any_of(batch.sequences, unknown);
  return OkStatus();
}

Status DeviceExecutor::StageClasses() {
  step_.has_classes = !sparse_image_.empty();
  if (!step_.has_classes) return OkStatus();
  const auto step = static_cast<int64_t>(launched_);
  sparse_image_.Locate(step_.arrays.sparse, step_.arrays.groups[full_group_].prefill);
  LACUNA_RETURN_IF_ERROR(
      sparse_memory_.Bind(sparse_image_.decode(), sparse_image_.prefill(), step, stream_));
  for (const uint64_t path : sparse_memory_.TakeEvictedPaths()) graphs_.DropPath(path, step);
  step_.sparse = {.decode = sparse_image_.decode(),
                  .prefill = sparse_image_.prefill(),
                  .scratch = sparse_memory_.scratch()};
  return OkStatus();
}

bool DeviceExecutor::Order(const StepBatch& batch, bool may_record) {
  OrderStep(batch, launches_, SparseMemory::TilesMax(limits_.step_tokens_max), order_);
  const bool recorded = may_record && FitsGraph(batch);
  if (recorded) PadOrder(limits_.running_max, order_);
  sparse_image_.SetBatch(batch, order_);
  return recorded;
}

// Decode rows alone, of few classes, that add nothing to what every step of their kind does.
bool DeviceExecutor::FitsGraph(const StepBatch& batch) const {
  const auto plain = [](const StepSequence& s) { return IsDecode(s) && s.logits_from == 0; };
  const auto audited = [](const StepOrder::Class& one) { return one.audited > 0; };
  const bool one_part = order_.decode.empty() || order_.decode[0].count == order_.decode_rows;
  return limits_.graphs && !batch.sequences.empty() &&
         std::ranges::all_of(batch.sequences, plain) &&
         order_.decode.size() <= GraphKey::kClassesMax &&
         std::ranges::none_of(order_.decode, audited) &&
         (one_part || PaddedRowsMax(order_.decode_rows) <= context_.rows_max);
}

StepSizes DeviceExecutor::Sizes(const StepBatch& batch, bool recorded) const {
  StepSizes sizes = SizesOf(batch, order_, context_);
  sizes.sparse_bytes = sparse_image_.bytes();
  if (!recorded) return sizes;
  int64_t room = kGraphEntriesMin;
  for (const StepSizes::Group& group : sizes.groups) {
    while (room < group.decode_entries) room *= 2;
  }
  for (StepSizes::Group& group : sizes.groups) group.decode_entries = room;
  sizes.wanted = std::min(sizes.rows, limits_.running_max);
  return sizes;
}

// Behind the step, to where Wait finds it.
Status DeviceExecutor::CopyReport(Slot& slot) {
  const int64_t bytes = sparse_image_.report_bytes();
  if (!separate_ || bytes == 0) return OkStatus();
  if (bytes > slot.report.bytes()) return InternalError("a step reports more than any can");
  return device_.Copy(slot.report.data(), step_.arrays.sparse, bytes, stream_);
}

Status DeviceExecutor::Forward() {
  TensorView ids = Vector(step_.arrays.ids, step_.rows);
  if (step_.gathers) {
    // 32 bits are 32 bits to a gather.
    const int64_t words = context_.sampled_rows_max + step_.rows;
    LACUNA_RETURN_IF_ERROR(
        kernels::GatherRows(backend_,
                            {.x = TensorView(device_image_.data(), DType::kF32, {words, 1}),
                             .rows = Vector(step_.arrays.sources, step_.rows),
                             .out = TensorView(ids_.data(), DType::kF32, {step_.rows, 1})},
                            stream_));
    ids = TensorView(ids_.data(), DType::kI32, {step_.rows});
  }
  const StepInputs inputs{
      .ids = ids,
      .positions = Vector(step_.arrays.positions, step_.rows),
      .decode_rows = step_.groups.empty() ? 0 : step_.groups[0].decode.lists,
      .chunks = step_.chunks.all,
      .last_chunks = step_.chunks.last,
      .wanted = Vector(step_.arrays.wanted, step_.wanted),
      .groups = step_.groups,
      .metadata = metadata_,
      .sparse = step_.has_classes ? &step_.sparse : nullptr,
  };
  return model_.Forward(inputs, *storage_, *workspace_, stream_);
}

Status DeviceExecutor::RunStep() {
  LACUNA_RETURN_IF_ERROR(Forward());
  int32_t* tokens = reinterpret_cast<int32_t*>((separate_ ? device_image_ : tokens_).data());
  const int64_t vocab = context_.vocab_size;
  for (int64_t first = 0; first < step_.wanted; first += limits_.logit_rows_max) {
    const int64_t count = std::min(limits_.logit_rows_max, step_.wanted - first);
    const TensorView logits(logits_.data(), DType::kF32, {count, vocab});
    LACUNA_RETURN_IF_ERROR(model_.Logits(first, logits, *workspace_, stream_));
    LACUNA_RETURN_IF_ERROR(kernels::Sample(backend_,
                                           {.logits = logits,
                                            .rows = step_.arrays.sample_rows + first,
                                            .edits = step_.arrays.edits,
                                            .mask = nullptr,
                                            .results = results() + first,
                                            .tokens = tokens + first},
                                           stream_));
  }
  return OkStatus();
}

Status DeviceExecutor::Record(GraphCache::Entry& entry) {
  LACUNA_RETURN_IF_ERROR(device_.BeginCapture(stream_));
  const Status recorded = RunStep();
  auto made = device_.EndCapture(stream_);  // always, so that the stream works again
  LACUNA_RETURN_IF_ERROR(recorded);
  LACUNA_RETURN_IF_ERROR(made.status());
  entry.graph = std::move(*made);
  return OkStatus();
}

// The first step with such classes runs op by op, so that whatever kernels set up on first use is
// set up, and nothing is recorded for what happens once.
Result<StepKind> DeviceExecutor::RunRecorded(const StepSizes& sizes) {
  step_.gathers = true;
  GraphCache::Entry& entry =
      graphs_.Of(KeyOf(order_, sizes.groups.empty() ? 0 : sizes.groups[0].decode_entries),
                 static_cast<int64_t>(launched_), static_cast<int64_t>(waited_));
  const bool again = std::exchange(entry.met, true);
  if (entry.graph == nullptr && !again && !order_.decode.empty()) {
    LACUNA_RETURN_IF_ERROR(RunStep());
    return StepKind::kEagerDecode;
  }
  if (entry.graph == nullptr) LACUNA_RETURN_IF_ERROR(Record(entry));
  LACUNA_RETURN_IF_ERROR(entry.graph->Launch(stream_));
  return StepKind::kGraph;
}

// Runs steps of nothing but padding, so that whatever the kernels set up on first use is set up,
// then records them: every number of dense rows, and one row of each plan.
Status DeviceExecutor::WarmGraphs() {
  for (int64_t rows = 1, last = 0; rows != last;) {
    order_ = {};
    order_.dense_rows = order_.decode_rows = rows;
    LACUNA_RETURN_IF_ERROR(WarmGraph());
    last = rows;
    rows = std::min(2 * rows, limits_.running_max);
  }
  for (const auto& plan : limits_.plans) {
    if (!plan->sparse_decode && !launches_.TakesShapes(*plan)) continue;
    order_ = {};
    order_.decode.push_back({.plan = plan.get(), .rows = 1});
    order_.decode_rows = 1;
    LACUNA_RETURN_IF_ERROR(WarmGraph());
  }
  return OkStatus();
}

// Of order_.
Status DeviceExecutor::WarmGraph() {
  sparse_image_.SetBatch({}, order_);
  const StepSizes sizes = Sizes({}, /*recorded=*/true);
  LACUNA_RETURN_IF_ERROR(Stage({}, sizes, slots_[0]));
  step_.gathers = true;
  LACUNA_RETURN_IF_ERROR(RunStep());
  GraphCache::Entry& entry = graphs_.Of(KeyOf(order_, kGraphEntriesMin), 0, 0);
  entry.met = true;
  if (entry.graph == nullptr) LACUNA_RETURN_IF_ERROR(Record(entry));
  return device_.Synchronize(stream_);
}

Result<StepKind> DeviceExecutor::Launch(const StepBatch& batch) {
  if (storage_ == nullptr || launched_ - waited_ >= (separate_ ? kFlightsMax : 1)) {
    return InternalError("a step was launched without pages, or before an earlier one was read");
  }
  LACUNA_RETURN_IF_ERROR(CheckBatch(batch, context_));
  Slot& slot = slots_[launched_ % kFlightsMax];
  slot.places.clear();
  StepKind kind = StepKind::kEager;
  const bool recorded = Order(batch, /*may_record=*/true);
  if (!batch.sequences.empty()) {
    const StepSizes sizes = Sizes(batch, recorded);
    LACUNA_RETURN_IF_ERROR(Stage(batch, sizes, slot));
    if (recorded) {
      LACUNA_ASSIGN_OR_RETURN(kind, RunRecorded(sizes));
    } else {
      LACUNA_RETURN_IF_ERROR(RunStep());
      if (limits_.graphs && order_.Chunks().empty()) kind = StepKind::kEagerDecode;
    }
  }
  slot.rows = batch.rows.size();
  if (separate_) {
    const auto bytes = static_cast<int64_t>(slot.rows * sizeof(SampleResult));
    LACUNA_RETURN_IF_ERROR(device_.Copy(slot.results.data(), results_.data(), bytes, stream_));
  }
  LACUNA_RETURN_IF_ERROR(CopyReport(slot));
  LACUNA_RETURN_IF_ERROR(slot.done->Record(stream_));
  ++launched_;
  return kind;
}

Result<std::span<const SampleResult>> DeviceExecutor::Wait() {
  if (launched_ == waited_) return InternalError("no step was launched");
  Slot& slot = slots_[waited_ % kFlightsMax];
  LACUNA_RETURN_IF_ERROR(slot.done->Wait());
  ++waited_;
  const std::byte* report = separate_ ? slot.report.data() : slot.image.data() + slot.report_offset;
  reports_.clear();
  for (const ReportPlace& place : slot.places)
    reports_.push_back(ReadReport(place, launches_, report));
  return std::span(reinterpret_cast<const SampleResult*>(slot.results.data()), slot.rows);
}

Result<TensorView> DeviceExecutor::RunForLogits(const StepBatch& batch) {
  if (storage_ == nullptr || launched_ != waited_) return InternalError("a step is under way");
  if (batch.sequences.empty()) return TensorView();
  StepBatch sampled = batch;
  sampled.rows.resize(static_cast<size_t>(SampledRowsOf(batch)));
  LACUNA_RETURN_IF_ERROR(CheckBatch(sampled, context_));
  Order(sampled, /*may_record=*/false);
  const StepSizes sizes = Sizes(sampled, /*recorded=*/false);
  LACUNA_RETURN_IF_ERROR(Stage(sampled, sizes, slots_[0]));
  LACUNA_RETURN_IF_ERROR(Forward());
  const int64_t row_bytes = context_.vocab_size * static_cast<int64_t>(sizeof(float));
  if (sizes.wanted * row_bytes > host_logits_.bytes()) {
    LACUNA_ASSIGN_OR_RETURN(host_logits_, device_.AllocateHost(sizes.wanted * row_bytes));
  }
  for (int64_t first = 0; first < sizes.wanted; first += limits_.logit_rows_max) {
    const int64_t count = std::min(limits_.logit_rows_max, sizes.wanted - first);
    const TensorView logits(logits_.data(), DType::kF32, {count, context_.vocab_size});
    LACUNA_RETURN_IF_ERROR(model_.Logits(first, logits, *workspace_, stream_));
    LACUNA_RETURN_IF_ERROR(device_.Copy(host_logits_.data() + first * row_bytes, logits_.data(),
                                        count * row_bytes, stream_));
  }
  LACUNA_RETURN_IF_ERROR(device_.Synchronize(stream_));
  if (sizes.wanted == 0) return TensorView();
  return TensorView(host_logits_.data(), DType::kF32, {sizes.wanted, context_.vocab_size});
}

}  // namespace

Result<std::unique_ptr<Executor>> MakeExecutor(Model& model, kernels::Backend& backend,
                                               const ExecutorLimits& limits) {
  auto executor = std::make_unique<DeviceExecutor>(model, backend, limits);
  LACUNA_RETURN_IF_ERROR(executor->Allocate());
  return std::unique_ptr<Executor>(std::move(executor));
}

}  // namespace lacuna::engine
