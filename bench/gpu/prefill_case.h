// One prefill attention problem, on the host and on the device: random q, keys and values in pages
// in shuffled order, page lists, key ranges; and the same attention in double precision.
//
// For the check and the bench programs. Pages that no list has are filled with NaN, as is `out`
// before a run.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/ops/attention.h"

namespace lacuna::bench {

using kernels::AttendPrefillArgs;
using kernels::KeyRanges;
using kernels::PageLists;
using kernels::PrefillChunk;
using kernels::StaticShape;

enum class RangeKind { kNone, kGranules, kBlocks, kSomeEmpty };
enum class ListKind { kFull, kHoles, kRecent };  // holes: random pages missing; recent: the first

struct ChunkShape final {
  int rows = 0;
  int first_position = 0;
  int rows_before = 0;  // of q that belong to no chunk
};

struct PrefillShape final {
  DType dtype = DType::kBF16;
  int head_dim = 128;
  int q_heads = 4;
  int kv_heads = 2;
  std::vector<ChunkShape> chunks{};
  StaticShape shape{};
  bool shapes_per_head = false;  // of each chunk, instead of `shape`
  float softcap = 0.0f;
  bool sink_logits = false;
  RangeKind ranges = RangeKind::kNone;
  ListKind lists = ListKind::kFull;
  double density = 0.3;  // of what the ranges keep
  float q_scale = 1.0f;  // spread of the scores
  uint32_t seed = 1;
};

// Device memory of one array, freed at the end.
class DeviceArray final {
 public:
  DeviceArray() = default;
  explicit DeviceArray(size_t bytes);
  DeviceArray(const void* host, size_t bytes);
  DeviceArray(DeviceArray&& other) noexcept;
  DeviceArray& operator=(DeviceArray&& other) noexcept;
  ~DeviceArray();
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

class PrefillCase final {
 public:
  explicit PrefillCase(const PrefillShape& shape);

  // On device memory. `chunks` points into this object.
  AttendPrefillArgs Args() const;
  void PoisonOutputs();
  struct Outputs final {
    std::vector<float> out;  // [tokens, q_heads, head_dim]
    std::vector<float> lse;  // [tokens, q_heads]
    std::vector<uint16_t> bits;
  };
  Outputs Fetch() const;
  // In double precision, for the rows of chunks; zeros elsewhere.
  Outputs Reference() const;
  // Rows of q that belong to chunks.
  std::vector<bool> RowsOfChunks() const;
  int tokens() const { return tokens_; }
  const PrefillShape& shape() const { return shape_; }

 private:
  struct Sequence final {
    std::vector<float> k, v;       // [keys, kv_heads, head_dim], rounded to the element type
    std::vector<int32_t> pages;    // of the list
    std::vector<int32_t> logical;  // of the list
    std::vector<bool> listed;      // per page
  };
  void MakeQueries(std::mt19937& random);
  void MakeSequences(std::mt19937& random);
  void MakeRanges(std::mt19937& random);
  StaticShape ShapeOf(size_t chunk, int kv_head) const;
  bool Visible(size_t chunk, int row, int head, int key) const;
  void ReferenceRow(size_t chunk, int row, int head, Outputs* out) const;

  PrefillShape shape_;
  int tokens_ = 0;
  int64_t pages_ = 0;
  std::vector<PrefillChunk> chunks_;
  std::vector<float> q_;
  std::vector<float> sink_logits_;
  std::vector<Sequence> sequences_;  // one per chunk
  std::vector<int32_t> range_begin_, range_end_;
  std::vector<int64_t> range_begins_, range_ends_, range_offsets_;
  KeyRanges device_ranges_;
  PageLists device_lists_;
  StaticShape* device_shapes_ = nullptr;
  DeviceArray q_memory_, out_memory_, lse_memory_, pool_memory_, sink_memory_;
  std::vector<DeviceArray> tables_;
};

}  // namespace lacuna::bench
