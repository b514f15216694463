#include "kernels/cpu/matmul.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "kernels/core/checked_math.h"
#include "kernels/cpu/memory.h"

namespace lacuna::kernels::cpu {

namespace scalar {
extern const PanelKernels kPanelKernels;
}
namespace avx2 {
extern const PanelKernels kPanelKernels;
}
namespace avx512 {
extern const PanelKernels kPanelKernels;
}
namespace avx512_bf16 {
extern const PanelKernels kPanelKernels;
}
namespace amx {
void PanelBf16(const PanelArgs& args);
}

namespace {

// A block of x that stays in L2 beside a panel while the panels pass by.
constexpr int64_t kBlockBytes = 512 << 10;
constexpr int64_t kBlockRowsMax = 264;
constexpr int64_t kBlockRowsMin = 48;
// Consecutive panels that one task streams when the weights come from memory.
constexpr int64_t kStreamBytes = 256 << 10;
// Fewer rows than this are faster on vectors, when the bits may depend on the number of rows.
constexpr int64_t kAmxRowsMin = 4;

template <typename T>
void PackPanelBf16(const TensorView& weight, int64_t first, int64_t rows, BF16* out) {
  for (int64_t j = 0; j < rows; ++j) {
    const T* from = weight.as<T>() + (first + j) * weight.stride(0);
    BF16* to = out + 2 * j;
    for (int64_t k = 0; k < weight.dim(1); ++k) {
      BF16& cell = to[(k / 2) * 2 * kPanelColumns + k % 2];
      if constexpr (std::is_same_v<T, BF16>) {
        cell = from[k];
      } else if constexpr (std::is_same_v<T, F16>) {
        cell = ToBF16(ToFloat(from[k]));
      } else {
        cell = ToBF16(from[k]);
      }
    }
  }
}

template <typename T>
void PackPanelF32(const TensorView& weight, int64_t first, int64_t rows, float* out) {
  for (int64_t j = 0; j < rows; ++j) {
    const T* from = weight.as<T>() + (first + j) * weight.stride(0);
    for (int64_t k = 0; k < weight.dim(1); ++k) {
      if constexpr (std::is_same_v<T, float>) {
        out[k * kPanelColumns + j] = from[k];
      } else {
        out[k * kPanelColumns + j] = ToFloat(from[k]);
      }
    }
  }
}

template <typename T>
void PackPanel(const TensorView& weight, int64_t first, int64_t rows, DType precision,
               std::byte* out) {
  if (precision == DType::kBF16) {
    PackPanelBf16<T>(weight, first, rows, reinterpret_cast<BF16*>(out));
  } else {
    PackPanelF32<T>(weight, first, rows, reinterpret_cast<float*>(out));
  }
}

}  // namespace

const PanelKernels& PanelKernelsOf(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return scalar::kPanelKernels;
    case Isa::kAvx2:
      return avx2::kPanelKernels;
    case Isa::kAvx512:
      return avx512::kPanelKernels;
    case Isa::kAvx512Bf16:
      break;
    case Isa::kAmx: {
      static const PanelKernels kernels = {amx::PanelBf16, avx512_bf16::kPanelKernels.f32,
                                           kPanelColumns};
      return kernels;
    }
  }
  return avx512_bf16::kPanelKernels;
}

Result<std::unique_ptr<PackedMatrix>> PackedMatrix::Pack(const TensorView& weight, DType precision,
                                                         ThreadPool& pool) {
  auto matrix = std::unique_ptr<PackedMatrix>(new PackedMatrix());
  matrix->rows_ = weight.dim(0);
  matrix->columns_ = weight.dim(1);
  matrix->dtype_ = precision;
  matrix->panels_ = CeilDiv(matrix->rows_, kPanelColumns);
  matrix->panel_bytes_ = RoundUp(matrix->columns_, kKPadding) * kPanelColumns *
                         static_cast<int64_t>(DTypeBytes(precision));
  LACUNA_ASSIGN_OR_RETURN(matrix->data_, AllocateZeroed(matrix->panels_ * matrix->panel_bytes_));
  pool.ParallelFor(matrix->panels_, [&](int64_t index, int) {
    const int64_t first = index * kPanelColumns;
    const int64_t rows = std::min(kPanelColumns, matrix->rows_ - first);
    switch (weight.dtype()) {
      case DType::kBF16:
        return PackPanel<BF16>(weight, first, rows, precision, matrix->panel(index));
      case DType::kF16:
        return PackPanel<F16>(weight, first, rows, precision, matrix->panel(index));
      default:
        return PackPanel<float>(weight, first, rows, precision, matrix->panel(index));
    }
  });
  return matrix;
}

MatmulRunner::MatmulRunner(Isa isa, bool deterministic, ThreadPool& pool)
    : isa_(isa), deterministic_(deterministic), pool_(pool) {}

Status MatmulRunner::Reserve(int64_t columns) {
  const int64_t bytes = 32 * RoundUp(columns, kKPadding) * 2;
  if (isa_ != Isa::kAmx || bytes <= scratch_bytes_) return OkStatus();
  LACUNA_ASSIGN_OR_RETURN(scratch_, AllocateZeroed(bytes * pool_.threads()));
  scratch_bytes_ = bytes;
  return OkStatus();
}

void MatmulRunner::Run(const MatmulArgs& args, const PackedMatrix& weight) {
  const int64_t rows = args.x.dim(0);
  const bool bf16 = weight.dtype() == DType::kBF16;
  const bool too_few = !deterministic_ && isa_ == Isa::kAmx && rows < kAmxRowsMin;
  const PanelKernels& kernels = PanelKernelsOf(too_few ? Isa::kAvx512Bf16 : isa_);
  const PanelKernel kernel = bf16 ? kernels.bf16 : kernels.f32;

  const auto x_row_bytes = weight.columns() * static_cast<int64_t>(DTypeBytes(args.x.dtype()));
  const int64_t fitting =
      std::clamp(kBlockBytes / std::max<int64_t>(x_row_bytes, 1), kBlockRowsMin, kBlockRowsMax);
  const int64_t blocks = CeilDiv(rows, fitting);
  const int64_t block_rows = RoundUp(CeilDiv(rows, blocks), kernels.strip_rows);
  // With few rows a task is a long run of weights; never so long that a worker stays idle.
  const int64_t streamed = std::max<int64_t>(1, kStreamBytes / weight.panel_bytes());
  const int64_t shared = std::max<int64_t>(1, weight.panels() / (4 * pool_.threads()));
  const int64_t run = blocks > 1 ? 1 : std::min(streamed, shared);
  const int64_t runs = CeilDiv(weight.panels(), run);
  const auto out_bytes = static_cast<int64_t>(DTypeBytes(args.out.dtype()));
  const auto x_bytes = static_cast<int64_t>(DTypeBytes(args.x.dtype()));

  pool_.ParallelFor(CeilDiv(rows, block_rows) * runs, [&](int64_t task, int worker) {
    const int64_t row = task / runs * block_rows;
    const int64_t panel_end = std::min(weight.panels(), (task % runs + 1) * run);
    PanelArgs panel{};
    panel.x = args.x.as<std::byte>() + row * args.x.stride(0) * x_bytes;
    panel.x_stride = args.x.stride(0);
    panel.rows = std::min(block_rows, rows - row);
    panel.k = weight.columns();
    panel.out_stride = args.out.stride(0);
    panel.out_bf16 = args.out.dtype() == DType::kBF16;
    panel.accumulate = args.accumulate;
    panel.alpha = args.alpha;
    panel.scratch = scratch_.data() + worker * scratch_bytes_;
    for (int64_t index = task % runs * run; index < panel_end; ++index) {
      const int64_t column = index * kPanelColumns;
      panel.panel = weight.panel(index);
      panel.columns = std::min(kPanelColumns, weight.rows() - column);
      panel.bias = args.bias.rank() == 0 ? nullptr : args.bias.as<float>() + column;
      panel.out = args.out.as<std::byte>() + (row * args.out.stride(0) + column) * out_bytes;
      kernel(panel);
    }
  });
}

}  // namespace lacuna::kernels::cpu
