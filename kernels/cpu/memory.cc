#include "kernels/cpu/memory.h"

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

#include "kernels/core/checked_math.h"

namespace lacuna::kernels::cpu {
namespace {

constexpr int64_t kPageBytes = 4096;
constexpr int64_t kMapFromBytes = 64 << 10;  // below, the heap
constexpr int64_t kHugeFromBytes = 4 << 20;

// A mapping begins with one page that holds its size; the buffer follows.
void Unmap(void* data) {
  std::byte* base = static_cast<std::byte*>(data) - kPageBytes;
  size_t bytes = 0;
  std::memcpy(&bytes, base, sizeof(bytes));
  munmap(base, bytes);
}

Status OutOfMemory(int64_t bytes, int64_t available) {
  const std::string free_text =
      available < 0 ? "an unknown amount" : std::to_string(available >> 20) + " MiB";
  return Exhausted("memory: asked for " + std::to_string(bytes >> 20) + " MiB, " + free_text +
                   " free");
}

Result<Buffer> MapZeroed(int64_t bytes) {
  // The mapping is lazy: without this look a pool that cannot fit would be found out by a kill.
  const int64_t available = AvailableBytes();
  if (available >= 0 && bytes > available) return OutOfMemory(bytes, available);
  const auto total = static_cast<size_t>(RoundUp(bytes, kPageBytes) + kPageBytes);
  void* base = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return OutOfMemory(bytes, available);
  if (bytes >= kHugeFromBytes) madvise(base, total, MADV_HUGEPAGE);  // a refusal costs speed only
  std::memcpy(base, &total, sizeof(total));
  return Buffer(static_cast<std::byte*>(base) + kPageBytes, bytes, Unmap);
}

}  // namespace

int64_t AvailableBytes() {
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  int64_t kib = 0;
  std::string rest;
  while (meminfo >> key >> kib) {
    if (key == "MemAvailable:") return kib << 10;
    std::getline(meminfo, rest);
  }
  return -1;
}

Result<Buffer> AllocateZeroed(int64_t bytes) {
  if (bytes < 0) return InvalidArgument("memory: a negative size");
  if (bytes == 0) return Buffer();
  if (bytes > std::numeric_limits<int64_t>::max() - 2 * kPageBytes) return OutOfMemory(bytes, -1);
  if (bytes >= kMapFromBytes) return MapZeroed(bytes);
  const auto rounded = static_cast<size_t>(RoundUp(bytes, 64));
  void* data = std::aligned_alloc(64, rounded);
  if (data == nullptr) return OutOfMemory(bytes, -1);
  std::memset(data, 0, rounded);
  return Buffer(data, bytes, std::free);
}

}  // namespace lacuna::kernels::cpu
