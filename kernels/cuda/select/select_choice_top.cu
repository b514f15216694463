// The common path of ChooseKeys: top-k by each kv head alone, no second choice. One thread block
// chooses for a (row, kv head) and makes its list; a thread holds the scores of a few units.
//
// All this is latency, so: scores are asked for before anything is known of the row; the row's
// plan is looked up while the cut is searched; one histogram over the range of the scores mostly
// leaves a few units in the bin of the cut, which are compared with each other; six barriers.
// Target (H200): 64 rows of 8192 units 8 us, of 2048 units 5 us.
#include <algorithm>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/select/select_choice.cuh"
#include "kernels/cuda/select/select_choice.h"

namespace lacuna::kernels::cuda {
namespace {

// Entries of the row's list that are listed, by warps, each from where its share begins.
__device__ inline uint16_t* Entries() { return reinterpret_cast<uint16_t*>(ChooseMemory()); }
constexpr int64_t kEntriesMax = 1 << 14;

// The list of a row that does not choose anew.
__device__ __attribute__((noinline)) void ListOther(const SelectKeysCall& call, const RowPlan& plan,
                                                    int row, int kv_head) {
  ChooseBlock block;
  const ListMaker maker(call, plan, row, kv_head);
  KeptChoice choice{nullptr, 0};
  if (plan.act == RowPlan::Act::kKeep && !HasWindow(call, row, kv_head)) {
    choice = {ChoiceOf(call, call.rows[row], kv_head), plan.pages};
  }
  maker.Report(maker.Make(choice, block), 0.0f);
}

// The units that compete, and how many of them are taken.
struct TopDials final {
  int units, first;
  uint32_t competing, count;

  __device__ TopDials(const DecodeCounts& counts, int units_max)
      : units(min(max(counts.units, 0), units_max)),
        first(max(counts.sink_units, 0)),
        competing(
            static_cast<uint32_t>(max(min(units, counts.units - counts.local_units) - first, 0))),
        count(min(static_cast<uint32_t>(max(counts.ranked_units_max, 0)), competing)) {}
  __device__ bool Between(int unit) const {
    return static_cast<uint32_t>(unit - first) < competing;
  }
};

template <int kThreads>
using TopCutter = CutterOf<kThreads, false>;

// Many units in one bin: outliers, or equal scores. The scores are read again.
template <int kThreads>
__device__ __attribute__((noinline)) uint64_t CutOfCrowd(const float* scores, TopDials dials) {
  TopCutter<kThreads> cutter;
  __syncthreads();
  const KeyRow row(KeyRow::Source::kScores, scores, 0, 0);
  const int end = dials.first + static_cast<int>(dials.competing);
  return cutter.CutOfCount(row, {dials.first, end, 0, ~0u}, static_cast<int>(dials.count));
}

// Sums of masses 2^-42 of weights up to 1, each in two halves.
class ExpShare final {
 public:
  // Rounds as MassOf() does: adding 2^23 leaves a whole number in the low bits.
  __device__ void Add(float weight, bool is_held) {
    const float high = fmaxf(weight, 0.0f) * 2097152.0f;
    const float whole = high + kWhole;
    const float rest = (high - (whole - kWhole)) * 2097152.0f + kSigned;
    all_[0] += __float_as_uint(whole) - kWholeBits;
    all_[1] += __float_as_uint(rest) - kSignedBits;
    if (!is_held) return;
    held_[0] += __float_as_uint(whole) - kWholeBits;
    held_[1] += __float_as_uint(rest) - kSignedBits;
  }
  __device__ MassShare Sum() const { return {Join(held_), Join(all_)}; }

 private:
  static constexpr float kWhole = 8388608.0f, kSigned = 12582912.0f;
  static constexpr uint32_t kWholeBits = 0x4b000000u, kSignedBits = 0x4b400000u;

  __device__ static uint64_t Join(const uint32_t (&halves)[2]) {
    return (static_cast<uint64_t>(halves[0]) << 21) +
           static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(halves[1])));
  }

  uint32_t held_[2] = {0, 0}, all_[2] = {0, 0};
};

// Unit i * kThreads + threadIdx.x is the thread's i-th.
template <int kThreads, int kUnits>
class TopChooser final {
 public:
  static constexpr int kUnitsMax = kThreads * kUnits;

  // Asks for the scores; there are `stride` of them, not all of units.
  __device__ void Load(const float* scores, int stride) {
    row_ = scores;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      if (UnitAt(i) < stride) levels_[i] = scores[UnitAt(i)];
    }
  }

  // Chooses, into Bits(). `weighs`: adds up the share of the mass.
  __device__ MassShare Choose(const TopDials& dials, bool normalised, bool weighs) {
    MakeBins(dials, normalised);
    int bin = dials.count > 0 ? kLastBin : kFirstBin - 1;  // of the worst that are taken
    uint32_t wanted = 0, inside = 0;                       // of that bin
    if (dials.count > 0 && dials.count < dials.competing) {
      __syncthreads();
      const auto found = cutter_.FindBin(dials.count);
      bin = kFirstBin + static_cast<int>(found.bin);
      inside = found.inside;
      wanted = dials.count - found.before;
    }
    const int last = inside == wanted ? bin : bin - 1;  // that is taken whole
    uint32_t* words = Bits() + WarpId();
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const uint32_t taken = __ballot_sync(kAllLanes, bins_[i] <= last);
      if (LaneId() == 0) words[i * kThreads / 32] = taken;
    }
    MassShare share;
    const bool weighs_exps = weighs && !normalised;
    if (weighs_exps) share = WeighExps(last);
    if (inside != wanted) TakeTied(dials, bin, inside, wanted, weighs_exps, share);
    __syncthreads();
    if (weighs && normalised) WeighScores(dials, share);
    return share;
  }

  // One bit for each unit, set where it is taken.
  __device__ static uint32_t* Bits() {
    __shared__ uint32_t bits[kUnitsMax / 32];
    return bits;
  }

 private:
  // Bins are numbered as the bits of floats from 2^23 on.
  static constexpr int kBins = TopCutter<kThreads>::kBins;
  static constexpr int kFirstBin = 0x4b000000, kLastBin = kFirstBin + kBins - 1;
  static constexpr int kForcedBin = kLastBin + 1;  // does not compete, or is no unit

  __device__ static int UnitAt(int i) { return i * kThreads + static_cast<int>(threadIdx.x); }
  __device__ static void Take(uint32_t unit) { atomicOr(&Bits()[unit / 32], 1u << unit % 32); }

  // Bins of all units, and the histogram of those that compete. A better score's bin is no worse,
  // whatever the range: NaN and infinite products end in the last bin.
  __device__ void MakeBins(const TopDials& dials, bool normalised) {
    if (normalised) {  // keys of probabilities grow as their logarithms
#pragma unroll
      for (int i = 0; i < kUnits; ++i) levels_[i] = __uint2float_rn(OrderKey(levels_[i]));
    }
    float high = -INFINITY, low = INFINITY, top = -INFINITY;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      if (UnitAt(i) >= dials.units) levels_[i] = -INFINITY;
      top = fmaxf(top, levels_[i]);
      if (!dials.Between(UnitAt(i))) continue;
      high = fmaxf(high, levels_[i]);
      low = fminf(low, levels_[i]);
    }
    uint32_t extremes[3] = {OrderKey(high), ~OrderKey(low), OrderKey(top)};
    cutter_.block().Max(extremes);
    high = ScoreOfKey(extremes[0]);
    top_ = ScoreOfKey(extremes[2]);
    const float bins_of_one = static_cast<float>(kBins - 1) / (high - ScoreOfKey(~extremes[1]));
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const float distance = (high - levels_[i]) * bins_of_one;
      const float place = fminf(distance, static_cast<float>(kBins - 1)) + 8388608.0f;
      const bool competes = dials.Between(UnitAt(i));
      bins_[i] = competes ? __float_as_int(place) : kForcedBin;
      if (competes) cutter_.Count(static_cast<uint32_t>(bins_[i] - kFirstBin));
    }
  }

  // But for units that TakeTied() takes.
  __device__ MassShare WeighExps(int last) const {
    ExpShare share;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      share.Add(ExpOf(levels_[i] - top_), bins_[i] <= last || bins_[i] == kForcedBin);
    }
    return share.Sum();
  }

  // Takes the best `wanted` of the `inside` units of `bin`.
  __device__ void TakeTied(const TopDials& dials, int bin, uint32_t inside, uint32_t wanted,
                           bool weighs, MassShare& share) {
    uint32_t tied = 0;  // of this thread
#pragma unroll
    for (int i = 0; i < kUnits; ++i) tied |= bins_[i] == bin ? 1u << i : 0u;
    const bool crowd = inside > TopCutter<kThreads>::kListMax;
    uint64_t cut = 0;
    if (crowd) cut = CutOfCrowd<kThreads>(row_, dials);
    const auto take = [&](uint64_t rank) {
      Take(~static_cast<uint32_t>(rank));
      if (weighs) share.held += MassOf(ExpOf(ScoreOfKey(static_cast<uint32_t>(rank >> 32)) - top_));
    };
#pragma unroll 1
    for (; tied != 0; tied &= tied - 1) {
      const int unit = UnitAt(__ffs(static_cast<int>(tied)) - 1);
      const uint64_t rank = RankOf(OrderKey(row_[unit]), unit);
      if (!crowd) {
        cutter_.List(rank);
      } else if (rank >= cut) {
        take(rank);
      }
    }
    if (crowd) return;
    __syncthreads();
    const int listed = cutter_.listed(), mine = static_cast<int>(threadIdx.x);
    if (mine >= listed) return;
    const uint64_t rank = cutter_.Rank(mine);
    uint32_t better = 0;
#pragma unroll 1
    for (int i = 0; i < listed; ++i) better += cutter_.Rank(i) > rank ? 1 : 0;
    if (better < wanted) take(rank);
  }

  // Probabilities. When all bits are there.
  __device__ void WeighScores(const TopDials& dials, MassShare& share) const {
#pragma unroll 2
    for (int unit = UnitAt(0); unit < dials.units; unit += kThreads) {
      const auto at = static_cast<uint32_t>(unit);
      share.Add(row_[unit], !dials.Between(unit) || (Bits()[at / 32] >> at % 32 & 1) != 0);
    }
  }

  const float* row_ = nullptr;
  float levels_[kUnits];  // what bins are linear in
  int bins_[kUnits];
  float top_ = 0;  // the greatest of all
  TopCutter<kThreads> cutter_;
};

// The list of what was chosen, and the choice that is kept.
class TopLister final {
 public:
  __device__ TopLister(const SelectKeysCall& call, const RowPlan& plan, const SelectRow& what,
                       const uint32_t* bits)
      : bits_(bits),
        forced_(call, plan, what),
        inner_end_(min(forced_.local_begin, plan.tokens)),
        page_tokens_(call.page_tokens),
        unit_shift_(LogOf(call.path.unit_tokens)),
        page_units_(call.page_tokens >> unit_shift_),
        full_(MaskBits(0, page_tokens_)) {}

  // The chosen tokens of a page.
  __device__ uint64_t Chosen(int page) const {
    const uint32_t unit = static_cast<uint32_t>(page * page_tokens_) >> unit_shift_;
    const uint32_t bits = bits_[unit / 32] >> unit % 32;
    if (page_units_ <= 1) return (bits & 1) != 0 ? full_ : 0;
    if (page_units_ == 4) {  // of 16 tokens
      const uint32_t low = ((bits & 1) | (bits & 2) << 15) * 0xffff;
      const uint32_t high = ((bits & 4) >> 2 | (bits & 8) << 13) * 0xffff;
      return static_cast<uint64_t>(high) << 32 | low;
    }
    if (page_units_ == 16) return bits & 0xffff;
    return static_cast<uint64_t>(bits_[unit / 32 + 1]) << 32 | bits;
  }
  // The tokens of a page that are read, and how many they are. A page that is read to its last
  // visible token is listed whole, as ListMaker has it.
  __device__ uint64_t Read(int page, uint64_t chosen, uint32_t& keys) const {
    const int token = page * page_tokens_;
    uint64_t mask = chosen;
    if (token < forced_.sink_end || token + page_tokens_ > inner_end_) {
      const uint64_t visible = full_ & forced_.Visible(token);
      mask = (chosen | forced_.In(token)) & visible;
      keys = static_cast<uint32_t>(__popcll(mask));
      return mask == visible ? full_ : mask;
    }
    keys = static_cast<uint32_t>(__popcll(mask));
    return mask;
  }

 private:
  const uint32_t* bits_;
  ForcedTokens forced_;
  int inner_end_;  // tokens of pages before it are forced only by sinks
  int page_tokens_, unit_shift_, page_units_;
  uint64_t full_;
};

// What the warps of a block found.
struct TopTotals final {
  uint32_t pages[32], keys[32];
  uint64_t held[32], all[32];
};
__device__ inline TopTotals& Totals() {
  __shared__ TopTotals totals;
  return totals;
}

// By the first warp, when all have left their totals.
__device__ inline void ReportTop(const SelectKeysCall& call, const RowPlan& plan, int row,
                                 int kv_head) {
  const bool is_warp = LaneId() < BlockWarps();
  const ListMaker maker(call, plan, row, kv_head);
  const ListMaker::Counts counts{
      __reduce_add_sync(kAllLanes, is_warp ? Totals().pages[LaneId()] : 0),
      __reduce_add_sync(kAllLanes, is_warp ? Totals().keys[LaneId()] : 0)};
  maker.WriteEnds(min(int64_t{counts.pages}, call.out.stride));
  float mass = 0.0f;
  if (call.stats != nullptr) {
    mass = MassShare{is_warp ? Totals().held[LaneId()] : 0, is_warp ? Totals().all[LaneId()] : 0}
               .OfWarp();
  }
  maker.Report(counts, mass);
}

template <int kThreads>
__device__ inline void MakeTopList(const SelectKeysCall& call, const RowPlan& plan, int row,
                                   int kv_head, const SelectRow& what, const uint32_t* bits,
                                   MassShare share) {
  const TopLister lister(call, plan, what, bits);
  uint64_t* kept = ChoiceOf(call, what, kv_head);
  const auto lane = static_cast<uint32_t>(LaneId());
  const int each =
      static_cast<int>(static_cast<uint32_t>(plan.pages + kThreads - 1) / kThreads * 32);
  const int begin = WarpId() * each, end = min(begin + each, plan.pages);
  uint16_t* entries = Entries() + begin;
  uint32_t found = 0, keys = 0;
#pragma unroll 2
  for (int first = begin; first < end; first += 32) {
    const int page = first + LaneId();
    uint64_t mask = 0;
    if (page < end) {
      const uint64_t chosen = lister.Chosen(page);
      kept[page] = chosen;
      uint32_t page_keys;
      mask = lister.Read(page, chosen, page_keys);
      keys += page_keys;
    }
    const uint32_t taken = __ballot_sync(kAllLanes, mask != 0);
    if (mask != 0) {
      entries[found + __popc(taken & ((1u << lane) - 1))] = static_cast<uint16_t>(page);
    }
    found += static_cast<uint32_t>(__popc(taken));
  }
  keys = __reduce_add_sync(kAllLanes, keys);
  if (call.stats != nullptr) share = {WarpTotal(share.held), WarpTotal(share.all)};
  if (lane == 0) {
    Totals().pages[WarpId()] = found;
    Totals().keys[WarpId()] = keys;
    Totals().held[WarpId()] = share.held;
    Totals().all[WarpId()] = share.all;
  }
  __syncwarp();
  // The first ids are on their way during the barrier.
  const int32_t* ids = call.pages.pages + plan.first_entry;
  int32_t id = lane < found ? ids[entries[lane]] : 0;
  __syncthreads();
  uint32_t at = __reduce_add_sync(kAllLanes, LaneId() < WarpId() ? Totals().pages[lane] : 0);
  const int64_t list = static_cast<int64_t>(row) * call.kv_heads + kv_head;
  at += lane;
#pragma unroll 1
  for (uint32_t i = lane; i < found; i += 32, at += 32) {
    const int page = entries[i];
    if (i >= 32) id = ids[page];
    if (at >= call.out.stride) break;
    uint32_t page_keys;
    const int64_t to = list * call.out.stride + at;
    call.out.pages[to] = id;
    call.out.logical[to] = page;
    call.out.masks[to] = lister.Read(page, lister.Chosen(page), page_keys);
  }
  if (WarpId() == 0) ReportTop(call, plan, row, kv_head);
}

// Grid: (kv heads, rows of the group).
template <int kThreads, int kUnits, int kBlocksPerSm>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    ChooseTopKernel(const __grid_constant__ SelectKeysCall call) {
  using Chooser = TopChooser<kThreads, kUnits>;
  Chooser chooser;
  WaitForPrevious();
  LetNextStart();
  const int kv_head = static_cast<int>(blockIdx.x);
  const int row = call.first_row + static_cast<int>(blockIdx.y);
  chooser.Load(UnitScores(call, row, kv_head), static_cast<int>(call.units_stride));
  const RowFacts facts = ReadRow(call, row);
  const SelectRow& what = facts.what;
  const bool selects = !HasWindow(call, row, kv_head);
  const bool may_choose =
      selects && !what.counts.dense && (what.choose || call.path.refresh == RefreshKind::kCosine);
  // Whether it does choose is known only once both loads of the plan are there.
  MassShare share;
  if (may_choose) {
    share = chooser.Choose(TopDials(what.counts, Chooser::kUnitsMax), call.normalises,
                           call.stats != nullptr);
  }
  const RowPlan plan = PlanRow(call, row, facts);
  if (!may_choose || plan.act != RowPlan::Act::kChoose) {
    return ListOther(call, plan, row, kv_head);
  }
  MakeTopList<kThreads>(call, plan, row, kv_head, what, Chooser::Bits(), share);
  ClearBehind(call, plan, ChoiceOf(call, what, kv_head));
}

template <int kThreads, int kUnits, int kBlocksPerSm>
Status LaunchTop(const SelectKeysCall& call, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(call.kv_heads), static_cast<unsigned>(call.group_rows));
  const size_t entries_bytes = static_cast<size_t>(RoundUp(int64_t{call.pages_max}, 32)) * 2;
  return Launch(ChooseTopKernel<kThreads, kUnits, kBlocksPerSm>, grid, dim3(kThreads),
                entries_bytes, stream, call);
}

}  // namespace

bool TopFits(const SelectKeysCall& call) {
  const auto is_size = [](int tokens) { return tokens == 1 || tokens == 16 || tokens == 64; };
  return call.path.select == SelectKind::kTopK && call.path.owner == OwnerKind::kKvHead &&
         !call.per_head && !call.refines && is_size(call.path.unit_tokens) &&
         is_size(call.page_tokens) && call.units_stride <= kEntriesMax &&
         call.pages_max <= kEntriesMax;
}

Status ChooseTop(const SelectKeysCall& call, cudaStream_t stream) {
  if (call.units_stride <= 2048) return LaunchTop<256, 8, 4>(call, stream);
  if (call.units_stride <= 8192) return LaunchTop<512, 16, 2>(call, stream);
  return LaunchTop<512, 32, 1>(call, stream);
}

}  // namespace lacuna::kernels::cuda
