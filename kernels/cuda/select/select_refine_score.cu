// Logits of the survivors of a first choice. By tensor cores, as select_score_kernel.cuh: 16 tokens
// are the rows of a product, the query heads of a kv head its columns, and every lane copies the 16
// bytes that it multiplies ahead into memory of its own. A warp takes 512 tokens, of which a lane
// knows the survivors of 16: only tiles that have any are read.
#include <algorithm>
#include <cmath>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/kv_layout.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/select/select_query.cuh"
#include "kernels/cuda/select/select_refine.cuh"
#include "kernels/cuda/select/select_score.h"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kWarps = 4, kStages = 3;  // as ScoreShape's memory is counted
constexpr int kTileTokens = 16;
constexpr int kShareTokens = 32 * kTileTokens;  // of a warp at once
constexpr int kBlocksPerSm = 3;
constexpr int kSumThreads = kRefineChunkTokens / 4;

// One warp on the survivors of a (row, kv head). `call` speaks of the second choice's metadata.
template <int kBits, typename T>
class SurvivorScorer final {
 public:
  using Order = CodeOrder<kBits>;

  __device__ SurvivorScorer(const SelectKeysCall& call, const ScoreShape& shape,
                            const QueryMemory& queries, char* ring, const RowPlan& plan, int row,
                            int kv_head, const Survivors& survivors)
      : call_(call),
        shape_(shape),
        queries_(queries),
        ring_(SharedAddress(ring) + static_cast<uint32_t>(threadIdx.x) / 32 * kStages *
                                        static_cast<uint32_t>(shape.stage_bytes)),
        lane_(LaneId()),
        plan_(plan),
        row_(row),
        kv_head_(kv_head),
        survivors_(survivors) {}

  // Tokens [share * kShareTokens, ...) of the row.
  __device__ void Run(int share) {
    first_ = share * kShareTokens;
    const int token = first_ + lane_ * kTileTokens;
    const bool alive = survivors_.In16(token) != 0;
    id_ = alive ? call_.pages.pages[plan_.first_entry + token / call_.page_tokens] : 0;
    uint32_t unread = __ballot_sync(kAllLanes, alive), unscored = unread;
#pragma unroll
    for (int stage = 0; stage < kStages - 1; ++stage) Issue(stage, unread);
    for (int stage = 0; unscored != 0; stage = stage + 1 == kStages ? 0 : stage + 1) {
      Issue(stage == 0 ? kStages - 1 : stage - 1, unread);
      AsyncCopyWait<kStages - 1>();
      __syncwarp();  // scales were copied by other lanes
      for (int i = 0; i < shape_.stage_tiles && unscored != 0; ++i, unscored &= unscored - 1) {
        ScoreTile(StageAt(stage), i,
                  first_ + (__ffs(static_cast<int>(unscored)) - 1) * kTileTokens);
      }
      __syncwarp();
    }
    AsyncCopyWait<0>();
  }

 private:
  __device__ uint32_t StageAt(int stage) const {
    return ring_ + static_cast<uint32_t>(stage * shape_.stage_bytes);
  }
  // A stage is [tiles][2 rows of a lane][steps][32 lanes] 16 bytes, then [tiles][16 rows] scales
  // with zeros.
  __device__ uint32_t TileBytes() const { return static_cast<uint32_t>(1024 * shape_.steps); }
  __device__ uint32_t ScalesAt(int tile) const {
    return static_cast<uint32_t>(shape_.stage_tiles) * TileBytes() +
           static_cast<uint32_t>(tile * 64);
  }

  // Starts to read the next tiles of `unread`.
  __device__ void Issue(int stage, uint32_t& unread) const {
    const bool keys = call_.scores_keys;
    const auto* base = static_cast<const char*>(keys ? call_.pool.data : call_.metadata.data);
    const int64_t slab_bytes = keys ? call_.slab_bytes : call_.metadata_slab_bytes;
    uint32_t to = StageAt(stage) + static_cast<uint32_t>(16 * lane_);
    for (int i = 0; i < shape_.stage_tiles && unread != 0; ++i, unread &= unread - 1) {
      const int tile = __ffs(static_cast<int>(unread)) - 1;
      const int id = __shfl_sync(kAllLanes, id_, tile);
      const char* slab = base + (int64_t{id} * call_.kv_heads + kv_head_) * slab_bytes;
      const int first = (first_ + tile * kTileTokens) % call_.page_tokens;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int in_page = first + half * 8 + lane_ / 4;
        for (int step = 0; step < shape_.steps; ++step, to += 512) {
          const int chunk = 4 * step + lane_ % 4;
          const bool valid = 16 * chunk < shape_.row_bytes;
          AsyncCopy16(to, slab + (valid ? ChunkAt(in_page, chunk) : 0), valid);
        }
      }
      if constexpr (kBits < 16) {
        if (lane_ < kTileTokens) {
          AsyncCopy4(StageAt(stage) + ScalesAt(i) + static_cast<uint32_t>(4 * lane_),
                     slab + call_.layout.scales_at + 4 * (first + lane_));
        }
      }
    }
    AsyncCopyCommit();
  }
  __device__ int ChunkAt(int in_page, int chunk) const {
    if (call_.scores_keys) {
      return 2 * KvElement(in_page, 8 * chunk, call_.page_tokens, call_.head_dim);
    }
    return in_page * shape_.row_bytes + 16 * chunk;
  }

  __device__ void ScoreTile(uint32_t stage, int tile, int token) const {
    float scales[2] = {1.0f, 1.0f}, zeros[2] = {0.0f, 0.0f};  // of rows lane / 4 and + 8
    if constexpr (kBits < 16) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t word = LoadShared32(stage + ScalesAt(tile) +
                                           static_cast<uint32_t>(4 * (lane_ / 4 + 8 * half)));
        scales[half] = __uint_as_float(word << 16);
        zeros[half] = __uint_as_float(word & 0xffff0000u);
      }
    }
    for (int column_tile = 0; column_tile < shape_.column_tiles; ++column_tile) {
      float sums[4];
      Multiply(stage + static_cast<uint32_t>(tile) * TileBytes(), column_tile, sums);
      const int column = lane_ % 4 * 2;
      int heads[2] = {column, column + 1};  // of the sums' columns
      if (shape_.parts > 1) {               // neighbouring columns are parts of one head
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          sums[i] += sums[i + 1];
          if (shape_.parts == 4) sums[i] += __shfl_xor_sync(kAllLanes, sums[i], 1);
        }
        heads[0] = column / shape_.parts;
        heads[1] = call_.heads;
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int head = column_tile * (8 / shape_.parts) + heads[i];
        if (head >= call_.heads) continue;
        const HeadTerms& terms = queries_.terms[head];
        float* to = call_.scores + (int64_t{row_ - call_.first_row} * call_.query_rows +
                                    kv_head_ * call_.heads + head) *
                                       call_.scores_stride;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          to[token + lane_ / 4 + 8 * half] = fmaf(zeros[half], terms.zero_sums[0],
                                                  scales[half] * sums[2 * half + i] * terms.factor);
        }
      }
    }
  }

  // Products of 16 tokens: rows lane / 4 and + 8, columns lane % 4 * 2 and + 1.
  __device__ void Multiply(uint32_t from, int column_tile, float (&sums)[4]) const {
    const uint2* operands =
        queries_.operands + column_tile * shape_.steps * Order::kProducts * 32 + lane_;
    const uint32_t half_bytes = TileBytes() / 2;
    from += static_cast<uint32_t>(16 * lane_);
    float chains[2][4] = {};  // two, for latency
#pragma unroll 2
    for (int step = 0; step < shape_.steps; ++step, from += 512) {
      const uint4 low = LoadShared128(from), high = LoadShared128(from + half_bytes);
      const uint32_t low_words[4] = {low.x, low.y, low.z, low.w};
      const uint32_t high_words[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
      for (int product = 0; product < Order::kProducts; ++product, operands += 32) {
        const uint32_t a[4] = {
            Order::Pair(low_words, 2 * product), Order::Pair(high_words, 2 * product),
            Order::Pair(low_words, 2 * product + 1), Order::Pair(high_words, 2 * product + 1)};
        const uint2 b = *operands;
        MmaM16N8K16<T>(chains[product % 2], a, b.x, b.y);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = (chains[0][i] + chains[1][i]) * Order::kUnit;
  }

  const SelectKeysCall& call_;
  const ScoreShape& shape_;
  const QueryMemory& queries_;
  const uint32_t ring_;
  const int lane_;
  const RowPlan& plan_;
  const int row_, kv_head_;
  const Survivors& survivors_;
  int first_ = 0;   // token of the share
  int32_t id_ = 0;  // of the page of this lane's tile
};

// Grid: (any, kv heads, rows of the group).
template <int kBits, typename T>
__global__ void __launch_bounds__(32 * kWarps, kBlocksPerSm)
    ScoreSurvivorsKernel(const __grid_constant__ SelectKeysCall call,
                         const __grid_constant__ ScoreShape shape) {
  LACUNA_DYNAMIC_SHARED(16, char, memory);
  QueryMemory queries;
  char* at = memory + kWarps * kStages * shape.stage_bytes;
  queries.operands = reinterpret_cast<uint2*>(at);
  at += sizeof(uint2) * 32 * CodeOrder<kBits>::kProducts * shape.column_tiles * shape.steps;
  queries.plain = reinterpret_cast<float*>(at);
  at += sizeof(float) * call.heads * shape.width;
  queries.terms = reinterpret_cast<HeadTerms*>(at);
  at += sizeof(HeadTerms) * call.heads;
  queries.scales = reinterpret_cast<float*>(at);
  WaitForPrevious();
  LetNextStart();
  const int kv_head = static_cast<int>(blockIdx.y);
  const int row = call.first_row + static_cast<int>(blockIdx.z);
  const RowPlan plan = PlanRow(call, row);
  int share = static_cast<int>(blockIdx.x) * kWarps;
  if (plan.act != RowPlan::Act::kChoose || HasWindow(call, row, kv_head) ||
      share * kShareTokens >= plan.tokens) {
    return;
  }
  LoadQueries<T>(call, shape, row, kv_head, queries);
  __syncthreads();
  MakeOperands<kBits, T>(call, shape, queries);
  __syncthreads();
  const Survivors survivors(call, plan, call.rows[row], OwnerOf(call, kv_head));
  SurvivorScorer<kBits, T> scorer(call, shape, queries, memory, plan, row, kv_head, survivors);
  for (share += static_cast<int>(threadIdx.x) / 32; share * kShareTokens < plan.tokens;
       share += static_cast<int>(gridDim.x) * kWarps) {
    scorer.Run(share);
  }
}

// The blocks of this thread block's chunk.
__device__ void ClearRefined(const SelectKeysCall& call, const ChooseScratch& scratch, int row,
                             int owner) {
  constexpr int kBlocks = kRefineChunkTokens / kMaskTokens;
  const int64_t block = int64_t{blockIdx.x} * kBlocks + threadIdx.x;
  if (threadIdx.x < kBlocks && block < scratch.blocks) {
    RefinedOf(call, scratch, row, owner)[block] = 0;
  }
}

// The greatest logit and the sum of exponentials of a chunk's survivors. Grid: (chunks, query rows,
// rows of the group).
__global__ void __launch_bounds__(kSumThreads)
    SumSurvivorsKernel(const __grid_constant__ SelectKeysCall call,
                       const __grid_constant__ ChooseScratch scratch) {
  constexpr int kSumWarps = kSumThreads / 32;
  __shared__ float maxima[kSumWarps], sums[kSumWarps];
  WaitForPrevious();
  LetNextStart();
  const int query_row = static_cast<int>(blockIdx.y), kv_head = query_row / call.heads;
  const int row = call.first_row + static_cast<int>(blockIdx.z);
  const RowPlan plan = PlanRow(call, row);
  if (plan.act != RowPlan::Act::kChoose ||
      static_cast<int>(blockIdx.x) * kRefineChunkTokens >= plan.tokens) {
    return;
  }
  const int owner = OwnerOf(call, kv_head);
  if (query_row == owner * call.heads) ClearRefined(call, scratch, row, owner);
  if (HasWindow(call, row, kv_head)) return;
  const Survivors survivors(call, plan, call.rows[row], owner);
  const int token =
      static_cast<int>(blockIdx.x) * kRefineChunkTokens + static_cast<int>(threadIdx.x) * 4;
  const uint32_t mine = survivors.In16(token / 16 * 16) >> token % 16 & 15;
  const float* logits = LogitsOf(call, scratch, row, query_row) + token;
  float values[4], max = -INFINITY;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[i] = (mine >> i & 1) != 0 ? logits[i] : -INFINITY;
    max = fmaxf(max, values[i]);
  }
  const auto over_block = [&](float value, float* slots, auto&& fold) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      value = fold(value, __shfl_xor_sync(kAllLanes, value, step));
    }
    if (LaneId() == 0) slots[WarpId()] = value;
    __syncthreads();
    value = slots[0];
    for (int i = 1; i < kSumWarps; ++i) value = fold(value, slots[i]);
    return value;
  };
  max = over_block(max, maxima, [](float a, float b) { return fmaxf(a, b); });
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if ((mine >> i & 1) != 0) sum += expf(values[i] - max);
  }
  sum = over_block(sum, sums, [](float a, float b) { return a + b; });
  if (threadIdx.x == 0) SumsOf(call, scratch, row, query_row)[blockIdx.x] = {max, sum};
}

template <int kBits, typename T>
Status LaunchSurvivors(const SelectKeysCall& call, const ScoreShape& shape,
                       const DeviceTraits& traits, cudaStream_t stream) {
  const auto kernel = ScoreSurvivorsKernel<kBits, T>;
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes));
  // A few times what runs at once, so that rows of different survivors mix.
  const int64_t pairs = int64_t{call.kv_heads} * call.group_rows;
  const int64_t most =
      CeilDiv(int64_t{call.pages_max} * call.page_tokens, int64_t{kShareTokens} * kWarps);
  const int64_t blocks =
      std::clamp<int64_t>(CeilDiv(int64_t{4 * kBlocksPerSm} * traits.sm_count, pairs), 1, most);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(call.kv_heads),
                  static_cast<unsigned>(call.group_rows));
  return Launch(kernel, grid, dim3(32 * kWarps), static_cast<size_t>(shape.shared_bytes), stream,
                call, shape);
}

// The call as scoring sees it, when it reads what the second choice reads.
SelectKeysCall CallOfRefinement(const SelectKeysCall& call, const ChooseScratch& scratch) {
  SelectKeysCall refine = call;
  refine.metadata = call.refine_metadata;
  refine.path.metadata = call.path.refine_metadata;
  refine.path.head_thresholds = false;
  refine.layout = call.refine_layout;
  refine.metadata_slab_bytes = call.refine_slab_bytes;
  refine.scores_keys = !call.path.refine_metadata.any();
  refine.entry_tokens = 1;
  refine.normalises = true;  // raw scores are asked for
  refine.scores = scratch.logits;
  refine.scores_stride = scratch.tokens_stride;
  return refine;
}

Status ScoreAll(const SelectKeysCall& call, const DeviceTraits& traits, cudaStream_t stream) {
  const ScoreShape shape = ScoreShapeOf(call, traits);
  if (!shape.tensor_cores) return ScoreAny(call, shape, stream);
  switch (shape.bits) {
    case 8:
      return LaunchSurvivors<8, __half>(call, shape, traits, stream);
    case 4:
      return LaunchSurvivors<4, __half>(call, shape, traits, stream);
    case 2:
      return LaunchSurvivors<2, __half>(call, shape, traits, stream);
    default:
      return call.scores_keys && call.pool.dtype == DType::kF16
                 ? LaunchSurvivors<16, __half>(call, shape, traits, stream)
                 : LaunchSurvivors<16, __nv_bfloat16>(call, shape, traits, stream);
  }
}

}  // namespace

Status ScoreSurvivors(const SelectKeysCall& call, const ChooseScratch& scratch,
                      const DeviceTraits& traits, cudaStream_t stream) {
  LACUNA_RETURN_IF_ERROR(ScoreAll(CallOfRefinement(call, scratch), traits, stream));
  const dim3 grid(static_cast<unsigned>(scratch.chunks), static_cast<unsigned>(call.query_rows),
                  static_cast<unsigned>(call.group_rows));
  return Launch(SumSurvivorsKernel, grid, dim3(kSumThreads), 0, stream, call, scratch);
}

}  // namespace lacuna::kernels::cuda
