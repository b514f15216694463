#include "tests/cuda_emulator/guarded_memory.h"

#include <signal.h>
#include <sys/mman.h>

#include "tests/cuda_emulator/block.h"

namespace cuda_emulator {
namespace {

constexpr size_t kPageBytes = kGuardBytes, kAlignment = 64;  // what Device promises

constexpr size_t RoundUp(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

void TellFault(int, siginfo_t* info, void*) {
  Fail("touched %p: behind an allocation or behind the dynamic shared memory", info->si_addr);
}

}  // namespace

void GuardPage(void* page) {
  if (mprotect(page, kPageBytes, PROT_NONE) != 0) Fail("a page cannot be guarded");
  struct sigaction action {};
  action.sa_sigaction = TellFault;
  action.sa_flags = SA_SIGINFO | SA_RESETHAND;
  sigaction(SIGSEGV, &action, nullptr);
}

void* MapGuarded(size_t bytes) {
  const size_t room = RoundUp(bytes, kPageBytes);
  void* const mapped = mmap(nullptr, room + kPageBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto* const end = static_cast<std::byte*>(mapped) + room;
  if (mprotect(end, kPageBytes, PROT_NONE) != 0) return nullptr;
  return end - RoundUp(bytes, kAlignment);
}

void UnmapGuarded(void* memory, size_t bytes) {
  const size_t room = RoundUp(bytes, kPageBytes);
  munmap(static_cast<std::byte*>(memory) + RoundUp(bytes, kAlignment) - room, room + kPageBytes);
}

}  // namespace cuda_emulator
