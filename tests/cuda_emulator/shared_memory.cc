#include "tests/cuda_emulator/shared_memory.h"

#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tests/cuda_emulator/block.h"
#include "tests/cuda_emulator/guarded_memory.h"

namespace cuda_emulator {
namespace {

constexpr unsigned char kFill = 0xff;  // NaN in every float type

struct Copy final {
  std::byte* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;
  uint64_t* barrier = nullptr;  // of bulk copies
};
void Do(const Copy& copy) {
  if (copy.from == nullptr) {
    std::memset(copy.to, 0, copy.bytes);
  } else {
    std::memcpy(copy.to, copy.from, copy.bytes);
  }
}

// A thread's copies that are still to be done, and how many of them each committed group ends at.
struct ThreadCopies final {
  std::vector<Copy> copies;
  std::vector<size_t> group_ends;
};

struct Mbarrier final {
  int32_t bytes;     // announced and not yet come
  uint16_t pending;  // arrivals that the phase still needs
  uint16_t expected : 15;
  uint16_t phase : 1;
};
static_assert(sizeof(Mbarrier) == sizeof(uint64_t));

// Of a block.
struct Shared final {
  std::byte* arena = nullptr;  // dynamic memory, up to arena_end
  std::byte* arena_end = nullptr;
  size_t dynamic_bytes = 0;
  ThreadCopies threads[kThreadsMax];
  std::vector<Copy> bulk;
};
Shared* const of_ranks = new Shared[kClusterMax];
Shared* shared = of_ranks;  // of the block that runs

// Dynamic shared memory ends at a page that nobody may touch. Near the static variables: addresses
// of shared memory have 32 bits.
constexpr size_t kRoomBytes =
    (kSharedBytesMax + kGuardBytes - 1) / kGuardBytes * kGuardBytes + kGuardBytes;
alignas(kGuardBytes) std::byte arena_rooms[kClusterMax][kRoomBytes];

// The sections of static shared variables (shadow/cuda_runtime.h), from the program's own headers.
std::vector<std::span<std::byte>> FindStatics() {
  std::vector<std::span<std::byte>> statics;
  std::ifstream program("/proc/self/exe", std::ios::binary);
  const auto read = [&](auto* to, uint64_t offset, size_t bytes) {
    program.seekg(static_cast<std::streamoff>(offset));
    program.read(reinterpret_cast<char*>(to), static_cast<std::streamsize>(bytes));
  };
  Elf64_Ehdr header{};
  read(&header, 0, sizeof(header));
  std::vector<Elf64_Shdr> sections(header.e_shnum);
  read(sections.data(), header.e_shoff, sections.size() * sizeof(Elf64_Shdr));
  if (!program || sections.empty()) return statics;
  std::string names(sections[header.e_shstrndx].sh_size, '\0');
  read(names.data(), sections[header.e_shstrndx].sh_offset, names.size());
  Dl_info info{};
  dladdr(reinterpret_cast<const void*>(&FindStatics), &info);
  for (const Elf64_Shdr& section : sections) {
    if (!std::string_view(names.c_str() + section.sh_name).starts_with("lacuna_shared")) continue;
    statics.emplace_back(static_cast<std::byte*>(info.dli_fbase) + section.sh_addr,
                         section.sh_size);
  }
  return statics;
}

// Both happen on a device: a copy that is early, and one that is late.
bool Late() { return Random(2) != 0; }

Mbarrier& At(uint64_t* word) {
  if (reinterpret_cast<uintptr_t>(word) % 8 != 0) Fail("mbarrier: not aligned to 8 bytes");
  auto& barrier = *reinterpret_cast<Mbarrier*>(word);
  if (barrier.expected == 0x7fff) Fail("mbarrier: not initialised");
  return barrier;
}
void CompletePhase(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.expected;
  NoteProgress();
}
void Finish(const Copy& copy) {
  Do(copy);
  Mbarrier& barrier = At(copy.barrier);
  barrier.bytes -= static_cast<int32_t>(copy.bytes);
  CompletePhase(barrier);
}

}  // namespace

void ResetShared(int rank, size_t dynamic_bytes, int threads) {
  SelectShared(rank);
  if (shared->arena_end == nullptr) {
    shared->arena_end = arena_rooms[rank] + kRoomBytes - kGuardBytes;
    GuardPage(shared->arena_end);
  }
  shared->dynamic_bytes = dynamic_bytes;
  shared->arena = shared->arena_end - (dynamic_bytes + 15) / 16 * 16;
  static const auto& statics = *new auto(FindStatics());
  for (const auto& variables : statics) {
    std::memset(variables.data(), kFill, variables.size());
  }
  std::memset(shared->arena, kFill, dynamic_bytes);
  for (int i = 0; i < threads; ++i) {
    shared->threads[i].copies.clear();
    shared->threads[i].group_ends.clear();
  }
  shared->bulk.clear();
}

void SelectShared(int rank) { shared = of_ranks + rank; }

void CheckShared(int rank) {
  if (of_ranks[rank].bulk.empty()) return;
  Fail("ended before %zu bulk copies were done", of_ranks[rank].bulk.size());
}

std::byte* SharedOf(int rank) { return of_ranks[rank].arena; }

std::byte* DynamicShared() { return shared->arena; }
uint32_t SharedAddressOf(const void* pointer) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pointer) -
                               reinterpret_cast<uintptr_t>(shared->arena));
}
std::byte* SharedAt(uint32_t address, size_t bytes, size_t alignment) {
  if (address % alignment != 0) Fail("shared memory: %u is not aligned to %zu", address, alignment);
  // Static variables lie behind the guard.
  const auto room = static_cast<size_t>(shared->arena_end - shared->arena);
  if (address < room + kGuardBytes && address + bytes > shared->dynamic_bytes) {
    Fail("shared memory: %zu bytes at %u of %zu", bytes, address, shared->dynamic_bytes);
  }
  return shared->arena + static_cast<int32_t>(address);  // static variables lie on either side
}

void AsyncCopy(std::byte* to, const void* from, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0) {
    Fail("asynchronous copy of %zu bytes: source %p is not aligned", bytes, from);
  }
  const Copy copy{to, from, bytes, nullptr};
  if (Late()) {
    shared->threads[RunningThread()].copies.push_back(copy);
  } else {
    Do(copy);
  }
}
void AsyncCopyCommitGroup() {
  ThreadCopies& mine = shared->threads[RunningThread()];
  mine.group_ends.push_back(mine.copies.size());
}
void AsyncCopyWaitGroups(int groups_left) {
  ThreadCopies& mine = shared->threads[RunningThread()];
  const size_t left = static_cast<size_t>(groups_left);
  if (mine.group_ends.size() <= left) return;
  const size_t groups = mine.group_ends.size() - left;
  const auto done = static_cast<std::ptrdiff_t>(mine.group_ends[groups - 1]);
  std::for_each(mine.copies.begin(), mine.copies.begin() + done, Do);
  mine.copies.erase(mine.copies.begin(), mine.copies.begin() + done);
  mine.group_ends.erase(mine.group_ends.begin(),
                        mine.group_ends.begin() + static_cast<std::ptrdiff_t>(groups));
  for (size_t& end : mine.group_ends) end -= static_cast<size_t>(done);
}
void AsyncCopyFinish() {
  ThreadCopies& mine = shared->threads[RunningThread()];
  std::for_each(mine.copies.begin(), mine.copies.end(), Do);
  mine.copies.clear();
  for (size_t& end : mine.group_ends) end = 0;
}

void BulkCopy(std::byte* to, const void* from, size_t bytes, uint64_t* barrier) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0 || bytes % 16 != 0 || bytes == 0) {
    Fail("bulk copy of %zu bytes from %p: need multiples of 16", bytes, from);
  }
  const Copy copy{to, from, bytes, barrier};
  if (Late()) {
    shared->bulk.push_back(copy);
  } else {
    Finish(copy);
  }
}

void MbarrierInit(uint64_t* word, uint32_t arrivals) {
  if (arrivals == 0 || arrivals >= 0x7fff) Fail("mbarrier: %u arrivals", arrivals);
  auto& barrier = *reinterpret_cast<Mbarrier*>(word);
  barrier = {};
  barrier.expected = static_cast<uint16_t>(arrivals & 0x7fff);
  barrier.pending = barrier.expected;
}
void MbarrierArrive(uint64_t* word, uint32_t expected_bytes) {
  Mbarrier& barrier = At(word);
  if (barrier.pending == 0) Fail("mbarrier: more arrivals than its %u", barrier.expected);
  barrier.bytes += static_cast<int32_t>(expected_bytes);
  --barrier.pending;
  NoteProgress();
  CompletePhase(barrier);
}
bool MbarrierTest(uint64_t* word, uint32_t parity) {
  for (size_t i = 0; i < shared->bulk.size();) {
    if (shared->bulk[i].barrier != word) {
      ++i;
      continue;
    }
    const Copy copy = shared->bulk[i];
    shared->bulk.erase(shared->bulk.begin() + static_cast<std::ptrdiff_t>(i));
    Finish(copy);
  }
  if (At(word).phase != parity) return true;
  Yield();
  return false;
}

}  // namespace cuda_emulator
