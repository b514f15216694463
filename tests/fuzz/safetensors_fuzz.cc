// Any bytes as a safetensors file: entries that tile the data part, or one line of error.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "engine/loader/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Aligned as a mapping is.
  std::vector<uint64_t> memory(size / sizeof(uint64_t) + 1);
  if (size > 0) std::memcpy(memory.data(), data, size);
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(memory.data()), size);
  const auto entries = lacuna::engine::ParseSafetensors(bytes, "fuzz");
  if (!entries.ok()) {
    if (entries.status().message().find('\n') != std::string::npos) std::abort();
    return 0;
  }
  const std::byte* end = nullptr;
  for (const lacuna::engine::SafetensorsEntry& entry : *entries) {
    if (end != nullptr && entry.bytes.data() != end) std::abort();
    end = entry.bytes.data() + entry.bytes.size();
  }
  if (end != nullptr && end != bytes.data() + size) std::abort();
  return 0;
}
