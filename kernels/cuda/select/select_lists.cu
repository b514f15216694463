// Lists of choices that are in memory: kept ones, layers' and refined ones, and lists without any
// choice. One thread block makes the list of a (row, kv head).
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/select/select_choice.h"
#include "kernels/cuda/select/select_lists.cuh"

namespace lacuna::kernels::cuda {
namespace {

// What the second choice left, masks of 64 tokens. The first of an owner's heads keeps it.
struct RefinedChoice final {
  const uint64_t* refined;
  uint64_t* kept;  // null: not by this head
  int pages, page_tokens;

  template <bool kFirst>
  __device__ uint64_t Pages(int first) const {
    const int page = first + LaneId();
    if (page >= pages) return 0;
    const int token = page * page_tokens;
    const uint64_t mask =
        refined[token / kMaskTokens] >> token % kMaskTokens & MaskBits(0, page_tokens);
    if (kFirst && kept != nullptr) kept[page] = mask;
    return mask;
  }
};

// Of a row that chose anew.
__device__ float EstimatedMass(const SelectKeysCall& call, const ChooseScratch& scratch, int row,
                               int owner) {
  if (call.stats == nullptr) return 0.0f;
  const int64_t at = row - call.first_row;
  const float mass = scratch.masses[at * call.owners + owner];
  if (!call.refines) return mass;
  const int rounds = scratch.rounds / call.owners;  // of an owner
  float sum = 0.0f;
  int count = 0;
  for (int i = owner * rounds; i < (owner + 1) * rounds; ++i) {
    if (rounds > 1 && HasWindow(call, row, i / call.heads)) continue;
    sum += scratch.shares[at * scratch.rounds + i];
    ++count;
  }
  return mass * sum / static_cast<float>(count);
}

// Whether no earlier head of the layer reads the choice.
__device__ bool IsFirstHead(const SelectKeysCall& call, int row, int kv_head) {
  for (int kv = 0; call.owners == 1 && kv < kv_head; ++kv) {
    if (!HasWindow(call, row, kv)) return false;
  }
  return true;
}

// Grid: (kv heads, rows of the group).
__global__ void __launch_bounds__(kChooseThreads)
    ListsKernel(const __grid_constant__ SelectKeysCall call,
                const __grid_constant__ ChooseScratch scratch) {
  WaitForPrevious();
  LetNextStart();
  const int kv_head = static_cast<int>(blockIdx.x);
  const int row = call.first_row + static_cast<int>(blockIdx.y);
  const int owner = call.path.owner == OwnerKind::kLayer ? 0 : kv_head;
  const RowPlan plan = PlanRow(call, row);
  const bool selects = !HasWindow(call, row, kv_head);
  const bool chose = plan.act == RowPlan::Act::kChoose && selects;
  ChooseBlock block;
  const ListMaker maker(call, plan, row, kv_head);
  ListMaker::Counts counts;
  if (chose && call.refines) {
    const int64_t at = int64_t{row - call.first_row} * call.owners + owner;
    RefinedChoice choice{scratch.refined + at * scratch.blocks, nullptr, plan.pages,
                         call.page_tokens};
    if (IsFirstHead(call, row, kv_head)) choice.kept = ChoiceOf(call, call.rows[row], owner);
    counts = maker.Make(choice, block);
  } else if (chose || (plan.act == RowPlan::Act::kKeep && selects)) {
    KeptChoice choice{ChoiceOf(call, call.rows[row], owner), plan.pages};
    counts = maker.Make(choice, block);
  } else {
    NoChoice choice;
    counts = maker.Make(choice, block);
  }
  maker.Report(counts, chose && threadIdx.x == 0 ? EstimatedMass(call, scratch, row, owner) : 0.0f);
}

}  // namespace

Status MakeLists(const SelectKeysCall& call, const ChooseScratch& scratch, cudaStream_t stream) {
  return Launch(ListsKernel,
                dim3(static_cast<unsigned>(call.kv_heads), static_cast<unsigned>(call.group_rows)),
                dim3(kChooseThreads), 0, stream, call, scratch);
}

}  // namespace lacuna::kernels::cuda
