// Builds safetensors files in memory, good ones and broken ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace lacuna::engine {

// 8 bytes of header length, the header padded with spaces to a multiple of 8, `data_bytes` zeros.
// Aligned as mmap aligns: std::vector's memory suits every element type of the format.
inline std::vector<std::byte> SafetensorsBytes(std::string header, size_t data_bytes) {
  while (header.size() % 8 != 0) header += ' ';
  const uint64_t length = header.size();
  std::vector<std::byte> bytes(sizeof(length) + header.size() + data_bytes);
  std::memcpy(bytes.data(), &length, sizeof(length));
  std::memcpy(bytes.data() + sizeof(length), header.data(), header.size());
  return bytes;
}

}  // namespace lacuna::engine
