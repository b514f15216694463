// Scores of entries by tensor cores (sm_80 and newer): 16 entries are the rows of m16n8k16
// products, the query heads of a kv head the columns. Bound by reading: every lane copies the 16
// bytes that it will multiply into memory of its own, three stages ahead, so no lane waits for
// another and rows need no layout in shared memory.
//
// A warp takes a contiguous part of a run of chunks. Results of unit scores (ScoreShape::direct)
// are reduced over heads and entries in registers; raw scores go to call.scores.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/kv_layout.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/select/select_line.cuh"
#include "kernels/cuda/select/select_query.cuh"

namespace lacuna::kernels::cuda {

inline constexpr int kScoreBlocksPerSm = 3;

// kKeys: of the keys themselves, else of metadata. kSteps > 0: entries are kVectors vectors of 64 *
// kSteps bytes, operands stay in registers; 0: of any.
template <int kBits, typename T, bool kKeys, int kVectors, int kSteps>
class Scorer final {
 public:
  using Order = CodeOrder<kBits>;
  static constexpr bool kExact = kSteps > 0;

  __device__ Scorer(const SelectKeysCall& call, const ScoreShape& shape, const QueryMemory& queries,
                    char* ring, int tokens, int64_t first_entry)
      : call_(call),
        shape_(shape),
        queries_(queries),
        ring_(SharedAddress(ring) +
              static_cast<uint32_t>(Warp() * kScoreStages * shape.stage_bytes)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        base_(static_cast<const char*>(kKeys ? call.pool.data : call.metadata.data)),
        slab_bytes_(kKeys ? call.slab_bytes : call.metadata_slab_bytes),
        entries_((tokens + call.entry_tokens - 1) / call.entry_tokens),
        pages_((tokens + call.page_tokens - 1) / call.page_tokens),
        page_ids_(call.pages.pages + first_entry) {}

  // Takes this warp's part of the run and starts to read it.
  __device__ void Start(const ChunkRun& run) {
    run_ = run;
    const int chunk_entries = shape_.chunk_tokens / call_.entry_tokens;
    const int first = run.first * chunk_entries, end = min(run.end * chunk_entries, entries_);
    const int align = max(16, shape_.direct ? shape_.unit_entries : 1);
    const int share = ((end - first + kScoreWarps - 1) / kScoreWarps + align - 1) / align * align;
    at_ = min(first + Warp() * share, end);
    end_ = min(at_ + share, end);
    issued_ = at_;
    LoadIds();
#pragma unroll
    for (int stage = 0; stage < kScoreStages - 1; ++stage) Issue(stage);
  }

  __device__ void Run() {
    int stage = 0;
    TakeOperands(0);
    while (at_ < end_) {
      Issue(stage == 0 ? kScoreStages - 1 : stage - 1);
      AsyncCopyWait<kScoreStages - 1>();
      __syncwarp();  // scales were copied by other lanes
      const int end = min(at_ + 16 * shape_.stage_tiles, end_);
      for (int tile = 0; at_ < end; ++tile, at_ += 16) ScoreTile(StageAt(stage), tile);
      __syncwarp();
      stage = stage + 1 == kScoreStages ? 0 : stage + 1;
    }
    AsyncCopyWait<0>();
  }

 private:
  __device__ static int Warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ int Vectors() const { return kExact ? kVectors : shape_.vectors; }
  __device__ int Steps() const { return kExact ? kSteps : shape_.steps; }
  __device__ uint32_t StageAt(int stage) const {
    return ring_ + static_cast<uint32_t>(stage * shape_.stage_bytes);
  }
  // A stage is [tiles][2 rows of a lane][vectors][steps][32 lanes] 16 bytes, then [tiles][16 rows]
  // [vectors] scales with zeros.
  __device__ uint32_t TileBytes() const {
    return static_cast<uint32_t>(1024 * Vectors() * Steps());
  }
  __device__ uint32_t ScalesAt(int tile) const {
    return static_cast<uint32_t>(shape_.stage_tiles) * TileBytes() +
           static_cast<uint32_t>(tile * 64 * Vectors());
  }

  // Ids of the pages of the next stage, one to a lane; a stage later they are at hand.
  __device__ void LoadIds() {
    first_page_ = issued_ >> shape_.page_shift;
    const int page = first_page_ + lane_;
    ids_ = page < pages_ ? page_ids_[page] : 0;
  }
  __device__ const char* SlabOf(int entry) const {
    const int id = __shfl_sync(~0u, ids_, min((entry >> shape_.page_shift) - first_page_, 31));
    return base_ + (static_cast<int64_t>(id) * call_.kv_heads + run_.head) * slab_bytes_;
  }
  __device__ int ChunkAt(int in_page, int vector, int chunk) const {
    if constexpr (kKeys) {
      const int head_dim = kExact ? 32 * kSteps : call_.head_dim;
      return 2 * KvElement(in_page, 8 * chunk, call_.page_tokens, head_dim);
    }
    const int row_bytes = kExact ? 64 * kSteps : shape_.row_bytes;
    return (in_page * Vectors() + vector) * row_bytes + 16 * chunk;
  }

  __device__ void Issue(int stage) {
    const int first = issued_;
    const int end = min(first + 16 * shape_.stage_tiles, end_);
    const int in_page_mask = (1 << shape_.page_shift) - 1;
    uint32_t to = StageAt(stage) + static_cast<uint32_t>(16 * lane_);
    int tile = 0;
    for (int at = first; at < end; at += 16, ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int entry = at + half * 8 + lane_ / 4;
        const char* slab = SlabOf(entry);
        const int in_page = entry & in_page_mask;
#pragma unroll(kExact ? kVectors : 1)
        for (int vector = 0; vector < Vectors(); ++vector) {
#pragma unroll(kExact ? kSteps : 1)
          for (int step = 0; step < Steps(); ++step, to += 512) {
            const int chunk = 4 * step + lane_ % 4;
            const bool valid = entry < end && (kExact || 16 * chunk < shape_.row_bytes);
            AsyncCopy16(to, slab + ChunkAt(in_page, vector, valid ? chunk : 0), valid);
          }
        }
      }
      if constexpr (kBits < 16) IssueScales(stage, tile, at + lane_ % 16, end, in_page_mask);
    }
    AsyncCopyCommit();
    issued_ = end;
    if (issued_ < end_) LoadIds();
  }
  __device__ void IssueScales(int stage, int tile, int entry, int end, int in_page_mask) {
    const char* slab = SlabOf(entry);
    const bool valid = entry < end;
    const int in_page = valid ? entry & in_page_mask : 0;
    const char* from = slab + call_.layout.scales_at + 4 * shape_.vectors * in_page;
    const uint32_t to =
        StageAt(stage) + ScalesAt(tile) + static_cast<uint32_t>(4 * shape_.vectors * (lane_ % 16));
    if (lane_ >= 16) return;
    if (shape_.vectors == 2) {
      AsyncCopy8(to, from, valid);
    } else {
      AsyncCopy4(to, from, valid);
    }
  }

  __device__ const uint2* OperandsOf(int column_tile, int vector) const {
    return queries_.operands +
           (column_tile * Vectors() + vector) * Steps() * Order::kProducts * 32 + lane_;
  }
  // Exact: those of a column tile to registers.
  __device__ void TakeOperands(int column_tile) {
    if constexpr (kExact) {
      const uint2* from = OperandsOf(column_tile, 0);
#pragma unroll
      for (int i = 0; i < kVectors * kSteps * Order::kProducts; ++i) operands_[i] = from[32 * i];
    }
  }

  // Adds the products of a step of 64 bytes.
  template <typename Operand>
  __device__ static void MultiplyStep(const uint4& low, const uint4& high, const Operand& operand,
                                      float (&chains)[2][4]) {
    const uint32_t low_words[4] = {low.x, low.y, low.z, low.w};
    const uint32_t high_words[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
    for (int product = 0; product < Order::kProducts; ++product) {
      const uint32_t a[4] = {
          Order::Pair(low_words, 2 * product), Order::Pair(high_words, 2 * product),
          Order::Pair(low_words, 2 * product + 1), Order::Pair(high_words, 2 * product + 1)};
      const uint2 b = operand(product);
      MmaM16N8K16<T>(chains[product % 2], a, b.x, b.y);
    }
  }
  // Sums of one vector of 16 entries: rows lane / 4 and + 8, columns lane % 4 * 2 and + 1.
  __device__ void Multiply(uint32_t rows, int column_tile, int vector, float (&sums)[4]) const {
    const uint32_t half_bytes = TileBytes() / 2;
    const uint32_t from = rows + static_cast<uint32_t>(512 * Steps() * vector + 16 * lane_);
    float chains[2][4] = {};  // two, for latency
#pragma unroll(kExact ? kSteps : 1)
    for (int step = 0; step < Steps(); ++step) {
      const uint32_t at = from + static_cast<uint32_t>(512 * step);
      const uint4 low = LoadShared128(at), high = LoadShared128(at + half_bytes);
      if constexpr (kExact) {
        const int first = (vector * kSteps + step) * Order::kProducts;
        MultiplyStep(
            low, high, [&](int product) { return operands_[first + product]; }, chains);
      } else {
        const uint2* first = OperandsOf(column_tile, vector) + step * Order::kProducts * 32;
        MultiplyStep(
            low, high, [&](int product) { return first[product * 32]; }, chains);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = (chains[0][i] + chains[1][i]) * Order::kUnit;
  }

  // Scores of a tile's entries for up to two heads of this lane.
  struct Scores final {
    float of[2][2];  // [row lane / 4 and + 8][head]
    int head[2];     // of the kv head's; -1: none
  };
  __device__ Scores ScoresOf(uint32_t stage, int tile, int column_tile) const {
    float totals[4] = {};
    float zeros[2][2] = {};  // [row][vector]
#pragma unroll
    for (int vector = 0; vector < (kExact ? kVectors : 2); ++vector) {
      if (vector >= Vectors()) break;
      float sums[4];
      Multiply(stage + static_cast<uint32_t>(tile) * TileBytes(), column_tile, vector, sums);
      float scales[2] = {1.0f, 1.0f};
      if constexpr (kBits < 16) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int at = (lane_ / 4 + 8 * half) * Vectors() + vector;
          const uint32_t word =
              LoadShared32(stage + ScalesAt(tile) + static_cast<uint32_t>(4 * at));
          scales[half] = __uint_as_float(word << 16);
          zeros[half][vector] = __uint_as_float(word & 0xffff0000u);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) totals[i] = fmaf(scales[i / 2], sums[i], totals[i]);
    }
    Scores scores = AddParts(totals, column_tile);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const HeadTerms terms = queries_.terms[max(scores.head[i], 0)];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float score = scores.of[half][i] * terms.factor;
        if constexpr (kBits < 16) {
          score = fmaf(zeros[half][0], terms.zero_sums[0], score);
          score = fmaf(zeros[half][1], terms.zero_sums[1], score);
        }
        scores.of[half][i] = shape_.direct ? score - terms.threshold : score;
      }
    }
    return scores;
  }
  __device__ Scores AddParts(const float (&totals)[4], int column_tile) const {
    const int first = column_tile * (8 / shape_.parts), column = lane_ % 4 * 2;
    Scores scores = {{{totals[0], totals[1]}, {totals[2], totals[3]}}, {first + column, -1}};
    if (shape_.parts == 1) {
      scores.head[1] = first + column + 1;
    } else {
      scores.head[0] = first + column / shape_.parts;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& sum = scores.of[half][0];
        sum += scores.of[half][1];
        if (shape_.parts == 4) sum += __shfl_xor_sync(~0u, sum, 1);
      }
      if (shape_.parts == 4 && lane_ % 2 == 1) scores.head[0] = -1;
    }
#pragma unroll
    for (int& head : scores.head) head = head < call_.heads ? head : -1;
    return scores;
  }

  __device__ void ScoreTile(uint32_t stage, int tile) {
    const bool max = call_.path.reduce == ReduceKind::kMax;
    float reduced[2] = {max ? -INFINITY : 0.0f, max ? -INFINITY : 0.0f};
    for (int column_tile = 0; column_tile < shape_.column_tiles; ++column_tile) {
      if (shape_.column_tiles > 1) TakeOperands(column_tile);
      const Scores scores = ScoresOf(stage, tile, column_tile);
      if (!shape_.direct) {
        WriteRaw(scores);
      } else if (call_.per_head) {
        WriteHeads(scores);
      } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (scores.head[i] >= 0) {
              reduced[half] = Reduced(max, reduced[half], scores.of[half][i]);
            }
          }
        }
      }
    }
    if (shape_.direct && !call_.per_head) WriteReduced(max, reduced);
  }
  __device__ static float Reduced(bool max, float a, float b) { return max ? fmaxf(a, b) : a + b; }

  __device__ void WriteRaw(const Scores& scores) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (scores.head[i] < 0) continue;
      const int query_row = run_.head * call_.heads + scores.head[i];
      float* to = call_.scores + (static_cast<int64_t>(run_.row) * call_.query_rows + query_row) *
                                     call_.scores_stride;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int entry = at_ + lane_ / 4 + 8 * half;
        if (entry < end_) to[entry] = scores.of[half][i];
      }
    }
  }
  __device__ void WriteHeads(const Scores& scores) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int query_row = run_.head * call_.heads + max(scores.head[i], 0);
      PoolTo(scores.of[0][i], scores.of[1][i],
             UnitScores(call_, call_.first_row + run_.row, query_row), scores.head[i] >= 0);
    }
  }
  __device__ void WriteReduced(bool max, float (&reduced)[2]) {
#pragma unroll
    for (float& score : reduced) {
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
        score = Reduced(max, score, __shfl_xor_sync(~0u, score, step));
      }
      if (call_.path.reduce == ReduceKind::kMean) score /= static_cast<float>(call_.heads);
    }
    PoolTo(reduced[0], reduced[1], UnitScores(call_, call_.first_row + run_.row, run_.head),
           lane_ % 4 == 0);
  }

  // From entries lane / 4 and + 8 of the tile to units. Lanes with the same lane % 4 hold one row
  // of unit scores, which is `to`; `writes` is the same in all of them.
  __device__ void PoolTo(float low, float high, float* to, bool writes) {
    const bool adds = call_.path.pool == PoolKind::kSum || call_.path.pool == PoolKind::kMean;
    const int unit_entries = shape_.unit_entries, row = lane_ / 4;
    const float none = adds ? 0.0f : -INFINITY;
    if (unit_entries > 1) {
      if (at_ + row >= entries_) low = none;
      if (at_ + row + 8 >= entries_) high = none;
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        if (step >= 4 * unit_entries) break;
        low = Reduced(!adds, low, __shfl_xor_sync(~0u, low, step));
        high = Reduced(!adds, high, __shfl_xor_sync(~0u, high, step));
      }
    }
    if (unit_entries <= 4) {
      if (!writes || row % unit_entries != 0) return;
      PutUnit(low, (at_ + row) / unit_entries, to);
      if (at_ + row + 8 < end_) PutUnit(high, (at_ + row + 8) / unit_entries, to);
      return;
    }
    float score = Reduced(!adds, low, high);
    if (unit_entries == 64) {
      if (at_ % 64 != 0) score = Reduced(!adds, pooled_, score);
      pooled_ = score;
      if (at_ % 64 != 48 && at_ + 16 < end_) return;
    }
    if (writes && row == 0) PutUnit(score, at_ / unit_entries, to);
  }
  __device__ void PutUnit(float score, int unit, float* to) const {
    const int first = unit * shape_.unit_entries;
    if (first >= end_) return;
    if (call_.path.pool == PoolKind::kMean) {
      score /= static_cast<float>(min(shape_.unit_entries, entries_ - first));
    }
    to[unit] = score;
  }

  const SelectKeysCall& call_;
  const ScoreShape& shape_;
  const QueryMemory queries_;
  const uint32_t ring_;
  const int lane_;
  const char* const base_;
  const int64_t slab_bytes_;
  const int entries_, pages_;  // of the row
  const int32_t* const page_ids_;
  ChunkRun run_;
  int at_ = 0, end_ = 0;  // entries of this warp: multiples of 16, but for the row's end
  int issued_ = 0;        // the first entry that is not being read yet
  int first_page_ = 0;
  int32_t ids_ = 0;
  uint2 operands_[kExact ? kVectors * kSteps * Order::kProducts : 1];
  float pooled_ = 0.0f;  // unit_entries 64: of the unit's tiles so far
};

template <int kBits, typename T, bool kKeys, int kVectors, int kSteps>
__global__ void __launch_bounds__(32 * kScoreWarps, kScoreBlocksPerSm)
    ScoreKernel(const __grid_constant__ SelectKeysCall call,
                const __grid_constant__ ScoreShape shape) {
  LACUNA_DYNAMIC_SHARED(16, char, memory);
  __shared__ ChunkLine line;
  QueryMemory queries;
  char* at = memory + kScoreWarps * kScoreStages * shape.stage_bytes;
  queries.operands = reinterpret_cast<uint2*>(at);
  at += sizeof(uint2) * 32 * CodeOrder<kBits>::kProducts * shape.column_tiles * shape.vectors *
        shape.steps;
  queries.plain = reinterpret_cast<float*>(at);
  at += sizeof(float) * call.heads * shape.width;
  queries.terms = reinterpret_cast<HeadTerms*>(at);
  at += sizeof(HeadTerms) * call.heads;
  queries.scales = reinterpret_cast<float*>(at);
  LetNextStart();
  WaitForPrevious();
  MeasureChunks(call, shape.chunk_tokens, line);
  int row = -1, head = -1;  // whose queries are in memory
  VisitRuns(call, line, call.kv_heads, [&](const ChunkRun& run) {
    if (HasWindow(call, call.first_row + run.row, run.head)) return;
    Scorer<kBits, T, kKeys, kVectors, kSteps> scorer(
        call, shape, queries, memory, line.tokens[run.row], line.first_entry[run.row]);
    scorer.Start(run);
    if (run.row != row || run.head != head) {
      row = run.row;
      head = run.head;
      __syncthreads();  // nobody reads those before
      LoadQueries<T>(call, shape, call.first_row + row, head, queries);
      __syncthreads();
      MakeOperands<kBits, T>(call, shape, queries);
      __syncthreads();
    }
    scorer.Run();
  });
}

}  // namespace lacuna::kernels::cuda
