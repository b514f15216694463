#include "engine/loader/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "engine/loader/bounded_json.h"
#include "kernels/core/checked_math.h"

namespace lacuna::engine {
namespace {

using nlohmann::json;

struct FormatDType final {
  std::string_view name;
  int64_t bytes;
  std::optional<DType> dtype;
};

constexpr std::array<FormatDType, 16> kFormatDTypes = {{
    {"F32", 4, DType::kF32},
    {"BF16", 2, DType::kBF16},
    {"F16", 2, DType::kF16},
    {"I32", 4, DType::kI32},
    {"F64", 8, {}},
    {"I64", 8, {}},
    {"U64", 8, {}},
    {"U32", 4, {}},
    {"I16", 2, {}},
    {"U16", 2, {}},
    {"I8", 1, {}},
    {"U8", 1, {}},
    {"BOOL", 1, {}},
    {"F8_E4M3", 1, {}},
    {"F8_E5M2", 1, {}},
    {"F8_E8M0", 1, {}},
}};

// A JSON number that is an integer in [0, 2^63), or nothing.
std::optional<int64_t> Size(const json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  return CheckedNarrow<int64_t>(value.get<uint64_t>());
}

// One parsed entry with its byte range in the data part still as offsets.
struct Parsed final {
  SafetensorsEntry entry;
  int64_t begin = 0;
  int64_t end = 0;
  int64_t element_bytes = 1;
};

Result<Parsed> ParseEntry(const std::string& name, const json& value, const std::string& prefix) {
  Parsed out;
  out.entry.name = name;
  if (!value.is_object() || !value.contains("dtype") || !value.contains("shape") ||
      !value.contains("data_offsets") || !value["dtype"].is_string()) {
    return InvalidArgument(prefix + "expected dtype, shape and data_offsets, found something else");
  }
  out.entry.dtype_name = value["dtype"].get<std::string>();
  const auto format = std::ranges::find(kFormatDTypes, out.entry.dtype_name, &FormatDType::name);
  if (format == kFormatDTypes.end()) {
    return InvalidArgument(prefix + "expected a known dtype, found " + Describe(value["dtype"]));
  }
  out.entry.dtype = format->dtype;
  out.element_bytes = format->bytes;

  const json& shape = value["shape"];
  if (!shape.is_array() || shape.size() > kSafetensorsRankMax) {
    return InvalidArgument(prefix + "expected a shape of at most 8 numbers, found " +
                           Describe(shape));
  }
  std::optional<int64_t> bytes = format->bytes;
  for (const json& dim : shape) {
    const std::optional<int64_t> size = Size(dim);
    if (!size) {
      return InvalidArgument(prefix + "shape: expected sizes, found " + Describe(dim));
    }
    out.entry.shape.push_back(*size);
    bytes = bytes ? CheckedMul(*bytes, *size) : bytes;
  }
  const json& offsets = value["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !Size(offsets[0]) || !Size(offsets[1]) ||
      *Size(offsets[0]) > *Size(offsets[1])) {
    return InvalidArgument(prefix + "data_offsets: expected [begin, end], found something else");
  }
  out.begin = *Size(offsets[0]);
  out.end = *Size(offsets[1]);
  if (!bytes || *bytes != out.end - out.begin) {
    return InvalidArgument(prefix + "expected " +
                           (bytes ? std::to_string(*bytes) : "more than 2^63") +
                           " bytes for its shape, found " + std::to_string(out.end - out.begin));
  }
  return out;
}

// The ranges tile the data part exactly; sets the spans.
Status PlaceEntries(std::vector<Parsed>& parsed, std::span<const std::byte> data,
                    const std::string& file) {
  std::ranges::sort(parsed, [](const Parsed& a, const Parsed& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  int64_t expected = 0;
  const int64_t size = static_cast<int64_t>(data.size());
  for (Parsed& p : parsed) {
    const std::string prefix = file + ": tensor " + p.entry.name + ": ";
    if (p.begin != expected) {
      return InvalidArgument(prefix + "expected to begin at byte " + std::to_string(expected) +
                             (p.begin < expected ? ", overlaps at " : ", leaves a gap to ") +
                             std::to_string(p.begin));
    }
    if (p.end > size) {
      return InvalidArgument(prefix + "expected " + std::to_string(p.end) +
                             " bytes of data, found " + std::to_string(size) + ": truncated");
    }
    p.entry.bytes =
        data.subspan(static_cast<size_t>(p.begin), static_cast<size_t>(p.end - p.begin));
    const auto address = reinterpret_cast<uintptr_t>(p.entry.bytes.data());
    if (!p.entry.bytes.empty() && address % static_cast<uintptr_t>(p.element_bytes) != 0) {
      return InvalidArgument(prefix + "expected aligned data, found it off by " +
                             std::to_string(address % static_cast<uintptr_t>(p.element_bytes)));
    }
    expected = p.end;
  }
  if (expected != size) {
    return InvalidArgument(file + ": expected " + std::to_string(expected) +
                           " bytes of tensors, found " + std::to_string(size));
  }
  return OkStatus();
}

}  // namespace

Result<std::vector<SafetensorsEntry>> ParseSafetensors(std::span<const std::byte> file_bytes,
                                                       std::string_view file) {
  const std::string name(file);
  if (file_bytes.size() < sizeof(uint64_t)) {
    return InvalidArgument(name + ": expected at least 8 bytes, found " +
                           std::to_string(file_bytes.size()));
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file_bytes.data(), sizeof(header_bytes));
  const uint64_t rest = file_bytes.size() - sizeof(uint64_t);
  const uint64_t header_max = std::min(rest, static_cast<uint64_t>(kSafetensorsHeaderBytesMax));
  if (header_bytes > header_max) {
    return InvalidArgument(name + ": expected a header of at most " + std::to_string(header_max) +
                           " bytes, found " + std::to_string(header_bytes));
  }
  const std::string_view header(reinterpret_cast<const char*>(file_bytes.data()) + sizeof(uint64_t),
                                static_cast<size_t>(header_bytes));
  LACUNA_ASSIGN_OR_RETURN(const json object, ParseJsonObject(header, name, /*depth_max=*/4));

  std::vector<Parsed> parsed;
  parsed.reserve(object.size());
  for (const auto& [key, value] : object.items()) {
    if (key == "__metadata__") continue;
    LACUNA_ASSIGN_OR_RETURN(
        Parsed entry, ParseEntry(key, value, name + ": tensor " + Describe(json(key)) + ": "));
    parsed.push_back(std::move(entry));
  }
  LACUNA_RETURN_IF_ERROR(
      PlaceEntries(parsed, file_bytes.subspan(sizeof(uint64_t) + header.size()), name));
  std::vector<SafetensorsEntry> entries;
  entries.reserve(parsed.size());
  for (Parsed& p : parsed) entries.push_back(std::move(p.entry));
  return entries;
}

}  // namespace lacuna::engine
