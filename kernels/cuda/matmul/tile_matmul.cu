// Matrix product by tiles with mma.sync (sm_80 and newer): what deterministic mode uses for many
// rows, and few rows before sm_90. Every output is one chain of m16n8k16 over ascending k, with the
// order within 32 of k of skinny_matmul_sm90.cu, so its bits depend on neither m nor the tile
// shape.
#include <algorithm>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul/matmul_epilogue.cuh"
#include "kernels/cuda/matmul/matmul_kernels.h"
#include "kernels/cuda/ptx.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kPanel = 32;  // k of one panel: rows of 64 bytes, read without bank conflicts

// kWarpsM x kWarpsN warps with kM x kN mma tiles (16 rows, 8 columns) each; kPanels per stage.
template <int kWarpsM_, int kWarpsN_, int kM_, int kN_, int kPanels_, int kStages_>
struct TileShape final {
  static constexpr int kWarpsM = kWarpsM_;
  static constexpr int kWarpsN = kWarpsN_;
  static constexpr int kM = kM_;
  static constexpr int kN = kN_;
  static constexpr int kPanels = kPanels_;
  static constexpr int kStages = kStages_;
  static constexpr int kThreads = kWarpsM * kWarpsN * 32;
  static constexpr int kRows = kWarpsM * kM * 16;
  static constexpr int kColumns = kWarpsN * kN * 8;
  static constexpr int kPanelBytes = (kRows + kColumns) * kPanel * 2;
  static constexpr int kSharedBytes = kStages * kPanels * kPanelBytes;
};
using LargeTile = TileShape<2, 4, 4, 4, 4, 3>;  // 128 x 128; 192 KiB: sm_90
using LeanTile = TileShape<2, 4, 4, 4, 2, 3>;   // the same in 96 KiB: every device
using SmallTile = TileShape<1, 4, 1, 1, 4, 5>;  // 16 x 32

struct TileParams final {
  const std::byte* x;
  const std::byte* weight;
  MatmulSink sink;
  int64_t x_stride;  // bytes
  int64_t m;
  int64_t n;
  int64_t k;
};

// Copies one operand's rows of a panel; zeros beyond its rows and beyond k.
template <int kRows, int kThreads>
__device__ void CopyPanel(uint32_t shared, const std::byte* from, int64_t stride, int64_t first,
                          int64_t rows, int64_t k0, int64_t k) {
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x); i < kRows * 4; i += kThreads) {
    const int64_t row = first + i / 4;
    const int64_t column = k0 + i % 4 * 8;
    const bool valid = row < rows && column < k;
    AsyncCopy16(shared + i * 16, valid ? from + row * stride + column * 2 : from, valid);
  }
}

__device__ inline void LoadShared16(uint32_t (&out)[4], uint32_t address) {
  const uint4 words = LoadShared128(address);
  out[0] = words.x;
  out[1] = words.y;
  out[2] = words.z;
  out[3] = words.w;
}

// The operands of one panel, as mma wants them.
template <typename Shape>
struct Fragments final {
  uint32_t x[Shape::kM][2][4];  // rows g and g + 8
  uint32_t weight[Shape::kN][4];

  __device__ void Load(uint32_t x_at, uint32_t weight_at) {
#pragma unroll
    for (int j = 0; j < Shape::kN; ++j) {
      LoadShared16(weight[j], weight_at + j * 8 * kPanel * 2);
    }
#pragma unroll
    for (int i = 0; i < Shape::kM; ++i) {
      LoadShared16(x[i][0], x_at + i * 16 * kPanel * 2);
      LoadShared16(x[i][1], x_at + (i * 16 + 8) * kPanel * 2);
    }
  }
};

template <typename T, typename Shape>
__device__ void Multiply(float (&sum)[Shape::kM][Shape::kN][4], const Fragments<Shape>& f) {
#pragma unroll
  for (int half = 0; half < 4; half += 2) {
#pragma unroll
    for (int i = 0; i < Shape::kM; ++i) {
#pragma unroll
      for (int j = 0; j < Shape::kN; ++j) {
        const auto& low = f.x[i][0];
        const auto& high = f.x[i][1];
        MmaM16N8K16<T>(sum[i][j], {low[half], high[half], low[half + 1], high[half + 1]},
                       f.weight[j][half], f.weight[j][half + 1]);
      }
    }
  }
}

template <typename Shape>
__device__ void StoreTile(const TileParams& p, const float (&sum)[Shape::kM][Shape::kN][4],
                          int64_t row0, int64_t column0) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < Shape::kM; ++i) {
#pragma unroll
    for (int j = 0; j < Shape::kN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t row = row0 + i * 16 + lane / 4 + e / 2 * 8;
        const int64_t column = column0 + j * 8 + lane % 4 * 2 + e % 2;
        if (row < p.m && column < p.n) StoreResult(p.sink, row, column, sum[i][j][e]);
      }
    }
  }
}

template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1) TileKernel(const TileParams p) {
  LACUNA_DYNAMIC_SHARED(128, std::byte, shared);
  const uint32_t base = SharedAddress(shared);
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * Shape::kRows;
  const int64_t column0 = static_cast<int64_t>(blockIdx.y) * Shape::kColumns;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = warp / Shape::kWarpsN * Shape::kM * 16;
  const int warp_column = warp % Shape::kWarpsN * Shape::kN * 8;
  const int panels = static_cast<int>((p.k + kPanel - 1) / kPanel);
  const int steps = (panels + Shape::kPanels - 1) / Shape::kPanels;

  const auto copy = [&](int step) {
    if (step < steps) {
#pragma unroll
      for (int i = 0; i < Shape::kPanels; ++i) {
        const uint32_t to =
            base + (step % Shape::kStages * Shape::kPanels + i) * Shape::kPanelBytes;
        const int64_t k0 = (static_cast<int64_t>(step) * Shape::kPanels + i) * kPanel;
        CopyPanel<Shape::kRows, Shape::kThreads>(to, p.x, p.x_stride, row0, p.m, k0, p.k);
        CopyPanel<Shape::kColumns, Shape::kThreads>(to + Shape::kRows * kPanel * 2, p.weight,
                                                    p.k * 2, column0, p.n, k0, p.k);
      }
    }
    AsyncCopyCommit();
  };

  float sum[Shape::kM][Shape::kN][4] = {};
  Fragments<Shape> fragments[2];
  LetNextStart();
  WaitForPrevious();
  for (int step = 0; step < Shape::kStages - 1; ++step) copy(step);
  for (int step = 0; step < steps; ++step) {
    AsyncCopyWait<Shape::kStages - 2>();
    __syncthreads();
    copy(step + Shape::kStages - 1);
    const uint32_t stage = base + step % Shape::kStages * Shape::kPanels * Shape::kPanelBytes +
                           lane / 4 * kPanel * 2 + lane % 4 * 16;
    const auto load = [&](int panel) {
      const uint32_t at = stage + panel * Shape::kPanelBytes;
      fragments[panel % 2].Load(at + warp_row * kPanel * 2,
                                at + (Shape::kRows + warp_column) * kPanel * 2);
    };
    load(0);
#pragma unroll
    for (int i = 0; i < Shape::kPanels; ++i) {
      if (i + 1 < Shape::kPanels) load(i + 1);
      Multiply<T, Shape>(sum, fragments[i % 2]);
    }
  }
  StoreTile<Shape>(p, sum, row0 + warp_row, column0 + warp_column);
}

template <typename T, typename Shape>
Status RunTile(const MatmulTask& task, cudaStream_t stream) {
  const TileParams params{.x = static_cast<const std::byte*>(task.x),
                          .weight = static_cast<const std::byte*>(task.weight),
                          .sink = SinkOf(task),
                          .x_stride = task.x_stride * 2,
                          .m = task.m,
                          .n = task.n,
                          .k = task.k};
  const dim3 grid(static_cast<unsigned>(CeilDiv(task.m, Shape::kRows)),
                  static_cast<unsigned>(CeilDiv(task.n, Shape::kColumns)));
  const auto kernel = TileKernel<T, Shape>;
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes));
  return Launch(kernel, grid, dim3(Shape::kThreads), Shape::kSharedBytes, stream, params);
}

}  // namespace

Status TileMatmul(const MatmulTask& task, cudaStream_t stream) {
  if (task.m == 0 || task.n == 0) return OkStatus();
  const auto run = [&](auto shape) {
    using Shape = decltype(shape);
    return task.dtype == DType::kBF16 ? RunTile<__nv_bfloat16, Shape>(task, stream)
                                      : RunTile<__half, Shape>(task, stream);
  };
  if (task.m <= SmallTile::kRows) return run(SmallTile{});
  int device = 0;
  int shared_bytes_max = 0;
  LACUNA_CUDA_RETURN_IF_ERROR(cudaGetDevice(&device));
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaDeviceGetAttribute(&shared_bytes_max, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return LargeTile::kSharedBytes <= shared_bytes_max ? run(LargeTile{}) : run(LeanTile{});
}

}  // namespace lacuna::kernels::cuda
