#include "tests/cuda_emulator/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace cuda_emulator {
namespace {

constexpr size_t kStackBytes = 256 << 10;  // touched pages alone take memory
constexpr size_t kGuardBytes = 4096;

}  // namespace

// The registers that a call preserves; the control words of floating point never change.
asm(R"(
.text
.globl CudaEmulatorSwitch
.type CudaEmulatorSwitch, @function
CudaEmulatorSwitch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size CudaEmulatorSwitch, .-CudaEmulatorSwitch
)");

FiberStack::FiberStack() {
  void* memory = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) {
    std::perror("cuda emulator: no memory for stacks");
    std::abort();
  }
  memory_ = static_cast<std::byte*>(memory);
}

FiberStack::~FiberStack() { munmap(memory_, kStackBytes + kGuardBytes); }

void* FiberStack::Prepare(void (*entry)()) const {
  auto* top = reinterpret_cast<uint64_t*>(memory_ + kGuardBytes + kStackBytes);
  *--top = 0;  // where `entry` would return to: it starts with a stack aligned as by a call
  *--top = reinterpret_cast<uint64_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;  // the registers of CudaEmulatorSwitch
  return top;
}

}  // namespace cuda_emulator
