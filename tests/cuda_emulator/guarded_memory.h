// Host memory that stands for memory of the device. It ends, up to 64 bytes, at a page that nobody
// may touch, so that what is read or written behind it ends the program there.
#pragma once

#include <cstddef>

namespace cuda_emulator {

// Zeroed, and backed by nothing until it is touched; null when there is no room.
void* MapGuarded(size_t bytes);
void UnmapGuarded(void* memory, size_t bytes);

// Makes a page of the program untouchable, and faults of kernels tell what they are.
void GuardPage(void* page);
inline constexpr size_t kGuardBytes = 4096;

}  // namespace cuda_emulator
