// Sample: the next token of each row, without a sort (the order of kernels/ops/sample.h).
//
// Two launches: one measures all chunks of all rows at the speed of memory; the other chooses, a
// block for a row, which reads of it only the few chunks that matter, or, for a top_p alone, the
// likelier tokens that the first has left. Rows that have to be looked at as a whole, also where
// these tokens turn out to be too few, belong to a cluster of up to 16 blocks (sm_90), as many as
// fill the device, which read them once more and keep what may be chosen in shared memory.
#include <algorithm>
#include <array>
#include <atomic>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sample/sample_likely.cuh"
#include "kernels/cuda/sample/sample_pass.cuh"
#include "kernels/cuda/sample/sample_plain.cuh"
#include "kernels/cuda/sample/sample_row.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kTeamsOnMultiprocessor = 1;  // blocks of teams
constexpr int kAloneOnMultiprocessor = 2;  // blocks with a row of their own

__global__ void __launch_bounds__(kMeasureThreads, kMeasureBlocks)
    MeasureKernel(const SampleParams params) {
  ChunkMeasure(params).Run();
}

enum class Road { kDone, kAlone, kTeam };

// By the first block of a team that has arrived once, while the others wait to hear whether they
// can leave. Returns what is still to be done: all have arrived again for a team, or it is for the
// first alone.
__device__ Road ChooseLikely(const SampleParams& params, const Team<true>& team,
                             const SampleRow& row, const RowPlan& plan) {
  bool& too_few = SharedSelect().likely_too_few;
  bool done = false;
  team.Wait();
  if (team.rank == 0) {
    done = LikelyChoice(params, row, plan).Run([&](bool enough) {
      if (enough) return team.ArriveRelaxed();
      const auto to = static_cast<int>(threadIdx.x);
      if (to < team.size) *team.Remote(&too_few, to) = true;
      team.Arrive();
    });
    __syncthreads();
    team.Wait();  // who has arrived waits, also where the others left long ago
    if (!done && !too_few) return Road::kAlone;
  } else {
    team.Barrier();
    done = !too_few;
  }
  if (!done) team.Arrive();
  return done ? Road::kDone : Road::kTeam;
}

// Reads the rows' parameters before it waits for MeasureKernel, which does not write them and has
// waited for whoever did.
template <bool kCluster>
__global__ void __launch_bounds__(kSampleThreads,
                                  kCluster ? kTeamsOnMultiprocessor : kAloneOnMultiprocessor)
    ChooseKernel(const SampleParams params) {
  LetNextStart();
  const SampleRow row = LoadRow<true>(params.rows[blockIdx.y]);
  const RowPlan plan(row, params);
  if (PlainChoice::Does(row, params)) {
    if (blockIdx.x == 0) PlainChoice(params, row, plan).Run();
    return;
  }
  if constexpr (kCluster) {
    const Team<true> team;
    if (threadIdx.x == 0) SharedSelect().likely_too_few = false;
    team.Arrive();
    Road road = Road::kTeam;
    if (plan.leaves) [[unlikely]] {
      road = ChooseLikely(params, team, row, plan);
    }
    if (road == Road::kDone) return;
    if (IsWide(row) && road == Road::kTeam) {
      RowSampler<true>(params, team, row, plan).Run();
      return;
    }
    if (team.rank != 0) return;  // the first one waits, for all
  } else if (plan.leaves) [[unlikely]] {
    if (LikelyChoice(params, row, plan).Run([](bool /*enough*/) {})) return;
    __syncthreads();
  }
  RowSampler<false>(params, Team<false>(), row, plan).Run();
}

struct ClusterLaunch final {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config{};

  ClusterLaunch(int64_t blocks, int64_t rows, int64_t shared_bytes, cudaStream_t stream) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(rows));
    config.blockDim = dim3(kSampleThreads);
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 2;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;
  ClusterLaunch& operator=(const ClusterLaunch&) = delete;
};

// Shared memory of a block: so much that so many have room, if that is enough.
int64_t SharedBytes(int64_t all, int64_t blocks_on_multiprocessor, const DeviceTraits& traits) {
  constexpr int64_t kReserved = 1024;  // of each block
  const int64_t share =
      (traits.shared_bytes_max + kReserved) / blocks_on_multiprocessor - kReserved;
  return std::max(share / 128 * 128, SharedPlan::Of(all, kListMax).bytes);
}

// How many clusters of so many blocks run at once: a property of the device.
Result<int64_t> ClustersAtOnce(int64_t blocks, int64_t shared_bytes) {
  static std::array<std::atomic<int>, kTeamMax + 1> known{};
  int clusters = known[static_cast<size_t>(blocks)];
  if (clusters == 0) {
    ClusterLaunch launch(blocks, 1, shared_bytes, nullptr);
    launch.config.numAttrs = 1;  // the cluster
    LACUNA_CUDA_RETURN_IF_ERROR(cudaOccupancyMaxActiveClusters(
        &clusters, reinterpret_cast<const void*>(ChooseKernel<true>), &launch.config));
    known[static_cast<size_t>(blocks)] = std::max(clusters, 1);
  }
  return clusters;
}

// As many blocks for a row as let all rows run at once, but two at least; 16 is what sm_90 allows
// beyond the portable 8.
Result<int64_t> TeamBlocks(int64_t rows, int64_t all, const DeviceTraits& traits) {
  if (traits.major < 9 || all == 1) return 1;
  const int64_t shared_bytes = SharedBytes(all, kTeamsOnMultiprocessor, traits);
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(ChooseKernel<true>,
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes)));
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(ChooseKernel<true>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  for (int64_t blocks = traits.major == 9 ? kTeamMax : 8; blocks > 2; blocks /= 2) {
    if (blocks * rows > traits.sm_count * kTeamsOnMultiprocessor || blocks > all) continue;
    LACUNA_ASSIGN_OR_RETURN(const int64_t clusters, ClustersAtOnce(blocks, shared_bytes));
    if (clusters >= rows) return blocks;
  }
  return 2;
}

// Chunks of a block, of those of all rows: so many that all blocks run at once. Of few rows up to
// two for each warp: multiprocessors without a block let ChooseKernel start early (16 rows, H200:
// 5.8 us with 36 chunks for a block, 6.7 us with 18 and blocks everywhere).
int64_t MeasuredChunks(int64_t measured, const DeviceTraits& traits) {
  const int64_t each = CeilDiv(measured, traits.sm_count);
  const int64_t few = each < kMeasureWarps ? each : each / kMeasureWarps * kMeasureWarps;
  return std::max(CeilDiv(measured, traits.sm_count * kMeasureBlocks),
                  std::min<int64_t>(few, 2 * kMeasureWarps));
}

Status Measure(const SampleParams& params, cudaStream_t stream) {
  // Leaves shared memory to the kernel that follows.
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(MeasureKernel,
                                                   cudaFuncAttributePreferredSharedMemoryCarveout,
                                                   cudaSharedmemCarveoutMaxShared));
  const auto blocks = static_cast<unsigned>(CeilDiv(params.measured, params.measured_chunks));
  return Launch(MeasureKernel, dim3(blocks), dim3(kMeasureThreads), sizeof(MeasureScratch), stream,
                params);
}

}  // namespace

int64_t SampleWorkspaceBytes(int64_t rows_max, int64_t vocab_size) {
  const int64_t all = CeilDiv(vocab_size, kChunk);
  constexpr int64_t kChunkBytes = kChunk * sizeof(float);
  return rows_max * ((all + 1) * kChunkBytes + all * int64_t{sizeof(ChunkStats)});
}

Status Sample(const SampleArgs& args, const DeviceTraits& traits, const Workspace& workspace,
              cudaStream_t stream) {
  const int64_t rows = args.logits.dim(0);
  const int64_t vocab = args.logits.dim(1);
  if (rows == 0) return OkStatus();
  if (vocab > int64_t{1} << 21) return InvalidArgument("Sample: more than 2097152 tokens");
  if (workspace.bytes < SampleWorkspaceBytes(rows, vocab)) {
    return InternalError("Sample: the workspace is too small");
  }
  const int64_t all = CeilDiv(vocab, kChunk);
  LACUNA_ASSIGN_OR_RETURN(const int64_t blocks, TeamBlocks(rows, all, traits));
  const bool spread = blocks > 1 || rows <= traits.sm_count;  // over multiprocessors
  const int64_t shared_bytes =
      SharedBytes(all, spread ? kTeamsOnMultiprocessor : kAloneOnMultiprocessor, traits);
  const int64_t room = shared_bytes - SharedPlan::Of(all, 0).bytes;
  const auto* logits = args.logits.as<float>();
  auto* const changed = static_cast<float*>(workspace.data);
  const SampleParams params{
      .logits = logits,
      .rows = args.rows,
      .edits = args.edits,
      .mask = args.mask,
      .results = args.results,
      .tokens = args.tokens,
      .changed = changed,
      .stats = reinterpret_cast<ChunkStats*>(changed + rows * (all + 1) * kChunk),
      .tails = changed + rows * all * kChunk,
      .logits_stride = args.logits.stride(0),
      .changed_stride = all * kChunk,
      .vocab = static_cast<int>(vocab),
      .all = static_cast<int>(all),
      .measured = static_cast<int>(rows * all),
      .measured_chunks = static_cast<int>(MeasuredChunks(rows * all, traits)),
      .chunks = static_cast<int>(CeilDiv(all, blocks)),
      .gathered_max = static_cast<int>(room / int64_t{sizeof(Gathered)}),
      .likely_max = static_cast<int>((shared_bytes - int64_t{sizeof(LikelyScratch)}) /
                                     int64_t{sizeof(Gathered)}),
      .aligned = reinterpret_cast<uintptr_t>(logits) % 16 == 0 &&
                 (rows == 1 || args.logits.stride(0) % 4 == 0)};
  LACUNA_RETURN_IF_ERROR(Measure(params, stream));
  if (blocks > 1) {
    const ClusterLaunch launch(blocks, rows, shared_bytes, stream);
    return CudaStatus(cudaLaunchKernelEx(&launch.config, ChooseKernel<true>, params), "Sample");
  }
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(ChooseKernel<false>,
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes)));
  return Launch(ChooseKernel<false>, dim3(1, static_cast<unsigned>(rows)), dim3(kSampleThreads),
                static_cast<size_t>(shared_bytes), stream, params);
}

}  // namespace lacuna::kernels::cuda
