// The safetensors format: 8 bytes of little-endian header length, a JSON header, then the tensors'
// bytes. A pure function over a byte span; any thread.
//
// Stricter than needed for reading, so that a file has one meaning: known dtypes, byte ranges that
// equal shape times element size, no overlap, no gap, no byte after the last tensor, aligned data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/core/status.h"

namespace lacuna::engine {

struct SafetensorsEntry final {
  std::string name;
  std::string dtype_name;      // as in the file, "BF16"
  std::optional<DType> dtype;  // nothing: a dtype of the format that we do not compute with
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // within the parsed span
};

inline constexpr int64_t kSafetensorsHeaderBytesMax = 100'000'000;  // the format's own bound
inline constexpr size_t kSafetensorsRankMax = 8;

// Entries in the order of their bytes. kInvalidArgument: "FILE: ..." or "FILE: tensor NAME: ...",
// with what was expected and found.
Result<std::vector<SafetensorsEntry>> ParseSafetensors(std::span<const std::byte> file_bytes,
                                                       std::string_view file);

}  // namespace lacuna::engine
