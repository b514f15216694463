// Reading tables out of JSON: what the container and the methods' own formats share. Private to
// the artefact readers.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/json_text.h"
#include "kvcache/sparse/artefacts.h"

namespace lacuna::kvcache {

inline constexpr JsonTextLimits kArtefactLimits = {.bytes_max = 64 << 20, .depth_max = 6};

// The first error of a file: "FILE: KEY: got X, need Y".
class TableReader final {
 public:
  TableReader(std::string_view file, const AttentionShape& shape) : file_(file), shape_(shape) {}

  const AttentionShape& shape() const { return shape_; }
  const Status& status() const { return status_; }
  bool ok() const { return status_.ok(); }
  void Fail(std::string_view key, std::string_view got, std::string_view need);

  // Parses the whole file; null JSON after an error.
  ConfigJson Parse(std::string_view bytes);
  // [layers][columns] of numbers from min to max.
  std::vector<float> Numbers(const ConfigJson& json, std::string_view key, int32_t columns,
                             double min, double max);
  std::vector<HeadPattern> Patterns(const ConfigJson& json, std::string_view key);
  std::vector<HeadSpan> Spans(const ConfigJson& object, std::string_view key);
  // [layers][kv heads][channels]; a short list is filled up with the channels it lacks, ascending.
  std::vector<int16_t> Channels(const ConfigJson& json, std::string_view key);
  // Ascending, without repeats, all within the model.
  std::vector<int32_t> Layers(const ConfigJson& json, std::string_view key);
  // Ids of one head, completed to a permutation of head_dim channels.
  std::vector<int16_t> ChannelList(const ConfigJson& json, std::string_view key);

  // An array of exactly `size` items, else an error.
  bool IsArray(const ConfigJson& json, std::string_view key, int32_t size, std::string_view of);

 private:
  std::string file_;
  const AttentionShape& shape_;
  Status status_;
};

}  // namespace lacuna::kvcache
