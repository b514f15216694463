// Paged causal prefill attention for Hopper (sm_90a), after FlashAttention-3 (Shah et al. 2024).
//
// A key tile is two pages; bulk copies of whole stripes are ready wgmma operands (kv_layout.cuh).
// Key tiles lie at absolute multiples of 128 keys and are visited in ascending order, so the bits
// of a row do not depend on how its prompt was cut into chunks.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/cuda/attend/attend_prefill_sm90.h"
#include "kernels/cuda/attend/attend_prefill_sm90_consumer.cuh"
#include "kernels/cuda/attend/attend_prefill_sm90_producer.cuh"
#include "kernels/cuda/attend/attend_prefill_sm90_shared.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace lacuna::kernels::cuda {
namespace {

// 40 * 128 + 232 * 256 = 384 * 168, what the launch gets: a larger sum would wait for ever.
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;

template <typename T, int kHeadDim, bool kCapped>
__global__ void __launch_bounds__(kThreads, 1)
    PrefillKernel(const __grid_constant__ PrefillParams params) {
  extern __shared__ std::byte memory[];
  auto& shared = *reinterpret_cast<Shared<kHeadDim>*>(
      memory + ((1024 - (SharedAddress(memory) & 1023)) & 1023));
  if (threadIdx.x == 0) InitBarriers(shared);
  __syncthreads();
  WaitForPrevious();
  // Shuffled so that the compiler knows it is the same for all lanes.
  const int group = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kGroupThreads, 0);
  const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
  if (group == 0) {
    RegistersShrink<kProducerRegisters>();
    if (thread < 32) Walker<kHeadDim>(params, shared, thread).Run();
    if (thread / 32 == 1) Copier<kHeadDim>(params, shared, thread - 32).Run();
  } else {
    RegistersGrow<kConsumerRegisters>();
    Consumer<T, kHeadDim, kCapped>(params, shared, group - 1, thread).Run();
  }
}

__global__ void ClearCounter(int32_t* counter) {
  LetNextStart();
  WaitForPrevious();
  *counter = 0;
}

// ---- host ----

using TensorMapEncode = decltype(&cuTensorMapEncodeTiled);

// Looked up at run time, so that nothing links the driver library.
Result<TensorMapEncode> TensorMapEncoder() {
  static const auto kEncode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &found);
    const bool ok = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
    return reinterpret_cast<TensorMapEncode>(ok ? function : nullptr);
  }();
  if (kEncode == nullptr) return InternalError("the driver has no cuTensorMapEncodeTiled");
  return kEncode;
}

Status EncodeQ(const TensorView& q, CUtensorMap* map) {
  LACUNA_ASSIGN_OR_RETURN(const auto encode, TensorMapEncoder());
  const auto row_bytes = static_cast<cuuint64_t>(q.stride(0)) * 2;
  const auto head_bytes = static_cast<cuuint64_t>(q.dim(2)) * 2;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(q.dim(2)), static_cast<cuuint64_t>(q.dim(1)),
                              static_cast<cuuint64_t>(q.dim(0))};
  const cuuint64_t strides[] = {head_bytes, row_bytes};
  const cuuint32_t box[] = {64, 1, kHalfRows};
  const cuuint32_t steps[] = {1, 1, 1};
  const CUresult result = encode(
      map,
      q.dtype() == DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      3, q.data(), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) return InternalError("cuTensorMapEncodeTiled refused q");
  return OkStatus();
}

// The most kv heads, a divisor of all, whose keys and values stay in L2 together.
int SectionHeads(const KvPool& pool, int64_t context_tokens) {
  constexpr int64_t kSectionBytesMax = int64_t{16} << 20;  // a part of L2 has 30 MB
  const int64_t head_bytes = context_tokens * pool.head_dim * 4;
  int64_t heads = pool.kv_heads;
  while (heads > 1 && (pool.kv_heads % heads != 0 || heads * head_bytes > kSectionBytesMax)) {
    --heads;
  }
  return static_cast<int>(heads);
}

// Takes chunks from `next` on, longest context first; returns the first one not taken.
size_t FillChunks(std::span<const PrefillChunk> chunks, size_t next, PrefillParams* params) {
  PrefillChunkEntry* const entries = params->entries;
  int count = 0;
  for (; next < chunks.size() && count < kPrefillChunksPerLaunch; ++next) {
    if (chunks[next].rows > 0) entries[count++] = {chunks[next], static_cast<int32_t>(next), 0};
  }
  const auto end = [](const PrefillChunk& chunk) { return chunk.first_position + chunk.rows; };
  std::stable_sort(entries, entries + count,
                   [&](const auto& a, const auto& b) { return end(a.chunk) > end(b.chunk); });
  int items = 0;
  for (int i = 0; i < count; ++i) {
    const PrefillChunk& chunk = entries[i].chunk;
    entries[i].first_item = items;
    const int blocks = (chunk.rows + 2 * kHalfRows - 1) / (2 * kHalfRows);
    items += blocks * (PairsHeads(chunk, params->group) ? params->group / 2 : params->group);
  }
  params->chunks = count;
  params->items_per_head = items;
  return next;
}

PrefillParams CommonParams(const AttendPrefillArgs& args, const Workspace& workspace) {
  PrefillParams params{};
  params.pool = static_cast<const std::byte*>(args.pool.data);
  params.slab_bytes = args.pool.SlabBytes();
  params.lists = args.lists;
  if (args.ranges != nullptr) params.ranges = *args.ranges;
  params.out = args.out.data();
  params.out_stride = args.out.stride(0);
  if (!args.lse.empty()) {
    params.lse = args.lse.as<float>();
    params.lse_stride = args.lse.stride(0);
  }
  const AttentionParams& attention = args.params;
  params.sink_logits = attention.sink_logits;
  params.counter = static_cast<int32_t*>(workspace.data);
  params.shape = attention.shape;
  params.shapes = args.shapes;
  const bool capped = attention.softcap > 0.0f;
  params.scale_log2 = kLog2E * (capped ? attention.softcap : attention.scale);
  params.cap_scale = capped ? attention.scale / attention.softcap : 0.0f;
  params.kv_heads = static_cast<int32_t>(args.pool.kv_heads);
  params.group = static_cast<int32_t>(args.q.dim(1) / args.pool.kv_heads);
  return params;
}

template <typename T, int kHeadDim, bool kCapped>
Status Run(const PrefillParams& params, int sm_count, cudaStream_t stream) {
  constexpr size_t kBytes = sizeof(Shared<kHeadDim>) + 1024;  // to align it
  const auto kernel = PrefillKernel<T, kHeadDim, kCapped>;
  LACUNA_CUDA_RETURN_IF_ERROR(  // each time: it is per device, and cheap
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  LACUNA_RETURN_IF_ERROR(Launch(ClearCounter, 1, 1, 0, stream, params.counter));
  const int items = params.items_per_head * params.kv_heads;
  return Launch(kernel, static_cast<unsigned>(std::min(items, sm_count)), kThreads, kBytes, stream,
                params);
}

template <typename T>
Status Run(const PrefillParams& params, int64_t head_dim, int sm_count, cudaStream_t stream) {
  const bool capped = params.cap_scale != 0.0f;
  if (head_dim == 64) {
    return capped ? Run<T, 64, true>(params, sm_count, stream)
                  : Run<T, 64, false>(params, sm_count, stream);
  }
  return capped ? Run<T, 128, true>(params, sm_count, stream)
                : Run<T, 128, false>(params, sm_count, stream);
}

}  // namespace

bool PrefillSm90Serves(const AttendPrefillArgs& args, const DeviceTraits& traits) {
  const auto aligned = [](const TensorView& view) {
    return reinterpret_cast<uintptr_t>(view.data()) % 16 == 0 && view.stride(0) % 8 == 0;
  };
  const KvPool& pool = args.pool;
  return traits.major == 9 && traits.minor == 0 &&
         (pool.dtype == DType::kBF16 || pool.dtype == DType::kF16) &&
         (pool.head_dim == 64 || pool.head_dim == 128) && pool.page_tokens == kPageKeys &&
         args.params.scale > 0.0f && aligned(args.q) && aligned(args.out);
}

Status AttendPrefillSm90(const AttendPrefillArgs& args, const DeviceTraits& traits,
                         const Workspace& workspace, cudaStream_t stream) {
  if (workspace.bytes < kPrefillSm90WorkspaceBytes) {
    return InternalError("prefill attention: the workspace is too small");
  }
  PrefillParams params = CommonParams(args, workspace);
  LACUNA_RETURN_IF_ERROR(EncodeQ(args.q, &params.q));
  for (size_t next = 0; next < args.chunks.size();) {
    next = FillChunks(args.chunks, next, &params);
    if (params.chunks == 0) continue;
    const PrefillChunk& longest = params.entries[0].chunk;
    params.section_heads = SectionHeads(args.pool, longest.first_position + longest.rows);
    LACUNA_RETURN_IF_ERROR(
        args.pool.dtype == DType::kF16
            ? Run<__half>(params, args.pool.head_dim, traits.sm_count, stream)
            : Run<__nv_bfloat16>(params, args.pool.head_dim, traits.sm_count, stream));
  }
  return OkStatus();
}

}  // namespace lacuna::kernels::cuda
