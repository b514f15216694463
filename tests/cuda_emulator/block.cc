#include "tests/cuda_emulator/block.h"

#include <bit>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/cuda_emulator/fiber.h"
#include "tests/cuda_emulator/report.h"
#include "tests/cuda_emulator/shared_memory.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace cuda_emulator {

namespace {

constexpr int kBarriers = 16;  // 0 is __syncthreads
constexpr int64_t kIdleYieldsMax = 2'000'000;

struct Block;

struct Thread final {
  Block* block = nullptr;
  void* stack_pointer = nullptr;
  Thread* next = nullptr;  // in the queue of those that can go on
  uint3 index{};
  int id = 0;
  bool ended = false;
  const char* waits_for = nullptr;
  int result = 0;              // of the barrier that it waited at
  bool at_cluster = false;     // has arrived, and not waited
  uint32_t cluster_phase = 0;  // in which it has arrived
};

// Lanes that wait for each other.
struct Group final {
  uint32_t mask = 0;
  uint32_t arrived = 0;
  const char* what = nullptr;
  Combine combine = nullptr;
  void* lanes[kLanes] = {};
};

struct Warp final {
  std::vector<Group> groups;
  uint32_t ended = 0;
};

struct Barrier final {
  int arrived = 0;
  int expected = 0;  // of named barriers
  int count = 0;     // of predicates that hold
  Vote vote = Vote::kCount;
  std::vector<Thread*> waiting;
};

struct Block final {
  uint3 index{};
  int rank = 0;  // in its cluster
  Thread threads[kThreadsMax];
  std::unique_ptr<FiberStack> stacks[kThreadsMax];
  Warp warps[kThreadsMax / kLanes];
  Barrier barriers[kBarriers];
  int size = 0;
  int live = 0;
};

// Of the blocks that run together.
struct Cluster final {
  std::unique_ptr<Block> blocks[kClusterMax];
  int size = 1;
  int live = 0;  // threads
  int arrived = 0;
  uint32_t phase = 0;
  std::vector<Thread*> waiting;
};

struct State final {
  LaunchShape shape;
  const std::function<void()>* body = nullptr;
  Cluster cluster;
  Thread* first_ready = nullptr;
  Thread* last_ready = nullptr;
  Thread* running = nullptr;
  void* scheduler = nullptr;  // its stack pointer
  int64_t idle_yields = 0;
  uint32_t runs = 0;      // of clusters
  bool shuffles = false;  // some threads get ahead of others that are ready
  bool dying = false;     // threads that are resumed tell where they wait
};
State& state = *new State();

// The thread is the one that runs now.
void Enter(Thread* thread) {
  state.running = thread;
  threadIdx = thread->index;
  if (state.cluster.size == 1) return;
  blockIdx = thread->block->index;
  SelectShared(thread->block->rank);
}

void MakeReady(Thread* thread) {
  if (state.shuffles && state.first_ready != nullptr && Random(4) == 0) {
    thread->next = state.first_ready;
    state.first_ready = thread;
    return;
  }
  thread->next = nullptr;
  (state.first_ready == nullptr ? state.first_ready : state.last_ready->next) = thread;
  state.last_ready = thread;
}

// Goes on with the next thread that can, or with the scheduler.
void SwitchFrom(Thread* thread) {
  Thread* next = state.first_ready;
  if (next == thread) {
    state.first_ready = thread->next;
    return;
  }
  void* to = state.scheduler;
  if (next != nullptr) {
    state.first_ready = next->next;
    state.running = next;
    to = next->stack_pointer;
  }
  CudaEmulatorSwitch(&thread->stack_pointer, to);
  Enter(thread);
}

void Park(const char* what) {
  Thread* thread = state.running;
  thread->waits_for = what;
  SwitchFrom(thread);
  if (state.dying) {
    std::fprintf(stderr, "  thread %d waits at %s:\n", thread->id, what);
    PrintCalls();
    CudaEmulatorSwitch(&thread->stack_pointer, state.scheduler);
  }
  thread->waits_for = nullptr;
}

bool CompleteBarrier(Barrier& barrier, int expected, Thread* last) {
  if (barrier.arrived == 0 || barrier.arrived < expected) return false;
  int result = barrier.count;
  if (barrier.vote == Vote::kOr) result = barrier.count > 0;
  if (barrier.vote == Vote::kAnd) result = barrier.count == barrier.arrived;
  for (Thread* thread : barrier.waiting) {
    thread->result = result;
    MakeReady(thread);
  }
  if (last != nullptr) last->result = result;
  barrier.waiting.clear();
  barrier.arrived = barrier.count = 0;
  NoteProgress();
  return true;
}

bool CompleteGroup(Block& block, int first_thread, size_t index, int last_lane) {
  Warp& warp = block.warps[first_thread / kLanes];
  if (warp.groups[index].arrived != (warp.groups[index].mask & ~warp.ended)) return false;
  const Group group = warp.groups[index];
  warp.groups.erase(warp.groups.begin() + static_cast<std::ptrdiff_t>(index));
  group.combine(group.lanes, group.arrived);
  const uint32_t waiting = last_lane < 0 ? group.arrived : group.arrived & ~(1u << last_lane);
  for (uint32_t left = waiting; left != 0; left &= left - 1) {
    MakeReady(&block.threads[first_thread + std::countr_zero(left)]);
  }
  NoteProgress();
  return true;
}

void CompleteCluster() {
  Cluster& cluster = state.cluster;
  if (cluster.arrived == 0 || cluster.arrived < cluster.live) return;
  for (Thread* thread : cluster.waiting) MakeReady(thread);
  cluster.waiting.clear();
  cluster.arrived = 0;
  ++cluster.phase;
  NoteProgress();
}

// Those who wait for this thread wait no longer.
void End() {
  Thread* thread = state.running;
  Block& block = *thread->block;
  AsyncCopyFinish();
  thread->ended = true;
  --block.live;
  NoteProgress();
  Warp& warp = block.warps[thread->id / kLanes];
  warp.ended |= 1u << (thread->id % kLanes);
  for (size_t i = warp.groups.size(); i-- > 0;) {
    CompleteGroup(block, thread->id / kLanes * kLanes, i, -1);
  }
  CompleteBarrier(block.barriers[0], block.live, nullptr);
  Cluster& cluster = state.cluster;
  --cluster.live;
  if (thread->at_cluster && thread->cluster_phase == cluster.phase) --cluster.arrived;
  CompleteCluster();
  SwitchFrom(thread);
  std::abort();  // nobody resumes it
}

void FiberMain() {
  Enter(state.running);
  (*state.body)();
  End();
}

[[noreturn]] void ReportDeadlock() {
  std::fprintf(stderr, "cuda emulator: deadlock in %s, block (%u, %u, %u)\n",
               FunctionAt(state.shape.kernel).c_str(), blockIdx.x, blockIdx.y, blockIdx.z);
  std::map<std::string, std::vector<Thread*>> waiting;
  for (int rank = 0; rank < state.cluster.size; ++rank) {
    Block& block = *state.cluster.blocks[rank];
    for (int i = 0; i < block.size; ++i) {
      Thread& thread = block.threads[i];
      if (!thread.ended) waiting[thread.waits_for].push_back(&thread);
    }
  }
  for (const auto& [what, threads] : waiting) {
    std::fprintf(stderr, "  %zu threads wait at %s\n", threads.size(), what.c_str());
  }
  state.dying = true;
  state.first_ready = nullptr;
  for (const auto& [what, threads] : waiting) {
    state.running = threads.front();
    CudaEmulatorSwitch(&state.scheduler, threads.front()->stack_pointer);
  }
  std::abort();
}

void StartThreads(Block& block) {
  const dim3& shape = state.shape.block;
  block.size = static_cast<int>(shape.x * shape.y * shape.z);
  block.live = block.size;
  for (Warp& warp : block.warps) warp = {};
  for (Barrier& barrier : block.barriers) barrier = {};
  if (block.size % kLanes != 0) {
    block.warps[block.size / kLanes].ended = ~0u << (block.size % kLanes);
  }
  // Code that leans on an order shows it: every other block from its last thread on, every eighth
  // run in an order of its own.
  const bool backwards = ((block.index.x + block.index.y + block.index.z) & 1) != 0;
  for (int i = 0; i < block.size; ++i) {
    const int id = backwards ? block.size - 1 - i : i;
    if (block.stacks[id] == nullptr) block.stacks[id] = std::make_unique<FiberStack>();
    Thread& thread = block.threads[id];
    thread = {};
    const auto at = static_cast<unsigned>(id);
    thread.block = &block;
    thread.index = {at % shape.x, at / shape.x % shape.y, at / (shape.x * shape.y)};
    thread.id = id;
    thread.stack_pointer = block.stacks[id]->Prepare(FiberMain);
    MakeReady(&thread);
  }
}

// The cluster whose first block is blockIdx.
void RunCluster() {
  Cluster& cluster = state.cluster;
  const uint3 first = blockIdx;
  cluster.size = static_cast<int>(state.shape.cluster);
  cluster.live = 0;
  cluster.arrived = 0;
  state.first_ready = nullptr;
  state.shuffles = ++state.runs % 8 == 0;
  for (int rank = 0; rank < cluster.size; ++rank) {
    auto& block = cluster.blocks[rank];
    if (block == nullptr) block = std::make_unique<Block>();
    block->index = {first.x + static_cast<unsigned>(rank), first.y, first.z};
    block->rank = rank;
    StartThreads(*block);
    ResetShared(rank, state.shape.shared_bytes, block->size);
    cluster.live += block->size;
  }
  SelectShared(0);
  Thread* next = state.first_ready;
  state.first_ready = next->next;
  state.running = next;
  CudaEmulatorSwitch(&state.scheduler, next->stack_pointer);
  if (cluster.live != 0) ReportDeadlock();
  state.running = nullptr;
  for (int rank = 0; rank < cluster.size; ++rank) CheckShared(rank);
}

}  // namespace

void Fail(const char* format, ...) {
  std::fputs("cuda emulator: ", stderr);
  va_list args;
  va_start(args, format);
  std::vfprintf(stderr, format, args);
  va_end(args);
  std::fprintf(stderr, "\n  in %s, block (%u, %u, %u), thread %d\n",
               FunctionAt(state.shape.kernel).c_str(), blockIdx.x, blockIdx.y, blockIdx.z,
               state.running != nullptr ? state.running->id : -1);
  PrintCalls();
  std::abort();
}

void RunGrid(const LaunchShape& shape, const std::function<void()>& body) {
  state.shape = shape;
  state.body = &body;
  blockDim = shape.block;
  gridDim = shape.grid;
  for (unsigned z = 0; z < shape.grid.z; ++z) {
    for (unsigned y = 0; y < shape.grid.y; ++y) {
      for (unsigned x = 0; x < shape.grid.x; x += shape.cluster) {
        blockIdx = {x, y, z};
        RunCluster();
      }
    }
  }
}

uint32_t Random(uint32_t count) {
  static uint32_t turn = 0;
  turn = turn * 1664525u + 1013904223u;
  return (turn >> 16) % count;
}

int RunningThread() { return state.running->id; }
int Lane() { return state.running->id % kLanes; }

void NoteProgress() { state.idle_yields = 0; }

void Yield() {
  if (++state.idle_yields > kIdleYieldsMax) {
    state.running->waits_for = "a loop";
    Fail("deadlock: threads wait in loops and nothing changes");
  }
  MakeReady(state.running);
  Park("a loop");
}

int SyncThreads(int predicate, Vote vote) {
  Thread* thread = state.running;
  Barrier& barrier = thread->block->barriers[0];
  barrier.vote = vote;
  ++barrier.arrived;
  barrier.count += predicate != 0 ? 1 : 0;
  if (!CompleteBarrier(barrier, thread->block->live, thread)) {
    barrier.waiting.push_back(thread);
    Park("__syncthreads");
  }
  return thread->result;
}

void NamedBarrier(int id, int threads, bool waits) {
  static const char* const kNames[kBarriers] = {
      "barrier 0",  "barrier 1",  "barrier 2",  "barrier 3", "barrier 4",  "barrier 5",
      "barrier 6",  "barrier 7",  "barrier 8",  "barrier 9", "barrier 10", "barrier 11",
      "barrier 12", "barrier 13", "barrier 14", "barrier 15"};
  if (id < 1 || id >= kBarriers) Fail("named barrier %d: need 1 to %d", id, kBarriers - 1);
  if (threads <= 0 || threads % kLanes != 0) {
    Fail("named barrier %d of %d threads: need whole warps", id, threads);
  }
  Barrier& barrier = state.running->block->barriers[id];
  if (barrier.arrived != 0 && barrier.expected != threads) {
    Fail("named barrier %d: %d threads expected here, %d by others", id, threads, barrier.expected);
  }
  barrier.expected = threads;
  ++barrier.arrived;
  if (CompleteBarrier(barrier, threads, state.running) || !waits) return;
  barrier.waiting.push_back(state.running);
  Park(kNames[id]);
}

void WarpExchange(uint32_t mask, const char* what, void* operand, Combine combine) {
  Thread* thread = state.running;
  const int lane = thread->id % kLanes;
  Warp& warp = thread->block->warps[thread->id / kLanes];
  if ((mask >> lane & 1) == 0) Fail("%s: lane %d is not in its own mask 0x%x", what, lane, mask);
  size_t index = 0;
  while (index < warp.groups.size() && warp.groups[index].mask != mask) ++index;
  if (index == warp.groups.size()) {
    warp.groups.push_back({.mask = mask, .what = what, .combine = combine});
  }
  Group& group = warp.groups[index];
  if (group.combine != combine) {
    Fail("lane %d is at %s, other lanes of mask 0x%x at %s", lane, what, mask, group.what);
  }
  group.arrived |= 1u << lane;
  group.lanes[lane] = operand;
  if (!CompleteGroup(*thread->block, thread->id - lane, index, lane)) Park(what);
}

int ClusterRank() { return state.running->block->rank; }
int ClusterSize() { return state.cluster.size; }
void ClusterArrive() {
  Thread* thread = state.running;
  if (thread->at_cluster) Fail("barrier of a cluster: the second arrival without a wait");
  thread->at_cluster = true;
  thread->cluster_phase = state.cluster.phase;
  ++state.cluster.arrived;
  CompleteCluster();
}
void ClusterWait() {
  Thread* thread = state.running;
  if (!thread->at_cluster) Fail("barrier of a cluster: a wait without an arrival");
  if (thread->cluster_phase == state.cluster.phase) {
    state.cluster.waiting.push_back(thread);
    Park("a barrier of the cluster");
  }
  thread->at_cluster = false;
}
void* ClusterAt(void* mine, unsigned rank) {
  const std::ptrdiff_t at = static_cast<std::byte*>(mine) - DynamicShared();
  if (at < 0 || static_cast<size_t>(at) >= state.shape.shared_bytes) {
    Fail("shared memory of a cluster: %td of %zu bytes", at, state.shape.shared_bytes);
  }
  if (rank >= state.shape.cluster) Fail("block %u of %u of a cluster", rank, state.shape.cluster);
  if (state.cluster.blocks[rank]->live == 0) Fail("block %u of the cluster has ended", rank);
  return SharedOf(static_cast<int>(rank)) + at;
}

}  // namespace cuda_emulator
