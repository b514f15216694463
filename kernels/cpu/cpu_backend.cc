#include "kernels/cpu/cpu_backend.h"

#include <sched.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "kernels/core/checked_math.h"
#include "kernels/cpu/append_kv.h"
#include "kernels/cpu/append_metadata.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/correct.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/matmul_onednn.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/cpu/sample.h"
#include "kernels/cpu/select_keys.h"
#include "kernels/cpu/select_ranges.h"
#include "kernels/cpu/thread_pool.h"

namespace lacuna::kernels::cpu {
namespace {

constexpr int kThreadsMax = 1024;
// A loop over the pool costs microseconds, which one core needs for this much.
constexpr int64_t kTaskBytes = 32 << 10;

int UsableCores() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) return CPU_COUNT(&allowed);
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Calls fn(row) for each row, over the pool when the rows are worth it.
template <typename Fn>
void ForRows(ThreadPool& pool, int64_t rows, int64_t row_bytes, Fn&& fn) {
  const int64_t together = CeilDiv(kTaskBytes, std::max<int64_t>(row_bytes, 1));
  if (rows <= 2 * together) {
    for (int64_t row = 0; row < rows; ++row) fn(row);
    return;
  }
  pool.ParallelFor(CeilDiv(rows, together), [&](int64_t task, int) {
    const int64_t end = std::min(rows, (task + 1) * together);
    for (int64_t row = task * together; row < end; ++row) fn(row);
  });
}

std::byte* RowOf(const TensorView& view, int64_t row) {
  return view.as<std::byte>() +
         row * view.stride(0) * static_cast<int64_t>(DTypeBytes(view.dtype()));
}

int64_t RowBytes(const TensorView& view) {
  return view.elements() / view.dim(0) * static_cast<int64_t>(DTypeBytes(view.dtype()));
}

// Every index of a vector lies in [0, end).
Status CheckIndices(const TensorView& indices, int64_t end, const char* what) {
  const int32_t* begin = indices.as<int32_t>();
  const bool inside = std::all_of(begin, begin + indices.dim(0),
                                  [&](int32_t index) { return index >= 0 && index < end; });
  return inside ? OkStatus() : InvalidArgument(std::string(what) + ": an index is out of range");
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(const BackendOptions& options, Isa isa, int threads)
      : precision_(options.precision),
        deterministic_(options.deterministic),
        isa_(isa),
        name_("cpu-" + std::string(IsaName(isa))),
        rows_(RowOpsOf(isa)),
        pool_(threads, options.pin_threads),
        matmul_(isa, options.deterministic, pool_),
        onednn_(static_cast<size_t>(threads)),
        attention_(threads),
        ranges_(threads),
        select_keys_(threads),
        sampling_(static_cast<size_t>(threads)) {}

  Device& device() override { return device_; }
  std::string_view name() const override { return name_; }
  DType act_dtype() const override { return precision_; }
  bool decode_equals_prefill() const override { return deterministic_; }
  bool deterministic() const override { return deterministic_; }
  int threads() const override { return pool_.threads(); }

  Result<std::unique_ptr<PreparedMatrix>> PrepareMatrix(const TensorView& weight) override {
    if (OneDnnMatrix::Serves(precision_, deterministic_, isa_)) {
      LACUNA_ASSIGN_OR_RETURN(auto matrix, OneDnnMatrix::Pack(weight, onednn_));
      return std::unique_ptr<PreparedMatrix>(std::move(matrix));
    }
    LACUNA_ASSIGN_OR_RETURN(auto matrix, PackedMatrix::Pack(weight, precision_, pool_));
    LACUNA_RETURN_IF_ERROR(matmul_.Reserve(matrix->columns()));
    return std::unique_ptr<PreparedMatrix>(std::move(matrix));
  }

  Result<std::unique_ptr<PreparedMatrix>> PrepareRandomMatrix(int64_t rows, int64_t columns,
                                                              uint64_t seed, float scale) override {
    const auto count = CheckedMul(rows, columns);
    const auto bytes = count.has_value() ? CheckedMul<int64_t>(*count, sizeof(float)) : count;
    if (rows < 1 || columns < 1 || !bytes.has_value()) {
      return InvalidArgument(
          "PrepareRandomMatrix: need at least one row and column, and bytes "
          "that fit 64 bits");
    }
    LACUNA_ASSIGN_OR_RETURN(const Buffer memory, AllocateZeroed(*bytes));
    auto* values = reinterpret_cast<float*>(memory.data());
    uint64_t state = seed * 2 + 1;
    for (int64_t i = 0; i < *count; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX
      values[i] = scale * static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1.0p-31f;
    }
    return PrepareMatrix(TensorView(values, DType::kF32, {rows, columns}));
  }

  Status ReserveWorkspace(const WorkspaceLimits&) override { return OkStatus(); }

  Status Embed(const EmbedArgs& args, Stream&) override {
    LACUNA_RETURN_IF_ERROR(CheckIndices(args.ids, args.table.dim(0), "Embed: ids"));
    ForRows(pool_, args.out.dim(0), RowBytes(args.out), [&](int64_t row) {
      rows_.embed({.table_row = RowOf(args.table, args.ids.as<int32_t>()[row]),
                   .out = reinterpret_cast<float*>(RowOf(args.out, row)),
                   .dtype = args.table.dtype(),
                   .scale = args.scale,
                   .dim = args.out.dim(1)});
    });
    return OkStatus();
  }

  Status RmsNorm(const RmsNormArgs& args, Stream&) override {
    const int64_t dim = args.weight.dim(0);
    const int64_t heads = args.x.rank() == 3 ? args.x.dim(1) : 1;
    const auto x_bytes = dim * static_cast<int64_t>(DTypeBytes(args.x.dtype()));
    const auto out_bytes = dim * static_cast<int64_t>(DTypeBytes(args.out.dtype()));
    ForRows(pool_, args.x.dim(0), heads * (x_bytes + out_bytes), [&](int64_t row) {
      for (int64_t head = 0; head < heads; ++head) {
        rows_.rms_norm({.x = RowOf(args.x, row) + head * x_bytes,
                        .weight = args.weight.as<float>(),
                        .out = RowOf(args.out, row) + head * out_bytes,
                        .x_dtype = args.x.dtype(),
                        .out_dtype = args.out.dtype(),
                        .accumulate = args.accumulate,
                        .eps = args.eps,
                        .dim = dim});
      }
    });
    return OkStatus();
  }

  Status Matmul(const MatmulArgs& args, Stream&) override {
    if (OneDnnMatrix::Serves(precision_, deterministic_, isa_)) {
      const auto* matrix = dynamic_cast<const OneDnnMatrix*>(args.weight);
      if (matrix != nullptr) return matrix->Run(args, pool_, onednn_);
    }
    const auto* weight = dynamic_cast<const PackedMatrix*>(args.weight);
    if (weight == nullptr || weight->dtype() != precision_) {
      return InvalidArgument("Matmul: weight: prepared by another backend");
    }
    matmul_.Run(args, *weight);
    return OkStatus();
  }

  Status GatedActivation(const GatedActivationArgs& args, Stream&) override {
    const int64_t half_bytes = RowBytes(args.gate_up) / 2;
    ForRows(pool_, args.out.dim(0), 3 * half_bytes, [&](int64_t row) {
      const std::byte* gate = RowOf(args.gate_up, row);
      rows_.gated({.gate = gate,
                   .up = gate + half_bytes,
                   .out = RowOf(args.out, row),
                   .dtype = precision_,
                   .gelu = args.activation == Activation::kGeluTanh,
                   .dim = args.out.dim(1)});
    });
    return OkStatus();
  }

  Status GatherRows(const GatherRowsArgs& args, Stream&) override {
    LACUNA_RETURN_IF_ERROR(CheckIndices(args.rows, args.x.dim(0), "GatherRows: rows"));
    const int64_t bytes = RowBytes(args.out);
    ForRows(pool_, args.out.dim(0), bytes, [&](int64_t row) {
      std::memcpy(RowOf(args.out, row), RowOf(args.x, args.rows.as<int32_t>()[row]),
                  static_cast<size_t>(bytes));
    });
    return OkStatus();
  }

  Status Softcap(const SoftcapArgs& args, Stream&) override {
    ForRows(pool_, args.x.dim(0), RowBytes(args.x), [&](int64_t row) {
      rows_.softcap(reinterpret_cast<float*>(RowOf(args.x, row)), args.x.dim(1), args.cap);
    });
    return OkStatus();
  }

  Status RopeAppend(const RopeAppendArgs& args, Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(
        CheckIndices(args.positions, args.cos_sin.dim(0), "RopeAppend: positions"));
    for (const auto& [heads, weight] :
         {std::pair(&args.q, &args.q_norm), {&args.k, &args.k_norm}}) {
      if (heads->empty()) continue;
      if (!weight->empty()) {
        LACUNA_RETURN_IF_ERROR(
            RmsNorm({.x = *heads, .weight = *weight, .out = *heads, .eps = args.norm_eps}, stream));
      }
      Turn(*heads, args);
    }
    return AppendKv({.k = args.k, .v = args.v, .slots = args.slots, .pool = args.pool}, stream);
  }

  Status AppendKv(const AppendKvArgs& args, Stream&) override {
    return AppendKvCpu(args, isa_, pool_);
  }
  Status AttendDecode(const AttendDecodeArgs& args, Stream&) override {
    return AttendDecodeCpu(args, isa_, deterministic_, pool_, attention_);
  }
  Status AttendPrefill(const AttendPrefillArgs& args, Stream&) override {
    return AttendPrefillCpu(args, isa_, deterministic_, pool_, attention_);
  }
  Status Sample(const SampleArgs& args, Stream&) override {
    return SampleCpu(args, pool_, sampling_);
  }

  bool has_sparse_ops() const override { return true; }
  Status AppendMetadata(const AppendMetadataArgs& args, Stream&) override {
    return AppendMetadataCpu(args, isa_, pool_, append_metadata_);
  }
  Status SelectKeys(const SelectKeysArgs& args, Stream&) override {
    return SelectKeysCpu(args, isa_, pool_, select_keys_);
  }
  Status SelectRanges(const SelectRangesArgs& args, Stream&) override {
    return SelectRangesCpu(args, isa_, pool_, ranges_);
  }
  Status CorrectPrefill(const CorrectPrefillArgs& args, Stream&) override {
    return CorrectPrefillCpu(args, isa_, pool_);
  }
  Status CompareAttention(const CompareAttentionArgs& args, Stream&) override {
    return CompareAttentionCpu(args, isa_, pool_);
  }

 private:
  // Rotary embedding of x [tokens, heads, head_dim] in place.
  void Turn(const TensorView& x, const RopeAppendArgs& args) {
    const int64_t pairs = args.cos_sin.dim(1) / 2;
    const int64_t head_bytes = RowBytes(x) / x.dim(1);
    ForRows(pool_, x.dim(0), RowBytes(x), [&](int64_t row) {
      const auto* cosines =
          reinterpret_cast<const float*>(RowOf(args.cos_sin, args.positions.as<int32_t>()[row]));
      for (int64_t head = 0; head < x.dim(1); ++head) {
        rows_.rope({.x = RowOf(x, row) + head * head_bytes,
                    .cosines = cosines,
                    .sines = cosines + pairs,
                    .dtype = precision_,
                    .interleaved = args.interleaved,
                    .pairs = pairs});
      }
    });
  }

  DType precision_;
  bool deterministic_;
  Isa isa_;
  std::string name_;
  const RowOps& rows_;
  CpuDevice device_;
  ThreadPool pool_;
  MatmulRunner matmul_;
  std::vector<OneDnnScratch> onednn_;  // one per worker
  AttentionScratch attention_;
  SelectRangesScratch ranges_;
  AppendMetadataScratch append_metadata_;
  SelectKeysScratch select_keys_;
  std::vector<SampleScratch> sampling_;  // one per worker
};

}  // namespace

Result<std::unique_ptr<Backend>> MakeCpuBackend(const BackendOptions& options) {
  if (options.precision != DType::kBF16 && options.precision != DType::kF32) {
    return InvalidArgument("precision: got " + std::string(DTypeName(options.precision)) +
                           ", need bf16 or f32");
  }
  if (options.threads < 0 || options.threads > kThreadsMax) {
    return InvalidArgument("threads: got " + std::to_string(options.threads) + ", need 0 to " +
                           std::to_string(kThreadsMax));
  }
  LACUNA_ASSIGN_OR_RETURN(const Isa isa_max, ParseIsa(options.isa_max));
  const Isa isa = std::min(isa_max, DetectIsa());
  const int threads = options.threads > 0 ? options.threads : UsableCores();
  if (isa < Isa::kAvx512Bf16 && options.precision == DType::kBF16) {
    spdlog::info(
        "cpu: no AVX512_BF16 ({}): bf16 weights are widened to f32 in registers, "
        "prefill runs at a fraction of the speed",
        IsaName(isa));
  }
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(options, isa, threads));
}

}  // namespace lacuna::kernels::cpu
