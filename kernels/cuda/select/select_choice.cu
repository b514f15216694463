// ChooseKeys: choices, refinement, lists. One thread block makes the choice of a (row, owner);
// where the owner is a kv head and nothing refines, it makes the list too.
//
// Targets (H200, kernels.md 2.9): 64 rows of 8192 units 8 us, of 65536 units 15 us, lists included.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/select/select_choice.cuh"
#include "kernels/cuda/select/select_choice.h"

namespace lacuna::kernels::cuda {
namespace {

// One (row, owner) of a ChooseKernel. kPerHead: SelectKeysCall::per_head.
template <bool kPerHead>
class Chooser final {
 public:
  __device__ Chooser(const SelectKeysCall& call, const ChooseScratch& scratch, const RowPlan& plan,
                     int row, int owner, int cache_keys)
      : call_(call),
        scratch_(scratch),
        plan_(plan),
        what_(call.rows[row]),
        row_(row),
        owner_(owner),
        heads_first_(call.path.owner == OwnerKind::kLayer ? 0 : owner * call.heads),
        heads_end_(call.path.owner == OwnerKind::kLayer ? call.query_rows
                                                        : (owner + 1) * call.heads),
        cache_keys_(cache_keys),
        masks_(ChoiceOf(call, what_, owner)) {}

  // Chooses, and makes the list where this block is to. Returns the share of the mass.
  __device__ void Choose(bool lists) {
    ClearBehind(call_, plan_, masks_);
    if constexpr (!kPerHead) return ChooseTogether(lists);
    if (call_.path.reduce == ReduceKind::kRoundRobin) {
      ChooseInTurn();
    } else {
      for (int head = heads_first_, before = 0; head < heads_end_; ++head) {
        if (HasWindow(call_, row_, head / call_.heads)) continue;
        ChooseOne(RowOfScores(head), before++ > 0);
      }
    }
    __syncthreads();
    const float mass = call_.stats == nullptr ? 0.0f : MassOfHeads();
    if (lists) return List(mass);
    WriteMass(mass);
  }

  // Makes the list of what was chosen before, or without a choice.
  __device__ void List(float mass) {
    const ListMaker maker(call_, plan_, row_, owner_);
    ListMaker::Counts counts;
    if (plan_.act == RowPlan::Act::kChoose || plan_.act == RowPlan::Act::kKeep) {
      KeptChoice kept{masks_, plan_.pages};
      counts = maker.Make(kept, cutter_.block());
    } else {
      NoChoice none;
      counts = maker.Make(none, cutter_.block());
    }
    maker.Report(counts, mass);
  }

 private:
  __device__ KeyRow RowOfScores(int unit_row) const {
    return {KeyRow::Source::kScores, UnitScores(call_, row_, unit_row), 0, cache_keys_};
  }

  __device__ void ChooseTogether(bool lists) {
    const KeyRow row = RowOfScores(owner_);
    const UnitCutter units(call_, what_);
    const UnitSummary summary = units.Load(row, cutter_.block());
    CutChoice choice(call_, plan_, what_, row, units.Cut(row, summary, cutter_), masks_);
    choice.weighs = call_.stats != nullptr;
    choice.top = ScoreOfKey(summary.key_top);
    if (lists) {
      const ListMaker maker(call_, plan_, row_, owner_);
      const ListMaker::Counts counts = maker.Make(choice, cutter_.block());
      return maker.Report(counts, choice.weighs ? choice.share.Of(cutter_.block()) : 0.0f);
    }
    GoOver(choice);
    WriteMass(choice.weighs ? choice.share.Of(cutter_.block()) : 0.0f);
  }

  // By the scores of one query head.
  __device__ void ChooseOne(const KeyRow& row, bool adds) {
    const UnitCutter units(call_, what_);
    const UnitSummary summary = units.Load(row, cutter_.block());
    CutChoice choice(call_, plan_, what_, row, units.Cut(row, summary, cutter_), masks_);
    choice.adds = adds;
    GoOver(choice);
    __syncthreads();  // the next head fills the shared memory anew
  }

  // By the turns at which units come first.
  __device__ void ChooseInTurn() {
    const int64_t at = int64_t{row_ - call_.first_row} * call_.owners + owner_;
    const KeyRow row(KeyRow::Source::kTurns, scratch_.turns + at * call_.units_stride, 0,
                     cache_keys_);
    ChooseOne(row, false);
  }

  __device__ void GoOver(CutChoice& choice) const {
    const WarpShare share(plan_.pages);
    for (int first = share.begin; first < share.end; first += 32) choice.Pages<true>(first);
  }

  // The mean over the heads, by what all of them chose.
  __device__ float MassOfHeads() {
    float mass = 0;
    int count = 0;
    for (int head = heads_first_; head < heads_end_; ++head) {
      if (HasWindow(call_, row_, head / call_.heads)) continue;
      mass += MassOfHead(UnitScores(call_, row_, head));
      ++count;
    }
    return mass / static_cast<float>(count);
  }
  __device__ float MassOfHead(const float* scores) {
    const int unit_tokens = call_.path.unit_tokens;
    const auto each = [&](auto&& fn) {
      for (int unit = static_cast<int>(threadIdx.x); unit < plan_.units; unit += kChooseThreads) {
        fn(unit);
      }
    };
    uint32_t top[1] = {0};
    if (!call_.normalises) {
      each([&](int unit) { top[0] = max(top[0], OrderKey(scores[unit])); });
      cutter_.block().Max(top);
    }
    const float greatest = ScoreOfKey(top[0]);
    const ForcedTokens forced(call_, plan_, what_);
    MassShare share;
    each([&](int unit) {
      const int token = unit * unit_tokens;
      const bool chosen = (masks_[token / call_.page_tokens] >> token % call_.page_tokens & 1) != 0;
      share.Add(call_.normalises ? scores[unit] : ExpOf(scores[unit] - greatest),
                chosen || (forced.In(token) & 1) != 0);
    });
    return share.Of(cutter_.block());
  }

  __device__ void WriteMass(float mass) const {
    if (threadIdx.x != 0) return;
    scratch_.masses[int64_t{row_ - call_.first_row} * call_.owners + owner_] = mass;
  }

  const SelectKeysCall& call_;
  const ChooseScratch& scratch_;
  const RowPlan plan_;
  const SelectRow what_;
  int row_, owner_, heads_first_, heads_end_, cache_keys_;
  Cutter cutter_;
  uint64_t* masks_;
};

// Grid: (owners, rows of the group).
template <bool kPerHead>
__global__ void __launch_bounds__(kChooseThreads, 1)
    ChooseKernel(const __grid_constant__ SelectKeysCall call,
                 const __grid_constant__ ChooseScratch scratch, KeyCache cache, bool lists) {
  WaitForPrevious();
  LetNextStart();
  const int row = call.first_row + static_cast<int>(blockIdx.y);
  const int owner = static_cast<int>(blockIdx.x);
  const RowPlan plan = PlanRow(call, row);
  const bool chooses = plan.act == RowPlan::Act::kChoose && OwnerChooses(call, row, owner);
  if (!chooses && !lists) return;
  Chooser<kPerHead> chooser(call, scratch, plan, row, owner, cache.keys);
  if (chooses) {
    chooser.Choose(lists);
  } else {
    chooser.List(0.0f);
  }
}

int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// The places of the stages' memory from `data` on; `data` null: sizes alone, into `bytes`.
ChooseScratch LayOut(const SelectKeysCall& call, int64_t rows, std::byte* data, int64_t& bytes) {
  bytes = 0;
  const auto take = [&]<typename T>(T*& to, int64_t count_per_row) {
    if (data != nullptr) to = reinterpret_cast<T*>(data + bytes);
    bytes += RoundUp(rows * count_per_row * static_cast<int64_t>(sizeof(T)), 256);
  };
  ChooseScratch scratch;
  if (!call.chooses) return scratch;
  take(scratch.masses, call.owners);
  if (call.path.reduce == ReduceKind::kRoundRobin) {
    take(scratch.turns, call.owners * call.units_stride);
  }
  if (!call.refines) return scratch;
  const int64_t tokens = RoundUp(int64_t{call.pages_max} * call.page_tokens, 64);
  scratch.tokens_stride = tokens;
  scratch.blocks = tokens / kMaskTokens;
  scratch.chunks = static_cast<int32_t>((tokens + kRefineChunkTokens - 1) / kRefineChunkTokens);
  scratch.rounds = call.path.refine_reduce == ReduceKind::kUnion ? call.query_rows : call.owners;
  take(scratch.logits, call.query_rows * tokens);
  take(scratch.sums, int64_t{call.query_rows} * scratch.chunks);
  take(scratch.keys, scratch.rounds * tokens);
  take(scratch.refined, call.owners * scratch.blocks);
  take(scratch.shares, scratch.rounds);
  return scratch;
}

}  // namespace

KeyCache CacheFor(const DeviceTraits& traits, int64_t keys_max, int64_t static_bytes,
                  int64_t beside_bytes) {
  constexpr int64_t kCacheBytesMax = 160 << 10;  // the rest of an SM's memory caches what is beyond
  const int64_t left = std::min(
      traits.shared_bytes_max - RoundUp(static_bytes, 1024) - 1024 - beside_bytes, kCacheBytesMax);
  KeyCache cache;
  cache.keys = static_cast<int32_t>(
      std::clamp<int64_t>(RoundUp(keys_max, 32), 0, std::max<int64_t>(left, 0) / 128 * 32));
  cache.beside_bytes = static_cast<int32_t>(beside_bytes);
  return cache;
}

int64_t ChooseRowBytes(const SelectKeysCall& call) {
  int64_t bytes = 0;
  LayOut(call, 1, nullptr, bytes);
  return RoundUp(bytes, 256);
}

Status ChooseKeys(const SelectKeysCall& call, const DeviceTraits& traits, const Workspace& rest,
                  cudaStream_t stream) {
  int64_t bytes = 0;
  const ChooseScratch scratch =
      LayOut(call, call.group_rows, static_cast<std::byte*>(rest.data), bytes);
  if (bytes > rest.bytes) return InternalError("SelectKeys: too little memory to choose in");
  if (!call.chooses) return MakeLists(call, scratch, stream);
  if (TopFits(call)) return ChooseTop(call, stream);
  if (call.path.reduce == ReduceKind::kRoundRobin) {
    LACUNA_RETURN_IF_ERROR(RankTurns(call, scratch, traits, stream));
  }
  const bool lists = call.path.owner == OwnerKind::kKvHead && !call.refines;
  const KeyCache cache = CacheFor(traits, call.units_stride, kChooseStaticBytes, 0);
  const auto kernel = call.per_head ? ChooseKernel<true> : ChooseKernel<false>;
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(cache.bytes())));
  const dim3 grid(static_cast<unsigned>(call.owners), static_cast<unsigned>(call.group_rows));
  LACUNA_RETURN_IF_ERROR(Launch(kernel, grid, dim3(kChooseThreads), cache.bytes(), stream, call,
                                scratch, cache, lists));
  if (call.refines) {
    LACUNA_RETURN_IF_ERROR(ScoreSurvivors(call, scratch, traits, stream));
    LACUNA_RETURN_IF_ERROR(RefineChoices(call, scratch, traits, stream));
  }
  return lists ? OkStatus() : MakeLists(call, scratch, stream);
}

}  // namespace lacuna::kernels::cuda
