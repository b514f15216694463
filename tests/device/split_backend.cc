#include "tests/device/split_backend.h"

#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_backend.h"

namespace lacuna::kernels {
namespace {

using Work = std::function<Status()>;

// Ranges of memory, by their first byte.
class Ranges final {
 public:
  void Add(const void* data, int64_t bytes) { ends_[Address(data)] = Address(data) + bytes; }
  void Remove(const void* data) { ends_.erase(Address(data)); }
  bool Hold(const void* data, int64_t bytes) const {
    auto range = ends_.upper_bound(Address(data));
    if (range == ends_.begin()) return false;
    --range;
    return Address(data) + bytes <= range->second;
  }

 private:
  static int64_t Address(const void* data) {
    return static_cast<int64_t>(reinterpret_cast<intptr_t>(data));
  }
  std::map<int64_t, int64_t> ends_;
};

// Buffers free themselves through a plain function, so the ranges are the process's.
Ranges& DeviceRanges() {
  static Ranges ranges;
  return ranges;
}
Ranges& PinnedRanges() {
  static Ranges ranges;
  return ranges;
}

Result<Buffer> AllocateIn(Ranges& ranges, int64_t bytes, void (*free)(void*)) {
  if (bytes == 0) return Buffer();
  void* data = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
  if (data == nullptr) return Exhausted("split device: no memory");
  std::memset(data, 0, static_cast<size_t>(bytes));
  ranges.Add(data, bytes);
  return Buffer(data, bytes, free);
}

class SplitDevice final : public Device {
 public:
  SplitCounts counts;

  DeviceKind kind() const override { return DeviceKind::kCuda; }
  Result<Buffer> Allocate(int64_t bytes) override {
    ++counts.allocations;
    return AllocateIn(DeviceRanges(), bytes, [](void* data) {
      DeviceRanges().Remove(data);
      std::free(data);
    });
  }
  Result<Buffer> AllocateHost(int64_t bytes) override {
    ++counts.allocations;
    return AllocateIn(PinnedRanges(), bytes, [](void* data) {
      PinnedRanges().Remove(data);
      std::free(data);
    });
  }

  Status Copy(void* to, const void* from, int64_t bytes, Stream&) override {
    if (bytes == 0) return OkStatus();
    const auto size = static_cast<size_t>(bytes);
    const bool in = DeviceRanges().Hold(to, bytes), out = DeviceRanges().Hold(from, bytes);
    if (!in && !out) return InvalidArgument("split device: a copy between host and host");
    (in ? counts.copies_in : counts.copies_out) += 1;
    (in ? counts.bytes_in : counts.bytes_out) += bytes;
    const auto move = [to, size](const void* source) {
      std::memmove(to, source, size);
      return OkStatus();
    };
    if (!out && !PinnedRanges().Hold(from, bytes)) {  // pageable memory is read at once
      std::vector<std::byte> copy(size);
      std::memcpy(copy.data(), from, size);
      return Push([copy = std::move(copy), move] { return move(copy.data()); });
    }
    LACUNA_RETURN_IF_ERROR(Push([from, move] { return move(from); }));
    if (!in && !PinnedRanges().Hold(to, bytes)) return Finish();  // and written before it returns
    return OkStatus();
  }
  Status Synchronize(Stream&) override {
    ++counts.waits;
    return Finish();
  }
  Result<std::unique_ptr<Event>> MakeEvent() override {
    return std::unique_ptr<Event>(std::make_unique<SplitEvent>(*this));
  }
  int64_t FreeBytes() const override { return int64_t{1} << 28; }

  bool captures() const override { return true; }
  Status BeginCapture(Stream&) override {
    if (capturing_) return InternalError("split device: captures already");
    capturing_ = true;
    return OkStatus();
  }
  Result<std::unique_ptr<Graph>> EndCapture(Stream&) override {
    if (!capturing_) return InternalError("split device: captures nothing");
    capturing_ = false;
    ++counts.graphs;
    return std::unique_ptr<Graph>(
        std::make_unique<SplitGraph>(*this, std::exchange(captured_, {})));
  }

  Status Push(Work work) {
    if (capturing_) {
      captured_.push_back(std::move(work));
    } else {
      queue_.push_back(std::move(work));
      ++pushed_;
    }
    return OkStatus();
  }

 private:
  class SplitEvent final : public Event {
   public:
    explicit SplitEvent(SplitDevice& device) : device_(device) {}
    Status Record(Stream&) override {
      mark_ = device_.pushed_;
      return OkStatus();
    }
    Status Wait() override {
      ++device_.counts.waits;
      return device_.RunUpTo(mark_);
    }

   private:
    SplitDevice& device_;
    int64_t mark_ = 0;
  };
  class SplitGraph final : public Graph {
   public:
    SplitGraph(SplitDevice& device, std::vector<Work> work)
        : device_(device), work_(std::move(work)) {}
    Status Launch(Stream&) override {
      ++device_.counts.graph_launches;
      for (const Work& work : work_) LACUNA_RETURN_IF_ERROR(device_.Push(work));
      return OkStatus();
    }

   private:
    SplitDevice& device_;
    std::vector<Work> work_;
  };

  Status Finish() {
    if (capturing_) return InternalError("split device: a wait inside a capture");
    return RunUpTo(pushed_);
  }
  Status RunUpTo(int64_t mark) {
    while (ran_ < mark) {
      const Work work = std::move(queue_.front());
      queue_.pop_front();
      ++ran_;
      LACUNA_RETURN_IF_ERROR(work());
    }
    return OkStatus();
  }

  std::deque<Work> queue_;
  int64_t pushed_ = 0, ran_ = 0;
  bool capturing_ = false;
  std::vector<Work> captured_;
};

template <typename T>
bool Aligned(const T* data) {
  return reinterpret_cast<uintptr_t>(data) % alignof(T) == 0;
}

bool OnDevice(const TensorView& view) {
  if (view.empty()) return true;
  const int64_t rows = view.dim(0);
  const int64_t elements = (rows - 1) * view.stride(0) + view.elements() / rows;
  return DeviceRanges().Hold(view.data(),
                             elements * static_cast<int64_t>(DTypeBytes(view.dtype())));
}

bool OnDevice(const PageLists& lists) {
  const int64_t bytes = lists.lists * static_cast<int64_t>(sizeof(int64_t));
  return lists.lists == 0 ||
         (Aligned(lists.begins) && Aligned(lists.pages) && Aligned(lists.masks) &&
          DeviceRanges().Hold(lists.begins, bytes) && DeviceRanges().Hold(lists.ends, bytes));
}

// Null, or all of it.
bool OnDevice(const StaticShape* shapes, int64_t count) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(StaticShape));
  return shapes == nullptr || (Aligned(shapes) && DeviceRanges().Hold(shapes, bytes));
}

template <typename T>
bool Held(const T* data, int64_t count) {
  return Aligned(data) && DeviceRanges().Hold(data, count * static_cast<int64_t>(sizeof(T)));
}

// None, or all of it.
bool OnDevice(const MetadataPool& pool) {
  return pool.data == nullptr || DeviceRanges().Hold(pool.data, pool.Bytes());
}

bool OnDevice(const KvPool& pool) { return DeviceRanges().Hold(pool.data, pool.Bytes()); }

class Split final : public SplitBackend {
 public:
  explicit Split(std::unique_ptr<Backend> cpu) : cpu_(std::move(cpu)) {}

  const SplitCounts& counts() const override { return device_.counts; }
  Device& device() override { return device_; }
  std::string_view name() const override { return "split"; }
  DType act_dtype() const override { return cpu_->act_dtype(); }
  bool decode_equals_prefill() const override { return false; }  // so that replays are tested
  bool deterministic() const override { return cpu_->deterministic(); }
  int threads() const override { return cpu_->threads(); }

  Result<std::unique_ptr<PreparedMatrix>> PrepareMatrix(const TensorView& weight) override {
    return cpu_->PrepareMatrix(weight);
  }
  Result<std::unique_ptr<PreparedMatrix>> PrepareRandomMatrix(int64_t rows, int64_t columns,
                                                              uint64_t seed, float scale) override {
    return cpu_->PrepareRandomMatrix(rows, columns, seed, scale);
  }
  Status ReserveWorkspace(const WorkspaceLimits&) override { return OkStatus(); }

  Status Embed(const EmbedArgs& args, Stream&) override {
    return Defer({args.ids, args.table, args.out}, args, &Backend::Embed);
  }
  Status RmsNorm(const RmsNormArgs& args, Stream&) override {
    return Defer({args.x, args.weight, args.out}, args, &Backend::RmsNorm);
  }
  Status Matmul(const MatmulArgs& args, Stream&) override {
    return Defer({args.x, args.bias, args.out}, args, &Backend::Matmul);
  }
  Status GatedActivation(const GatedActivationArgs& args, Stream&) override {
    return Defer({args.gate_up, args.out}, args, &Backend::GatedActivation);
  }
  Status GatherRows(const GatherRowsArgs& args, Stream&) override {
    return Defer({args.x, args.rows, args.out}, args, &Backend::GatherRows);
  }
  Status Softcap(const SoftcapArgs& args, Stream&) override {
    return Defer({args.x}, args, &Backend::Softcap);
  }
  Status AppendKv(const AppendKvArgs& args, Stream&) override {
    if (!OnDevice(args.pool)) return Elsewhere();
    return Defer({args.k, args.v, args.slots}, args, &Backend::AppendKv);
  }
  Status RopeAppend(const RopeAppendArgs& args, Stream&) override {
    if (!OnDevice(args.pool)) return Elsewhere();
    return Defer({args.q, args.k, args.v, args.q_norm, args.k_norm, args.positions, args.cos_sin,
                  args.slots},
                 args, &Backend::RopeAppend);
  }
  Status AttendDecode(const AttendDecodeArgs& args, Stream&) override {
    if (!OnDevice(args.pool) || !OnDevice(args.lists) ||
        !OnDevice(args.shapes, args.q.dim(0) * args.pool.kv_heads)) {
      return Elsewhere();
    }
    return Defer({args.q, args.positions, args.dropped_lse, args.out, args.lse}, args,
                 &Backend::AttendDecode);
  }
  Status AttendPrefill(const AttendPrefillArgs& args, Stream&) override {
    const auto shapes = static_cast<int64_t>(args.chunks.size()) * args.pool.kv_heads;
    if (!OnDevice(args.pool) || !OnDevice(args.lists) || !OnDevice(args.q) || !OnDevice(args.out) ||
        !OnDevice(args.lse) || !OnDevice(args.shapes, shapes)) {
      return Elsewhere();
    }
    // The chunks and the ranges' pointers are host memory, read before the call returns.
    std::vector<PrefillChunk> chunks(args.chunks.begin(), args.chunks.end());
    const KeyRanges ranges = args.ranges != nullptr ? *args.ranges : KeyRanges{};
    return device_.Push([this, args, ranges, chunks = std::move(chunks)] {
      AttendPrefillArgs own = args;
      own.chunks = chunks;
      if (args.ranges != nullptr) own.ranges = &ranges;
      ++device_.counts.ops;
      return cpu_->AttendPrefill(own, stream_);
    });
  }
  Status Sample(const SampleArgs& args, Stream&) override {
    const int64_t rows = args.logits.dim(0);
    const auto held = [rows](const auto* data) {
      return Aligned(data) && DeviceRanges().Hold(data, rows * static_cast<int64_t>(sizeof(*data)));
    };
    if (!held(args.rows) || !held(args.results) || !held(args.tokens)) return Elsewhere();
    return Defer({args.logits}, args, &Backend::Sample);
  }

  bool has_sparse_ops() const override { return true; }
  Status AppendMetadata(const AppendMetadataArgs& args, Stream&) override {
    if (!OnDevice(args.keys) || !OnDevice(args.metadata)) return Elsewhere();
    return Defer({args.slots, args.previous_pages}, args, &Backend::AppendMetadata);
  }
  Status SelectKeys(const SelectKeysArgs& args, Stream&) override {
    const int64_t rows = args.q.dim(0), lists = rows * args.pool.kv_heads;
    const bool thresholds = args.path.head_thresholds;
    if (!OnDevice(args.pool) || !OnDevice(args.metadata) || !OnDevice(args.refine_metadata) ||
        !OnDevice(args.pages) || !Held(args.rows, rows) || !OnDevice(args.shapes, lists) ||
        (thresholds && !Held(args.thresholds, args.q.dim(1))) ||
        (args.stats != nullptr && !Held(args.stats, lists)) || !Held(args.out.begins, lists) ||
        !Held(args.out.ends, lists) || !Held(args.out.pages, lists * args.out.stride) ||
        !Held(args.out.logical, lists * args.out.stride) ||
        !Held(args.out.masks, lists * args.out.stride)) {
      return Elsewhere();
    }
    return Defer({args.q, args.positions, args.dropped_lse}, args, &Backend::SelectKeys);
  }
  Status SelectRanges(const SelectRangesArgs& args, Stream&) override {
    const auto count = static_cast<int64_t>(args.chunks.size());
    if (!OnDevice(args.pool) || !OnDevice(args.q) || !OnDevice(args.lists) ||
        !Held(args.heads, args.q.dim(1)) || !OnDevice(args.shapes, count * args.pool.kv_heads) ||
        !Held(args.out.chunk_offsets, count) ||
        (args.stats != nullptr && !Held(args.stats, count * args.q.dim(1)))) {
      return Elsewhere();
    }
    // The chunks are host memory, read before the call returns.
    std::vector<RangeChunk> chunks(args.chunks.begin(), args.chunks.end());
    return device_.Push([this, args, chunks = std::move(chunks)] {
      SelectRangesArgs own = args;
      own.chunks = chunks;
      ++device_.counts.ops;
      return cpu_->SelectRanges(own, stream_);
    });
  }
  Status CorrectPrefill(const CorrectPrefillArgs& args, Stream&) override {
    if (!OnDevice(args.dense) || !OnDevice(args.out)) return Elsewhere();
    std::vector<PrefillChunk> chunks(args.chunks.begin(), args.chunks.end());
    return device_.Push([this, args, chunks = std::move(chunks)] {
      CorrectPrefillArgs own = args;
      own.chunks = chunks;
      ++device_.counts.ops;
      return cpu_->CorrectPrefill(own, stream_);
    });
  }
  Status CompareAttention(const CompareAttentionArgs& args, Stream&) override {
    if (!Held(args.audits, (args.sparse.dim(0) - 1) * args.stride + 1)) return Elsewhere();
    return Defer({args.sparse, args.dense, args.sparse_lse, args.dense_lse}, args,
                 &Backend::CompareAttention);
  }

 private:
  static Status Elsewhere() {
    return InvalidArgument("split device: an op on memory that is not the device's");
  }

  template <typename Args>
  Status Defer(std::initializer_list<TensorView> views, const Args& args,
               Status (Backend::*op)(const Args&, Stream&)) {
    for (const TensorView& view : views) {
      if (!OnDevice(view)) return Elsewhere();
    }
    return device_.Push([this, args, op] {
      ++device_.counts.ops;
      return (cpu_.get()->*op)(args, stream_);
    });
  }

  std::unique_ptr<Backend> cpu_;
  SplitDevice device_;
  Stream stream_;
};

}  // namespace

std::unique_ptr<SplitBackend> MakeSplitBackend(const BackendOptions& options) {
  auto cpu = cpu::MakeCpuBackend(options);
  LACUNA_CHECK(cpu.ok());
  return std::make_unique<Split>(std::move(*cpu));
}

}  // namespace lacuna::kernels
