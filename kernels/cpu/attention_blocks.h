// BlockCursor: walks a list of KV pages as blocks of 64 keys for one tile. Lives on a worker's
// stack; allocates nothing.
//
// A block is 64 neighbouring keys. With `gather`, blocks whose masks leave out whole groups of 16
// are put together from four such groups: a kernel runs at a fraction of its speed on one group.
// Blocks that lose no group to a mask stay as they are, so that full masks change no bits.
#pragma once

#include <cstdint>

#include "kernels/cpu/attention_tile.h"
#include "kernels/ops/kv_pool.h"
#include "kernels/ops/selection.h"

namespace lacuna::kernels::cpu {

class BlockCursor final {
 public:
  // What is common to a tile: entries [begin, end) of `lists` and its queries' first and last
  // positions.
  struct Scope final {
    const PageLists* lists;
    int64_t begin, end;
    int64_t kv_head;
    int64_t first_position, last_position;
    StaticShape shape;
    bool gather;  // for tiles of one position
  };

  BlockCursor(const KvPool& pool, const Scope& scope);

  // Limits the walk to entries [begin, end) of `ranges`.
  void Limit(const KeyRanges& ranges, int64_t begin, int64_t end) {
    ranges_ = &ranges;
    range_ = begin;
    range_end_ = end;
  }

  // False at the end. Leaves out what no query of the tile sees, in groups of 16 keys.
  bool Next(KvBlock* block);

 private:
  bool NextNeighbours(KvBlock* block);
  uint64_t TakePages(KvBlock* block);
  uint64_t KeysInRanges(int64_t first_key);
  uint64_t SeenKeys(int64_t first_key) const;
  bool Gather(KvBlock* block);

  const KvPool& pool_;
  Scope scope_;
  int64_t window_begin_ = 0;  // first key in the window of any query; 0 without a window
  bool thin_ = false;         // the last block lost a group to its masks
  KvBlock gathered_{};
  int gathered_groups_ = 0;
  const KeyRanges* ranges_ = nullptr;
  int64_t range_ = 0;
  int64_t range_end_ = 0;
};

}  // namespace lacuna::kernels::cpu
