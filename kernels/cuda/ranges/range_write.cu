// The ranges and counts of each tile of SelectRanges, from what was chosen. A block of threads has
// one tile of one head; a thread makes words of 32 groups of 16 keys, and the runs of marked groups
// become ranges.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ranges/range_kernels.h"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kTileTokens = KeyRanges::kQueryTileTokens;
constexpr int kGroupTokens = 16;
constexpr int kWordTokens = 32 * kGroupTokens;
constexpr int kStatTokens = 64;

// Marks of the word's groups that hold some of the keys [begin, end).
__device__ uint32_t RunOfWord(int word, int64_t begin, int64_t end) {
  const int64_t from = int64_t{word} * kWordTokens;
  begin = std::max<int64_t>(begin - from, 0);
  end = std::min<int64_t>(end - from, kWordTokens);
  if (begin >= end) return 0;
  const int first = static_cast<int>(begin) / kGroupTokens;
  const int last = static_cast<int>(end - 1) / kGroupTokens;
  return ~0u << first & ~0u >> (31 - last);
}

// Whether a bit of [first, last] is set.
__device__ bool AnyBit(const uint32_t* words, int first, int last) {
  const uint32_t head = ~0u << (first & 31), tail = ~0u >> (31 - (last & 31));
  const int from = first >> 5, to = last >> 5;
  if (from == to) return (words[from] & head & tail) != 0;
  bool any = (words[from] & head) != 0 || (words[to] & tail) != 0;
  for (int word = from + 1; word < to; ++word) any = any || words[word] != 0;
  return any;
}

class TileWords final {
 public:
  __device__ TileWords(const RangeWork& work, int head, RangeSpan tile)
      : work_(work), head_(head), tile_(tile), q_head_(work.QHead(head)) {
    mode_ = tile.end > work.dense_from ? HeadMode::kDense : ModeOf(work, q_head_);
  }

  __device__ int words() const { return (tile_.end + kWordTokens - 1) / kWordTokens; }
  __device__ bool dense() const { return mode_ == HeadMode::kDense; }
  __device__ uint32_t Word(int word) const {
    uint32_t marks = 0;
    switch (mode_) {
      case HeadMode::kDense:
        marks = ~0u;
        break;
      case HeadMode::kAShape: {
        const HeadPattern& pattern = work_.heads[q_head_].pattern;
        marks = Forced(word) | RunOfWord(word, 0, pattern.a);
        if (pattern.b > 0) {
          marks |= RunOfWord(word, int64_t{tile_.first} - pattern.b + 1, tile_.end);
        }
        break;
      }
      case HeadMode::kForced:
        marks = Forced(word);
        break;
      case HeadMode::kPooled:
        marks = OfBlocks(word);
        break;
      case HeadMode::kProbe:
        marks = OfCells(word);
        break;
    }
    return marks & RunOfWord(word, 0, tile_.end);
  }

 private:
  __device__ uint32_t Forced(int word) const {
    uint32_t marks = RunOfWord(word, 0, work_.dials.sink_tokens);
    if (LocalTokens(work_.dials, tile_.end - 1) > 0) {
      marks |= RunOfWord(word, LocalBegin(work_.dials, tile_.first), tile_.end);
    }
    return marks;
  }

  __device__ uint32_t OfBlocks(int word) const {
    const int size = work_.path.block_tokens;
    const int per_word = kWordTokens / size;  // 4 or 8, which divide 32
    uint32_t marks = 0;
    for (int block = tile_.first / size; block * size < tile_.end; ++block) {
      const int row = block - work_.chunk.first_position / size;
      const uint32_t* kept =
          work_.kept + (int64_t{head_} * work_.chunk_blocks + row) * work_.block_words;
      const int at = word * per_word;
      const uint32_t bits = kept[at / 32] >> (at % 32) & ((1u << per_word) - 1);
      const int groups = size / kGroupTokens;
      for (int i = 0; i < per_word; ++i) {
        if ((bits >> i & 1) != 0) marks |= ((1u << groups) - 1) << (i * groups);
      }
    }
    return marks;
  }

  __device__ uint32_t OfCells(int word) const {
    uint32_t marks = 0;
    const int tokens = work_.path.cell_tokens;
    for (int cell = tile_.first / tokens; cell * tokens < tile_.end; ++cell) {
      const int64_t at =
          int64_t{head_} * work_.chunk_cells + cell - work_.chunk.first_position / tokens;
      const uint32_t* columns = work_.columns + at * work_.unit_words;
      const uint32_t* distances = work_.distances + at * work_.unit_words;
      if (work_.unit == 1) {
        marks |= OfColumns(columns, word) | OfDistances(distances, word);
        continue;
      }
      marks |= OfCellBlocks(columns, distances, word);
      if (work_.path.estimate == EstimateKind::kProbePooled && work_.reads_map[at] != 0) {
        marks |= OfBlocks(word);
      }
    }
    return marks;
  }

  // Of blocks of columns and of distances. The marks reach up to the cell's last key only; no tile
  // of it reads further.
  __device__ uint32_t OfCellBlocks(const uint32_t* columns, const uint32_t* distances,
                                   int word) const {
    uint32_t marks = 0;
    const int shift = 31 - __clz(work_.unit), last_unit = 32 * work_.unit_words - 1;
    for (int group = 0; group < 32; ++group) {
      const int key = word * kWordTokens + group * kGroupTokens;
      if (key >= tile_.end) break;
      const int unit = min(key >> shift, last_unit);
      const int near = max(tile_.first - key - kGroupTokens + 1, 0) >> shift;
      const int far = min((tile_.end - 1 - key) >> shift, last_unit);
      const bool read = (columns[unit / 32] >> (unit % 32) & 1) != 0;
      if (read || AnyBit(distances, near, far)) marks |= 1u << group;
    }
    return marks;
  }

  // Of single columns: 16 bits for each group.
  __device__ uint32_t OfColumns(const uint32_t* columns, int word) const {
    uint32_t marks = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int at = word * 16 + i;
      const uint32_t bits = at < work_.unit_words ? columns[at] : 0;
      marks |= static_cast<uint32_t>((bits & 0xffffu) != 0) << (2 * i);
      marks |= static_cast<uint32_t>(bits >> 16 != 0) << (2 * i + 1);
    }
    return marks;
  }

  // Of single distances. The group at `key` is read at distances [first - key - 15, end - key) of
  // the tile. Sixteens of distances that begin where those of the groups do: bit i of `whole` is
  // set where one has marks, the last group's first; the last of a group may be a part.
  __device__ uint32_t OfDistances(const uint32_t* distances, int word) const {
    constexpr int kSixteens = 32 + kTileTokens / kGroupTokens;
    static_assert(kSixteens % 2 == 0);
    const int from = tile_.first - word * kWordTokens - (kWordTokens - 1);
    const int left = tile_.tokens() + kGroupTokens - 1;  // distances of a group
    const int wholes = left / kGroupTokens;
    const uint32_t part = (1u << (left % kGroupTokens)) - 1;
    // Distances below 0 and behind the last have no marks.
    const auto load = [&](int at) {
      return static_cast<uint32_t>(at) < static_cast<uint32_t>(work_.unit_words) ? distances[at]
                                                                                 : 0;
    };
    uint64_t whole = 0, partial = 0;
    uint32_t next = load(from >> 5);
#pragma unroll
    for (int i = 0; i < kSixteens; i += 2) {
      const uint32_t low = next;
      next = load((from >> 5) + i / 2 + 1);
      const uint32_t bits = __funnelshift_r(low, next, static_cast<uint32_t>(from));
      const uint32_t pair = static_cast<uint32_t>((bits & 0xffffu) != 0) |
                            static_cast<uint32_t>(bits >> 16 != 0) << 1;
      const uint32_t parts = static_cast<uint32_t>((bits & part) != 0) |
                             static_cast<uint32_t>((bits >> 16 & part) != 0) << 1;
      whole |= uint64_t{pair} << i;
      partial |= uint64_t{parts} << i;
    }
    uint64_t read = partial >> wholes;
    for (int i = 0; i < wholes; ++i) read |= whole >> i;
    return __brev(static_cast<uint32_t>(read));
  }

  const RangeWork& work_;
  const int head_;
  const RangeSpan tile_;
  const int q_head_;
  HeadMode mode_;
};

struct Counts final {
  uint32_t runs = 0, ends = 0, blocks = 0;
};
struct Shared final {
  uint32_t words[kThreads + 1];  // the one before, then the threads' own
  Counts counts[kWarps];
};

// Inclusive sums over the block; `total` is everybody's.
__device__ Counts Scan(Counts mine, Shared& shared, Counts* total) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    const uint32_t runs = __shfl_up_sync(~0u, mine.runs, lanes);
    const uint32_t ends = __shfl_up_sync(~0u, mine.ends, lanes);
    const uint32_t blocks = __shfl_up_sync(~0u, mine.blocks, lanes);
    if (lane >= lanes) mine = {mine.runs + runs, mine.ends + ends, mine.blocks + blocks};
  }
  if (lane == 31) shared.counts[threadIdx.x / 32] = mine;
  __syncthreads();
  Counts before;
  *total = {};
  for (int warp = 0; warp < kWarps; ++warp) {
    if (warp == static_cast<int>(threadIdx.x) / 32) before = *total;
    const Counts& add = shared.counts[warp];
    *total = {total->runs + add.runs, total->ends + add.ends, total->blocks + add.blocks};
  }
  return {mine.runs + before.runs, mine.ends + before.ends, mine.blocks + before.blocks};
}

// Writes the first keys of runs, or the ends behind their last ones, of one word.
__device__ void WriteBorders(uint32_t borders, int word, int32_t* to) {
  for (; borders != 0; borders &= borders - 1) {
    *to++ = word * kWordTokens + (__ffs(static_cast<int>(borders)) - 1) * kGroupTokens;
  }
}

// Blocks of 64 keys that some query of the tile sees.
__device__ int64_t BlocksOfShape(const StaticShape& shape, RangeSpan tile) {
  const int blocks = (tile.end - 1) / kStatTokens + 1;
  if (shape.window_tokens == 0) return blocks;
  const int from = max(tile.first - shape.window_tokens + 1, 0) / kStatTokens;
  const int sinks = min((shape.sink_tokens + kStatTokens - 1) / kStatTokens, blocks);
  return blocks - from + min(sinks, from);
}

__device__ void AddStats(const RangeWork& work, int q_head, RangeSpan tile, bool dense,
                         int64_t blocks) {
  RangeStats& stats = work.stats[q_head];
  StaticShape shape;
  if (work.shapes != nullptr) shape = work.shapes[q_head / work.group];
  const int64_t selected = dense ? BlocksOfShape(shape, tile) : blocks;
  const int64_t considered = (tile.end - 1) / kStatTokens + 1;
  atomicAdd(reinterpret_cast<unsigned long long*>(&stats.blocks_considered),
            static_cast<unsigned long long>(considered));
  atomicAdd(reinterpret_cast<unsigned long long*>(&stats.blocks_selected),
            static_cast<unsigned long long>(selected));
}

__global__ void __launch_bounds__(kThreads) WriteKernel(const __grid_constant__ RangeWork work) {
  __shared__ Shared shared;
  LetNextStart();
  WaitForPrevious();
  const int index = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x);
  const int tiles = (work.chunk.rows - 1) / kTileTokens + 1;
  const int first = work.chunk.first_position + index * kTileTokens;
  const RangeSpan tile{first,
                       min(first + kTileTokens, work.chunk.first_position + work.chunk.rows)};
  const TileWords marks(work, head, tile);
  const int64_t list =
      work.out.chunk_offsets[work.chunk_index] + int64_t{work.QHead(head)} * tiles + index;
  const int64_t start = list * work.out.stride;
  Counts done;
  // A run ends in the word that lacks the next group; which the last thread's may not have.
  if (thread == 0) shared.words[0] = 0;
  for (int at = 0; at < marks.words(); at += kThreads) {
    const int word = at + thread;
    const uint32_t mine = word < marks.words() ? marks.Word(word) : 0;
    shared.words[1 + thread] = mine;
    __syncthreads();
    const uint32_t before = mine << 1 | shared.words[thread] >> 31;
    const uint32_t begins = mine & ~before, ends = before & ~mine;
    const bool closes = thread == kThreads - 1 && word == marks.words() - 1 && mine >> 31 != 0;
    const uint32_t quads = (mine | mine >> 1 | mine >> 2 | mine >> 3) & 0x11111111u;
    const Counts own{static_cast<uint32_t>(__popc(static_cast<int>(begins))),
                     static_cast<uint32_t>(__popc(static_cast<int>(ends)) + (closes ? 1 : 0)),
                     static_cast<uint32_t>(__popc(static_cast<int>(quads)))};
    Counts total;
    const Counts sums = Scan(own, shared, &total);
    if (thread == kThreads - 1) shared.words[0] = mine;  // behind Scan's barrier
    WriteBorders(begins, word, work.out.begin + start + done.runs + sums.runs - own.runs);
    WriteBorders(ends, word, work.out.end + start + done.ends + sums.ends - own.ends);
    if (closes) work.out.end[start + done.ends + sums.ends - 1] = (word + 1) * kWordTokens;
    done = {done.runs + total.runs, done.ends + total.ends, done.blocks + total.blocks};
  }
  if (thread != 0) return;
  work.out.begins[list] = start;
  work.out.ends[list] = start + done.runs;
  if (work.stats != nullptr) {
    AddStats(work, work.QHead(head), tile, marks.dense(), done.blocks);
  }
}

}  // namespace

Status WriteRanges(const RangeWork& work, cudaStream_t stream) {
  const int tiles = (work.chunk.rows - 1) / kTileTokens + 1;
  return Launch(WriteKernel,
                dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(work.head_count())),
                dim3(kThreads), 0, stream, work);
}

}  // namespace lacuna::kernels::cuda
