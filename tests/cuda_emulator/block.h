// The threads of one thread block, or of a cluster of them, as fibers of one OS thread: scheduling,
// barriers, warp exchanges and shared memory. Device code reaches it through intrinsics.h and
// shadow/kernels/cuda/ptx.cuh.
//
// A fiber runs until it has to wait. When none can go on, the kernel has a deadlock: the process
// ends with a message that names the kernel and what its threads wait for. Other misuse of the
// device (unaligned asynchronous copies, mismatched barriers) ends it the same way.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>

// Where the running fiber is.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

namespace cuda_emulator {

inline constexpr int kThreadsMax = 1024;
inline constexpr int kLanes = 32;
inline constexpr size_t kSharedBytesMax = 227 << 10;
inline constexpr unsigned kClusterMax = 16;

struct LaunchShape final {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  unsigned cluster = 1;          // neighbours along x
  const void* kernel = nullptr;  // names it in messages
};

// Runs all blocks of a kernel, one after the other, but those of a cluster together; `body` is what
// each thread does.
void RunGrid(const LaunchShape& shape, const std::function<void()>& body);

// Ends the process; names the kernel, the block and the thread.
[[noreturn]] void Fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The next of a sequence that is the same in every run of the program, below `count`.
uint32_t Random(uint32_t count);

// ---- what a thread may do ----

enum class Vote { kAnd, kOr, kCount };
// Of all threads of the block that have not ended; counts those whose predicate is not zero.
int SyncThreads(int predicate, Vote vote);
void NamedBarrier(int id, int threads, bool waits);
// Lets the others run; a loop that waits for another thread calls it.
void Yield();
// Tells that the block got ahead, for those who wait in a loop.
void NoteProgress();

// Waits until all lanes of `mask` that have not ended are here; the last one calls combine, which
// reads and writes the lanes' operands: lanes[i] is null for those absent. `what` must agree.
using Combine = void (*)(void* const* lanes, uint32_t present);
void WarpExchange(uint32_t mask, const char* what, void* operand, Combine combine);
int Lane();

// ---- clusters ----

int ClusterRank();
int ClusterSize();
// A thread arrives once, then waits, or ends; arrivals of threads that have ended are not needed.
void ClusterArrive();
void ClusterWait();
// The same place in the shared memory of block `rank`, which has not ended.
void* ClusterAt(void* mine, unsigned rank);

// ---- shared memory ----

std::byte* DynamicShared();
// 32-bit addresses: offsets from the dynamic shared memory, where static variables are near.
uint32_t SharedAddressOf(const void* pointer);
// Checks that `bytes` from there on are shared memory of this block, and their alignment.
std::byte* SharedAt(uint32_t address, size_t bytes, size_t alignment);

// ---- asynchronous copies: done at once or as late as the program allows, in turns ----

// By the thread, in groups; source null: zeros.
void AsyncCopy(std::byte* to, const void* from, size_t bytes);
void AsyncCopyCommitGroup();
void AsyncCopyWaitGroups(int groups_left);
void AsyncCopyFinish();  // all of the thread's, committed or not
// By the copy engine, which tells the barrier.
void BulkCopy(std::byte* to, const void* from, size_t bytes, uint64_t* barrier);

// ---- mbarriers, in the 8 bytes that the program gives them ----

void MbarrierInit(uint64_t* barrier, uint32_t arrivals);
void MbarrierArrive(uint64_t* barrier, uint32_t expected_bytes);
bool MbarrierTest(uint64_t* barrier, uint32_t parity);  // yields when it returns false

}  // namespace cuda_emulator
