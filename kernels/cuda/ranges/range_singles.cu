// The single columns and distances that SelectRanges keeps of a probe (vertical_slash). A block of
// threads has one list of a cell: it reads the sums twice, whatever they are.
//
// The first pass leaves the largest of each group of sums. The want-th largest group has want sums
// that are no smaller, so what is kept lies above it; the second pass collects what does, little
// more than is wanted, and the search goes on there. Lists of which more is wanted than fits, or
// whose sums are all the same, are searched as they lie.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ranges/range_choice.cuh"
#include "kernels/cuda/ranges/range_kernels.h"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kUnroll = 8;          // sums of a thread that it reads at once
constexpr int kGroups = 16;         // of a thread
constexpr int kCandidates = 11776;  // 92 KB with their ids: sm_86 has 99 KB
constexpr int kSharedBytes = kCandidates * 8;
constexpr int kPiecesMax = kProbeRowsMax / kRangePieceRows;
static_assert(kGroups * kThreads <= 2 * kCandidates);

struct Shared final {
  ChoiceShared choice;
  int32_t first[kPiecesMax], last[kPiecesMax];  // positions of a piece's rows; last -1: none
  uint32_t count;
};

struct SumItem final {
  float score = 0.0f;
  uint32_t id = 0;
  bool forced = false;
};

// The sums of a list, in which forced ones come first.
class SumList final {
 public:
  using Item = SumItem;
  // By all threads; writes the pieces of `shared`.
  __device__ SumList(const RangeWork& work, int head, int cell, bool columns, int64_t forced,
                     Shared& shared)
      : columns_(columns),
        count_(CellRows(work, cell).end),
        forced_(static_cast<int>(min(forced, int64_t{count_}))),
        pieces_(work.cell_pieces()),
        shared_(shared) {
    const int64_t piece = int64_t{head} * work.pieces() + int64_t{cell} * pieces_;
    stride_ = columns ? work.keys_stride : work.strips * kRangePartials;
    sums_ = (columns ? work.column_sums : work.partials) + piece * stride_;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (warp < pieces_) {
      const int32_t* visible = work.visible + (cell * pieces_ + warp) * kRangePieceRows;
      const int lane = static_cast<int>(threadIdx.x) & 31;
      const int last = __reduce_max_sync(~0u, max(visible[lane], visible[lane + 32]));
      if (lane == 0) {
        shared.first[warp] = visible[0];
        shared.last[warp] = last;
      }
    }
    __syncthreads();
  }

  __device__ int64_t count() const { return count_; }
  __device__ int forced() const { return forced_; }
  __device__ float Sum(int unit) const {
    float sum = 0.0f;
    for (int i = 0; i < pieces_; ++i) {
      const float* of_piece = sums_ + i * stride_;
      if (!columns_) {
        sum += Distance(of_piece, shared_.first[i], shared_.last[i], unit);
      } else if (unit <= shared_.last[i]) {
        sum += of_piece[unit];
      }
    }
    return sum;
  }
  __device__ bool Get(int64_t at, Item* item) const {
    *item = {Sum(static_cast<int>(at)), static_cast<uint32_t>(at), at < forced_};
    return true;
  }

 private:
  // Of the two strips at most that a piece's rows at this distance lie in.
  __device__ static float Distance(const float* partials, int first, int last, int distance) {
    const int key = first - distance;  // of the piece's first row
    if (distance > last) return 0.0f;
    float sum = 0.0f;
    int strip = 0, at = kRangeStripTokens - 1 - key;
    if (key >= 0) {
      strip = key / kRangeStripTokens;
      at += strip * kRangeStripTokens;
      sum = partials[int64_t{strip} * kRangePartials + at];
      ++strip;
      at += kRangeStripTokens;
    }
    if (at < kRangePartials - 1 && strip * kRangeStripTokens <= last) {
      sum += partials[int64_t{strip} * kRangePartials + at];
    }
    return sum;
  }

  const bool columns_;
  const int count_, forced_, pieces_;
  int64_t stride_;
  const float* sums_;
  const Shared& shared_;
};

// What the passes leave in shared memory.
struct FoundItems final {
  using Item = SumItem;
  const float* scores;
  const uint32_t* ids;  // null: none
  int32_t found;
  __device__ int64_t count() const { return found; }
  __device__ bool Get(int64_t at, Item* item) const {
    *item = {scores[at], ids == nullptr ? static_cast<uint32_t>(at) : ids[at], false};
    return true;
  }
};

// Every sum of a rank that the cut keeps is no smaller than this, or no number.
__device__ float LeastOf(const ChoiceCut& cut) {
  const auto rank =
      static_cast<uint32_t>((static_cast<uint64_t>(cut.rank) + 1 << cut.shift) - 1);  // the last
  return rank < 0x80000000u ? __uint_as_float(~rank & 0x7fffffffu) : -INFINITY;
}

// The largest sum of each group, at scores[group * kThreads + thread]; NaN of an empty one.
__device__ void FindLargest(const SumList& sums, float* scores) {
  const int thread = static_cast<int>(threadIdx.x), count = static_cast<int>(sums.count());
#pragma unroll
  for (int group = 0; group < kGroups; ++group) scores[group * kThreads + thread] = NAN;
  int group = 0;
  for (int at = thread; at < count; at += kUnroll * kThreads, group = (group + 1) % kGroups) {
    float values[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int unit = at + i * kThreads;
      values[i] = unit < count && unit >= sums.forced() ? sums.Sum(unit) : NAN;
    }
    float largest = scores[group * kThreads + thread];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) largest = fmaxf(largest, values[i]);  // not the NaN of two
    scores[group * kThreads + thread] = largest;
  }
  __syncthreads();
}

// Collects all sums that the cut keeps, and some more; false if they are too many.
__device__ bool Collect(const SumList& sums, const ChoiceCut& cut, Shared& shared, float* scores,
                        uint32_t* ids) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31;
  const int count = static_cast<int>(sums.count());
  __syncthreads();  // the groups have been read
  if (thread == 0) shared.count = 0;
  __syncthreads();
  const float least = LeastOf(cut);
  for (int base = 0; base < count; base += kUnroll * kThreads) {
    float values[kUnroll];
    uint32_t lanes[kUnroll], found = 0;  // those of the warp that are collected
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int unit = base + i * kThreads + thread;
      values[i] = unit < count && unit >= sums.forced() ? sums.Sum(unit) : -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int unit = base + i * kThreads + thread;
      lanes[i] = __ballot_sync(~0u, !(values[i] < least) && unit < count && unit >= sums.forced());
      found += static_cast<uint32_t>(__popc(static_cast<int>(lanes[i])));
    }
    if (found == 0) continue;
    uint32_t to = 0;
    if (lane == 0) to = atomicAdd(&shared.count, found);
    to = __shfl_sync(~0u, to, 0);
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const uint32_t at =
          to + static_cast<uint32_t>(__popc(static_cast<int>(lanes[i] & ((1u << lane) - 1))));
      if ((lanes[i] >> lane & 1) != 0 && at < kCandidates) {
        scores[at] = values[i];
        ids[at] = static_cast<uint32_t>(base + i * kThreads + thread);
      }
      to += static_cast<uint32_t>(__popc(static_cast<int>(lanes[i])));
    }
  }
  __syncthreads();
  return shared.count <= kCandidates;
}

// Marks the forced units alone.
__device__ void MarkForced(uint32_t* words, int count, int forced) {
  for (int word = static_cast<int>(threadIdx.x); word < count; word += kThreads) {
    const int bits = min(max(forced - word * 32, 0), 32);
    words[word] = bits == 32 ? ~0u : (1u << bits) - 1;
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads)
    ChooseSinglesKernel(const __grid_constant__ RangeWork work) {
  LACUNA_DYNAMIC_SHARED(16, std::byte, memory);
  __shared__ Shared shared;
  LetNextStart();
  WaitForPrevious();
  auto* scores = reinterpret_cast<float*>(memory);
  auto* ids = reinterpret_cast<uint32_t*>(memory) + kCandidates;
  const int cell = static_cast<int>(blockIdx.x) / 2, head = static_cast<int>(blockIdx.y);
  const bool columns = blockIdx.x % 2 == 0;
  const int q_head = work.QHead(head);
  if (ModeOf(work, q_head) != HeadMode::kProbe) return;
  const int end = CellRows(work, cell).end;
  const SumList sums(work, head, cell, columns,
                     columns ? work.dials.sink_tokens : LocalTokens(work.dials, end - 1), shared);
  const HeadPattern& pattern = work.heads[q_head].pattern;
  const int wanted = columns ? pattern.a : pattern.b;
  const int64_t chosen = int64_t{head} * work.chunk_cells + work.CellOffset() + cell;
  uint32_t* marks = (columns ? work.columns : work.distances) + chosen * work.unit_words;
  const int64_t want = int64_t{wanted} - sums.forced();
  if (want >= sums.count() - sums.forced()) return MarkForced(marks, work.unit_words, end);
  MarkForced(marks, work.unit_words, sums.forced());
  if (want <= 0) return;
  Chooser<kThreads> chooser(shared.choice);
  if (want <= kGroups * kThreads) {
    FindLargest(sums, scores);
    const ChoiceRule largest{.count_max = want, .mass_share = -1.0};
    const ChoiceCut cut = chooser.Cut(FoundItems{scores, nullptr, kGroups * kThreads}, largest);
    if (Collect(sums, cut, shared, scores, ids)) {
      const FoundItems found{scores, ids, static_cast<int32_t>(shared.count)};
      const ChoiceCut kept = chooser.Cut(found, largest);
      for (int at = static_cast<int>(threadIdx.x); at < found.found; at += kThreads) {
        if (!kept.Keeps(RankOf(scores[at]), ids[at])) continue;
        atomicOr(marks + ids[at] / 32, 1u << (ids[at] % 32));
      }
      return;
    }
  }
  const ChoiceCut kept = chooser.Cut(
      sums, ChoiceRule{.forced_head = sums.forced(), .count_max = wanted, .mass_share = -1.0});
  for (int unit = static_cast<int>(threadIdx.x); unit < end; unit += kThreads) {
    if (unit < sums.forced()) continue;
    if (!kept.Keeps(RankOf(sums.Sum(unit)), static_cast<uint32_t>(unit))) continue;
    atomicOr(marks + unit / 32, 1u << (unit % 32));
  }
}

}  // namespace

Status ChooseRangeSingles(const RangeWork& work, cudaStream_t stream) {
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(
      ChooseSinglesKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  return Launch(
      ChooseSinglesKernel,
      dim3(static_cast<unsigned>(2 * work.cells), static_cast<unsigned>(work.head_count())),
      dim3(kThreads), kSharedBytes, stream, work);
}

}  // namespace lacuna::kernels::cuda
