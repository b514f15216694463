// Fibers: stacks that one OS thread switches between (x86-64, System V). Calls of device code only:
// no exceptions leave a fiber, and none is left before it has returned.
#pragma once

#include <cstddef>

namespace cuda_emulator {

// A stack of its own, with a page below it that may not be touched.
class FiberStack final {
 public:
  FiberStack();
  FiberStack(const FiberStack&) = delete;
  FiberStack& operator=(const FiberStack&) = delete;
  ~FiberStack();

  // The stack pointer of a fiber that will call `entry`, which may not return.
  void* Prepare(void (*entry)()) const;

 private:
  std::byte* memory_;
};

// Saves where the caller is in `*from` and goes on at `to`.
extern "C" void CudaEmulatorSwitch(void** from, void* to);

}  // namespace cuda_emulator
