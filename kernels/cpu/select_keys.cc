#include "kernels/cpu/select_keys.h"

#include <string>

#include "kernels/cpu/select_call.h"

namespace lacuna::kernels::cpu {
namespace {

// Scores of the rows that are in flight together take this much, unless one row needs more.
constexpr int64_t kScoreFloatsMax = 8 << 20;
// Below this much work, waking the workers costs more than it saves.
constexpr int64_t kParallelTokensMin = 4096;

template <typename Fn>
void RunTasks(ThreadPool& pool, int64_t tasks, bool parallel, Fn&& fn) {
  if (parallel && tasks > 1) {
    pool.ParallelFor(tasks, fn);
  } else {
    for (int64_t task = 0; task < tasks; ++task) fn(task, 0);
  }
}

}  // namespace

const SelectKernels& SelectKernelsOf(Isa isa) {
  if (isa >= Isa::kAvx512Bf16) return kSelectAvx512Bf16;
  if (isa >= Isa::kAvx512) return kSelectAvx512;
  return isa == Isa::kAvx2 ? kSelectAvx2 : kSelectScalar;
}

Status SelectKeysCpu(const SelectKeysArgs& args, Isa isa, ThreadPool& pool,
                     SelectKeysScratch& scratch) {
  if (args.pool.head_dim % MetadataLayout::kGroup != 0) {
    return InvalidArgument("SelectKeys: pool: need a head_dim that is a multiple of 16");
  }
  SelectCall call(args, SelectKernelsOf(isa), scratch);
  const int64_t rows = call.rows(), owners = call.owners();
  for (int64_t row = 0; row < rows; ++row) LACUNA_RETURN_IF_ERROR(call.PlanRow(row));
  for (int64_t begin = 0; begin < rows;) {
    int64_t end = begin, floats = 0, tokens = 0;
    do {
      floats += call.ScoreFloats(scratch.rows[static_cast<size_t>(end)]);
      tokens += scratch.rows[static_cast<size_t>(end)].tokens;
      ++end;
    } while (end < rows &&
             floats + call.ScoreFloats(scratch.rows[static_cast<size_t>(end)]) <= kScoreFloatsMax);
    call.LayOut(begin, end);
    const bool parallel = tokens >= kParallelTokensMin;
    const auto tasks = static_cast<int64_t>(scratch.tasks.size());
    const auto worker_of = [&](int worker) -> auto& {
      return scratch.workers[static_cast<size_t>(worker)];
    };
    const auto task_of = [&](int64_t task) -> auto& {
      return scratch.tasks[static_cast<size_t>(task)];
    };
    const bool normalises = call.normalises();
    RunTasks(pool, tasks, parallel, [&](int64_t task, int worker) {
      const SelectKeysScratch::Task& what = task_of(task);
      if (call.ScoreChunk(what, worker_of(worker)) && !normalises) {
        call.Choose(what.row, what.owner, worker_of(worker));
      }
    });
    if (normalises) {
      RunTasks(pool, end - begin, parallel,
               [&](int64_t task, int) { call.FinishSoftmax(begin + task); });
      RunTasks(pool, tasks, parallel, [&](int64_t task, int worker) {
        call.ReduceChunk(task_of(task), worker_of(worker));
      });
      RunTasks(pool, (end - begin) * owners, parallel, [&](int64_t task, int worker) {
        call.Choose(begin + task / owners, task % owners, worker_of(worker));
      });
    }
    begin = end;
  }
  if (call.overflowed()) {
    return InvalidArgument("SelectKeys: out: a list of more than " +
                           std::to_string(args.out.stride) + " pages");
  }
  return OkStatus();
}

}  // namespace lacuna::kernels::cpu
