// Unit scores of the shapes that profiles use, by tensor cores (sm_80 and newer): bounds and means
// of 8 bits, keys and labels of 4 bits, of query heads that share their units. Device code.
//
// As select_score_kernel.cuh, a lane copies the 16 bytes that it will multiply. Here nothing is
// shared by a block: a warp finds its own share of the line, makes its own operands while the first
// metadata is on its way, and knows its shape when it is compiled.
//
// A row of a product is 64 bytes of codes. Tokens of less fill it together: the columns then are
// (token of the row, head) pairs, and a lane's operand is zero where its bytes are of other tokens.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/select/select_line_shares.cuh"
#include "kernels/cuda/select/select_query.cuh"

namespace lacuna::kernels::cuda {

inline constexpr int kFastWarps = 4;

// kEntries: entries of a row of products, 1, 2, 4 or 8; more than one are tokens. kHeads: columns
// of an entry, 4 (two entries or more) or 8.
template <int kBitsOf, int kVectorsOf, int kStepsOf, int kEntriesOf, int kHeadsOf>
struct FastScore final {
  static constexpr int kBits = kBitsOf, kVectors = kVectorsOf, kSteps = kStepsOf;
  static constexpr int kEntries = kEntriesOf, kHeads = kHeadsOf;
  static_assert(kEntries == 1 || (kVectors == 1 && kSteps == 1));
  static_assert(kHeads == 8 || (kHeads == 4 && kEntries > 1));
  using Order = CodeOrder<kBits>;
  static constexpr int kWidth = 512 / kBits * kSteps / kEntries;  // channels of a vector
  static constexpr int kColumnTiles = kEntries * kHeads / 8;
  // Of a vector's step. Where a lane's 16 bytes are two tokens, each has half of them.
  static constexpr int kLaneEntries = kEntries == 8 ? 2 : 1;
  static constexpr int kProducts = Order::kProducts / kLaneEntries;

  static constexpr int kTileEntries = 16 * kEntries;
  static constexpr int kTileBytes = 1024 * kVectors * kSteps;
  static constexpr int kRowScales = 4 * kVectors * kEntries;
  static constexpr int kTileSpan = kTileBytes + 16 * kRowScales;  // a tile in memory
  static constexpr int kStageTiles = kTileBytes >= 2048 ? 1 : 2;
  static constexpr int kStages = kTileBytes >= 4096 ? 3 : 4;
  static constexpr int kStageEntries = kStageTiles * kTileEntries;
  static constexpr int kRingBytes = kStages * kStageTiles * kTileSpan;
  static constexpr int kQueryBytes = kHeads * (2 * kWidth + 16);
  static constexpr int kWarpBytes = kRingBytes + kQueryBytes;

  static constexpr int kBlocksPerSm = kColumnTiles >= 4 && kHeads == 8 ? 3 : 4;  // by registers

  // Codes of 4 bits are taken by masks alone, so every other pair comes out 16 times too large;
  // the operands of the others are that much larger.
  static constexpr float kUnit = kBits == 4 ? 0x1p20f : 0x1p24f;
  __device__ static void PairsOf(const uint4& chunk, uint32_t (&pairs)[Order::kPairs]) {
    const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kBits == 4) {
        const uint32_t upper = words[i] >> 8;
        pairs[4 * i] = words[i] & 0x000f000fu;
        pairs[4 * i + 1] = words[i] & 0x00f000f0u;
        pairs[4 * i + 2] = upper & 0x000f000fu;
        pairs[4 * i + 3] = upper & 0x00f000f0u;
      } else {
        pairs[2 * i] = Order::Pair(words, 2 * i);
        pairs[2 * i + 1] = Order::Pair(words, 2 * i + 1);
      }
    }
  }
  // Where a channel's query lies among the operands of its head, in 2-byte elements.
  __device__ static int OperandAt(int channel) {
    constexpr int kChunk = 128 / kBits, kWord = 32 / kBits;
    const int code = channel % kWord, word = channel / kWord % 4;
    const int in_word = kBits == 4 ? code % 4 * 2 + code / 4 : code;
    return channel / kChunk * kChunk + word * kWord + in_word;
  }
  __device__ static float OperandFactor(int channel) {
    return kBits == 4 && channel % 2 == 0 ? 16.0f : 1.0f;
  }
  // The entry of a row that a column tile's column speaks of.
  __device__ static int EntryOf(int tile, int column) {
    return column / kHeads * kColumnTiles + tile;
  }
};

template <typename Shape>
class FastScorer final {
 public:
  __device__ FastScorer(const SelectKeysCall& call, int page_shift, char* memory)
      : call_(call),
        page_shift_(page_shift),
        lane_(static_cast<int>(threadIdx.x) % 32),
        ring_(SharedAddress(memory)),
        queries_(reinterpret_cast<__half*>(memory + Shape::kRingBytes)),
        terms_(reinterpret_cast<float4*>(memory + Shape::kRingBytes +
                                         2 * Shape::kHeads * Shape::kWidth)),
        unit_entries_(call.path.unit_tokens / call.entry_tokens),
        head_max_(call.path.reduce == ReduceKind::kMax),
        adds_(call.path.pool == PoolKind::kSum || call.path.pool == PoolKind::kMean) {}

  __device__ void Run(const Share& share, int chunk_entries) {
    share_ = share;
    entries_ = (share.tokens + call_.entry_tokens - 1) / call_.entry_tokens;
    at_ = share.first * chunk_entries;
    end_ = min(share.end * chunk_entries, entries_);
    Start();
    TakeQueries();
    int stage = 0;
    while (at_ < end_) {
      Issue(stage == 0 ? Shape::kStages - 1 : stage - 1);
      AsyncCopyWait<Shape::kStages - 1>();
      __syncwarp();  // scales were copied by other lanes
      const int end = min(at_ + Shape::kStageEntries, end_);
      for (uint32_t tile = StageAt(stage); at_ < end;
           at_ += Shape::kTileEntries, tile += Shape::kTileSpan) {
        ScoreTile(tile);
      }
      __syncwarp();
      stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
    }
    AsyncCopyWait<0>();
  }

 private:
  // ---- reading ----

  // A stage is [tiles]: [2 rows of a lane][vectors][steps][32 lanes] 16 bytes, then [16 rows]
  // [entries][vectors] scales with zeros.
  __device__ uint32_t StageAt(int stage) const {
    return ring_ + static_cast<uint32_t>(stage * Shape::kStageTiles * Shape::kTileSpan);
  }
  __device__ int32_t IdAt(int page) const {
    return page << page_shift_ < entries_ ? page_ids_[page] : 0;
  }
  // Lanes hold the ids of 32 pages from the next stage's first on (stages divide them), and of the
  // next 32.
  __device__ void Start() {
    page_ids_ = call_.pages.pages + share_.first_entry;
    issued_ = at_;
    first_page_ = at_ >> page_shift_;
    ids_ = IdAt(first_page_ + lane_);
    next_ids_ = IdAt(first_page_ + 32 + lane_);
#pragma unroll
    for (int stage = 0; stage < Shape::kStages - 1; ++stage) Issue(stage);
  }
  __device__ const char* SlabOf(int entry) const {
    const int id = __shfl_sync(~0u, ids_, min((entry >> page_shift_) - first_page_, 31));
    return static_cast<const char*>(call_.metadata.data) +
           int64_t{id * call_.kv_heads + share_.head} *
               static_cast<int32_t>(call_.metadata_slab_bytes);
  }
  __device__ void Issue(int stage) {
    if (issued_ < end_ && (issued_ >> page_shift_) - first_page_ >= 32) {
      first_page_ += 32;
      ids_ = next_ids_;
      next_ids_ = IdAt(first_page_ + 32 + lane_);
    }
    uint32_t to = StageAt(stage);
    for (int i = 0; i < Shape::kStageTiles && issued_ < end_; ++i) {
      IssueTile(to);
      issued_ += Shape::kTileEntries;
      to += Shape::kTileSpan;
    }
    AsyncCopyCommit();
  }
  __device__ void IssueTile(uint32_t to) const {
    constexpr int kPieces = Shape::kVectors * Shape::kSteps;
    const int in_page_mask = (1 << page_shift_) - 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int entry = issued_ + (half * 8 + lane_ / 4) * Shape::kEntries;
      const char* from = SlabOf(entry) + (entry & in_page_mask) / Shape::kEntries * 64 * kPieces +
                         16 * (lane_ % 4);
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        AsyncCopy16(to + static_cast<uint32_t>(512 * (half * kPieces + piece) + 16 * lane_),
                    from + 64 * piece, entry < end_);
      }
    }
    IssueScales(to + Shape::kTileBytes);
  }
  __device__ void IssueScales(uint32_t to) const {
    constexpr int kLanes = Shape::kRowScales <= 16 ? 1 : Shape::kRowScales / 16;  // of a row
    constexpr int kBytes = Shape::kRowScales / kLanes;
    const int row = lane_ / kLanes, entry = issued_ + row * Shape::kEntries;
    const int in_page = entry & ((1 << page_shift_) - 1), part = lane_ % kLanes * kBytes;
    const char* from =
        SlabOf(entry) + call_.layout.scales_at + 4 * Shape::kVectors * in_page + part;
    to += static_cast<uint32_t>(row * Shape::kRowScales + part);
    const bool valid = entry < end_;
    if (row >= 16) return;
    if constexpr (kBytes == 16) {
      AsyncCopy16(to, from, valid);
    } else if constexpr (kBytes == 8) {
      AsyncCopy8(to, from, valid);
    } else {
      AsyncCopy4(to, from, valid);
    }
  }

  // ---- queries ----

  // Operands in memory, [heads][width], and what each head does to a sum: {factor, the zeros' sums
  // of queries for each vector in units of the products, threshold}. Then to registers.
  __device__ void TakeQueries() {
    constexpr int kEach = (Shape::kWidth + 31) / 32;
    const int row = call_.first_row + share_.row;
    const int16_t* channels = call_.path.metadata.kind == MetadataKind::kLabels
                                  ? call_.metadata.channels + share_.head * Shape::kWidth
                                  : nullptr;
    float values[Shape::kHeads][kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int place = lane_ + 32 * i;
      const bool present = place < Shape::kWidth;
      const int channel = channels == nullptr || !present ? place : channels[place];
#pragma unroll
      for (int head = 0; head < Shape::kHeads; ++head) {
        values[head][i] = present && head < call_.heads
                              ? QueryValue(call_, row, share_.head * call_.heads + head, channel)
                              : 0.0f;
      }
    }
    __syncwarp();  // nobody reads those before
#pragma unroll
    for (int head = 0; head < Shape::kHeads; ++head) PutHead(head, values[head]);
    __syncwarp();
    TakeOperands();
#pragma unroll
    for (int i = 0; i < 2; ++i) terms_of_[i] = terms_[(lane_ % 4 * 2 + i) % Shape::kHeads];
  }
  template <int kEach>
  __device__ void PutHead(int head, const float (&values)[kEach]) {
    if (head >= call_.heads) {
      if (lane_ == 0) terms_[head] = {0.0f, 0.0f, 0.0f, INFINITY};
      return;
    }
    float most = 0.0f, sums[2] = {};
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const float q = values[i];
      most = fmaxf(most, fabsf(q));
      sums[0] += Shape::kVectors == 2 ? fminf(q, 0.0f) : q;
      if constexpr (Shape::kVectors == 2) sums[1] += fmaxf(q, 0.0f);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
      sums[0] += __shfl_xor_sync(~0u, sums[0], step);
      if constexpr (Shape::kVectors == 2) sums[1] += __shfl_xor_sync(~0u, sums[1], step);
    }
    const float scale = OperandScale(most);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int place = lane_ + 32 * i;
      if (place >= Shape::kWidth) continue;
      queries_[head * Shape::kWidth + Shape::OperandAt(place)] =
          __float2half_rn(values[i] * scale * Shape::OperandFactor(place));
    }
    if (lane_ != 0) return;
    const float zeros = scale / Shape::kUnit;
    float4& terms = terms_[head];
    terms.x = call_.scale / scale * Shape::kUnit;
    terms.y = sums[0] * zeros;
    terms.z = sums[1] * zeros;
    terms.w =
        call_.path.head_thresholds ? call_.thresholds[share_.head * call_.heads + head] : 0.0f;
  }
  // Words of two f16 with the negative numbers, or the others, set to zero.
  __device__ static uint32_t SideOf(uint32_t word, int vector) {
    const uint32_t negative = (word >> 15 & 0x00010001u) * 0xffffu;
    return vector == 0 ? word & negative : word & ~negative;
  }
  __device__ void TakeOperands() {
    const int column = lane_ / 4, head = column % Shape::kHeads;
    const uint32_t from = SharedAddress(queries_ + head * Shape::kWidth);
#pragma unroll
    for (int tile = 0; tile < Shape::kColumnTiles; ++tile) {
      const int entry = Shape::EntryOf(tile, column);
      const bool mine = head < call_.heads && lane_ % 4 * Shape::kEntries / 4 ==
                                                  entry / Shape::kLaneEntries * Shape::kLaneEntries;
#pragma unroll
      for (int step = 0; step < Shape::kSteps; ++step) {
        // Of the chunks of 16 bytes of an entry, or of half of one.
        const int chunk =
            Shape::kEntries == 1 ? 4 * step + lane_ % 4 : (Shape::kEntries == 2 ? lane_ % 2 : 0);
#pragma unroll
        for (int product = 0; product < Shape::kProducts; product += 2) {
          const uint32_t at = static_cast<uint32_t>(chunk * 256 / Shape::kBits + 8 * product);
          const uint4 words = mine ? LoadShared128(from + at) : uint4{};
#pragma unroll
          for (int vector = 0; vector < Shape::kVectors; ++vector) {
            uint2* to = operands_[tile][vector][step] + product;
            if constexpr (Shape::kVectors == 2) {
              to[0] = {SideOf(words.x, vector), SideOf(words.y, vector)};
              to[1] = {SideOf(words.z, vector), SideOf(words.w, vector)};
            } else {
              to[0] = {words.x, words.y};
              to[1] = {words.z, words.w};
            }
          }
        }
      }
    }
  }

  // ---- products ----

  // Of one vector: rows lane / 4 and + 8, columns lane % 4 * 2 and + 1 of each column tile.
  __device__ void Multiply(uint32_t rows, int vector, float (&sums)[Shape::kColumnTiles][4]) const {
    float chains[Shape::kColumnTiles][2][4] = {};  // two, for latency
#pragma unroll
    for (int step = 0; step < Shape::kSteps; ++step) {
      const uint32_t at =
          rows + static_cast<uint32_t>(512 * (vector * Shape::kSteps + step) + 16 * lane_);
      uint32_t low[Shape::Order::kPairs], high[Shape::Order::kPairs];
      Shape::PairsOf(LoadShared128(at), low);
      Shape::PairsOf(LoadShared128(at + Shape::kTileBytes / 2), high);
#pragma unroll
      for (int product = 0; product < Shape::Order::kProducts; ++product) {
        const uint32_t a[4] = {low[2 * product], high[2 * product], low[2 * product + 1],
                               high[2 * product + 1]};
#pragma unroll
        for (int tile = product / Shape::kProducts; tile < Shape::kColumnTiles;
             tile += Shape::kLaneEntries) {
          const uint2 b = operands_[tile][vector][step][product % Shape::kProducts];
          MmaM16N8K16<__half>(chains[tile][product % 2], a, b.x, b.y);
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < Shape::kColumnTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[tile][i] = chains[tile][0][i] + chains[tile][1][i];
    }
  }

  // Scales and zeros of a row's entries that this lane's columns speak of.
  struct Scales final {
    uint32_t words[Shape::kColumnTiles * Shape::kVectors];
  };
  __device__ Scales ScalesOf(uint32_t tile, int half) const {
    constexpr int kWords = Shape::kColumnTiles * Shape::kVectors;
    const int row = lane_ / 4 + 8 * half;
    const int first = Shape::EntryOf(0, lane_ % 4 * 2);
    const uint32_t at =
        tile + Shape::kTileBytes +
        static_cast<uint32_t>(row * Shape::kRowScales + 4 * Shape::kVectors * first);
    Scales scales;
    if constexpr (kWords == 1) {
      scales.words[0] = LoadShared32(at);
    } else if constexpr (kWords == 2) {
      const uint2 words = LoadShared64(at);
      scales.words[0] = words.x;
      scales.words[1] = words.y;
    } else {
#pragma unroll
      for (int i = 0; i < kWords; i += 4) {
        const uint4 words = LoadShared128(at + static_cast<uint32_t>(4 * i));
        scales.words[i] = words.x;
        scales.words[i + 1] = words.y;
        scales.words[i + 2] = words.z;
        scales.words[i + 3] = words.w;
      }
    }
    return scales;
  }

  __device__ void ScoreTile(uint32_t tile) {
    float sums[Shape::kVectors][Shape::kColumnTiles][4];
#pragma unroll
    for (int vector = 0; vector < Shape::kVectors; ++vector) Multiply(tile, vector, sums[vector]);
    float rows[2];  // lane / 4 and + 8: an entry, or the pooled entries of this lane
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Scales scales = ScalesOf(tile, half);
      const int first = at_ + (lane_ / 4 + 8 * half) * Shape::kEntries;
      rows[half] = adds_ ? 0.0f : -INFINITY;
#pragma unroll
      for (int i = 0; i < Shape::kColumnTiles; ++i) {
        float heads[2];
#pragma unroll
        for (int column = 0; column < 2; ++column) {
          float score = 0.0f;
#pragma unroll
          for (int vector = 0; vector < Shape::kVectors; ++vector) {
            const uint32_t word = scales.words[i * Shape::kVectors + vector];
            const float zeros = vector == 0 ? terms_of_[column].y : terms_of_[column].z;
            score = fmaf(__uint_as_float(word & 0xffff0000u), zeros, score);
            score = fmaf(__uint_as_float(word << 16), sums[vector][i][2 * half + column], score);
          }
          heads[column] = fmaf(score, terms_of_[column].x, -terms_of_[column].w);
        }
        const float score = ReduceHeads(heads);
        if constexpr (Shape::kEntries == 1) {
          rows[half] = score;
        } else if (first + Shape::EntryOf(i, lane_ % 4 * 2) < entries_) {
          rows[half] = Pooled(rows[half], score);
        }
      }
    }
    if constexpr (Shape::kEntries == 1) {
      PoolEntries(rows[0], rows[1]);
    } else {
      PoolTokens(rows);
    }
  }

  // ---- heads and units ----

  __device__ float Pooled(float a, float b) const { return adds_ ? a + b : fmaxf(a, b); }
  // Whether heads may be reduced behind pooling.
  __device__ bool ReducesLast() const { return Shape::kEntries > 1 && head_max_ && !adds_; }
  __device__ float ReduceHeads(const float (&heads)[2]) const {
    if (ReducesLast()) return fmaxf(heads[0], heads[1]);
    const int first = lane_ % 4 * 2 % Shape::kHeads;
    const float none = head_max_ ? -INFINITY : 0.0f;
    const float low = first < call_.heads ? heads[0] : none;
    const float high = first + 1 < call_.heads ? heads[1] : none;
    float score = head_max_ ? fmaxf(low, high) : low + high;
#pragma unroll
    for (int step = 1; step < Shape::kHeads / 2; step *= 2) {
      const float other = __shfl_xor_sync(~0u, score, step);
      score = head_max_ ? fmaxf(score, other) : score + other;
    }
    if (call_.path.reduce == ReduceKind::kMean) score /= static_cast<float>(call_.heads);
    return score;
  }

  // Units of 64 entries. `rows` are this lane's shares of the tile's halves.
  __device__ void PoolTokens(const float (&rows)[2]) {
    if constexpr (Shape::kTileEntries == 128) {
      WriteAll(rows[0], at_);
      if (at_ + 64 < end_) WriteAll(rows[1], at_ + 64);
      return;
    }
    float score = Pooled(rows[0], rows[1]);
    if constexpr (Shape::kTileEntries == 32) {
      if (at_ % 64 != 0) score = Pooled(pooled_, score);
      pooled_ = score;
      if (at_ % 64 == 0 && at_ + 32 < end_) return;
    }
    WriteAll(score, at_);
  }
  // Pools over the lanes: their tokens, and their heads where those come last.
  __device__ void WriteAll(float score, int entry) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      if (step < Shape::kHeads / 2 && !ReducesLast()) continue;
      score = Pooled(score, __shfl_xor_sync(~0u, score, step));
    }
    if (lane_ == 0) PutUnit(score, entry / 64);
  }

  // From entries lane / 4 and + 8 of the tile to units of any count; all four lanes hold the same.
  __device__ void PoolEntries(float low, float high) {
    const int row = lane_ / 4;
    const float none = adds_ ? 0.0f : -INFINITY;
    if (unit_entries_ > 1) {
      if (at_ + row >= entries_) low = none;
      if (at_ + row + 8 >= entries_) high = none;
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        if (step >= 4 * unit_entries_) break;
        low = Pooled(low, __shfl_xor_sync(~0u, low, step));
        high = Pooled(high, __shfl_xor_sync(~0u, high, step));
      }
    }
    const bool writes = lane_ % 4 == 0;
    if (unit_entries_ <= 4) {
      if (!writes || row % unit_entries_ != 0) return;
      if (at_ + row < end_) PutUnit(low, (at_ + row) / unit_entries_);
      if (at_ + row + 8 < end_) PutUnit(high, (at_ + row + 8) / unit_entries_);
      return;
    }
    float score = Pooled(low, high);
    if (unit_entries_ == 64) {
      if (at_ % 64 != 0) score = Pooled(pooled_, score);
      pooled_ = score;
      if (at_ % 64 != 48 && at_ + 16 < end_) return;
    }
    if (writes && row == 0) PutUnit(score, at_ / unit_entries_);
  }
  __device__ void PutUnit(float score, int unit) const {
    if (call_.path.pool == PoolKind::kMean) {
      score /= static_cast<float>(min(unit_entries_, entries_ - unit * unit_entries_));
    }
    UnitScores(call_, call_.first_row + share_.row, share_.head)[unit] = score;
  }

  const SelectKeysCall& call_;
  const int page_shift_, lane_;
  const uint32_t ring_;
  __half* const queries_;
  float4* const terms_;
  const int unit_entries_;
  const bool head_max_, adds_;
  Share share_;
  const int32_t* page_ids_ = nullptr;
  int entries_ = 0;       // of the row
  int at_ = 0, end_ = 0;  // of this share
  int issued_ = 0;        // the first entry that is not being read yet
  int first_page_ = 0;    // of ids_
  int32_t ids_ = 0, next_ids_ = 0;
  uint2 operands_[Shape::kColumnTiles][Shape::kVectors][Shape::kSteps][Shape::kProducts];
  float4 terms_of_[2];   // of the heads of this lane's columns
  float pooled_ = 0.0f;  // of the unit's tiles so far
};

template <typename Shape>
__global__ void __launch_bounds__(32 * kFastWarps, Shape::kBlocksPerSm)
    FastScoreKernel(const __grid_constant__ SelectKeysCall call, int page_shift,
                    int chunk_entries) {
  LACUNA_DYNAMIC_SHARED(16, char, memory);
  LetNextStart();
  WaitForPrevious();
  const int warp = static_cast<int>(threadIdx.x) / 32, blocks = static_cast<int>(gridDim.x);
  const ShareLine line(call, chunk_entries * call.entry_tokens, blocks * kFastWarps);
  FastScorer<Shape> scorer(call, page_shift, memory + warp * Shape::kWarpBytes);
  Share share;
  for (int i = warp * blocks + static_cast<int>(blockIdx.x); line.Find(i, &share);
       i += blocks * kFastWarps) {
    if (HasWindow(call, call.first_row + share.row, share.head)) continue;
    scorer.Run(share, chunk_entries);
  }
}

}  // namespace lacuna::kernels::cuda
