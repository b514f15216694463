// Sample: the next token of each row, without a sort (the order of kernels/ops/sample.h).
//
// A row is spread over a cluster of up to 16 blocks, as many as fill the device (sm_90), or given
// to one block. A block keeps of its part in shared memory what fits, and reads the rest again,
// from L2.
#include <algorithm>
#include <array>
#include <atomic>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sample_row.cuh"

namespace lacuna::kernels::cuda {
namespace {

template <bool kCluster>
__global__ void __launch_bounds__(kSampleThreads, 1) SampleKernel(const SampleParams params) {
  const Team<kCluster> team;
  team.Arrive();
  LetNextStart();
  WaitForPrevious();
  RowSampler<kCluster>(params, team).Run();
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

// How many clusters of so many blocks run at once: a property of the device, as a block fills a
// multiprocessor.
Result<int64_t> ClustersAtOnce(int64_t blocks, int64_t shared_bytes) {
  static std::array<std::atomic<int>, kTeamMax + 1> known{};
  int clusters = known[static_cast<size_t>(blocks)];
  if (clusters == 0) {
    ClusterLaunch launch(blocks, 1, shared_bytes, nullptr);
    launch.config.numAttrs = 1;  // the cluster
    LACUNA_CUDA_RETURN_IF_ERROR(cudaOccupancyMaxActiveClusters(
        &clusters, reinterpret_cast<const void*>(SampleKernel<true>), &launch.config));
    known[static_cast<size_t>(blocks)] = std::max(clusters, 1);
  }
  return clusters;
}

// How the blocks of a row divide its chunks.
struct Division final {
  int64_t blocks = 1;
  int64_t chunks = 0;           // of a block
  int64_t resident_chunks = 0;  // of them
  int64_t shared_bytes = 0;

  Division(int64_t all, int64_t blocks_of_row, const DeviceTraits& traits)
      : blocks(blocks_of_row), chunks(CeilDiv(all, blocks_of_row)) {
    constexpr int64_t kPad = 128;  // of SharedPlan
    const int64_t rest = traits.shared_bytes_max - SharedPlan::Of(chunks, 0).bytes - kPad;
    resident_chunks = std::clamp<int64_t>(rest / (kChunk * 4 + 8), 0, chunks);
    shared_bytes = SharedPlan::Of(chunks, resident_chunks).bytes;
  }
};

// As many blocks for a row as let all rows run at once, but two at least; 16 is what sm_90 allows
// beyond the portable 8.
Result<Division> Divide(int64_t rows, int64_t vocab, const DeviceTraits& traits) {
  const int64_t all = CeilDiv(vocab, kChunk);
  if (traits.major < 9) return Division(all, 1, traits);
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(SampleKernel<true>,
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(traits.shared_bytes_max)));
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(SampleKernel<true>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  for (int64_t blocks = traits.major == 9 ? kTeamMax : 8; blocks > 2; blocks /= 2) {
    if (blocks * rows > traits.sm_count || blocks > all) continue;
    const Division division(all, blocks, traits);
    LACUNA_ASSIGN_OR_RETURN(const int64_t clusters, ClustersAtOnce(blocks, division.shared_bytes));
    if (clusters >= rows) return division;
  }
  return Division(all, all > 1 ? 2 : 1, traits);
}

}  // namespace

int64_t SampleWorkspaceBytes(int64_t rows_max, int64_t vocab_size) {
  return rows_max * RoundUp(vocab_size, kChunk) * static_cast<int64_t>(sizeof(float));
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
  LACUNA_ASSIGN_OR_RETURN(const Division division, Divide(rows, vocab, traits));
  const auto* logits = args.logits.as<float>();
  const SampleParams params{.logits = logits,
                            .rows = args.rows,
                            .edits = args.edits,
                            .mask = args.mask,
                            .results = args.results,
                            .tokens = args.tokens,
                            .changed = static_cast<float*>(workspace.data),
                            .logits_stride = args.logits.stride(0),
                            .changed_stride = RoundUp(vocab, kChunk),
                            .vocab = static_cast<int>(vocab),
                            .chunks = static_cast<int>(division.chunks),
                            .resident_chunks = static_cast<int>(division.resident_chunks),
                            .aligned = reinterpret_cast<uintptr_t>(logits) % 16 == 0 &&
                                       (rows == 1 || args.logits.stride(0) % 4 == 0)};
  if (traits.major >= 9) {
    const ClusterLaunch launch(division.blocks, rows, division.shared_bytes, stream);
    return CudaStatus(cudaLaunchKernelEx(&launch.config, SampleKernel<true>, params), "Sample");
  }
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(SampleKernel<false>,
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(division.shared_bytes)));
  return Launch(SampleKernel<false>, dim3(1, static_cast<unsigned>(rows)), dim3(kSampleThreads),
                static_cast<size_t>(division.shared_bytes), stream, params);
}

}  // namespace lacuna::kernels::cuda
