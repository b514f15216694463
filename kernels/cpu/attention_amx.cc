// Attention on AMX tiles (TDPBF16PS): 32 query rows by 64 keys at a time, two by two tiles. Softmax
// and stores are the AVX-512 ones. head_dim is a multiple of 32 and pages hold 64 tokens, so that
// K and V are tile operands where they lie. A tile of K is 16 keys, one of V 32: what is not listed
// is skipped, and a tile of V that is listed in part is read from a copy with zeros.
#include <immintrin.h>

#include "kernels/cpu/attention_tile.h"

namespace lacuna::kernels::cpu {
namespace {
#include "kernels/cpu/attention_avx512.inl"
#include "kernels/cpu/attention_avx512_bf16.inl"
#include "kernels/cpu/attention_kernel.inl"

constexpr int kTileRows = 16;
constexpr int kTileDepth = 32;  // bf16 of one tile row
constexpr int kAmxRows = 2 * kTileRows;
constexpr int kHalfKeys = 32;  // of one tile of V
constexpr int64_t kProbBytes = kBlockKeys * sizeof(uint16_t);
constexpr int64_t kScoreBytes = kBlockKeys * sizeof(float);

struct alignas(64) TileConfig final {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kTileConfig;

// The compiler's own tile loads and stores name no memory, and its LDTILECFG only 8 of the 64
// bytes; with constant data and these fences around the tile code neither matters.
inline void Fence() { asm volatile("" ::: "memory"); }

void BeginTiles(const AttentionTile& tile) {
  asm volatile("ldtilecfg %0" : : "m"(kTileConfig));
  // Rows of the last micro tile that no query fills must stay finite: they are multiplied too.
  const int filled = tile.rows;
  const int padded = (filled + kAmxRows - 1) / kAmxRows * kAmxRows;
  auto* q = static_cast<uint16_t*>(tile.q);
  __builtin_memset(q + int64_t{filled} * tile.head_dim, 0,
                   static_cast<size_t>(padded - filled) * static_cast<size_t>(tile.head_dim) * 2);
  __builtin_memset(tile.out + int64_t{filled} * tile.head_dim, 0,
                   static_cast<size_t>(padded - filled) * static_cast<size_t>(tile.head_dim) * 4);
  __builtin_memset(tile.probs, 0, kAmxRows * kProbBytes);
}

void EndTiles() { _tile_release(); }

void PackPlainRow(const AttentionTile& tile, int row, const void* q) {
  __builtin_memcpy(static_cast<uint16_t*>(tile.q) + int64_t{row} * tile.head_dim, q,
                   static_cast<size_t>(tile.head_dim) * 2);
}

bool InHalf(uint64_t keys, int half) { return (keys >> (half * kHalfKeys) & 0xffffffffu) != 0; }

// Tiles: 0..3 sums [row tile][column tile], 4 and 5 left operands, 6 and 7 right ones. A group that
// has none of `visible` is scored as its neighbour: nobody looks at those scores.
template <bool kTwo>
void ScoreTiles(const AttentionTile& tile, const KvBlock& block, uint64_t visible,
                const uint16_t* q) {
  const int64_t q_bytes = int64_t{tile.head_dim} * 2;
  const int64_t k_bytes = tile.k_stride * 2;
  for (int half = 0; half < 2; ++half) {
    if (!InHalf(visible, half)) continue;
    const int low = 2 * half, high = low + 1;
    const auto* k0 =
        static_cast<const uint16_t*>(block.k[GroupBits(visible, low) != 0 ? low : high]);
    const auto* k1 =
        static_cast<const uint16_t*>(block.k[GroupBits(visible, high) != 0 ? high : low]);
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kTwo) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int d = 0; d < tile.head_dim; d += kTileDepth) {
      const int64_t at = d / 2 * tile.k_stride;
      _tile_loadd(4, q + d, q_bytes);
      _tile_loadd(6, k0 + at, k_bytes);
      _tile_loadd(7, k1 + at, k_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (kTwo) {
        _tile_loadd(5, q + kTileRows * int64_t{tile.head_dim} + d, q_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    float* scores = tile.scores + half * kHalfKeys;
    _tile_stored(0, scores, kScoreBytes);
    _tile_stored(1, scores + kGroupKeys, kScoreBytes);
    if constexpr (kTwo) {
      _tile_stored(2, scores + kTileRows * kBlockKeys, kScoreBytes);
      _tile_stored(3, scores + kTileRows * kBlockKeys + kGroupKeys, kScoreBytes);
    }
  }
}

template <bool kTwo>
void AccumulateTiles(const AttentionTile& tile, const KvBlock& block, uint64_t visible,
                     float* out) {
  const int64_t out_bytes = int64_t{tile.head_dim} * 4;
  const int64_t v_bytes = int64_t{tile.head_dim} * 4;
  const auto* probs = static_cast<const uint16_t*>(tile.probs);
  for (int d = 0; d < tile.head_dim; d += 2 * kTileRows) {
    float* low = out + d;
    float* high = out + kTileRows * int64_t{tile.head_dim} + d;
    _tile_loadd(0, low, out_bytes);
    _tile_loadd(1, low + kTileRows, out_bytes);
    if constexpr (kTwo) {
      _tile_loadd(2, high, out_bytes);
      _tile_loadd(3, high + kTileRows, out_bytes);
    }
    for (int half = 0; half < 2; ++half) {
      if (!InHalf(visible, half)) continue;
      const auto* v = static_cast<const uint16_t*>(block.v[2 * half]) + 2 * d;
      _tile_loadd(4, probs + half * kTileDepth, kProbBytes);
      _tile_loadd(6, v, v_bytes);
      _tile_loadd(7, v + 2 * kTileRows, v_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (kTwo) {
        _tile_loadd(5, probs + kTileRows * kBlockKeys + half * kTileDepth, kProbBytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, low, out_bytes);
    _tile_stored(1, low + kTileRows, out_bytes);
    if constexpr (kTwo) {
      _tile_stored(2, high, out_bytes);
      _tile_stored(3, high + kTileRows, out_bytes);
    }
  }
}

// A quarter of the next block of this head, which is one slab, at a time: a burst of all its lines
// would hold up the loads of this one. Of a block that is not read whole: one of its groups.
void PrefetchQuarter(const AttentionTile& tile, const KvBlock* next, int quarter) {
  if (next == nullptr) return;
  if (next->keys != ~uint64_t{0}) {
    if (GroupBits(next->keys, quarter) == 0) return;
    PrefetchKeys<Bf16Dot>(tile, *next, quarter);
    PrefetchValues<Bf16Dot>(tile, *next, quarter);
    return;
  }
  const int64_t bytes = int64_t{kBlockKeys} * tile.head_dim;
  const auto* slab = static_cast<const char*>(next->k[0]) + quarter * bytes;
  for (int64_t at = 0; at < bytes; at += 64) Prefetch(slab + at);
}

void FoldBlockAmx(const AttentionTile& tile, const KvBlock& listed, const KvBlock* next) {
  KvBlock block = listed;
  if (block.keys != ~uint64_t{0}) CleanValues<Bf16Dot, kHalfKeys>(tile, &block);
  for (int row = 0; row < tile.rows; row += kAmxRows) {
    const int rows = tile.rows - row < kAmxRows ? tile.rows - row : kAmxRows;
    uint64_t keys[kAmxRows];
    uint64_t any = 0;
    for (int r = 0; r < rows; ++r) {
      keys[r] = VisibleKeys(tile, block, tile.positions[row + r]);
      any |= keys[r];
    }
    if (any == 0) continue;
    const auto* q = static_cast<const uint16_t*>(tile.q) + int64_t{row} * tile.head_dim;
    float* out = tile.out + int64_t{row} * tile.head_dim;
    const bool two = rows > kTileRows;
    PrefetchQuarter(tile, next, 0);
    Fence();
    two ? ScoreTiles<true>(tile, block, any, q) : ScoreTiles<false>(tile, block, any, q);
    Fence();
    PrefetchQuarter(tile, next, 1);
    float factor[kAmxRows];
    SoftmaxRows<Bf16Dot>(tile, row, rows, keys, factor);
    for (int r = 0; r < rows; ++r) {
      if (factor[r] == 1.0f) continue;
      float* sums = out + int64_t{r} * tile.head_dim;
      const Vec scale = Set1(factor[r]);
      for (int d = 0; d < tile.head_dim; d += kLanes) Store(sums + d, Mul(Load(sums + d), scale));
    }
    PrefetchQuarter(tile, next, 2);
    Fence();
    two ? AccumulateTiles<true>(tile, block, any, out)
        : AccumulateTiles<false>(tile, block, any, out);
    Fence();
    PrefetchQuarter(tile, next, 3);
    next = nullptr;
  }
}

}  // namespace

const AttentionKernels kAttentionAmxBf16{BeginTiles,        PackPlainRow, FoldBlockAmx,
                                         StoreRow<Bf16Dot>, EndTiles,     false};

}  // namespace lacuna::kernels::cpu
