// Paged causal prefill attention for Hopper (sm_90a), after FlashAttention-3 (Shah et al. 2024).
//
// One producer warp copies key tiles (128 keys: two pages) with bulk copies of whole stripes, which
// are ready wgmma operands (kv_layout.cuh); two consumer warpgroups own 64 query rows each. A
// consumer issues QK of the next tile and PV of the present one back to back, then does the softmax
// of the next while PV runs; the two take turns at issuing (ping-pong), so that one's softmax hides
// behind the other's products. Key tiles lie at absolute multiples of 128 and are visited in
// ascending order, so the bits of a row do not depend on how its prompt was cut into chunks.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/cuda/attend_prefill_sm90.h"
#include "kernels/cuda/attend_prefill_sm90_math.cuh"
#include "kernels/cuda/attend_prefill_sm90_tiles.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kHalves = 2;  // consumer warpgroups
constexpr int kStages = 2;  // of K and of V
constexpr int kGroupThreads = 128;
constexpr int kThreads = kGroupThreads * (1 + kHalves);
constexpr int kConsumerWarps = kHalves * 4;
constexpr uint32_t kStripeBytes = 128;               // of one row
constexpr uint32_t kPieceBytes = 64 * kStripeBytes;  // 64 rows of a stripe: a bulk copy

// Which tile is in a K stage.
struct TileRecord final {
  int32_t index = 0;
  uint32_t flags = 0;  // masks, and kLastTile
};
constexpr uint32_t kLastTile = 1u << 16;

template <int kHeadDim>
struct alignas(1024) Shared final {
  static constexpr int kStripes = kHeadDim / 64;
  std::byte q[kHalves][kStripes][kPieceBytes];
  std::byte k[kStages][kStripes][2 * kPieceBytes];
  std::byte v[kStages][kStripes][2 * kPieceBytes];
  uint64_t q_full, q_empty;
  uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  HalfItem item[kHalves];
  TileRecord tiles[kStages];
};

// Position in a ring of stages.
struct RingPlace final {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void Advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

template <int kHeadDim>
__device__ void InitBarriers(Shared<kHeadDim>& shared) {
  BarrierInit(SharedAddress(&shared.q_full), 1);
  BarrierInit(SharedAddress(&shared.q_empty), kConsumerWarps);
  for (int i = 0; i < kStages; ++i) {
    BarrierInit(SharedAddress(&shared.k_full[i]), 1);
    BarrierInit(SharedAddress(&shared.v_full[i]), 1);
    BarrierInit(SharedAddress(&shared.k_empty[i]), kConsumerWarps);
    BarrierInit(SharedAddress(&shared.v_empty[i]), kConsumerWarps);
  }
  FenceBarrierInit();
}

// ---- producer ----

// Copies the K or the V of a tile, once its stage is free; `source` is that of page 0.
template <int kHeadDim>
__device__ void CopyTile(const PrefillParams& params, const KeyTile& tile, const std::byte* source,
                         uint32_t destination, uint32_t full, int lane) {
  constexpr int kPieces = 2 * Shared<kHeadDim>::kStripes;
  if (lane == 0) BarrierArriveExpect(full, tile.masks != 0 ? kPieces * kPieceBytes : 0);
  __syncwarp();
  if (tile.masks != 0 && lane < kPieces) {
    const int page = (lane & 1) != 0 ? tile.page[1] : tile.page[0];
    const std::byte* piece = source + page * params.kv_heads * params.slab_bytes +
                             static_cast<int64_t>(lane >> 1) * kPieceBytes;
    BulkCopyToShared(
        destination + static_cast<uint32_t>((lane >> 1) * 2 + (lane & 1)) * kPieceBytes, piece,
        kPieceBytes, full);
  }
}

template <int kHeadDim>
class Producer final {
 public:
  __device__ Producer(const PrefillParams& params, Shared<kHeadDim>& shared, int lane)
      : params_(params), shared_(shared), lane_(lane), walk_(params, lane) {}

  __device__ void Run() {
    const int items = params_.items_per_head * params_.kv_heads;
    for (int item = Draw(); item < items; item = Draw()) RunItem(item);
    LetNextStart();
    WaitForQ();
    if (lane_ == 0) {
      shared_.item[0].first_row = shared_.item[1].first_row = -1;
      BarrierArrive(SharedAddress(&shared_.q_full));
    }
  }

 private:
  __device__ int Draw() {
    int item = 0;
    if (lane_ == 0) item = atomicAdd(params_.counter, 1);
    return __shfl_sync(kAllLanes, item, 0);
  }
  __device__ void WaitForQ() {
    BarrierWait(SharedAddress(&shared_.q_empty), q_parity_ ^ 1);
    q_parity_ ^= 1;
  }

  __device__ void RunItem(int index) {
    const ItemPlace place = FindItem(params_, index, lane_ >> 4);
    pool_ = params_.pool + place.kv_head * params_.slab_bytes;
    walk_.Start(place);
    KeyTile tile;
    bool more = walk_.Next(&tile);
    if (!more) tile = KeyTile{};  // an empty tile, so that there is one
    CopyQ(place.half);
    KeyTile before;
    bool first = true;
    do {
      KeyTile next;
      more = more && walk_.Next(&next);
      CopyK(tile, !more);
      if (!first) CopyV(before);
      first = false;
      before = tile;
      tile = next;
    } while (more);
    CopyV(before);
  }

  // The rows after the chunk's last are some other chunk's, or zeros: nobody reads their scores.
  __device__ void CopyQ(const HalfItem& half) {
    constexpr int kStripes = Shared<kHeadDim>::kStripes;
    WaitForQ();
    const bool leads = (lane_ & 15) == 0;
    if (leads) shared_.item[lane_ >> 4] = half;
    const uint32_t full = SharedAddress(&shared_.q_full);
    const int halves = __popc(__ballot_sync(kAllLanes, leads && half.rows > 0));
    if (lane_ == 0) BarrierArriveExpect(full, halves * kStripes * kPieceBytes);
    __syncwarp();
    if (leads && half.rows > 0) {
      for (int i = 0; i < kStripes; ++i) {
        TensorCopyToShared(SharedAddress(shared_.q[lane_ >> 4][i]), &params_.q, 64 * i, half.head,
                           half.first_row, full);
      }
    }
  }

  __device__ void CopyK(const KeyTile& tile, bool last) {
    BarrierWait(SharedAddress(&shared_.k_empty[k_.stage]), k_.parity ^ 1);
    if (lane_ == 0) {
      shared_.tiles[k_.stage] = {tile.index, tile.masks | (last ? kLastTile : 0)};
    }
    CopyTile<kHeadDim>(params_, tile, pool_, SharedAddress(shared_.k[k_.stage]),
                       SharedAddress(&shared_.k_full[k_.stage]), lane_);
    k_.Advance();
  }
  __device__ void CopyV(const KeyTile& tile) {
    BarrierWait(SharedAddress(&shared_.v_empty[v_.stage]), v_.parity ^ 1);
    CopyTile<kHeadDim>(params_, tile, pool_ + params_.slab_bytes / 2,
                       SharedAddress(shared_.v[v_.stage]), SharedAddress(&shared_.v_full[v_.stage]),
                       lane_);
    v_.Advance();
  }

  const PrefillParams& params_;
  Shared<kHeadDim>& shared_;
  const int lane_;
  TileWalk walk_;
  const std::byte* pool_ = nullptr;  // slabs of the item's kv head
  uint32_t q_parity_ = 0;
  RingPlace k_;
  RingPlace v_;
};

// ---- consumers ----

template <typename T, int kHeadDim>
class Consumer final {
 public:
  __device__ Consumer(const PrefillParams& params, Shared<kHeadDim>& shared, int half, int thread)
      : params_(params), shared_(shared), half_(half), lane_(thread & 31) {
    row_ = (thread >> 5) * 16 + (lane_ >> 2);
    column_ = (lane_ & 3) * 2;
    q_operand_ = SwizzledOperand(SharedAddress(shared_.q[half]), kAtomBytes);
    k_operand_ = SwizzledOperand(SharedAddress(shared_.k), kAtomBytes);
    v_operand_ = SwizzledOperand(SharedAddress(shared_.v), kAtomBytes, 2 * kPieceBytes);
  }

  __device__ void Run() {
    if (half_ == 1) PassTurn();  // half 0 begins
    for (uint32_t parity = 0;; parity ^= 1) {
      BarrierWait(SharedAddress(&shared_.q_full), parity);
      const HalfItem item = shared_.item[half_];
      if (item.first_row < 0) return;
      RunItem(item);
    }
  }

 private:
  static constexpr uint32_t kAtomBytes = 1024;
  static constexpr uint32_t kStageWords = kTileKeys * kHeadDim * 2 / 16;  // of a descriptor
  static constexpr int kOutputs = kHeadDim / 2;

  __device__ void AwaitTurn() { NamedBarrierSync(1 + half_, kHalves * kGroupThreads); }
  __device__ void PassTurn() { NamedBarrierArrive(2 - half_, kHalves * kGroupThreads); }
  // One arrival per warp, after the whole warp is done.
  __device__ void Release(uint64_t* barrier) {
    __syncwarp();
    if (lane_ == 0) BarrierArrive(SharedAddress(barrier));
  }

  // The tile at `place_`, offset by `ahead` stages: waits for its K.
  struct Seen final {
    int first_key = 0;
    uint32_t mask = 0;
    bool last = false;
  };
  __device__ Seen AwaitTile(const RingPlace& place) {
    BarrierWait(SharedAddress(&shared_.k_full[place.stage]), place.parity);
    const TileRecord record = shared_.tiles[place.stage];
    return {record.index * kTileKeys, record.flags >> (8 * half_) & kFullMask,
            (record.flags & kLastTile) != 0};
  }
  __device__ void AwaitV(const RingPlace& place) {
    BarrierWait(SharedAddress(&shared_.v_full[place.stage]), place.parity);
  }
  __device__ void ReleaseK(const RingPlace& place, bool last) {
    Release(&shared_.k_empty[place.stage]);
    if (last) Release(&shared_.q_empty);
  }

  // s = Q K^T, asynchronous.
  __device__ void IssueQk(float (&s)[64], int stage) {
    const uint64_t k = k_operand_ + stage * kStageWords;
    WgmmaFence();
    WgmmaShared<T, false>(s, q_operand_, k);
#pragma unroll
    for (int i = 1; i < kHeadDim / 16; ++i) {
      const int stripe = i / 4;
      const int step = i % 4 * 2;
      WgmmaShared<T, true>(s, q_operand_ + stripe * (kPieceBytes / 16) + step,
                           k + stripe * (2 * kPieceBytes / 16) + step);
    }
    WgmmaCommit();
  }
  // o += P V, asynchronous.
  __device__ void IssuePv(float (&o)[kOutputs], const uint32_t (&p)[32], int stage) {
    const uint64_t v = v_operand_ + stage * kStageWords;
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < kTileKeys / 16; ++i) {
      WgmmaRegisters<T>(o, &p[4 * i], v + i * (16 * kStripeBytes / 16));
    }
    WgmmaCommit();
  }

  __device__ void Softmax(float (&s)[64], const HalfItem& item, const Seen& tile,
                          SoftmaxState* state, float (&rescale)[2]) {
    if (params_.cap_scale != 0.0f) {
#pragma unroll
      for (int i = 0; i < 64; ++i) s[i] = Tanh(s[i] * params_.cap_scale);
    }
    if (NeedsMask(item, params_.shape, tile.mask, tile.first_key)) {
      MaskScores(s, params_.shape, tile.mask, tile.first_key, item.first_position + row_, column_);
    }
    UpdateSoftmax(s, state, params_.scale_log2, rescale);
  }

  // A tile of which this half sees nothing.
  __device__ void SkipTile(bool last) {
    AwaitTurn();
    PassTurn();
    ReleaseK(place_, last);
    AwaitV(place_);
    Release(&shared_.v_empty[place_.stage]);
    place_.Advance();
  }

  __device__ void RunItem(const HalfItem& item) {
    float o[kOutputs];
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) o[i] = 0.0f;
    SoftmaxState state;
    for (bool last = false; !last;) {
      const Seen tile = AwaitTile(place_);
      last = tile.last;
      if (tile.mask == 0) {
        SkipTile(last);
      } else {
        last = RunTiles(item, tile, o, &state);
      }
    }
    WriteOutput<T, kHeadDim>(params_, item, o, state, row_, lane_);
  }

  // Visits tiles from `tile` on, until the item ends or one comes of which this half sees nothing;
  // returns whether it ended.
  __device__ bool RunTiles(const HalfItem& item, Seen tile, float (&o)[kOutputs],
                           SoftmaxState* state) {
    uint32_t p[32];
    float rescale[2];
    {
      float s[64];
      AwaitTurn();
      IssueQk(s, place_.stage);
      PassTurn();
      WgmmaWait<0>();
      Pin(s);
      ReleaseK(place_, tile.last);
      Softmax(s, item, tile, state, rescale);
      PackScores<T>(s, p);
      Rescale(o, rescale);
    }
    while (!tile.last) {
      RingPlace next_place = place_;
      next_place.Advance();
      const Seen next = AwaitTile(next_place);
      if (next.mask == 0) break;
      float s[64];
      AwaitTurn();
      IssueQk(s, next_place.stage);
      AwaitV(place_);
      IssuePv(o, p, place_.stage);
      PassTurn();
      WgmmaWait<1>();
      Pin(s);
      ReleaseK(next_place, next.last);
      Softmax(s, item, next, state, rescale);
      WgmmaWait<0>();
      Pin(o);
      Pin(p);
      Release(&shared_.v_empty[place_.stage]);
      PackScores<T>(s, p);
      Rescale(o, rescale);
      tile = next;
      place_ = next_place;
    }
    AwaitV(place_);
    IssuePv(o, p, place_.stage);
    WgmmaWait<0>();
    Pin(o);
    Release(&shared_.v_empty[place_.stage]);
    place_.Advance();
    return tile.last;
  }

  const PrefillParams& params_;
  Shared<kHeadDim>& shared_;
  const int half_;
  const int lane_;
  int row_;     // of this thread's row 0 in the half
  int column_;  // of its first key in a group of 8
  uint64_t q_operand_, k_operand_, v_operand_;
  RingPlace place_;  // tile whose V comes next
};

// 56 * 128 + 224 * 256 registers of 65536.
constexpr int kProducerRegisters = 56;
constexpr int kConsumerRegisters = 224;

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1)
    PrefillKernel(const __grid_constant__ PrefillParams params) {
  extern __shared__ std::byte memory[];
  auto& shared = *reinterpret_cast<Shared<kHeadDim>*>(
      memory + ((1024 - (SharedAddress(memory) & 1023)) & 1023));
  if (threadIdx.x == 0) InitBarriers(shared);
  __syncthreads();
  WaitForPrevious();
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
  if (group == 0) {
    RegistersShrink<kProducerRegisters>();
    if (thread < 32) Producer<kHeadDim>(params, shared, thread).Run();
  } else {
    RegistersGrow<kConsumerRegisters>();
    Consumer<T, kHeadDim>(params, shared, group - 1, thread).Run();
  }
}

__global__ void ClearCounter(int32_t* counter) {
  WaitForPrevious();
  *counter = 0;
  LetNextStart();
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
  constexpr int64_t kSectionBytesMax = int64_t{32} << 20;
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
  const bool capped = attention.softcap > 0.0f;
  params.scale_log2 = kLog2E * (capped ? attention.softcap : attention.scale);
  params.cap_scale = capped ? attention.scale / attention.softcap : 0.0f;
  params.kv_heads = static_cast<int32_t>(args.pool.kv_heads);
  params.group = static_cast<int32_t>(args.q.dim(1) / args.pool.kv_heads);
  return params;
}

template <typename T, int kHeadDim>
Status Run(const PrefillParams& params, int sm_count, cudaStream_t stream) {
  constexpr size_t kBytes = sizeof(Shared<kHeadDim>) + 1024;  // to align it
  static const cudaError_t kSized = cudaFuncSetAttribute(
      PrefillKernel<T, kHeadDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  LACUNA_CUDA_RETURN_IF_ERROR(kSized);
  LACUNA_RETURN_IF_ERROR(Launch(ClearCounter, 1, 1, 0, stream, params.counter));
  const int items = params.items_per_head * params.kv_heads;
  return Launch(PrefillKernel<T, kHeadDim>, static_cast<unsigned>(std::min(items, sm_count)),
                kThreads, kBytes, stream, params);
}

Status Run(const PrefillParams& params, DType dtype, int64_t head_dim, int sm_count,
           cudaStream_t stream) {
  if (dtype == DType::kF16) {
    return head_dim == 64 ? Run<__half, 64>(params, sm_count, stream)
                          : Run<__half, 128>(params, sm_count, stream);
  }
  return head_dim == 64 ? Run<__nv_bfloat16, 64>(params, sm_count, stream)
                        : Run<__nv_bfloat16, 128>(params, sm_count, stream);
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
        Run(params, args.pool.dtype, args.pool.head_dim, traits.sm_count, stream));
  }
  return OkStatus();
}

}  // namespace lacuna::kernels::cuda
