// RangeWorld: prompts with random queries and keys in a paged pool, SelectRanges over any cut of
// them, and the same choice in double precision, written from the methods' papers. Single thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/ops/select_ranges.h"
#include "tests/ops/op_test.h"

namespace lacuna::kernels {

struct RangeSpec final {
  int q_heads = 4, kv_heads = 2, head_dim = 32, page_tokens = 64, tokens = 1500;
  PrefillPath path;
  PrefillDials dials;
  std::vector<PrefillHead> heads;   // [q_heads]; empty: p of `p` and no pattern
  std::vector<StaticShape> shapes;  // [kv_heads] or empty
  float p = 0.9f, scale = 0.0f;     // 0: 1 / sqrt(head_dim)
};

struct KeyRange final {
  int32_t begin, end;
  bool operator==(const KeyRange&) const = default;
};
// Of (q head, tile of 64 positions).
using RangeLists = std::map<std::pair<int, int>, std::vector<KeyRange>>;

class RangeWorld final {
 public:
  // Keys and queries of N(0, 1) and N(0, spread), rounded to the backend's type.
  RangeWorld(std::shared_ptr<Backend> backend, const BackendCase& which, RangeSpec spec,
             float spread, uint32_t seed);

  RangeSpec& spec() { return spec_; }
  float& q(int token, int head, int i) { return q_[Index(token, head, spec_.q_heads, i)]; }
  float& k(int token, int head, int i) { return k_[Index(token, head, spec_.kv_heads, i)]; }
  // What runs the op instead of the backend.
  using RunOp = std::function<Status(const SelectRangesArgs&)>;
  void set_run(RunOp run) { run_ = std::move(run); }
  // Draws the keys from `token` on anew.
  void ChangeKeysFrom(int token);

  // Chunks [cuts[i], cuts[i + 1]), one call each or all in one. Checks each list's form.
  RangeLists Run(const std::vector<int>& cuts, bool one_call = false);
  RangeLists Run() { return Run({0, spec_.tokens}); }
  const std::vector<RangeStats>& stats() const { return stats_; }  // [q_heads], of the last Run

  // The tile's 16-key groups that a double-precision reading of the card keeps.
  struct Expected final {
    std::vector<bool> groups;
    bool sure;  // false where rounding could tip a choice
  };
  Expected Reference(int head, int tile);

 private:
  size_t Index(int token, int head, int heads, int i) const {
    return static_cast<size_t>((token * heads + head) * spec_.head_dim + i);
  }
  void Append();
  using Chunk = std::pair<int, int>;  // positions
  void RunCall(const std::vector<Chunk>& chunks, RangeLists* lists);
  // RangeArrays, on the host.
  struct Written final {
    std::vector<int32_t> begin, end;
    std::vector<int64_t> begins, ends, chunk_offsets;
    int64_t stride;
  };
  void Collect(const Chunk& chunk, size_t index, const Written& out, RangeLists* lists) const;

  struct Kept final {
    std::vector<bool> units;
    bool sure = true;
  };
  double Dot(int position, int head, int key);
  double scale() const;
  int cell_tokens() const { return spec_.path.cell_tokens; }
  int BlockEnd(int block) const;
  Kept ChooseCount(const std::vector<double>& scores, int head_units, int tail, int count) const;
  Kept ChooseMass(const std::vector<double>& scores, int head_units, int tail, double p,
                  bool inclusive, int min, int max) const;
  std::vector<double> PooledRow(int head, int block, const std::vector<int>& channels);
  std::vector<double> AntidiagonalRow(int head, int block);
  std::vector<int> BandChannels(bool low) const;
  std::pair<int, int> ForcedBlocks(int block) const;
  const Kept& RowChoice(int head, int block);
  Kept MapChoice(int head, int cell, int block);
  struct CellChoice final {
    Kept columns, distances;
    bool reads_map = false;
  };
  const CellChoice& CellOf(int head, int cell);
  void Probe(int head, int cell, std::vector<double>* columns, std::vector<double>* distances,
             std::vector<int>* rows);
  double Divergence(int head, int cell, const std::vector<double>& columns,
                    const std::vector<int>& rows);

  std::shared_ptr<Backend> backend_;
  RunOp run_;
  BackendCase which_;
  RangeSpec spec_;
  std::mt19937 random_;
  std::vector<float> q_, k_;
  std::vector<int32_t> page_table_;
  std::unique_ptr<TestMemory> pool_memory_;
  KvPool pool_;
  std::vector<RangeStats> stats_;
  std::map<std::pair<int, int>, Kept> row_choices_;
  std::map<std::pair<int, int>, CellChoice> cell_choices_;
};

}  // namespace lacuna::kernels
