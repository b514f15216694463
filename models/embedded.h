// The default model's files, linked into the binary: `lacuna serve` needs no download and no
// folder.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace lacuna::models {

struct EmbeddedFile final {
  std::string_view name;  // as in the model's folder: "config.json"
  std::span<const std::byte> bytes;
};

inline constexpr std::string_view kEmbeddedName = "recall-12m";

// All files of models/recall-12m that a server reads; they live as long as the process.
std::span<const EmbeddedFile> EmbeddedModel();

}  // namespace lacuna::models
